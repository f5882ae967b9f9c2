"""A pair of factors, such as a LoRA adapter: the product stays, the factors become balanced."""

from typing import Any

from ..._validation import check_name, check_strength
from ...errors import ParameterError, ShapeError
from ...trees import is_traced
from .._arrays import Matrices, namespace, read_matrix, widened
from .._balanced import balanced
from .._chain import narrowed
from .._fibre import Orbit, find_orbit
from .._frames import GAUGES
from .._product import product_svd
from ._report import PairReport, measure, report

__all__ = ["PairReport", "pair", "read_host", "rounded", "solve_pair"]


def pair(
    Bm: Any, A: Any, gauge: str = "nearest", strength: float = 1.0, *, on_rank_loss: str = "keep"
) -> tuple[tuple[Any, Any], PairReport]:
    """Balance a pair of factors, such as a LoRA adapter: find B' A' = B A with B'* B' = A' A'*.

    With B A = U diag(σ) V*, the balanced pairs are B' = U diag(σ)^½ Q*, A' = Q diag(σ)^½ V* for any Q (r, k) with
    orthonormal columns (derived): of all factors they have the lowest ‖B‖² + ‖A‖², twice the nuclear norm of B A, and
    each has the square root of the product's condition number. A scale s in s·B A is left where it is.

    **Arguments:**

    - `Bm` (m, r), `A` (r, n): NumPy or JAX arrays, float16, bfloat16, float32 or float64, real or complex.
    - `gauge`: the choice of Q, as of `balanced`; "nearest" moves the factors least.
    - `strength` from 0 (none) to 1 (full): B* B − A A* becomes (1 − strength) times what it was.
    - `on_rank_loss`: what to do with directions of one factor that the other does not pass on, as after few steps of
      training from B = 0, or for r > min(m, n). "keep": balance the others, and leave these beside them, so that
      training can still use them; "drop": delete them; "raise": refuse. The product stays in every case.

    **Returns:** `(B', A'), report`: factors of the kind and type of those given, computed in float64 and rounded back,
    and a `PairReport`, measured after rounding.

    Never forms an m × n matrix: QR factorisations of the sides, and everything else with r × r matrices. For
    4096 × 16 factors some 20 ms; strength below 1 solves a flow of r × r matrices.

    **Raises:** `ParameterError` if a factor is zero, as B is in an adapter before training: the balanced pair would be
    (0, 0), where both gradients vanish; or within a JAX transformation, where `balanced([A, B])` serves. `ShapeError`
    for factors that do not fit, `NonFiniteDataError`, `UnknownNameError`; with "raise", `RankLossError`; with
    gauge "polar", `SingularProductError` unless the product has rank r.

    **Source:** Lindsey and Menon, arXiv 2511.01137, for the minimum; the algorithm is derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> (B, A), report = fb.balance.pair(np.array([[8.0], [6.0]]), np.array([[0.1, 0.0]]))
    >>> B.round(12).tolist(), A.round(12).tolist(), report.norms[0]
    ([[0.8], [0.6]], [[1.0, 0.0]], (10.0, 0.1))

    ```
    """
    check_name("gauge", gauge, GAUGES)
    check_name("on_rank_loss", on_rank_loss, ("keep", "drop", "raise"))
    check_strength(strength)
    given = [read_host(Bm, "B"), read_host(A, "A")]
    if given[0].shape[1] != given[1].shape[0]:
        raise ShapeError(
            f"B of shape {given[0].shape} and A of shape {given[1].shape}",
            "as many columns in B as rows in A, the rank of the adapter",
            "check the order, B first, and transpose factors that are stored as (in, out)",
        )
    before = (widened(given[0]), widened(given[1]))
    for W, name in zip(before, "BA", strict=True):
        if not W.any():
            raise ParameterError(
                f"{name} is zero, as in an adapter before training",
                "two factors that are not zero: the balanced pair would be (0, 0), where both gradients vanish",
                "train first, or leave this pair alone",
            )
    results, found, note = solve_pair(*before, gauge, strength, on_rank_loss)
    new = rounded(results, given)
    return (new[0], new[1]), report([measure(before, (widened(new[0]), widened(new[1])), found.rank)], note)


def read_host(W: Any, name: str) -> Any:
    """Read a matrix that is no tracer."""
    if is_traced(W):
        raise ParameterError(
            f"{name} within a JAX transformation",
            "arrays with values: this runs on the host, in float64",
            "call it outside of `jax.jit`; `balanced([A, B])` and `rebalance` can be compiled",
        )
    return read_matrix(W, name)


def rounded(results: Matrices, given: Matrices) -> Matrices:
    """Take results to the kinds and types of what was given."""
    return [namespace(old).asarray(new.astype(old.dtype)) for new, old in zip(results, given, strict=True)]


def solve_pair(
    B: Any, A: Any, gauge: str = "nearest", strength: float = 1.0, on_rank_loss: str = "keep"
) -> tuple[Matrices, Orbit, str]:
    """Balance a pair in float64; its wide sides are reduced by QR, so that "keep" completes small bases only.

    **Returns:** `[B', A'], orbit, note`.
    """
    core, lift = narrowed([A, B])
    svd = product_svd(core)
    found = find_orbit(core, svd, None)
    if strength == 0 or found.rank == 0:
        return [B, A], found, "" if found.rank else "the product is zero: left alone"
    note = "" if found.closed else _describe(found, strength, on_rank_loss)
    first, last = lift(balanced(core, gauge, strength, on_rank_loss))
    return [last, first], found, note


def _describe(found: Orbit, strength: float, on_rank_loss: str) -> str:
    dead = [
        f"{count} directions of the {side} factor" for side, count in zip(("right", "left"), found.dead, strict=True)
    ]
    named = " and ".join(text for text, count in zip(dead, found.dead, strict=True) if count)
    done = "shrunk" if strength < 1 else "dropped" if on_rank_loss == "drop" else "left beside it"
    return f"{named} do not take part in the product: {done}"
