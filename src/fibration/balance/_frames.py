"""Gauges: the frames Q_1 … Q_{N−1} between the singular vectors of X that a balanced chain is free to choose."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import SingularProductError
from ._arrays import Matrices, adjoint, namespace
from ._product import ProductSVD

_SWEEPS = 200  # of the block ascent at most
_TRACED_SWEEPS = 30
_STILL = 1e-14  # relative gain of a sweep at which the ascent is over


def isometry(M: Any) -> Any:
    """Compute the isometry nearest to M (d, r), d ≥ r: u v* from M = u s v*."""
    u, _, vh = namespace(M).linalg.svd(M, full_matrices=False)
    return u @ vh


def balanced_chain(svd: ProductSVD, hidden: Matrices, scale: Any) -> Matrices:
    """Compute W_p = Q_p diag(λ) Q_{p−1}*, with Q_0 = V, Q_N = U and the hidden frames between them."""
    first = adjoint(svd.right_frame.times(_scaled(hidden[0], scale)))
    middle = [(after * scale) @ adjoint(before) for before, after in itertools.pairwise(hidden)]
    return [first, *middle, svd.left_frame.times(_scaled(hidden[-1], scale))]


def _scaled(Q: Any, scale: Any) -> Any:
    """Compute diag(λ) Q*."""
    return scale[:, None] * adjoint(Q)


def svd_frames(matrices: Matrices, svd: ProductSVD, scale: Any) -> Matrices:  # noqa: ARG001
    """Take the first columns of the identity: the cheapest frames."""
    xp, dtype = namespace(matrices[0]), matrices[0].dtype
    return [xp.eye(W.shape[0], len(scale), dtype=dtype) for W in matrices[:-1]]


def polar_frames(matrices: Matrices, svd: ProductSVD, scale: Any) -> Matrices:
    """Take the frames that a positive definite g_p = P_p^{1/2} reaches, P_p = S_p^{−*}(X*X)^{p/N}S_p⁻¹.

    With M = S_p V Σ^{−p/N}, P_p = M^{−*}M⁻¹, so that Q_p = P_p^{1/2} M is the unitary factor of M (derived).
    """
    widths = {W.shape[0] for W in matrices[:-1]}
    if widths != {len(scale)}:
        raise SingularProductError(
            f"a product of rank {len(scale)} behind hidden layers of widths {sorted(widths)}",
            "hidden layers exactly as wide as the rank of the product: else many positive definite g do",
            'take gauge="svd" or "nearest"',
        )
    frames, carried = [], svd.right
    for W in matrices[:-1]:
        carried = (W @ carried) / scale
        frames.append(isometry(carried))
    return frames


def nearest_frames(matrices: Matrices, svd: ProductSVD, scale: Any) -> Matrices:
    """Take the frames whose balanced chain is nearest to the given one in the Euclidean norm.

    Minimising Σ‖W_p − Q_p Λ Q_{p−1}*‖² is maximising Σ Re tr(W_p* Q_p Λ Q_{p−1}*). One frame at a time that is solved
    by Q_p = isometry(W_p Q_{p−1} Λ + W_{p+1}* Q_{p+1} Λ): at once for N = 2, by monotone ascent otherwise, from both
    ends of the chain; its limit need not be the best one.
    """

    def sweep(hidden: Matrices) -> Matrices:
        frames = [svd.right, *hidden, svd.left]
        for p in range(1, len(matrices)):
            frames[p] = isometry((matrices[p - 1] @ frames[p - 1] + adjoint(matrices[p]) @ frames[p + 1]) * scale)
        return frames[1:-1]

    def alignment(hidden: Matrices) -> Any:
        chain = balanced_chain(svd, hidden, scale)
        return sum(namespace(W).sum((W.conj() * V).real) for W, V in zip(matrices, chain, strict=True))

    forward, backward = [svd.right], [svd.left]
    for W in matrices[:-1]:
        forward.append(isometry(W @ forward[-1]))
    for matrix in matrices[:0:-1]:
        backward.append(isometry(adjoint(matrix) @ backward[-1]))
    starts = [forward[1:], backward[:0:-1]]
    if len(matrices) == 2:
        return sweep(starts[0])
    if namespace(matrices[0]) is jnp:
        ends = [jax.lax.fori_loop(0, _TRACED_SWEEPS, lambda _, hidden: sweep(hidden), start) for start in starts]
        better = alignment(ends[1]) > alignment(ends[0])
        return jax.tree.map(lambda a, b: jnp.where(better, b, a), *ends)

    def climbed(hidden: Matrices) -> Matrices:
        height, last = alignment(hidden), -np.inf
        for _ in range(_SWEEPS):
            if height - last <= _STILL * abs(height):
                break
            hidden, last = sweep(hidden), height
            height = alignment(hidden)
        return hidden

    return max(map(climbed, starts), key=alignment)


GAUGES = {"svd": svd_frames, "polar": polar_frames, "nearest": nearest_frames}


def dead_part(matrices: Matrices, svd: ProductSVD, hidden: Matrices) -> Matrices:
    """Compute what a chain does to signals that never reach the output, moved to where the balanced chain does nothing.

    Hidden layer p splits into S_p V, which takes part in the product, and K_p = ker U*T_p, which W_{p+1} maps into
    K_{p+1}: the chain is a direct sum (derived). Orthonormal bases N_p of K_p go to bases F_p of the complement of Q_p,
    so that the moved chain is on the same orbit.
    """
    reached = [svd.left]  # (U* T_p)*, from the output down
    for W in reversed(matrices):
        reached.append(adjoint(W) @ reached[-1])
    kernels = [_complement(R) for R in reached[::-1]]
    kernels[0] = _complement(svd.right)
    complements = [_complement(Q) for Q in (svd.right, *hidden, svd.left)]
    return [
        complements[p + 1] @ (adjoint(kernels[p + 1]) @ W @ kernels[p]) @ adjoint(complements[p])
        for p, W in enumerate(matrices)
    ]


def _complement(Q: Any) -> Any:
    """Find an orthonormal basis of the complement of the columns of Q (d, r), which are independent."""
    return np.linalg.qr(Q, mode="complete")[0][:, Q.shape[1] :]
