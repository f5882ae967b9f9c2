"""What a solve with the differential found out."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..trees import PyTree, is_traced

METHODS = ("auto", "cholesky", "refined", "pcg", "eigh", "qr", "svd", "normal", "cg", "lsmr")
UNKNOWN = -1  # the rank, after a method that does not find it

_CLIMBED, _UNCONVERGED = 1, 2
_NATURE = {
    "cholesky": "Cholesky factor of the Gram matrix, whose condition is the square of D's",
    "refined": "Cholesky factor of the Gram matrix, refined through D until the residual was at rounding level",
    "pcg": "conjugate gradients through D, preconditioned by the Cholesky factor of the shifted Gram matrix",
    "eigh": "eigenvectors of the Gram matrix, which resolve singular values down to √(M·eps)·σ_max only",
    "qr": "QR factorisation of the Jacobian, which loses digits by the condition and not by its square",
    "svd": "singular values of the Jacobian",
    "normal": "Cholesky factor of DᵀD, refined through D until the residual was at rounding level",
    "cg": "conjugate gradients, matrix-free",
    "lsmr": "LSMR, matrix-free",
}


class Outcome(NamedTuple):
    """What one rung of the ladder gives: the tangent vector and the facts of a `Diagnosis`."""

    tangent: PyTree
    rank: Int[Array, ""]
    sigma_max: Float[Array, ""]
    sigma_min: Float[Array, ""]
    iterations: Int[Array, ""]
    code: Int[Array, ""]
    flags: Int[Array, ""]


def outcome(
    method: str,
    tangent: PyTree,
    sigmas: tuple[Float[Array, ""], Float[Array, ""]],
    *,
    rank: int | Int[Array, ""],
    iterations: int | Int[Array, ""] = 0,
    converged: bool | Bool[Array, ""] = True,
) -> Outcome:
    """Collect the facts of one rung in arrays of fixed types, so that the rungs can be branches of one program."""
    flags = jnp.where(converged, 0, _UNCONVERGED)
    sigma_max, sigma_min = sigmas
    integers = [jnp.asarray(value, jnp.int32) for value in (rank, iterations, METHODS.index(method), flags)]
    return Outcome(tangent, integers[0], sigma_max, sigma_min, *integers[1:])


def climbed(facts: Outcome) -> Outcome:
    """Mark that the rung before failed."""
    return facts._replace(flags=facts.flags | _CLIMBED)


class Diagnosis(eqx.Module):
    """What a minimum-norm solve found out about D, and how well it solved.

    - `rank`: of D, as decided numerically; −1 if the method does not find it (`cg`, `lsmr`, and Cholesky factors under
      damping too large to see it). `needed` = N·Q, the rank of a differential that can move every output.
    - `sigma_max`, `sigma_min`: the largest singular value and the smallest one that was kept; `condition`: their ratio.
      Exact for `svd` and `eigh`; otherwise estimates from the inside, usually within 10 %, by power and inverse
      iterations. With `cg`, `lsmr` and `pcg` `sigma_min` is an upper bound, from the directions that were met.
    - `residual`: |Dv − rhs|/|rhs|, measured through D.
    - `damping`: λ. `iterations`: refinements or Krylov iterations. `method`: the rung that gave the result; `why`.

    It holds arrays and works inside `jax.jit`, where `method` and `why` are not known yet.
    """

    rank: Int[Array, "..."]
    sigma_max: Float[Array, "..."]
    sigma_min: Float[Array, "..."]
    residual: Float[Array, "..."]
    damping: Float[Array, "..."]
    iterations: Int[Array, "..."]
    code: Int[Array, "..."]
    flags: Int[Array, "..."]
    needed: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)
    asked: str = eqx.field(static=True)

    @property
    def condition(self) -> Float[Array, "..."]:
        """The ratio of the largest singular value to the smallest that was kept; infinite if none was."""
        positive = self.sigma_min > 0
        return jnp.where(positive, self.sigma_max / jnp.where(positive, self.sigma_min, 1), jnp.inf)

    @property
    def method(self) -> Any:
        """The name of the rung that gave the result."""
        return _each(lambda code: METHODS[code], self.code)

    @property
    def why(self) -> Any:
        """Why this rung, in a sentence."""
        return _each(functools.partial(_why, self), self.code, self.flags, self.rank)

    @property
    def climbed(self) -> Bool[Array, "..."]:
        """Whether the first method tried broke down, and the next one gave the result."""
        return (self.flags & _CLIMBED) > 0

    @property
    def converged(self) -> Bool[Array, "..."]:
        """Whether the iteration, if there was one, reached its tolerance."""
        return (self.flags & _UNCONVERGED) == 0

    def __str__(self) -> str:
        if is_traced(self.code):
            return f"Diagnosis of a solve that is being traced: {self.code}"
        rank = "rank not determined" if int(self.rank) == UNKNOWN else f"rank {int(self.rank)} of {self.needed}"
        return (
            f"{self.method}: {rank}, σ from {float(self.sigma_min):.2e} to {float(self.sigma_max):.2e} "
            f"(condition {float(self.condition):.1e}), residual {float(self.residual):.1e}. {self.why}"
        )


def _each(name: Any, code: Array, *others: Array) -> Any:
    if is_traced(code):
        return str(code)
    if code.ndim:
        return [_each(name, *parts) for parts in zip(code, *others, strict=True)]
    return name(*(int(number) for number in (code, *others)))


def _why(self: Diagnosis, code: int, flags: int, rank: int) -> str:
    reason = "as asked" if METHODS[code] == self.asked else "the first choice for these sizes"
    if flags & _CLIMBED:
        reason = "the method before it broke down, or left a residual above rounding level"
    end = ""
    if UNKNOWN < rank < min(self.needed, self.columns):
        end = f"; {min(self.needed, self.columns) - rank} singular values were too small to keep"
    if flags & _UNCONVERGED:
        end += "; it stopped before its tolerance"
    return f"{_NATURE[METHODS[code]]}: {reason}{end}."
