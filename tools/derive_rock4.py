"""Derive the fourth-order stabilised Runge–Kutta family that `solvers` reads from `rock4.npz`.

For every number of stages s the stability polynomial is, as in ROCK4 (Abdulle, SIAM J. Sci. Comput. 23 (2002) 2041),

    R(z) = w(x) P(x) / (w(a) P(a)),   x = a + z / scale,

where w has two pairs of complex roots and P, of degree s - 4, is orthogonal on [-1, 1] with respect to
w(x)^2 / sqrt(1 - x^2).  P is run by its three-term recurrence; w by four finishing stages with a tableau of their own.

1. *Stability polynomial.*  The roots of w solve R'(0) = ... = R''''(0) = 1.  Of the two numbers left, `a` is set by
   OFFSET and `scale` by DAMPING, the largest |R| of the oscillating part.  A longer interval (DAMPING near 1) costs
   more in accuracy than it saves in stages.
2. *Tableau.*  Its 10 numbers solve the 8 order conditions of the whole method on rooted trees.  The two left minimise
   the eight non-linear trees of order 5 together with the stage defects: what the method adds to a stiff component
   that follows a slow t^2, t^3 or t^4.  These grow like z^3 unless the tableau cancels them.
3. *Error estimate.*  Six weights on values already computed vanish on the trees of order up to 3, give 1/24 on the
   chain of order 4, and have the least largest |E(z)| on the stability interval.

w undoes the decay of P, so the finishing stages multiply rounding errors in the stiffest components by about
0.01 interval^4: in float64 1e-10 of the parameters at 20 stages, 1e-7 at 40, 1e-6 at 60, 1e-4 at 95.

Run `python tools/derive_rock4.py` to write the file (under a minute), `--quick` to derive a few again and compare.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.polynomial import polynomial
from scipy.optimize import linprog, root, root_scalar

FILE = Path(__file__).parents[1] / "src" / "fibration" / "solvers" / "rock4.npz"
STAGES = [*range(5, 41), 43, 46, 49, 52, 56, 60, 64, 68, 73, 78, 83, 89, 95, 102, 109, 117, 125, 134]
STAGES += [143, 153, 164, 175, 187, 200, 214, 229, 245]
OFFSET = 1.5  # of the start of the interval behind x = 1, in units of z
DAMPING = 0.75
LEAST_SENSED = 1 / 3  # of the error estimate on every tree of order 4, where the chain has 1
SLOWNESS = 0.3  # step size times the rate of the slow motion, where stage defects are weighed against trees
DEFECT_WEIGHT = 25.0  # of the stage defects over those of order 5, times the squared interval
SIZE_WEIGHT = 6e-4  # of the tableau's own size: keeps it moderate where the rest is flat

# Rooted trees up to order 5, in this order (t the single node, [..] a root over its branches):
# t, [t], [tt], [[t]], [ttt], [t[t]], [[tt]], [[[t]]],
# [tttt], [tt[t]], [[t][t]], [t[tt]], [t[[t]]], [[ttt]], [[t[t]]], [[[tt]]], [[[[t]]]].
DENSITY = np.array([1, 2, 3, 6, 4, 8, 12, 24, 5, 10, 20, 15, 30, 20, 40, 60, 120.0])
SYMMETRY = np.array([1, 1, 2, 1, 6, 1, 2, 1, 24, 2, 2, 2, 1, 6, 1, 2, 1.0])
TO_ORDER_3, TO_ORDER_4, BENT_4, CHAIN_4, BENT_5 = slice(0, 4), slice(0, 8), slice(4, 7), 7, slice(8, 16)


def grow(tree: np.ndarray) -> np.ndarray:
    """The elementary weights of h f(Y) from those of Y."""
    a, b, c, d, e, f, g, h = tree[:8]
    chains = [a**4, a * a * b, b * b, a * c, a * d, e, f, g, h]
    return np.array([1.0, a, a * a, b, a**3, a * b, c, d, *chains])


@dataclass(frozen=True)
class StabilityPolynomial:
    """One R(z): `roots` are those of w in z, one of each pair; `scale` is dz/dx."""

    stages: int
    roots: np.ndarray
    scale: float

    @cached_property
    def start(self) -> float:
        return 1 + OFFSET / self.scale

    @property
    def interval(self) -> float:
        return self.scale + self.scale * self.start

    @cached_property
    def recurrence(self) -> tuple[np.ndarray, np.ndarray]:
        """A, B of p_{j+1} = 2 (x - A_j) p_j - 4 B_j p_{j-1}, by Stieltjes' procedure on enough Chebyshev nodes."""
        degree = self.stages - 4
        x = np.cos(np.pi * (np.arange(degree + 8) + 0.5) / (degree + 8))
        weight = self.weight((x - self.start) * self.scale) ** 2
        weight /= weight.sum()
        shift, ratio = np.zeros(degree), np.zeros(degree)
        before, p, norm_before = np.zeros_like(x), np.ones_like(x), np.inf
        for j in range(degree):
            norm = (weight * p * p).sum()
            shift[j], ratio[j] = (weight * p * p * x).sum() / norm, norm / (4 * norm_before)
            before, p, norm_before = p, 2 * (x - shift[j]) * p - 4 * ratio[j] * before, norm
        return shift, ratio

    def weight(self, z: np.ndarray) -> np.ndarray:
        first, second = self.roots
        return ((z - first.real) ** 2 + first.imag**2) * ((z - second.real) ** 2 + second.imag**2)

    def __call__(self, z: np.ndarray) -> np.ndarray:
        x = self.start + np.append(0.0, z) / self.scale
        before, p = np.zeros_like(x), np.ones_like(x)
        for shift, ratio in zip(*self.recurrence, strict=True):
            before, p = p, 2 * (x - shift) * p - 4 * ratio * before
        value = self.weight(np.append(0.0, z)) * p
        return value[1:] / value[0]

    def derivatives(self) -> np.ndarray:
        """R'(0), ..., R''''(0), from Taylor coefficients carried through the recurrence."""
        before, p = np.zeros(5), np.eye(5)[0]
        for shift, ratio in zip(*self.recurrence, strict=True):
            product = (self.start - shift) * p
            product[1:] += p[:-1] / self.scale
            before, p = p, 2 * product - 4 * ratio * before
        for zero in self.roots:
            p = polynomial.polymul(p, [abs(zero) ** 2, -2 * zero.real, 1.0])[:5]
        return p[1:] / p[0] * [1, 2, 6, 24]

    def oscillation(self) -> float:
        """The largest |R| beyond the first decay."""
        x = np.cos(np.linspace(0, np.pi, 24 * self.stages + 1))
        z = (x - self.start) * self.scale
        return float(np.abs(self(z[z < -0.6])).max())


