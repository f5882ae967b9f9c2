"""`descend`: fixed steps along a flow, or of an optax optimiser."""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax

from .. import trees
from ..errors import StepSizeError
from ..flows import AbstractFlow
from ..problem import AbstractProblem
from ..trees import PyTree
from ._checkpoint import Checkpoint
from ._driver import drive
from ._hooks import explanation, gradients_of, own_conditions, prepared
from ._integrate import FlowField
from ._observe import Observation, Observe
from ._options import Options, ProgressCallback
from ._record import Record, check_budget
from ._solve import check_problem, check_velocity, open_store
from ._stepper import AbstractStepper
from ._stop import Stop, bind
from ._trajectory import Trajectory
from ._update import EulerStepper, OptaxStepper


def descend(
    problem: AbstractProblem,
    method: AbstractFlow | optax.GradientTransformation | optax.MultiSteps | Callable[..., PyTree],
    params: PyTree,
    *,
    steps: int,
    step_size: float | None = None,
    save_every: int = 1,
    stop: Stop | None = None,
    observe: Observe = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Descend in fixed steps: θ ← θ + η·flow(problem, θ, kη), or one update of an optax optimiser at a time.

    With `GradientFlow` this is gradient descent, Euler's method on the gradient flow (Elkabetz and Cohen,
    arXiv 2107.06608).

    **Arguments:**

    - `method`: a flow, which needs a `step_size`, or an optax optimiser, which has its own. The statistics count one
      gradient for each of its updates, and not what a line search inside it spends.
    - `steps`: the number of steps; `save_every`: saved are every so many steps, the start and the end.
    - the others: see `integrate`.

    **Returns:** a `Trajectory`, with times kη for a flow, and numbers of steps for an optimiser.

    **Raises:** what `integrate` raises. A descent whose parameters turn non-finite keeps the last finite ones and
    returns with the result "nonfinite" and its time; see `Trajectory.raise_if_failed`.

    ```python
    >>> import jax.numpy as jnp, optax
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.5, steps=3).params
    array([1.   , 0.5  , 0.25 , 0.125], dtype=float32)
    >>> fb.descend(problem, optax.sgd(0.5), jnp.array(1.0), steps=3).times
    array([0., 1., 2., 3.])

    ```
    """
    options = Options() if options is None else options
    check_counts(steps=steps, save_every=save_every)
    params = trees.as_coordinates(params)
    check_problem(problem)
    problem.check(params)
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    method = prepared(method, problem, params)
    stepper = _stepper(problem, method, state, constant, step_size)
    check_budget(state, int(steps) // int(save_every) + 3, options)
    grid = np.unique(np.append(np.arange(0, int(steps) + 1, int(save_every)), int(steps)))
    record = Record(
        state,
        len(grid) + 1,
        constant=constant,
        problem=problem,
        observation=Observation(observe, problem, params),
        options=options,
    )
    return drive(
        stepper,
        bind(stop, problem, constant, own_conditions(method, problem), gradients_of(method)),
        state,
        grid,
        int(steps),
        record,
        wall_seconds=None if stop is None else stop.wall_seconds,
        store=open_store(checkpoint, record),
        progress=progress,
        options=options,
        explain=explanation(method, problem, params),
    )


def check_counts(**counts: Any) -> None:
    """Check numbers of steps."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or not 1 <= value <= jnp.iinfo(jnp.result_type(int)).max:
            raise StepSizeError(
                f"{name} = {value!r}",
                f"a whole number from 1 to {jnp.iinfo(jnp.result_type(int)).max}",
                f"pass {name}=1 or more",
            )


def _stepper(
    problem: AbstractProblem, method: Any, state: PyTree, constant: PyTree, step_size: float | None
) -> AbstractStepper:
    if hasattr(method, "gradient_transformation"):  # optax.MultiSteps
        method = method.gradient_transformation()
    if isinstance(method, optax.GradientTransformation):
        if step_size is not None:
            raise StepSizeError(
                f"step_size = {step_size} beside an optax optimiser",
                "no step_size: an optimiser has its own",
                "set it in the optimiser, such as `optax.sgd(step_size)`",
            )
        return OptaxStepper(problem, constant, optax.with_extra_args_support(method))
    if step_size is None or not (np.isfinite(float(step_size)) and float(step_size) > 0):
        raise StepSizeError(
            f"step_size = {step_size}",
            "a positive, finite step size for descent along a flow",
            "pass `step_size=`; below 2/sharpness gradient descent is stable (`fb.curvature.extreme_eigenvalues`)",
        )
    field = FlowField(method, problem, constant)
    check_velocity(field, state, 0.0)
    return EulerStepper(field, jnp.asarray(float(step_size)))
