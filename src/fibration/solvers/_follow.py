"""`follow`: parameters whose outputs stay on a given path, by predictor and corrector."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from .. import trees
from .._validation import check_name
from ..errors import ParameterError, StepSizeError
from ..flows import AdaptedFlow
from ..flows._path import decay, flat_path, rates_of
from ..flows._smoothness import kinks
from ..problem import AbstractProblem
from ..tangent._diagnosis import METHODS
from ..tangent._differential import Differential
from ..tangent._minimum_norm import factorize, fits
from ..trees import PyTree
from ._checkpoint import Checkpoint
from ._driver import Explanation, drive
from ._observe import Observation, Observe
from ._options import Options, ProgressCallback
from ._record import Record
from ._solve import check_problem, check_span, open_store, save_times
from ._stepper import NONFINITE, RUNNING, STEP_UNDERFLOW, AbstractStepper, Carry, Spent, first_carry
from ._stop import Stop, bind
from ._trajectory import Trajectory

ITERATIONS = 20  # of Newton's method for one step
HALVINGS = 8  # of one Newton step
PIECES = 6  # sets of kinks that one step takes account of
SAMPLE = 0.125  # of a step, within which kinks are looked for
JUMP = 1e-3  # of D's own size, by which D at least jumps across a kink
FLOOR = 32  # rounding units of the outputs, below which a distance says nothing
SHORTEST = 1e-6  # of the longest step


def follow(
    problem: AbstractProblem,
    params: PyTree,
    t1: float,
    *,
    t0: float = 0.0,
    step: float | None = None,
    path: Callable[[Any], Any] | None = None,
    tolerance: float | None = None,
    method: str = "auto",
    times: Any = None,
    stop: Stop | None = None,
    observe: Observe = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Follow a path of outputs: at every step Newton's method θ ← θ + D⁺(γ(t) − x(θ)) brings the outputs back to it.

    The law of the outputs holds to the tolerance however long the steps are, and for networks with kinks too, along
    which a flow would slide. The parameters are near those of the flow θ' = D⁺γ̇, at a distance of the order of the
    step. Newton steps that do not bring the outputs nearer are halved; where that is no help, the step in time is. Near
    kinks, where Newton steps would jump to and fro, steps lead along them (found from some Jacobians, if these fit in
    the problem's memory budget).

    **Arguments:**

    - `step`: the longest step in time; N/2 by default (over the largest weight), and a fiftieth of the time span for
      a path of your own.
    - `path`: t -> γ(t), shaped like `problem.outputs`, (N, Q); by default the outputs along the adapted flow,
      γ(t) = y + e^{−wᵢ(t−t0)/N}(x₀ − y), for `SquaredError`.
    - `tolerance`: the largest distance from the path, in units of how far the outputs move in the step; ε^(2/3) by
      default, ε the machine epsilon. Below 32ε|x| a distance counts as zero.
    - `method`: how the solves are done; see `tangent.minimum_norm`.
    - `times`, `stop`, `observe`, `checkpoint`, `progress`, `options`: see `integrate`; states at saved times are on the
      path too.

    **Returns:** a `Trajectory`; `stats["gradient_evaluations"]` counts Newton steps. A path that cannot be followed
    further, because the differential loses rank or parameters run off to infinity, ends with the result "rank_loss" or
    "blow_up", and if neither is seen with "step_underflow".

    **Raises:** what `integrate` raises.

    **Source:** derived; predictor–corrector continuation, with the outputs of Chen and Muñoz Ewald, arXiv 2408.01517.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: jax.nn.relu(w * x) + 0.1 * w, jnp.array([1.0]), jnp.array([0.0]))
    >>> run = fb.follow(problem, jnp.array(1.0), t1=2.0, times=[0.0, 1.0, 2.0])
    >>> print((run.costs / run.costs[0]).round(3))  # e^{−2t}
    [1.    0.135 0.018]

    ```
    """
    options = Options() if options is None else options
    check_name("method", method, METHODS)
    params = trees.as_coordinates(params)
    check_problem(problem)
    problem.check(params)
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    flow = AdaptedFlow(damping=0.0, method=method).bound(problem, params)[0]
    assert flow.start is not None  # noqa: S101 - it is bound
    first = flow.start.outputs
    dtype = jnp.finfo(jnp.result_type(jnp.float32, first.dtype)).dtype
    start, end = check_span(t0, t1, dtype)
    followed = decay(problem, first, start) if path is None else flat_path(problem, path)
    shape = jax.eval_shape(followed, jnp.asarray(start, first.dtype)).shape
    if shape != first.shape:
        raise ParameterError(f"the path has shape {shape}", f"shape {first.shape}", "shape it like `problem.outputs`")
    usual = (end - start) / 50 if path is not None else 0.5 / float(jnp.max(rates_of(problem)))
    step = usual if step is None else float(step)
    if not 0 < step < float("inf"):
        raise StepSizeError(f"step = {step}", "a positive, finite step", "leave it out")
    tolerance = float(jnp.finfo(first.dtype).eps ** (2 / 3) if tolerance is None else tolerance)
    if not tolerance > 0:
        raise StepSizeError(f"tolerance = {tolerance}", "a positive number", "leave it out")
    stepper = PathStepper(
        problem,
        constant,
        followed,
        jnp.asarray(start, dtype),
        jnp.asarray(min(step, end - start), dtype),
        jnp.asarray(tolerance, first.dtype),
        method,
        bool(kinks(problem, params)) and _jacobians_fit(problem, params),
    )
    grid = save_times(times, start, end)
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
        bind(stop, problem, constant),
        state,
        grid,
        end,
        record,
        wall_seconds=None if stop is None else stop.wall_seconds,
        store=open_store(checkpoint, record),
        progress=progress,
        options=options,
        explain=_explanation(flow, problem, params, constant),
    )


