"""The nearest balanced pair of matrices, of whatever product."""

from typing import Any

import numpy as np

from ..errors import ShapeError
from ._arrays import Matrices, adjoint, computable, read_chain, squared_norm
from ._frames import isometry

_STEPS = 1000
_STILL = 1e-15
_STARTS = 12


def project(Ws: Any) -> Matrices:
    """Move two matrices to the nearest ones with W_2* W_2 = W_1 W_1*; the product changes.

    For d_2 ≥ d_0 the balanced pairs are (V, O V*) with isometries O (d_2, d_0), and the nearest for given O is
    V = ½(W_1 + W_2* O). Then O maximises ½‖O* W_2‖² + Re⟨X, O⟩. If d_0 = d_2 or d_1 ≤ min(d_0, d_2) that is the
    isometry of the polar decomposition of X, completed over the range of W_2, and the squared distance is the
    `excess` R(W) − R*(X) (derived). Otherwise O ← isometry(X + W_2 W_2* O) climbs from there and from other
    starts to a maximum: the highest that was found.

    **Arguments:** `Ws`: two matrices, W_1 (d_1, d_0) and W_2 (d_2, d_1).

    **Returns:** two matrices of the kind and type of `Ws`, exactly balanced up to rounding.

    **Raises:** `ShapeError` for a chain of other than two matrices; `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> [W.item() for W in fb.balance.project([np.array([[3.0]]), np.array([[1.0]])])]
    [2.0, 2.0]

    ```
    """
    given = read_chain(Ws)
    if len(given) != 2:
        raise ShapeError(
            f"a chain of {len(given)} matrices",
            "two: the nearest balanced chain is known for no other number",
            'use `balanced(Ws, "nearest")`, which keeps the product',
        )
    (first, second), back = computable(given)
    if second.shape[0] < first.shape[1]:  # the mirrored chain X* = W_1* W_2*
        return back([adjoint(W) for W in _project(adjoint(second), adjoint(first))[::-1]])
    return back(_project(first, second))


def _project(first: np.ndarray, second: np.ndarray) -> Matrices:
    X = second @ first
    u, s, vh = np.linalg.svd(X, full_matrices=False)
    rank = int(np.sum(s > max(X.shape) * np.finfo(float).eps * s[0])) if s[0] > 0 else 0
    # Complete the isometry of X by the directions of W_2's range that X does not reach, the strongest first.
    reached = u[:, :rank]
    rest, strengths, _ = np.linalg.svd(second - reached @ (adjoint(reached) @ second), full_matrices=False)
    rest = rest[:, strengths > max(second.shape) * np.finfo(float).eps * max(strengths[0], s[0] ** 0.5)]
    completed = np.linalg.qr(np.concatenate([reached, rest], axis=1), mode="complete")[0][:, : X.shape[1]]
    completed[:, :rank] = reached
    starts = [completed @ vh]
    if rank + rest.shape[1] > X.shape[1]:  # no isometry covers the range of W_2: there may be several maxima
        widest = np.linalg.svd(second, full_matrices=False)[0][:, : X.shape[1]]
        generator = np.random.default_rng(0)
        drawn = (isometry(generator.normal(size=X.shape).astype(X.dtype)) for _ in range(_STARTS))
        starts += [widest @ isometry(adjoint(widest) @ X), *drawn]
    best = max((_climb(start, X, second) for start in starts), key=lambda end: _height(end, X, second))
    V = (first + adjoint(second) @ best) / 2
    return [V, best @ adjoint(V)]


def _height(isometric: Any, X: Any, second: Any) -> float:
    return float(squared_norm(adjoint(isometric) @ second) / 2 + np.vdot(X, isometric).real)


def _climb(start: Any, X: Any, second: Any) -> Any:
    """Climb: the height is convex in O, so that maximising its tangent over the isometries raises it."""
    here, last, height = start, -np.inf, _height(start, X, second)
    for _ in range(_STEPS):
        if height - last <= _STILL * abs(height):
            break
        here, last = isometry(X + second @ (adjoint(second) @ here)), height
        height = _height(here, X, second)
    return here
