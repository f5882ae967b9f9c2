"""The figures of docs/canonical.md, by the library's plots where it has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb
from canonical_gallery_bias import MODES, basis, lazy, rule, settled, target
from canonical_gallery_data import shallow, unit, wave
from canonical_gallery_training import LIMIT, spiral_runs
from fibration.plots import Line, Plot, Series

C = fb.canonical


def training(quick):
    """Singular values of H and coordinates along the gradient flow of 24 tanh units towards Σ_{k=1}^{6} e_k."""
    apply, params = shallow(24, scale=4.0, seed=2)
    samples = rule().samples
    problem = fb.Problem(apply, samples, basis().synthesise(target()[:, None], samples))
    until = 100.0 if quick else 1e4
    times = np.append(0.0, np.geomspace(0.01, until, 20 if quick else 120))

    def theta(problem, params):
        return C.coordinates(problem.apply, params, basis(), rule=rule())[:, 0]

    def spectrum(problem, params):
        H = C.disparity(problem.apply, params, basis(), rule=rule())
        return jnp.linalg.svd(H, compute_uv=False)

    run = fb.integrate(
        problem, fb.GradientFlow(), params, until, times=times, observe={"theta": theta, "spectrum": spectrum}
    )
    plots = (
        C.spectrum_plot(run.times, run.observed["spectrum"]),
        C.frequency_plot(run.times, run.observed["theta"], target(), basis().total_degrees),
    )
    return fb.plots.to_matplotlib([dataclasses.replace(plot, x_log=True) for plot in plots], size=(10.0, 4.2))


def landscapes(quick):
    """Costs along the same six lines' worth of directions, in coordinates and in parameters."""
    apply, params = shallow(24, init="standard")
    found = C.convexity(wave(apply), params, unit(1, 7), lines=6, points=41 if quick else 161)
    return fb.plots.to_matplotlib(C.landscape_plots(found), size=(10.0, 4.2))


def singularity(quick):
    """Fractions of singular disparities, for tanh and ReLU, by width and scale."""
    widths, scales = ([4, 8], [1.0, 8.0]) if quick else ([4, 5, 6, 8, 16, 32, 128], [1.0, 2.0, 4.0, 8.0, 16.0])
    return C.singularity_plot(C.singularity_probability(widths, 4 if quick else 20, scales=scales))


def spiral(quick):
    """The plane of (θ₀, θ₁) and the costs: starts that fail, and three that arrive."""
    problem = C.spiral()
    runs, _ = spiral_runs(3 if quick else 20)
    times = np.append(0.0, np.geomspace(1e-2, 1e4, 121))
    angles = np.array([0.7, 0.9, 1.1])
    starts = [jnp.array([0.0, np.arctanh(angle / 0.75 - 1)]) for angle in angles]
    arrive = [fb.integrate(problem, fb.GradientFlow(), start, 1e4, times=times) for start in starts]
    turn = np.linspace(0, 1.5 * np.pi, 200)
    radii = np.concatenate([np.full(200, 2.0), np.full(200, 1.0), [2.0]])
    turns = np.concatenate([turn, turn[::-1], [0.0]])
    paths = [Series("edge of what parameters reach", radii * np.cos(turns), radii * np.sin(turns), 0, "dashed")]
    costs, place = [], jax.jit(jax.vmap(lambda w: problem.apply(w, jnp.zeros(1))))
    for name, group, colour in (("starts that fail", runs, 4), ("starts that arrive", arrive, 1)):
        for run in group:
            points = np.asarray(place(run.params))
            paths.append(Series(name, points[:, 0], points[:, 1], colour))
            paths.append(Series("start", points[:1, 0], points[:1, 1], 0, "none"))
            costs.append(Series(name, run.times[1:], run.costs[1:], colour))
    goal = np.asarray(problem.targets)
    paths.append(Series("target", goal[:, 0], goal[:, 1], 2, "none", wide=True))
    limit = (Line("", LIMIT, 4),)
    plane = Plot("Coordinates: starts that fail, and three that arrive", "", "θ₀", "θ₁", tuple(paths), equal=True)
    title = f"Cost: it flattens at {LIMIT:.6f}"
    cost = Plot(title, "", "time", "cost", tuple(costs), levels=limit, x_log=True, x_range=(1e-2, 1e4))
    return fb.plots.to_matplotlib([plane, cost], size=(10.0, 4.6))


def spectral_bias(quick):
    """Settling steps by frequency, and coordinates along right singular vectors of H beside their law."""
    k = np.arange(1, MODES)
    steps = [settled(seed, quick)[0][1:] for seed in range(1 if quick else 5)]
    series = [Series("one network", k, one, 1, "none") for one in steps]
    series.append(Series("median of five", k, np.median(steps, axis=0), 0, "dashed"))
    settling = Plot("Steps until a frequency has settled", "", "frequency k", "steps", tuple(series), y_log=True)
    times, measured, law = lazy(200 if quick else 4000)
    curves = []
    for colour, place in enumerate((0, 1, 2, 3, 4, 5), 1):
        scale = np.abs(measured[0, place])
        curves.append(Series("law (1 − ησ²)ᵗ", times, np.abs(law[:, place]) / scale, 0, wide=True))
        curves.append(Series(f"σ {place + 1}", times, np.abs(measured[:, place]) / scale, colour))
    exact = Plot(
        "Lazy regime, along right singular vectors of H",
        "",
        "step",
        "part left",
        tuple(curves),
        y_log=True,
        y_range=(1e-5, 2),
    )
    return fb.plots.to_matplotlib([settling, exact], size=(10.0, 4.2))


FIGURES = {
    "training": training,
    "landscapes": landscapes,
    "singularity": singularity,
    "spiral": spiral,
    "spectral-bias": spectral_bias,
}
