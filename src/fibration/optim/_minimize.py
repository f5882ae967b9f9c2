"""`minimize`: the adapted flow made an optimiser for full batches."""

import dataclasses
import os
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from .. import _validation, trees
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..solvers import Checkpoint, Options, Stop, Trajectory
from ..solvers._descend import check_counts
from ..solvers._driver import drive
from ..solvers._observe import Observation, Observe
from ..solvers._options import ProgressCallback
from ..solvers._record import Record, check_budget
from ..solvers._solve import check_problem, open_store
from ..solvers._stepper import NONFINITE, RUNNING, STALLED, STATIONARY, AbstractStepper, Carry, Spent, first_carry
from ..solvers._stop import bind
from ..tangent._diagnosis import METHODS
from ..tangent._differential import Differential
from ..trees import PyTree
from ._residuals import AbstractResiduals, ProblemResiduals
from ._step import Method, take_step

DAMPING = 1e-3


class _Memory(NamedTuple):
    """The damping of the next step, 0 before the first; and of the last step its damping, ratio and trials."""

    damping: Float[Array, ""]
    used: Float[Array, ""]
    ratio: Float[Array, ""]
    trials: Int[Array, ""]


class AdaptedStepper(AbstractStepper):
    """One accepted damped adapted step after the other; the clock counts them."""

    method: Method
    residuals: AbstractResiduals
    first: Float[Array, ""]

    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Start at step 0; costs nothing."""
        zero = jnp.zeros((), self.first.dtype)
        memory = _Memory(zero, zero, zero, jnp.zeros((), jnp.result_type(int)))
        return first_carry(jnp.zeros((), jnp.result_type(int)), state, memory, Spent.nothing())

    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Take one step, or fail."""
        move = take_step(self.method, self.residuals, carry.state, carry.memory.damping, self.first)
        failure = jnp.where(move.converged, STATIONARY, jnp.where(jnp.isfinite(move.before), STALLED, NONFINITE))
        trials = move.rejected + move.accepted
        dtype = self.first.dtype
        memory = _Memory(move.damping.astype(dtype), move.used.astype(dtype), move.ratio.astype(dtype), trials)
        memory = jax.tree.map(lambda new, old: jnp.where(move.accepted, new, old), memory, carry.memory)
        products = (3 if self.method.acceleration else 1) * trials
        return Carry(
            previous=jnp.where(move.accepted, carry.clock, carry.previous),
            clock=carry.clock + move.accepted,
            state=trees.axpy(1.0, move.step, carry.state),
            memory=memory,
            steps=carry.steps + move.accepted,
            rejected=carry.rejected + move.rejected,
            spent=carry.spent.plus(Spent(jnp.ones((), products.dtype), products)),
            code=jnp.where(move.accepted, RUNNING, failure).astype(jnp.int32),
            accepted=move.accepted,
        )

    def interpolate(self, carry: Carry, clock: Real[Array, ""]) -> PyTree:  # noqa: ARG002
        """Give the state: there is nothing between two steps."""
        return carry.state

    def notes(self, carry: Carry) -> dict[str, Array]:
        """Give the last step's damping, its ratio of actual to predicted decrease, and its trials."""
        return {"damping": carry.memory.used, "ratio": carry.memory.ratio, "trials": carry.memory.trials}

    def account(self, carry: Carry) -> dict[str, Any]:  # noqa: ARG002
        return {"method": "adapted"}

    def time(self, clock: Any) -> Any:
        """The number of steps."""
        return clock


