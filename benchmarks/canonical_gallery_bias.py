"""Spectral bias: which frequencies come first, and the coordinates that decay exactly (spec 001, 4.8)."""

import functools

import numpy as np

import fibration as fb
from canonical_gallery_data import Lazy, alike, row, shallow, unit

C = fb.canonical
# On 64 midpoints 64 modes are orthonormal: the cost on these data is the canonical one, of all of them.
NODES, MODES = 64, 7
SETTLED = [1, 341, 108, 784, 1625, 6982]
SPEEDS = [0.99, 0.099, 0.019, 0.0048, 0.0017, 5.2e-4]


def basis(modes=MODES):
    return unit(1, modes - 1)


@functools.cache
def rule(modes=MODES):
    return C.quadrature(basis(modes), "midpoint", nodes=NODES)


def target(modes=MODES):
    """Σ_{k=1}^{6} e_k."""
    return np.where((np.arange(modes) > 0) & (np.arange(modes) < MODES), 1.0, 0.0)


def spectrum(apply, params, modes=MODES):
    H = C.disparity(apply, params, basis(modes), rule=rule(modes))
    return np.linalg.svd(np.asarray(H), full_matrices=False)


def descent(apply, params, steps, every, step_size, modes=MODES):
    """Fit the target on midpoints, and record the coordinates."""
    samples = rule().samples

    def coordinates(problem, params):
        return C.coordinates(problem.apply, params, basis(modes), rule=rule(modes))[:, 0]

    return fb.descend(
        fb.Problem(apply, samples, basis().synthesise(target()[:, None], samples)),
        fb.GradientFlow(),
        params,
        steps=steps,
        step_size=step_size,
        save_every=every,
        observe={"theta": coordinates},
        options=fb.solvers.Options(save="last"),
    )


@functools.cache
def settled(seed, quick=False):
    """Steps of size 1/σ_max(H)² after which each frequency has settled, and the speeds: to the step up to 400."""
    apply, params = shallow(200, scale=4.0, seed=seed)
    step_size = 1 / spectrum(apply, params)[1][0] ** 2
    fine, coarse = (60, 20) if quick else (400, 20)
    runs = [descent(apply, params, *how, step_size) for how in ((fine, 1), (600 if quick else 12000, coarse))]
    theta = np.concatenate([runs[0].observed["theta"], runs[1].observed["theta"][fine // coarse + 1 :]])
    times = np.concatenate([np.arange(fine + 1), np.arange(fine + coarse, runs[1].times[-1] / step_size + 1, coarse)])
    return C.settling_times(theta, target(), times), C.speeds(apply, params, basis())[:, 0]


@functools.cache
def lazy(steps):
    """Coordinates along the right singular vectors of H where parameters hardly move, and their law (1 − ησ²)^t."""
    network, params = shallow(200, scale=4.0)
    apply = Lazy(network, 1e5, params)
    _, sigma, right = spectrum(apply, params, NODES)
    every = max(1, steps // 200)
    run = descent(apply, params, steps, every, 1 / sigma[0] ** 2, NODES)
    times = np.append(np.arange(0, steps, every), steps)
    measured = (run.observed["theta"] - target(NODES)) @ right.T
    return times, measured, measured[0] * (1 - (sigma / sigma[0]) ** 2) ** times[:, None]


def spectral_bias(quick):
    """Settling times within a factor of 4, speeds within one of 2; the second mode settles after the third."""
    found = [settled(seed, quick) for seed in range(1 if quick else 5)]
    steps, speeds = (np.median([one[part][1:] for one in found], axis=0) for part in (0, 1))
    _, measured, law = lazy(200 if quick else 4000)
    off = float(np.max(np.abs(measured - law)) / np.max(np.abs(measured[0])))
    same = quick or alike(steps, SETTLED, 4)
    rows = [row("settling steps, k = 1…6", steps, SETTLED, same)]
    rows.append(row("speeds (HᵀH)_kk/λ_max, k = 1…6", speeds, SPEEDS, alike(speeds, SPEEDS, 2)))
    rows.append(
        row("mode 2 settles after mode 3", str(bool(steps[1] > steps[2])), "True", quick or steps[1] > steps[2])
    )
    return [*rows, row("lazy eigen-coordinates: off (1 − ησ²)^t by", off, 2.1e-3, off < 1e-2)]


PARTS = {"spectral bias": spectral_bias}
