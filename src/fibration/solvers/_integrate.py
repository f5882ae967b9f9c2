"""`integrate`: where infinitely small steps of a flow would go."""

import os
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .. import trees
from ..flows import AbstractFlow
from ..problem import AbstractProblem
from ..trees import PyTree
from ._checkpoint import Checkpoint
from ._hooks import explanation, gradients_of, own_conditions, prepared
from ._observe import Observation, Observe
from ._options import Options, ProgressCallback
from ._solve import check_problem, solve_field
from ._stop import Stop, bind
from ._trajectory import Trajectory


class FlowField(eqx.Module):
    """A flow bound to its problem, as a field on the floating-point leaves of the parameters."""

    flow: AbstractFlow | Callable[..., PyTree]
    problem: AbstractProblem
    constant: PyTree

    @property
    def gradient_evaluations(self) -> int:
        """Count the gradients of one evaluation: what the flow says, or one."""
        return gradients_of(self.flow)

    def __call__(self, time: Any, state: PyTree) -> PyTree:
        """Compute the velocity of the floating-point leaves."""
        if getattr(self.flow, "difference_quotients", False):
            return _differenced(state, field=self, time=time)
        return self.velocity(time, state)

    def velocity(self, time: Any, state: PyTree) -> PyTree:
        """Ask the flow."""
        velocity = self.flow(self.problem, eqx.combine(state, self.constant), time)
        return eqx.filter(velocity, eqx.is_inexact_array)


@eqx.filter_custom_jvp
def _differenced(state: PyTree, *, field: FlowField, time: Any) -> PyTree:
    """Compute a velocity whose derivative is a difference quotient, for fields that JAX would differentiate to NaN.

    Stabilised methods need it to two digits, for the spectral radius (as in Sommeijer, Shampine and Verwer's RKC).
    """
    return field.velocity(time, state)


@_differenced.def_jvp
def _difference(primals: Any, tangents: Any, *, field: FlowField, time: Any) -> tuple[PyTree, PyTree]:
    state = primals[0]
    direction = jax.tree.map(lambda x, t: jnp.zeros_like(x) if t is None else t, state, tangents[0])
    velocity = field.velocity(time, state)
    size, length = trees.norm(state), trees.norm(direction)
    step = jnp.finfo(size.dtype).eps ** 0.5 * (1 + size) / jnp.where(length > 0, length, 1)
    ahead = field.velocity(time, trees.axpy(step, direction, state))
    return velocity, trees.scale(1 / step, trees.subtract(ahead, velocity))


def integrate(
    problem: AbstractProblem,
    flow: AbstractFlow | Callable[..., PyTree],
    params: PyTree,
    t1: float,
    *,
    t0: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    times: Any = None,
    stop: Stop | None = None,
    observe: Observe = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    method: str | diffrax.AbstractAdaptiveSolver[Any] = "auto",
    first_step: float | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Solve a flow on the parameters of a problem, θ' = flow(problem, θ, t), from t0 to t1 with error control.

    **Arguments:**

    - `problem`, `flow`, `params`: any pytree of parameters; leaves that are not floating-point are held constant.
    - `rtol`, `atol`: a step is accepted if the root mean square of error/(atol + rtol·|θ|) is below one. Tolerances
      bound the error of each step; for the gradient flow of a nearly convex cost the error at t1 is of the same size.
    - `times` (T,): increasing times to save at; 101 equally spaced ones by default. Saving changes no step.
    - `stop`: a `Stop`. `observe`: functions `(problem, params) -> array`, by name or in a list, or objects with `init`
      and `update` such as `curvature.Sharpness`; evaluated at the saved times.
    - `checkpoint`: a directory or a `Checkpoint`; the same call goes on where a killed one was.
    - `method`, `first_step`, `progress`, `options`: see `solvers.solve`.

    **Returns:** a `Trajectory`; `stats["gradient_evaluations"]` counts evaluations of the flow.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`, `TimeSpanError`, `StepSizeError`, `FlowError`,
    `MemoryBudgetError`, `ObserverError` (which holds the trajectory so far), and those of `Checkpoint`. A run that
    turns non-finite returns what it has, with the result "nonfinite", and one along which an adapted flow ends early,
    with "rank_loss" or "blow_up"; see `Trajectory.raise_if_failed`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))  # C = w²/2, so w(t) = w(0) e^{-t}
    >>> run = fb.integrate(problem, fb.GradientFlow(), jnp.array(1.0), t1=1.0, rtol=1e-4, times=[0.0, 0.5, 1.0])
    >>> print(run.params.round(3))
    [1.    0.607 0.368]

    ```
    """
    params = trees.as_coordinates(params)
    check_problem(problem)
    problem.check(params)
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    flow = prepared(flow, problem, params)
    if method == "auto" and not getattr(flow, "stiff", True):
        method = "tsit5" if rtol >= 1e-6 else "dopri8"  # a third of the program to compile
    return solve_field(
        FlowField(flow, problem, constant),
        state,
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
        conditions=bind(stop, problem, constant, own_conditions(flow, problem), gradients_of(flow)),
        explain=explanation(flow, problem, params),
        wall_seconds=None if stop is None else stop.wall_seconds,
        problem=problem,
        constant=constant,
        observation=Observation(observe, problem, params),
    )
