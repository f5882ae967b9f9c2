"""The rungs of the ladder: each makes a whole network from labelled samples, or says why it cannot."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from ..errors import ClassMeansError
from ._affine import NOISIER, barycentric, best_affine, interpolate
from ._cones import cones
from ._network import Weights, forward, identity_step, signs, weights_of
from ._statistics import Classes, ClassStatistics
from ._types import Clouds, Collapse, Coordinates, Failure, collapse

MOST_SUBSETS = 64
ZERO = 1e-8  # a cost, in units of what the best constant costs


@dataclass(frozen=True, eq=False)
class Candidate:
    """A finished network: its rung, coordinates, truncations, the margins of their signs, weights, cost, and a note."""

    method: str
    coordinates: Coordinates
    steps: list[Collapse]
    margins: Float[np.ndarray, " L"]
    weights: Weights
    cost: float
    certified: bool
    note: str = ""


@dataclass(frozen=True, eq=False)
class Task:
    """What every rung is given. `depth`: of hidden layers; `opening`, `shift`: `None` for "auto"."""

    classes: Classes
    statistics: ClassStatistics
    targets: Float[np.ndarray, "Q P"]
    depth: int
    opening: float | None
    shift: float | None
    memory_budget: int

    @property
    def n_classes(self) -> int:
        """Q."""
        return len(self.classes.names)

    @cached_property
    def best_affine(self) -> tuple[Float[np.ndarray, "P M"], Float[np.ndarray, " P"], float]:
        """The best affine map of the inputs, and its cost."""
        return best_affine(self.statistics, self.targets)

    @cached_property
    def affine_coordinates(self) -> Coordinates | Failure:
        """The affine barycentric coordinates."""
        return self.coordinates(linear=False)

    def coordinates(self, *, linear: bool) -> Coordinates | Failure:
        """Make barycentric coordinates, or say why there are none."""
        if self.n_classes < 2:
            return Failure("a single class has no barycentric coordinates")
        try:
            return barycentric(self.statistics, linear=linear)
        except ClassMeansError as error:
            return Failure(error.given)


def clouds_in(task: Task, coordinates: Coordinates) -> Clouds:
    """Map all samples to other coordinates, class by class; N × n numbers of memory."""
    classes = task.classes
    clouds = [np.empty((count, len(coordinates.offset))) for count in classes.counts]
    filled = np.zeros(task.n_classes, int)
    for block, numbers in classes.chunks():
        mapped = coordinates(block)
        for j in np.unique(numbers):
            rows = mapped[numbers == j]
            clouds[j][filled[j] : filled[j] + len(rows)] = rows
            filled[j] += len(rows)
    return clouds


def statistics_of(clouds: Clouds, totals: Float[np.ndarray, " Q"]) -> ClassStatistics:
    """Compute the moments of samples as the layers have left them; a class may have become a single point."""
    means = np.stack([cloud.mean(axis=0) for cloud in clouds])
    scatter = np.zeros((means.shape[1],) * 2)
    for cloud, mean, total in zip(clouds, means, totals, strict=True):
        if len(cloud) > 1:
            away = cloud - mean
            scatter += total / len(cloud) * (away.T @ away)
    return ClassStatistics(np.array([len(cloud) for cloud in clouds]), totals, means, scatter)


def finish(task: Task, method: str, coordinates: Coordinates, steps: list[Collapse], clouds: Clouds) -> Candidate:
    """Add layers up to the depth, fit the last one to what the layers leave, and measure the cost of the network.

    Where every class has become a point the last layer goes through the targets, else it is the affine map of least
    squares.
    """
    steps = list(steps)
    signed, left = signs(clouds, steps)
    margins = list(signed.margins)
    while len(steps) < task.depth:
        extra = identity_step(left)
        steps.append(extra)
        margins.append(min(float(extra.cone.preactivations(cloud).min()) for cloud in left))
    collapsed = {step.label for step in steps} - {None}
    certified = signed.certified and (len(collapsed) == task.n_classes or task.n_classes == 1)
    if certified:
        matrix, offset = interpolate(np.concatenate(left), task.targets)
    else:
        matrix, offset, _ = best_affine(statistics_of(left, task.statistics.totals), task.targets)
    weights = weights_of(coordinates, steps, matrix, offset)
    cost = cost_of(weights, task.classes, task.targets)
    # The signs prove that the cost is zero but for rounding, which ill-conditioned weights may make large.
    certified = certified and cost <= ZERO * scale_of(task)
    return Candidate(method, coordinates, steps, np.array(margins), weights, cost, certified)


def cost_of(weights: Weights, classes: Classes, targets: Float[np.ndarray, "Q P"]) -> float:
    """Compute √(Σ_j D_j/N_j Σ_i |f(x_i) − y_j|²); one pass."""
    square = 0.0
    for block, numbers in classes.chunks():
        errors = forward(weights, block) - targets[numbers]
        square += float(classes.weights[numbers] @ np.einsum("ij,ij->i", errors, errors))
    return math.sqrt(square)


def scale_of(task: Task) -> float:
    """Compute about what the best constant costs: the spread of the targets."""
    away = task.targets - task.targets.mean(axis=0)
    return math.sqrt(float(task.statistics.totals @ np.sum(away**2, axis=1))) or 1.0


def constant(task: Task) -> Candidate:
    """The only class there is: hidden layers that leave the samples alone, and a last layer that ignores them."""
    coordinates = Coordinates(np.zeros((1, task.classes.inputs.shape[1])), np.zeros(1))
    return finish(task, "constant", coordinates, [], [np.zeros((1, 1))])


def affine(task: Task) -> Candidate:
    """The last rung: the best affine map, behind layers whose units are active on all samples."""
    matrix, offset, _ = task.best_affine
    coordinates = Coordinates(matrix, offset - task.targets.mean(axis=0))
    return finish(task, "affine", coordinates, [], clouds_in(task, coordinates))


def barycentric_choices(task: Task) -> list[Coordinates]:
    """List the barycentric coordinates that the class means allow, in the order in which they are to be tried.

    The affine ones hold less noise. The linear ones keep the first layer invertible, as in the theorem: they come first
    where there are as many dimensions as classes and the noise is no more than twice that of the affine ones, which it
    is where the class means are nearly linearly dependent.
    """
    both = (task.affine_coordinates, task.coordinates(linear=True))
    found = [coordinates for coordinates in both if isinstance(coordinates, Coordinates)]
    if task.n_classes == task.classes.inputs.shape[1] and len(found) == 2:
        affine_noise, linear_noise = (np.trace(c.matrix @ task.statistics.scatter @ c.matrix.T) for c in found)
        if linear_noise <= NOISIER**2 * affine_noise:
            found.reverse()
    return found


def cone(task: Task) -> Candidate | Failure:
    """The first rung: cones in barycentric coordinates, which collapse tight clusters one by one."""
    choices = barycentric_choices(task)
    failure = None if choices else task.affine_coordinates
    note = "" if len(choices) > 1 else "in affine coordinates: the class means are linearly dependent"
    for coordinates in choices:
        clouds = clouds_in(task, coordinates)
        if task.depth < task.n_classes:
            return _part(task, coordinates, clouds)
        found = cones(
            clouds,
            coordinates(task.statistics.means),
            depth=task.n_classes,
            names=task.classes.names,
            opening=task.opening,
            shift=task.shift,
        )
        if isinstance(found, Failure):
            failure = failure or found
            continue
        candidate = finish(task, "cone", coordinates, found, clouds)
        if candidate.certified:
            return replace(candidate, note=note)
        failure = failure or Failure(
            "the signs of the pre-activations do not certify it, or rounding spoils it", {"cost": candidate.cost}
        )
    return failure if isinstance(failure, Failure) else Failure("the class means are dependent")


def _part(task: Task, coordinates: Coordinates, clouds: Clouds) -> Candidate | Failure:
    """With fewer layers than classes: collapse the subset of classes that leaves the least cost."""
    means, q, depth = coordinates(task.statistics.means), task.n_classes, task.depth
    each = [cones_of(clouds, means, [label], task) for label in range(q)]
    able = [label for label, found in enumerate(each) if not isinstance(found, Failure)]
    if not able:
        return next(found for found in each if isinstance(found, Failure))

    def left(labels: tuple[int, ...]) -> float:
        remaining = list(clouds)
        for label in labels:
            remaining = collapse(remaining, each[label][0])  # pyright: ignore[reportIndexIssue]
        return best_affine(statistics_of(remaining, task.statistics.totals), task.targets)[2]

    size = min(depth, len(able))
    if math.comb(len(able), size) <= MOST_SUBSETS:
        best = min(itertools.combinations(able, size), key=left)
    else:
        best: tuple[int, ...] = ()
        for _ in range(size):
            best = (*best, min(set(able) - set(best), key=lambda label: left((*best, label))))
    found = cones_of(clouds, means, list(best), task)
    if isinstance(found, Failure):
        return found
    candidate, affine_cost = finish(task, "cone", coordinates, found, clouds), task.best_affine[2]
    if candidate.cost > affine_cost * (1 + 1e-9):
        return Failure(
            f"with {depth} layers it costs {candidate.cost:.3g}, more than the best affine map ({affine_cost:.3g})",
            {"cost": candidate.cost, "affine_cost": affine_cost},
        )
    return candidate


def cones_of(
    clouds: Clouds, means: Float[np.ndarray, "Q n"], labels: list[int], task: Task
) -> list[Collapse] | Failure:
    """Collapse these classes only, as little beyond the cluster as is safe, which leaves the least cost."""
    return cones(
        clouds,
        means,
        depth=len(labels),
        names=task.classes.names,
        opening=task.opening,
        shift=task.shift,
        pending=labels,
        position=0.05,
    )
