"""Chains of matrices W_1 … W_N: their product, the group that leaves it alone, imbalance, moment map, regulariser."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ParameterError, ShapeError
from ._arrays import Matrices, adjoint, namespace, read_chain, read_matrix, squared_norm


def end_to_end(Ws: Any) -> Any:
    """Compute the end-to-end matrix X = W_N … W_1 of a chain.

    **Arguments:** `Ws`: N ≥ 2 matrices W_p (d_p, d_{p−1}), W_1 first, as `networks.deep_linear` returns them; NumPy or
    JAX arrays, real or complex.

    **Returns:** X (d_N, d_0), multiplied in the cheapest order.

    **Raises:** `ShapeError` for matrices that do not fit, `NonFiniteDataError`; so do all functions of chains. All of
    them that compute polynomials of the entries, such as this one, can be jitted and differentiated.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> fb.balance.end_to_end([np.array([[2.0], [1.0]]), np.array([[1.0, 3.0]])])
    array([[5.]])

    ```
    """
    matrices = read_chain(Ws)
    return namespace(matrices[0]).linalg.multi_dot(matrices[::-1])


def partial_products(Ws: Any) -> tuple[Matrices, Matrices]:
    """Compute the partial products S_p = W_p … W_1 and T_p = W_N … W_{p+1}, so that X = T_p S_p for every p.

    **Returns:** `(S, T)`: two lists of N + 1 matrices, from S_0 = I to S_N = X and from T_0 = X to T_N = I.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> S, T = fb.balance.partial_products([np.array([[2.0], [1.0]]), np.array([[1.0, 3.0]])])
    >>> [(t @ s).item() for s, t in zip(S, T)]
    [5.0, 5.0, 5.0]

    ```
    """
    matrices = read_chain(Ws)
    xp, dtype = namespace(matrices[0]), matrices[0].dtype
    below = [xp.eye(matrices[0].shape[1], dtype=dtype)]
    above = [xp.eye(matrices[-1].shape[0], dtype=dtype)]
    for W in matrices:
        below.append(W @ below[-1])
    for matrix in reversed(matrices):
        above.append(above[-1] @ matrix)
    return below, above[::-1]


def act(gs: Sequence[Any], Ws: Any) -> Matrices:
    """Move a chain along its fibre: (g·W)_p = g_p W_p g_{p−1}⁻¹, with g_0 = g_N = I. The product stays what it is.

    **Arguments:** `gs`: N − 1 invertible matrices g_p (d_p, d_p).

    **Raises:** `ShapeError` if they are not as many and as wide as the hidden layers.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> moved = fb.balance.act([np.array([[4.0]])], [np.array([[2.0]]), np.array([[1.0]])])
    >>> [W.item() for W in moved]
    [8.0, 0.25]

    ```
    """
    matrices = read_chain(Ws)
    return moved(read_hidden(gs, "g", matrices), matrices)


def read_hidden(given: Sequence[Any], name: str, matrices: Matrices) -> Matrices:
    """Read one square matrix for each hidden layer of a chain; raise `ShapeError` for others."""
    squares = [read_matrix(square, f"{name}_{number}") for number, square in enumerate(given, 1)]
    wanted = [(W.shape[0], W.shape[0]) for W in matrices[:-1]]
    if [square.shape for square in squares] != wanted:
        raise ShapeError(
            f"{name} of shapes {[square.shape for square in squares]}",
            f"one for each hidden layer: shapes {wanted}",
            "leave out what belongs to inputs and outputs",
        )
    return squares


def moved(group: Matrices, matrices: Matrices) -> Matrices:
    """Compute g·W without looking at what is given."""
    xp = namespace(matrices[0])
    left = [g @ W for g, W in zip(group, matrices[:-1], strict=True)] + [matrices[-1]]
    right = [xp.linalg.solve(adjoint(g), adjoint(W)) for g, W in zip(group, left[1:], strict=True)]
    return [left[0], *(adjoint(W) for W in right)]


def narrowed(matrices: Matrices) -> tuple[Matrices, Callable[[Matrices], Matrices]]:
    """Reduce ends that are wider than the hidden layer beside them, by QR, and say how to widen them again.

    Moment maps, the group and its flows see W_1 by W_1 W_1* and W_N by W_N* W_N only.
    """
    xp, core = namespace(matrices[0]), list(matrices)
    first = last = None
    if core[0].shape[1] > core[0].shape[0]:
        first, triangle = xp.linalg.qr(adjoint(core[0]))
        core[0] = adjoint(triangle)
    if core[-1].shape[0] > core[-1].shape[1]:
        last, core[-1] = xp.linalg.qr(core[-1])

    def lift(chain: Matrices) -> Matrices:
        chain = list(chain)
        chain[0] = chain[0] if first is None else chain[0] @ adjoint(first)
        chain[-1] = chain[-1] if last is None else last @ chain[-1]
        return chain

    return core, lift


def imbalance(Ws: Any, weights: Sequence[float] | None = None) -> Matrices:
    """Compute the imbalances G_p = W_{p+1}* W_{p+1} − W_p W_p* of the hidden layers p = 1 … N − 1.

    They are conserved along the gradient flow of every cost of the product (Arora, Cohen and Hazan, arXiv 1802.06509,
    theorem 1), and zero on the balanced chains.

    **Arguments:** `weights`: positive numbers a_1 … a_N, for G_p = a_{p+1} W_{p+1}* W_{p+1} − a_p W_p W_p*.

    **Returns:** N − 1 Hermitian matrices (d_p, d_p).

    **Raises:** `ParameterError` for weights that are not N positive numbers.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> fb.balance.imbalance([np.array([[2.0], [1.0]]), np.array([[1.0, 3.0]])])[0]
    array([[-3.,  1.],
           [ 1.,  8.]])

    ```
    """
    return [-mu for mu in moment_map(Ws, weights)]


def moment_map(Ws: Any, weights: Sequence[float] | None = None) -> Matrices:
    """Compute the moment map μ_p = W_p W_p* − W_{p+1}* W_{p+1} = −G_p: the regulariser's gradient along the fibre.

    For Hermitian ξ_p the derivative of `regularizer(act([expm(s ξ_p)], Ws))` at s = 0 is Σ_p Re tr(ξ_p μ_p) (Lindsey
    and Menon, arXiv 2511.01137). The arguments and errors are those of `imbalance`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> fb.balance.moment_map([np.array([[3.0]]), np.array([[1.0]])])[0]
    array([[8.]])

    ```
    """
    matrices = scaled(read_chain(Ws), weights)
    return [before @ adjoint(before) - adjoint(after) @ after for before, after in itertools.pairwise(matrices)]


def regularizer(Ws: Any, weights: Sequence[float] | None = None) -> Any:
    """Compute R(W) = ½ Σ_p a_p ‖W_p‖² (Frobenius), with a_p = 1 unless `weights` are given.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> float(fb.balance.regularizer([np.array([[3.0]]), np.array([[1.0]])]))
    5.0

    ```
    """
    return sum(squared_norm(W) for W in scaled(read_chain(Ws), weights)) / 2


def scaled(matrices: Matrices, weights: Sequence[float] | None) -> Matrices:
    """Compute √a_p W_p, the chain whose unweighted regulariser and moment map are the weighted ones of W."""
    if weights is None:
        return matrices
    return [root * W for root, W in zip(roots(weights, len(matrices)), matrices, strict=True)]


def unscaled(matrices: Matrices, weights: Sequence[float] | None) -> Matrices:
    """Undo `scaled`."""
    if weights is None:
        return matrices
    return [W / root for root, W in zip(roots(weights, len(matrices)), matrices, strict=True)]


def roots(weights: Sequence[float], depth: int) -> list[float]:
    """Compute √a_p of N positive weights."""
    if len(weights) != depth or not all(0 < float(a) < float("inf") for a in weights):
        raise ParameterError(
            f"weights = {list(weights)}",
            f"{depth} positive numbers, one for each matrix",
            "leave them out for R = ½|W|²",
        )
    return [float(a) ** 0.5 for a in weights]
