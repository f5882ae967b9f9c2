"""Adaptive Runge–Kutta steps of a vector field, with diffrax's methods and step-size controller."""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from .. import trees
from ..errors import UnknownNameError
from ..trees import PyTree
from ._stepper import NONFINITE, RUNNING, STEP_UNDERFLOW, AbstractStepper, Carry, first_carry

METHODS: dict[str, Callable[[], diffrax.AbstractERK]] = {
    "bosh3": diffrax.Bosh3,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "tsit5": diffrax.Tsit5,
}


def choose_method(method: str | diffrax.AbstractERK, rtol: float) -> diffrax.AbstractERK:
    """Turn a name into a method; "auto" takes Tsit5 down to rtol 1e-9 and Dopri8 below.

    **Raises:** `UnknownNameError` for other names, and for methods without an error estimate.
    """
    if isinstance(method, diffrax.AbstractERK):
        return method
    if method == "auto":
        return diffrax.Tsit5() if rtol >= 1e-9 else diffrax.Dopri8()
    if method in METHODS:
        return METHODS[method]()
    raise UnknownNameError(
        f"method = {method!r}",
        f"one of {', '.join(map(repr, ['auto', *METHODS]))}, or an explicit Runge-Kutta method of diffrax",
        "leave it out to let the solver choose",
    )


def evaluations_per_step(method: diffrax.AbstractERK) -> int:
    """Count the field evaluations of one step: the stages, less the one that a first-same-as-last method saves."""
    tableau = cast("diffrax.ButcherTableau", method.tableau)
    return tableau.num_stages - int(tableau.fsal)


def _first_stage(solver_state: PyTree) -> Array:
    """Count the first stage where a first-same-as-last method has none saved: until its first accepted step."""
    return jnp.asarray(0 if solver_state is None else solver_state[0], int)


