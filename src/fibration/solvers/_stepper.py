"""What the driver drives: a process in discrete steps, whose state between two steps is one pytree of arrays."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from ..trees import PyTree

RUNNING, NONFINITE, STEP_UNDERFLOW = 0, -1, -2
FAILURE_NAMES = {NONFINITE: "nonfinite", STEP_UNDERFLOW: "step_underflow"}


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
    evaluations: Int[Array, ""]
    code: Int[Array, ""]
    accepted: Bool[Array, ""]


def first_carry(clock: Real[Array, ""], state: PyTree, memory: PyTree, evaluations: int) -> Carry:
    """Make the carry before the first step."""
    zero = jnp.zeros((), jnp.result_type(int))
    return Carry(
        previous=clock,
        clock=clock,
        state=state,
        memory=memory,
        steps=zero,
        rejected=zero,
        evaluations=zero + evaluations,
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

    def visible(self, state: PyTree) -> PyTree:
        """Give the state as users see it: every leaf in its own type."""
        return state

    @property
    def evaluations_per_save(self) -> int:
        """Count the field evaluations that one `interpolate` costs."""
        return 0

    @abstractmethod
    def time(self, clock: Any) -> Any:
        """Convert the clock to the time that a user sees."""
