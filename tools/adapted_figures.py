"""Draw docs/images/adapted-*.png: the adapted flow beside the gradient flow, and the counterexamples.

python tools/adapted_figures.py [--out docs/images] [flow] [gallery]
"""

import argparse
import warnings
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import fibration as fb  # noqa: E402
from fibration.plots import Line, Plot, Series  # noqa: E402

UNDAMPED = fb.AdaptedFlow(damping=0.0, method="svd")


def residuals(problem, run):
    """Give the residuals at the saved times, (T, N, Q)."""
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], run.params) for i in range(len(run.times))]
    return np.stack([problem.outputs(row) - problem.targets for row in rows])


def flow():
    """Follow both flows of a small network, in the plane of its two outputs and by their costs."""
    inputs = jax.random.normal(jax.random.key(1), (6, 2))
    targets = jnp.stack([jnp.sin(2 * inputs[:, 0]), inputs[:, 0] * inputs[:, 1]], axis=1)
    apply, params = fb.networks.mlp((2, 16, 2), "tanh", key=jax.random.key(0))
    problem = fb.Problem(apply, inputs, targets)
    paths, costs, end = [], [], 14.0 * 6
    for name, field, colour, until in (
        ("gradient flow", fb.GradientFlow(), 4, 2000.0),
        ("adapted flow", UNDAMPED, 1, end),
    ):
        times = np.unique(np.concatenate([np.linspace(0, min(until, end), 201), np.geomspace(0.05, until, 200)]))
        run = fb.integrate(problem, field, params, until, times=times, rtol=1e-11, atol=1e-14)
        r = residuals(problem, run)
        for sample in range(6):
            paths.append(Series(name, r[:, sample, 0], r[:, sample, 1], colour))
            if colour == 1:
                start = r[:1, sample]
                paths.append(Series("start", start[:, 0], start[:, 1], 0, dash="none"))
        shown = run.times <= end
        costs.append(Series(name, run.times[shown], run.costs[shown], colour))
        if colour == 1:
            points = np.linspace(0, end, 29)
            costs.append(Series("law C(0) e^(−2t/N)", points, run.costs[0] * np.exp(-2 * points / 6), 3, dash="none"))
    captions = (
        "Six samples: the adapted flow takes each residual straight to zero.",
        "The law holds over twelve decades.",
    )
    return [
        Plot("Residuals of the six samples", captions[0], "first output", "second output", tuple(paths), equal=True),
        Plot("Cost", captions[1], "time", "cost", tuple(costs), y_log=True),
    ]


class Function:
    """A function of the parameters alone."""

    def __init__(self, function):
        self.function = function

    def __call__(self, params, x):  # noqa: ARG002
        return self.function(params)


def scalar(function, target):
    """Make a problem with one sample and one output."""
    return fb.Problem(Function(function), jnp.ones(1), jnp.array([target]))


def fold(w):
    """Reach ½ at most."""
    return w - 0.5 * w**2


def lost_rank():
    """The fold: with and without damping."""
    problem, start = scalar(fold, 1.0), jnp.array(0.0)
    stopped = fb.integrate(problem, UNDAMPED, start, 2.0, rtol=1e-9, times=np.linspace(0, 2, 401))
    damped = fb.AdaptedFlow(damping=0.0, method="svd", on_rank_loss="damp")
    damped = fb.integrate(problem, damped, start, 2.0, rtol=1e-7, times=np.linspace(0, 2, 201), method="rkc2")
    print(stopped.result)
    times = np.linspace(0, 2, 41)
    series = (
        Series("law e^(−2t)", times, 0.5 * np.exp(-2 * times), 3, dash="none"),
        Series("adapted flow, damped where rank is lost", damped.times, damped.costs, 2),
        Series("adapted flow", stopped.times, stopped.costs, 1),
    )
    caption = "The differential 1 − θ vanishes on the way to the target: at t = ln 2 the flow ends."
    moments = (Line("rank lost at ln 2", stopped.result.time, 4),)
    return Plot("A fold: x = θ − θ²/2, y = 1", caption, "time", "cost", series, moments=moments, y_log=True)


