"""Hyperplanes between one class and everything else: found by linear programs, then moved to the largest margin."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog, nnls

from ._cone import Cone
from ._ladder import Task
from ._types import Coordinates

STRICT = 1e-9  # a margin is at least this, where the samples have a root mean square of 1
SOLVED = 1e-7  # what HiGHS calls feasible
FEWEST_ROWS, MOST_ROUNDS = 50, 40


def memory_shortage(task: Task) -> str | None:
    """Say why the samples and three copies of them do not fit into the memory budget; `None` where they do."""
    needed = 32 * len(task.classes.numbers) * task.classes.inputs.shape[1]
    if needed <= task.memory_budget:
        return None
    return f"its working memory of {needed} bytes would exceed the memory budget of {task.memory_budget} bytes"


def scaled_coordinates(task: Task, *, spare: bool = False) -> tuple[Coordinates, int]:
    """Make the coordinates z = (x − x̄)/(√M spread), and count those that hold samples: behind them may be zeros.

    There are Q − 1 coordinates at least, since Q affinely independent points need them; with `spare`, Q at least and
    one of zeros. With more features than samples, an orthonormal basis of their span takes the place of the features.
    """
    statistics, inputs = task.statistics, task.classes.inputs
    samples, dimension = inputs.shape
    basis = np.eye(dimension)
    if dimension > samples:
        away = (np.concatenate([block for block, _ in task.classes.chunks()]) - statistics.centre) / statistics.spreads
        _, sizes, rows = np.linalg.svd(away, full_matrices=False)
        basis = rows[: max(1, int(np.sum(sizes > 10 * dimension * np.finfo(float).eps * sizes[0])))]
    matrix = np.zeros((max(len(basis) + spare, task.n_classes - 1 + spare), dimension))
    matrix[: len(basis)] = basis / (statistics.spreads * dimension**0.5)
    return Coordinates(matrix, -matrix @ statistics.centre), len(basis)


@dataclass(frozen=True)
class Hyperplane:
    """The hyperplane ⟨h, z⟩ = c half-way between two sets, h of length 1 pointing to the second.

    `margin`: the distance of the nearest sample; negative where the sets are not separated.
    """

    axis: Float[np.ndarray, " n"]
    level: float
    margin: float


@dataclass(frozen=True)
class Overlap:
    """No hyperplane separates two sets, by a linear program.

    `violation`: how far even the best one leaves some sample on the wrong side, at least, in units of the distance
    between the two means; NaN where the solver gave up, and nothing is proven.
    """

    violation: float

    @property
    def proven(self) -> bool:
        """Whether the program was solved, to the tolerance of the solver."""
        return bool(np.isfinite(self.violation))


def between(own: Float[np.ndarray, "N n"], rest: Float[np.ndarray, "K n"], axis: Float[np.ndarray, " n"]) -> Hyperplane:
    """Place the hyperplane of a given direction half-way between two sets."""
    axis = axis / np.linalg.norm(axis)
    top, bottom = float(np.max(own @ axis)), float(np.min(rest @ axis))
    return Hyperplane(axis, (top + bottom) / 2, (bottom - top) / 2)


def separate(own: Float[np.ndarray, "N n"], rest: Float[np.ndarray, "K n"]) -> Hyperplane | Overlap:
    """Separate two sets by a hyperplane of nearly the largest margin, or prove that none does.

    The linear program: max m subject to ⟨h, z⟩ − c ≤ −m on the first set, ≥ m on the second, and ⟨h, μ₂ − μ₁⟩ =
    |μ₂ − μ₁| for their means μ, so that m ≤ |μ₂ − μ₁|/2. The optimum is positive if and only if the sets are separable
    (derived). It is solved on few samples, to which the most violated ones are added until none is left; a program
    without solution on some samples has none on all.
    """
    first, second = own.mean(axis=0), rest.mean(axis=0)
    distance = float(np.linalg.norm(second - first))
    if distance <= STRICT:
        return Overlap(0.0)
    size = max(FEWEST_ROWS, 2 * own.shape[1])
    start = _least_squares(own, rest)
    inside, outside = _highest(own @ start, size), _highest(-(rest @ start), size)
    for _ in range(MOST_ROUNDS):
        solved = _program(np.vstack([own[inside], first]), np.vstack([rest[outside], second]), second - first, distance)
        if solved is None:
            return Overlap(np.nan)
        axis, level, margin = solved
        if margin <= SOLVED * distance:
            return Overlap(max(-margin / distance, 0.0))
        found = between(own, rest, axis)
        more_inside = _joined(inside, own @ axis - level, -margin, size)
        more_outside = _joined(outside, level - rest @ axis, -margin, size)
        settled = len(more_inside) == len(inside) and len(more_outside) == len(outside)
        inside, outside = more_inside, more_outside
        if settled or found.margin * np.linalg.norm(axis) >= margin / 2:
            return _widen(own, rest, found, inside, outside) if found.margin > STRICT else Overlap(np.nan)
    return Overlap(np.nan)


def _least_squares(own: Float[np.ndarray, "N n"], rest: Float[np.ndarray, "K n"]) -> Float[np.ndarray, " n"]:
    """Guess the direction: Fisher's, with a little shrinkage."""
    first, second = own.mean(axis=0), rest.mean(axis=0)
    spread = (own - first).T @ (own - first) / len(own) + (rest - second).T @ (rest - second) / len(rest)
    ridge = 1e-6 * float(np.trace(spread)) + STRICT
    return np.linalg.solve(spread + ridge * np.eye(len(spread)), second - first)


