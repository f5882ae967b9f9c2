"""Gradient flow of a balanced deep linear network with one output and whitened inputs: two variables, in closed form.

Of the end-to-end row W only its norm w and the angle to the target L matter. With λ = |L|, c = cos(W, L), y = artanh c,

    w′ = n w^{2−2/n} (λc − w),   y′ = λ w^{1−2/n},
    1/w(y) = (cosh y₀/cosh y)ⁿ/w₀ + (n/λ) ∫_{y₀}^{y} (cosh u/cosh y)ⁿ du,

derived from Arora, Cohen and Hazan (arXiv 1802.06509), theorem 1; the orbit is Bernoulli's equation for w(y).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.polynomial import legendre

_NODES, _WEIGHTS = legendre.leggauss(12)
# Row k integrates the interpolating polynomial from −1 to node k, the last row to 1.
_INTEGRALS = np.stack(
    [legendre.legval(np.append(_NODES, 1.0), legendre.legint(row, lbnd=-1)) for row in np.eye(12)], axis=1
) @ np.linalg.inv(legendre.legvander(_NODES, 11))

Samples = Float[np.ndarray, " k"]


@dataclass(frozen=True)
class Start:
    """The start of the reduced flow: `depth` n, `target` λ, `norm` w₀ and `alignment` y₀ = artanh c₀."""

    depth: int
    target: float
    norm: float
    alignment: float

    def norm_at(self, alignment: float) -> float:
        """Evaluate the orbit w(y)."""
        panels = self._panels(alignment)
        edges = np.linspace(self.alignment, alignment, panels + 1)
        half = 0.5 * np.diff(edges)[:, None]
        nodes = edges[:-1, None] + half * (1 + _NODES)
        decay = np.exp(self.depth * (_log_cosh(nodes) - _log_cosh(alignment)))
        start = np.exp(self.depth * (_log_cosh(self.alignment) - _log_cosh(alignment)))
        return float(1 / (start / self.norm + self.depth / self.target * np.sum(half * _WEIGHTS * decay)))

    def distance_at(self, alignment: float) -> float:
        """Evaluate |W − L| along the orbit."""
        return float(distance(self.norm_at(alignment), alignment, self.target))

    def alignment_where(self, condition: Callable[[float], bool]) -> float:
        """Find the first y where a condition begins to hold, and holds ever after; y₀ if it holds at the start."""
        low, step = self.alignment, 0.5
        if condition(low):
            return low
        while not condition(low + step):
            low, step = low + step, 1.5 * step
        high = low + step
        while (middle := 0.5 * (low + high)) not in (low, high):
            low, high = (low, middle) if condition(middle) else (middle, high)
        return high

    def orbit_to(self, alignment: float) -> "Orbit":
        """Tabulate the flow from the start to y, at the nodes of a composite Gauss–Legendre rule in y."""
        n, panels = self.depth, self._panels(alignment)
        edges = np.linspace(self.alignment, alignment, panels + 1)
        half = 0.5 * np.diff(edges)[:, None]
        nodes = np.append(edges[:-1, None] + half * (1 + _NODES), edges[1:, None], axis=1)
        growth = np.exp(n * (_log_cosh(nodes) - _log_cosh(edges[:-1, None])))
        integrals = n / self.target * half * (growth[:, :-1] @ _INTEGRALS.T)
        inverse = np.empty_like(nodes)
        last = 1 / self.norm
        for row in range(panels):
            inverse[row] = (last + integrals[row]) / growth[row]
            last = inverse[row, -1]
        rates = inverse[:, :-1] ** (1 - 2 / n) / self.target  # dt/dy
        times = running_integral(half * rates)
        return Orbit(
            self, times[:, :-1], 1 / inverse[:, :-1], nodes[:, :-1], half * rates, float(times[-1, -1]), alignment
        )

    def _panels(self, alignment: float) -> int:
        # Within a panel coshⁿ grows at most by e, which twelve nodes integrate to rounding.
        return 1 + int(max(8, self.depth) * (alignment - self.alignment))


@dataclass(frozen=True)
class Orbit:
    """The reduced flow at the nodes of a quadrature: `times`, `norms`, `alignments` (panels, 12), and its end."""

    start: Start
    times: Float[np.ndarray, "p 12"]
    norms: Float[np.ndarray, "p 12"]
    alignments: Float[np.ndarray, "p 12"]
    rates: Float[np.ndarray, "p 12"]
    end: float
    end_alignment: float

    def integral(self, values: Float[np.ndarray, "p 12"]) -> float:
        """Integrate values at the nodes over time."""
        return float(np.sum(self.rates * _WEIGHTS * values))

    def running(self, values: Float[np.ndarray, "p 12"]) -> tuple[Float[np.ndarray, "p 12"], float]:
        """Integrate values at the nodes over time up to every node, and up to the end."""
        integrals = running_integral(self.rates * values)
        return integrals[:, :-1], float(integrals[-1, -1])

    def at(self, times: Float[np.ndarray, "..."]) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """Interpolate w and y at other times, by the cubic through neighbouring nodes and their slopes."""
        n, target = self.start.depth, self.start.target
        grid = np.concatenate([[0.0], self.times.ravel(), [self.end]])
        y = np.concatenate([[self.start.alignment], self.alignments.ravel(), [self.end_alignment]])
        w = np.concatenate([[self.start.norm], self.norms.ravel(), [self.start.norm_at(self.end_alignment)]])
        speed = w ** (1 - 2 / n)
        k = np.clip(np.searchsorted(grid, times) - 1, 0, len(grid) - 2)
        log_w = _hermite(grid, np.log(w), n * speed * (target * np.tanh(y) - w), k, times)
        return np.exp(log_w), _hermite(grid, y, target * speed, k, times)


def distance(norm: np.ndarray | float, alignment: np.ndarray | float, target: float) -> Any:
    """Compute |W − L| = ((w − λc)² + λ²(1 − c²))^{1/2} without cancellation near c = 1."""
    return np.hypot(norm - target * np.tanh(alignment), target * np.exp(-_log_cosh(alignment)))


def running_integral(values: Float[np.ndarray, "p 12"]) -> Float[np.ndarray, "p 13"]:
    """Integrate panel after panel, up to every node and to the panel's end; panels of length 2."""
    within = values @ _INTEGRALS.T
    before = np.concatenate([[0.0], np.cumsum(within[:-1, -1])])
    return within + before[:, None]


def _log_cosh(x: np.ndarray | float) -> Any:
    return np.logaddexp(x, -np.asarray(x)) - np.log(2.0)


def _hermite(grid: Samples, values: Samples, slopes: Samples, k: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Evaluate on intervals k the cubics with these values and slopes at both ends."""
    h = grid[k + 1] - grid[k]
    s = (times - grid[k]) / h
    start = (1 - s) ** 2 * ((1 + 2 * s) * values[k] + s * h * slopes[k])
    return start + s**2 * ((3 - 2 * s) * values[k + 1] - (1 - s) * h * slopes[k + 1])
