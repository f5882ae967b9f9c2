"""How far a run is from the theorem of the adapted flow, from what it saved."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _validation, trees
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..tangent._differential import Differential, blocks_of
from ..tangent._minimum_norm import factorize
from ..trees import PyTree
from ._path import rates_of, targets_of
from ._saved import Saved, each, integral, saved


@dataclass(frozen=True, eq=False)
class Certificate:
    """What the saved times of a run say about the law of the adapted flow, rᵢ(t) = e^{−t/N} rᵢ(0).

    - `times` (T,); `decay_defect` (T, M): |rᵢ(t) − e^{−t/N}rᵢ(0)| over the norm of e^{−t/N}r(0), residual by residual;
      `worst_sample`: the number of the sample where it is largest, over all blocks.
    - `deviation` (T,): the distance of the outputs from the straight line y + e^{−t/N}r(0); `explained` (T,): the norm
      of (1/N)∫e^{−(t−u)/N}P⊥r du, what missing rank makes of it; `unexplained` (T,): the norm of the difference: the
      error of the integration, damping, kinks, and that of the quadrature over the saved times.
    - `trackability` (T,): |P⊥r|/|r|, the part of the residual that no velocity of the parameters can lessen.
    - `rank`, `needed`, `sigma_min`, `sigma_max` (T,): of the differential; rank −1 where the method does not find it.
    - `lipschitz`: L, the Lipschitz constant of the differential that was given, or else the largest second derivative
      along the motion, `lipschitz_is_bound` tells which; `kantorovich` (T,): 2L|r|/σ_min².
    - `certified` (T,): whether the flow from that time on exists for all times and reaches zero cost: a number
      of at most one, with a bound L, and full rank; an estimate of L certifies nothing. `movement` (T,): the bound
      (σ − √(σ² − 2L|r|))/L on how far the parameters still move, NaN where the number exceeds one.
    """

    times: Float[np.ndarray, " T"]
    decay_defect: Float[np.ndarray, "T M"]
    worst_sample: int
    deviation: Float[np.ndarray, " T"]
    explained: Float[np.ndarray, " T"]
    unexplained: Float[np.ndarray, " T"]
    trackability: Float[np.ndarray, " T"]
    rank: Int[np.ndarray, " T"]
    needed: int
    sigma_min: Float[np.ndarray, " T"]
    sigma_max: Float[np.ndarray, " T"]
    lipschitz: float
    lipschitz_is_bound: bool
    kantorovich: Float[np.ndarray, " T"]
    movement: Float[np.ndarray, " T"]

    @property
    def certified(self) -> Any:
        """Whether existence from each time on is certain, (T,)."""
        return self.lipschitz_is_bound & (self.rank == self.needed) & (self.kantorovich <= 1)

    @property
    def table(self) -> str:
        """The numbers at up to eleven of the times, as text."""
        names = ["defect", "deviation", "unexpl.", "P⊥r/r"]
        head = f"{'time':>10} " + " ".join(f"{name:>9}" for name in names)
        head += f" {'rank':>5} {'σ_min':>9} {'2L|r|/σ²':>9}"
        rows = np.unique(np.linspace(0, len(self.times) - 1, min(11, len(self.times))).round().astype(int))
        worst = self.decay_defect.max(axis=1)
        lines = [
            f"{self.times[i]:10.4g} {worst[i]:9.1e} {self.deviation[i]:9.1e} {self.unexplained[i]:9.1e} "
            f"{self.trackability[i]:9.1e} {self.rank[i]:5d} {self.sigma_min[i]:9.2e} {self.kantorovich[i]:9.1e}"
            for i in rows
        ]
        return "\n".join([head, *lines])

    def __str__(self) -> str:
        nature = (
            "the bound given" if self.lipschitz_is_bound else "an estimate along the motion, which certifies nothing"
        )
        held = np.flatnonzero(self.certified)
        exists = (
            f"existence certified from t = {self.times[held[0]]:.4g} on" if len(held) else "existence not certified"
        )
        return (
            f"decay law held to {self.decay_defect.max():.1e} in every residual (worst: sample {self.worst_sample}), "
            f"rank {self.rank.min()} to {self.rank.max()} of {self.needed}, deviation unexplained by missing rank "
            f"{self.unexplained.max():.1e}; {exists} (L = {self.lipschitz:.3g}, {nature})"
        )


class _At(eqx.Module):
    """What one saved time gives."""

    outputs: Float[Array, " M"]
    untrackable: Float[Array, " M"]
    rank: Array
    sigma_min: Array
    sigma_max: Array
    curvature: Array


@eqx.filter_jit
def _look(problem: AbstractProblem, params: PyTree, method: str) -> _At:
    differential = Differential(problem, params)
    factor = factorize(differential, method=method)
    pull = rates_of(problem).astype(factor.value.dtype) * (targets_of(problem) - factor.value)
    direction, found = factor.diagnosed(pull)
    speed = trees.norm(direction)
    w = trees.scale(1 / jnp.where(speed > 0, speed, 1), direction)

    def along(state: PyTree) -> Array:
        return jax.jvp(differential.outputs, (state,), (w,))[1]

    second = jax.jvp(along, (differential.params,), (w,))[1]
    miss = factor.jvp(direction) - pull
    return _At(factor.value, miss, found.rank, found.sigma_min, found.sigma_max, jnp.linalg.norm(second))


def certificate(
    problem: AbstractProblem, trajectory: Saved, lipschitz: float | None = None, *, method: str = "auto"
) -> Certificate:
    """Certify a run against the law of the adapted flow, residual by residual, from its saved times.

    **Arguments:**

    - `trajectory`: of any flow, from `integrate`, `descend` or `solvers.follow`, with its parameters at two saved times
      or more; the law is taken from the first one on. `problem` must have the loss `SquaredError`.
    - `lipschitz`: L with |D(θ) − D(θ̃)| ≤ L|θ − θ̃| in operator norm, on all that the parameters may reach. With it,
      2L|r| ≤ σ_min² certifies that the flow exists for all times; the constant is sharp.
    - `method`: how the solves are done; see `tangent.minimum_norm`.

    **Returns:** a `Certificate`. Cost alone proves little: with one iteration of conjugate gradients instead of a solve
    it decays exactly as it should, and every residual is wrong. One solve for each time; nothing of the size of the
    Jacobian is kept.

    **Raises:** `ParameterError` for another loss, or L not positive; `TimeSpanError` without enough saved times.

    With weights or several blocks, rᵢ decays as e^{−wᵢt/N}, and |r| in Kantorovich's number is the sum of |rᵢ|, which
    bounds the length of the path that is no longer straight.

    **Source:** derived; the law is Chen and Muñoz Ewald, arXiv 2408.01517; the condition is Newton and Kantorovich's.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: jnp.sin(w @ x), jnp.eye(2), jnp.zeros(2))
    >>> run = fb.follow(problem, jnp.array([0.3, 0.2]), t1=4.0, times=[0.0, 1.0, 2.0, 3.0, 4.0])
    >>> proof = fb.flows.certificate(problem, run, lipschitz=1.0)
    >>> bool(proof.decay_defect.max() < 1e-3), bool(proof.certified.all()), proof.rank[-1].item()
    (True, True, 2)

    ```
    """
    if lipschitz is not None and not 0 < _validation.as_number("lipschitz", lipschitz) < float("inf"):
        raise ParameterError(f"lipschitz = {lipschitz}", "a positive, finite bound", "leave it out for an estimate")
    times, leaves, constant = saved(trajectory, 2)
    looks = [jax.device_get(_look(problem, params, method)) for params in each(leaves, constant, len(times))]
    rates, y = np.asarray(rates_of(problem), float), np.asarray(targets_of(problem), float)
    residuals = np.stack([look.outputs for look in looks]).astype(float) - y
    passed = np.exp(-np.outer(times - times[0], rates))
    law = passed * residuals[0]
    apart = residuals - law
    defect = np.abs(apart) / np.maximum(np.linalg.norm(law, axis=1), np.finfo(float).tiny)[:, None]
    # x' = −P R r, so that (x − x_lin)' = −R(x − x_lin) + P⊥R r.
    lost = np.stack([look.untrackable for look in looks]).astype(float)
    explained = passed * integral(times, lost / passed)
    equal = np.all(rates == rates[0])
    length = np.linalg.norm(residuals, axis=1) if equal else np.abs(residuals).sum(axis=1)
    constant_ = max(float(look.curvature) for look in looks) if lipschitz is None else float(lipschitz)
    sigma = np.array([float(look.sigma_min) for look in looks])
    number = 2 * constant_ * length / np.maximum(sigma, np.finfo(float).tiny) ** 2
    with np.errstate(invalid="ignore"):
        movement = 2 * length / (sigma + np.sqrt(sigma**2 - 2 * constant_ * length))
    pulled = np.maximum(np.linalg.norm(rates * residuals, axis=1), np.finfo(float).tiny)
    owners = np.concatenate([np.full(q, i) for i, q in enumerate(_outputs_of_samples(problem))])
    return Certificate(
        times=times,
        decay_defect=defect,
        worst_sample=int(owners[int(np.argmax(defect.max(axis=0)))]),
        deviation=np.linalg.norm(apart, axis=1),
        explained=np.linalg.norm(explained, axis=1),
        unexplained=np.linalg.norm(apart - explained, axis=1),
        trackability=np.linalg.norm(lost, axis=1) / pulled,
        rank=np.array([int(look.rank) for look in looks]),
        needed=problem.n_residuals,
        sigma_min=sigma,
        sigma_max=np.array([float(look.sigma_max) for look in looks]),
        lipschitz=constant_,
        lipschitz_is_bound=lipschitz is not None,
        kantorovich=number,
        movement=movement,
    )


def _outputs_of_samples(problem: AbstractProblem) -> list[int]:
    return [block.n_outputs for block in blocks_of(problem) for _ in range(block.n_samples)]
