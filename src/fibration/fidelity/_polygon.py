"""The compiled core of a certificate: gradient descent once more, with an error bound carried along its polygon."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .. import trees
from ..problem import AbstractProblem
from ..trees import PyTree
from ._growth import Defect, grow

HOLDS, RUNAWAY, OUT_OF_REACH, KINK, NONFINITE = 0, 1, 2, 3, 4


class Curvature(NamedTuple):
    """What bounds the Hessian on one stretch of the polygon, between two states where it was looked at.

    `lowest` (2,): lower bounds of the smallest eigenvalue at the two states; `floor`: one that holds within `radius` of
    the first state; `lipschitz`: a Lipschitz constant of the Hessian there; `noise` (3,): how far a gradient may be off
    by rounding, at all, per size of the gradient and per size of the parameters.
    """

    lowest: Float[Array, " 2"]
    floor: Float[Array, ""]
    lipschitz: Float[Array, ""]
    radius: Float[Array, ""]
    noise: Float[Array, " 3"]


class Bound(NamedTuple):
    """Where the certificate stands.

    `error`: the bound; `rounding`: the part of it that is due to rounding; `growth`: the logarithm of the amplification
    so far; `path`: the length of the polygon so far; `code`: `HOLDS`, or why it does not.
    """

    error: Float[Array, ""]
    rounding: Float[Array, ""]
    growth: Float[Array, ""]
    path: Float[Array, ""]
    code: Int[Array, ""]


@eqx.filter_jit
def advance(
    problem: AbstractProblem,
    params: PyTree,
    ends: tuple[PyTree, PyTree],
    curvature: Curvature,
    bound: Bound,
    step_size: Float[Array, ""],
    steps: Int[Array, ""],
) -> tuple[PyTree, Bound]:
    """Take `steps` gradient steps from `params` and carry the bound along, until it no longer holds.

    `ends`: the two states that `curvature` speaks of. **Returns:** the parameters after the steps, and the bound.
    """
    start, constant = eqx.partition(params, eqx.is_inexact_array)
    left, right = (eqx.filter(end, eqx.is_inexact_array) for end in ends)

    def gradient(state: PyTree) -> PyTree:
        return eqx.filter(problem.gradient(eqx.combine(state, constant)), eqx.is_inexact_array)

    def distances(state: PyTree) -> Array:
        return jnp.stack([trees.norm(trees.subtract(state, end)) for end in (left, right)])

    def step(
        carry: tuple[PyTree, PyTree, Array, Bound, Array],
    ) -> tuple[PyTree, PyTree, Array, Bound, Array]:
        state, slope, apart, bound, count = carry
        velocity = jax.tree.map(lambda g: -g, slope)
        middle = gradient(trees.axpy(0.5 * step_size, velocity, state))
        following = trees.axpy(step_size, velocity, state)
        ahead = gradient(following)
        speed = trees.norm(slope)
        apart_ahead = distances(following)
        # A norm is convex: along the step its largest value is at one of the ends.
        reach = jnp.maximum(apart, apart_ahead)
        defect = Defect(
            length=step_size,
            middle=trees.norm(trees.subtract(middle, slope)),
            end=trees.norm(trees.subtract(ahead, slope)),
            curvature=curvature.lipschitz * speed**2,
        )
        lowest = jnp.max(curvature.lowest - curvature.lipschitz * reach)
        error, highest, rate, holds = grow(bound.error, defect, lowest, curvature.floor, curvature.lipschitz)
        lost = _rounding(following, slope, step_size)
        # A gradient that turns faster than the Lipschitz constant allows refutes it: a kink, or too small a constant.
        bend = trees.norm(jax.tree.map(lambda a, b, c: a - 2 * b + c, ahead, middle, slope))
        noise = curvature.noise @ jnp.stack([jnp.ones_like(speed), speed, trees.norm(state)])
        allowed = 1.000001 * curvature.lipschitz * (0.5 * step_size * speed) ** 2 + noise
        finite = trees.all_finite(ahead) & trees.all_finite(middle)
        code = jnp.where(bend > allowed, KINK, HOLDS)
        code = jnp.where(reach[0] + highest > curvature.radius, OUT_OF_REACH, code)
        code = jnp.where(holds, code, RUNAWAY)
        code = jnp.where(finite, code, NONFINITE)
        growth = jnp.exp(step_size * rate)
        after = Bound(
            error=error + lost,
            rounding=growth * bound.rounding + lost,
            growth=bound.growth + step_size * rate,
            path=bound.path + step_size * speed,
            code=code.astype(bound.code.dtype),
        )
        return following, ahead, apart_ahead, after, count + 1

    def unfinished(carry: tuple[PyTree, PyTree, Array, Bound, Array]) -> Array:
        return (carry[4] < steps) & (carry[3].code == HOLDS)

    first = (start, gradient(start), distances(start), bound, jnp.zeros_like(steps))
    state, _, _, bound, _ = jax.lax.while_loop(unfinished, step, first)
    return eqx.combine(state, constant), bound


def _rounding(following: PyTree, slope: PyTree, step_size: Float[Array, ""]) -> Float[Array, ""]:
    """Bound what rounding does in one step: half a unit of the new parameters, or the whole step if that is less."""

    def one(x: Array, g: Array) -> Array:
        roundoff = jnp.finfo(x.dtype).eps / 2
        step = jnp.abs(step_size.astype(x.dtype) * g)
        return jnp.minimum(roundoff * jnp.abs(x), step) + 4 * roundoff * step

    return trees.norm(jax.tree.map(one, following, slope))
