"""Partial balancing: imbalances multiplied by a factor, along the induced flow."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import trees
from ..errors import ParameterError
from ..trees import PyTree, is_traced
from ._action import ChainAction, solve_generator
from ._arrays import Matrices, computable, in_float64, largest
from ._chain import narrowed, scaled, unscaled
from ._fibre import orbit
from ._flows import follow, time_for_strength

_CORRECTIONS = 8


def partially_balanced(given: Matrices, strength: float, weights: Sequence[float] | None) -> Matrices:
    """Multiply every G_p by 1 − strength: solve the induced flow for t = −½ log(1 − strength), then correct.

    The moment map depends on the outer matrices by W_1 W_1* and W_N* W_N only, so that wide ends are reduced by QR
    first. Newton steps exp(−ξ)·W with herm(L*L ξ) = ½(μ − (1 − strength) μ(0)) then take the rest of the error of the
    flow away.
    """
    if any(is_traced(W) for W in given):
        raise ParameterError(
            f"strength = {strength} within a JAX transformation", "0 or 1 there", "balance outside of `jax.jit`"
        )
    matrices, back = computable(scaled(given, weights))
    core, lift = narrowed(matrices)
    with jax.enable_x64(True):
        start = in_float64(core)
        unit = largest(start)
        moved = [unit * np.asarray(W) for W in _follow([W / unit for W in start], strength)]
    return back(unscaled(lift(moved), weights))


def _follow(start: Matrices, strength: float) -> Matrices:
    action, end = ChainAction(), time_for_strength(strength)
    closed = orbit(start).closed
    run = follow(start, end, "induced", closed, rtol=1e-7, atol=1e-9, times=[end], method="tsit5").raise_if_failed()
    moved = [jnp.asarray(W[-1]) for W in run.params]
    goal = trees.scale(1 - strength, action.moment_map(start))
    error = float(trees.norm(trees.subtract(action.moment_map(moved), goal)))
    for _ in range(_CORRECTIONS):
        better, remaining = _correct(action, moved, goal)
        if not float(remaining) < error:
            break
        moved, error = better, float(remaining)
    return moved


@eqx.filter_jit
def _correct(action: ChainAction, W: Matrices, goal: PyTree) -> tuple[Matrices, Any]:
    excess = trees.scale(0.5, trees.subtract(action.moment_map(W), goal))
    xi = action.hermitian(solve_generator(action, W, excess, symmetric=True, rtol=1e-10))
    better = action.exponential(trees.scale(-1.0, xi), W)
    return better, trees.norm(trees.subtract(action.moment_map(better), goal))