def run_off():
    """The tangent hyperbolic with a target out of reach."""
    run = fb.integrate(scalar(jnp.tanh, 2.0), UNDAMPED, jnp.array(0.0), 2.0, rtol=1e-9, times=np.linspace(0, 2, 2001))
    print(run.result)
    times = np.linspace(0, 0.6931, 1000)
    series = (
        Series(
            "closed form artanh(2 − 2e^(−t))", times[::50], np.arctanh(2 - 2 * np.exp(-times[::50])), 3, dash="none"
        ),
        Series("adapted flow", run.times, run.params, 1),
    )
    caption = "Full rank everywhere, and the parameter is infinite at t = ln 2."
    moments = (Line("blow-up at ln 2", run.result.time, 4),)
    return Plot("Out of reach: x = tanh θ, y = 2", caption, "time", "θ", series, moments=moments, x_range=(0.0, 1.0))


def sliding_outputs(p, x):
    """Compute (relu(w) + b, w + c) on two samples."""
    return jnp.where(x == 0, jax.nn.relu(p[0]) + p[1], p[0] + p[2])


def slide():
    """The kink of a ReLU: slid along, and followed."""
    problem = fb.Problem(sliding_outputs, jnp.array([0.0, 1.0]), jnp.zeros(2))
    start = jnp.array([0.0, 2.0, -1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fb.errors.NonsmoothModelWarning)
        slid = fb.descend(problem, UNDAMPED, start, step_size=1e-3, steps=6000, save_every=100)
    followed = fb.follow(problem, start, 6.0, times=np.linspace(0, 6, 31))
    times = np.linspace(0, 6, 21)
    rho = [2.0]
    for _ in range(6000):  # ρ' = (ρ − 1)/(2ρ + 1) in units of t/N, by the midpoint rule
        middle = rho[-1] + 0.25e-3 * (rho[-1] - 1) / (2 * rho[-1] + 1)
        rho.append(rho[-1] + 0.5e-3 * (middle - 1) / (2 * middle + 1))
    series = (
        Series("sliding, derived: ρ' = (ρ − 1)/(2ρ + 1)", times, np.array(rho)[::300], 3, dash="none"),
        Series(
            "adapted flow, Euler's method", slid.times, residuals(problem, slid)[:, 0, 0] * np.exp(slid.times / 2), 1
        ),
        Series(
            "path followed: fb.follow",
            followed.times,
            residuals(problem, followed)[:, 0, 0] * np.exp(followed.times / 2),
            5,
        ),
    )
    caption = "On the kink the flow slides, and the first residual decays more slowly; following keeps the law."
    return Plot("A kink: x = (relu(w) + b, w + c)", caption, "time", "first residual × e^(t/N)", series)


def isolated():
    """Orbits into an equilibrium that no perturbation removes."""
    problem = scalar(lambda w: w[0] - 0.5 * w[0] ** 2 - 0.5 * w[1] ** 2, 1.0)
    series = []
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        start = jnp.array([1 + np.cos(angle), np.sin(angle)])
        run = fb.integrate(problem, UNDAMPED, start, 3.0, rtol=1e-7, times=np.linspace(0, 3, 301))
        series.append(Series("adapted flow", run.params[:, 0], run.params[:, 1], 1))
        series.append(Series("start", run.params[:1, 0], run.params[:1, 1], 0, dash="none"))
    series.append(Series("equilibrium of rank 0, C = ⅛", np.ones(1), np.zeros(1), 4, dash="none", wide=True))
    caption = "Every orbit ends at an isolated equilibrium with cost left."
    title = "Isolated: x = θ₁ − (θ₁² + θ₂²)/2, y = 1"
    return Plot(title, caption, "θ₁", "θ₂", tuple(series), equal=True)


FIGURES = {
    "flow": (flow, (9.6, 4.6)),
    "gallery": (lambda: [lost_rank(), run_off(), slide(), isolated()], (15.0, 4.4)),
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
        figure.savefig(arguments.out / f"adapted-{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
