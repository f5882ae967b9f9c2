"""Minimum-norm solves with the differential, by a ladder of methods, with a diagnosis."""

import math
import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import (
    ConditioningWarning,
    MemoryBudgetError,
    NonFiniteDataError,
    ParameterError,
    PrecisionWarning,
    ShapeError,
)
from ..trees import PyTree
from ._dense import DenseFactor
from ._diagnosis import METHODS, UNKNOWN, Diagnosis
from ._differential import Differential, checked
from ._factor import Factor, Number
from ._gram_factor import GramFactor, NormalFactor
from ._operator_factor import OperatorFactor

# Below this many operations a QR factorisation of D takes milliseconds, and loses less than its Gram matrix does.
_CHEAP = 1e9
# Arrays of the size of D that a QR factorisation holds.
_COPIES = 3
# κ²·eps above which a plain Cholesky factor is warned of; the machine epsilon from which on types are short.
_HURTS, _FLOAT32 = 1e-4, 1e-10


def factorize(
    differential: Differential, *, method: str = "auto", rtol: float | None = None, iterations: int | None = None
) -> Factor:
    """Factorise D at θ, for solves with many right-hand sides and dampings.

    **Arguments:** `method` as in `minimum_norm`; `iterations`: the most that "cg" and "lsmr" take.

    **Returns:** a `Factor`: `solve(rhs, damping)`, `at(damping).solve(rhs)`, `diagnosed(rhs, damping)`, `sigma_max`,
    `value`, `jvp`, `vjp`. It may be built, kept and used inside or outside of `jax.jit`. "auto" chooses from the
    shapes: QR of D where 4·max(M, K)·min(M, K)² ≤ 1e9 operations and D fits; else, for M ≤ K, the Gram matrix if its
    M² numbers fit in the memory budget, and for K < M the matrix DᵀD if D fits; else LSMR. All of them lose κ, not κ²,
    to rounding: see the factors for the range in which they do, and for what they go on to beyond it. "svd" pays where
    one factor serves many dampings.
    """
    spectral = rtol is not None
    kind = choose(differential, spectral=spectral) if method == "auto" else method
    if kind in ("qr", "svd"):
        return DenseFactor(differential, method, spectral=kind == "svd" or spectral)
    if kind == "normal":
        return NormalFactor(differential, method)
    if kind in ("cg", "lsmr"):
        return OperatorFactor(differential, method, kind, iterations)
    return GramFactor(differential, method, _ladder(differential, kind, method))


def choose(differential: Differential, *, spectral: bool = False) -> str:
    """Choose the first rung from the shapes: see `factorize`."""
    m, k = differential.shape
    dense, gram = fits(differential, _COPIES * m * k), fits(differential, m * m)
    cheap = 4 * max(m, k) * min(m, k) ** 2 <= _CHEAP
    if dense and (cheap or spectral):
        return "qr"
    if gram and (m <= k or (spectral and not dense)):
        return "eigh" if spectral else "refined"
    if dense:
        return "normal"
    if spectral:
        raise MemoryBudgetError(
            f"rtol was given, and neither the Jacobian, {m} × {k}, nor the Gram matrix fits in the memory budget",
            "singular values, to drop some of them",
            "use damping instead of rtol, or raise the problem's `memory_budget`",
        )
    return "lsmr"


def fits(differential: Differential, numbers: int) -> bool:
    """Tell whether so many numbers fit in the smallest memory budget of the blocks."""
    itemsize = max(leaf.dtype.itemsize for leaf in trees.coordinates(differential.params))
    return numbers * max(itemsize, 4) <= min(block.memory_budget for block in differential.blocks)


def _ladder(differential: Differential, kind: str, asked: str) -> tuple[str, ...]:
    if kind == "eigh":
        return ("eigh",)
    if asked == "auto" and fits(differential, _COPIES * math.prod(differential.shape)):
        return (kind, "dense")
    return {"cholesky": ("cholesky", "eigh"), "refined": ("refined", "pcg", "eigh"), "pcg": ("pcg", "eigh")}[kind]


