"""Samples of end-to-end matrices: the Riemannian Langevin equation, downstairs or on the balanced chains."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._validation import check_name
from ..errors import NonFiniteDataError, ParameterError, ShapeError, SingularProductError, StepSizeError
from ._arrays import read_matrix
from ._entropy import check_beta, check_kappa
from ._fibre import check_depth
from ._langevin_steps import Law, State, chain_step, product_step, state_at


@dataclass(frozen=True, eq=False)
class LangevinSample:
    """What `langevin` returns: T saved matrices of each of M chains.

    `matrices` (M, T, d, d); `singular_values` (M, T, d), falling; `times` (T,); `rejected` (M,): the share of steps
    that each chain did not take.
    """

    matrices: Float[np.ndarray, "M T d d"]
    singular_values: Float[np.ndarray, "M T d"]
    times: Float[np.ndarray, " T"]
    rejected: Float[np.ndarray, " M"]


def langevin(
    X: Any,
    cost: Callable[..., Any],
    depth: int,
    *,
    step_size: float,
    steps: int,
    key: PRNGKeyArray,
    beta: float = 1.0,
    kappa: float = 1.0,
    chains: int = 1,
    save_every: int = 1,
    space: str = "product",
    metropolis: bool = False,
) -> LangevinSample:
    """Sample the Riemannian Langevin equation dX = −grad_g F dt + √(2/β) dB_g, F = E − (κ/β) S, of N balanced matrices.

    It is what noise of intensity 2/β across the orbits of K = O(d)^{N−1} on the balanced chains, and 2κ/β along them,
    means for their product; its invariant density is exp(−βE) vol(O_X)^κ √det g^N dX, exp(−βE) times the exponential of
    `log_volume_density`. In the frame X = U diag(σ) Vᵀ, with the a_ij of `entropy`, and as an Itô equation,

        dX = [−A(dE) + (A(grad log ρ_κ) + div A)/β] dt + √(2/β) U (√a_ij dζ_ij) Vᵀ.

    **Arguments:**

    - `X` (d, d), real and invertible: where all chains start; or (M, d, d), one start for each.
    - `cost`: E(X), a number, differentiable by JAX; `depth`: N ≥ 1.
    - `step_size`: h; `steps`: how many, a multiple of `save_every`, which says how many to a saved sample; the start is
      not saved. Only what is saved grows with the number of steps.
    - `key`: a JAX random key; `chains`: M, all run at once.
    - `beta`: β > 0, the inverse temperature; `kappa`: κ ≥ 0; 1 is isotropic noise, 0 leaves out the entropy.
    - `space`: `"product"` for the equation above, by Euler and Maruyama's method; `"chain"` for constrained Euler steps
      of the balanced chain, projected back to balance along the normal directions at its start. The second needs
      neither entropy, metric nor divergence, and so checks them.
    - `metropolis`: accept the steps of `"product"` with the probability that makes the density invariant at any step
      size; without it means are off by an amount of order h.

    **Returns:** a `LangevinSample`. Steps that would cross det X = 0, that cannot be projected, or that are not finite
    are rejected: the chain stays where it is. The equation can reach det X = 0, where the metric ends, unless the cost
    keeps it away, as −a log|det X| does; a share of rejections that does not fall with h is a sign of it.

    **Raises:** `SingularProductError` for a singular start; `ParameterError` for a complex start, a cost that returns
    no real number, β, κ, `chains`, or `metropolis` with `"chain"`; `StepSizeError`, `ShapeError`, `UnknownNameError`,
    `NonFiniteDataError`, also where cost or gradient are not finite at the start.

    **Sources:** Menon and Yu, arXiv 2509.09088, for the equation; drift in this frame: derived; constrained steps:
    Ciccotti, Lelièvre and Vanden-Eijnden, "Projection of diffusions on submanifolds" (2008).

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> def cost(X):
    ...     return fb.balance.minimum_on_fibre(X, depth=2) - 1.5 * jnp.linalg.slogdet(X)[1]
    >>> options = dict(step_size=0.02, steps=200, chains=50, key=jax.random.key(0), metropolis=True)
    >>> sample = fb.balance.langevin(jnp.eye(2), cost, 2, **options)
    >>> sample.matrices.shape, sample.singular_values.shape
    ((50, 200, 2, 2), (50, 200, 2))
    >>> bool(abs(sample.singular_values[:, 100:].sum(-1).mean() - 5.5) < 0.5)  # exact mean of R*: 5.5
    True

    ```
    """
    check_name("space", space, ("product", "chain"))
    check_depth(depth)
    check_beta(beta)
    check_kappa(kappa)
    if metropolis and space == "chain":
        raise ParameterError('metropolis=True with space="chain"', 'space="product"', "leave one of them out")
    _check_steps(step_size, steps, save_every, chains)
    starts = _read_starts(X, chains)
    law = Law(*(jnp.asarray(number, starts.dtype) for number in (beta, kappa, step_size)))
    _check_cost(cost, starts, depth, law)
    keys = jax.random.split(key, chains)
    matrices, values, taken = _run(starts, keys, cost, law, depth, steps // save_every, save_every, space, metropolis)
    times = step_size * save_every * np.arange(1, steps // save_every + 1)
    return LangevinSample(np.asarray(matrices), np.asarray(values), times, 1 - np.asarray(taken) / steps)


@eqx.filter_jit
def _run(
    starts: Float[Array, "M d d"],
    keys: Array,
    cost: Callable[..., Any],
    law: Law,
    depth: int,
    saved: int,
    save_every: int,
    space: str,
    metropolis: bool,
) -> tuple[Array, Array, Array]:
    take = functools.partial(product_step, metropolis=metropolis) if space == "product" else chain_step

    def one_chain(start: Array, key: Any) -> tuple[Array, Array, Array]:
        def step(number: Any, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, taken = carry
            state, accepted = take(state, jax.random.fold_in(key, number), cost, depth, law)
            return state, taken + accepted

        def save(carry: tuple[State, Array], block: Array) -> tuple[tuple[State, Array], tuple[Array, Array]]:
            first = block * save_every
            carry = jax.lax.fori_loop(first, first + save_every, step, carry)
            return carry, (carry[0].X, carry[0].values)

        start_of_scan = (state_at(start, cost, depth, law), jnp.asarray(0))
        (_, taken), (matrices, values) = jax.lax.scan(save, start_of_scan, jnp.arange(saved))
        return matrices, values, taken

    return jax.vmap(one_chain)(starts, keys)


def _check_steps(step_size: float, steps: int, save_every: int, chains: int) -> None:
    if not 0 < step_size < math.inf:
        raise StepSizeError(f"step_size = {step_size}", "a positive number", "try 0.01 / β, and half of it")
    counts = {"steps": steps, "save_every": save_every, "chains": chains}
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            error = ParameterError if name == "chains" else StepSizeError
            raise error(f"{name} = {count!r}", "a positive whole number", f"pass {name}=1 or more")
    if steps % save_every:
        raise StepSizeError(
            f"steps = {steps} and save_every = {save_every}",
            "whole blocks of steps",
            f"pass steps={steps - steps % save_every + save_every}",
        )


def _read_starts(X: Any, chains: int) -> Float[Array, "M d d"]:
    given = X if isinstance(X, jax.Array) else np.asarray(X)
    if given.ndim == 3:
        if len(given) != chains:
            raise ShapeError(f"{len(given)} starts for {chains} chains", "one for each", f"pass chains={len(given)}")
        matrices = [read_matrix(start, f"X[{number}]") for number, start in enumerate(given)]
    else:
        matrices = [read_matrix(given)]
    d, columns = matrices[0].shape
    if d != columns:
        raise ShapeError(f"X of shape {given.shape}", "a square matrix", "no equation is known for rectangular ones")
    if any(matrix.dtype.kind == "c" for matrix in matrices):
        raise ParameterError(
            "a complex start", "a real matrix", "only the equation of real chains is here; pass the real part"
        )
    stack = jnp.asarray(np.stack([np.asarray(matrix, float) for matrix in matrices]), jnp.result_type(float))
    values = np.linalg.svd(np.asarray(stack), compute_uv=False)
    if np.any(values[:, -1] <= d * float(jnp.finfo(stack.dtype).eps) * values[:, 0]):
        raise SingularProductError(
            f"a start with singular values down to {float(values[:, -1].min()):.3g}",
            "an invertible start: the sign of its determinant never changes",
            "start at a multiple of the identity, say",
        )
    return jnp.broadcast_to(stack, (chains, d, d))


def _check_cost(cost: Callable[..., Any], starts: Float[Array, "M d d"], depth: int, law: Law) -> None:
    try:
        shape = jax.eval_shape(cost, jax.ShapeDtypeStruct(starts.shape[1:], starts.dtype))
        fits = getattr(shape, "shape", None) == () and jnp.issubdtype(shape.dtype, jnp.floating)
        given: Any = f"a cost that returns {shape}"
    except Exception as error:  # whatever a user's function raises
        fits, given = False, f"a cost that fails ({type(error).__name__}: {error!s:.200})"
    if not fits:
        raise ParameterError(
            given,
            f"`cost(X)`, one real number for X of shape {starts.shape[1:]}, written with `jax.numpy`",
            "try `cost(jnp.eye(d))`",
        )
    finite: Bool[Array, " M"] = jax.vmap(lambda X: _all_finite(state_at(X, cost, depth, law)))(starts)
    if not bool(jnp.all(finite)):
        raise NonFiniteDataError(
            f"cost or gradient that are NaN or infinite at start {int(jnp.argmin(finite))}",
            "finite ones",
            "start elsewhere",
        )


def _all_finite(state: State) -> Array:
    return jnp.all(jnp.isfinite(state.gradient)) & jnp.isfinite(state.log_density)