def with_order_four(stages: int, roots: np.ndarray, scale: float) -> StabilityPolynomial:
    """Newton's method on the four order conditions of R, in the roots of w."""
    v = np.ravel([roots.real, roots.imag])

    def miss(v: np.ndarray) -> np.ndarray:
        return StabilityPolynomial(stages, v[:2] + 1j * v[2:], scale).derivatives() - 1

    least = np.inf
    for _ in range(100):
        value = miss(v)
        if (size := np.abs(value).max()) < 1e-11 and size >= least / 2:  # rounding: it shrinks no more
            return StabilityPolynomial(stages, v[:2] + 1j * v[2:], scale)
        least = size
        jacobian = np.array([(miss(v + step) - miss(v - step)) / 2e-6 for step in 1e-6 * np.eye(4)]).T
        step = np.linalg.solve(jacobian, value)
        v = v - step / max(1.0, np.abs(step).max() / 0.3)
    raise RuntimeError(
        f"Newton's method for the stability polynomial of {stages} stages left {np.abs(value).max():.1e}"
    )


def stability_polynomial(stages: int, near: StabilityPolynomial) -> StabilityPolynomial:
    """The polynomial of the family with this number of stages, from a neighbour's."""
    guess = near.scale * (stages**2 - 3) / (near.stages**2 - 3)
    found = near

    def excess(scale: float) -> float:
        nonlocal found
        found = with_order_four(stages, found.roots, scale)
        return found.oscillation() - DAMPING

    answer = root_scalar(excess, x0=guess, x1=0.995 * guess, xtol=1e-9 * guess, method="secant")
    return with_order_four(stages, found.roots, answer.root)


