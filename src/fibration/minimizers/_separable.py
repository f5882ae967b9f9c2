"""The second rung: hyperplanes that peel one class after another off the rest, tight or not."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from ._affine import DEGENERATE
from ._cone import Cone
from ._hyperplanes import (
    STRICT,
    Hyperplane,
    Overlap,
    between,
    contraction_bound,
    memory_shortage,
    scaled_coordinates,
    separate,
)
from ._ladder import Candidate, Task, clouds_in, finish
from ._types import Clouds, Collapse, Coordinates, Failure

PROGRAMS_PER_CLASS = 20
# How far a base point is from the affine span of the earlier ones, where the samples have a root mean square of 1: less
# where it has to move among the samples than where there is a spare unit.
APART, LIFTED_APART = 0.05, 0.3


def separable(task: Task) -> Candidate | Failure:
    """The second rung: layers that each collapse a class lying on its own side of a hyperplane.

    In the coordinates z = (x − x̄)/(√M spread), layer j takes its class to a point of a hyperplane that has that class
    below it, and all later classes and the points of the earlier ones above it. The class of the largest margin comes
    first; at a dead end other orders follow, up to 20 Q linear programs. The cone of a layer is half as contracted as
    its explicit bound allows.

    Whether an order exists depends on the points. Where none is found, the layers get one unit more, on which all
    samples are 0 and the points 1: a hyperplane that tilts towards it has the points above it, wherever they are. Then
    any class may come first that a hyperplane separates from the samples of the later ones, and the order of the
    largest margin has no dead end unless every order has (derived).

    **Returns:** a certified network of zero cost, or a `Failure`: that no class left can be separated from the others
    left is a proof, to the tolerance of the solver, for every order and all points.

    **Source:** Chen and Muñoz Ewald, arXiv 2405.07098, theorem 5.2; the contraction and the spare unit are derived.
    """
    q = task.n_classes
    if task.depth < q:
        return Failure(
            f"fewer layers than classes: {task.depth} for {q}", {"depth": float(task.depth), "classes": float(q)}
        )
    shortage = memory_shortage(task)
    if shortage is not None:
        return Failure(shortage)
    search = Search(PROGRAMS_PER_CLASS * q)
    coordinates, used = scaled_coordinates(task)
    clouds = clouds_in(task, coordinates)
    left = search.peel(clouds)
    if left:
        return _never(task, search, left)
    result = Failure("")
    for spare in (False, True) if used >= q - 1 else (True,):
        if spare:
            coordinates, used = scaled_coordinates(task, spare=True)
            clouds, search.lift = clouds_in(task, coordinates), used
        search.programs = 0
        steps = search.descend(clouds, [], search.first)
        result = _cannot(task, search) if steps is None else _finished(task, coordinates, steps, clouds)
        if isinstance(result, Candidate):
            return result
    return result


def _finished(task: Task, coordinates: Coordinates, steps: list[Collapse], clouds: Clouds) -> Candidate | Failure:
    points = np.stack([step.cone.base_point for step in steps])
    sizes = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    ratio = float(sizes[task.n_classes - 2] / sizes[0])
    if ratio < DEGENERATE:
        return Failure("the points that the classes are taken to are affinely dependent", {"ratio": ratio})
    found = finish(task, "separable", coordinates, steps, clouds)
    if found.certified:
        return found
    return Failure(
        "the signs of the pre-activations do not certify the hyperplanes: their margins are lost in rounding",
        {"margin": float(np.min(found.margins))},
    )


@dataclass
class Search:
    """A depth-first search over the orders of classes.

    `budget`: of linear programs for the search; `lift`: the coordinate that is 0 on all samples and 1 at the points, if
    any; `programs`: spent; `dead_ends`: how often no class was left to go on with; `peeled`: how many classes at most.
    `first`: the hyperplanes between a class and all others; `overlaps`: of the classes that have none.
    """

    budget: int
    lift: int | None = None
    programs: int = 0
    dead_ends: int = 0
    peeled: int = 0
    first: dict[int, Hyperplane] = field(default_factory=dict)
    overlaps: dict[int, Overlap] = field(default_factory=dict)

    def separate(self, clouds: Clouds, label: int) -> Hyperplane | Overlap:
        """Separate a class from the rest, and count the program."""
        self.programs += 1
        return separate(clouds[label], _rest(clouds, label))

    def peel(self, clouds: Clouds) -> list[int]:
        """Drop classes that can be separated from the others left, until there are none; return the classes left.

        A class that can be separated from others can be separated from some of them: no order drops more.
        """
        left = list(range(len(clouds)))
        while len(left) > 1:
            found = {label: self.separate([clouds[k] for k in left], i) for i, label in enumerate(left)}
            planes = {label: plane for label, plane in found.items() if isinstance(plane, Hyperplane)}
            self.overlaps = {label: plane for label, plane in found.items() if isinstance(plane, Overlap)}
            if len(left) == len(clouds):
                self.first = planes
            if not planes:
                return left
            left = [label for label in left if label not in planes]
        return []

    def descend(self, clouds: Clouds, steps: list[Collapse], known: dict[int, Hyperplane]) -> list[Collapse] | None:
        """Find layers for the classes that `steps` leave, or return `None`; `known`: hyperplanes of the step before."""
        done = {step.label for step in steps}
        pending = [label for label in range(len(clouds)) if label not in done]
        self.peeled = max(self.peeled, len(steps))
        if not pending:
            return steps
        options = self._options(clouds, pending, known, first=not steps)
        if not options:
            self.dead_ends += 1
        points = [step.cone.base_point for step in steps]
        for label in sorted(options, key=lambda label: -options[label].margin):
            plane = options[label]
            if steps and self.programs < self.budget:  # the hyperplane may be an old one
                wider = self.separate(clouds, label)
                plane = wider if isinstance(wider, Hyperplane) and wider.margin > plane.margin else plane
            step = layer(clouds, label, plane, points, self.lift)
            if step is None:
                continue
            left = list(clouds)
            left[label] = step.cone.base_point[None]
            found = self.descend(left, [*steps, step], options)
            if found is not None or self.programs >= self.budget:
                return found
        return None

    def _options(
        self, clouds: Clouds, pending: list[int], known: dict[int, Hyperplane], *, first: bool
    ) -> dict[int, Hyperplane]:
        """List the classes that a hyperplane separates from all the rest."""
        options: dict[int, Hyperplane] = {}
        for label in pending:
            if label in known:
                # The hyperplane of the step before often separates still, which saves a program.
                axis = known[label].axis
                again = between(
                    clouds[label], _rest(clouds, label), np.pad(axis, (0, clouds[label].shape[1] - len(axis)))
                )
                if again.margin >= known[label].margin / 2:
                    options[label] = again
                    continue
            if first or self.programs >= self.budget:
                continue
            found = self.separate(clouds, label)
            if isinstance(found, Hyperplane):
                options[label] = found
        return options


def _rest(clouds: Clouds, label: int) -> Float[np.ndarray, "N n"]:
    return np.concatenate([cloud for number, cloud in enumerate(clouds) if number != label])


def layer(
    clouds: Clouds, label: int, plane: Hyperplane, points: list[Float[np.ndarray, " n"]], lift: int | None
) -> Collapse | None:
    """Make the layer of a hyperplane: of a few base points in it, the one that allows the widest contraction.

    They lie on the segments from the class mean to the centre of all class means and to that of the others, or below
    the class mean; `points`: the earlier ones, from whose affine span they keep a distance.
    """
    own, rest = clouds[label], _rest(clouds, label)
    means = np.stack([cloud.mean(axis=0) for cloud in clouds])
    mean, others = means[label], np.delete(means, label, axis=0).mean(axis=0)
    height = plane.level - float(mean @ plane.axis)
    bases = [mean + height * plane.axis]
    for goal in (means.mean(axis=0), others):
        rise = float((goal - mean) @ plane.axis)
        if rise >= height > 0:
            bases.append(mean + height / rise * (goal - mean))
    if lift is not None:
        bases = [lifted(base, plane.axis, lift) for base in bases]
    least = APART if lift is None else LIFTED_APART
    bases = [apart(base, plane.axis, points, least) for base in bases]
    bounds = [contraction_bound(own, rest, base, plane.axis) for base in bases]
    best = int(np.argmax(bounds))
    if not bounds[best] > STRICT:
        return None
    return Collapse(Cone(bases[best], plane.axis, min(1.0, bounds[best] / 2)), label)


def lifted(base: Float[np.ndarray, " n"], axis: Float[np.ndarray, " n"], lift: int) -> Float[np.ndarray, " n"]:
    """Move a base point within its hyperplane until its coordinate `lift` is 1, or as near as a move by 2 takes it."""
    up = -axis[lift] * axis
    up[lift] += 1
    length = float(np.linalg.norm(up))  # and up[lift] is its square
    return base + min((1 - base[lift]) / max(length, STRICT), 2.0) / max(length, STRICT) * up


def apart(
    base: Float[np.ndarray, " n"], axis: Float[np.ndarray, " n"], points: list[Float[np.ndarray, " n"]], least: float
) -> Float[np.ndarray, " n"]:
    """Move a base point within its hyperplane until it is away from the affine span of the points before it."""
    if not points:
        return base
    n = len(base)
    free = np.eye(n)
    if len(points) > 1:
        _, sizes, rows = np.linalg.svd(np.stack(points[1:]) - points[0], full_matrices=False)
        span = rows[sizes > DEGENERATE * sizes[0]]
        free = free - span.T @ span
    away = free @ (base - points[0])
    if np.linalg.norm(away) >= least:
        return base
    # The direction across the axis that leaves the span fastest.
    across = np.eye(n) - np.outer(axis, axis)
    direction = np.linalg.eigh(across @ free @ across)[1][:, -1]
    speed = free @ direction
    if np.linalg.norm(speed) < 1e-3:  # a hyperplane parallel to the span, which lies above it
        return base
    lead = away @ speed if np.linalg.norm(away) > STRICT else direction[np.argmax(np.abs(direction))]
    return base + (2 * least / np.linalg.norm(speed)) * (direction if lead >= 0 else -direction)


def _never(task: Task, search: Search, stuck: list[int]) -> Failure:
    """Report classes none of which can be separated from the others of them."""
    q, names = task.n_classes, task.classes.names
    numbers = {"classes": float(q), "inseparable": float(len(stuck)), "linear_programs": float(search.programs)}
    if not all(overlap.proven for overlap in search.overlaps.values()):
        return Failure("a linear program could not be solved, or the margins are lost in rounding", numbers)
    violations = {label: search.overlaps[label].violation for label in stuck}
    best = min(violations, key=lambda label: violations[label])
    numbers |= {"smallest_violation": violations[best], "largest_violation": max(violations.values())}
    which = f"any of the {q} classes" if len(stuck) == q else f"any of {len(stuck)} of the {q} classes"
    return Failure(
        f"not sequentially linearly separable: no hyperplane separates {which} from the others of them; even the "
        f"best, for class {names[best]}, leaves a sample on the wrong side, by {violations[best]:.2g} of the distance "
        f"between the means (the worst, by {max(violations.values()):.2g})",
        numbers,
    )


def _cannot(task: Task, search: Search) -> Failure:
    """Report a search that came to an end before it found an order."""
    q = task.n_classes
    return Failure(
        f"{search.peeled} of {q} classes could be peeled off, after which none of the others was separated from the "
        "rest and the points of the earlier ones: that depends on these points, and with others it may be possible "
        f"({search.programs} linear programs of at most {search.budget}, {search.dead_ends} dead ends)",
        {"classes": float(q), "peeled": float(search.peeled), "dead_ends": float(search.dead_ends)},
    )
