"""Draw docs/images/curvature.png: closed-form bounds of the smallest Hessian eigenvalue beside the eigenvalue.

python tools/curvature_figure.py [--out docs/images/curvature.png]
"""

import argparse
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import fibration as fb  # noqa: E402


def along(problem, params, t1, bound):
    """Follow the flow; return the times, both ends of the spectrum by Lanczos, and the bounds (T, 2)."""
    times = np.linspace(0, t1, 41)

    def bounds(problem, params):
        found = bound(problem, params)
        return jnp.stack([found.value, found.crude_value])

    observe = {"spectrum": fb.curvature.Spectrum(tolerance=1e-4), "bounds": bounds}
    run = fb.integrate(problem, fb.GradientFlow(), params, t1, rtol=1e-6, times=times, observe=observe)
    return run.times, run.observed["spectrum"][:, :, 0], run.observed["bounds"]


def plot(title, caption, times, spectrum, bounds):
    """Make the plot: the smallest eigenvalue, and what the closed forms promise about it."""
    series = (
        fb.plots.Series("smallest eigenvalue (Lanczos)", times, spectrum[:, 0], colour=0, wide=True),
        fb.plots.Series("bound", times, bounds[:, 0], colour=1),
        fb.plots.Series("bound by the largest product of norms", times, bounds[:, 1], colour=3, dash="dashed"),
    )
    return fb.plots.Plot(title, caption, "time", "smallest Hessian eigenvalue", series)


def main():
    """Draw both panels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/curvature.png"))
    arguments = parser.parse_args()
    inputs, targets = fb.datasets.digits(samples=100, one_hot=True)
    inputs = inputs - inputs.mean(axis=0)
    panels = []
    apply, params = fb.networks.deep_linear((64, 10, 10, 10), key=jax.random.key(0), scale=0.5)
    problem = fb.Problem(apply, inputs, targets)
    found = along(problem, params, 60.0, fb.curvature.deep_linear_lower_bound)
    panels.append(plot("Deep linear network, three layers", "The bound is close.", *found))
    apply, params = fb.networks.mlp((64, 16, 10), "relu", key=jax.random.key(0), bias=False, scale=0.5)
    problem = fb.Problem(apply, inputs, targets)
    found = along(problem, params, 20.0, fb.curvature.homogeneous_lower_bound)
    panels.append(plot("ReLU network, two layers", "The bound holds.", *found))
    figure = fb.plots.to_matplotlib(panels)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
