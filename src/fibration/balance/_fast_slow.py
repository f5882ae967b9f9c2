"""The fast–slow system: gradient flow with a fast pull along the fibres, towards the balanced manifold."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..errors import ParameterError
from ..solvers import Checkpoint, Options, Trajectory, solve
from ..solvers._options import ProgressCallback
from ._arrays import Matrices
from ._chain import partial_products
from ._dual import as_jax, pulled_back, velocity_along_fibre
from ._flows import observe_chain


class FastSlow(eqx.Module):
    """The field W' = −∇(E∘φ)(W) − (1/ε) P_{ker dφ} W on chains; see `fast_slow`."""

    gradient: Callable[..., Any]
    epsilon: Any

    def __call__(self, time: Any, Ws: Sequence[Any]) -> Matrices:  # noqa: ARG002
        """Compute the velocity of each matrix: one gradient of E and one dual solve."""
        matrices = as_jax(Ws)
        below, above = partial_products(matrices)
        descent = pulled_back(-jnp.asarray(self.gradient(above[0])), below, above)
        along = velocity_along_fibre(matrices, below, above)
        return [d + v / jnp.asarray(self.epsilon, v.real.dtype) for d, v in zip(descent, along, strict=True)]


def fast_slow(
    Ws: Sequence[Any],
    gradient: Callable[..., Any],
    epsilon: float,
    t1: float,
    *,
    times: Any = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    method: str | diffrax.AbstractAdaptiveSolver[Any] = "auto",
    first_step: float | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Solve the fast–slow system W' = −∇(E∘φ)(W) − (1/ε) P_{ker dφ_W} W: learning, with balancing 1/ε times as fast.

    Imbalances decay as G(t) = e^{−2t/ε} G(0) whatever E is, and as ε → 0 the product X follows the learning flow
    (`LearningFlow`) with an error of order ε (derived; the splitting of regularised training into these two flows is
    that of Lindsey and Menon, arXiv 2511.01137).

    **Arguments:**

    - `Ws`: the chain to start from, N ≥ 2 matrices, W_1 first; `gradient`: dE, a function of X, as of `LearningFlow`.
    - `epsilon` > 0; the system is stiff, by 1/ε, as ε → 0.
    - the others: see `solvers.solve`.

    **Returns:** a `Trajectory` of chains. `observed` has "moment_map" (T, Σ d_p²), the ravelled μ_1 … μ_{N−1} one after
    the other, "regularizer" (T,), and "end_to_end" (T, d_N, d_0), computed from the saved chains.

    **Raises:** `ParameterError` for an `epsilon` that is not positive; those of `end_to_end` and of `solvers.solve`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> Ws = [jnp.array([[2.0]]), jnp.array([[1.0]])]
    >>> run = fb.balance.fast_slow(Ws, lambda X: X - 3.0, epsilon=0.5, t1=1.0, rtol=1e-4, times=[0.0, 1.0])
    >>> bool(abs(run.observed["moment_map"][-1, 0] / 3.0 - jnp.exp(-4.0)) < 1e-3)
    True

    ```
    """
    if not 0 < float(epsilon) < float("inf"):
        raise ParameterError(f"epsilon = {epsilon}", "a positive, finite number", "try epsilon=0.01")
    matrices = as_jax(Ws)
    run = solve(
        FastSlow(gradient, jnp.asarray(epsilon, jnp.result_type(float))),
        matrices,
        t1,
        rtol=rtol,
        atol=atol,
        times=times,
        method=method,
        first_step=first_step,
        checkpoint=checkpoint,
        progress=progress,
        options=options,
    )
    return dataclasses.replace(run, observed=_observed(run.params))


def _observed(saved: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Compute moment maps, regularisers and products of saved chains, matrices (T, d_p, d_{p−1})."""
    product = saved[0]
    for W in saved[1:]:
        product = W @ product
    return observe_chain(saved) | {"end_to_end": product}
