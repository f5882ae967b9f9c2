"""The fibre over an end-to-end matrix: its lowest regulariser, how far a chain is from it, and the orbit it lies on."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..errors import ParameterError
from ._arrays import Matrices, all_widened, computable, namespace, read_chain, read_matrix, squared_norm, widened
from ._chain import roots, scaled
from ._product import ProductSVD, check_rtol, product_svd


def minimum_on_fibre(X: Any, depth: int, *, weights: Sequence[float] | None = None, rtol: float | None = None) -> Any:
    """Compute R*(X) = (N/2) Σᵢ σᵢ(X)^{2/N}, the lowest regulariser ½ Σ‖W_p‖² of N factors of X.

    It is attained exactly on the balanced chains (Lindsey and Menon, arXiv 2511.01137; for rectangular chains derived).
    N = 2 is the nuclear norm; from N = 3 on it is no norm and not convex in X.

    **Arguments:**

    - `X` (m, n), real or complex; `depth`: N ≥ 1.
    - `weights`: a_1 … a_N, for the lowest ½ Σ a_p‖W_p‖², which is (∏ a_p)^{1/N} times as large (derived).
    - `rtol`: singular values up to rtol·σ_1 count as zero; by default those within rounding. Since they enter as
      σ^{2/N}, rounding alone can be worth 1e-2 when N = 10.

    **Raises:** `ShapeError`, `NonFiniteDataError`; `ParameterError` for a depth below 1 or wrong weights.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> float(fb.balance.minimum_on_fibre(np.diag([4.0, 9.0]), depth=2))
    13.0

    ```
    """
    matrix = widened(read_matrix(X))
    check_depth(depth)
    check_rtol(rtol)
    xp = namespace(matrix)
    values = xp.linalg.svd(matrix, compute_uv=False)
    cut = values[0] * (max(matrix.shape) * float(xp.finfo(matrix.dtype).eps) if rtol is None else rtol)
    factor = 1.0 if weights is None else float(np.prod(roots(weights, depth))) ** (2 / depth)
    return factor * lowest(xp.where(values > cut, values, 0), depth)


def lowest(values: Any, depth: int) -> Any:
    """Compute (N/2) Σ σ^{2/N}."""
    return depth / 2 * namespace(values).sum(values ** (2 / depth))


def check_depth(depth: int) -> None:
    """Raise `ParameterError` unless a depth is a positive integer."""
    if not isinstance(depth, int | np.integer) or depth < 1:
        raise ParameterError(f"depth = {depth!r}", "a positive integer, the number of matrices", "pass depth=2 or more")


def excess(Ws: Any, *, weights: Sequence[float] | None = None, rtol: float | None = None) -> Any:
    """Compute R(W) − R*(X) ≥ 0: how much regulariser balancing would save; zero on balanced chains, and there only.

    For N = 2 it is also the squared distance to the balanced chains of any product if d_0 = d_2 or
    d_1 ≤ min(d_0, d_2), and not larger than it otherwise (derived).

    **Arguments:**

    - `rtol`: singular values of X up to rtol·σ_1 count as zero; by default those below a running bound of the product's
      rounding error. See `minimum_on_fibre` for why it matters. In a deep chain a singular value of X can
      be far below rounding though each W_p is well conditioned: pass `rtol=0.0` to count what is computed of it.

    **Raises:** those of `end_to_end` and `imbalance`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> float(fb.balance.excess([np.array([[3.0]]), np.array([[1.0]])]))
    2.0

    ```
    """
    matrices = all_widened(scaled(read_chain(Ws), weights))
    least = lowest(product_svd(matrices).significant(rtol), len(matrices))
    return sum(squared_norm(W) for W in matrices) / 2 - least


def distance_bounds(Ws: Any, *, rtol: float | None = None) -> tuple[Any, Any]:
    """Bound the Euclidean distance from a chain to the balanced chains on its fibre, before balancing it.

    dist(W, F_X ∩ M_0) ≤ length of the induced flow ≤ √(2 (R(W) − R*(X))), and for N = 2 ≥ √(R(W) − R*(X)) (derived).

    **Returns:** `(lower, upper)`; the lower bound is zero for N ≥ 3.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> lower, upper = fb.balance.distance_bounds([np.array([[3.0]]), np.array([[1.0]])])
    >>> distance = np.hypot(3 - 3**0.5, 1 - 3**0.5)  # to (√3, √3)
    >>> bool(lower <= distance <= upper)
    True

    ```
    """
    saving = excess(Ws, rtol=rtol)
    xp = np if isinstance(saving, float | np.floating) else jnp
    saving = xp.maximum(saving, 0)
    return (xp.sqrt(saving) if len(Ws) == 2 else xp.zeros_like(saving)), xp.sqrt(2 * saving)


@dataclass(frozen=True)
class Orbit:
    """Where a chain lies on its fibre.

    - `rank` of X; `ranks` of W_1 … W_N; `singular_values` of X, as many as the narrowest layer is wide.
    - `closed`: whether the orbit is closed, which it is if and only if every W_p has the rank of X (derived). Else the
      balanced chains lie in its closure only: no invertible g reaches them, and balancing deletes directions.
    - `dead`: how many directions of W_1 … W_N do not take part in the product.
    - `dimension`: the real dimension of the set of balanced chains of this rank and these widths,
      r(d_0 + d_N − r) + Σ_p (r d_p − r(r + 1)/2); for complex ones 2r(d_0 + d_N − r) + Σ_p (2 r d_p − r²).
    - `noise`: singular values of X up to it count as zero.
    """

    rank: int
    ranks: tuple[int, ...]
    dimension: int
    singular_values: Float[np.ndarray, " k"]
    noise: float

    @property
    def closed(self) -> bool:
        """Whether every matrix has the rank of the product."""
        return not any(self.dead)

    @property
    def dead(self) -> tuple[int, ...]:
        """The ranks beyond that of the product."""
        return tuple(rank - self.rank for rank in self.ranks)


def orbit(Ws: Any, *, rtol: float | None = None) -> Orbit:
    """Find the ranks of a chain and its product, and with them whether it can be balanced without loss.

    **Arguments:** `rtol`: singular values of X up to rtol·σ_1, and those of each W_p up to rtol times its largest,
    count as zero; by default those within the bounds of rounding.

    **Returns:** an `Orbit`.

    **Raises:** those of `end_to_end`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> found = fb.balance.orbit([np.eye(3)[:, :2], np.eye(3), np.eye(3)[:2]])  # 2-3-3-2: a hidden direction is idle
    >>> found.closed, found.rank, found.ranks, found.dead
    (False, 2, (2, 3, 2), (0, 1, 0))

    ```
    """
    matrices = computable(read_chain(Ws))[0]
    return find_orbit(matrices, product_svd(matrices), rtol)


def find_orbit(matrices: Matrices, svd: ProductSVD, rtol: float | None) -> Orbit:
    """Compare the rank of the product with those of its factors, which cannot be smaller."""
    widths = [matrices[0].shape[1], *(W.shape[0] for W in matrices)]
    rank = svd.rank(rtol)
    ranks = tuple(min(W.shape) if min(W.shape) <= rank else _matrix_rank(W, rtol) for W in matrices)
    # What a factor has lost to rounding, the product cannot have.
    rank = min(rank, *ranks)
    if np.iscomplexobj(matrices[0]):
        dimension = 2 * rank * (widths[0] + widths[-1] - rank) + sum(2 * rank * d - rank**2 for d in widths[1:-1])
    else:
        inner = sum(rank * d - rank * (rank + 1) // 2 for d in widths[1:-1])
        dimension = rank * (widths[0] + widths[-1] - rank) + inner
    return Orbit(rank, ranks, dimension, svd.values, float(svd.threshold(rtol)))


def rank_pattern(Ws: Any, *, rtol: float | None = None) -> Int[np.ndarray, "N N"]:
    """Find the ranks of all products W_q … W_p of neighbours: they tell the orbits of a fibre apart.

    **Returns:** (N, N): row p, column q ≥ p holds rank W_q … W_p, counted from 0; below the diagonal is zero.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> fb.balance.rank_pattern([np.eye(3)[:, :2], np.eye(3), np.eye(3)[:2]])
    array([[2, 2, 2],
           [0, 3, 2],
           [0, 0, 2]])

    ```
    """
    matrices = computable(read_chain(Ws))[0]
    pattern = np.zeros((len(matrices), len(matrices)), int)
    for p, q in itertools.combinations(range(len(matrices)), 2):
        pattern[p, q] = product_svd(matrices[p : q + 1]).rank(rtol)
    np.fill_diagonal(pattern, [_matrix_rank(W, rtol) for W in matrices])
    return pattern


def _matrix_rank(W: Any, rtol: float | None) -> int:
    values = np.linalg.svd(W, compute_uv=False)
    return int(np.sum(values > values[0] * (max(W.shape) * np.finfo(W.dtype).eps if rtol is None else rtol)))
