"""The disparity of small networks in high precision, where float64 cannot tell singular from nearly singular."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from ..errors import MemoryBudgetError, ParameterError, PrecisionError
from ..trees import PyTree
from ._arguments import as_count, concrete
from ._basis import Basis
from ._coordinates import check
from ._program import run

# Singular values of larger matrices take minutes in such arithmetic.
_MOST = 40
# Digits of float64, and what doubling the nodes may change, in units of σ_max: more is no better than float64.
_LEAST_DIGITS, _UNRESOLVED = 16, 1e-8


@dataclass(frozen=True)
class ExactSpectrum:
    """Singular values of H, descending, computed with `digits` decimal digits; `uncertainty`: of each of them.

    The uncertainty is what doubling the number of nodes changed in H (Frobenius norm): it bounds, by Weyl's
    inequality, the change of every singular value. `needed`: the rank that is asked for, the number K of modes.
    """

    singular_values: Float[np.ndarray, " r"]
    uncertainty: float
    digits: int
    needed: int

    @property
    def sigma_min(self) -> float:
        """Singular value number `needed`, 0 if there are fewer."""
        return float(self.singular_values[self.needed - 1]) if len(self.singular_values) >= self.needed else 0.0

    @property
    def singular(self) -> bool:
        """Whether `sigma_min` cannot be told from zero: H has less than full column rank."""
        return self.sigma_min <= 10 * self.uncertainty

    def __str__(self) -> str:
        least = self.sigma_min
        if len(self.singular_values) < self.needed:
            return f"σ_min = 0: singular, with {self.needed} modes for {len(self.singular_values)} parameters"
        if self.singular:
            return f"σ_min ≤ {least + self.uncertainty:.1e} in {self.digits} digits: singular, as far as they tell"
        return f"σ_min = {least:.2e} ± {self.uncertainty:.0e} in {self.digits} digits: not singular"


@concrete
def exact_spectrum(apply: Any, params: PyTree, basis: Any, *, digits: Any = 60, nodes: Any = 96) -> ExactSpectrum:
    """Compute the singular values of the disparity matrix with so many decimal digits (mpmath).

    **Arguments:** `params`: taken as exact numbers; `digits`: at least 16, float64's; `nodes`: of Gauss–Legendre,
    compared with twice as many.

    **Raises:** `ParameterError` for more than one input, more than one output, or another basis than "cosine";
    `MemoryBudgetError` beyond 40 parameters or modes; `PrecisionError` for an operation without a counterpart in
    mpmath, one that has no real value, and if doubling the nodes changes H by more than 1e-8·σ_max, as at kinks.

    The program of the network's gradient is run on numbers of mpmath. A minute for the largest size.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=2)
    >>> apply = lambda w, x: w[0] * jnp.tanh(w[1] * x[0] + w[2])
    >>> print(fb.canonical.exact_spectrum(apply, jnp.array([1.0, 1e-6, 0.3]), basis, nodes=16))
    σ_min = ...: not singular

    ```
    """
    params = check(apply, params, basis)
    digits, nodes = as_count("digits", digits, _LEAST_DIGITS), as_count("nodes", nodes)
    if basis.dimension != 1 or basis.kind != "cosine":
        raise ParameterError(
            f"a {basis.kind} basis of {basis.dimension} inputs", "a cosine basis of one input", "use `rank_report`"
        )
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(state)
    if max(flat.size, basis.size) > _MOST:
        raise MemoryBudgetError(
            f"{flat.size} parameters and {basis.size} modes", f"at most {_MOST} of both", "use `rank_report`"
        )

    def gradient(vector: Any, x: Any) -> Any:
        def output(vector: Any) -> Any:
            value = jnp.atleast_1d(apply(eqx.combine(unravel(vector), constant), x.reshape(basis.shape)))
            if value.size != 1:
                raise ParameterError(f"{value.size} outputs", "one output", "take one output at a time")
            return value[0]

        return jax.grad(output)(vector)

    program = jax.make_jaxpr(gradient)(flat, jnp.zeros(1, flat.dtype))
    with mpmath.workdps(digits):
        vector = _numbers(np.asarray(flat))
        coarse = _disparity(program, vector, basis, nodes)
        fine = _disparity(program, vector, basis, 2 * nodes)
        sigma = mpmath.svd_r(mpmath.matrix(fine.tolist()), compute_uv=False)
        change = mpmath.sqrt(sum(entry**2 for entry in (fine - coarse).ravel()))
        if change > _UNRESOLVED * sigma[0]:
            raise PrecisionError(
                f"doubling the number of nodes, {nodes}, changed H by {float(change / sigma[0]):.0e}·σ_max",
                "a smooth function, and nodes that resolve it",
                "pass more `nodes`; of a function with kinks go by the float64 report",
            )
        rounding = mpmath.mpf(10) ** (3 - digits) * sigma[0]
        return ExactSpectrum(np.array([float(s) for s in sigma]), float(change + rounding), digits, basis.size)


def _disparity(program: Any, vector: np.ndarray, basis: Basis, nodes: int) -> np.ndarray:
    points, weights = _legendre(nodes)
    total: Any = 0
    low, side = mpmath.mpf(basis.low[0]), mpmath.mpf(basis.high[0]) - mpmath.mpf(basis.low[0])
    for point, weight in zip(points, weights, strict=True):
        x = np.array([low + side * point], dtype=object)
        row = run(program.jaxpr, program.consts, [vector, x], _evaluate, _constant)[0]
        if any(isinstance(entry, mpmath.mpc) for entry in row):
            raise PrecisionError(
                "the gradient is complex", "a real one", "keep logarithms and roots to positive numbers"
            )
        table = [
            mpmath.sqrt(2) * mpmath.cos(mpmath.pi * int(k) * point) if k else mpmath.mpf(1) for k in basis.indices[:, 0]
        ]
        total = total + np.outer(row, np.array(table, dtype=object)) * weight
    return total


def _legendre(n: int) -> tuple[list[Any], list[Any]]:
    """Compute Gauss–Legendre nodes and weights on [0, 1] by Newton's method from float64's."""
    nodes, weights = [], []
    for start in np.polynomial.legendre.leggauss(n)[0]:
        x, slope = mpmath.mpf(float(start)), mpmath.mpf(1)
        for _ in range(4 + mpmath.mp.dps // 30):
            before, p = mpmath.mpf(1), x
            for k in range(2, n + 1):
                before, p = p, ((2 * k - 1) * x * p - (k - 1) * before) / k
            slope = n * (x * p - before) / (x * x - 1)
            x -= p / slope
        nodes.append((x + 1) / 2)
        weights.append(1 / ((1 - x * x) * slope**2))
    return nodes, weights


def _numbers(array: np.ndarray) -> np.ndarray:
    """Turn floating-point entries into numbers of mpmath; leave others alone."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])(array) if array.size else array.astype(object)


def _each(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda *operands, **_: np.vectorize(function, otypes=[object])(*operands)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b, **_: a + b,
    "add_any": lambda a, b, **_: a + b,
    "sub": lambda a, b, **_: a - b,
    "mul": lambda a, b, **_: a * b,
    "div": lambda a, b, **_: a / b,
    "neg": lambda a, **_: -a,
    "square": lambda a, **_: a * a,
    "integer_pow": lambda a, y, **_: a**y,
    "pow": _each(mpmath.power),
    "sign": _each(mpmath.sign),
    "abs": lambda a, **_: abs(a),
    "max": _each(max),
    "min": _each(min),
    "copy": lambda a, **_: a,
    "copy_p": lambda a, **_: a,
    "stop_gradient": lambda a, **_: a,
    "rsqrt": _each(lambda a: 1 / mpmath.sqrt(a)),
    "logistic": _each(lambda a: 1 / (1 + mpmath.exp(-a))),
    "select_n": lambda which, *cases, **_: np.where(which, cases[1], cases[0]),
    "transpose": lambda a, permutation, **_: a.transpose(permutation),
    "squeeze": lambda a, dimensions, **_: np.squeeze(a, axis=tuple(dimensions)),
    "expand_dims": lambda a, dimensions, **_: np.expand_dims(a, tuple(dimensions)),
    "reduce_sum": lambda a, axes, **_: np.asarray(np.sum(a, axis=tuple(axes)), dtype=object),
    "concatenate": lambda *parts, dimension, **_: np.concatenate(parts, axis=dimension),
    **{
        name: _each(getattr(mpmath, name))
        for names in (
            ("tanh", "sinh", "cosh", "asinh", "sin", "cos", "tan", "atan", "atan2"),
            ("exp", "expm1", "log", "log1p", "sqrt", "cbrt", "erf", "erfc"),
        )
        for name in names
    },
    **{
        name: (lambda a, b, test=test, **_: np.vectorize(lambda p, q: bool(test(p, q)), otypes=[bool])(a, b))
        for name, test in {
            "gt": lambda p, q: p > q,
            "lt": lambda p, q: p < q,
            "ge": lambda p, q: p >= q,
            "le": lambda p, q: p <= q,
            "eq": lambda p, q: p == q,
            "ne": lambda p, q: p != q,
        }.items()
    },
}


def _reshape(a: np.ndarray, new_sizes: Any, **_: Any) -> np.ndarray:
    return a.reshape(new_sizes)


def _broadcast(a: np.ndarray, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    inner = [1] * len(shape)
    for axis, place in enumerate(broadcast_dimensions):
        inner[place] = a.shape[axis]
    return np.broadcast_to(a.reshape(inner), shape)


def _slice(a: np.ndarray, start_indices: Any, limit_indices: Any, strides: Any = None, **_: Any) -> np.ndarray:
    steps = strides or [1] * a.ndim
    return a[tuple(slice(i, j, s) for i, j, s in zip(start_indices, limit_indices, steps, strict=True))]


def _pad(a: np.ndarray, value: Any, padding_config: Any, **_: Any) -> np.ndarray:
    if any(inner or low < 0 or high < 0 for low, high, inner in padding_config):
        raise NotImplementedError
    return np.pad(a, [(low, high) for low, high, _ in padding_config], constant_values=np.asarray(value).item())


def _dot(a: np.ndarray, b: np.ndarray, dimension_numbers: Any, **_: Any) -> np.ndarray:
    (left, right), (batch, _) = dimension_numbers
    if batch:
        raise NotImplementedError
    return np.asarray(np.tensordot(a, b, axes=(left, right)), dtype=object)


def _convert(a: np.ndarray, new_dtype: Any, **_: Any) -> np.ndarray:
    if np.issubdtype(new_dtype, np.floating):
        return a if a.dtype == object else _numbers(np.asarray(a, dtype=float))
    return a.astype(new_dtype)


_FUNCTIONS.update(
    {
        "split": lambda a, sizes, axis, **_: np.split(a, np.cumsum(sizes)[:-1], axis=axis),
        "reshape": _reshape,
        "broadcast_in_dim": _broadcast,
        "slice": _slice,
        "pad": _pad,
        "dot_general": _dot,
        "convert_element_type": _convert,
    }
)


def _evaluate(equation: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
    """Compute an operation on arrays of numbers of mpmath."""
    name = equation.primitive.name
    try:
        function = _FUNCTIONS[name]
    except KeyError as error:
        raise _no_counterpart(name) from error
    try:
        found = function(*operands, **equation.params)
    except NotImplementedError as error:
        raise _no_counterpart(name) from error
    except (ArithmeticError, TypeError, ValueError) as error:  # a division by zero, or a root that is complex
        raise PrecisionError(
            f"{name!r} has no real value on the way to the network's gradient: {error}",
            "a gradient that exists at all nodes",
            "move the parameters off this point, or go by the float64 report",
        ) from error
    return [np.asarray(part) for part in (found if equation.primitive.multiple_results else [found])]


def _no_counterpart(name: str) -> PrecisionError:
    return PrecisionError(
        f"the network's gradient uses {name!r}",
        "operations that mpmath can follow: dense layers with smooth activations",
        "go by the float64 report",
    )


def _constant(value: Any) -> np.ndarray:
    return _numbers(np.asarray(value))
