"""When training provably stays near its start: the lazy-regime certificate."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import _validation
from ..errors import ParameterError
from ..losses import SquaredError
from ..problem import AbstractProblem
from ..tangent._differential import Differential
from ..trees import PyTree
from ._projected import single


@dataclass(frozen=True)
class LazyCertificate:
    """Whether the gradient flow provably reaches zero cost within a ball round its start.

    - `sigma`: σ₀, number N·Q of the singular values of the differential J; `residual`: |r₀|, r = f − y; `lipschitz`: L
      of J in the ball of radius `radius` = 2|r₀|/σ₀, and whether it is a `bound` or was sampled.
    - `number`: 4L|r₀|/σ₀². At most 1, with a bound, it proves for the flow of ½|r|²: |r(t)| ≤ |r₀|e^{−σ₀²t/4},
      |w(t) − w₀| ≤ 2|r₀|/σ₀ and σ_min ≥ σ₀/2 for all times. In the time of the cost C = |r|²/(2N), divide t by N.
    """

    sigma: float
    residual: float
    lipschitz: float
    bound: bool

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
        if self.number <= 1:
            verdict = "certified" if self.bound else "evidence, not proof: the Lipschitz constant was sampled"
        return (
            f"4L|r|/σ² = {self.number:.3g} with σ_min = {self.sigma:.3g}, |r| = {self.residual:.3g}, "
            f"L = {self.lipschitz:.3g} ({nature}): {verdict}"
        )


def lazy_certificate(
    problem: AbstractProblem, params: PyTree, lipschitz: float | None = None, *, draws: int = 32, seed: int = 0
) -> LazyCertificate:
    """Test whether the gradient flow from these parameters provably fits the data without moving far.

    **Arguments:** `lipschitz`: a bound on the Lipschitz constant of the differential in the ball of radius 2|r₀|/σ₀,
    in the spectral norm. Without it the constant is sampled: the largest |∂J(w)v|₂ over `draws` points w and unit
    directions v of the ball, which is *evidence*, not proof.

    **Returns:** a `LazyCertificate`.

    **Raises:** `ParameterError` for a loss other than `SquaredError`, weights, or several blocks.

    Each draw costs a Jacobian and its derivative along v: 2·N·Q·M numbers.

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0]))
    >>> print(fb.canonical.lazy_certificate(problem, jnp.array(0.0), lipschitz=0.0).certified)
    False

    ```
    """
    problem = single(problem)
    problem.check(params)
    if lipschitz is not None and not 0 <= _validation.as_number("lipschitz", lipschitz) < float("inf"):
        raise ParameterError(f"lipschitz = {lipschitz}", "a finite bound, not negative", "leave it out to sample it")
    if type(problem.loss) is not SquaredError or problem.weights is not None:
        raise ParameterError(
            f"the loss is {type(problem.loss).__name__}{'' if problem.weights is None else ' with weights'}",
            "SquaredError without weights",
            "the certificate is about |f − y|; pass such a problem",
        )
    differential = Differential(problem, params)
    sigma = np.linalg.svd(np.asarray(differential.jacobian()), compute_uv=False)
    full = len(sigma) == problem.n_residuals
    least = float(sigma[-1]) if full else 0.0
    residual = float(jnp.linalg.norm(problem.outputs(params) - problem.targets))
    if lipschitz is not None:
        return LazyCertificate(least, residual, float(lipschitz), bound=True)
    if least == 0:
        return LazyCertificate(least, residual, float("nan"), bound=False)
    radius = 2 * residual / least
    largest = max(
        float(_bending(problem, differential.params, differential.constant, radius, key))
        for key in jax.random.split(jax.random.key(seed), draws)
    )
    return LazyCertificate(least, residual, largest, bound=False)


@eqx.filter_jit
def _bending(problem: AbstractProblem, state: PyTree, constant: PyTree, radius: float, key: jax.Array) -> jax.Array:
    """Compute |∂J(w)v|₂ at a random point of the ball, in a random direction."""
    vector, unravel = ravel_pytree(state)
    first, second, third = jax.random.split(key, 3)
    place = jax.random.normal(first, vector.shape, vector.dtype)
    share = jax.random.uniform(second, (), vector.dtype) ** (1 / 4)  # towards the rim
    point = vector + radius * share * place / jnp.linalg.norm(place)
    v = jax.random.normal(third, vector.shape, vector.dtype)

    def jacobian(w: jax.Array) -> jax.Array:
        return Differential(problem, eqx.combine(unravel(w), constant)).jacobian()

    bent = jax.jvp(jacobian, (point,), (v / jnp.linalg.norm(v),))[1]
    return jnp.linalg.norm(bent, 2)