@dataclass(frozen=True)
class Recurrence:
    """The first s - 4 stages: Y_{j+1} = mu_j h f(Y_j) + nu_j Y_j + kappa_j Y_{j-1}."""

    mu: np.ndarray
    nu: np.ndarray
    kappa: np.ndarray
    interval: float

    @classmethod
    def of(cls, R: StabilityPolynomial) -> "Recurrence":
        before, p = 0.0, 1.0
        mu, nu = [], []
        for shift, ratio in zip(*R.recurrence, strict=True):
            following = 2 * (R.start - shift) * p - 4 * ratio * before
            mu.append(2 * p / (R.scale * following))
            nu.append(2 * (R.start - shift) * p / following)
            before, p = p, following
        # kappa = 1 - nu is exact in floating point, so that constants stay constant.
        return cls(np.array(mu), np.array(nu), 1 - np.array(nu), R.interval)

    def run(self, start, rate):
        """The last two of Y_0 = start, Y_1, ... with h f(Y_j) = rate(Y_j)."""
        before, y = 0 * start, start
        for mu, nu, kappa in zip(self.mu, self.nu, self.kappa, strict=True):
            before, y = y, mu * rate(y) + nu * y + kappa * before
        return before, y

    @cached_property
    def trees(self) -> tuple[np.ndarray, np.ndarray]:
        return self.run(np.zeros(17), grow)

    @cached_property
    def z(self) -> np.ndarray:
        angles = np.linspace(np.pi, 0, 8 * (len(self.mu) + 40))
        return (np.cos(angles[:-1]) - 1) * self.interval / 2

    @cached_property
    def lags(self) -> tuple[np.ndarray, np.ndarray]:
        """Y - c^k of the last stage for y' = z (y - t^k) + k t^(k-1), y(0) = 0, k = 2, 3, 4, and the c's."""
        k = np.array([[2], [3], [4]])
        before, lag, c_before, c = np.zeros((3, len(self.z))), np.zeros((3, len(self.z))), 0.0, 0.0
        for mu, nu, kappa in zip(self.mu, self.nu, self.kappa, strict=True):
            following = mu + nu * c + kappa * c_before
            quadrature = mu * k * c ** (k - 1) + nu * c**k + kappa * c_before**k - following**k
            before, lag = lag, (mu * self.z + nu) * lag + kappa * before + quadrature
            c_before, c = c, following
        return lag, np.array(c)


def finish(y, u, rate):
    """The four finishing stages' h f(Y) and the result, from the recurrence's last value."""
    k1 = rate(y)
    k2 = rate(y + u[0] * k1)
    k3 = rate(y + u[1] * k1 + u[2] * k2)
    k4 = rate(y + u[3] * k1 + u[4] * k2 + u[5] * k3)
    return [k1, k2, k3, k4], y + u[6] * k1 + u[7] * k2 + u[8] * k3 + u[9] * k4


def stage_defects(recurrence: Recurrence, u: np.ndarray) -> np.ndarray:
    """What one step adds to a stiff component that follows t^2, t^3, t^4: an array (3, len(z))."""
    lag, c = recurrence.lags
    k = np.array([[2], [3], [4]])
    times = np.array([c, c + u[0], c + u[1] + u[2], c + u[3] + u[4] + u[5]])
    f = k * times ** (k - 1)
    defects, slopes = [lag], []
    for row in ((u[0],), (u[1], u[2]), (u[3], u[4], u[5]), (u[6], u[7], u[8], u[9])):
        slopes.append(recurrence.z * defects[-1])
        j = len(row)
        end = times[j] if j < 4 else c + sum(row)
        quadrature = c**k + sum(w * f[:, i : i + 1] for i, w in enumerate(row)) - end**k
        defects.append(lag + quadrature + sum(w * slope for w, slope in zip(row, slopes, strict=True)))
    return defects[-1]


