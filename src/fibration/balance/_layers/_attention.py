"""Attention: queries against keys, values against outputs, and the gains of normalised queries and keys."""

from typing import Any

import numpy as np

from ..._validation import check_strength
from ._heads import Group, Head, balance_heads, head_width, read_vector
from ._pair import PairReport, read_host


def attention(
    WQ: Any,
    WK: Any,
    bQ: Any = None,
    bK: Any = None,
    *,
    heads: int = 1,
    groups: int = 1,
    rope: Any = False,
    rotary: int | None = None,
    strength: float = 1.0,
) -> tuple[tuple[Any, Any, Any, Any], PairReport]:
    """Balance queries against keys: the logits (W_Q x + b_Q)ᵀ(W_K y + b_K) of every head stay what they are.

    Any invertible g (d, d) of a key head leaves them alone: W_K → g W_K, W_Q → g^{−ᵀ} W_Q, and the biases alike. With
    the query heads of a group stacked, μ = [W_K b_K][W_K b_K]ᵀ − Σ_i [W_Qi b_Qi][W_Qi b_Qi]ᵀ becomes zero, by `pair`.
    A rotary embedding commutes only with the rotations and the scalings of its planes; then each plane j is scaled by
    c_j = (‖Q_j‖/‖K_j‖)^½ in K, and by 1/c_j in Q.

    **Arguments:**

    - `WQ` (heads·groups·d, m), `WK` (heads·d, n), as torch stores them: (out, in). `bQ`, `bK`: vectors, or None.
    - `heads`: how many key heads there are; `groups`: how many query heads share one, contiguous in `WQ`.
    - `rope`: False; "half" if coordinate j of a head turns with j + rotary/2, as in the transformers library; or
      "interleaved" if 2j turns with 2j + 1. `rotary`: how many coordinates turn, from the first on, by default all;
      those that do not turn keep the full group.
    - `strength`: as of `pair`.

    **Returns:** `(W_Q', W_K', b_Q', b_K'), report`: arrays of the kinds and types given, None where None was given, and
    a `PairReport` with left W_Q, right W_K, biases included; `change` is that of the W_Qᵀ W_K, without rotations.

    Directions of queries that no key answers are left as they are. The gauge is "nearest". Layers that normalise
    queries and keys have another group: `query_key_norm`.

    **Raises:** `ShapeError` for sizes that are not those of heads; `ParameterError` for rope=True, since the layout
    does not show in the weights, and for counts; `UnknownNameError`, `NonFiniteDataError`.

    **Source:** derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> (WQ, WK, _, _), report = fb.balance.attention(np.array([[9.0, 0.0]]), np.array([[0.0, 1.0]]))
    >>> WQ.round(12).tolist(), WK.round(12).tolist()
    ([[3.0, 0.0]], [[0.0, 3.0]])

    ```
    """
    check_strength(strength)
    given = [read_host(WQ, "W_Q"), read_host(WK, "W_K")]
    d = head_width({"W_Q": given[0].shape[0], "W_K": given[1].shape[0]}, "W_K", heads, groups)
    given += [read_vector(bQ, "b_Q", len(given[0])), read_vector(bK, "b_K", len(given[1]))]

    def split(Q: Any, K: Any, q: Any, k: Any) -> list[Head]:
        queries = _with_bias(Q, q).reshape(heads, groups, d, -1)
        keys = _with_bias(K, k).reshape(heads, d, -1)
        return [(query.transpose(0, 2, 1).reshape(-1, d), key) for query, key in zip(queries, keys, strict=True)]

    def join(parts: list[Head]) -> list[Any]:
        queries = [left.reshape(groups, -1, d).transpose(0, 2, 1).reshape(groups * d, -1) for left, _ in parts]
        (Q, q), (K, k) = (
            _without_bias(np.vstack(rows), old is not None)
            for rows, old in ((queries, given[2]), ([right for _, right in parts], given[3]))
        )
        return [Q, K, q, k]

    (Q, K, q, k), report = balance_heads(given, split, join, Group.of_head(d, rope, rotary), strength)
    return (Q, K, q, k), report


