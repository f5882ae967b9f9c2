"""Adaptive Runge–Kutta steps of a vector field, with diffrax's step-size controller."""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Real, Shaped

from .. import trees
from ..errors import UnknownNameError
from ..trees import PyTree
from ._method import AbstractMethod, Classical, Spent
from ._rkc2 import RKC2
from ._rock4 import ROCK4
from ._stepper import NONFINITE, RUNNING, STEP_UNDERFLOW, AbstractStepper, Carry, first_carry
from ._switching import Switching

METHODS: dict[str, Callable[[], diffrax.AbstractERK | AbstractMethod]] = {
    "bosh3": diffrax.Bosh3,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "rkc2": RKC2,
    "rock4": ROCK4,
    "tsit5": diffrax.Tsit5,
}


def choose_method(method: Any, rtol: float) -> AbstractMethod:
    """Turn a name or a method of diffrax into a method that the stepper can drive.

    "auto" changes from one to another as the stiffness asks: Tsit5 and RKC2 down to rtol 1e-3; Tsit5, ROCK4 and RKC2
    down to 1e-6; Dopri8, ROCK4 and RKC2 below.

    **Raises:** `UnknownNameError` for other names, and for methods without an error estimate.
    """
    if method == "auto":
        classical = diffrax.Tsit5() if rtol >= 1e-6 else diffrax.Dopri8()
        stabilised = (RKC2(),) if rtol >= 1e-3 else (ROCK4(), RKC2())
        return Switching((Classical(classical), *stabilised))
    if isinstance(method, str) and method in METHODS:
        method = METHODS[method]()
    if isinstance(method, AbstractMethod):
        return method
    if isinstance(method, diffrax.AbstractERK):
        return Classical(method)
    raise UnknownNameError(
        f"method = {method!r}",
        f"one of {', '.join(map(repr, ['auto', *METHODS]))}, or an explicit Runge-Kutta method of diffrax",
        "leave it out to let the solver choose",
    )


