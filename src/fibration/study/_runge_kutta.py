"""The classical Runge–Kutta method with fixed steps, for flows with kinks."""

from typing import Any, ClassVar

import jax

from .. import trees
from ..flows import AbstractFlow
from ..problem import AbstractProblem
from ..trees import PyTree


class ClassicalRungeKutta(AbstractFlow):
    """The mean velocity of one classical Runge–Kutta step of gradient flow, so that `descend` takes that step.

    Its `step_size` must be the descent's. Where the field jumps, at a kink of the cost, any method is of first order;
    control of the error then only shortens the steps at each of very many kinks, and equal steps, over which the errors
    of many kinks mostly cancel, are the better bargain.
    """

    step_size: float
    gradient_evaluations: ClassVar[int] = 4

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Any = 0.0) -> PyTree:  # noqa: ARG002
        """Compute (k₁ + 2k₂ + 2k₃ + k₄)/6 of the velocities k at the four stages."""

        def velocity(at: PyTree) -> PyTree:
            return trees.scale(-1.0, problem.gradient(at))

        first = velocity(params)
        second = velocity(trees.axpy(self.step_size / 2, first, params))
        third = velocity(trees.axpy(self.step_size / 2, second, params))
        fourth = velocity(trees.axpy(self.step_size, third, params))
        return jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