def trees_of(recurrence: Recurrence, u: np.ndarray) -> np.ndarray:
    """The method's elementary weights less the exact ones, over the trees' symmetries."""
    return (finish(recurrence.trees[1], u, grow)[1] - 1 / DENSITY) / SYMMETRY


def jacobian(function, u: np.ndarray) -> np.ndarray:
    """Complex-step derivatives: exact, for the functions here are polynomials."""
    return np.array([function(u + 1e-30j * e).imag / 1e-30 for e in np.eye(len(u))]).T


def corrected(recurrence: Recurrence, u: np.ndarray) -> np.ndarray:
    """The nearest tableau that satisfies the order conditions (Newton's steps of least norm)."""

    def miss(v):
        return trees_of(recurrence, v)[TO_ORDER_4]

    for _ in range(60):
        value = miss(u)
        if np.abs(value).max() < 1e-15:
            break
        step = np.linalg.lstsq(jacobian(miss, u), -value, rcond=1e-11)[0]
        u = u + step / max(1.0, np.abs(step).max() / 0.3)
    return u


def tableau(recurrence: Recurrence, start: np.ndarray) -> np.ndarray:
    """The least squares of trees and defects over the two-parameter family of tableaux of order 4, by Gauss–Newton."""
    factors = SLOWNESS ** np.array([2, 3, 4]) / [2, 6, 24] * DEFECT_WEIGHT / recurrence.interval**2
    factors = factors[:, None] / np.sqrt(len(recurrence.z))

    def residual(v):
        defects = factors * stage_defects(recurrence, v)
        return np.concatenate([trees_of(recurrence, v)[BENT_5], defects.ravel(), SIZE_WEIGHT * v])

    def objective(v):
        return (residual(v) ** 2).sum() if np.abs(trees_of(recurrence, v)[TO_ORDER_4]).max() < 1e-13 else np.inf

    def tangent(v):
        return np.linalg.svd(jacobian(lambda w: trees_of(recurrence, w)[TO_ORDER_4], v))[2][8:].T

    u, step = corrected(recurrence, start), np.ones(10)
    while np.abs(step).max() > 1e-7:
        directions = tangent(u)
        step = -directions @ np.linalg.lstsq(jacobian(residual, u) @ directions, residual(u), rcond=None)[0]
        step /= max(1.0, np.abs(step).max() / 0.2)
        value = objective(u)
        while np.abs(step).max() > 1e-7 and objective(corrected(recurrence, u + step)) >= value:
            step /= 2
        u = corrected(recurrence, u + step)

    # The objective is flat to rounding here; its gradient along the family is not.
    chart = tangent(u)

    def gradient(t):
        v = corrected(recurrence, u + chart @ t)
        directions = tangent(v)
        return chart.T @ directions @ directions.T @ jacobian(residual, v).T @ residual(v)

    answer = root(gradient, np.zeros(2), tol=1e-12)
    if np.abs(answer.x).max() > 1e-3 or np.abs(answer.fun).max() > 1e-12:
        raise RuntimeError(f"the tableau of {len(recurrence.mu) + 4} stages did not settle: {answer}")
    return corrected(recurrence, u + chart @ answer.x)


