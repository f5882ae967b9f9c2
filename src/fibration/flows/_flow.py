"""The interface of a flow, and the gradient flow."""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Real

from ..problem import AbstractProblem
from ..trees import PyTree

Time = float | Real[Array, ""]


class AbstractFlow(eqx.Module):
    """A vector field θ' = F(θ, t) on the parameters of a problem.

    A flow of your own is a subclass with the one method `__call__`, or any function with its signature.
    `gradient_evaluations` says how many gradients one call costs, for the counts that solvers report.
    """

    gradient_evaluations: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:
        """Compute the velocity: a pytree like `params`, with `None` at leaves that are not floating-point."""


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
