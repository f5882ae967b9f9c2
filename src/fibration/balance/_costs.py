"""Costs of the end-to-end matrix: regression, completion, sensing; and the same costs of a chain of factors."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from .. import _validation
from ..errors import IntegerDataError, ParameterError, ShapeError
from ..networks._dense import as_vector
from ..problem import AbstractProblem, Problem, StackedProblem
from ._chain import end_to_end
from ._fibre import check_depth

_NEWTON_STEPS = 100  # a double root is approached by halves: 53 of them are enough


class LinearMap(eqx.Module):
    """The function x ↦ X x of a matrix X (m, n) and one sample x of n entries."""

    def __call__(self, X: Any, x: Any) -> Inexact[Array, " m"]:
        """Compute the outputs (m,) of one sample."""
        return X @ as_vector(x, X.shape[1])


class Entry(eqx.Module):
    """The entry X_ij of a matrix at one pair of indices, of matrices of at least `rows` rows and `columns` columns."""

    rows: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    def __call__(self, X: Any, index: Any) -> Inexact[Array, ""]:
        """Look up X_ij for index (i, j); raise `ShapeError` if X is too small for the data."""
        if X.shape[0] < self.rows or X.shape[1] < self.columns:
            raise ShapeError(
                f"X of shape {X.shape}",
                f"at least {self.rows} rows and {self.columns} columns, as the observed indices have it",
                "start from a larger matrix, or exchange rows and columns",
            )
        return X[index[0], index[1]]


class InnerProduct(eqx.Module):
    """The measurement ⟨A, X⟩ = Σ_ij A_ij X_ij of a matrix X by one matrix A."""

    def __call__(self, X: Any, A: Any) -> Inexact[Array, ""]:
        """Compute ⟨A, X⟩; raise `ShapeError` if X has another shape than A."""
        if X.shape != A.shape:
            raise ShapeError(
                f"X of shape {X.shape} and measurements by matrices of shape {A.shape}",
                "X of the shape of every A_k",
                "check for a transpose",
            )
        return jnp.vdot(A, X)


class Factored(eqx.Module):
    """A function of a matrix X and one sample, as a function of a chain of matrices with the product X."""

    apply: Callable[..., Any]

    def __call__(self, Ws: Sequence[Any], x: Any) -> Any:
        """Compute apply(W_N … W_1, x), without forming the product if apply is linear in the sample."""
        if isinstance(self.apply, LinearMap):
            outputs = as_vector(x, Ws[0].shape[1])
            for W in Ws:
                outputs = W @ outputs
            return outputs
        # All samples share the product: mapped over them, it is computed once.
        return self.apply(end_to_end(list(Ws)), x)


def regression(inputs: Any, targets: Any, **options: Any) -> Problem:
    """Build the cost E(X) = (1/2n) Σ_k |X x_k − y_k|² of a matrix X: linear regression.

    **Arguments:** `inputs` (n, d_0) and `targets` (n, d_N), samples as rows; `options` go to `Problem`: `weights`,
    another `loss`.

    **Returns:** a `Problem` whose parameters are X (d_N, d_0). For `LearningFlow` take its `gradient`, for gradient
    descent and gradient flow on factors of X its `factored` form.

    **Raises:** those of `Problem`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.balance.regression(jnp.eye(2), jnp.array([[1.0], [2.0]]))
    >>> print(problem.cost(jnp.zeros((1, 2))), problem.gradient(jnp.zeros((1, 2))))
    1.25 [[-0.5 -1. ]]

    ```
    """
    return Problem(LinearMap(), inputs, targets, **options)


def completion(rows: Any, columns: Any, values: Any, **options: Any) -> Problem:
    """Build the cost E(X) = (1/2n) Σ_k (X_{i_k j_k} − v_k)² of a matrix X some of whose entries are known.

    **Arguments:** `rows`, `columns` (n,): the indices i_k, j_k, counted from 0; `values` (n,): the entries v_k;
    `options` go to `Problem`.

    **Returns:** a `Problem` whose parameters are X, of any shape that holds the indices; see `regression`.

    **Raises:** `IntegerDataError` for indices that are not integers, `ParameterError` for negative ones, `ShapeError`;
    those of `Problem`. An X too small for the indices is an `ApplyError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.balance.completion([0, 1], [1, 0], jnp.array([1.0, 2.0]))
    >>> print(problem.gradient(jnp.zeros((2, 2))))
    [[ 0.  -0.5]
     [-1.   0. ]]

    ```
    """
    indices = [_indices(array, name) for array, name in ((rows, "rows"), (columns, "columns"))]
    if indices[0].shape != indices[1].shape:
        raise ShapeError(
            f"rows of shape {indices[0].shape} and columns of shape {indices[1].shape}",
            "one of each for every known entry",
            "take them from `numpy.nonzero(mask)`",
        )
    entry = Entry(*(int(array.max(initial=-1)) + 1 for array in indices))
    return Problem(entry, np.stack(indices, axis=1), values, allow_integer_inputs=True, **options)


def sensing(matrices: Any, values: Any, **options: Any) -> Problem:
    """Build the cost E(X) = (1/2n) Σ_k (⟨A_k, X⟩ − v_k)² of a matrix X that is known by linear measurements.

    **Arguments:** `matrices` (n, d_N, d_0): real A_k; `values` (n,): the measurements v_k; `options` go to `Problem`.

    **Returns:** a `Problem` whose parameters are X (d_N, d_0); see `regression`.

    **Raises:** `ShapeError` unless there are three axes; those of `Problem`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.balance.sensing(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.array([2.0]))  # the trace is 2
    >>> print(problem.cost(jnp.eye(2)), problem.gradient(2 * jnp.eye(2)))
    0.0 [[2. 0.]
     [0. 2.]]

    ```
    """
    stack = _validation.as_array(matrices, "matrices")
    if stack.ndim != 3:
        raise ShapeError(
            f"matrices of shape {stack.shape}", "shape (n, d_N, d_0), measurements first", "stack them: `jnp.stack`"
        )
    if jnp.iscomplexobj(stack):
        raise ParameterError(
            f"matrices of type {stack.dtype}", "real A_k", "measure real and imaginary parts by matrices of their own"
        )
    return Problem(InnerProduct(), stack, values, **options)


def factored(problem: AbstractProblem) -> Any:
    """Build the cost E(W_N … W_1) of a chain from the cost E(X) of a matrix, with the same data, loss and weights.

    **Arguments:** `problem`: a `Problem` or `StackedProblem` whose parameters are one matrix X (d_N, d_0).

    **Returns:** a problem of the same type, whose parameters are a list of N matrices, W_1 first. Costs of regression
    are computed sample by sample, without forming X; the others form X once for all samples.

    **Raises:** `ParameterError` for a problem that is neither.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.balance.factored(fb.balance.regression(jnp.ones((1, 2)), jnp.ones((1, 3))))
    >>> print(problem.cost([jnp.ones((4, 2)), jnp.ones((3, 4))]))  # X x = (8, 8, 8)
    73.5

    ```
    """
    if isinstance(problem, StackedProblem):
        return StackedProblem(tuple(factored(block) for block in problem.problems))
    if not isinstance(problem, Problem):
        raise ParameterError(
            f"problem is {type(problem).__name__}",
            "an fb.Problem, or several in fb.stack, whose parameters are one matrix",
            "build it with `balance.regression`, `completion` or `sensing`, or `fb.Problem(apply, …)`",
        )
    apply = problem.apply
    return eqx.tree_at(lambda p: p.apply, problem, Factored(apply), is_leaf=lambda node: node is apply)


def shrinkage(singular_values: Any, weight_decay: float, depth: int) -> Float[np.ndarray, "..."]:
    """Shrink singular values as weight decay does: minimise ½(s − y)² + λ(N/2) s^{2/N} locally over s ≥ 0.

    These are the singular values of stationary points of ½‖X − Y‖² + λR*(X) (`minimum_on_fibre`), and so of
    E(W_N … W_1) + ½λ Σ‖W_p‖² for E = ½‖X − Y‖². Where there is a positive stationary point, the result is the largest
    root of

        s − y + λ s^{2/N−1} = 0,

    and zero elsewhere (derived). N = 1 is ridge regression, y/(1 + λ); N = 2 the soft threshold, max(y − λ, 0). For
    N ≥ 3 zero is a local minimum always, and the root another one if y ≥ s_c(1 + 1/q), s_c = (λq)^{1/(1+q)},
    q = 1 − 2/N: flows that start above it end there, though it is the lower of the two minima only if
    s ≥ (λ(N − 2))^{N/(2N−2)} (derived).

    **Arguments:** `singular_values`: y ≥ 0, any shape; `weight_decay`: λ ≥ 0; `depth`: N ≥ 1.

    **Returns:** s, shaped like y, in float64 and to rounding, but near a double root, to the square root of it.

    **Raises:** `ParameterError` for negative or non-finite numbers, or a depth that is no positive integer.

    ```python
    >>> import fibration as fb
    >>> fb.balance.shrinkage([3.0, 0.5], weight_decay=1.0, depth=2)
    array([2., 0.])
    >>> fb.balance.shrinkage([3.0, 1.5], weight_decay=1.0, depth=3).round(4)
    array([2.2352, 0.    ])

    ```
    """
    check_depth(depth)
    y, rate = np.asarray(singular_values, float), float(weight_decay)
    if not (np.all(np.isfinite(y)) and np.all(y >= 0) and 0 <= rate < float("inf")):
        raise ParameterError(
            f"singular values from {np.min(y, initial=0):g} to {np.max(y, initial=0):g} and weight_decay = {rate:g}",
            "finite numbers, none of them negative",
            "pass what `numpy.linalg.svd` returns",
        )
    if depth == 1:
        return y / (1 + rate)
    if depth == 2 or rate == 0:
        return np.maximum(y - rate, 0)
    q = 1 - 2 / depth
    lowest = (rate * q) ** (1 / (1 + q))  # where s + λ s^{−q}, which is convex, is lowest
    exists = y >= lowest * (1 + 1 / q)
    s = np.where(exists, y, 1.0)
    for _ in range(_NEWTON_STEPS):  # down from y, where a convex function is positive: without overshooting
        slope = 1 - rate * q * s ** (-q - 1)
        step = (s - y + rate * s**-q) / np.where(slope > 0, slope, 1)
        s, last = np.where(exists, np.maximum(s - step, lowest), s), s
        if np.array_equal(s, last):
            break
    return np.where(exists, s, 0.0)


def _indices(given: Any, name: str) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 1:
        raise ShapeError(f"{name} have shape {array.shape}", "one axis", "ravel them")
    if array.size and array.dtype.kind not in "iu":
        raise IntegerDataError(f"{name} are {array.dtype}", "integer indices", "convert them with `.astype(int)`")
    array = array.astype(int)
    if np.any(array < 0):
        raise ParameterError(f"{name} hold {array.min()}", "indices counted from 0", "add the length to negative ones")
    return array