def minimize(
    problem: AbstractProblem,
    params: PyTree,
    steps: int = 200,
    tolerance: float | int = 1e-20,
    *,
    damping: float | int | None = None,
    acceleration: bool = True,
    line_search: bool = False,
    method: str = "auto",
    save_every: int = 1,
    stop: Stop | None = None,
    observe: Observe = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Minimise a squared-error cost on its whole batch by damped adapted steps.

    **Arguments:**

    - `problem`: an `fb.Problem` with `SquaredError`, or a stack of them, such as a differential equation's interior and
      boundary.
    - `params`: any pytree; leaves that are not floating-point are held constant.
    - `steps`: the most accepted steps. `tolerance`: the run stops when the cost falls below it; 0 for never.
    - `damping`: of the first trial, relative to σ_max(D)²; 0.001 by default. After that it follows the steps.
    - `acceleration`: adds the step's curvature, at the price of one more solve with the same factor and two forward
      products for each trial.
    - `line_search`: takes the best of ten step lengths from 2 to 1/128 for each trial, ten evaluations of the cost.
    - `method`: how steps are solved for. "auto" takes Cholesky factorisations of the damped Gram matrix, (N·Q)²
      numbers, or, for fewer parameters than residuals, of the damped matrix DᵀD, K² numbers; if these do not fit in
      `problem.memory_budget`, LSMR. Any method of `fb.tangent.minimum_norm` can be named.
    - `save_every`, `stop`, `observe`, `checkpoint`, `progress`, `options`: see `fb.descend`.

    **Returns:** a `Trajectory` whose times are numbers of steps; `result.code` is "cost_below", "completed" after
    `steps` steps, the name of a condition of `stop`, or

    - "stationary": no step lowers the cost by more than its rounding error, as at a minimum whose residuals are not
      zero: they are orthogonal to range D there;
    - "stalled", a failure: no step lowered the cost although one should have, however short it was made;
    - "nonfinite", a failure.

    `stats["damping"]`, `["ratio"]` and `["trials"]` hold λ, the ratio of actual to predicted decrease and the number of
    trials of the step that ended at each saved time; `stats["rejected"]` counts the trials rejected.

    **Raises:** `ParameterError` for another loss than `SquaredError`, complex parameters or a negative damping; what
    `fb.descend` raises.

    With the residuals ρ, C = ½|ρ|², and their differential D, a trial is θ + p + a,

        p = −Dᵀ(DDᵀ + λI)⁻¹ρ,    a = −½ Dᵀ(DDᵀ + λI)⁻¹ D²ρ[p, p]  where 2|a| ≤ 0.75|p|, else 0,

    Euler's step of length one along the damped adapted flow, bent along the geodesic. It is accepted if the cost falls
    by at least 0.001 of what ½|ρ + Dp|² promises; λ is halved if the ratio of the two decreases is over ¾, and raised
    by half, or more, below ¼ and after a rejected trial. Trials share D and its Gram matrix, so that a rejected one
    costs little beside a step. Costs never rise.

    Allocates the Gram matrix twice, and what `fb.tangent.gram` needs.

    **Source:** the adapted flow: Chen and Muñoz Ewald, arXiv 2408.01517; its damped steps are those of Levenberg and
    Marquardt; acceleration: Transtrum and Sethna, arXiv 1201.5885.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((1, 16, 1), "tanh", key=jax.random.key(0))
    >>> inputs = jnp.linspace(-1.0, 1.0, 8)[:, None]
    >>> run = fb.optim.minimize(fb.Problem(apply, inputs, jnp.sin(3 * inputs)), params, tolerance=1e-9)
    >>> run.result.code, bool(run.stats["steps"] < 30)
    ('cost_below', True)

    ```
    """
    options = Options() if options is None else options
    check_counts(steps=steps, save_every=save_every)
    first = check_damping(DAMPING if damping is None else damping)
    _validation.check_name("method", method, METHODS)
    if not 0 <= _validation.as_number("tolerance", tolerance) < np.inf:
        raise ParameterError(f"tolerance = {tolerance}", "a cost, not negative", "pass 0 to run for all the steps")
    params = trees.as_coordinates(params)
    check_problem(problem)
    check_squares(problem, params)
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    stop = Stop() if stop is None else stop
    if tolerance > 0:
        below = max(float(tolerance), float(stop.cost_below or 0))
        stop = dataclasses.replace(stop, cost_below=below)
    grid = np.unique(np.append(np.arange(0, int(steps) + 1, int(save_every)), int(steps)))
    check_budget(state, len(grid) + 1, options)
    record = Record(
        state,
        len(grid) + 1,
        constant=constant,
        problem=problem,
        observation=Observation(observe, problem, params),
        options=options,
    )
    stepper = AdaptedStepper(
        Method(acceleration, line_search), ProblemResiduals(problem, constant, method), jnp.asarray(first)
    )
    return drive(
        stepper,
        bind(stop, problem, constant),
        state,
        grid,
        int(steps),
        record,
        wall_seconds=stop.wall_seconds,
        store=open_store(checkpoint, record),
        progress=progress,
        options=options,
        explain=_explain,
    )


def _explain(state: PyTree, time: float, code: str) -> tuple[str, str]:  # noqa: ARG001
    detail = (
        "no step lowers the cost by more than rounding: the residuals are orthogonal to the range of the differential, "
        "or at the rounding level of the outputs"
    )
    return code, detail if code == "stationary" else ""


def check_damping(damping: Any) -> Any:
    """Check a relative damping, unless it is traced."""
    if not trees.is_traced(damping) and not 0 < _validation.as_number("damping", damping) < np.inf:
        raise ParameterError(
            f"damping = {damping}",
            "a positive number, relative to the largest squared singular value of the differential",
            "pass a small one, such as 1e-8, for nearly undamped steps",
        )
    return damping


def check_squares(problem: AbstractProblem, params: PyTree) -> None:
    """Check that a problem's cost is a sum of squares, and its parameters real."""
    problem.check(params)
    Differential(problem, params)
    eqx.filter_eval_shape(problem.residuals, params)
