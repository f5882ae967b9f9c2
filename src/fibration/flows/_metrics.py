"""Metrics on the space of outputs: in which direction, and how fast, the outputs are to fall."""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import ParameterError
from ..losses import CrossEntropy, SquaredError
from ..problem import AbstractProblem, Problem
from ..tangent._differential import blocks_of, row_scale


class AbstractOutputMetric(eqx.Module):
    """A metric on outputs: `velocity` gives −∇C with respect to it, the velocity that the outputs are to have.

    `scaled`: whether outputs and velocity are those of `problem.residuals`, with the factors √(wᵢ/N).
    """

    scaled: ClassVar[bool] = False

    @abstractmethod
    def velocity(self, problem: AbstractProblem, outputs: Float[Array, " M"]) -> Float[Array, " M"]:
        """Compute the wanted velocity of the outputs, both as vectors of M numbers, sample-major, block by block."""


class Euclidean(AbstractOutputMetric):
    """The Euclidean metric of outputs: x' = −∇ₓC, for any differentiable loss.

    With `SquaredError` the residual of sample i decays as e^{−wᵢt/N}, each block of a stacked problem at its own rate.

    **Source:** Chen and Muñoz Ewald, arXiv 2311.15487, section 2.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
    >>> print(fb.flows.Euclidean().velocity(problem, jnp.array([0.0, 0.0])))  # −r/N
    [0.5 1.5]

    ```
    """

    def velocity(self, problem: AbstractProblem, outputs: Float[Array, " M"]) -> Float[Array, " M"]:
        """Compute −∇ₓC by automatic differentiation of the loss."""
        return -jax.grad(lambda x: cost_of_outputs(problem, x))(outputs)


class Whitened(AbstractOutputMetric):
    """The metric of `problem.residuals` ρ, C = ½|ρ|²: all residuals decay as e^{−t}, whatever N, weights and blocks.

    For residuals of several blocks, such as a differential equation's interior and boundary, whose own sizes should not
    set their rates; with fewer parameters than outputs it is the Gauss–Newton flow of the weighted cost. For
    `SquaredError` only.

    **Source:** derived (output metric diag(wᵢ/N)).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([2.0]))
    >>> print(fb.AdaptedFlow(damping=0.0, metric=fb.flows.Whitened())(problem, jnp.array(0.0)))
    1.0

    ```
    """

    scaled: ClassVar[bool] = True

    def velocity(self, problem: AbstractProblem, outputs: Float[Array, " M"]) -> Float[Array, " M"]:
        """Compute −ρ from the scaled outputs."""
        targets = [row_scale(block) * squared_targets(block).reshape(-1) for block in blocks_of(problem)]
        return jnp.concatenate(targets) - outputs


class SoftmaxFisher(AbstractOutputMetric):
    """The Fisher metric of softmax outputs: class probabilities move on straight lines, p(t) = y + e^{−t/N}(p₀ − y).

    For `CrossEntropy`, and right for one-hot labels and integer classes, where the Euclidean metric's decay is only
    C ~ (Q−1)N/(Qt). The velocity of the outputs is [y/p less its mean over the classes]/N for each sample. Its matrix
    diag p − ppᵀ is singular along constants, which do not change p; the velocity has none of them.

    **Source:** derived; natural gradient with the softmax–Fisher matrix.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w, jnp.array([0.0]), jnp.array([1]), loss=fb.CrossEntropy())
    >>> print(fb.flows.SoftmaxFisher().velocity(problem, jnp.array([0.0, 0.0])))
    [-1.  1.]

    ```
    """

    def velocity(self, problem: AbstractProblem, outputs: Float[Array, " M"]) -> Float[Array, " M"]:
        """Compute the velocity of the logits."""
        parts: list[Array] = []
        for block, logits in zip(blocks_of(problem), split(problem, outputs), strict=True):
            if not isinstance(block.loss, CrossEntropy):
                raise ParameterError(
                    f"the softmax–Fisher metric with the loss {type(block.loss).__name__}",
                    "CrossEntropy, whose outputs are logits",
                    "use the Euclidean metric, or `loss=fb.CrossEntropy()`",
                )
            labels = class_weights(block, logits.dtype)
            pull = labels * jnp.exp(-jax.nn.log_softmax(logits, axis=-1))
            weights = jnp.ones(()) if block.weights is None else block.weights[:, None]
            centred = pull - jnp.mean(pull, axis=-1, keepdims=True)
            parts.append((weights / block.n_samples * centred).astype(logits.dtype).reshape(-1))
        return jnp.concatenate(parts)


def split(problem: AbstractProblem, outputs: Float[Array, " M"]) -> list[Array]:
    """Cut a vector of outputs into the blocks' (N, Q)."""
    parts, start = [], 0
    for block in blocks_of(problem):
        parts.append(outputs[start : start + block.n_residuals].reshape(block.n_samples, block.n_outputs))
        start += block.n_residuals
    return parts


def cost_of_outputs(problem: AbstractProblem, outputs: Float[Array, " M"]) -> Float[Array, ""]:
    """Compute the cost from the outputs."""
    total = jnp.zeros((), outputs.dtype)
    for block, x in zip(blocks_of(problem), split(problem, outputs), strict=True):
        costs = block.loss.per_sample(x, block.targets)
        total += jnp.mean(costs if block.weights is None else block.weights * costs).astype(outputs.dtype)
    return total


def squared_targets(block: Problem) -> Float[Array, "N Q"]:
    """Give the targets (N, Q) of a block with the squared error.

    **Raises:** `ParameterError` for another loss.
    """
    if type(block.loss) is not SquaredError:
        raise ParameterError(
            f"the loss is {type(block.loss).__name__}",
            "SquaredError, whose targets are outputs",
            "use the Euclidean metric, which takes every loss, or give a path of your own",
        )
    return block.targets


def class_weights(block: Problem, dtype: jnp.dtype) -> Float[Array, "N Q"]:
    """Give the weights of the classes of each sample."""
    if block.targets.ndim == 1:
        return jax.nn.one_hot(block.targets, block.n_outputs, dtype=dtype)
    return block.targets.astype(dtype)
