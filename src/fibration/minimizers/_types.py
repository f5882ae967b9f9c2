"""What the rungs of the ladder hand to one another."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from ._cone import Cone

Clouds = list[Float[np.ndarray, "_ n"]]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The affine map z = Tx + t from inputs (M,) to the coordinates (n,) in which a construction works."""

    matrix: Float[np.ndarray, "n M"]
    offset: Float[np.ndarray, " n"]

    def __call__(self, inputs: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N n"]:
        """Map every row."""
        return inputs @ self.matrix.T + self.offset


@dataclass(frozen=True, eq=False)
class Collapse:
    """One layer of a construction.

    `cone`: its truncation; `label`: the number of the class that it takes to its base point, or `None` for a layer that
    leaves all samples alone or treats no class exactly; `interval`: the shifts t along the axis from the class mean
    between which it is exact, where known.
    """

    cone: Cone
    label: int | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Failure:
    """Why a rung of the ladder could not be used: a sentence, and its numbers by name."""

    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


def blocks(cloud: Float[np.ndarray, "N n"]) -> Iterator[Float[np.ndarray, "_ n"]]:
    """Cut samples into rows that a processor keeps close by, so that long chains of operations stay there."""
    rows = max(1, 2**16 // cloud.shape[1])
    return (cloud[start : start + rows] for start in range(0, len(cloud), rows))


def collapse(clouds: Clouds, step: Collapse) -> Clouds:
    """Apply a layer's truncation to all samples; a class that goes to one point is kept as that point alone."""
    truncated = [step.cone.truncate(cloud) for cloud in clouds]
    if step.label is not None:
        truncated[step.label] = step.cone.base_point[None].copy()
    return truncated
