"""The top of the Hessian's spectrum, by a Lanczos iteration that can start from an earlier eigenvector."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import trees
from ..errors import ParameterError, StepSizeError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._hessian import hessian_vector_product


class Eigenpair(NamedTuple):
    """An approximate eigenpair of the Hessian: an eigenvalue lies within `residual` of `value`.

    `value` (): the Ritz value, never above the true largest eigenvalue; `vector`: of unit norm, a pytree like the
    parameters; `residual` (): |∇²C v − λ v|; `products` (): the Hessian–vector products spent.
    """

    value: Float[Array, ""]
    vector: PyTree
    residual: Float[Array, ""]
    products: Int[Array, ""]


@eqx.filter_jit
def largest_eigenpair(
    problem: AbstractProblem,
    params: PyTree,
    *,
    start: PyTree | None = None,
    rtol: float = 1e-3,
    krylov_dimension: int = 12,
    max_restarts: int = 20,
    key: PRNGKeyArray | None = None,
) -> Eigenpair:
    """Compute the largest eigenvalue of ∇²C(θ), the sharpness, and its eigenvector.

    Lanczos iteration with full reorthogonalisation, restarted from its Ritz vector until |∇²C v − λ v| ≤ `rtol` |λ|.
    An eigenvalue then lies within that residual, and the error of λ is of the order of the residual squared over the
    gap to the next one.

    **Arguments:** `start`: a pytree like `params`, such as the eigenvector at a nearby point, which saves most of the
    work; by default a random vector from `key`. `krylov_dimension`: Hessian–vector products between restarts.

    **Raises:** `ParameterError` for complex parameters, or none; `StepSizeError` for an empty Krylov space.

    Allocates `krylov_dimension` + 1 vectors of K numbers.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, 2 * jnp.eye(2), jnp.zeros((2, 2)))
    >>> print(round(float(fb.curvature.largest_eigenpair(problem, jnp.ones(2)).value), 4))
    2.0

    ```
    """
    params = trees.as_coordinates(params)
    variable = eqx.filter(params, eqx.is_inexact_array)
    _check(variable, krylov_dimension)
    if start is None:
        start = trees.random_like(jax.random.key(0) if key is None else key, variable)
    flat, unravel = ravel_pytree(eqx.filter(start, eqx.is_inexact_array))
    parameter_type, flat = flat.dtype, flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    # A start without direction would look like an eigenvector of eigenvalue zero.
    flat = jnp.where(jnp.any(flat != 0), flat, jnp.ones_like(flat))
    dimension = min(krylov_dimension, flat.size)

    def product(v: Float[Array, " k"]) -> Float[Array, " k"]:
        image = hessian_vector_product(problem, params, unravel(v.astype(parameter_type)))
        return ravel_pytree(image)[0].astype(v.dtype)

    def restart(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        vector, _, _, count = carry
        return (*_lanczos(product, vector, dimension), count + 1)

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, value, residual, count = carry
        return (count < max_restarts) & (residual > rtol * jnp.abs(value))

    first = (*_lanczos(product, flat, dimension), jnp.asarray(1))
    vector, value, residual, count = jax.lax.while_loop(unfinished, restart, first)
    return Eigenpair(value, unravel(vector.astype(parameter_type)), residual, count * dimension)


def _check(variable: PyTree, krylov_dimension: int) -> None:
    leaves = jax.tree.leaves(variable)
    if not leaves or any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ParameterError(
            "complex parameters" if leaves else "parameters without floating-point arrays",
            "real floating-point parameters, over which the Hessian is symmetric",
            "write complex parameters as pairs of real ones",
        )
    if krylov_dimension < 1:
        raise StepSizeError(f"krylov_dimension = {krylov_dimension}", "at least 1", "leave it at its default")


def _lanczos(
    product: Callable[[Array], Array], start: Float[Array, " k"], dimension: int
) -> tuple[Float[Array, " k"], Float[Array, ""], Float[Array, ""]]:
    """Run `dimension` Lanczos steps; return the largest Ritz pair's vector, value and residual."""
    dtype, tiny = start.dtype, jnp.finfo(start.dtype).tiny
    basis = jnp.zeros((dimension + 1, start.size), dtype).at[0].set(start / jnp.maximum(jnp.linalg.norm(start), tiny))

    def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, diagonal, off_diagonal = carry
        w = product(basis[j])
        scale = jnp.linalg.norm(w)
        alpha = basis[j] @ w
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            w = w - basis.T @ (basis @ w)
        beta = jnp.linalg.norm(w)
        # An invariant subspace is exhausted when only rounding is left; zero vectors follow.
        beta = jnp.where(beta > 10 * jnp.finfo(dtype).eps * scale, beta, 0.0)
        basis = basis.at[j + 1].set(jnp.where(beta > 0, w / jnp.maximum(beta, tiny), 0.0))
        return basis, diagonal.at[j].set(alpha), off_diagonal.at[j].set(beta)

    zeros = jnp.zeros(dimension, dtype)
    basis, diagonal, off_diagonal = jax.lax.fori_loop(0, dimension, step, (basis, zeros, zeros))
    # Directions after exhaustion are no part of the subspace: put their values below every true one.
    used = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(off_diagonal[:-1] > 0).astype(bool)])
    floor = -10 * (1 + jnp.sum(jnp.abs(diagonal)) + jnp.sum(jnp.abs(off_diagonal)))
    tridiagonal = jnp.diag(jnp.where(used, diagonal, floor))
    tridiagonal += jnp.diag(off_diagonal[:-1], 1) + jnp.diag(off_diagonal[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    ritz = vectors[:, -1] @ basis[:-1]
    return ritz / jnp.maximum(jnp.linalg.norm(ritz), tiny), values[-1], jnp.abs(off_diagonal[-1] * vectors[-1, -1])


class Sharpness(eqx.Module):
    """An observer of the largest Hessian eigenvalue, for `observe=` of `integrate` and `descend`.

    Each evaluation starts from the eigenvector of the last saved time. Compare it with 2/step size: above that line
    gradient descent cannot follow the flow (Elkabetz and Cohen, arXiv 2107.06608).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([0.0]))
    >>> observe = {"sharpness": fb.curvature.Sharpness()}
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.1, steps=2, observe=observe)
    >>> print(run.observed["sharpness"])
    [4. 4. 4.]

    ```
    """

    rtol: float = eqx.field(static=True, default=1e-3)
    krylov_dimension: int = eqx.field(static=True, default=10)

    def init(self, problem: AbstractProblem, params: PyTree) -> PyTree:  # noqa: ARG002
        """Draw the first start vector."""
        return _unit_noise(params)

    def update(
        self,
        problem: AbstractProblem,
        params: PyTree,
        time: float,  # noqa: ARG002
        state: PyTree,
    ) -> tuple[Float[Array, ""], PyTree]:
        """Compute the sharpness and the vector that the next evaluation starts from."""
        pair = largest_eigenpair(
            problem, params, start=state, rtol=self.rtol, krylov_dimension=self.krylov_dimension, max_restarts=60
        )
        # A start that is exactly an eigenvector would never see another one overtake it.
        return pair.value, trees.axpy(0.1, _unit_noise(params), pair.vector)


def _unit_noise(params: PyTree) -> PyTree:
    noise = trees.random_like(jax.random.key(0), eqx.filter(params, eqx.is_inexact_array))
    return trees.scale(1 / trees.norm(noise), noise)
