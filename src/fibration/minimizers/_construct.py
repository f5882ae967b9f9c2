"""The constructor: from labelled samples to a network of zero cost, down a ladder of constructions."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ConditioningWarning, ConstructionError, ShapeError, TargetError, UnknownNameError
from ._conditions import conditions_of
from ._ladder import Candidate, Task, affine, cone, constant
from ._minimizer import Attempt, Layer, Minimizer, as_params
from ._separable import separable
from ._soft import soft
from ._statistics import as_classes, class_statistics
from ._types import Failure

RUNGS: dict[str, Callable[[Task], Candidate | Failure]] = {
    "cone": cone,
    "separable": separable,
    "soft": soft,
    "affine": affine,
}
POOR_CONDITION, THIN_MARGIN = 1e8, 1e-6
WIDEST = np.pi - 1e-5  # of an opening: wider cones have weights too ill-conditioned to compute with


def construct(
    inputs: Any,
    labels: Any,
    targets: Any = None,
    depth: int | None = None,
    weights: Any = "class",
    method: str = "auto",
    shift: str | float = "auto",
    opening: str | float = "auto",
    *,
    memory_budget: int = 2**30,
) -> Minimizer:
    """Write down a ReLU network that fits labelled samples, without training: at zero cost if the classes allow it.

    Layer after layer squashes one class to a point and leaves the others alone; a last affine map takes the points to
    the targets. The constructions form a ladder, and the first that is certified is used:

    1. "cone": for tight clusters. In the barycentric coordinates of the class means, cones from each cluster towards
       the centre (Chen and Muñoz Ewald, arXiv 2309.10639, theorem 2.3; exact conditions derived).
    2. "separable": for classes that hyperplanes can peel off one after another, in some order (arXiv 2405.07098,
       theorem 5.2), found by linear programs; of width M, or max(M + 1, Q) where that finds no order (derived).
    3. "soft": no zero cost; hyperplanes that peel off most of a class, or are skipped (heuristic).
    4. "affine": the best affine map. No rung is used that costs more.

    **Arguments:**

    - `inputs` (N, …): any array that slices into rows, such as a memory map; it is read in chunks, rungs 1 and 4
      keeping N × Q numbers. Rungs 2 and 3 keep all of it, and are left out where that exceeds `memory_budget` bytes.
    - `labels` (N,): numbers or strings. The classes are the distinct ones, sorted.
    - `targets` (Q, P): one for each class, affinely independent; by default the unit vectors.
    - `depth`: of hidden layers, by default the number Q of classes. With fewer, zero cost is not to be expected.
    - `weights`: of the cost C = √(Σ_j D_j/N_j Σ_i |f(x_i) − y_j|²), a square root: "class", D_j = 1; "sample",
      D_j = N_j/N; or D itself (Q,).
    - `method`: a rung, to be used or to raise `ConstructionError`.
    - `shift`, `opening`: of the cones of rung 1, in barycentric coordinates: how far the base points are from the class
      means, and the angle in radians. By default the middle of the interval in which the construction is exact, and the
      narrowest cone that leaves half of it.

    **Returns:** a `Minimizer`.

    **Raises:** `ShapeError`, `EmptyDataError`, `NonFiniteDataError`, `UnknownNameError`; `TargetError` for targets that
    are not affinely independent; `ShiftError` for a shift outside the exact interval; `ConstructionError` where a
    `method` was asked for and does not exist. Warns with `ConditioningWarning`.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> found = fb.minimizers.construct(inputs, labels)
    >>> found.method, found.certified, found.cost < 1e-12 < found.affine_cost
    ('cone', True, True)

    ```
    """
    classes = as_classes(inputs, labels, weights)
    n_classes = len(classes.names)
    goals = checked_targets(targets, n_classes)
    if depth is not None and not (isinstance(depth, int | np.integer) and depth >= 1):
        raise ShapeError(f"depth = {depth!r}", "a number of hidden layers, at least 1", "leave it out")
    if method not in ("auto", *RUNGS):
        raise UnknownNameError(
            f"method = {method!r}", f"one of {', '.join(map(repr, ['auto', *RUNGS]))}", 'leave it at "auto"'
        )
    statistics = class_statistics(classes)
    task = Task(
        classes,
        statistics,
        goals,
        n_classes if depth is None else int(depth),
        number_or_auto(opening, "opening", WIDEST),
        number_or_auto(shift, "shift", np.inf),
        memory_budget,
    )
    if n_classes == 1:
        chosen, attempts = constant(task), [Attempt("constant", True, "", {})]
    else:
        chosen, attempts = _climb(task, method)
    return _minimizer(task, chosen, attempts)


def _climb(task: Task, method: str) -> tuple[Candidate, list[Attempt]]:
    """Try the rungs from the first, until one is certified; else take the cheapest."""
    attempts: list[Attempt] = []
    candidates: list[Candidate] = []
    for name in RUNGS if method == "auto" else (method,):
        found = RUNGS[name](task)
        if isinstance(found, Failure):
            attempts.append(Attempt(name, False, found.reason, found.numbers))
            continue
        candidates.append(found)
        # Only the first two rungs promise zero cost.
        short = name in ("cone", "separable") and not found.certified
        reason = found.note
        if short:
            reason = f"{task.depth} layers for {task.n_classes} classes: zero cost is not guaranteed"
        attempts.append(Attempt(name, not short, reason, {"cost": found.cost}))
        if found.certified:
            break
    if not candidates:
        last = attempts[-1]
        raise ConstructionError(
            f"the construction {method!r} does not exist for these samples: {last.reason}",
            "classes that it can separate",
            'use `method="auto"`, which goes on to the next construction',
        )
    return min(candidates, key=lambda candidate: (not candidate.certified, candidate.cost)), attempts


def _minimizer(task: Task, chosen: Candidate, attempts: list[Attempt]) -> Minimizer:
    layers = tuple(
        Layer(
            W=weight,
            b=bias,
            base_point=step.cone.base_point,
            axis=step.cone.axis,
            opening=step.cone.opening,
            collapses=None if step.label is None else task.classes.names[step.label],
            interval=step.interval,
            margin=float(margin),
            condition=_condition(weight),
        )
        for (weight, bias), step, margin in zip(chosen.weights[:-1], chosen.steps, chosen.margins, strict=True)
    )
    margin = min((layer.margin for layer in layers), default=np.inf)
    # The first layer holds the coordinates, whose condition is that of the data.
    condition = max((layer.condition for layer in layers[1:]), default=1.0)
    if chosen.certified and (condition > POOR_CONDITION or margin < THIN_MARGIN):
        warnings.warn(
            f"the network is ill-conditioned: its weights up to {condition:.1e}, its smallest margin {margin:.1e}; in "
            "float32 its outputs may be wrong. A wider margin needs other classes or features",
            ConditioningWarning,
            stacklevel=3,
        )
    apply, params = as_params(chosen.weights)
    return Minimizer(
        apply=apply,
        params=params,
        weights=chosen.weights,
        cost=chosen.cost,
        affine_cost=task.best_affine[2],
        certified=chosen.certified,
        margin=margin,
        method=chosen.method,
        attempts=tuple(attempts),
        conditions=conditions_of(task),
        layers=layers,
        classes=task.classes.names,
        targets=task.targets,
        coordinates=chosen.coordinates,
        steps=tuple(chosen.steps),
    )


def _condition(weight: Float[np.ndarray, "m n"]) -> float:
    """Divide the largest singular value by the smallest that is not zero; barycentric coordinates have a zero one."""
    sizes = np.linalg.svd(weight, compute_uv=False)
    kept = sizes[sizes > 1e-12 * sizes[0]]
    return float(kept[0] / kept[-1]) if len(kept) else 1.0


def checked_targets(targets: Any, n_classes: int) -> Float[np.ndarray, "Q P"]:
    """Check targets of classes, or make the unit vectors."""
    if targets is None:
        return np.eye(n_classes)
    try:
        goals = np.asarray(targets, np.float64)
    except (TypeError, ValueError):
        goals = np.zeros(0)
    if goals.ndim != 2 or len(goals) != n_classes or not np.all(np.isfinite(goals)):
        raise ShapeError(
            f"targets of shape {goals.shape}" + ("" if np.all(np.isfinite(goals)) else " with NaN or infinity"),
            f"({n_classes}, P): a finite target for each class, in the order of the sorted labels",
            "leave them out for unit vectors",
        )
    rank = int(np.linalg.matrix_rank(goals - goals.mean(axis=0)))
    if rank < n_classes - 1:
        raise TargetError(
            f"targets of {n_classes} classes that span {rank} dimensions",
            f"affinely independent targets, which span {n_classes - 1}",
            "leave them out for unit vectors, or move those that lie on a line or plane of the others",
        )
    return goals


def number_or_auto(value: Any, name: str, top: float) -> float | None:
    """Check a positive number below `top`, or "auto", which is `None`."""
    if isinstance(value, str) and value == "auto":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UnknownNameError(f"{name} = {value!r}", '"auto" or a number', 'leave it at "auto"') from None
    if not 0 < number < top:
        raise ShapeError(f"{name} = {value}", f"more than 0 and less than {top:.9g}", 'leave it at "auto"')
    return number
