"""Both ends of the Hessian's spectrum, with residuals, from one Krylov space that can start from an earlier result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .. import trees
from ..errors import NonFiniteCurvatureError, ParameterError, ShapeError, StepSizeError, UnknownNameError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._hessian import hvp
from ._lanczos import extreme_pairs

# How much of a warm start is noise, relative to its length: an exact eigenvector would never see another overtake it.
_NOISE = 0.1
# Products at least: a space that has seen little but the bulk, or but the directions it started from, is not believed.
_COLD, _WARM = 20, 10
_ENDS = {"both": (True, True), "largest": (False, True), "smallest": (True, False)}


class ExtremeEigenvalues(NamedTuple):
    """The ends of a symmetric spectrum, each value with its residual.

    - `smallest` (k,), ascending; `largest` (k,), descending: Ritz values. `smallest[0]` is never below the true
      smallest eigenvalue and `largest[0]` never above the true largest, up to rounding.
    - `residuals` (2, k): |A v − λ v| for `smallest`, then for `largest`. An eigenvalue lies within the residual of
      each value.
    - `vectors`: the eigenvectors v, of unit norm: a pytree like the parameters, its leaves (2, k, …).
    - `products` (): Hessian–vector products spent. `converged` (): whether all residuals that were asked for are
      below the tolerance.

    An end that was not asked for is NaN.
    """

    smallest: Float[Array, " k"]
    largest: Float[Array, " k"]
    residuals: Float[Array, "2 k"]
    vectors: PyTree
    products: Int[Array, ""]
    converged: Bool[Array, ""]

    @property
    def lower(self) -> Float[Array, " k"]:
        """The smallest values less their residuals, (k,): a lower bound if no smaller eigenvalue stayed unseen."""
        return self.smallest - self.residuals[0]

    @property
    def upper(self) -> Float[Array, " k"]:
        """The largest values plus their residuals, (k,): an upper bound if no larger eigenvalue stayed unseen."""
        return self.largest + self.residuals[1]


def extreme_eigenvalues(
    problem: AbstractProblem,
    params: PyTree,
    k: int = 1,
    *,
    tolerance: float | Float[Array, ""] = 1e-3,
    start: Any = None,
    which: str = "both",
    flow: Callable[..., PyTree] | None = None,
    time: float | Float[Array, ""] = 0.0,
    max_products: int = 400,
    krylov_dimension: int | None = None,
    key: PRNGKeyArray | None = None,
) -> ExtremeEigenvalues:
    """Compute the k smallest and the k largest eigenvalues of ∇²C(θ), or of a flow's linearisation, with residuals.

    **Arguments:**

    - `params`: a pytree with real floating-point leaves, K coordinates in all; 1 ≤ `k` ≤ K.
    - `tolerance`: the iteration ends when |A v − λ v| ≤ `tolerance` · max|λ| for every eigenpair asked for, the maximum
      over both ends. Late in training the small eigenvalues cluster at zero, so no residual relative to them is
      within reach. The error of an isolated eigenvalue is of the order of its residual squared over its gap.
    - `start`: an earlier result, or one vector shaped like `params`, at nearby parameters: it saves most of the
      products. A tenth of noise is mixed in and ten products at least are spent (twenty without a start), so that
      eigenvectors that overtook since are seen.
    - `which`: "both", "largest" or "smallest"; an end that is not asked for is NaN.
    - `flow`: by default A = ∇²C(θ). Given a flow F, at `time`: A = −(DF + DFᵀ)/2 by a forward and a reverse product,
      which count as two. Its smallest eigenvalue is −μ₂(DF), the logarithmic 2-norm: two solutions of θ' = F(θ) part
      at most like e^{μ₂ t} (Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, Theorem I.10.6).
      For `GradientFlow` A is the Hessian.
    - `max_products`: the budget; when it is spent, the result is what was reached, and `converged` is false.
    - `krylov_dimension`: vectors of K numbers that are kept at once; 4k + 20 and at least 40 by default.
    - `key`: for the noise.

    Thick-restart Lanczos (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000) with full reorthogonalisation; both ends
    come from the same Krylov space. It is compiled, and works inside transformations.

    **Proven**, up to rounding: an eigenvalue lies within the residual of each value; the true smallest eigenvalue is
    not above `smallest[0]`, the true largest not below `largest[0]`. **Not proven**: that `lower` and `upper` enclose
    the spectrum. They do if the random start has a part along the extreme eigenvectors that the iteration had time to
    single out (Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13, 1992), which a loose tolerance makes less
    sure. Of a repeated eigenvalue, only one copy may be seen, unless the Krylov space is exhausted.

    **Raises:** `ParameterError` for complex parameters, none, or fewer than k; `ShapeError` for another size of start;
    `StepSizeError` for a k, a tolerance, a budget or a dimension that is too small; `UnknownNameError` for another
    `which`; `NonFiniteCurvatureError` if the curvature is NaN or infinite (inside a transformation: NaN is returned).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
    >>> ends = fb.curvature.extreme_eigenvalues(problem, jnp.ones(2))
    >>> print(ends.smallest.round(3), ends.largest.round(3), bool(ends.converged))
    [1.] [9.] True

    ```
    """
    _check(params, k, tolerance, start, which, flow, max_products, krylov_dimension)
    found = ends_of_spectrum(
        problem,
        params,
        start_direction(start, params),
        flow,
        jnp.asarray(time),
        jnp.asarray(tolerance),
        jax.random.key(0) if key is None else key,
        k=k,
        ends=_ENDS[which],
        dimension=max(40, 4 * k + 20) if krylov_dimension is None else krylov_dimension,
        max_products=jnp.asarray(max_products),
    )
    value = found.smallest[0] if which == "smallest" else found.largest[0]
    if not trees.is_traced(value) and not bool(jnp.isfinite(value)):
        raise NonFiniteCurvatureError(
            f"a product with the {'Hessian' if flow is None else 'linearisation'} is NaN or infinite",
            "parameters at which the second derivative is finite",
            "look at `problem.gradient(params)`, and for a root or an absolute value at zero",
        )
    return found


@eqx.filter_jit
def ends_of_spectrum(
    problem: AbstractProblem,
    params: PyTree,
    direction: Float[Array, " n"],
    flow: Callable[..., PyTree] | None,
    time: Array,
    tolerance: Array,
    key: PRNGKeyArray,
    *,
    k: int,
    ends: tuple[bool, bool],
    dimension: int,
    max_products: Array,
) -> ExtremeEigenvalues:
    """Compute what `extreme_eigenvalues` returns, without its checks: NaN where the curvature is."""
    variable, constant = eqx.partition(trees.as_coordinates(params), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(variable)
    parameter_type, wide = flat.dtype, jnp.promote_types(flat.dtype, jnp.float32)

    def field(p: PyTree) -> PyTree:
        velocity = None if flow is None else flow(problem, eqx.combine(p, constant), time)
        return eqx.filter(velocity, eqx.is_inexact_array)

    def linearised(tangent: PyTree) -> PyTree:
        if flow is None:
            return hvp(problem, params, tangent)
        forward = jax.jvp(field, (variable,), (tangent,))[1]
        backward = jax.vjp(field, variable)[1](tangent)[0]
        return jax.tree.map(lambda a, b: -0.5 * (a + b), forward, backward)

    known = jnp.any(direction != 0)
    noise = jax.random.normal(key, flat.shape, wide)
    noise = noise / jnp.linalg.norm(noise)
    per_application = 1 if flow is None else 2
    pairs = extreme_pairs(
        lambda v: ravel_pytree(linearised(unravel(v.astype(parameter_type))))[0].astype(wide),
        direction.astype(wide) + jnp.where(known, _NOISE, 1) * noise,
        noise,
        k=k,
        ends=ends,
        dimension=dimension,
        tolerance=tolerance,
        at_least=jnp.where(known, _WARM, _COLD),
        max_applications=max_products // per_application,
    )
    asked = jnp.array(ends)[:, None]
    values = jnp.where(asked, pairs.values, jnp.nan)
    vectors = jnp.where(asked[..., None], pairs.vectors, jnp.nan).astype(parameter_type)
    return ExtremeEigenvalues(
        values[0],
        values[1],
        jnp.where(asked, pairs.residuals, jnp.nan),
        jax.vmap(jax.vmap(unravel))(vectors),
        per_application * pairs.applications,
        pairs.converged,
    )


@eqx.filter_jit
def start_direction(start: Any, params: PyTree) -> Float[Array, " n"]:
    """Sum the finite vectors of a start, to unit length; zero if there is none."""
    if start is None:
        return jnp.zeros_like(ravel_pytree(eqx.filter(trees.as_coordinates(params), eqx.is_inexact_array))[0])
    stacked = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), _directions(start))
    rows = jax.vmap(lambda tree: ravel_pytree(tree)[0])(stacked)
    total = jnp.sum(jnp.where(jnp.all(jnp.isfinite(rows), axis=1, keepdims=True), rows, 0), axis=0)
    return total / jnp.maximum(jnp.linalg.norm(total), jnp.finfo(total.dtype).tiny)


def _directions(start: Any) -> PyTree:
    """Stack the vectors of a start, shaped (2, k, …) as in a result, or (1, 1, …) for a single one."""
    if isinstance(start, ExtremeEigenvalues):
        return start.vectors
    return jax.tree.map(lambda leaf: leaf[None, None], eqx.filter(trees.as_coordinates(start), eqx.is_inexact_array))


def _check(
    params: PyTree,
    k: int,
    tolerance: Any,
    start: Any,
    which: str,
    flow: Any,
    max_products: int,
    krylov_dimension: int | None,
) -> None:
    check_parameters(params)
    n = trees.size(params)
    if k > n:
        raise ParameterError(f"k = {k} eigenvalues of {n} parameters", "at most as many as parameters", f"pass k ≤ {n}")
    if which not in _ENDS:
        raise UnknownNameError(f"which = {which!r}", f"one of {', '.join(map(repr, _ENDS))}", 'leave it at "both"')
    if not trees.is_traced(tolerance) and not float(tolerance) >= 0:
        raise StepSizeError(f"tolerance = {tolerance}", "a number, not negative", "leave it at 1e-3")
    both = 2 if which == "both" else 1
    least = min(n, both * k) * (1 if flow is None else 2)
    limits = [("k", k, 1), ("max_products", max_products, least)]
    if krylov_dimension is not None:
        limits.append(("krylov_dimension", krylov_dimension, min(n, both * (k + 1) + 1)))
    for name, value, limit in limits:
        if value < limit:
            raise StepSizeError(f"{name} = {value}", f"at least {limit}", "leave it at its default")
    if start is not None:
        given = trees.size(_directions(start))
        if given == 0 or given % n:
            raise ShapeError(
                f"a start of {given} numbers for {n} parameters",
                "an earlier result at parameters of the same shapes, or a vector like them",
                "leave `start` out for a random one",
            )


def check_parameters(params: PyTree) -> None:
    """Raise `ParameterError` unless the parameters are real, with at least one coordinate."""
    leaves = trees.coordinates(params)
    if not leaves or any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ParameterError(
            "complex parameters" if leaves else "parameters without floating-point arrays",
            "real floating-point parameters, over which the Hessian is symmetric",
            "write complex parameters as pairs of real ones",
        )
