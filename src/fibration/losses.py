"""Losses: the cost of one sample's outputs against its target."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from .errors import IntegerDataError, ParameterError, ShapeError
from .trees import is_traced

__all__ = ["AbstractLoss", "CrossEntropy", "SquaredError"]


class AbstractLoss(eqx.Module):
    """A loss ℓ(x, y) of outputs x (N, Q) and targets y, one number per sample.

    The cost of a problem is the mean of ℓ over the samples. A loss of your own gives these three methods.
    """

    @abstractmethod
    def per_sample(self, outputs: Float[Array, "n q"], targets: Num[Array, "n ..."]) -> Float[Array, " n"]:
        """Compute ℓ for each sample: outputs (N, Q) and targets give (N,)."""

    @abstractmethod
    def prepare(self, targets: Any) -> Array:
        """Turn a user's targets into the array that `per_sample` takes, or raise what is wrong with them."""

    @abstractmethod
    def n_outputs(self, targets: Num[Array, "n ..."]) -> int:
        """Tell the number Q of outputs that these targets belong to."""


def _as_matrix(targets: Any, what: str) -> Array:
    array = jnp.asarray(targets)
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise ShapeError(
            f"{what} have shape {array.shape}", "shape (N, Q): a row for each sample", "ravel each sample's target"
        )
    return array


class SquaredError(AbstractLoss):
    """Half the squared distance, ℓ(x, y) = ½ |x − y|².

    With it the cost of a problem is C = (1/2N) Σᵢ |xᵢ − yᵢ|², the normalisation of Chen and Muñoz Ewald
    (arXiv 2311.15487): a sum over the Q outputs, not a mean. Targets are real, (N, Q), or (N,) for Q = 1.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> print(fb.SquaredError().per_sample(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]])))
    [12.5]

    ```
    """

    def per_sample(self, outputs: Float[Array, "n q"], targets: Num[Array, "n ..."]) -> Float[Array, " n"]:
        """Compute ½ |x − y|² for each sample: (N, Q) and (N, Q) give (N,)."""
        return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)

    def prepare(self, targets: Any) -> Array:
        """Turn targets into (N, Q) floats; raise `IntegerDataError` for integers and `ShapeError` for other shapes."""
        array = _as_matrix(targets, "targets")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise IntegerDataError(
                f"targets are {array.dtype}",
                "real targets for SquaredError",
                "convert them with `.astype(float)`; for classes use `fb.datasets.one_hot` or `loss=fb.CrossEntropy()`",
            )
        return array

    def n_outputs(self, targets: Num[Array, "n ..."]) -> int:
        """Tell the number Q of outputs: the targets' second axis."""
        return int(targets.shape[1])


class CrossEntropy(AbstractLoss):
    """The cross-entropy of softmax outputs, ℓ(x, y) = log Σ_q exp(x_q) · Σ_q y_q − Σ_q y_q x_q.

    Targets are integer classes (N,), or non-negative weights of the classes (N, Q): one-hot, smoothed, or of a total
    other than one.

    **Arguments:** `n_classes`: the number Q of outputs, for integer classes; by default the largest class plus one.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> print(fb.CrossEntropy().per_sample(jnp.zeros((1, 4)), jnp.array([2])))  # log 4
    [1.3862944]

    ```
    """

    n_classes: int | None = eqx.field(static=True, default=None)

    def per_sample(self, outputs: Float[Array, "n q"], targets: Num[Array, "n ..."]) -> Float[Array, " n"]:
        """Compute the cross-entropy for each sample: outputs (N, Q) and targets (N,) or (N, Q) give (N,)."""
        log_normaliser = jax.nn.logsumexp(outputs, axis=-1)
        if targets.ndim == 1:
            return log_normaliser - jnp.take_along_axis(outputs, targets[:, None], axis=-1)[:, 0]
        return log_normaliser * jnp.sum(targets, axis=-1) - jnp.sum(targets * outputs, axis=-1)

    def prepare(self, targets: Any) -> Array:
        """Check targets: integer classes (N,) within range, or non-negative (N, Q)."""
        array = jnp.asarray(targets)
        traced = is_traced(array)
        if array.ndim == 1:
            if not jnp.issubdtype(array.dtype, jnp.integer):
                raise IntegerDataError(
                    f"targets are {array.dtype} of shape {array.shape}",
                    "integer classes (N,) or weights of the classes (N, Q) for CrossEntropy",
                    "convert classes with `.astype(int)`; for real targets use `loss=fb.SquaredError()`",
                )
            if not traced and array.size:
                low, high = int(np.min(array)), int(np.max(array))
                limit = self.n_classes if self.n_classes is not None else high + 1
                if low < 0 or high >= limit:
                    raise ParameterError(
                        f"classes run from {low} to {high}",
                        f"classes from 0 to {limit - 1}",
                        "number the classes from 0, or raise `n_classes`",
                    )
            if traced and self.n_classes is None:
                raise ParameterError(
                    "integer classes inside a transformation",
                    "`n_classes`, since the largest class is not known there",
                    "pass `loss=fb.CrossEntropy(n_classes=Q)`",
                )
            return array
        if array.shape[1:] == (1,) and jnp.issubdtype(array.dtype, jnp.integer):
            raise ShapeError(
                f"targets are integers of shape {array.shape}", "classes of shape (N,)", "ravel them: `targets[:, 0]`"
            )
        array = _as_matrix(array, "targets").astype(jnp.result_type(float))
        if not traced and bool(jnp.any(array < 0)):
            raise ParameterError(
                "a class weight is negative", "non-negative weights", "pass integer classes or probabilities"
            )
        return array

    def n_outputs(self, targets: Num[Array, "n ..."]) -> int:
        """Tell the number Q of outputs: the second axis, `n_classes`, or the largest class plus one."""
        if targets.ndim == 2:
            return int(targets.shape[1])
        return self.n_classes if self.n_classes is not None else int(np.max(targets)) + 1
