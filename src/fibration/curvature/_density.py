"""The spectral density of the Hessian, by stochastic Lanczos quadrature."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matfree.decomp
import matfree.stochtrace
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .. import trees
from ..errors import NonFiniteCurvatureError, StepSizeError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._hessian import hvp
from ._spectrum import check_parameters


class SpectralDensity(NamedTuple):
    """An estimate of how the K eigenvalues of a Hessian are distributed.

    - `grid` (G,), `density` (G,): the density, broadened by a Gaussian; its integral is one.
    - `nodes`, `weights` (probes, m): the quadrature of each probe. The mean over eigenvalues of a function f,
      tr f(∇²C)/K, is about Σ weights · f(nodes); all weights add up to one.
    - `broadening` (): the Gaussian's standard deviation.
    """

    grid: Float[Array, " G"]
    density: Float[Array, " G"]
    nodes: Float[Array, "p m"]
    weights: Float[Array, "p m"]
    broadening: Float[Array, ""]


def spectral_density(
    problem: AbstractProblem,
    params: PyTree,
    *,
    probes: int = 8,
    products: int = 64,
    grid: Any = None,
    broadening: float | Float[Array, ""] | None = None,
    key: PRNGKeyArray | None = None,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of ∇²C(θ), by stochastic Lanczos quadrature.

    **Arguments:**

    - `params`: a pytree with real floating-point leaves, K coordinates in all.
    - `probes`: random sign vectors, over which the estimate is averaged; its error falls like 1/√(K·probes).
    - `products`: m, the Hessian–vector products of each probe, at most K: moments up to the (2m − 1)th are those of the
      probe, vᵀ(∇²C)ᵖv/K.
    - `grid` (G,): where to evaluate the density; by default 1001 points, five `broadening` beyond the nodes.
    - `broadening`: the Gaussian's standard deviation, by default one hundredth of the nodes' span.

    Each probe's Lanczos matrix T = S diag(nodes) Sᵀ gives Gauss quadrature with weights S₁ⱼ² (Golub and Meurant,
    Matrices, Moments and Quadrature, 2010; for Hessians Ghorbani, Krishnan and Xiao, arXiv 1901.10159), with matfree's
    tridiagonalisation, fully reorthogonalised. Allocates m vectors of K numbers.

    **Raises:** `ParameterError` for complex parameters, or none; `StepSizeError` for fewer than one probe or product,
    or a broadening that is not positive; `NonFiniteCurvatureError`.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)))  # eigenvalues 1 and 4
    >>> found = fb.curvature.spectral_density(problem, jnp.ones(2), probes=1)
    >>> print(found.nodes.round(3), found.weights.round(3), jnp.trapezoid(found.density, found.grid).round(3))
    [[1. 4.]] [[0.5 0.5]] 1.0

    ```
    """
    check_parameters(params)
    for name, value in (("probes", probes), ("products", products)):
        if value < 1:
            raise StepSizeError(f"{name} = {value}", "at least 1", "leave it at its default")
    if broadening is not None and not trees.is_traced(broadening) and not float(broadening) > 0:
        raise StepSizeError(f"broadening = {broadening}", "a positive number", "leave it at its default")
    key = jax.random.key(0) if key is None else key
    nodes, weights = _quadratures(problem, params, key, probes, min(products, trees.size(params)))
    if not trees.is_traced(nodes) and not bool(jnp.all(jnp.isfinite(nodes))):
        raise NonFiniteCurvatureError(
            "a product with the Hessian is NaN or infinite",
            "parameters at which the second derivative is finite",
            "look at `problem.gradient(params)`, and for a root or an absolute value at zero",
        )
    low, high = jnp.min(nodes), jnp.max(nodes)
    if broadening is None:
        # All eigenvalues may be one and the same, up to rounding, or zero.
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        span = jnp.maximum(high - low, 1e-3 * size)
        broadening = jnp.where(span > 0, span, 1) / 100
    width = jnp.asarray(broadening, nodes.dtype)
    points = jnp.linspace(low - 5 * width, high + 5 * width, 1001) if grid is None else jnp.asarray(grid, nodes.dtype)
    return SpectralDensity(points, _broadened(points, nodes, weights, width), nodes, weights, width)


@jax.jit
def _broadened(points: Array, nodes: Array, weights: Array, width: Array) -> Array:
    def at(point: Array) -> Array:
        return jnp.sum(weights * jax.scipy.stats.norm.pdf(point, nodes, width))

    return jax.lax.map(at, points, batch_size=64)


@eqx.filter_jit
def _quadratures(
    problem: AbstractProblem, params: PyTree, key: PRNGKeyArray, probes: int, products: int
) -> tuple[Array, Array]:
    variable = eqx.filter(trees.as_coordinates(params), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(variable)
    wide = jnp.promote_types(flat.dtype, jnp.float32)

    def apply(v: Array) -> Array:
        return ravel_pytree(hvp(problem, params, unravel(v.astype(flat.dtype))))[0].astype(wide)

    tridiagonalise = matfree.decomp.tridiag_sym(products, reortho="full", materialize=False, custom_vjp=False)

    def quadrature(probe: Array) -> tuple[Array, Array]:
        diagonal, off_diagonal = tridiagonalise(apply, probe).J_small
        # Where the Krylov space is exhausted only rounding follows, or not-a-number: cut it off.
        scale = jnp.max(jnp.abs(jnp.where(jnp.isfinite(diagonal), diagonal, 0)))
        going_on = jnp.isfinite(off_diagonal) & (jnp.abs(off_diagonal) > 100 * jnp.finfo(wide).eps * scale)
        off_diagonal = jnp.where(jnp.cumprod(going_on).astype(bool), off_diagonal, 0)
        used = jnp.concatenate([jnp.ones(1, bool), off_diagonal != 0])
        diagonal = jnp.where(used, diagonal, diagonal[0])
        matrix = jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
        values, vectors = jnp.linalg.eigh(matrix)
        return values, vectors[0] ** 2 / probes

    signs = matfree.stochtrace.sampler_signs(jnp.zeros(flat.size, wide), num=probes)
    return jax.lax.map(quadrature, signs(key))
