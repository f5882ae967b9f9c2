"""Draw docs/images/balance-*.png: fibres, balancing flows, learning, the fast–slow limit, and sampled densities.

python tools/balance_figures.py [--out docs/images]
"""

import argparse
import dataclasses
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import fibration as fb  # noqa: E402
from fibration.balance._density_plot import density_plot  # noqa: E402
from fibration.balance._plots import fibre_plot, moment_plot  # noqa: E402
from fibration.balance._value_plots import fast_slow_plot, singular_value_path, singular_value_plot  # noqa: E402

B = fb.balance


def scalar(first, second):
    """Make a chain of two numbers."""
    return [jnp.array([[first]]), jnp.array([[second]])]


def orthogonal(rng, n):
    """Draw an orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def titled(plot, title):
    """Say in the title which of two panels it is."""
    return dataclasses.replace(plot, title=title)


def fibres():
    """Balance three chains of two numbers, and train two others towards the product 2."""
    flows = [B.flow(Ws, 4.0) for Ws in (scalar(2.3, 2 / 2.3), scalar(-0.28, -0.5 / 0.28), scalar(-2.2, 1 / 2.2))]
    problem = B.factored(B.regression(jnp.ones((1, 1)), 2 * jnp.ones((1, 1))))
    starts = (scalar(1.3, -0.35), scalar(0.2, 0.9), scalar(-1.0, -0.2))
    learned = [fb.integrate(problem, fb.GradientFlow(), Ws, 20.0, times=np.linspace(0, 20, 400)) for Ws in starts]
    conserved = [float(Ws[0][0, 0] ** 2 - Ws[1][0, 0] ** 2) for Ws in starts]
    return fibre_plot([-1.0, 0.5, 2.0], [*flows, *learned], conserved=conserved)


def flows():
    """Balance chains of depth 2 and 5 over one matrix in three ways."""
    plots = []
    for depth, end in ((2, 5.0), (5, 9.0)):
        rng = np.random.default_rng(depth)
        X = (orthogonal(rng, 3) * [1.0, 0.8, 0.6]) @ orthogonal(rng, 3)
        g = [np.eye(3) + 0.4 * rng.normal(size=(3, 3)) for _ in range(depth - 1)]
        Ws = B.act(g, B.factor(X, (3,) * (depth + 1)))
        runs = [B.flow(Ws, end, kind, rtol=1e-10, atol=1e-12) for kind in ("induced", "squared_moment", "newton")]
        plots.append(titled(moment_plot(runs), f"The moment map along the flows, depth {depth}"))
    return plots


def regression(depth=3, decay=0.1):
    """Learn a matrix with weight decay from a balanced and from an imbalanced chain of one product."""
    rng, d = np.random.default_rng(0), 5
    U, V = orthogonal(rng, d), orthogonal(rng, d)
    targets = np.array([3.0, 2.0, 1.2, 0.5, 0.2])
    start = np.full(d, 0.05)
    Y = (U * targets) @ V.T
    cost = B.regression(np.sqrt(d) * np.eye(d), np.sqrt(d) * Y.T)  # ½‖X − Y‖²: whitened samples
    Ws = [jnp.asarray(W) for W in B.factor((U * start) @ V.T, (d,) * (depth + 1))]
    g = [np.diag(np.exp(rng.uniform(-1, 1, d))) @ orthogonal(rng, d) for _ in range(depth - 1)]
    imbalanced = [jnp.asarray(W) for W in B.act(g, Ws)]
    times = np.linspace(0, 12, 241)

    problem, flow = B.factored(cost), fb.flows.WeightDecay(fb.GradientFlow(), decay)
    starts = {"balanced chain": Ws, "imbalanced chain": imbalanced}
    runs = {name: fb.integrate(problem, flow, chain, 12.0, times=times) for name, chain in starts.items()}
    path = singular_value_path(start, targets, times, depth, decay)
    kept = B.shrinkage(targets, decay, depth)
    plot = singular_value_plot(runs, theory=(times, path), levels={"shrinkage": kept[kept > 0]})
    return titled(plot, f"Regression with weight decay, depth {depth}")


def completion(depth=3):
    """Complete a matrix of rank two by chains, and by a matrix alone."""
    rng, d = np.random.default_rng(1), 12
    truth = (orthogonal(rng, d)[:, :2] * [4.0, 2.0]) @ orthogonal(rng, d)[:, :2].T
    rows, columns = np.nonzero(rng.random((d, d)) < 0.75)
    cost = B.completion(rows, columns, truth[rows, columns])
    X = 0.03 * orthogonal(rng, d)
    Ws = [jnp.asarray(W) for W in B.factor(X, (d,) * (depth + 1))]
    end = 1200.0
    times = np.linspace(0, end, 201)
    g = [np.diag(np.exp(rng.uniform(-1, 1, d))) @ orthogonal(rng, d) for _ in range(depth - 1)]
    problem, flow = B.factored(cost), fb.GradientFlow()
    runs = {
        "balanced chain": fb.integrate(problem, flow, Ws, end, times=times),
        "imbalanced chain": fb.integrate(problem, flow, B.act(g, Ws), end, times=times),
        "X itself, no chain": fb.integrate(cost, flow, jnp.asarray(X), end, times=times),
    }
    theory = fb.solvers.solve(B.LearningFlow(cost.gradient, depth), jnp.asarray(X), end, times=times)
    plot = singular_value_plot(runs, theory=theory, levels={"true": [4.0, 2.0]})
    return titled(plot, f"Completion of a matrix of rank two, depth {depth}")


def fast_slow():
    """Follow the fast–slow system of an imbalanced chain for five ε."""
    rng, d = np.random.default_rng(3), 3
    Ws = [jnp.asarray(np.eye(d) + 0.3 * rng.normal(size=(d, d))) for _ in range(3)]
    Y = jnp.asarray(rng.normal(size=(d, d)))
    X, times = B.end_to_end(Ws), np.linspace(0, 1, 101)

    def gradient(matrix):
        return matrix - Y

    learning = fb.solvers.solve(B.LearningFlow(gradient, 3), X, 1.0, times=times, rtol=1e-9, atol=1e-11)
    runs = {e: B.fast_slow(Ws, gradient, e, 1.0, times=times, rtol=1e-8) for e in (0.04, 0.02, 0.01, 0.005, 0.0025)}
    return fast_slow_plot(runs, learning)


def density():
    """Sample balanced chains of two and three 2 × 2 matrices."""
    plots = []
    for depth, of in ((2, "singular_values"), (3, "ratio")):

        def cost(X, depth=depth):
            return B.minimum_on_fibre(X, depth) - 1.5 * jnp.linalg.slogdet(X)[1]

        sample = B.langevin(
            jnp.eye(2),
            cost,
            depth,
            step_size=0.05,
            steps=4000,
            save_every=10,
            chains=500,
            key=jax.random.key(depth),
            metropolis=True,
        )
        plots.append(density_plot(sample, cost, depth, of=of))
    return plots


def units():
    """Balance a network after Adam trained it on digits from a standard start: dense, and convolutional."""
    data = fb.datasets.digits()
    targets, plots = fb.datasets.one_hot(data.targets), []
    key = jax.random.key(0)
    networks = {
        "Dense, 64-128-128-10": (fb.networks.mlp((64, 128, 128, 10), "relu", key=key), (-1, 64)),
        "Convolutional": (fb.networks.convnet((8, 8, 1), 10, key=key, kernel=3, dense=(64,)), (-1, 8, 8, 1)),
    }
    for title, ((apply, params), shape) in networks.items():
        problem = fb.Problem(apply, jnp.asarray(data.inputs).reshape(shape)[:600], jnp.asarray(targets)[:600])
        run = fb.descend(problem, optax.adam(3e-3), params, steps=400)
        _, report = B.network((apply, run.final_params))
        print(title, run.costs[-1], report)
        plots.append(titled(B.network_plot(report), title))
    return plots


FIGURES = {
    "units": (units, (9.6, 4.4)),
    "fibres": (fibres, (5.6, 6.2)),
    "flows": (flows, (10.0, 4.2)),
    "learning": (lambda: [regression(), completion()], (9.6, 4.0)),
    "fast-slow": (fast_slow, (10.0, 4.2)),
    "density": (density, (10.0, 4.0)),
}


def main():
    """Draw the figures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; all by default")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FIGURES:
        draw, size = FIGURES[name]
        figure = fb.plots.to_matplotlib(draw(), size=size)
        figure.savefig(arguments.out / f"balance-{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
