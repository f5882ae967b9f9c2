"""The prior on the end-to-end matrix that independent Gaussian weights imply: Laplace's method, and exact integrals."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from .._validation import check_name
from ..errors import FibrationError, ParameterError, ShapeError, SingularProductError
from ..trees import is_traced
from ._arrays import computable, namespace, read_matrix
from ._entropy import FIELDS, log_density
from ._fibre import check_depth, lowest

_EXPONENT = 800.0  # exp(−800) is nothing beside what is kept
_STEP, _STEP_PER_WIDTH = 0.1, 0.2  # trapezoid steps with errors below rounding: see `_log_scalar` and `_log_planar`


def log_prior(X: Any, depth: int, scale: float, method: str = "laplace") -> Any:
    """Compute log p(X), the density of X = W_N … W_1 when all entries of the d×d weights are independent N(0, s²).

    The density is an integral over the fibre of exp(−R(W)/s²), R = ½Σ‖W_p‖², so that small s leaves the balanced
    chains: the Hessian of R across them within the fibre is 2 in every direction, which gives Laplace's constant,

        p(X) ≈ (2πs²)^{−Nd²/2} (πs²)^{(N−1)d(d+1)/4} vol(O_X) ∏_{i,j} a_ij^{−½} exp(−R*(X)/s²),

    R* = (N/2) Σ σ_i^{2/N} and vol(O_X), a_ij as in `entropy` and `log_volume_density`. Real and imaginary parts of
    complex weights are N(0, s²) each; the powers are then −Nd², (N−1)d²/2 and −1, and vol(O_X) is that of U(d)^{N−1}.

    **Arguments:**

    - `X` (d, d), invertible; complex weights are meant if its type is complex.
    - `depth`: N ≥ 1; `scale`: s > 0.
    - `method`: `"laplace"`, with a relative error of order s² that grows towards singular X; or `"quadrature"`, with
      one of rounding, for d = 1 and any depth, d = 2 and depth 2, any d and depth 1.

    **Returns:** log p(X), also far into the tails. Laplace's method can be jitted and
    differentiated in X.

    **Raises:** `SingularProductError` where X is singular to rounding: from N = 2 on the density is infinite there, or
    not given by these formulas; `ParameterError` for a depth or scale, for other sizes by quadrature, and for
    quadrature within a JAX transformation; `ShapeError`, `NonFiniteDataError`, `UnknownNameError`.

    **Source:** derived; the integral for d = 1, N = 2 is K_0(|x|/s²)/(πs²).

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> X = np.array([[1.0, 0.2], [0.0, 0.5]])
    >>> exact = fb.balance.log_prior(X, depth=2, scale=0.1, method="quadrature")
    >>> round(float(np.exp(exact - fb.balance.log_prior(X, depth=2, scale=0.1))), 3)
    0.995

    ```
    """
    check_name("method", method, ("laplace", "quadrature"))
    check_depth(depth)
    if not 0 < scale < math.inf:
        raise ParameterError(f"scale = {scale}", "a positive standard deviation of the weights", "pass scale=0.1, say")
    given = read_matrix(X)
    if given.shape[0] != given.shape[1]:
        raise ShapeError(f"X of shape {given.shape}", "a square matrix", "no density is known for rectangular products")
    (matrix,), back = computable([given])
    values = namespace(matrix).linalg.svd(matrix, compute_uv=False)
    if not is_traced(given) and depth > 1 and values[-1] <= len(given) * np.finfo(matrix.dtype).eps * values[0]:
        raise SingularProductError(
            f"X with singular values from {values[0]:.3g} down to {values[-1]:.3g}",
            "an invertible matrix: the density has a singularity where the determinant is zero",
            "add a multiple of the identity to X",
        )
    field = "complex" if matrix.dtype.kind == "c" else "real"
    if depth == 1:
        result = -FIELDS[field] * len(given) ** 2 / 2 * _log(scale) - (values**2).sum() / (2 * scale**2)
    elif method == "laplace":
        result = _log_laplace(values, depth, scale, field)
    elif is_traced(given):
        raise ParameterError(
            'method="quadrature" within a JAX transformation',
            "numbers",
            'call it outside of `jit`, `vmap` and `grad`, or use method="laplace"',
        )
    else:
        try:
            result = _log_quadrature(values, depth, scale, field)
        except (ArithmeticError, IndexError, MemoryError, ValueError) as error:
            if isinstance(error, FibrationError):
                raise
            raise ParameterError(
                f"σ = {values}, depth {depth} and scale = {scale}, by quadrature ({type(error).__name__})",
                "an integrand whose width a grid can resolve",
                'use method="laplace", whose error is of order scale², or a smaller depth',
            ) from error
    return back([result])[0].real


def _log_laplace(values: Any, depth: int, scale: float, field: str) -> Any:
    d, dimension = values.shape[-1], FIELDS[field]
    across = (depth - 1) * d * (1 + dimension * (d - 1) / 2)  # the number of directions across the balanced chains
    gaussian = -dimension * depth * d**2 / 2 * _log(scale)
    width = across / 2 * (_log(scale) - math.log(2))
    return gaussian + width + log_density(values, depth, 1.0, field) - lowest(values, depth) / scale**2


def _log_quadrature(values: Float[np.ndarray, " d"], depth: int, scale: float, field: str) -> float:
    if len(values) == 1:
        return _log_scalar(float(values[0]), depth, scale, field)
    if len(values) == 2 and depth == 2:
        return _log_planar(values, scale, field)
    raise ParameterError(
        f"a {len(values)}×{len(values)} matrix of depth {depth}, by quadrature",
        "d = 1, or d = 2 and depth 2, or depth 1: other integrals have too many dimensions",
        'use method="laplace"; its error is of order scale², and grows towards singular matrices',
    )


def _log(scale: float) -> float:
    """Compute log 2πs²."""
    return math.log(2 * math.pi) + 2 * math.log(scale)


def _log_scalar(x: float, depth: int, scale: float, field: str) -> float:
    """Compute log p for numbers: an N-fold convolution of a function of log|w|, at zero.

    With |w_p| = |x|^{1/N} exp(v_p), Σ v_p = 0, c = |x|^{2/N}/(2s²) and h(v) = exp(−c(exp(2v) − 1 − 2v)),

        p(x) = (2πs²)^{−N/2} 2^{N−1} exp(−Nc) h*…*h(0)     (real; (2πs²)^{−N} (2π)^{N−1} for complex numbers),

    where 2v adds to zero over the factors; it puts the maximum of h at 0, so that nothing underflows. All terms are
    positive, so that sums keep their relative accuracy. h is entire, and bounded in the strip |Im v| < π/4: the
    trapezoid rule errs by exp(−π²/(2 step)), and for large c, where h has the width 1/(2√c), like that of a Gaussian.
    """
    c = x ** (2 / depth) / (2 * scale**2)
    step = min(_STEP, _STEP_PER_WIDTH / math.sqrt(c))
    highest = _root(c)
    up = math.ceil(highest / step)
    # Down to where h is as small, or to where no sum can be zero.
    small = math.sqrt(0.75 * _EXPONENT / c) if c > 3 * _EXPONENT else (_EXPONENT / c + 1) / 2
    down = math.ceil(min((depth - 1) * highest, small) / step)
    v = step * np.arange(-down, up + 1)
    h = np.exp(-c * (np.expm1(2 * v) - 2 * v))
    # A sum of some of the v_p must be undone by the others, of which none is above `highest`.
    window = (depth - 1) * up
    total, first = h, -down  # Σ h*…*h at step·(first + index), without what lies outside of the window
    for _ in range(depth - 2):
        total, first = step * np.convolve(total, h), first - down
        start, stop = max(0, -window - first), window - first + 1
        total, first = total[start:stop], first + start
    mirrored = h[::-1]  # h(−v), from −up to down
    start, stop = max(first, -up), min(first + len(total), down + 1)
    value = step * float(total[start - first : stop - first] @ mirrored[start + up : stop + up])
    dimension = FIELDS[field]
    volume = (depth - 1) * math.log(2 if field == "real" else 2 * math.pi)
    return -dimension * depth / 2 * _log(scale) + volume - depth * c + math.log(value)


def _root(c: float) -> float:
    """Find v > 0 with c(exp(2v) − 1 − 2v) of about `_EXPONENT`, at least."""
    v = 0.5 * math.log1p(_EXPONENT / c)
    while c * (math.expm1(2 * v) - 2 * v) < _EXPONENT:
        v *= 1.1
    return v


def _log_planar(values: Float[np.ndarray, "2"], scale: float, field: str) -> float:
    """Compute log p for 2×2 matrices of depth 2, in two dimensions.

    With P = W_1ᵀW_1 the fibre is the cone of positive matrices, with tr P + tr P⁻¹XᵀX as the exponent (Herz's Bessel
    function). In P = [1 y; 0 1] diag(p, q) [1 0; y 1] the integral over y is Gaussian, and p = σ_1 eᵘ, q = σ_2 e⁻ᵛ give

        p(X) = C ∫∫ exp(−(σ_1 cosh u + σ_2 cosh v)/s²) (σ_1 eᵘ + σ_2 eᵛ)^{−½} du dv,   C = π (2πs²)^{−7/2},

    or, for complex matrices, the power −1 and C = π³ (2πs²)^{−7}. The integrand is analytic for |Im u|, |Im v| < π/2.
    """
    sharpness = values / scale**2
    grids: list[np.ndarray] = []
    for k in sharpness:
        step = min(2 * _STEP, 3 * _STEP_PER_WIDTH / math.sqrt(k))
        count = math.ceil(math.acosh(1 + _EXPONENT / k) / step)
        grids.append(step * np.arange(-count, count + 1))
    u, v = grids[0][:, None], grids[1][None, :]
    exponent = 2 * (sharpness[0] * np.sinh(u / 2) ** 2 + sharpness[1] * np.sinh(v / 2) ** 2)
    power = FIELDS[field] / 2
    total = np.sum(np.exp(-exponent) * (values[0] * np.exp(u) + values[1] * np.exp(v)) ** -power)
    steps = math.log(grids[0][1] - grids[0][0]) + math.log(grids[1][1] - grids[1][0])
    constant = math.log(math.pi) - 3.5 * _log(scale) if field == "real" else 3 * math.log(math.pi) - 7 * _log(scale)
    return constant + steps - float(np.sum(sharpness)) + math.log(total)
