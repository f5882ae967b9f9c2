"""`adapted`: the damped adapted step in optax's manner, for minibatches and for full batches."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .. import _validation, trees
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..tangent._diagnosis import METHODS
from ..trees import PyTree
from ._minimize import check_damping
from ._residuals import ProblemResiduals
from ._step import Method, direction, take_step


class AdaptedState(NamedTuple):
    """The state of `adapted`: arrays only.

    `n_updates`: so far; `damping`: λ of the last step or, if it is adaptive, of the next one, 0 before the first;
    `ratio`: of the last step's actual to its predicted decrease, 0 if no step was accepted or it is not adaptive;
    `velocity`: the last φ, like the parameters, or `None` without momentum.
    """

    n_updates: Int[Array, ""]
    damping: Float[Array, ""]
    ratio: Float[Array, ""]
    velocity: PyTree


def adapted(
    learning_rate: Any = 1.0,
    damping: Any = 1e-3,
    momentum: Any = 0.0,
    *,
    adaptive: bool = False,
    acceleration: bool = False,
    method: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Make an optax transformation that takes damped adapted steps on the problem, or the batch, of each update.

    **Arguments:**

    - `learning_rate`: η, a number or a schedule of the count of updates.
    - `damping`: λ relative to σ_max(D)² of the batch; with `adaptive`, that of the first step only.
    - `momentum`: μ, from 0 to below 1.
    - `adaptive`: for full batches: λ follows the ratio of actual to predicted decrease, by which a step is accepted, as
      in `minimize`; if none is, the update is zero. It needs the momentum 0 and the learning rate 1.
    - `acceleration`: adds the geodesic acceleration, as in `minimize`.
    - `method`: see `minimize`.

    **Returns:** a pair of `state = init(params)` and `updates, state = update(problem, state, params)`, where `problem`
    is an `fb.Problem` of this batch, or a stack. The first argument may also be the gradients, as in optax, which are
    not used, with the problem as the extra argument `problem=`: so it goes into `optax.chain`,
    `optax.inject_hyperparams` and `fb.descend`. Updates are like the floating-point leaves of `params`, and `None` at
    others.

    **Raises:** `ParameterError` without a problem or parameters, or for another loss than `SquaredError`.

        φ_k = μφ_{k−1} + Dᵀ(DDᵀ + λI)⁻¹(ρ − μDφ_{k−1}) = argmin_φ |Dφ − ρ|² + λ|φ − μφ_{k−1}|²,    θ ← θ − ηφ_k,

    with the batch's residuals ρ, C = ½|ρ|², and their differential D: a regularised block Kaczmarz method. Momentum
    keeps only that part of the last step which this batch says nothing about. With minibatches the adapted flow's exact
    law C₀e^{−2t/N} and its stopping time are lost: both are about the whole data set.

    An update allocates the batch's Gram matrix twice, and what `fb.tangent.gram` needs.

    **Source:** SPRING of Goldshlager, Abrahamsen and Lin, arXiv 2401.10190, without its constraint on the norm.

    ```python
    >>> import jax, jax.numpy as jnp, optax
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.eye(2), jnp.array([[1.0], [2.0]]))
    >>> w = jnp.zeros((1, 2))
    >>> optimiser = fb.optim.adapted(damping=1e-6)
    >>> state = optimiser.init(w)
    >>> updates, state = optimiser.update(problem, state, w)
    >>> print(optax.apply_updates(w, updates).round(3))  # one step solves a linear problem
    [[1. 2.]]

    ```
    """
    check_damping(damping)
    _validation.check_name("method", method, METHODS)
    if not trees.is_traced(momentum) and not 0 <= _validation.as_number("momentum", momentum) < 1:
        raise ParameterError(f"momentum = {momentum}", "a number from 0 to below 1", "leave it out for none")
    if not callable(learning_rate) and not trees.is_traced(learning_rate):
        rate = _validation.as_number("learning_rate", learning_rate)
        if not abs(rate) < float("inf"):
            raise ParameterError(f"learning_rate = {rate}", "a finite number or a schedule", "leave it at 1")
    plain = not callable(learning_rate) and not trees.is_traced(learning_rate) and float(learning_rate) == 1
    still = not trees.is_traced(momentum) and float(momentum) == 0
    if adaptive and not (plain and still):
        raise ParameterError(
            f"adaptive=True with learning_rate = {learning_rate} and momentum = {momentum}",
            "whole steps without momentum, since they are accepted as they are",
            "leave both at their defaults, or pass adaptive=False",
        )

    def init(params: PyTree) -> AdaptedState:
        state = eqx.filter(trees.as_coordinates(params), eqx.is_inexact_array)
        dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(state)), jnp.float32)
        zero = jnp.zeros((), dtype)
        velocity = None if still else jax.tree.map(jnp.zeros_like, state)
        return AdaptedState(jnp.zeros((), jnp.int32), zero, zero, velocity)

    def update(
        updates: Any, state: Any, params: PyTree = None, *, problem: Any = None, **extra: Any
    ) -> tuple[PyTree, AdaptedState]:
        del extra
        problem = updates if isinstance(updates, AbstractProblem) else problem
        if not isinstance(problem, AbstractProblem) or params is None:
            missing = "a problem" if params is not None else "params"
            raise ParameterError(
                f"adapted was updated without {missing}",
                "the problem of this batch, and the parameters",
                "call `update(fb.Problem(apply, inputs, targets), state, params)`, or pass `problem=` beside gradients",
            )
        current, constant = eqx.partition(trees.as_coordinates(params), eqx.is_inexact_array)
        residuals = ProblemResiduals(problem, constant, method)
        dtype, count = state.damping.dtype, state.n_updates + 1
        if adaptive:
            move = take_step(Method(acceleration, line_search=False), residuals, current, state.damping, damping)
            return move.step, AdaptedState(count, move.damping.astype(dtype), move.ratio.astype(dtype), state.velocity)
        here = residuals.linearised(current)
        strength = jnp.asarray(damping, here.sigma_max.dtype) * here.sigma_max**2
        strength = jnp.where(strength > 0, strength, 1)  # where nothing moves any output
        solver, rhs = here.factor.at(strength), here.residuals
        carried = None if state.velocity is None else trees.scale(momentum, state.velocity)
        if carried is not None:
            rhs = rhs - here.factor.jvp(carried)
        step, bend = direction(residuals, current, solver, rhs, bent=acceleration)
        velocity = None
        if carried is not None:
            step = trees.subtract(step, carried)
            velocity = trees.scale(-1.0, step)
        if bend is not None:
            step = trees.axpy(1.0, bend, step)
        rate: Any = learning_rate(state.n_updates) if callable(learning_rate) else learning_rate
        return trees.scale(rate, step), AdaptedState(count, strength.astype(dtype), state.ratio, velocity)

    return optax.GradientTransformationExtraArgs(init, update)