def estimate(recurrence: Recurrence, u: np.ndarray) -> tuple[np.ndarray, float]:
    """The weights of the error estimate, and the largest |E(z)| on the interval."""
    last, y = recurrence.trees
    values, end = finish(y, u, grow)
    trees = np.array([grow(last), *values, grow(end)])
    last, y = recurrence.run(np.ones_like(recurrence.z), lambda v: recurrence.z * v)
    values, end = finish(y, u, lambda v: recurrence.z * v)
    functions = np.array([recurrence.z * last, *values, recurrence.z * end])
    conditions = np.vstack([trees[:, TO_ORDER_3].T, trees[:, CHAIN_4]])
    wanted = np.append(np.zeros(4), 1 / 24)
    particular = np.linalg.lstsq(conditions, wanted, rcond=None)[0]
    free = np.linalg.svd(conditions)[2][-1]
    size, slope = (particular @ trees)[BENT_4], (free @ trees)[BENT_4]
    edges = (LEAST_SENSED / DENSITY[BENT_4] - size) / slope
    spread = np.abs(particular @ functions).max() / np.abs(free @ functions).max()
    # The least largest |E| is a linear programme in (t / spread, max|E|): its vertex is found to rounding.
    sides = np.concatenate([functions.T, -functions.T]) @ np.array([particular, spread * free]).T
    least, most = max([-3.0, *edges[slope > 0] / spread]), min([3.0, *edges[slope < 0] / spread])
    best = linprog(
        [0, 1],
        A_ub=np.column_stack([sides[:, 1], -np.ones(len(sides))]),
        b_ub=-sides[:, 0],
        bounds=[(least, most), (0, None)],
        method="highs-ds",
    )
    weights = particular + best.x[0] * spread * free
    weights -= np.linalg.lstsq(conditions, conditions @ weights - wanted, rcond=None)[0]
    return weights, float(best.fun)


def derive(numbers: list[int]) -> dict[str, np.ndarray]:
    """All arrays of the file for these numbers of stages, each found from its neighbour's."""
    R = with_order_four(10, np.array([-2.41 + 1.29j, -0.25 + 3.43j]), 14.8)
    first = np.array([0.065, -1.578, 2.001, 2.789, -3.026, 0.95, -0.413, 0.685, 0.331, 0.097])
    rows: dict[int, tuple] = {}
    for path in (range(10, min(numbers) - 1, -1), [s for s in numbers if s > 10]):
        near, u = R, first
        for s in path:
            near = stability_polynomial(s, near)
            recurrence = Recurrence.of(near)
            u = tableau(recurrence, u)
            weights, largest = estimate(recurrence, u)
            rows[s] = (recurrence, u, weights)
            if s == 10:
                R, first = near, u
            describe(s, recurrence, u, weights, largest)
    rows = {s: rows[s] for s in numbers}
    recurrences = [row[0] for row in rows.values()]
    return {
        "stages": np.array(numbers),
        "interval": np.array([r.interval for r in recurrences]),
        "offset": np.cumsum([0] + [s - 4 for s in numbers])[:-1],
        **{name: np.concatenate([getattr(r, name) for r in recurrences]) for name in ("mu", "nu", "kappa")},
        "tableau": np.array([row[1] for row in rows.values()]),
        "error": np.array([row[2] for row in rows.values()]),
    }


def describe(s: int, recurrence: Recurrence, u: np.ndarray, weights: np.ndarray, largest: float) -> None:
    """One line of figures about one method."""
    trees = trees_of(recurrence, u)
    last, y = recurrence.trees
    values, end = finish(y, u, grow)
    sensed = weights @ np.array([grow(last), *values, grow(end)])[:, 4:8] * DENSITY[4:8]
    defects = " ".join(f"{d:.2g}" for d in np.abs(stage_defects(recurrence, u)).max(axis=1))
    print(
        f"s {s:3d}  interval/s² {recurrence.interval / s**2:.4f}  order-4 trees {np.abs(trees[TO_ORDER_4]).max():.0e}  "
        f"order-5 trees {np.linalg.norm(trees[8:]):.2e} (chain {trees[-1]:+.2e})  defects {defects}  "
        f"tableau ≤ {np.abs(u).max():.2f}  max|E| {largest:.2f} on order 4 {np.round(sensed, 2)}",
        flush=True,
    )


def main() -> int:
    quick = "--quick" in sys.argv[1:]
    numbers = [s for s in STAGES if s <= 14] if quick else STAGES
    arrays = derive(numbers)
    if not quick:
        np.savez(FILE, **arrays)
        return 0
    worst = 0.0
    with np.load(FILE) as stored:
        for name, value in arrays.items():
            worst = max(worst, float((np.abs(stored[name][: len(value)] - value) / np.maximum(1, np.abs(value))).max()))
    print(f"largest difference from {FILE.name}: {worst:.1e}")
    return int(worst > 1e-10)


if __name__ == "__main__":
    sys.exit(main())
