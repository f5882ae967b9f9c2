"""The third rung, a heuristic: hyperplanes that peel off most of a class where none peels off all of it."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ._affine import best_affine
from ._cone import Cone
from ._hyperplanes import memory_shortage, scaled_coordinates
from ._ladder import Candidate, Task, clouds_in, finish, statistics_of
from ._types import Clouds, Collapse, Failure

CONTRACTIONS = (0.3, 0.1, 0.03)
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the base point, between the class mean and the nearest quarter of the rest
EDGES = (0.2, 0.8)  # quantiles of the class, for more base points
# Sequences of layers that are followed: at most, and of those with one class last; in all, for every class and layer;
# only one where samples × dimensions² is more.
BEAM, BRANCHES, MOST_SEQUENCES, MOST_WORK = 24, 8, 240, 1e5
MOST_SAMPLES = 2000  # in the search; the last layer and the cost are those of all samples
WORTHWHILE = 1e-4  # relative, of a layer


def soft(task: Task) -> Candidate | Failure:
    """The third rung: truncations along soft-margin hyperplanes, and the best affine map behind them; a heuristic.

    Each layer is chosen, among the classes and a few base points along the normal of the class's hyperplane and
    contractions near 0.1, by the cost that is left with the best affine map; a layer that gains nothing is left out.
    The cheapest sequences of layers are followed, or only one where the samples are many. It is deterministic. The
    normals are those between one class and all others: a class around another is peeled off slowly.

    **Returns:** a network that is not certified and costs less than the best affine map, or a `Failure`.

    **Source:** derived; the choice of base points is by experiment.
    """
    shortage = memory_shortage(task)
    if shortage is not None:
        return Failure(shortage)
    affine_cost = task.best_affine[2]
    coordinates, _ = scaled_coordinates(task)
    clouds = clouds_in(task, coordinates)
    stride = math.ceil(len(task.classes.numbers) / MOST_SAMPLES)
    steps = _search([cloud[::stride] for cloud in clouds], task)
    if not steps:
        return Failure(
            f"no soft layer costs less than the best affine map ({affine_cost:.6g})",
            {"cost": affine_cost, "affine_cost": affine_cost},
        )
    found = finish(task, "soft", coordinates, steps, clouds)
    if found.cost <= affine_cost:
        return found
    return Failure(
        f"its cost of {found.cost:.6g} would be above that of the best affine map, {affine_cost:.6g}",
        {"cost": found.cost, "affine_cost": affine_cost},
    )


@dataclass(frozen=True)
class _State:
    cost: float
    steps: list[Collapse]
    clouds: Clouds


def _search(clouds: Clouds, task: Task) -> list[Collapse]:
    """Follow the cheapest sequences of layers, up to the depth."""

    def cost(candidate: Clouds) -> float:
        return best_affine(statistics_of(candidate, task.statistics.totals), task.targets)[2]

    best = _State(cost(clouds), [], clouds)
    beam = [best]
    small = sum(map(len, clouds)) * clouds[0].shape[1] ** 2 <= MOST_WORK
    width = max(1, min(BEAM, MOST_SEQUENCES // (task.depth * len(clouds)))) if small else 1
    for _ in range(task.depth):
        found: list[tuple[float, _State, Cone]] = []
        for label in range(len(clouds)):
            options = [
                (cost([cone.truncate(cloud) for cloud in state.clouds]), state, cone)
                for state in beam
                for cone in _cones(state.clouds, label)
            ]
            # The cheapest of every class: what is best now may not be in the end.
            worthwhile = [option for option in options if option[0] < option[1].cost * (1 - WORTHWHILE)]
            found += sorted(worthwhile, key=lambda option: option[0])[:BRANCHES]
        if not found:
            break
        found.sort(key=lambda option: option[0])
        beam = [
            _State(left, [*state.steps, Collapse(cone, None)], [cone.truncate(cloud) for cloud in state.clouds])
            for left, state, cone in found[:width]
        ]
        best = min(best, beam[0], key=lambda state: state.cost)
    return best.steps


def _cones(clouds: Clouds, label: int) -> list[Cone]:
    """Make cones along the normal of the hyperplane between a class and the rest."""
    own = clouds[label]
    rest = np.concatenate([cloud for number, cloud in enumerate(clouds) if number != label])
    axis = _soft_normal(own, rest)
    if axis is None:
        return []
    mean = own.mean(axis=0)
    reach = float(np.quantile(rest @ axis, 0.25) - mean @ axis)
    # A class around the others is peeled off piece by piece.
    edges = np.quantile(own @ axis, EDGES) - mean @ axis
    shifts = [*(share * reach for share in LEVELS), *edges]
    return [Cone(mean + shift * axis, axis, contraction) for shift in shifts for contraction in CONTRACTIONS]


def _soft_normal(own: Float[np.ndarray, "N n"], rest: Float[np.ndarray, "K n"]) -> Float[np.ndarray, " n"] | None:
    """Find the direction from a class to the rest, of length 1, by a support vector machine with balanced weights."""
    from sklearn.exceptions import ConvergenceWarning  # scikit-learn is slow to import
    from sklearn.svm import LinearSVC

    machine = LinearSVC(dual=False, class_weight="balanced", max_iter=200)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # any direction will do
        machine.fit(np.concatenate([own, rest]), np.repeat([0, 1], [len(own), len(rest)]))
    axis = np.asarray(machine.coef_[0], np.float64)
    length = float(np.linalg.norm(axis))
    return axis / length if length > 0 else None
