"""What the theory asks of labelled samples, measured."""

import math

import numpy as np
from jaxtyping import Float

from ._ladder import Task
from ._minimizer import Conditions
from ._statistics import largest_deviations
from ._types import Coordinates


def conditions_of(task: Task) -> Conditions:
    """Measure noise and separation, in barycentric coordinates and among the inputs; one pass."""
    statistics, q = task.statistics, task.n_classes
    bound = math.sqrt((q - 1) / q) / 4
    separation = float(np.min(np.linalg.norm(statistics.means - statistics.centre, axis=1))) if q > 1 else math.nan
    coordinates = task.affine_coordinates
    matrices = [coordinates.matrix] if isinstance(coordinates, Coordinates) else []
    radius, *noise = largest_deviations(task.classes, statistics.means, None, *matrices)
    return Conditions(noise[0] if noise else math.nan, bound, radius, separation, _opening(statistics.means, radius))


def _opening(means: Float[np.ndarray, "Q M"], radius: float) -> float:
    """Compute θ_* = max_j 2 max_k [∠(x̄_k − x̄_j, f_j) + arcsin(4δ/|x̄_k − x̄_j|)] (derived)."""
    centre, widest = means.mean(axis=0), 0.0
    for j, mean in enumerate(means):
        to_others, axis = np.delete(means, j, axis=0) - mean, centre - mean
        lengths, height = np.linalg.norm(to_others, axis=1), np.linalg.norm(axis)
        if height == 0 or not np.all(4 * radius < lengths):
            return math.nan
        along = to_others @ axis / height
        across = np.linalg.norm(to_others - np.outer(along, axis / height), axis=1)
        widest = max(widest, float(np.max(np.arctan2(across, along) + np.arcsin(4 * radius / lengths))))
    return 2 * widest if 0 < widest < math.pi / 2 else math.nan
