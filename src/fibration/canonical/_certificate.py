"""When training provably stays near its start: the lazy-regime certificate."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..errors import ParameterError, PrecisionWarning
from ..losses import SquaredError
from ..problem import Problem
from ..tangent._differential import Differential
from ..trees import PyTree
from ._arguments import as_count, as_real, concrete, epsilon
from ._norms import length, unit
from ._projected import conflicting, single

# Rounds of the power iteration for the second derivative at one point.
_ROUNDS = 20
# How near the start points are drawn, in units of the parameters' own size.
_NEAR = 1e-3


@dataclass(frozen=True)
class LazyCertificate:
    """Whether the gradient flow provably reaches zero cost within a ball round its start.

    - `sigma`: σ₀, number N·Q of the singular values of the differential J, 0 if it is below max(N·Q, M)·eps·σ_max, the
      rounding of such a matrix; `residual`: |r₀|, r = f − y; `lipschitz`: L of J in the ball of radius `radius` =
      2|r₀|/σ₀, and whether it is a `bound` or was sampled.
    - `conflict`: whether some inputs are identical with different targets: then J is singular, and the residuals have a
      positive infimum.
    - `number`: 4L|r₀|/σ₀². At most 1, with a bound, it proves for the flow of ½|r|²: |r(t)| ≤ |r₀|e^{−σ₀²t/4},
      |w(t) − w₀| ≤ 2|r₀|/σ₀ and σ_min ≥ σ₀/2 for all times. In the time of the cost C = |r|²/(2N), divide t by N.
    """

    sigma: float
    residual: float
    lipschitz: float
    bound: bool
    conflict: bool = False

    @property
    def radius(self) -> float:
        """How far the parameters can move."""
        return 2 * self.residual / self.sigma if self.sigma > 0 else float("inf")

    @property
    def number(self) -> float:
        """4L|r₀|/σ₀²."""
        return 4 * self.lipschitz * self.residual / self.sigma**2 if self.sigma > 0 else float("inf")

    @property
    def certified(self) -> bool:
        """Whether it is a proof: the number is at most 1, and the Lipschitz constant a bound."""
        return self.bound and self.number <= 1

    def __str__(self) -> str:
        nature = "a bound" if self.bound else "sampled"
        verdict = "no statement: the number exceeds 1"
        if self.sigma == 0:
            verdict = "no statement: the differential at the samples is singular, as far as its precision tells"
        if self.conflict:
            verdict += ". Some inputs are identical with different targets: zero cost is impossible"
        elif self.number <= 1:
            verdict = "certified" if self.bound else "evidence, not proof: the Lipschitz constant was sampled"
        return (
            f"4L|r|/σ² = {self.number:.3g} with σ_min = {self.sigma:.3g}, |r| = {self.residual:.3g}, "
            f"L = {self.lipschitz:.3g} ({nature}): {verdict}"
        )


@concrete
def lazy_certificate(
    problem: Any, params: PyTree, lipschitz: Any = None, *, draws: Any = 32, seed: Any = 0
) -> LazyCertificate:
    """Test whether the gradient flow from these parameters provably fits the data without moving far.

    **Arguments:** `lipschitz`: a bound on the Lipschitz constant of the differential in the ball of radius 2|r₀|/σ₀,
    in the spectral norm. Without it the constant is sampled, which is *evidence*, not proof: at the start and at points
    of the ball, `draws` together, whose distances run evenly on a logarithmic scale from a thousandth of the
    parameters' size to the rim, the largest |D²f(w)[u, v]| over unit directions u, v that 20 rounds of the power
    iteration for tensors reach.

    **Returns:** a `LazyCertificate`.

    **Raises:** `ParameterError` for a loss other than `SquaredError`, weights, or several blocks. Warns with
    `PrecisionWarning` if σ₀ counts as zero by the rounding of a type coarser than float64.

    One Jacobian, N·Q·M numbers; each draw costs 60 second derivatives along two directions, and gradients of them.

    **Source:** derived; the iteration is that of De Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 21
    (2000).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0]))
    >>> print(fb.canonical.lazy_certificate(problem, jnp.array(0.0), lipschitz=0.0).certified)
    False

    ```
    """
    problem, draws, seed = single(problem), as_count("draws", draws), as_count("seed", seed, 0)
    problem.check(params)
    if lipschitz is not None and not 0 <= as_real("lipschitz", lipschitz) < float("inf"):
        raise ParameterError(f"lipschitz = {lipschitz}", "a finite bound, not negative", "leave it out to sample it")
    if type(problem.loss) is not SquaredError or problem.weights is not None:
        raise ParameterError(
            f"the loss is {type(problem.loss).__name__}{'' if problem.weights is None else ' with weights'}",
            "SquaredError without weights",
            "the certificate is about |f − y|; pass such a problem",
        )
    differential = Differential(problem, params)
    sigma = _least_singular_value(np.asarray(differential.jacobian(), float), epsilon(params, problem.inputs))
    residual = float(length(problem.outputs(params) - problem.targets))
    found = LazyCertificate(sigma, residual, float("nan"), lipschitz is not None, conflicting(problem))
    if lipschitz is not None:
        return dataclasses.replace(found, lipschitz=float(lipschitz))
    if sigma == 0:
        return found
    rng, size = np.random.default_rng(seed), float(length(differential.params)) or 1.0
    distances = np.geomspace(min(_NEAR * size, found.radius / 10), found.radius, draws - 1) if residual > 0 else []
    vector = ravel_pytree(differential.params)[0]
    bent = []
    for distance in [0.0, *distances]:
        numbers = (jnp.asarray(n, vector.dtype) for n in (distance, rng.normal(size=(3, vector.size))))
        bent.append(float(_bending(problem, differential.params, differential.constant, *numbers)))
    # Where the function is not finite nobody can tell.
    return dataclasses.replace(found, lipschitz=max(b if np.isfinite(b) else float("inf") for b in bent))


def _least_singular_value(J: Float[np.ndarray, "NQ M"], eps: float) -> float:
    """Compute singular value number N·Q, 0 where it is less than rounding makes of zero."""
    sigma = np.linalg.svd(J, compute_uv=False)
    floor = max(J.shape) * eps * sigma[0]
    if len(sigma) < J.shape[0] or sigma[-1] > floor:
        return float(sigma[-1]) if len(sigma) == J.shape[0] else 0.0
    if sigma[-1] > floor * np.finfo(float).eps / eps:
        warnings.warn(
            f"σ_min/σ_max = {sigma[-1] / sigma[0]:.0e} is below what parameters or inputs of a rounding unit of "
            f"{eps:.0e} tell from zero: use float64 for all of them (`jax_enable_x64`)",
            PrecisionWarning,
            stacklevel=4,
        )
    return 0.0


@eqx.filter_jit
def _bending(
    problem: Problem, state: PyTree, constant: PyTree, distance: Array, directions: Float[Array, "3 M"]
) -> Float[Array, ""]:
    """Find a large a·D²f(w)[u, v] over unit a, u and v, by turns in each, at a point so far from the state."""
    vector, unravel = ravel_pytree(state)
    point = vector + distance * unit(directions[0])

    def slope(w: Array, v: Array) -> Array:
        return jax.jvp(lambda w: problem.outputs(eqx.combine(unravel(w), constant)).reshape(-1), (w,), (v,))[1]

    def bent(u: Array, v: Array) -> Array:
        return jax.jvp(lambda w: slope(w, u), (point,), (v,))[1]

    def best(a: Array, v: Array) -> Array:
        towards = jax.grad(lambda w: a @ slope(w, v))(point)
        return jnp.where(jnp.any(towards != 0), unit(towards), v)

    def turn(_: Any, both: tuple[Array, Array]) -> tuple[Array, Array]:
        u, v = both
        a = unit(bent(u, v))
        v = best(a, u)
        return best(a, v), v

    u, v = jax.lax.fori_loop(0, _ROUNDS, turn, (unit(directions[1]), unit(directions[2])))
    return length(bent(u, v))
