"""The interface of a flow, and the gradient flow."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Real

from ..problem import AbstractProblem
from ..trees import PyTree

Time = float | Real[Array, ""]


class AbstractFlow(eqx.Module):
    """A vector field θ' = F(θ, t) on the parameters of a problem.

    A flow of your own is a subclass with the one method `__call__`, or any function with its signature.
    `gradient_evaluations` says how many gradients one call costs, for the counts that solvers report;
    `difference_quotients`, whether solvers that want a derivative of the field take difference quotients for it;
    `stiff`, whether they should be ready for stiffness.

    A run asks a flow three more things, which by default do nothing: `prepare` before it starts, `conditions` that end
    it, and `explain` after it ended by one of these or by a failure.
    """

    gradient_evaluations: ClassVar[int] = 1
    difference_quotients: ClassVar[bool] = False
    stiff: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:
        """Compute the velocity: a pytree like `params`, with `None` at leaves that are not floating-point."""

    def prepare(self, problem: AbstractProblem, params: PyTree) -> "AbstractFlow":  # noqa: ARG002
        """Give the flow for a run that starts at `params`, and warn of what can be known beforehand."""
        return self

    def conditions(self, problem: AbstractProblem) -> Mapping[str, Callable[..., Any]]:  # noqa: ARG002
        """Give the flow's own stop conditions by name: functions `(problem, params, time) -> bool`."""
        return {}

    def explain(
        self,
        problem: AbstractProblem,  # noqa: ARG002
        start: PyTree,  # noqa: ARG002
        params: PyTree,  # noqa: ARG002
        time: float,  # noqa: ARG002
        code: str,
    ) -> tuple[str, str]:
        """Say why a run from `start` ended at `params` with `code`: the code that fits best, and a sentence."""
        return code, ""


class GradientFlow(AbstractFlow):
    """The gradient flow θ' = −∇C(θ): gradient descent with infinitely small steps.

    Its Euler method with step size η is gradient descent (Elkabetz and Cohen, arXiv 2107.06608).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([2.0]))
    >>> print(fb.GradientFlow()(problem, jnp.array(0.0)))
    4.0

    ```
    """

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:  # noqa: ARG002
        """Compute −∇C(θ); one gradient evaluation."""
        return jax.tree.map(lambda g: -g, problem.gradient(params))
