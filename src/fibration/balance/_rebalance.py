"""What steps of training do to the imbalance, and an optimiser that takes it away every few steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from .._validation import check_name
from ..errors import ParameterError
from ._arrays import Matrices, adjoint, read_chain
from ._balanced import balanced
from ._chain import read_hidden
from ._frames import GAUGES


class RebalancedState(NamedTuple):
    """The state of the optimiser inside, and the number of steps taken."""

    inner: Any
    steps: Int[Array, ""]


def rebalanced(
    optimiser: optax.GradientTransformation, every: int = 1, gauge: str = "svd"
) -> optax.GradientTransformationExtraArgs:
    """Balance a chain after every k-th step of an optimiser: splitting of learning and balancing.

    Gradient descent with a small step η then follows the learning flow (`LearningFlow`), with an error of order η, from
    any start, balanced or not (derived).

    **Arguments:**

    - `optimiser`: any optax optimiser, for parameters that are a list of matrices, W_1 first.
    - `every`: k ≥ 1; `gauge`: the frames of the balanced chain, see `balanced`: "nearest" disturbs the optimiser least.

    **Returns:** an optax optimiser, for `descend(factored(problem), rebalanced(optax.sgd(0.1), every=10), Ws, …)`.

    What the optimiser inside remembers is left as it is: plain gradient descent remembers nothing, but the momentum of
    others, and Adam's moments, refer to the chain before it was balanced. Directions that do not reach the output are
    dropped, as far as rounding can tell, since ranks cannot be looked at in compiled code; a chain of zero product,
    such as a LoRA adapter at its start, is left alone.

    **Raises:** `ParameterError` if `every` is no positive integer; `UnknownNameError` for a gauge; when it steps,
    `ParameterError` without parameters, and those of `balanced`.

    ```python
    >>> import jax.numpy as jnp, optax
    >>> import fibration as fb
    >>> problem = fb.balance.factored(fb.balance.regression(jnp.ones((1, 1)), jnp.ones((1, 1))))
    >>> start = [jnp.array([[3.0]]), jnp.array([[0.1]])]
    >>> run = fb.descend(problem, fb.balance.rebalanced(optax.sgd(0.1)), start, steps=5)
    >>> bool(jnp.abs(fb.balance.imbalance(run.final_params)[0][0, 0]) < 1e-5)
    True

    ```
    """
    if not isinstance(every, int | np.integer) or every < 1:
        raise ParameterError(f"every = {every!r}", "a positive integer, a number of steps", "pass every=1")
    check_name("gauge", gauge, GAUGES)
    inner = optax.with_extra_args_support(optimiser)

    def init(params: Any) -> RebalancedState:
        return RebalancedState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, RebalancedState]:
        if params is None:
            raise ParameterError(
                "an update without parameters",
                "the chain that is to be balanced",
                "call update(gradient, state, params)",
            )
        updates, memory = inner.update(updates, state.inner, params, **extra)
        steps = state.steps + 1
        leaves, structure = jax.tree.flatten(optax.apply_updates(params, updates))
        chain = jax.lax.cond(
            steps % every == 0,
            lambda chain: balanced(chain, gauge=gauge),
            lambda chain: chain,
            [jnp.asarray(W) for W in leaves],
        )
        updates = jax.tree.map(lambda new, old: new - old, jax.tree.unflatten(structure, chain), params)
        return updates, RebalancedState(memory, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def imbalance_step(G: Sequence[Any], gradients: Sequence[Any], step_size: float, weight_decay: float = 0.0) -> Matrices:
    """Compute the imbalances after one step of gradient descent, from those before it and the step's gradients.

    For W_p⁺ = (1 − ηλ) W_p − η D_p it holds exactly, for steps of any size and minibatches too, that

        G_p⁺ = (1 − ηλ)² G_p + η² (D_{p+1}* D_{p+1} − D_p D_p*),

    since W_{p+1}* D_{p+1} = D_p W_p* for the gradients of every cost of the product (derived). It does not hold for
    momentum, Adam, or weight decay that differs between layers.

    **Arguments:** `G`: N − 1 imbalances, as from `imbalance`; `gradients`: D_1 … D_N, those of E alone, without weight
    decay (for complex matrices as from `Problem.gradient`); `step_size`: η; `weight_decay`: λ.

    **Returns:** N − 1 matrices (d_p, d_p).

    **Raises:** `ShapeError` for numbers or shapes that do not fit; `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> before, gradients = [np.array([[2.0]]), np.array([[1.0]])], [np.array([[1.0]]), np.array([[2.0]])]  # X = 2
    >>> after = [W - 0.5 * D for W, D in zip(before, gradients)]
    >>> fb.balance.imbalance_step(fb.balance.imbalance(before), gradients, 0.5), fb.balance.imbalance(after)
    ([array([[-2.25]])], [array([[-2.25]])])

    ```
    """
    steps = read_chain(gradients)
    before = read_hidden(G, "G", steps)
    kept, added = (1 - step_size * weight_decay) ** 2, step_size**2
    return [
        kept * matrix + added * (adjoint(D_next) @ D_next - D @ adjoint(D))
        for matrix, D, D_next in zip(before, steps[:-1], steps[1:], strict=True)
    ]