class AdaptiveStepper(AbstractStepper):
    """Steps of θ' = field(t, θ) whose size is chosen so that the weighted error per step stays below one.

    The error of a step is weighted by atol + rtol·|θ| and its root mean square taken over all coordinates; diffrax's
    `PIDController` chooses the next step with the constants that the method gives. A step that turns non-finite counts
    as an infinite error, and is tried again with a fifth of its size until the time cannot be told apart.

    The state is carried as one vector of one type, the widest of its leaves and at least float32, as is the time: a
    method's many sums then compile in a fraction of the time. The field and everybody else see the leaves as they are.
    """

    field: Callable[[Any, PyTree], PyTree]
    method: AbstractMethod
    rtol: Real[Array, ""]
    atol: Real[Array, ""]
    start: Real[Array, ""]
    first_step: Real[Array, ""] | None
    shapes: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def _terms(self) -> "diffrax.ODETerm[Any]":
        def velocity(t: Any, y: Array, args: Any) -> Array:  # noqa: ARG001
            return self._carried(self.field(t, self.visible(y)))

        return diffrax.ODETerm(velocity)

    def _carried(self, state: PyTree) -> Shaped[Array, " k"]:
        """Join the leaves in one vector."""
        wide = jnp.result_type(self.start.dtype, *(jnp.complex64 for s in self.shapes if s.dtype.kind == "c"))
        return jnp.concatenate([leaf.astype(wide).ravel() for leaf in jax.tree.leaves(state)])

    def visible(self, state: Shaped[Array, " k"]) -> PyTree:
        """Cut the vector into leaves of their own shapes and types."""
        ends = np.cumsum([math.prod(s.shape) for s in self.shapes])
        parts = jnp.split(state, ends[:-1])
        leaves = [
            (part if s.dtype.kind == "c" else jnp.real(part)).reshape(s.shape).astype(s.dtype)
            for part, s in zip(parts, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def _controller(self, solver_state: PyTree) -> tuple[diffrax.PIDController, Any]:
        control = self.method.control(solver_state)
        controller = diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol,
            pcoeff=control.pcoeff,
            icoeff=control.icoeff,
            safety=control.safety,
            factormax=control.factormax,
        )
        return controller, control.order

    @eqx.filter_jit
    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:
        """Choose the first step, which costs two evaluations; if it is given, one."""
        clock, state = self.start, self._carried(state)
        slope, first, evaluations = self._first_step(clock, end.astype(clock.dtype), state)
        solver_state = self.method.begin(clock, state, slope)
        # The controller's own state; it has no say in the first step.
        controller, order = self._controller(solver_state)
        proposal, control = controller.init(
            self._terms(), clock, end, state, first, None, self.method.func, jnp.asarray(order, clock.dtype)
        )
        inside = (state, solver_state)
        if self.interpolates:
            shapes = jax.eval_shape(lambda s, m: self._step(clock, end, s, m)[2], state, solver_state)
            inside = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        memory = jax.tree.map(jnp.asarray, (proposal, control, solver_state, inside))
        spent = Spent.nothing()._replace(evaluations=jnp.asarray(evaluations, jnp.result_type(int)))
        return first_carry(clock, state, memory, self._priced(spent))

    def _first_step(self, start: Array, end: Array, state: PyTree) -> tuple[PyTree, Array, int]:
        """Choose a step from the field's size and its change along an Euler step a hundredth as long.

        Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, section II.4.
        """
        scale = jax.tree.map(lambda y: self.atol + self.rtol * jnp.abs(y), state)

        def size(tree: PyTree) -> Array:
            parts = [jnp.sum(jnp.abs(x / s) ** 2) for x, s in zip(*map(jax.tree.leaves, (tree, scale)), strict=True)]
            return jnp.sqrt(sum(parts[1:], parts[0]) / trees.size(tree)).astype(start.dtype)

        zeros = jax.tree.map(jnp.zeros_like, state)
        evaluate = self._terms().vf
        if self.first_step is not None:
            return evaluate(start, state, None), self.first_step.astype(start.dtype), 1

        def probe(i: Array, carry: tuple[Array, PyTree, PyTree]) -> tuple[Array, PyTree, PyTree]:
            euler, first, second = carry
            moved = jax.tree.map(lambda y, f: y + (euler * f).astype(y.dtype), state, first)
            second = evaluate(start + euler, moved, None)
            first = jax.tree.map(lambda f, s: jnp.where(i == 0, s, f), first, second)
            length, slope = size(state), size(first)
            short = (length < 1e-5) | (slope < 1e-5)
            guess = jnp.where(short, 1e-6, 0.01 * length / jnp.where(short, 1, slope))
            return jnp.minimum(guess, end - start), first, second

        euler, first, second = jax.lax.fori_loop(0, 2, probe, (jnp.zeros_like(start), zeros, zeros))
        change = size(trees.subtract(second, first)) / euler
        steepest = jnp.maximum(size(first), change)
        order = self.method.control(self.method.begin(start, state, first)).order
        guess = jnp.where(
            steepest <= 1e-15, jnp.maximum(1e-6, 1e-3 * euler), (0.01 / jnp.maximum(steepest, 1e-30)) ** (1 / order)
        )
        step = jnp.minimum(jnp.minimum(100 * euler, guess), end - start)
        step = jnp.where(jnp.isfinite(step) & (start + step > start), step, 1e-6 * (end - start))
        return first, step.astype(start.dtype), 2

    def _priced(self, spent: Spent) -> Spent:
        """Turn evaluations of the field into gradients, and its Jacobian–vector products into those of a gradient."""
        gradients = int(getattr(self.field, "gradient_evaluations", 1))
        return Spent(spent.evaluations * gradients, spent.products * gradients)

    def _step(self, t0: Array, t1: Array, state: PyTree, solver_state: PyTree) -> tuple[Any, ...]:
        return self.method.step(self._terms(), t0, t1, state, None, solver_state, jnp.asarray(False))

    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:
        """Try one Runge–Kutta step; accept it or shrink it."""
        return self.step_within(carry, end, carry.clock, jnp.asarray(False))[0]

    def step_within(
        self, carry: Carry, end: Real[Array, ""], clock: Real[Array, ""], within: Bool[Array, ""]
    ) -> tuple[Carry, PyTree]:
        """Try one Runge–Kutta step, or repeat the last one as far as a clock within it."""
        proposal, control, solver_state, inside = carry.memory
        proposal = jnp.minimum(proposal, carry.clock + self.method.longest_step(solver_state))
        # A last step that would leave a sliver behind is stretched to the end.
        sliver = 1e-10 * jnp.abs(end - carry.clock)
        target = jnp.where(proposal >= end - sliver, end, proposal).astype(carry.clock.dtype)
        tried = (carry.clock, target, carry.state, solver_state)
        repeated = tried if self.interpolates else (carry.previous, clock, *inside)
        begun = jax.tree.map(lambda r, t: jnp.where(within, r, t), repeated, tried)
        new, error, dense, new_solver_state, _ = self._step(*begun)
        spent = carry.spent.plus(self._priced(new_solver_state.spent.less(begun[3].spent)))
        finite = trees.all_finite(new) & trees.all_finite(error)
        error = jax.tree.map(lambda e: jnp.where(finite, e, jnp.inf), error)
        safe = jax.tree.map(lambda n, s: jnp.where(finite, n, s), new, carry.state)
        controller, order = self._controller(solver_state)
        accepted, _, next_target, _, new_control, _ = controller.adapt_step_size(
            carry.clock, target, carry.state, safe, None, error, jnp.asarray(order, carry.clock.dtype), control
        )
        keep = jnp.asarray(accepted)
        after = jnp.where(keep, target, carry.clock)
        resolution = 4 * jnp.finfo(after.dtype).eps * jnp.maximum(jnp.abs(after), jnp.abs(end) * 1e-3)
        stuck = jnp.where(keep, target <= carry.clock, next_target - after <= resolution)
        code = jnp.where(stuck, jnp.where(finite, STEP_UNDERFLOW, NONFINITE), RUNNING)

        def choose(a: PyTree, b: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: jnp.where(keep, x, y), a, b)

        memory = (
            jnp.asarray(next_target, after.dtype),
            jax.tree.map(jnp.asarray, new_control),
            choose(new_solver_state, self.method.after_rejection(solver_state, new_solver_state)),
            # No saved time is due while a step is tried, so a rejected one may leave its interior behind.
            dense if self.interpolates else (carry.state, solver_state),
        )
        stepped = Carry(
            previous=jnp.where(keep, carry.clock, carry.previous),
            clock=after,
            state=choose(new, carry.state),
            memory=memory,
            steps=carry.steps + keep,
            rejected=carry.rejected + ~keep,
            spent=spent,
            code=code.astype(jnp.int32),
            accepted=keep,
        )
        stayed = eqx.tree_at(lambda c: c.spent, carry, spent)
        return jax.tree.map(lambda a, b: jnp.where(within, a, b), stayed, stepped), new

    @property
    def interpolates(self) -> bool:
        """Whether the method's continuous extension is as accurate as its steps."""
        return self.method.interpolates

    def interpolate(self, carry: Carry, clock: Real[Array, ""]) -> PyTree:
        """Evaluate the method's continuous extension."""
        return self.method.interpolate(carry.previous, carry.clock, carry.memory[3], clock)

    def notes(self, carry: Carry) -> dict[str, Array]:
        """Give what the method notes at each saved time."""
        return self.method.notes(carry.memory[2])

    def account(self, carry: Carry) -> dict[str, Any]:
        """Tell which method took how many steps."""
        return self.method.account(carry.memory[2])

    def time(self, clock: Any) -> Any:
        """The clock is the time."""
        return clock
