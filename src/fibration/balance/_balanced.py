"""Balanced chains in closed form: the points of a fibre with the lowest regulariser."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .._validation import check_name, check_strength
from ..errors import BottleneckError, ConditioningWarning, ParameterError, RankLossError, ShapeError
from ..trees import is_traced
from ._arrays import Matrices, computable, read_chain, read_matrix
from ._chain import roots, scaled, unscaled
from ._fibre import Orbit, find_orbit
from ._frames import GAUGES, balanced_chain, dead_part, isometry
from ._partial import partially_balanced
from ._product import ProductSVD, product_svd


def balanced(
    Ws: Any,
    gauge: str = "svd",
    strength: float = 1.0,
    on_rank_loss: str = "raise",
    *,
    weights: Sequence[float] | None = None,
    rtol: float | None = None,
) -> Matrices:
    """Balance a chain: find one with the same product X for which W_{p+1}* W_{p+1} = W_p W_p* in every hidden layer.

    With X = U diag(σ) V* and λ = σ^{1/N}, the balanced chains are W_p = Q_p diag(λ) Q_{p−1}* with Q_0 = V, Q_N = U and
    any frames Q_p with orthonormal columns between them (derived); they alone have the lowest regulariser on the fibre,
    `minimum_on_fibre(X, N)` (Lindsey and Menon, arXiv 2511.01137).

    **Arguments:**

    - `Ws`: N ≥ 2 matrices, W_1 first; rectangular, real or complex.
    - `gauge`: the frames. "svd": the first columns of the identity, cheapest. "nearest": those whose chain is nearest
      to `Ws`, best for a model in use; the nearest of all for N = 2, a local optimum for N ≥ 3. "polar": those reached
      by positive definite group elements, as the squared-moment flow reaches them when everything commutes; needs
      hidden layers as wide as the rank of X.
    - `strength` from 0 (none) to 1 (full): imbalances become (1 − strength) times what they were, along the induced
      flow, which is solved; the gauge has no say then.
    - `on_rank_loss`: what to do if a W_p has a higher rank than X, so that some of its directions do not reach the
      output and balance can only be had without them. "raise": an error that says how many. "drop": delete them; no
      gradient flow brings them back. "keep": balance the part that takes part in X, and set the others beside it,
      orthogonal to it; the orbit stays the same.
    - `weights`: a_1 … a_N, to balance a_{p+1} W_{p+1}* W_{p+1} = a_p W_p W_p*; "nearest" then counts ‖W_p‖² a_p times.
    - `rtol`: singular values of X up to rtol·σ_1 count as zero; by default those within a running bound of the
      product's rounding error. A `ConditioningWarning` says so if more than that is cut.

    **Returns:** N matrices of the kind and type of `Ws`, computed in float64; within `jax.jit` in their own precision,
    where ranks cannot be looked at: directions below rounding are dropped whatever `on_rank_loss` says, a chain of
    zero product is left as it is. Gradients are those of a singular value decomposition: NaN where values repeat.

    **Raises:** `ShapeError`, `NonFiniteDataError`; `RankLossError` as said, and for a zero product of non-zero matrices
    (the start of a LoRA adapter), where the balanced chain is zero and so are all gradients; `SingularProductError` for
    "polar" without what it needs; `UnknownNameError`, `ParameterError`.

    Never forms X if a hidden layer is narrower than both ends: two QR factorisations of the halves, a singular value
    decomposition at the narrowest layer. Allocates about four times the chain, in float64.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> first, second = fb.balance.balanced([np.array([[8.0, 6.0]]), np.array([[0.1]])])
    >>> (second @ first).round(12), float((first @ first.T).item()), float((second.T @ second).item())
    (array([[0.8, 0.6]]), 1.0, 1.0)

    ```
    """
    check_name("gauge", gauge, GAUGES)
    check_name("on_rank_loss", on_rank_loss, ("raise", "drop", "keep"))
    given = read_chain(Ws)
    check_strength(strength)
    if strength < 1:
        return given if strength == 0 else partially_balanced(given, float(strength), weights)
    matrices, back = computable(scaled(given, weights))
    traced = is_traced(matrices[0])
    if traced:  # a singular value decomposition of infinities need not return
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(W)) for W in matrices]))
        matrices = [jnp.where(finite, W, 0) for W in matrices]
    else:
        finite = True
    svd, depth = product_svd(matrices), len(matrices)
    if traced:
        scale = svd.significant(rtol) ** (1 / depth)
        hidden = GAUGES[gauge](matrices, svd, jnp.where(scale > 0, scale, 1) if gauge == "polar" else scale)
        chain = balanced_chain(svd, hidden, scale)
        # A zero product is left alone: no gradient would ever leave the balanced chain over it.
        chain = [jnp.where(scale[0] > 0, new, old) for new, old in zip(chain, matrices, strict=True)]
        return back(unscaled([jnp.where(finite, W, jnp.nan) for W in chain], weights))
    found = find_orbit(matrices, svd, rtol)
    if not found.closed:
        _check_rank_loss(found, on_rank_loss)
    kept = svd.leading(found.rank)
    _warn_of_cut(svd, found.rank)
    scale = kept.values ** (1 / depth)
    hidden = GAUGES[gauge](matrices, kept, scale)
    chain = balanced_chain(kept, hidden, scale)
    if on_rank_loss == "keep" and not found.closed:
        beside = dead_part(matrices, kept, hidden)
        chain = [W + V for W, V in zip(chain, beside, strict=True)]
    return back(unscaled(chain, weights))


def _warn_of_cut(svd: ProductSVD, rank: int) -> None:
    """Warn of singular values that `rtol` cuts though rounding does not."""
    cut = svd.values[rank:]
    if len(cut) and cut[0] > svd.noise:
        warnings.warn(
            f"singular values of the product from {cut[0]:.1e} down, beside {svd.values[0]:.1e}, count as zero: the "
            "product changes by as much",
            ConditioningWarning,
            stacklevel=3,
        )


def _check_rank_loss(found: Orbit, on_rank_loss: str) -> None:
    if on_rank_loss == "keep":
        return
    if found.rank == 0:
        raise RankLossError(
            f"a chain of ranks {found.ranks} whose product is zero, as that of a LoRA adapter before training",
            "a product that is not zero: the balanced chain would be zero, and with it every gradient",
            'train it first, then balance; strength below 1 and on_rank_loss="keep" change it without a loss',
        )
    if on_rank_loss == "raise":
        dead = [f"{count} of W_{p}" for p, count in enumerate(found.dead, 1) if count]
        layers = ", ".join(dead[:4] + ["…"] * (len(dead) > 4))
        raise RankLossError(
            f"the orbit is not closed: the product has rank {found.rank} (singular values above {found.noise:.1e}), "
            f"and some directions do not reach the output: {layers}",
            "matrices of the rank of their product; exact balancing would delete the others, and gradient flow would "
            "never bring them back",
            'pass strength below 1, on_rank_loss="keep" to leave them beside the balanced part, or "drop" to delete '
            "them; if small singular values of X mean something, a smaller rtol (0.0 counts all), or `kempf_ness`",
        )


def factor(
    X: Any,
    widths: Sequence[int],
    gauge: str = "svd",
    key: PRNGKeyArray | None = None,
    *,
    weights: Sequence[float] | None = None,
    rtol: float | None = None,
) -> Matrices:
    """Write a matrix as a balanced chain: W_N … W_1 = X with W_{p+1}* W_{p+1} = W_p W_p*.

    **Arguments:**

    - `X` (m, n), real or complex; `widths`: (d_0, …, d_N), as of `networks.deep_linear`, with d_0 = n and d_N = m.
    - `gauge`: the frames between the singular vectors of X. "svd": the first columns of the identity; "haar":
      uniformly random ones, drawn with `key`, as in the balanced initialisation of Arora, Cohen, Golowich and Hu
      (arXiv 1810.02281, procedure 1).
    - `weights`, `rtol`: as of `balanced`.

    **Returns:** N matrices of the kind and type of X, W_1 first, computed in float64.

    **Raises:** `BottleneckError` if a width is below the rank of X; `ShapeError` if the widths do not begin and end
    with those of X; `UnknownNameError`, `ParameterError`, `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> chain = fb.balance.factor(np.diag([8.0, 1.0]), (2, 3, 4, 2))
    >>> [W.shape for W in chain], bool(np.allclose(fb.balance.end_to_end(chain), np.diag([8.0, 1.0])))
    ([(3, 2), (4, 3), (2, 4)], True)

    ```
    """
    check_name("gauge", gauge, ("svd", "haar"))
    given = read_matrix(X)
    sizes = list(widths)
    if not all(isinstance(d, int | np.integer) and d > 0 for d in sizes) or len(sizes) < 3:
        raise ShapeError(f"widths = {sizes}", "three or more positive integers (d_0, …, d_N)", "add a hidden width")
    if (sizes[-1], sizes[0]) != given.shape:
        raise ShapeError(
            f"widths {sizes} for a matrix of shape {given.shape}",
            f"widths that begin with {given.shape[1]} and end with {given.shape[0]}",
            "list the inputs' width first",
        )
    if (gauge == "haar") != (key is not None):
        raise ParameterError(
            f'gauge = "{gauge}" {"without" if key is None else "with"} a key',
            'a key for gauge="haar", and none otherwise',
            'pass gauge="haar", key=jax.random.key(0)',
        )
    (matrix,), back = computable([given])
    svd, depth = product_svd([matrix]), len(sizes) - 1
    rank, narrowest = svd.rank(rtol), min(sizes)
    _warn_of_cut(svd, rank)
    if narrowest < rank:
        raise BottleneckError(
            f"width bottleneck: a layer of width {narrowest} for a matrix of rank {rank}; its fibre is empty",
            f"widths of at least {rank}",
            "widen the layer, or truncate X to its leading singular values first",
        )
    kept = svd.leading(rank)
    if key is None:
        hidden = [np.eye(d, rank, dtype=matrix.dtype) for d in sizes[1:-1]]
    else:
        generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), "uint32")))
        hidden = [_haar(generator, d, rank, matrix.dtype) for d in sizes[1:-1]]
    chain = balanced_chain(kept, hidden, kept.values ** (1 / depth))
    roots_of_weights = [1.0] * depth if weights is None else roots(weights, depth)
    mean = float(np.prod(roots_of_weights)) ** (1 / depth)
    return back([mean / root * W for root, W in zip(roots_of_weights, chain, strict=True)])


def _haar(generator: np.random.Generator, width: int, rank: int, dtype: Any) -> Any:
    """Draw a uniformly distributed frame: the unitary factor of a Gaussian matrix."""
    drawn = generator.normal(size=(width, rank))
    if np.issubdtype(dtype, np.complexfloating):
        drawn = drawn + 1j * generator.normal(size=(width, rank))
    return isometry(drawn)
