"""Ranks of disparity matrices: against the width, exactly, at the data, and after symmetries (spec 001, 4.5)."""

import jax
import numpy as np

import fibration as fb
from canonical_gallery_data import alike, points, row, same_fractions, shallow, unit

C = fb.canonical
WIDTHS = (4, 5, 6, 8, 16, 32, 128)
# Of the specification: fractions singular at eps, 1e-8 and 1e-4, and the median of σ_min/σ_max.
TABLE = {
    ("tanh", 8.0): (
        ((1, 1, 1), (0.05, 0.2, 1), (0, 0.05, 1), (0, 0, 0.85), (0, 0, 0.2), (0, 0, 0), (0, 0, 0)),
        (0, 1.6e-7, 8e-7, 2e-5, 2e-4, 6e-4, 2e-3),
    ),
    ("tanh", 1.0): (
        ((1, 1, 1), (0.95, 1, 1), (0.85, 1, 1), (0.5, 1, 1), (0.1, 1, 1), (0, 1, 1), (0, 1, 1)),
        (0, 4e-18, 8e-17, 8e-15, 3e-13, 4e-12, 3e-11),
    ),
    ("relu", 8.0): (
        ((1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0.2, 1), (0, 0, 0.15), (0, 0, 0), (0, 0, 0)),
        (0, 0, 0, 4e-7, 1e-3, 5e-3, 7e-3),
    ),
    ("sin", 8.0): (
        ((1, 1, 1), (0.35, 0.95, 1), (0.05, 0.9, 1), (0.05, 0.9, 1), (0, 0.7, 1), (0, 0.3, 1), (0, 0, 1)),
        (0, 8e-14, 2e-12, 6e-11, 2e-9, 2e-8, 4e-7),
    ),
}
COUNTED = {8: 0.8925, 16: 0.39, 24: 0.1125, 32: 0.0175, 64: 0.0}
LAW = {8: 0.8916, 16: 0.4050, 24: 0.1150, 32: 0.0252, 64: 1.8e-5}
SATURATED = {32: [10, 11], 128: [11, 12], 512: [13, 15], 2048: [14, 14]}


def table(quick):
    """Fractions agree within sampling error, medians within a factor of 10."""
    widths, seeds = ((4, 8), 6) if quick else (WIDTHS, 20)
    names = ("tanh", "relu") if quick else ("tanh", "relu", "sin")
    found = C.singularity_probability(list(widths), seeds, scales=(1.0, 8.0), activations=names)
    rows = []
    for (name, scale), (fractions, medians) in TABLE.items():
        if name not in names:
            continue
        part = found.sel(activation=name, scale=scale)
        for width in widths:
            place = WIDTHS.index(width)
            ours = part.fraction.sel(width=width).values
            median = float(part.median_ratio.sel(width=width))
            what = f"{name}, {'standard' if scale == 1 else 'scale 8'}, width {width} (M = {3 * width + 1})"
            alright = same_fractions(ours, fractions[place], seeds, 20)
            rows.append(row(f"{what}: singular at eps / 1e-8 / 1e-4", ours, fractions[place], alright))
            if medians[place]:
                same = alike(median, medians[place])
                rows.append(row(f"{what}: median σ_min/σ_max", median, medians[place], same))
    for width in (4,) if quick else (4, 5, 6):
        apply, params = shallow(width, activation="relu")
        rank = C.rank_report(apply, params, unit(1, 15)).canonical.ranks["eps"]
        rows.append(row(f"relu, width {width}: rank of 16", rank, 2 * width + 1, rank == 2 * width + 1))
    return rows


def saturation(quick):
    """Ranks at 1e-8 agree within two, and grow by no more than four while the width grows 64 times."""
    basis = unit(1, 63)
    rule, rows, ranks = C.quadrature(basis, nodes=160), [], {}
    for width in (32,) if quick else SATURATED:
        networks = [shallow(width, init="standard", seed=seed) for seed in range(1 if quick else 3)]
        found = [C.rank_report(apply, params, basis, rule=rule).canonical.ranks["1e-08"] for apply, params in networks]
        ranks[width] = [min(found), max(found)]
        (low, high), (least, most) = ranks[width], SATURATED[width]
        same = abs(low - least) <= 2 and abs(high - most) <= 2
        rows.append(row(f"standard tanh, K = 64, width {width}: rank at 1e-8", [low, high], [least, most], same))
    ends = ranks[max(ranks)][1] - ranks[min(ranks)][0]
    return [*rows, row("growth of the rank from the least width to the largest", ends, 4, ends <= 4)]


def relu_law(quick):
    widths, draws = ([8, 16], 40) if quick else (list(LAW), 400)
    found = C.singularity_probability(widths, draws, degree=9, scales=[1.0], activations=["relu"])
    rows = []
    for width in widths:
        law = float(found.relu_law.sel(width=width))
        rows.append(row(f"ReLU law, width {width}: exact", law, LAW[width], alike(law, LAW[width], 1.01)))
        counted = float(found.fraction.sel(width=width, level="eps").squeeze())
        deviation = 3 * np.sqrt(law * (1 - law) / draws)
        same = abs(counted - law) <= deviation + 1e-12
        rows.append(row(f"ReLU law, width {width}: counted in {draws} draws", counted, COUNTED[width], same))
    return rows


