"""One damped adapted step: trials that share a factor, until one of them lowers the cost as it should."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import trees
from ..trees import PyTree
from ._residuals import AbstractResiduals, Linearised

# The damping after a trial, from the ratio of actual to predicted decrease.
LOWER, RAISE = 0.5, 1.5
GOOD, POOR, ENOUGH = 0.75, 0.25, 1e-3
# The acceleration may be this part of the velocity: beyond it the second order says nothing (Transtrum and Sethna).
BEND = 0.75
MOST_TRIALS = 40
LENGTHS = tuple(2.0**-k for k in range(-1, 8))


class Method(eqx.Module):
    """What kind of step is taken."""

    acceleration: bool = eqx.field(static=True)
    line_search: bool = eqx.field(static=True)


class Move(NamedTuple):
    """A step, or the failure to find one.

    `step`: zero if none was `accepted`; `before`, `cost`: the costs before and after it; `damping` of the next step;
    `used`: the damping of this one; `ratio` of actual to predicted decrease; `rejected`: how many trials were;
    `converged`: no step was found, since no decrease can be told from rounding.
    """

    step: PyTree
    before: Float[Array, ""]
    cost: Float[Array, ""]
    damping: Float[Array, ""]
    used: Float[Array, ""]
    ratio: Float[Array, ""]
    rejected: Int[Array, ""]
    accepted: Bool[Array, ""]
    converged: Bool[Array, ""]


class _Trial(NamedTuple):
    step: PyTree
    cost: Float[Array, ""]
    predicted: Float[Array, ""]


class _Search(NamedTuple):
    """The last trial, its damping, and what that grows by if it is rejected."""

    trial: _Trial
    damping: Float[Array, ""]
    growth: Float[Array, ""]
    tried: Int[Array, ""]
    accepted: Bool[Array, ""]


def half_square(residuals: Float[Array, " M"]) -> Float[Array, ""]:
    """Compute ½|ρ|²."""
    return 0.5 * jnp.vdot(residuals, residuals)


def direction(
    residuals: AbstractResiduals, state: PyTree, solver: Any, rhs: Float[Array, " M"], *, bent: bool
) -> tuple[PyTree, PyTree | None]:
    """Compute the velocity p = −Jᵀ(JJᵀ + λI)⁻¹ rhs, and if `bent` the acceleration, zero where it is too large."""
    velocity = trees.scale(-1.0, solver.solve(rhs))
    if not bent:
        return velocity, None
    second = residuals.second(state, velocity).astype(rhs.dtype)
    acceleration = trees.scale(-0.5, solver.solve(second))
    small = 2 * trees.norm(acceleration) <= BEND * trees.norm(velocity)
    return velocity, jax.tree.map(lambda leaf: jnp.where(small, leaf, 0), acceleration)


def along(velocity: PyTree, acceleration: PyTree | None, length: float | Float[Array, ""]) -> PyTree:
    """Give the point h·p + h²·a of the parabola."""
    step = trees.scale(length, velocity)
    return step if acceleration is None else trees.axpy(length * length, acceleration, step)


def _trial(
    method: Method, residuals: AbstractResiduals, state: PyTree, here: Linearised, damping: Float[Array, ""]
) -> _Trial:
    solver = here.factor.at(damping)
    velocity, acceleration = direction(residuals, state, solver, here.residuals, bent=method.acceleration)
    moved = here.factor.jvp(velocity)

    def cost_of(step: PyTree) -> Float[Array, ""]:
        return half_square(residuals(trees.axpy(1.0, step, state)).astype(moved.dtype))

    if method.line_search:
        lengths = jnp.asarray(LENGTHS, moved.dtype)
        costs = jax.lax.map(lambda length: cost_of(along(velocity, acceleration, length)), lengths)
        best = jnp.argmin(jnp.where(jnp.isfinite(costs), costs, jnp.inf))
        length, cost = lengths[best], costs[best]
        step = along(velocity, acceleration, length)
    else:
        # The barrier lets go of the two parts before the trial's parameters are made.
        step = jax.lax.optimization_barrier(
            velocity if acceleration is None else trees.axpy(1.0, acceleration, velocity)
        )
        length, cost = jnp.ones((), moved.dtype), cost_of(step)
    predicted = -length * jnp.vdot(here.residuals, moved) - 0.5 * length**2 * jnp.vdot(moved, moved)
    return _Trial(step, cost, predicted)


def take_step(
    method: Method, residuals: AbstractResiduals, state: PyTree, damping: Float[Array, ""], first: Any
) -> Move:
    """Try steps, with more damping after each that is rejected, until one is accepted.

    `damping`: λ, or 0 before the first step, when it is `first`·σ_max². The factor is computed once; each trial costs
    what its damping costs the factor, one solve (two with acceleration), and one evaluation of the residuals.
    """
    here = residuals.linearised(state)
    dtype = here.residuals.dtype
    cost = half_square(here.residuals)
    begin = jnp.where(damping > 0, damping.astype(dtype), jnp.asarray(first, dtype) * here.sigma_max**2)
    # Below this a decrease of the cost is rounding.
    noise = here.eps * (cost + jnp.linalg.norm(here.residuals) * here.size)
    finite = jnp.isfinite(cost)

    def unfinished(search: _Search) -> Array:
        lost = search.trial.predicted <= noise
        return finite & ~search.accepted & ~lost & (search.tried < MOST_TRIALS)

    def body(search: _Search) -> _Search:
        raised = jnp.where(search.tried > 0, search.damping * search.growth, search.damping)
        trial = _trial(method, residuals, state, here, raised)
        decrease = cost - trial.cost
        accepted = (decrease > 0) & (decrease >= ENOUGH * trial.predicted) & (trial.predicted > noise)
        growth = jnp.where(search.tried > 0, 2 * search.growth, search.growth)
        return _Search(trial, raised, growth, search.tried + 1, accepted)

    nothing = _Trial(jax.tree.map(jnp.zeros_like, state), cost, jnp.full((), jnp.inf, dtype))
    growth, tried = jnp.full((), RAISE, dtype), jnp.zeros((), jnp.result_type(int))
    start = _Search(nothing, jnp.maximum(begin, here.floor), growth, tried, jnp.asarray(False))
    end = jax.lax.while_loop(unfinished, body, start)
    trial, accepted = end.trial, end.accepted
    ratio = jnp.where(accepted, (cost - trial.cost) / jnp.where(accepted, trial.predicted, 1), 0)
    change = jnp.where(ratio > GOOD, LOWER, jnp.where(ratio < POOR, RAISE, 1.0))
    following = jnp.maximum(end.damping * change.astype(dtype), here.floor)
    step = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0), trial.step)

    def at_minimum() -> Array:
        """Tell whether steepest descent, too, promises no more than rounding, which a network's own may exceed."""
        gradient = here.factor.vjp(here.residuals)
        unit = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(gradient)]))
        # In units of its largest entry, whose square is no number beyond 1e±154.
        gradient = trees.scale(1 / jnp.where(unit > 0, unit, 1), gradient)
        square = jnp.square(trees.norm(gradient)).astype(dtype)
        bend = jnp.linalg.norm(here.factor.jvp(gradient)) ** 2
        promised = jnp.where(bend > 0, 0.5 * (unit * square) ** 2 / jnp.where(bend > 0, bend, 1), jnp.inf)
        promised = jnp.where(unit > 0, promised, 0).astype(dtype)
        inner = here.size + here.sigma_max * trees.norm(state).astype(dtype)
        return promised <= noise + 100 * here.eps * jnp.linalg.norm(here.residuals) * inner

    converged = jax.lax.cond(finite & ~accepted, at_minimum, lambda: jnp.asarray(False))
    after = jnp.where(accepted, trial.cost, cost)
    return Move(step, cost, after, following, end.damping, ratio, end.tried - accepted, accepted, converged)
