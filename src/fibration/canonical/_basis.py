"""Orthonormal Fourier bases on a box."""

import functools
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _validation
from ..errors import NonFiniteDataError, ParameterError, ShapeError
from ..trees import is_traced
from ._arguments import as_count, as_theta
from ._indices import INDEX_SETS, index_set, signed

KINDS = ("cosine", "fourier")
# Inputs may leave the box by so much of its side: they come from files, in decimals.
_SLACK = 1e-12


class Basis(eqx.Module):
    """Real functions e_k, orthonormal in L²(μ), μ the uniform probability measure on a box of inputs.

    With u = (x − low)/(high − low) they are products over the axes of

    - `kind="cosine"` (default, for functions that are not periodic): 1 and √2 cos πku;
    - `kind="fourier"`, for functions with the box as a period: 1, √2 cos 2πku, and √2 sin 2πku, which has index −k.

    **Arguments:**

    - `box`: lower and upper bounds, shape (…, 2) with (…) the shape of one sample: `[(0, 1), (-1, 1)]` for samples of
      shape (2,), `(0, 1)` for scalars.
    - `degree`: R; `index_set`: "box", "l1", "ball" or "hc", the hyperbolic cross, of |k|.

    **Raises:** `ShapeError`, `NonFiniteDataError`, `ParameterError`, `UnknownNameError`, `MemoryBudgetError`.

    `size` is the number K of modes; `indices` (K, d) lists them by total degree, then lexicographically; the first is
    the constant. For `fourier` they count real dimensions, 2K − 1 of K frequencies on one axis.

    **Source:** Jiang, arXiv 1903.02140, for the Fourier basis; the cosine basis is its even extension, whose
    coefficients of a smooth function fall like k⁻², and not like k⁻¹.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=2)
    >>> basis.size, basis.indices.ravel()
    (3, array([0, 1, 2]))
    >>> print(basis.evaluate(jnp.array([[0.0], [0.5]])).round(3) + 0.0)
    [[ 1.     1.414  1.414]
     [ 1.     0.    -1.414]]

    ```
    """

    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    degree: int = eqx.field(static=True)
    kind: str = eqx.field(static=True)
    index_set: str = eqx.field(static=True)

    def __init__(self, box: Any, degree: Any, kind: Any = "cosine", index_set: Any = "box") -> None:
        _validation.check_name("kind", kind, KINDS)
        _validation.check_name("index_set", index_set, INDEX_SETS)
        bounds, degree = _bounds(box), as_count("degree", degree, 0)
        flat = bounds.reshape(-1, 2)
        _indices(index_set, len(flat), degree, kind)  # says so if they are too many
        self.low, self.high = tuple(flat[:, 0].tolist()), tuple(flat[:, 1].tolist())
        self.shape = bounds.shape[:-1]
        self.degree, self.kind, self.index_set = degree, kind, index_set

    @property
    def indices(self) -> Int[np.ndarray, "K d"]:
        """The modes' multi-indices, by total degree, then lexicographically; negative ones are sines."""
        return _indices(self.index_set, self.dimension, self.degree, self.kind)

    @property
    def size(self) -> int:
        """The number K of modes."""
        return len(self.indices)

    @property
    def dimension(self) -> int:
        """The number d of inputs."""
        return len(self.low)

    @property
    def total_degrees(self) -> Int[np.ndarray, " K"]:
        """Σᵢ|kᵢ| of each mode."""
        return np.abs(self.indices).sum(axis=1)

    def to_unit(self, x: Float[Array, "n ..."]) -> Float[Array, "n d"]:
        """Map samples to the unit cube; out of the box they go out of the cube."""
        flat = x.reshape(-1, self.dimension)
        low, high = np.asarray(self.low), np.asarray(self.high)
        return ((flat - low) / (high - low)).astype(x.dtype)

    def from_unit(self, u: Float[Array, "n d"]) -> Float[Array, "n ..."]:
        """Map points of the unit cube to samples."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return jnp.asarray(low + u * (high - low), u.dtype).reshape(-1, *self.shape)

    def evaluate(self, x: Any) -> Float[Array, "n K"]:
        """Evaluate all modes at samples x of shape (n, …).

        **Raises:** `ShapeError`; `ParameterError` for a sample out of the box, where the basis is the reflected or
        periodic function, not the network.
        """
        x = _validation.as_array(x, "x")
        if x.shape[1:] != self.shape:
            raise ShapeError(
                f"x has shape {x.shape}", f"samples as rows, (n, *{self.shape})", "match the box's shape, (…, 2)"
            )
        u = self.to_unit(x.astype(float) if not jnp.issubdtype(x.dtype, jnp.inexact) else x)
        self.check_inside(u)
        return self.evaluate_unit(u)

    def check_inside(self, u: Float[Array, "n d"]) -> None:
        """Raise `ParameterError` if a point lies out of the unit cube."""
        if is_traced(u):
            return
        values = np.asarray(u)
        slack = max(_SLACK, 4 * float(np.finfo(values.dtype).eps))
        outside = np.argwhere((values < -slack) | (values > 1 + slack) | np.isnan(values))
        if len(outside):
            row, axis = (int(i) for i in outside[0])
            value = self.low[axis] + float(values[row, axis]) * (self.high[axis] - self.low[axis])
            raise ParameterError(
                f"input {axis} of sample {row} is {value:.6g}, out of the box ({self.low[axis]:g}, "
                f"{self.high[axis]:g}), and so are {len(np.unique(outside[:, 0])) - 1} other samples",
                "samples in the box: beyond it a Fourier series is a reflected or repeated function",
                "widen the basis's `box` to hold all data",
            )

    def evaluate_unit(self, u: Float[Array, "n d"]) -> Float[Array, "n K"]:
        """Evaluate all modes at points of the unit cube, (n, d); allocates n·K numbers, twice."""
        values = jnp.ones((len(u), self.size), u.dtype)
        indices = self.indices
        for axis in range(self.dimension):
            column = indices[:, axis]
            distinct, place = np.unique(column, return_inverse=True)
            values = values * modes(distinct, self.kind, u[:, axis])[:, place.reshape(-1)]
        return values

    def synthesise(self, theta: Any, x: Any) -> Float[Array, "n ..."]:
        """Evaluate f_θ(x) = Σ_k θ_k e_k(x), (n, Q), or (n,) for θ of shape (K,).

        **Raises:** `ShapeError`, `ParameterError`.
        """
        theta = as_theta(theta, self.size)
        return self.evaluate(x) @ theta

    def energy(self, theta: Any) -> Float[Array, " R"]:
        """Sum |θ_k|² over each shell of total degree; all shells together are ∫|f_θ|² dμ (Parseval).

        **Raises:** `ShapeError`, `ParameterError`.
        """
        theta, degrees = as_theta(theta, self.size), jnp.asarray(self.total_degrees)
        squares = jnp.sum(theta.reshape(self.size, -1) ** 2, axis=1)
        return jnp.zeros(int(self.total_degrees.max()) + 1, theta.dtype).at[degrees].add(squares)


def check_basis(basis: Any) -> Basis:
    """Check that what is passed as a basis is one, or raise `ParameterError`."""
    if isinstance(basis, Basis):
        return basis
    raise ParameterError(f"basis is {basis!r}", "an `fb.canonical.Basis`", "pass `fb.canonical.Basis(box, degree)`")


def _bounds(box: Any) -> Float[np.ndarray, "... 2"]:
    """Turn a box into lower and upper bounds.

    **Raises:** `ShapeError`, `NonFiniteDataError`, `ParameterError`.
    """
    needed, fix = (
        "a lower and an upper bound for each input, shape (…, 2)",
        "pass `box=[(low, high), …]`, one pair for each input, or `(low, high)` for scalar inputs",
    )
    try:
        given = np.asarray(box)
        if np.iscomplexobj(given) or given.dtype.kind in "SUmM":
            raise TypeError(f"its entries are {given.dtype}, not real numbers")
        bounds = given.astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ShapeError(f"the box is no array of real numbers: {error}", needed, fix) from error
    if bounds.ndim == 0 or bounds.shape[-1] != 2 or bounds.size == 0:
        raise ShapeError(f"the box has shape {bounds.shape}", needed, fix)
    flat = bounds.reshape(-1, 2)
    with np.errstate(all="ignore"):
        sides = flat[:, 1] - flat[:, 0]
    if not np.all(np.isfinite(sides)):
        axis = int(np.argmin(np.isfinite(sides)))
        raise NonFiniteDataError(
            f"the box's side {axis} is {tuple(flat[axis].tolist())}",
            "bounds whose difference is finite",
            "pass the range that the inputs of your data have",
        )
    if not np.all(sides > 0):
        axis = int(np.argmin(sides))
        raise ParameterError(
            f"the box's side {axis} is {tuple(flat[axis].tolist())}",
            "a lower bound below the upper one",
            "drop inputs that are constant, or give them a side of the size that matters",
        )
    return bounds


@functools.lru_cache(maxsize=64)
def _indices(name: str, dimension: int, degree: int, kind: str) -> Int[np.ndarray, "K d"]:
    indices = index_set(name, dimension, degree)
    indices = indices if kind == "cosine" else signed(indices, name)
    indices.flags.writeable = False  # it is shared
    return indices


def modes(frequencies: Int[np.ndarray, " k"], kind: str, u: Float[Array, " n"]) -> Float[Array, "n k"]:
    """Evaluate the modes of one axis with these indices at points of [0, 1]."""
    angle = (math.pi if kind == "cosine" else 2 * math.pi) * u[:, None] * np.abs(frequencies)
    values = jnp.where(jnp.asarray(frequencies) < 0, jnp.sin(angle), jnp.cos(angle))
    return values * np.where(frequencies == 0, 1.0, math.sqrt(2)).astype(u.dtype)