def exact(quick):
    """Sixty digits find what float64 calls singular not singular."""
    spec = ("5.2e-109, [6.9e-21, 2.8e-20]", "4.0e-104, [3.5e-15, 1.4e-14]", "6.0e-114, [4.0e-20, 1.6e-19]")
    rows = []
    for seed in range(1 if quick else 3):
        apply, params = shallow(5, init="standard", seed=seed)
        nodes = 48 if quick else 96
        report = C.rank_report(apply, params, unit(1, 15))
        found = C.exact_spectrum(apply, params, unit(1, 15), nodes=nodes)
        determinant, least = float(np.prod(found.singular_values)), float(found.singular_values[-1])
        same = determinant != 0 and not found.singular and least < 1e-10
        ours = f"{determinant:.1e}, σ_min {least:.1e} ± {found.uncertainty:.0e}, float64 rank {report.canonical.ranks}"
        rows.append(row(f"standard tanh, M = K = 16, seed {seed}: abs det H, σ_min", ours, spec[seed], same))
    return rows


def at_data(quick):
    """Full in all seeds as soon as M ≥ NQ, and in none before."""
    seeds, rows, ratios = 3 if quick else 20, [], {}
    for q, widths in ((1, (2, 3, 200)), (3, (6, 7))):
        for width in widths:
            full, ratio = 0, []
            for seed in range(seeds):
                apply, params = shallow(width, 5, q, init="standard", seed=seed)
                inputs = np.random.default_rng(1000 + seed).normal(size=(20, 5))
                report = fb.tangent.rank(fb.Problem(apply, inputs, np.zeros((20, q))), params)
                full += report.rank == 20 * q
                ratio.append(report.singular_values[20 * q - 1] / report.singular_values[0] if report.full else 0.0)
            m = 5 * width + width + q * width + q
            expected = 1.0 if m >= 20 * q else 0.0
            what = f"d = 5, N = 20, Q = {q}, width {width} (M = {m})"
            rows.append(row(f"{what}: full data rank", full / seeds, expected, full / seeds == expected))
            ratios[q, width] = float(np.median(ratio))
    for width, spec in ((3, 1.3e-3), (200, 4.2e-2)):
        ours = ratios[1, width]
        rows.append(row(f"d = 5, N = 20, width {width}: median σ_min/σ_max", ours, spec, alike(ours, spec)))
    return rows


def effective(quick):
    """No rank is above the parameters less the rescalings; the largest reach it where the specification's do."""
    rows = []
    cases = (
        ((2, 6, 1), "relu", 19, "at most 19"),
        ((2, 6, 5, 1), "relu", 48, "30 / 47"),
        ((2, 6, 5, 1), "tanh", 59, "59 / 59"),
    )
    for sizes, activation, after, spec in cases[:1] if quick else cases:
        ranks = []
        for seed in range(4 if quick else 20):
            apply, params = fb.networks.mlp(sizes, activation, key=jax.random.key(seed))
            rng = np.random.default_rng(seed)
            params = jax.tree.map(lambda w, rng=rng: w + 0.3 * rng.normal(size=w.shape) * (w.ndim == 1), params)
            inputs = rng.uniform(-1, 1, size=(400, 2))
            ranks.append(fb.tangent.rank(fb.Problem(apply, inputs, np.zeros((400, 1))), params).rank)
        basis = C.Basis([(-1, 1)] * 2, 3)
        report = C.rank_report(apply, params, basis, rule=C.quadrature(basis, nodes=20))
        bound = report.effective_parameters
        what = f"{activation} {'-'.join(map(str, sizes))}, M = {report.parameters}"
        rows.append(row(f"{what}: parameters after rescalings", bound, after, bound == after))
        same = max(ranks) <= bound and max(ranks) >= bound - 1
        rows.append(row(f"{what}: least and largest rank of J at 400 samples", [min(ranks), max(ranks)], spec, same))
    return rows


def sandwich(quick):
    """Canonical full rank is not needed: σ_min of H Eᵀ does not see the modes that are added."""
    apply, params = shallow(10, seed=3)
    problem = fb.Problem(apply, points(6), np.zeros((6, 1)))
    rows, felt = [], []
    for size, spec in ((16, 1.5e-4), (40, None)):
        basis = unit(1, size - 1)
        H, E = C.disparity(apply, params, basis), basis.evaluate(problem.inputs)
        felt.append(float(np.linalg.svd(np.asarray(H @ E.T), compute_uv=False)[-1]))
        found = C.rank_report(apply, params, basis, problem).canonical
        if spec:
            rows.append(row("M = 31, N = 6, K = 16: σ_min(H)", found.sigma_min, spec, alike(found.sigma_min, spec)))
        else:
            kernel = {name: size - rank for name, rank in found.ranks.items()}
            same = kernel["eps"] <= 11 <= kernel["1e-08"]
            rows.append(row("K = 40: dimension of ker H, by tolerance", kernel, 11, same))
    same = alike(felt, [0.19, 0.19], 2) and alike(felt[0], felt[1], 1.2)
    return [*rows, row("σ_min(HEᵀ) at K = 16 and 40", felt, [0.19, 0.19], same)]


PARTS = {
    "rank against width": table,
    "saturation": saturation,
    "ReLU law": relu_law,
    "exact arithmetic": exact,
    "training Jacobian": at_data,
    "effective parameters": effective,
    "sandwich": sandwich,
}