def lift(
    differential: Differential,
    rhs: Float[Array, " M"],
    *,
    damping: Number = 0.0,
    rtol: float | None = None,
    method: str = "auto",
    iterations: int | None = None,
) -> tuple[PyTree, Diagnosis]:
    """Find the tangent vector of least norm that D maps nearest to rhs, D⁺rhs, or its damped form; see `minimum_norm`.

    For flows and optimisers: it checks nothing, warns of nothing, and works inside `jax.jit`.
    """
    factor = factorize(differential, method=method, rtol=rtol, iterations=iterations)
    return factor.diagnosed(rhs, damping, rtol)


_lift = eqx.filter_jit(lift)


def minimum_norm(
    problem: Any,
    params: PyTree,
    rhs: Any,
    damping: Any = 0.0,
    method: str = "auto",
    rtol: Any = None,
    iterations: Any = None,
) -> tuple[PyTree, Diagnosis]:
    """Find the tangent vector v of least norm that D = ∂x/∂θ maps nearest to rhs: v = D⁺rhs, with a diagnosis of D.

    **Arguments:**

    - `rhs`: a velocity of the outputs, shaped like `problem.outputs(params)`, (N, Q), or (N·Q,).
    - `damping`: λ ≥ 0, in units of σ²: v = Dᵀ(DDᵀ + λI)⁻¹rhs = (DᵀD + λI)⁻¹Dᵀrhs instead (Tikhonov).
    - `method`: "auto" climbs a ladder: for N·Q ≤ K the QR factorisation of D if that takes milliseconds, else the
      Cholesky factor of the Gram matrix DDᵀ, refined through D; if that breaks down or its residual is not at rounding
      level, D's QR factorisation, and its singular values if the rank is not full; where D does not fit in
      `problem.memory_budget`, preconditioned conjugate gradients and then the Gram matrix's eigenvectors; where the
      Gram matrix does not fit either, LSMR. For K < N·Q, QR of D, then singular values. By name: "cholesky",
      "refined", "pcg", "eigh", "qr", "svd", "normal" (DᵀD), "cg", "lsmr"; a named one that breaks down is climbed
      from, too, with a warning.
    - `rtol`: drop singular values up to rtol·σ_max ("svd", "eigh", "auto"). Without it those are dropped that cannot
      be told from zero: max(N·Q, K)·eps·σ_max, or √(N·Q·eps)·σ_max by the Gram matrix's eigenvectors.
    - `iterations`: the most that "cg" and "lsmr" take, 10·min(N·Q, K) + 1000 by default.

    **Returns:** `(v, info)`: v a pytree like `params`, with `None` at leaves that are not floating-point, and a
    `Diagnosis`: rank, singular values, condition, residual |Dv − rhs|/|rhs|, the method used, and why.

    **Raises:** `ShapeError`, `NonFiniteDataError` (rhs, or a D that is not finite), `ParameterError`,
    `UnknownNameError`, `ApplyError`. Warns with `ConditioningWarning` where "cholesky" loses digits to the squared
    condition, where a named method broke down, and where an iteration did not converge; with `PrecisionWarning` where
    float32 is too short for the condition.

    The error of v is of order u·κ, κ the condition and u the rounding unit, for all but "cholesky" and "cg" (u·κ²);
    u·κ(1 + κ|P⊥rhs|/(σ_max|v|)) for an rhs out of range D. See the classes of factors in `tangent` for costs.

    **Source:** Chen and Muñoz Ewald, arXiv 2408.01517, section 2, for D⁺; the ladder is standard numerical analysis
    (Björck, *Numerical Methods for Least Squares Problems*, 1996).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.array([[3.0, 4.0]]), jnp.zeros((1, 1)))
    >>> v, info = fb.tangent.minimum_norm(problem, jnp.zeros((1, 2)), jnp.array([[5.0]]))
    >>> print([f"{entry:.3f}" for entry in v[0]], info.method, info.rank, info.condition)
    ['0.600', '0.800'] qr 1 1.0

    ```
    """
    _validation.check_name("method", method, METHODS)
    differential = checked(problem, params)
    vector = _as_outputs(differential, rhs)
    if not trees.is_traced(damping) and not _validation.as_number("damping", damping) >= 0:
        raise ParameterError(f"damping = {damping}", "a number λ ≥ 0, added to σ²", "leave it out for none")
    check_rtol(rtol)
    if iterations is not None and (not isinstance(iterations, int) or iterations < 1):
        raise ParameterError(f"iterations = {iterations!r}", "a count of at least 1", "leave it out for the default")
    if rtol is not None and method not in ("auto", "svd", "eigh"):
        raise ParameterError(
            f"rtol = {rtol} with method={method!r}",
            "a method that finds singular values",
            'pass method="svd", "eigh" or "auto", or leave rtol out',
        )
    if not trees.is_traced(damping):
        damping = jnp.asarray(float(damping))
    v, info = _lift(differential, vector, damping=damping, rtol=rtol, method=method, iterations=iterations)
    if not any(trees.is_traced(leaf) for leaf in (info.code, vector, *trees.coordinates(v))):
        _warn(v, info)
    return v, info


