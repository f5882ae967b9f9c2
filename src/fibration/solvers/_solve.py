"""`solve`: the driver for any vector field; `integrate` and `descend` are built on the pieces here."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _validation, trees
from ..errors import (
    FlowError,
    NonFiniteDataError,
    ParameterError,
    PrecisionWarning,
    ShapeError,
    StepSizeError,
    TimeSpanError,
)
from ..problem import AbstractProblem
from ..trees import PyTree
from ._checkpoint import Checkpoint, CheckpointStore
from ._driver import Explanation, drive
from ._method import AbstractMethod
from ._observe import Observation
from ._ode import AdaptiveStepper, choose_method
from ._options import Options, ProgressCallback
from ._record import Record
from ._rkc2 import RKC2
from ._stop import Conditions
from ._trajectory import Trajectory


def solve(
    field: Callable[[Any, PyTree], PyTree],
    state: PyTree,
    t1: float,
    *,
    t0: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    times: Any = None,
    method: str | diffrax.AbstractAdaptiveSolver[Any] = "auto",
    first_step: float | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Solve θ' = field(t, θ) from `state` at `t0` to `t1` with error control.

    **Arguments:**

    - `field`: `field(time, state)` returns the velocity, a pytree like `state`; JAX must be able to trace it.
    - `state`: the initial state, a pytree of floating-point or complex arrays.
    - `rtol`, `atol`: a step is accepted if the root mean square of error/(atol + rtol·|θ|) is below one.
    - `times` (T,): increasing times to save at, within [t0, t1]; 101 equally spaced ones by default. Saving changes no
      step. With Tsit5 and RKC2 it costs nothing; with ROCK4 and Dopri8 a time inside a step costs one more step.
    - `method`: "auto" changes between classical and stabilised methods as the stiffness asks, and picks them by `rtol`:
      Tsit5 and RKC2 down to 1e-3; Tsit5, ROCK4 and RKC2 down to 1e-6; Dopri8, ROCK4 and RKC2 below. "rkc2" and "rock4"
      are the stabilised ones, for fields whose linearisation has a mostly real, negative spectrum, such as every
      gradient flow; "tsit5", "dopri8", "dopri5", "bosh3", or any explicit Runge–Kutta method of diffrax, are for the
      others.
    - `first_step`: the first step's size; chosen from two evaluations by default.
    - `checkpoint`, `progress`, `options`: see `Checkpoint`, `Progress`, `Options`.

    **Returns:** a `Trajectory` whose `params` are the states and whose `costs` are `None`.

    **Raises:** `TimeSpanError`, `StepSizeError`, `FlowError`, `NonFiniteDataError`, `MemoryBudgetError`, and those of
    `Checkpoint`. A run that turns non-finite raises nothing: it returns what it has, with the result "nonfinite".

    Allocates T states on the host, a buffer, and for the method about fourteen states (Tsit5), twenty (Dopri8), ten
    (RKC2), fifteen (ROCK4), or the sum of those that "auto" changes between.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> rotation = lambda t, y: jnp.array([-y[1], y[0]])
    >>> run = fb.solvers.solve(rotation, jnp.array([1.0, 0.0]), jnp.pi, rtol=1e-4, times=[jnp.pi])
    >>> bool(abs(run.params[-1, 0] + 1) < 1e-3)
    True

    ```
    """
    state = trees.as_coordinates(state)
    _validation.check_parameters(state)
    variable, constant = eqx.partition(state, eqx.is_inexact_array)
    if jax.tree.leaves(constant):
        raise FlowError(
            "the state has leaves that are not floating-point", "floating-point leaves only", "close over the rest"
        )
    return solve_field(
        field,
        variable,
        t1,
        t0=t0,
        rtol=rtol,
        atol=atol,
        times=times,
        method=method,
        first_step=first_step,
        checkpoint=checkpoint,
        progress=progress,
        options=options,
        constant=constant,
    )