def _highest(scores: Float[np.ndarray, " N"], size: int) -> Int[np.ndarray, " k"]:
    """Number the samples of highest score, in the order of their numbers."""
    return np.sort(np.argsort(-scores, kind="stable")[:size])


def _joined(chosen: Int[np.ndarray, " k"], scores: Float[np.ndarray, " N"], bound: float, size: int) -> np.ndarray:
    """Add the samples whose score is the furthest above a bound."""
    worst = _highest(scores, size)
    return np.union1d(chosen, worst[scores[worst] > bound + SOLVED])


def _program(
    own: Float[np.ndarray, "N n"], rest: Float[np.ndarray, "K n"], towards: Float[np.ndarray, " n"], distance: float
) -> tuple[Float[np.ndarray, " n"], float, float] | None:
    """Solve the program of `separate` for h, c and m, or return `None` where the solver gives up."""
    n = own.shape[1]
    rows = np.concatenate(
        [
            np.hstack([own, np.full((len(own), 1), -1.0), np.ones((len(own), 1))]),
            np.hstack([-rest, np.ones((len(rest), 2))]),
        ]
    )
    result = linprog(
        np.append(np.zeros(n + 1), -1.0),
        A_ub=rows,
        b_ub=np.zeros(len(rows)),
        A_eq=np.append(towards / distance, [0.0, 0.0])[None],
        b_eq=[1.0],
        bounds=(None, None),
        method="highs",
    )
    if result.x is None or result.status != 0:
        return None
    return np.array(result.x[:n]), float(result.x[n]), float(result.x[n + 1])


def _widen(
    own: Float[np.ndarray, "N n"],
    rest: Float[np.ndarray, "K n"],
    plane: Hyperplane,
    inside: Int[np.ndarray, " k"],
    outside: Int[np.ndarray, " m"],
) -> Hyperplane:
    """Turn a separating hyperplane to a larger Euclidean margin, nearly the largest.

    The hard-margin problem min |h|² + c² subject to ±(⟨h, z⟩ − c) ≥ 1 is a least-distance problem, which non-negative
    least squares solve exactly (Lawson and Hanson, Solving Least Squares Problems, chapter 23). With the origin on the
    last hyperplane found, c² is next to nothing.
    """
    size = max(FEWEST_ROWS, 2 * own.shape[1])
    for _ in range(MOST_ROUNDS // 4):
        origin = plane.level * plane.axis
        few = np.concatenate([origin - own[inside], rest[outside] - origin])
        sides = np.concatenate([np.full(len(inside), -1.0), np.ones(len(outside))])
        system = np.vstack([few.T, sides, np.full(len(few), plane.margin)])
        try:
            multipliers, _ = nnls(system, np.append(np.zeros(len(system) - 1), 1.0))
        except RuntimeError:  # too many exchanges: the hyperplane found stays
            return plane
        axis = multipliers @ few
        length = float(np.linalg.norm(axis))
        if not length > 0:
            return plane
        axis = axis / length
        found = between(own, rest, axis)
        promised = between(own[inside], rest[outside], axis)
        if found.margin > plane.margin:
            plane = found
        if found.margin >= 0.95 * promised.margin:
            return plane
        inside = _joined(inside, own @ axis - promised.level, -promised.margin, size)
        outside = _joined(outside, promised.level - rest @ axis, -promised.margin, size)
    return plane


def contraction_bound(
    own: Float[np.ndarray, "N n"],
    rest: Float[np.ndarray, "K n"],
    base: Float[np.ndarray, " n"],
    axis: Float[np.ndarray, " n"],
) -> float:
    """Compute the contraction below which a cone collapses one set and leaves the other alone.

    min over all samples of a/(√n max_k(−w_k)), a = |⟨h, z − p⟩|, w = ±(R(z − p) − ⟨h, z − p⟩u/√n), + for the set that
    is left alone: then ⟨h, z − p⟩u/√n + λ(R(z − p) − ⟨h, z − p⟩u/√n) has the right signs (derived).
    """
    cone, root = Cone(base, axis, 1.0), np.sqrt(len(base))
    least = np.inf
    for cloud, sign in ((own, -1.0), (rest, 1.0)):
        away = cloud - base
        along = sign * (away @ axis)
        across = np.max(along[:, None] / root - sign * cone.reflect(away), axis=1)
        least = min(least, float(np.min(along / (root * np.maximum(across, 1e-200)))))
    return least