def check_rtol(rtol: Any) -> None:
    """Check a relative threshold for singular values, or raise `ParameterError`."""
    if rtol is not None and not trees.is_traced(rtol) and not 0 <= _validation.as_number("rtol", rtol) < 1:
        raise ParameterError(
            f"rtol = {rtol}", "a part of the largest singular value, from 0 to below 1", "leave it out for rounding's"
        )


def _as_outputs(differential: Differential, rhs: Any) -> Float[Array, " M"]:
    parts = [_validation.as_array(part, "rhs") for part in (rhs if isinstance(rhs, tuple | list) else [rhs])]
    shapes = [(block.n_samples, block.n_outputs) for block in differential.blocks]
    given = [part.shape for part in parts]
    plain = [shape if shape[1] > 1 or len(part) > 1 else shape[:1] for shape, part in zip(shapes, given, strict=False)]
    if given not in (shapes, plain, [(differential.shape[0],)]):
        raise ShapeError(
            f"rhs has shape {given[0] if len(given) == 1 else given}",
            f"the shape of `problem.outputs(params)`, {shapes[0] if len(shapes) == 1 else shapes}",
            "give one number for each sample and output, samples as rows",
        )
    if any(jnp.iscomplexobj(part) for part in parts):
        raise ParameterError("rhs is complex", "a real velocity of the outputs", "solve for both parts by themselves")
    vector = differential.flat(tuple(parts))
    if not jnp.issubdtype(vector.dtype, jnp.inexact):
        vector = vector.astype(float)
    _validation.check_finite(vector, "rhs")
    return vector


def _warn(v: PyTree, info: Diagnosis) -> None:
    eps, condition = float(jnp.finfo(info.sigma_max.dtype).eps), float(info.condition)
    if not bool(jnp.isfinite(info.sigma_max) & trees.all_finite(v)):
        raise NonFiniteDataError(
            f"the solve gave NaN or infinity: σ_max = {float(info.sigma_max)}",
            "finite derivatives of the outputs at these parameters, and a solution within the floating-point range",
            "look for overflow, or a square root or division at zero, in `apply`",
        )
    if info.method == "cholesky" and condition**2 * eps > _HURTS:
        warnings.warn(
            f"the Cholesky factor of the Gram matrix squares the condition {condition:.1e}: expect a relative error of "
            f'about {condition**2 * eps:.0e} in v. Pass method="refined", "qr" or "auto"',
            ConditioningWarning,
            stacklevel=3,
        )
    if info.asked not in ("auto", "qr") and bool(info.climbed):
        warnings.warn(f"method={info.asked!r} could not be used. {info}", ConditioningWarning, stacklevel=3)
    if not bool(info.converged):
        warnings.warn(
            f"{info} Its relative residual is {float(info.residual):.1e} after {int(info.iterations)} iterations; add "
            'damping, or more `iterations`, or leave the method to "auto"',
            ConditioningWarning,
            stacklevel=3,
        )
    dropped = min(info.needed, info.columns) - int(info.rank) if int(info.rank) != UNKNOWN else 0
    if eps > _FLOAT32 and (condition > 1e6 or condition * eps > 0.05 or dropped):
        told = f"expect a relative error of {condition * eps:.0e} in v"
        if dropped:
            told = f"{dropped} singular values cannot be told from zero, and count as zero"
        warnings.warn(
            f"the condition of the differential is {condition:.1e} and the machine epsilon {eps:.1e}: {told}. "
            'Enable float64, `jax.config.update("jax_enable_x64", True)`, before making arrays, or add damping',
            PrecisionWarning,
            stacklevel=3,
        )
