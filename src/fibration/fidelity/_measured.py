"""What is measured of the Hessian at points: the ends of its spectrum, and how fast it changes."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .. import trees
from ..curvature import ExtremeEigenvalues, extreme_eigenvalues, hvp
from ..errors import NonFiniteCurvatureError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._assumptions import Assumption

DENSE_LIMIT = 1500
SAFETY = 2.0  # sampled Lipschitz constants are lower estimates: the maximum over directions may be missed
STARTS, ITERATIONS, SHIFT = 3, 25, 0.3


class Spectrum:
    """Bounds of the Hessian's spectrum at several states, computed when they are first asked for.

    Up to `dense_limit` parameters from the whole Hessian, else by Lanczos iterations that start from the last result.
    `lower` and `upper` (n,): below the smallest and above the largest eigenvalue; NaN where nobody looked, infinite
    where the Hessian is not finite.
    """

    def __init__(
        self, problem: AbstractProblem, states: Sequence[PyTree], *, dense_limit: int, tolerance: float
    ) -> None:
        self.problem, self.states, self.tolerance = problem, states, tolerance
        self.dense = trees.size(states[0]) <= dense_limit
        self.lower, self.upper = np.full(len(states), np.nan), np.full(len(states), np.nan)
        self._last: ExtremeEigenvalues | None = None
        self._residual = 0.0

    def look(self, index: int) -> tuple[float, float]:
        """Give the bounds at one state."""
        if np.isnan(self.lower[index]):
            lower, upper = self._dense(index) if self.dense else self._lanczos(index)
            finite = np.isfinite(lower) and np.isfinite(upper)
            self.lower[index], self.upper[index] = (lower, upper) if finite else (-np.inf, np.inf)
        return float(self.lower[index]), float(self.upper[index])

    def look_everywhere(self) -> None:
        """Compute the bounds at every state."""
        for index in range(len(self.states)):
            self.look(index)

    @property
    def assumption(self) -> Assumption:
        """What is known of the smallest eigenvalue, and how."""
        seen = int(np.sum(~np.isnan(self.lower)))
        lowest = float(np.nanmin(self.lower))
        if self.dense:
            note = f"dense eigenvalues at {seen} points, up to rounding"
            return Assumption("smallest Hessian eigenvalue", lowest, "proven", note)
        note = f"Ritz values less their residuals, at most {self._residual:.1e}, by Lanczos at {seen} points"
        return Assumption("smallest Hessian eigenvalue", lowest, "sampled", note)

    def _dense(self, index: int) -> tuple[float, float]:
        lower, upper = np.asarray(_dense_ends(self.problem, self.states[index]), float)
        return float(lower), float(upper)

    def _lanczos(self, index: int) -> tuple[float, float]:
        try:
            found = extreme_eigenvalues(self.problem, self.states[index], 1, tolerance=self.tolerance, start=self._last)
        except NonFiniteCurvatureError:
            return -np.inf, np.inf
        self._last = found
        self._residual = max(self._residual, float(np.max(found.residuals)))
        return float(found.lower[0]), float(found.upper[0])


@eqx.filter_jit
def _dense_ends(problem: AbstractProblem, params: PyTree) -> Float[Array, " 2"]:
    """Compute the smallest and the largest eigenvalue of the whole Hessian, widened by what rounding may do."""
    flat, unravel = ravel_pytree(eqx.filter(params, eqx.is_inexact_array))

    def row(vector: Array) -> Array:
        return ravel_pytree(hvp(problem, params, unravel(vector.astype(flat.dtype))))[0]

    identity = jnp.eye(flat.size, dtype=jnp.promote_types(flat.dtype, jnp.float32))
    matrix = jax.lax.map(row, identity, batch_size=min(flat.size, 64)).astype(identity.dtype)
    values = jnp.linalg.eigvalsh(0.5 * (matrix + matrix.T))
    margin = jnp.finfo(identity.dtype).eps * jnp.sqrt(flat.size) * jnp.linalg.norm(matrix)
    return jnp.stack([values[0] - margin, values[-1] + margin])


def sampled_lipschitz(problem: AbstractProblem, states: Sequence[PyTree]) -> Assumption:
    """Sample the Lipschitz constant of the Hessian at some states: twice the largest |D³C(θ)[v, v, v]| found, |v| = 1.

    For a symmetric trilinear form that maximum is its norm (Banach 1938). It is looked for by the shifted power
    iteration v ← D³C[v, v] + 0.3 |D³C[v, v]| v (Kolda and Mayo, arXiv 1007.1267), from random starts.
    """
    samples = [float(_third_derivative(problem, state, jax.random.key(0))) for state in states]
    note = f"{SAFETY:g} times the largest third derivative found at {len(states)} points by a power iteration"
    return Assumption("Lipschitz constant of the Hessian", SAFETY * float(np.max(samples)), "sampled", note)


@eqx.filter_jit
def _third_derivative(problem: AbstractProblem, params: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
    """Find the largest D³C(θ)[v, v, v] over unit vectors that a few power iterations find."""
    variable, constant = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(variable)
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))

    def gradient(point: Array) -> Array:
        whole = eqx.combine(jax.tree.map(lambda a, b: a.astype(b.dtype), unravel(point), variable), constant)
        return ravel_pytree(problem.gradient(whole))[0].astype(point.dtype)

    def along(function: Callable[[Array], Array], vector: Array) -> Callable[[Array], Array]:
        return lambda point: jax.jvp(function, (point,), (vector,))[1]

    def search(vector: Array) -> Array:
        def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            vector, best = carry
            image = along(along(gradient, vector), vector)(flat)
            value = vector @ image
            # D³C[v, v] is the same for −v, so that the sign of the value is that of v.
            upward = jnp.where(value < 0, -vector, vector)
            return _unit(image + SHIFT * jnp.linalg.norm(image) * upward), jnp.maximum(best, jnp.abs(value))

        return jax.lax.fori_loop(0, ITERATIONS, step, (vector, jnp.zeros((), flat.dtype)))[1]

    starts = jax.random.normal(key, (STARTS, flat.size), flat.dtype)
    return jnp.max(jax.vmap(lambda vector: search(_unit(vector)))(starts))


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(vector.dtype).tiny)