def value_output(
    WV: Any, WO: Any, bV: Any = None, *, heads: int = 1, groups: int = 1, strength: float = 1.0
) -> tuple[tuple[Any, Any, Any], PairReport]:
    """Balance values against the output: W_V → g W_V, b_V → g b_V, W_O → W_O g⁻¹ for each key head.

    Between them stand only averages with the attention's weights, so that any invertible g (d, d) leaves the layer
    alone, and rotary embeddings do not matter. After it Σ_i W_Oiᵀ W_Oi = [W_V b_V][W_V b_V]ᵀ over the group of a head.

    **Arguments:** `WV` (heads·d, m), `WO` (m', heads·groups·d), as torch stores them; `bV`: a vector, or None; a bias
    of the output stays. `heads`, `groups`: as of `attention`; `strength`: as of `pair`.

    **Returns:** `(W_V', W_O', b_V'), report`, with left W_O, right W_V, the bias included.

    **Raises:** those of `attention`.

    **Source:** derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> (WV, WO, _), _ = fb.balance.value_output(np.array([[4.0]]), np.array([[1.0]]))
    >>> WV.round(12).item(), WO.round(12).item()
    (2.0, 2.0)

    ```
    """
    check_strength(strength)
    given = [read_host(WV, "W_V"), read_host(WO, "W_O")]
    d = head_width({"W_V": given[0].shape[0], "W_O": given[1].shape[1]}, "W_V", heads, groups)
    given.append(read_vector(bV, "b_V", len(given[0])))

    def split(V: Any, O: Any, v: Any) -> list[Head]:  # noqa: E741
        values = _with_bias(V, v).reshape(heads, d, -1)
        outputs = O.reshape(-1, heads, groups, d).transpose(1, 2, 0, 3).reshape(heads, -1, d)
        return list(zip(outputs, values, strict=True))

    def join(parts: list[Head]) -> list[Any]:
        V, v = _without_bias(np.vstack([right for _, right in parts]), given[2] is not None)
        outputs = np.stack([left.reshape(groups, -1, d) for left, _ in parts])  # head, group, row, coordinate
        return [V, outputs.transpose(2, 0, 1, 3).reshape(outputs.shape[2], -1), v]

    (V, O, v), report = balance_heads(given, split, join, Group.of_head(d, False, None), strength)  # noqa: E741
    return (V, O, v), report


def query_key_norm(
    gamma_q: Any,
    gamma_k: Any,
    beta_q: Any = None,
    beta_k: Any = None,
    *,
    heads: int = 1,
    groups: int = 1,
    rope: Any = False,
    rotary: int | None = None,
    strength: float = 1.0,
) -> tuple[tuple[Any, Any, Any, Any], PairReport]:
    """Balance the gains of normalised queries and keys: of the group only (γ_q/c, c γ_k) is left.

    A normalisation in front of them takes the symmetry of W_Q and W_K away, but gains that act coordinate by
    coordinate still have a torus: one c for each coordinate, or for each plane of a rotary embedding. After it
    γ_q² + β_q² = γ_k² + β_k², summed over the plane.

    **Arguments:** `gamma_q` (heads·groups·d,), `gamma_k` (heads·d,); gains that all heads share are (d,) with the
    heads = groups = 1 of the default. Gains that are stored as γ − 1 need 1 added before, and taken away after.
    `beta_q`, `beta_k`: the shifts of a layer normalisation, or None. The others are those of `attention`.

    **Returns:** `(γ_q', γ_k', β_q', β_k'), report`, with left γ_q, right γ_k.

    **Raises:** those of `attention`.

    **Source:** derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> (q, k, _, _), _ = fb.balance.query_key_norm(np.array([4.0, 1.0]), np.array([1.0, -9.0]))
    >>> q.round(12).tolist(), k.round(12).tolist()
    ([2.0, 3.0], [2.0, -3.0])

    ```
    """
    check_strength(strength)
    sizes = {name: int(np.size(gain)) for name, gain in (("gamma_q", gamma_q), ("gamma_k", gamma_k))}
    d = head_width(sizes, "gamma_k", heads, groups)
    names = ("gamma_q", "gamma_k", "beta_q", "beta_k")
    given = [
        read_vector(vector, name, sizes[f"gamma_{name[-1]}"])
        for vector, name in zip((gamma_q, gamma_k, beta_q, beta_k), names, strict=True)
    ]

    def split(q: Any, k: Any, shift_q: Any, shift_k: Any) -> list[Head]:
        # The gain and the shift see independent inputs, as the rows of a diagonal matrix and its bias do.
        queries = [np.zeros_like(q) if shift_q is None else shift_q, q]
        keys = [np.zeros_like(k) if shift_k is None else shift_k, k]
        lefts = np.stack(queries).reshape(2, heads, groups, d).transpose(1, 2, 0, 3)
        rights = np.stack(keys).reshape(2, heads, d).transpose(1, 2, 0)
        return [
            (np.vstack([_spread(shift, gain) for shift, gain in left]), _spread(right[:, 0], right[:, 1]).T)
            for left, right in zip(lefts, rights, strict=True)
        ]

    def join(parts: list[Head]) -> list[Any]:
        lefts = np.concatenate([left.reshape(groups, d + 1, d) for left, _ in parts])
        rights = np.stack([right.T for _, right in parts])
        (q, shift_q), (k, shift_k) = (
            (np.concatenate([np.diag(block[1:]) for block in blocks]), np.concatenate([block[0] for block in blocks]))
            for blocks in (lefts, rights)
        )
        return [q, k, shift_q, shift_k]

    (q, k, shift_q, shift_k), report = balance_heads(
        given, split, join, Group.of_head(d, rope, rotary, diagonal=True), strength
    )
    return (q, k, shift_q, shift_k), report


def _spread(shift: Any, gain: Any) -> Any:
    """Write a gain and a shift as the matrix (d + 1, d) that acts on (1, x)."""
    return np.vstack([shift[None], np.diag(gain)])


def _with_bias(W: Any, b: Any) -> Any:
    return W if b is None else np.hstack([W, b[:, None]])


def _without_bias(W: Any, has_bias: bool) -> tuple[Any, Any]:
    return (W[:, :-1], W[:, -1]) if has_bias else (W, None)
