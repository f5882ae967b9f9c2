"""What the driver drives: a process in discrete steps, whose state between two steps is one pytree of arrays."""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from ..trees import PyTree

RUNNING, NONFINITE, STEP_UNDERFLOW, STALLED, STATIONARY = 0, -1, -2, -3, -4
# The last one is no failure: a minimum is reached.
FAILURE_NAMES = {
    NONFINITE: "nonfinite",
    STEP_UNDERFLOW: "step_underflow",
    STALLED: "stalled",
    STATIONARY: "stationary",
}


class Spent(NamedTuple):
    """What has been spent: field evaluations, and Jacobian–vector products."""

    evaluations: Int[Array, ""]
    products: Int[Array, ""]

    @classmethod
    def nothing(cls) -> "Spent":
        """Start counting."""
        zero = jnp.zeros((), jnp.result_type(int))
        return cls(zero, zero)

    @classmethod
    def one_evaluation(cls) -> "Spent":
        """Count one evaluation."""
        return cls.nothing()._replace(evaluations=jnp.ones((), jnp.result_type(int)))

    def plus(self, other: "Spent") -> "Spent":
        """Add up."""
        return Spent(self.evaluations + other.evaluations, self.products + other.products)

    def less(self, other: "Spent") -> "Spent":
        """Take away what had been spent before."""
        return Spent(self.evaluations - other.evaluations, self.products - other.products)


class Carry(eqx.Module):
    """Everything that a run needs to go on: arrays only, so that it can be saved and loaded bit for bit.

    `clock`: where the process stands (a time, or a number of steps); `previous`: where its last accepted step began;
    `state`: the parameters at `clock`; `memory`: the stepper's own; `code`: `RUNNING`, a failure (negative), or 1 + the
    index of the stop condition met.
    """

    previous: Real[Array, ""]
    clock: Real[Array, ""]
    state: PyTree
    memory: PyTree
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    spent: Spent
    code: Int[Array, ""]
    accepted: Bool[Array, ""]


def first_carry(clock: Real[Array, ""], state: PyTree, memory: PyTree, spent: Spent) -> Carry:
    """Make the carry before the first step."""
    zero = jnp.zeros((), jnp.result_type(int))
    return Carry(
        previous=clock,
        clock=clock,
        state=state,
        memory=memory,
        steps=zero,
        rejected=zero,
        spent=spent,
        code=jnp.zeros((), jnp.int32),
        accepted=jnp.asarray(False),
    )


class AbstractStepper(eqx.Module):
    """A process in discrete steps."""

    @abstractmethod
    def init(self, state: PyTree, end: Real[Array, ""]) -> Carry:
        """Make the carry before the first step."""

    @abstractmethod
    def step(self, carry: Carry, end: Real[Array, ""]) -> Carry:
        """Try one step towards `end`, never past it. A failed step leaves the last finite state in place."""

    @abstractmethod
    def interpolate(self, carry: Carry, clock: Real[Array, ""]) -> PyTree:
        """Compute the state at a clock within the last accepted step."""

    @property
    def interpolates(self) -> bool:
        """Whether `interpolate` will do; if not, `step_within` computes states between two steps."""
        return True

    def step_within(
        self, carry: Carry, end: Real[Array, ""], clock: Real[Array, ""], within: Bool[Array, ""]
    ) -> tuple[Carry, PyTree]:
        """Step from where the last accepted step began to a clock within it, or else try the next step as `step` does.

        Both are one piece of program, so that the field is compiled once.

        **Returns:** the carry, and the state at the clock if it is within.
        """
        raise NotImplementedError(carry, end, clock, within)

    def visible(self, state: PyTree) -> PyTree:
        """Give the state as users see it: every leaf in its own type."""
        return state

    def notes(self, carry: Carry) -> dict[str, Array]:  # noqa: ARG002
        """Give numbers to save along with each saved time, by name."""
        return {}

    @abstractmethod
    def account(self, carry: Carry) -> dict[str, Any]:
        """Tell the statistics that only the stepper knows: "method", and others of its own."""

    @abstractmethod
    def time(self, clock: Any) -> Any:
        """Convert the clock to the time that a user sees."""