def _jacobians_fit(problem: AbstractProblem, params: PyTree) -> bool:
    differential = Differential(problem, params)
    return fits(differential, 3 * PIECES * math.prod(differential.shape))


def _explanation(flow: Any, problem: AbstractProblem, params: PyTree, constant: PyTree) -> Explanation:
    def told(state: PyTree, time: float, code: str) -> tuple[str, str]:
        if code not in ("step_underflow", "nonfinite"):
            return code, ""
        new, detail = flow.explain(problem, params, eqx.combine(state, constant), time, code)
        if new != code:
            return new, detail
        return (
            code,
            "no parameters near by were found whose outputs are on the path; it may leave what the network can do",
        )

    return told


class PathStepper(AbstractStepper):
    """Steps along a path of outputs; the memory holds the next step's length, and where the last step began."""

    problem: AbstractProblem
    constant: PyTree
    path: Callable[[Any], Any]
    start: Real[Array, ""]
    longest: Real[Array, ""]
    tolerance: Float[Array, ""]
    method: str = eqx.field(static=True)
    kinked: bool = eqx.field(static=True)

    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Start; costs nothing."""
        return first_carry(self.start, state, (self.longest, state), Spent.nothing())

    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:
        """Try one step."""
        return self.step_within(carry, end, carry.clock, jnp.asarray(False))[0]

    def step_within(
        self, carry: Carry, end: Real[Array, ""], clock: Real[Array, ""], within: Bool[Array, ""]
    ) -> tuple[Carry, PyTree]:
        """Try one step, or find the state at a clock within the last one."""
        length, origin = carry.memory
        target = jnp.where(carry.clock + length >= end - 1e-3 * length, end, carry.clock + length)
        begun = jax.tree.map(lambda o, s: jnp.where(within, o, s), origin, carry.state)
        new, found, finite, iterations = self._newton(begun, jnp.where(within, clock, target))
        spent = carry.spent.plus(Spent.nothing()._replace(evaluations=iterations))
        after = jnp.where(found, target, carry.clock).astype(carry.clock.dtype)
        longer = jnp.where(iterations <= 4, 2 * length, length)
        length = jnp.minimum(jnp.where(found, longer, length / 2), self.longest).astype(length.dtype)
        stuck = ~found & (length < SHORTEST * self.longest)
        failure = jnp.where(finite, STEP_UNDERFLOW, NONFINITE)
        stepped = Carry(
            previous=jnp.where(found, carry.clock, carry.previous),
            clock=after,
            state=jax.tree.map(lambda n, s: jnp.where(found, n, s), new, carry.state),
            memory=(length, jax.tree.map(lambda s, o: jnp.where(found, s, o), carry.state, origin)),
            steps=carry.steps + found,
            rejected=carry.rejected + ~found,
            spent=spent,
            code=jnp.where(stuck, failure, RUNNING).astype(jnp.int32),
            accepted=found,
        )
        failed = jnp.where(found, carry.code, failure).astype(jnp.int32)
        stayed = eqx.tree_at(lambda c: (c.spent, c.code), carry, (spent, failed))
        return jax.tree.map(lambda a, b: jnp.where(within, a, b), stayed, stepped), new

    def _newton(self, state: PyTree, time: Real[Array, ""]) -> tuple[PyTree, Array, Array, Array]:
        """Find the state on the path at a time: it, whether it is there and finite, and the number of Newton steps."""

        def gap(state: PyTree) -> Array:
            return goal - self._differential(state).outputs(state)

        def unfinished(carry: tuple[Any, ...]) -> Array:
            _, rest, count, better = carry
            return better & (count < ITERATIONS) & (jnp.linalg.norm(rest) > bound)

        def descended(state: PyTree, size: Array, direction: PyTree) -> tuple[PyTree, Array, Array]:
            """Halve a step until it brings the outputs nearer: the state, its gap, and whether it does."""

            def shorter(trial: tuple[Any, ...]) -> Array:
                part, _, left, tries = trial
                # Comparisons with NaN are false: a step to it is shortened too.
                return ~(jnp.linalg.norm(left) <= (1 - part / 4) * size) & (tries < HALVINGS)

            def shorten(trial: tuple[Any, ...]) -> tuple[Any, ...]:
                part, _, _, tries = trial
                moved = trees.axpy(part / 2, direction, state)
                return part / 2, moved, gap(moved), tries + 1

            two = jnp.asarray(2.0, size.dtype)
            trial = (two, state, jnp.full_like(goal, jnp.nan), jnp.zeros((), jnp.int32))
            part, moved, left, _ = jax.lax.while_loop(shorter, shorten, trial)
            return moved, left, jnp.linalg.norm(left) <= (1 - part / 4) * size

        def correct(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            state, rest, count, _ = carry
            direction = factorize(self._differential(state), method=self.method).solve(rest)
            size = jnp.linalg.norm(rest)
            attempt = functools.partial(descended, state, size)
            found = attempt(direction)
            halved = jnp.linalg.norm(found[1]) <= size / 2
            if self.kinked:
                found = jax.lax.cond(
                    halved, lambda: found, lambda: self._along_kinks(state, direction, rest, found, attempt)
                )
            moved, left, better = found
            keep = [
                jax.tree.map(lambda n, o: jnp.where(better, n, o), *pair) for pair in ((moved, state), (left, rest))
            ]
            return keep[0], keep[1], count + 1, better

        goal = self.path(time.astype(self.tolerance.dtype)).astype(self.tolerance.dtype)
        rest = gap(state)
        eps = jnp.finfo(rest.dtype).eps
        bound = self.tolerance * jnp.linalg.norm(rest) + FLOOR * eps * jnp.linalg.norm(goal - rest)
        zero = jnp.zeros((), jnp.result_type(int))
        begin = (state, rest, zero, jnp.asarray(True))
        state, rest, count, _ = jax.lax.while_loop(unfinished, correct, begin)
        return state, jnp.linalg.norm(rest) <= bound, jnp.all(jnp.isfinite(rest)), count

    def _differential(self, state: PyTree) -> Differential:
        return Differential(self.problem, eqx.combine(state, self.constant))

    def _along_kinks(
        self,
        state: PyTree,
        direction: PyTree,
        rest: Float[Array, " M"],
        found: tuple[PyTree, Array, Array],
        attempt: Callable[[PyTree], tuple[PyTree, Array, Array]],
    ) -> tuple[PyTree, Array, Array]:
        """Try the shortest steps along the kinks nearby, which Newton steps only jump to and fro across.

        Where a step crosses one, the differentials before and after differ by multiples of the gradient of the input of
        the unit that switches. Steps orthogonal to these keep it where it is. Gives the best of all attempts.
        """
        here = self._differential(state)
        m, k = here.shape
        matrix = here.jacobian()
        dtype, size = matrix.dtype, jnp.linalg.norm(rest)

        def unfinished(carry: tuple[Any, ...]) -> Array:
            return ~(jnp.linalg.norm(carry[-1][1]) <= size / 2) & (carry[0] < PIECES)

        def extend(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            number, jumps, direction, best = carry
            beyond = self._differential(trees.axpy(SAMPLE, direction, state)).jacobian()
            jumps = jumps.at[number].set(beyond - matrix)
            _, sizes, normals = jnp.linalg.svd(jumps.reshape(-1, k), full_matrices=False)
            # What is smaller is the smooth change on the way.
            normals = jnp.where(sizes[:, None] > JUMP * jnp.linalg.norm(matrix), normals, 0)
            wanted = jnp.concatenate([rest.astype(dtype), jnp.zeros(len(normals), dtype)])
            turned = here.unravel(jnp.linalg.lstsq(jnp.concatenate([matrix, normals]), wanted)[0])
            new = attempt(turned)
            nearer = new[2] & ~(jnp.linalg.norm(new[1]) >= jnp.linalg.norm(best[1]))
            best = jax.tree.map(lambda n, b: jnp.where(nearer, n, b), new, best)
            same = trees.norm(trees.subtract(turned, direction)) <= 1e-6 * trees.norm(turned)
            return jnp.where(same, PIECES, number + 1), jumps, turned, best

        begin = (jnp.zeros((), jnp.int32), jnp.zeros((PIECES, m, k), dtype), direction, found)
        return jax.lax.while_loop(unfinished, extend, begin)[-1]

    def interpolate(self, carry: Carry, clock: Real[Array, ""]) -> PyTree:
        """Never asked for: see `step_within`."""
        raise NotImplementedError(carry, clock)

    @property
    def interpolates(self) -> bool:
        return False

    def account(self, carry: Carry) -> dict[str, Any]:  # noqa: ARG002
        return {"method": "path following"}

    def time(self, clock: Any) -> Any:
        """The clock is the time."""
        return clock
