"""Deep linear networks."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact, PRNGKeyArray

from ._dense import as_vector, positive


class DeepLinear(eqx.Module):
    """The function W_n … W_1 x of matrices and one sample; made by `deep_linear`, hashable, equal by value."""

    widths: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, params: Any, x: ArrayLike) -> Inexact[Array, " q"]:
        """Compute the outputs (d_n,) of one sample of d_0 entries; raise `ShapeError` for another number of entries."""
        outputs = as_vector(x, self.widths[0])
        for matrix in params:
            outputs = matrix @ outputs
        return outputs


def deep_linear(
    widths: Sequence[int], *, key: PRNGKeyArray, scale: float = 1.0, balanced: bool = False
) -> tuple[DeepLinear, list[Array]]:
    """Build a deep linear network x ↦ W_n … W_1 x, at random or balanced parameters.

    **Arguments:**

    - `widths`: (d_0, …, d_n), inputs first, n ≥ 1.
    - `key`: a JAX random key.
    - `scale`: a factor of every matrix, so that the end-to-end matrix W = W_n … W_1 is proportional to scaleⁿ.
    - `balanced`: whether W_{j+1}ᵀ W_{j+1} = W_j W_jᵀ shall hold for every hidden layer j.

    Unbalanced, the entries of W_j are independent N(0, scale²/d_{j−1}), so that E|Wx|² = scale²ⁿ (d_n/d_0) |x|² and
    E‖W‖² = scale²ⁿ d_n (Frobenius).

    Balanced, draw A (d_n, d_0) with independent entries N(0, 1/d_0), let r be the smallest width and
    U diag(s) Vᵀ the r leading singular values and vectors of A. With Q_0 = V, Q_n = U and independent uniformly random
    frames Q_j (d_j, r) with orthonormal columns between them,

        W_j = scale · Q_j diag(s^{1/n}) Q_{j−1}ᵀ,   W = scaleⁿ U diag(s) Vᵀ,

    and both products above equal scale² Q_j diag(s^{2/n}) Q_jᵀ: the moment map μ_j = W_j W_jᵀ − W_{j+1}ᵀ W_{j+1} is
    zero up to rounding. E‖W‖² = scale²ⁿ d_n as before if no hidden layer is narrower than both ends; otherwise W is the
    best approximation of rank r of such a matrix, and smaller.

    **Returns:** `(apply, params)`: `params` is the list of the W_j (d_j, d_{j−1}), W_1 first, in JAX's default
    floating-point type; `apply(params, x)` maps one sample of any shape with d_0 entries, ravelled, to (d_n,).

    **Raises:** `ShapeError` for fewer than two widths or one that is not a positive integer.

    **Sources:** Arora, Cohen, Golowich and Hu (arXiv 1810.02281), Procedure 1, which pads with zeros where this draws
    frames and needs hidden layers at least as wide as one of the ends; the moment map of Lindsey and Menon
    (arXiv 2511.01137).

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from fibration import networks
    >>> apply, (first, second) = networks.deep_linear((4, 3, 5), key=jax.random.key(0), balanced=True)
    >>> bool(jnp.allclose(second.T @ second, first @ first.T, atol=1e-5))
    True
    >>> apply([first, second], jnp.ones(4)).shape
    (5,)

    ```
    """
    sizes = positive(widths, "widths", at_least=2)
    depth = len(sizes) - 1
    keys = jax.random.split(key, depth)
    if not balanced:
        shapes = zip(keys, sizes[1:], sizes[:-1], strict=True)
        matrices = [scale / math.sqrt(n_in) * jax.random.normal(k, (n_out, n_in)) for k, n_out, n_in in shapes]
        return DeepLinear(sizes), matrices
    rank = min(sizes)
    end_to_end = jax.random.normal(keys[0], (sizes[-1], sizes[0])) / math.sqrt(sizes[0])
    left, singular_values, right = jnp.linalg.svd(end_to_end, full_matrices=False)
    hidden = [_random_frame(k, width, rank) for k, width in zip(keys[1:], sizes[1:-1], strict=True)]
    frames = [right[:rank].T, *hidden, left[:, :rank]]
    shared = scale * singular_values[:rank] ** (1 / depth)
    matrices = [(after * shared) @ before.T for before, after in itertools.pairwise(frames)]
    return DeepLinear(sizes), matrices


def _random_frame(key: PRNGKeyArray, width: int, rank: int) -> Array:
    columns, triangle = jnp.linalg.qr(jax.random.normal(key, (width, rank)))
    # QR fixes the columns' signs by convention; undoing that makes the frame uniformly distributed (Mezzadri 2007).
    return columns * jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)
