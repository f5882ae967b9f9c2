"""The largest step size that keeps descent near the flow of a balanced deep linear network with one output."""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import StepSizeError
from ._reduction import Orbit, Start, distance


@dataclass(frozen=True)
class StepSizes:
    """The step sizes, by the bound at each time and by the largest anywhere; the tube's radius; e^{M(T)}."""

    step_size: float
    uniform_step_size: float
    radius: float
    amplification: float


@dataclass(frozen=True)
class _Tube:
    """Bounds of gradient and curvature around a balanced point with layers of norm s, at |W − L| = r.

    In a ball of radius ε every form that is symmetric in the layers is largest where each layer grows by ε/√n: it has
    its norm on the diagonal, where elementary symmetric functions are largest at equal arguments (Maclaurin).
    """

    depth: int
    growth: float  # ε/√n

    def gradient(self, s: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Bound |∇C|."""
        return math.sqrt(self.depth) * (s + self.growth) ** (self.depth - 1) * self._residual(s, r)

    def descent(self, s: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Bound −λ_min."""
        return (self.depth - 1) * (s + self.growth) ** (self.depth - 2) * self._residual(s, r)

    def curvature(self, s: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Bound the spectral norm."""
        return self.depth * (s + self.growth) ** (2 * self.depth - 2) + self.descent(s, r)

    def _residual(self, s: np.ndarray, r: np.ndarray) -> np.ndarray:
        return r + (s + self.growth) ** self.depth - s**self.depth


def step_sizes(orbit: Orbit, goal: float, offset: float) -> StepSizes:
    """Find the largest step sizes with 2(ε − e^{M(T)}e₀) ≥ η ∫ e^{M(T)−M(t)} b(t) dt."""
    n = orbit.start.depth
    last = orbit.start.norm_at(orbit.end_alignment) ** (1 / n)
    tube = _Tube(n, (last**n + goal) ** (1 / n) - last)
    radius = math.sqrt(n) * tube.growth
    s, r = orbit.norms ** (1 / n), distance(orbit.norms, orbit.alignments, orbit.start.target)
    running, total = orbit.running(tube.descent(s, r))
    with np.errstate(over="ignore"):
        kernel, amplification = np.exp(total - running), float(np.exp(total))
    room = 2 * (radius - amplification * offset)
    top_curvature, top_gradient = (np.max(bound(*_finely(orbit))) for bound in (tube.curvature, tube.gradient))
    uniform = room / (top_curvature * top_gradient * orbit.integral(kernel))
    if not (room > 0 and uniform > 0):
        raise StepSizeError(
            f"the start lies {offset:.1e} from a balanced one, descent may stray {radius:.1e} from the flow, and "
            f"the flow may stretch deviations by {amplification:.1e}",
            "a start and an accuracy for which some step size is small enough",
            "balance the start to float64's precision, start closer to the targets' direction or less close to zero",
        )

    def fits(step: float) -> bool:
        # w falls and then rises, and r falls, so that on an interval both are largest at its ends.
        before, after = (_state(orbit, np.clip(orbit.times + d, 0, orbit.end)) for d in (-step, step))
        curvature = np.minimum(tube.curvature(np.maximum(before[0], np.maximum(s, after[0])), before[1]), top_curvature)
        gradient = np.minimum(tube.gradient(np.maximum(before[0], s), before[1]), top_gradient)
        return step * orbit.integral(kernel * curvature * gradient) <= room

    low, high = uniform, orbit.end
    if low >= high or fits(high):
        return StepSizes(orbit.end, min(uniform, orbit.end), radius, amplification)
    while high > low * (1 + 1e-10):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return StepSizes(low, uniform, radius, amplification)


def explicit_time(start: Start, accuracy: float) -> float:
    """Bound the time to ½|W − L|² ≤ accuracy in elementary functions: to turn to L, to grow to λ/4, to converge."""
    n, target = start.depth, start.target
    power = 1 - 2 / n
    turned = max(start.alignment, math.atanh(0.5))
    norm = start.norm_at(turned)
    # w falls while it is above λ tanh y, and rises from then on.
    turning = start.alignment_where(lambda y: y >= turned or start.norm_at(y) <= target * math.tanh(y))
    smallest = min(start.norm, norm, start.norm_at(turning))
    turn = (turned - start.alignment) / (target * smallest**power)
    grow = 0.0
    if norm < target / 4:
        grow = 2 / target * math.log(target / (4 * norm))
        if n > 2:
            grow = 4 / target * (norm**-power - (target / 4) ** -power) / (n - 2)
    cost = 0.5 * start.distance_at(start.alignment) ** 2
    return turn + grow + max(0.0, math.log(cost / accuracy)) / (2 * (target / 4) ** (2 - 2 / n))


def _state(orbit: Orbit, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norms, alignments = orbit.at(times)
    return norms ** (1 / orbit.start.depth), distance(norms, alignments, orbit.start.target)


def _finely(orbit: Orbit) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate the flow at sixteen times for every node, to miss no maximum by more than rounding of a step size."""
    grid = np.concatenate([[0.0], orbit.times.ravel(), [orbit.end]])
    fine = np.interp(np.linspace(0, len(grid) - 1, 16 * (len(grid) - 1) + 1), np.arange(len(grid)), grid)
    return _state(orbit, fine)
