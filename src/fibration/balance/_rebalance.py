"""What steps of training do to the imbalance, and an optimiser wrapper that takes it away every few steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from .. import trees
from .._validation import check_name
from ..errors import ParameterError
from ._arrays import Matrices, adjoint, all_widened, read_chain
from ._balanced import balanced
from ._chain import read_hidden
from ._frames import GAUGES
from ._layers._transport import Chains, chain_selector, replace_chains, reset_state, transport_state
from ._product import product_svd
from ._rescaling import Rescaling


class RebalanceState(NamedTuple):
    """The state of the optimiser inside, and the number of steps taken."""

    inner: Any
    steps: Int[Array, ""]


def rebalance(
    optimizer: optax.GradientTransformation,
    every: int = 1,
    *,
    chains: Chains | None = None,
    rescaling: Rescaling | None = None,
    gauge: str = "nearest",
    memory: str = "transport",
    on_rank_loss: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Balance after every k-th step of an optimiser, and move what it remembers along.

    Balance an unbalanced start once, before training, by `balanced`, `pair` or `network`: that is most of what there is
    to gain, and a step size that survives the first unbalanced steps is too small for all others. Parameters that are
    not finite are left alone.

    For chains and plain gradient descent this splits learning and balancing: with a small step η it follows the
    learning flow (`LearningFlow`), with an error of order η, from any start, balanced or not (derived).

    **Arguments:**

    - `optimizer`: any optax optimiser; `every`: k ≥ 1.
    - `chains`: a function from parameters to the chains in them, each a list of matrices with W_1 first, such as
      `lambda params: [[params["A"], params["B"]]]` for an adapter with the product B A. By default the parameters are
      one chain.
    - `rescaling`: that of a ReLU network, as `rescaling` finds it; chains are then balanced only if they are given, and
      first.
    - `gauge`: the frames of balanced chains, see `balanced`; "nearest" disturbs the optimiser least.
    - `memory`: "transport" moves momenta as gradients, and averages of squares as `transport_state` says; "reset"
      forgets both, and the counters that correct their bias; "keep" leaves what refers to the parameters before they
      were balanced.
    - `on_rank_loss`: what to do with a chain whose product has lower rank than its narrowest layer, as that of an
      adapter after few steps. "skip" leaves it alone until the rank is full, since balancing would delete directions
      for good; "drop" deletes them, as `balanced` does in compiled code. A chain of zero product, such as an adapter
      at its start, is left alone always.

    **Returns:** an optax optimiser, which can be compiled and serves `descend`:
    `descend(factored(problem), rebalance(optax.sgd(0.1), every=10), Ws, …)`. Computed in the parameters' own
    precision, and applied as an update, whose rounding is that of the larger parameters: where those of a float32 chain
    are a factor f apart, the product changes by some f · 1e-7; balance such a start once, by `pair` or `network`. A
    step that balances costs a singular value decomposition at the narrowest layer of each chain, and,
    with "transport" and an optimiser that remembers, one for each layer.

    **Raises:** `ParameterError` if `every` is no positive integer; `UnknownNameError`; when it steps, `ParameterError`
    without parameters or for chains that are none, and those of `balanced`.

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp, optax
    >>> import fibration as fb
    >>> problem = fb.balance.factored(fb.balance.regression(jnp.ones((1, 1)), jnp.ones((1, 1))))
    >>> start = [jnp.array([[3.0]]), jnp.array([[0.1]])]
    >>> run = fb.descend(problem, fb.balance.rebalance(optax.sgd(0.1)), start, steps=5)
    >>> bool(jnp.abs(fb.balance.imbalance(run.final_params)[0][0, 0]) < 1e-5)
    True

    ```
    """
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise ParameterError(f"every = {every!r}", "a positive integer, a number of steps", "pass every=1")
    check_name("gauge", gauge, GAUGES)
    check_name("memory", memory, ("transport", "reset", "keep"))
    check_name("on_rank_loss", on_rank_loss, ("skip", "drop"))
    inner, select = optax.with_extra_args_support(optimizer), chain_selector(chains, rescaling)

    def balance(params: Any, state: Any) -> tuple[Any, Any]:
        """Balance chains, then rescale; the memory moves with each."""
        found = [[jnp.asarray(W) for W in chain] for chain in select(params)]
        moved = replace_chains(params, select, [_balanced_chain(chain, gauge, on_rank_loss) for chain in found])
        scales = None if rescaling is None else rescaling.log_scales(moved)
        scaled = moved if rescaling is None else rescaling.exponential(scales, moved)
        if memory == "reset":
            return scaled, reset_state(state, inner.init(scaled))
        if memory == "transport":
            state = transport_state(state, params, moved, chains=select)
            if rescaling is not None:
                state = transport_state(state, moved, scaled, rescaling=rescaling, log_scales=scales)
        return scaled, state

    def init(params: Any) -> RebalanceState:
        return RebalanceState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, RebalanceState]:
        if params is None:
            raise ParameterError(
                "an update without parameters",
                "the parameters that are to be balanced",
                "call update(gradient, state, params)",
            )
        updates, remembered = inner.update(updates, state.inner, params, **extra)
        steps = state.steps + 1
        trained = jax.tree.map(jnp.asarray, optax.apply_updates(params, updates))
        remembered = jax.tree.map(jnp.asarray, remembered)
        # A singular value decomposition of infinities need not return: a run that diverges is left to do so.
        finite = trees.all_finite(trained)
        sound = jax.tree.map(lambda W: jnp.where(finite, W, jnp.zeros_like(W)), trained)
        new, remembered = jax.lax.cond(
            (steps % every == 0) & finite,
            lambda sound, _, state: balance(sound, state),
            lambda _, trained, state: (trained, state),
            sound,
            trained,
            remembered,
        )
        updates = jax.tree.map(lambda after, before: after - before, new, params)
        return updates, RebalanceState(remembered, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def _balanced_chain(chain: Matrices, gauge: str, on_rank_loss: str) -> Matrices:
    """Balance within a transformation, where ranks cannot be looked at but numbers can be chosen."""
    new = balanced(chain, gauge=gauge)
    if on_rank_loss == "drop":
        return new
    svd = product_svd(all_widened(chain))
    full = svd.values[-1] > svd.noise
    return [jnp.where(full, after, before) for after, before in zip(new, chain, strict=True)]


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
