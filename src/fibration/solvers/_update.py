"""Fixed steps: Euler's method on a flow, and any optax optimiser."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Real

from .. import trees
from ..problem import AbstractProblem, Problem, StackedProblem
from ..trees import PyTree
from ._stepper import NONFINITE, RUNNING, AbstractStepper, Carry, Spent, first_carry


class _UpdateStepper(AbstractStepper):
    """A process whose clock counts its steps, and whose states are only ever asked for at whole steps."""

    def interpolate(self, carry: Carry, clock: Real[Array, ""]) -> PyTree:  # noqa: ARG002
        """Give the state: a fixed step has nothing in between."""
        return carry.state

    def _advance(self, carry: Carry, state: PyTree, memory: PyTree, evaluations: int) -> Carry:
        """Accept a new state if it is finite; otherwise keep the last finite one and fail."""
        finite = trees.all_finite(state)

        def choose(a: PyTree, b: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: jnp.where(finite, x, y), a, b)

        return Carry(
            previous=jnp.where(finite, carry.clock, carry.previous),
            clock=carry.clock + finite,
            state=choose(state, carry.state),
            memory=choose(memory, carry.memory),
            steps=carry.steps + finite,
            rejected=carry.rejected,
            spent=Spent(carry.spent.evaluations + evaluations, carry.spent.products),
            code=jnp.where(finite, RUNNING, NONFINITE).astype(jnp.int32),
            accepted=finite,
        )


class EulerStepper(_UpdateStepper):
    """θ ← θ + η field(kη, θ)."""

    field: Callable[[Any, PyTree], PyTree]
    step_size: Real[Array, ""]

    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Start at step 0; costs nothing."""
        return first_carry(jnp.zeros((), jnp.result_type(int)), state, None, Spent.nothing())

    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Take one Euler step: one evaluation of the field."""
        velocity = self.field(self.time(carry.clock), carry.state)
        gradients = int(getattr(self.field, "gradient_evaluations", 1))
        return self._advance(carry, trees.axpy(self.step_size, velocity, carry.state), None, gradients)

    def account(self, carry: Carry) -> dict[str, Any]:  # noqa: ARG002
        return {"method": "Euler"}

    def time(self, clock: Any) -> Any:
        """After k steps, the time kη."""
        return clock * self.step_size


class _Closed(eqx.Module):
    """An `apply` of the floating-point leaves alone."""

    apply: Callable[..., Any]
    constant: PyTree

    def __call__(self, state: PyTree, x: Array) -> Array:
        return self.apply(eqx.combine(state, self.constant), x)


def _closed(problem: AbstractProblem, constant: PyTree) -> AbstractProblem:
    """Close a problem over the constant leaves of its parameters."""
    if not jax.tree.leaves(constant):
        return problem
    if isinstance(problem, StackedProblem):
        return StackedProblem(tuple(_closed(block, constant) for block in problem.problems))
    if isinstance(problem, Problem):
        return eqx.tree_at(lambda p: p.apply, problem, _Closed(problem.apply, constant))
    return problem


class OptaxStepper(_UpdateStepper):
    """One update of an optax optimiser on the cost of a problem."""

    problem: AbstractProblem
    constant: PyTree
    optimiser: optax.GradientTransformationExtraArgs

    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Start at step 0 with the optimiser's first state."""
        memory = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, self.optimiser.init(state)
        )
        return first_carry(jnp.zeros((), jnp.result_type(int)), state, memory, Spent.nothing())

    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:  # noqa: ARG002
        """Take one update: one gradient, and whatever a line search of the optimiser's own spends (not counted)."""

        # optax's line searches insist that the cost takes every extra argument.
        def cost(state: PyTree, problem: Any = None) -> Array:  # noqa: ARG001
            return self.problem.cost(eqx.combine(state, self.constant))

        value, gradient = self.problem.cost_and_gradient(eqx.combine(carry.state, self.constant))
        # optax takes JAX's own gradient, the conjugate of ours for complex parameters.
        gradient = jax.tree.map(jnp.conj, eqx.filter(gradient, eqx.is_inexact_array))
        # An optimiser that takes the problem itself leaves the gradient unused, and compiled code does without it.
        extra = {"value": value, "grad": gradient, "value_fn": cost, "problem": _closed(self.problem, self.constant)}
        updates, memory = self.optimiser.update(gradient, carry.memory, carry.state, **extra)
        return self._advance(carry, optax.apply_updates(carry.state, updates), memory, 1)

    def account(self, carry: Carry) -> dict[str, Any]:  # noqa: ARG002
        return {"method": "optax"}

    def time(self, clock: Any) -> Any:
        """An optimiser has no time of its own: the number of steps."""
        return clock