class AdaptiveStepper(AbstractStepper):
    """Steps of θ' = field(t, θ) whose size is chosen so that the weighted error per step stays below one.

    The error of a step is weighted by atol + rtol·|θ| and its root mean square taken over all coordinates; an integral
    controller chooses the next step (diffrax's `PIDController`, its exponent lowered to 0.7, which spends a tenth fewer
    gradients on stiff flows). A step that turns non-finite counts as an infinite error, and is tried again with a fifth
    of its size until the time cannot be told apart.

    The state is carried in one type, the widest of its leaves and at least float32, as is the time; the field and
    everybody else see the leaves in their own types (`dtypes`).
    """

    field: Callable[[Any, PyTree], PyTree]
    method: diffrax.AbstractERK
    rtol: Real[Array, ""]
    atol: Real[Array, ""]
    start: Real[Array, ""]
    first_step: Real[Array, ""] | None
    dtypes: tuple[Any, ...] = eqx.field(static=True)

    def _terms(self) -> "diffrax.ODETerm[Any]":
        def velocity(t: Any, y: PyTree, args: Any) -> PyTree:  # noqa: ARG001
            return self._carried(self.field(t, self.visible(y)))

        return diffrax.ODETerm(velocity)

    def _carried(self, state: PyTree) -> PyTree:
        real = self.start.dtype
        wide = jnp.result_type(real, jnp.complex64)
        return jax.tree.map(lambda x: x.astype(wide if jnp.iscomplexobj(x) else real), state)

    def visible(self, state: PyTree) -> PyTree:
        """Cast the leaves to their own types."""
        leaves, structure = jax.tree.flatten(state)
        return jax.tree.unflatten(structure, [x.astype(t) for x, t in zip(leaves, self.dtypes, strict=True)])

    def _controller(self) -> diffrax.PIDController:
        return diffrax.PIDController(rtol=self.rtol, atol=self.atol, icoeff=0.7, safety=0.8)

    @eqx.filter_jit
    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:
        """Choose the first step, which costs two evaluations."""
        terms, clock, state = self._terms(), self.start, self._carried(state)
        end = end.astype(clock.dtype)
        proposal, control = self._controller().init(
            terms, clock, end, state, self.first_step, None, self.method.func, self.method.order(terms)
        )
        proposal = jnp.where(jnp.isfinite(proposal) & (proposal > clock), proposal, clock + 1e-6 * (end - clock))
        solver_state = self.method.init(terms, clock, proposal, state, None)
        inside = state
        if self._interpolates():
            shapes = jax.eval_shape(lambda s, m: self._step(clock, proposal, s, m)[2], state, solver_state)
            inside = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        memory = jax.tree.map(jnp.asarray, (proposal, control, solver_state, inside))
        return first_carry(clock, state, memory, (2 if self.first_step is None else 0) * self._gradients)

    def _step(self, t0: Array, t1: Array, state: PyTree, solver_state: PyTree) -> tuple[Any, ...]:
        return self.method.step(self._terms(), t0, t1, state, None, solver_state, jnp.asarray(False))

    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:
        """Try one Runge–Kutta step; accept it or shrink it."""
        proposal, control, solver_state, _ = carry.memory
        # A last step that would leave a sliver behind is stretched to the end.
        sliver = 1e-10 * jnp.abs(end - carry.clock)
        target = jnp.where(proposal >= end - sliver, end, proposal)
        new, error, inside, new_solver_state, _ = self._step(carry.clock, target, carry.state, solver_state)
        finite = trees.all_finite(new) & trees.all_finite(error)
        error = jax.tree.map(lambda e: jnp.where(finite, e, jnp.inf), error)
        safe = jax.tree.map(lambda n, s: jnp.where(finite, n, s), new, carry.state)
        order = jnp.asarray(self.method.order(self._terms()))
        accepted, _, next_target, _, new_control, _ = self._controller().adapt_step_size(
            carry.clock, target, carry.state, safe, None, error, order, control
        )
        keep = jnp.asarray(accepted)
        clock = jnp.where(keep, target, carry.clock)
        resolution = 4 * jnp.finfo(clock.dtype).eps * jnp.maximum(jnp.abs(clock), jnp.abs(end) * 1e-3)
        stuck = jnp.where(keep, target <= carry.clock, next_target - clock <= resolution)
        code = jnp.where(stuck, jnp.where(finite, STEP_UNDERFLOW, NONFINITE), RUNNING)

        def choose(a: PyTree, b: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: jnp.where(keep, x, y), a, b)

        memory = (
            next_target,
            jax.tree.map(jnp.asarray, new_control),
            choose(new_solver_state, solver_state),
            # No saved time is due while a step is tried, so a rejected one may leave its interior behind.
            inside if self._interpolates() else carry.state,
        )
        evaluations = evaluations_per_step(self.method) + _first_stage(solver_state)
        return Carry(
            previous=jnp.where(keep, carry.clock, carry.previous),
            clock=clock,
            state=choose(new, carry.state),
            memory=memory,
            steps=carry.steps + keep,
            rejected=carry.rejected + ~keep,
            evaluations=carry.evaluations + evaluations * self._gradients,
            code=code.astype(jnp.int32),
            accepted=keep,
        )

    def interpolate(self, carry: Carry, clock: Real[Array, ""]) -> PyTree:
        """Evaluate the method's continuous extension, or step to the clock from where the last step began."""
        if self._interpolates():
            dense = self.method.interpolation_cls(t0=carry.previous, t1=carry.clock, **carry.memory[3])
            return dense.evaluate(clock)
        before = carry.memory[3]
        return self._step(
            carry.previous, clock, before, self.method.init(self._terms(), carry.previous, clock, before, None)
        )[0]

    def _interpolates(self) -> bool:
        # The continuous extension of Dopri8 in diffrax 0.7 is 10⁴ times less accurate than its steps, which no error
        # control sees (measured on a stiff linear field); those of the lower orders stay below the tolerance.
        return isinstance(self.method, diffrax.Tsit5 | diffrax.Dopri5 | diffrax.Bosh3)

    @property
    def evaluations_per_save(self) -> int:
        """Count the gradients that a saved time inside a step costs: none, or all stages of one step."""
        stages = evaluations_per_step(self.method) + int(cast("diffrax.ButcherTableau", self.method.tableau).fsal)
        return 0 if self._interpolates() else stages * self._gradients

    @property
    def _gradients(self) -> int:
        return int(getattr(self.field, "gradient_evaluations", 1))

    def time(self, clock: Any) -> Any:
        """The clock is the time."""
        return clock