def solve_field(
    field: Callable[[Any, PyTree], PyTree],
    state: PyTree,
    t1: float,
    *,
    t0: float,
    rtol: float,
    atol: float,
    times: Any,
    method: str | diffrax.AbstractAdaptiveSolver[Any],
    first_step: float | None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None,
    progress: ProgressCallback | None,
    options: Options | None,
    constant: PyTree,
    conditions: Conditions | None = None,
    explain: Explanation | None = None,
    wall_seconds: float | None = None,
    problem: AbstractProblem | None = None,
    observation: Observation | None = None,
) -> Trajectory:
    """Do what `solve` says, for a state of coordinates only, with what a problem adds to it."""
    options = Options() if options is None else options
    leaves, structure = jax.tree.flatten(state)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *(s.dtype for s in shapes))).dtype
    start, end = check_span(t0, t1, dtype)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (np.isfinite(float(value)) and float(value) >= 0):
            raise StepSizeError(f"{name} = {value}", "a finite tolerance, not negative", "try rtol=1e-6, atol=1e-9")
    if float(rtol) == float(atol) == 0:
        raise StepSizeError("rtol = 0 and atol = 0", "tolerances that are not both zero", "try rtol=1e-6, atol=1e-9")
    if first_step is not None and not 0 < float(first_step) <= end - start:
        raise StepSizeError(f"first_step = {first_step}", f"a step in (0, {end - start:g}]", "leave it out")
    chosen = choose_method(method, float(rtol)).for_tolerance(float(rtol), dtype)
    warn_of_precision(state, float(rtol), chosen)
    grid = save_times(times, start, end)
    check_velocity(field, state, start)
    stepper = AdaptiveStepper(
        field=field,
        method=chosen,
        rtol=jnp.asarray(rtol, dtype),
        atol=jnp.asarray(atol, dtype),
        start=jnp.asarray(start, dtype),
        first_step=None if first_step is None else jnp.asarray(first_step, dtype),
        shapes=shapes,
        structure=structure,
    )
    record = Record(state, len(grid) + 1, constant=constant, problem=problem, observation=observation, options=options)
    return drive(
        stepper,
        Conditions((), (), 0, 0) if conditions is None else conditions,
        state,
        grid,
        end,
        record,
        wall_seconds=wall_seconds,
        store=open_store(checkpoint, record),
        progress=progress,
        options=options,
        explain=explain,
    )


def open_store(checkpoint: Checkpoint | str | os.PathLike[str] | None, record: Record) -> CheckpointStore | None:
    """Open the checkpoint directory, if there is to be one."""
    if checkpoint is None:
        return None
    return CheckpointStore(checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint), record.mesh)


def check_problem(problem: Any) -> None:
    """Check that a run was given a problem."""
    if not isinstance(problem, AbstractProblem):
        raise ParameterError(
            f"problem is {type(problem).__name__}",
            "an fb.Problem",
            "build it first: `fb.Problem(apply, inputs, targets)`; a bare field goes to `fb.solvers.solve`",
        )


def check_span(t0: Any, t1: Any, dtype: Any) -> tuple[float, float]:
    """Check that t1 is finite and after t0, by more than the time's type can resolve."""
    try:
        start, end = float(t0), float(t1)
    except (TypeError, ValueError) as error:
        raise TimeSpanError(f"t0 = {t0!r} and t1 = {t1!r}", "two numbers", "pass t1 as a float") from error
    if not (np.isfinite(start) and np.isfinite(end) and end > start):
        raise TimeSpanError(
            f"the flow was asked to run from t0 = {start:g} to t1 = {end:g}",
            "finite times with t1 > t0",
            "pass a larger t1; to follow a flow backwards, negate it",
        )
    if end - start < 1e3 * float(jnp.finfo(dtype).eps) * max(abs(start), abs(end)):
        raise TimeSpanError(
            f"the span from t0 = {start!r} to t1 = {end!r} is too short for times in {dtype}",
            f"a span of at least {1e3 * float(jnp.finfo(dtype).eps):.0e} of the times themselves",
            "start at t0 = 0, or use float64 parameters",
        )
    return start, end


