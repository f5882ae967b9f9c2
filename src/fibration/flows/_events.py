"""Where a flow ends before its time: lost rank, and parameters that run off to infinity."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import trees
from ..problem import AbstractProblem
from ..tangent._diagnosis import UNKNOWN
from ..tangent._differential import blocks_of
from ..trees import PyTree
from ._flow import Time
from ._lifted import AbstractLiftedFlow, Start
from ._smoothness import kinks

SUSPECT = 1e-2  # of the smallest singular value at the start: above it a failure has another cause


def threshold(start: Start) -> Float[Array, ""]:
    """Give the smallest singular value, in units of the largest, at which rank counts as lost.

    Near a fold the singular value falls as the square root of the time that is left, so that a step of rounding size
    leaves √ε of it. The cube root is reached before; the square root alone is for differentials that start well off.
    """
    eps = jnp.finfo(start.sigma_min.dtype).eps
    ratio = start.sigma_min / start.sigma_max
    return jnp.maximum(eps ** (1 / 3) * ratio, jnp.minimum(eps**0.5, 0.1 * ratio))


class RankLost(eqx.Module):
    """The condition σ_min(θ) < τ·max(σ_max(θ₀), σ_max(θ)), or a numerical rank below that at the start.

    The larger of two values is needed: σ_min/σ_max alone is one wherever there is but one output.
    """

    flow: AbstractLiftedFlow

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time) -> Bool[Array, ""]:
        """Test it; one solve with the differential."""
        found, start = self.flow.diagnosis(problem, params, time), self.flow.start
        assert start is not None  # noqa: S101 - the condition of a prepared flow
        small = found.sigma_min < threshold(start) * jnp.maximum(found.sigma_max, start.sigma_max)
        known = found.rank != UNKNOWN
        return (known & (found.rank < start.rank)) | ((found.rank == start.rank) & small)


class Collapse(eqx.Module):
    """The differential near where it loses rank.

    `rank`, `sigma_min`, `sigma_max`; `direction` (M,): the unit vector Dθ'/|Dθ'|; `distance`: to where the singular
    value would vanish along the motion, σ/|dσ/dℓ|.
    """

    rank: Array
    sigma_min: Array
    sigma_max: Array
    direction: Float[Array, " M"]
    distance: Float[Array, ""]


@eqx.filter_jit
def _collapse(flow: AbstractLiftedFlow, problem: AbstractProblem, params: PyTree, time: Any) -> Collapse:
    found = flow.diagnosis(problem, params, time)
    differential = flow.differential(problem, params)
    velocity = flow.lifted(problem, params, time)
    speed = trees.norm(velocity)
    # Near lost rank the velocity is along the last right singular vector, so that |Dw| is the singular value.
    w = trees.scale(1 / jnp.where(speed > 0, speed, 1), velocity)

    def along(state: PyTree) -> Array:
        return jax.jvp(differential.outputs, (state,), (w,))[1]

    image, second = jax.jvp(along, (differential.params,), (w,))
    sigma = jnp.linalg.norm(image)
    direction = image / jnp.where(sigma > 0, sigma, 1)
    slope = jnp.abs(direction @ second)
    distance = jnp.where(slope > 0, sigma / jnp.where(slope > 0, slope, 1), jnp.inf)
    return Collapse(found.rank, found.sigma_min, found.sigma_max, direction, distance)


def ended(
    flow: AbstractLiftedFlow, problem: AbstractProblem, start: PyTree, params: PyTree, time: float, code: str
) -> tuple[str, str]:
    """Say why a run ended: the code that fits best, and a sentence.

    Lost rank is told from a blow-up by the distance d to the singular set along the motion (derived): σ falls linearly
    in d at a fold, where d is as small against the way ℓ travelled as σ against its start; where parameters run off to
    infinity d/ℓ stays of order one (½ for f = tanh θ), however small σ is.
    """
    if flow.start is None or code not in ("rank_loss", "step_underflow", "nonfinite"):
        return code, ""
    found = _collapse(flow, problem, params, jnp.asarray(time))
    first, rank = float(flow.start.sigma_min), int(found.rank)
    lost = rank < int(flow.start.rank)
    fraction = 0.0 if lost or first == 0 else float(found.sigma_min) / first
    if code != "rank_loss" and not fraction < SUSPECT:
        edges = kinks(problem, params)
        if code == "nonfinite" or not edges:
            return code, f"the differential is well there, rank {rank} and σ_min/σ_max(start) {fraction:.1e}"
        return code, (
            f"the differential is well there, but the network has kinks ({', '.join(edges)}), along which the flow "
            "slides. Take a smooth activation, or follow the path of the outputs: fb.follow"
        )
    n_outputs, n_parameters = flow.differential(problem, params).shape
    sizes = f"{n_parameters} parameters for {n_outputs} outputs"
    way = float(
        trees.norm(
            trees.subtract(*(eqx.filter(trees.as_coordinates(p), eqx.is_inexact_array) for p in (params, start)))
        )
    )
    if not lost and float(found.distance) > fraction**0.5 * way:
        return "blow_up", (
            f"the smallest singular value of the differential fell from {first:.2g} to {float(found.sigma_min):.1e} "
            f"without a singular point near: the parameters went {way:.3g} far and go on to infinity: the target "
            "is not reachable this way"
        )
    fell = (
        f"rank {rank} of {int(flow.start.rank)}" if lost else f"σ_min from {first:.2g} to {float(found.sigma_min):.1e}"
    )
    shares = "" if lost else f", in the direction of {samples(problem, found.direction)}"
    return "rank_loss", f"the differential falls to {fell} ({sizes}){shares}; the known rate of decay ends here"


def samples(problem: AbstractProblem, direction: Float[Array, " M"]) -> str:
    """Name the samples that make up a unit vector of outputs, those with more than a tenth of it, at most six."""
    weights, names = np.asarray(direction) ** 2, []
    blocks, start = blocks_of(problem), 0
    for number, block in enumerate(blocks):
        shares = weights[start : start + block.n_residuals].reshape(block.n_samples, -1).sum(axis=1)
        of = f" of block {number}" if len(blocks) > 1 else ""
        names += [(share, f"{index}{of}") for index, share in enumerate(shares)]
        start += block.n_residuals
    chosen = [name for share, name in sorted(names, key=lambda pair: -pair[0])[:6] if share > 0.1]
    if not chosen:
        return "many samples together"
    return ("sample " if len(chosen) == 1 else "samples ") + ", ".join(chosen)
