"""The first rung: every cluster in turn is taken to a point by a cone that opens from it towards the centre."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import ShiftError
from ._cone import Cone, contraction_of
from ._types import Clouds, Collapse, Failure, blocks

SMALLEST_CONTRACTION = 1e-6
STRICT = 1e-9  # what an interval is at least, in units of the distance between class means


class Reach:
    """How far a class can be shifted along an axis: t between max(a + λs) over the class and min(a + λs) over the rest.

    With a = ⟨h, z − x̄⟩ and s = √n max_k (or min_k) of (R(z − x̄) − au/√n)_k, the pre-activations of a cone at
    x̄ + th with the contraction λ are negative on the class for t > a + λs, positive on the others for t < a + λs
    (derived).
    """

    def __init__(
        self, clouds: Clouds, label: int, mean: Float[np.ndarray, " n"], axis: Float[np.ndarray, " n"]
    ) -> None:
        cone, root = Cone(mean, axis, 1.0), math.sqrt(len(mean))
        inside, outside = [], []
        for number, cloud in enumerate(clouds):
            for rows in blocks(cloud):
                away = rows - mean
                along = away @ axis
                across = cone.reflect(away)
                if number == label:
                    inside.append((along, root * across.max(axis=1) - along))
                else:
                    outside.append((along, root * across.min(axis=1) - along))
        self.inside, self.outside = _joined(inside), _joined(outside)

    def interval(self, contraction: float) -> tuple[float, float]:
        """Compute the largest lower and the smallest upper bound of the shift."""
        low = float(np.max(self.inside[0] + contraction * self.inside[1]))
        if not len(self.outside[0]):
            return low, math.inf
        return low, float(np.min(self.outside[0] + contraction * self.outside[1]))


Pair = tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]


def _joined(pairs: list[Any]) -> Pair:
    if not pairs:
        return np.zeros(0), np.zeros(0)
    along, across = zip(*pairs, strict=True)
    return np.concatenate(along), np.concatenate(across)


def cones(
    clouds: Clouds,
    means: Float[np.ndarray, "Q n"],
    *,
    depth: int,
    names: Shaped[np.ndarray, " Q"],
    opening: float | None = None,
    shift: float | None = None,
    pending: list[int] | None = None,
    position: float = 0.5,
) -> list[Collapse] | Failure:
    """Collapse the first `depth` classes that can be, one after another; say which one cannot, and by how much.

    Each axis is f_j = (x̄ − x̄_j)/|x̄ − x̄_j|. Without an `opening`, the narrowest cone that leaves the interval of
    shifts at least half of what any cone would leave; without a `shift`, the `position` within it, by default its
    middle. `pending`: the numbers of the classes to choose from; `names`: of all classes, for messages.

    Source: Chen and Muñoz Ewald, arXiv 2309.10639, theorem 2.3; the exact interval is derived.
    """
    centre, clouds = means.mean(axis=0), list(clouds)
    pending = list(range(len(means)) if pending is None else pending)
    steps: list[Collapse] = []
    while len(steps) < depth:
        failures: list[Failure] = []
        for label in pending:
            found = _one(clouds, label, means[label], centre, opening, shift, position, names[label])
            if isinstance(found, Collapse):
                break
            failures.append(found)
        else:
            return failures[0]
        steps.append(found)
        pending.remove(label)
        clouds[label] = found.cone.base_point[None]
    return steps


def _one(
    clouds: Clouds,
    label: int,
    mean: Float[np.ndarray, " n"],
    centre: Float[np.ndarray, " n"],
    opening: float | None,
    shift: float | None,
    position: float,
    name: Any,
) -> Collapse | Failure:
    distance = float(np.linalg.norm(centre - mean))
    if distance <= 1e-12 * float(np.max(np.abs(mean))) or distance == 0:
        return Failure(f"the mean of class {name} is at the centre of the class means, so that there is no axis")
    axis, n = (centre - mean) / distance, len(mean)
    reach = Reach(clouds, label, mean, axis)

    def interval(contraction: float) -> tuple[float, float]:
        low, high = reach.interval(contraction)
        return low, min(high, distance * (1 - STRICT))

    def width(contraction: float) -> float:
        low, high = interval(contraction)
        return high - low

    widest = width(SMALLEST_CONTRACTION)
    contraction = _narrowest(width, widest / 2) if opening is None else contraction_of(opening, n)
    low, high = interval(contraction)
    if high - low <= STRICT:
        numbers = {"t_low": low, "t_high": high, "opening": Cone(mean, axis, contraction).opening}
        return Failure(
            f"the cluster of class {name} is too wide: in a cone of opening {numbers['opening']:.3g} a shift would "
            f"have to be above {low:.3g} and below {high:.3g}",
            numbers,
        )
    if shift is not None and not low < shift < high:
        raise ShiftError(
            f"shift = {shift:g} for class {name}",
            f"a shift between {low:.6g} and {high:.6g}, in units of the coordinates of the construction",
            'leave it at "auto", which takes the middle',
        )
    t = low + position * (high - low) if shift is None else shift
    return Collapse(Cone(mean + t * axis, axis, contraction), label, (low, high))


def _narrowest(width: Callable[[float], float], least: float) -> float:
    """Find the largest contraction whose interval has at least this width; widths fall with the contraction."""
    if width(1.0) >= least:
        return 1.0
    low, high = math.log(SMALLEST_CONTRACTION), 0.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if width(math.exp(middle)) >= least else (low, middle)
    return math.exp(low)