def save_times(times: Any, start: float, end: float) -> np.ndarray:
    """Check the times to save at, or choose 101 of them."""
    if times is None:
        return np.linspace(start, end, 101)
    try:
        grid = np.atleast_1d(np.asarray(times, float))
    except (TypeError, ValueError) as error:
        raise TimeSpanError(f"times are {times!r}", "a vector of numbers", "pass a list or an array") from error
    slack = 4 * float(jnp.finfo(jnp.result_type(float)).eps) * max(abs(start), abs(end))
    if grid.ndim != 1 or grid.size == 0 or not np.all(np.isfinite(grid)) or np.any(np.diff(grid) <= 0):
        raise TimeSpanError(
            f"times of shape {np.shape(times)} that are not strictly increasing and finite",
            "a vector of increasing times",
            "sort them and drop repetitions: `np.unique(times)`",
        )
    if grid[0] < start - slack or grid[-1] > end + slack:
        raise TimeSpanError(
            f"times from {grid[0]:g} to {grid[-1]:g}",
            f"times within [{start:g}, {end:g}]",
            "change t1 or drop the others",
        )
    return np.clip(grid, start, end)


def warn_of_precision(state: PyTree, rtol: float, method: AbstractMethod) -> None:
    """Warn when the floating-point type cannot carry the tolerance, or not with this method."""
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(state))
    if isinstance(method, RKC2) and method.ceiling() < 2:
        warnings.warn(
            f"rounding (machine epsilon {eps:.1e}) hides what RKC2 needs to see to keep to rtol = {rtol:g}: its steps "
            "will be short, and its errors above the tolerance. Take another method, a larger rtol, or float64",
            PrecisionWarning,
            stacklevel=4,
        )
    elif rtol < 8 * eps:
        warnings.warn(
            f"rtol = {rtol:g} is below what these parameters can carry (machine epsilon {eps:.1e}); enable float64 "
            'with `jax.config.update("jax_enable_x64", True)` before making arrays, or ask for a larger rtol',
            PrecisionWarning,
            stacklevel=4,
        )


def check_velocity(field: Callable[[Any, PyTree], PyTree], state: PyTree, start: float) -> None:
    """Check by abstract evaluation that the field returns a pytree like the state, and by one that it is finite."""
    time = jnp.asarray(start, jnp.result_type(float))
    try:
        velocity = eqx.filter_eval_shape(field, time, state)
    except Exception as error:  # whatever a user's function raises
        raise FlowError(
            f"the flow raised {type(error).__name__}: {error}",
            "a function flow(problem, params, time), or field(time, state) for `solve`, that returns a velocity",
            "call it by hand on the parameters to see the error in full",
        ) from error
    if jax.tree.structure(velocity) != jax.tree.structure(state):
        raise FlowError(
            f"the velocity has the structure {jax.tree.structure(velocity)}",
            f"the structure of the parameters, {jax.tree.structure(state)}",
            "return one array for every floating-point array of the parameters, and None at other leaves",
        )
    for wanted, found in zip(jax.tree.leaves(state), jax.tree.leaves(velocity), strict=True):
        if jnp.iscomplexobj(found) and not jnp.iscomplexobj(wanted):
            raise FlowError(
                f"the velocity of a leaf of type {wanted.dtype} is {found.dtype}",
                "a real velocity where the state is real",
                "make the state complex, or take the real part of the velocity",
            )
        if wanted.shape != found.shape:
            raise ShapeError(
                f"the velocity of a leaf of shape {wanted.shape} has shape {found.shape}",
                "a velocity shaped like the parameters",
                "check the flow for a transpose or a sum over the wrong axis",
            )
    first = _evaluate(field, time, state)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(first)):
        raise NonFiniteDataError(
            "the velocity at the initial parameters holds NaN or infinity",
            "a finite velocity to start from",
            "start from other parameters: smaller weights, or away from a singular point of the flow",
        )


@eqx.filter_jit
def _evaluate(field: Callable[[Any, PyTree], PyTree], time: Any, state: PyTree) -> PyTree:
    return field(time, state)
