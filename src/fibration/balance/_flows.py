"""Flows along a fibre towards its balanced chains: three ways to get there, and what has a closed form."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from .._validation import check_name
from ..errors import ConditioningWarning
from ..solvers import Options, Trajectory, solve
from ..solvers._options import ProgressCallback
from ._action import ChainAction, solve_generator
from ._arrays import Matrices, in_float64, largest, read_chain
from ._chain import end_to_end, moved, narrowed, partial_products
from ._dual import fibre_velocity, pulled_back, solve_dual
from ._fibre import orbit

_METHODS = {"induced": "dopri8", "squared_moment": "auto", "newton": "dopri8"}
_RESTORING = 3  # Newton steps back to the fibre, from within the tolerance of the solver


class FibreField(eqx.Module):
    """The velocity −P_{ker dφ} W of a chain: steepest descent of the regulariser along the fibre."""

    def __call__(self, time: Any, Ws: Matrices) -> Matrices:  # noqa: ARG002
        """Compute n − W."""
        return fibre_velocity(Ws)


class OrbitField(eqx.Module):
    """The velocity of a group element g along the flow W(t) = g(t)·W(0): g' = −ξ g.

    - "induced": L*L ξ = μ, so that W' = −L ξ is minus the projection of W on the orbit's tangent space.
    - "squared_moment": ξ = μ.
    - "newton": herm(L*L ξ) = μ with Hermitian ξ.
    """

    start: Matrices
    kind: str = eqx.field(static=True)
    rtol: float = eqx.field(static=True)

    def __call__(self, time: Any, g: Matrices) -> Matrices:  # noqa: ARG002
        """Compute −ξ g at W = g·W(0)."""
        action, W = ChainAction(), moved(g, self.start)
        xi = action.moment_map(W)
        if self.kind != "squared_moment":
            symmetric = self.kind == "newton"
            xi = solve_generator(action, W, xi, symmetric=symmetric, rtol=self.rtol)
        return [-x @ h for x, h in zip(xi, g, strict=True)]


def flow(
    Ws: Any,
    t: float,
    kind: str = "induced",
    times: Any = None,
    *,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    method: str | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Follow a balancing flow along the orbit of a chain, from time 0 to t; the product stays what it is.

    - "induced": the gradient flow of R = ½Σ‖W_p‖² in the Euclidean metric of the orbit, or of the fibre if the orbit is
      not closed (they are the same where the orbit is open in the fibre, until it is left, which can happen in finite
      time; derived). μ(t) = e^{−2t} μ(0) and R(t) − R* ≤ e^{−2t}(R(0) − R*), whatever X, N and the widths are; if the
      orbit is closed the chain converges like e^{−2t} in the end, otherwise like e^{−t}.
    - "squared_moment": W_p' = −(μ_p W_p − W_p μ_{p−1}), a quarter of the gradient flow of |μ|² and no equations to
      solve; it converges at the rates `squared_moment_rates`, is stiff for deep or ill-conditioned chains, and if the
      orbit is not closed slows down to 1/t.
    - "newton": W' = −L ξ with Hermitian ξ and herm(L*L ξ) = μ, so that W moves along geodesics of the group towards the
      minimum. μ(t) = e^{−2t} μ(0) here, too.

    The three end in different balanced chains of one fibre, and in none that has a closed form unless everything
    commutes.

    **Arguments:**

    - `times` (T,): increasing times to save at, in [0, t]; 101 equally spaced ones by default.
    - `rtol`, `atol`, `method`, `progress`, `options`: as of `solvers.solve`. Dopri8 is the default of the first and the
      last, which are not stiff, "auto" that of the other.

    **Returns:** a `Trajectory` in float64, whatever JAX's default. `params`: the chain W_1 … W_N at the saved times.
    `observed`: "moment_map" (T, Σ d_p²), the entries of μ_1 … μ_{N−1}; "regularizer" (T,); "drift" (T,), which is
    ‖X(t) − X‖/‖X‖: rounding, since g is what is solved for, and any g leaves X alone. Along the fibre of an orbit that
    is not closed W is solved for, and moved back to its fibre, by Newton's method, at the saved times.

    **Raises:** those of `end_to_end` and of `solvers.solve`; `UnknownNameError`. It warns (`ConditioningWarning`) where
    the orbit is not closed and the kind does not bear it.

    One velocity of "induced" and "newton" takes conjugate gradients with matrices as large as the chain's; the
    Kronecker products of the equations are never formed. Allocates T chains and twenty group elements. The first call
    for given shapes compiles, for some seconds.

    **Source:** Lindsey and Menon, arXiv 2511.01137, for the flows of the regulariser and of |μ|²; the metric in which
    the first has a uniform rate, the rates and the Newton flow are derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> run = fb.balance.flow([np.array([[3.0]]), np.array([[1.0]])], 1.0, times=[0.0, 1.0])
    >>> print((run.observed["moment_map"][:, 0] / 8).round(6), round(float(np.exp(-2)), 6))
    [1.       0.135335] 0.135335

    ```
    """
    check_name("kind", kind, tuple(_METHODS))
    given = read_chain(Ws)
    closed = orbit(given).closed
    if kind != "induced" and not closed:
        slow = "the moment map decays like 1/t" if kind == "squared_moment" else "the generators grow"
        warnings.warn(
            f'the orbit is not closed (see `balance.orbit`): {slow}. Take kind="induced", whose rates do not mind',
            ConditioningWarning,
            stacklevel=2,
        )
    with jax.enable_x64(True):
        run = follow(
            in_float64(given),
            t,
            kind,
            closed,
            rtol=rtol,
            atol=atol,
            times=times,
            method=_METHODS[kind] if method is None else method,
            progress=progress,
            options=options,
        )
        matrices = [np.asarray(W, run.params[0].dtype) for W in given]
    X = np.linalg.multi_dot(matrices[::-1])
    drift = np.array([_drift(chain, X) for chain in zip(*run.params, strict=True)])
    observed = observe_chain(run.params) | {"drift": drift}
    return dataclasses.replace(run, observed=observed, stats=dict(run.stats) | {"kind": kind})


def follow(start: Matrices, t: float, kind: str, closed: bool, *, rtol: float, **options: Any) -> Trajectory:
    """Solve a balancing flow of chains in double precision; the trajectory's parameters are chains."""
    # Two of the flows do not mind the unit of length: in that of the largest entry no square overflows or vanishes.
    unit = 1.0 if kind == "squared_moment" else largest(start)
    core, lift = narrowed(start)
    scaled = [W / unit for W in core]
    if kind == "induced" and not closed:
        run = solve(FibreField(), scaled, t, rtol=rtol, **options)
        X = end_to_end(scaled)
        along = [_restored([jnp.asarray(W[k]) for W in run.params], X) for k in range(len(run.params[0]))]
    else:
        field = OrbitField(scaled, kind, max(1e-13, min(1e-10, 1e-2 * rtol)))
        run = solve(field, [jnp.eye(W.shape[0], dtype=W.dtype) for W in core[:-1]], t, rtol=rtol, **options)
        matrices = [np.asarray(W) for W in scaled]
        along = [moved([g[k] for g in run.params], matrices) for k in range(len(run.params[0]))]
    along = [lift([np.asarray(W) for W in Ws]) for Ws in along]
    return dataclasses.replace(run, params=[unit * np.stack([Ws[p] for Ws in along]) for p in range(len(start))])


@jax.jit
def _restored(Ws: Matrices, X: Any) -> Matrices:
    """Move a chain to the fibre over X by Newton steps across it; in first order they leave the moment map alone.

    Where the rank of X is all there is, the equations need not have a solution: no step is taken that leads away.
    """
    for _ in range(_RESTORING):
        below, above = partial_products(Ws)
        across = pulled_back(solve_dual(below, above, X - above[0]), below, above)
        nearby = [W + n for W, n in zip(Ws, across, strict=True)]
        nearer = jnp.linalg.norm(end_to_end(nearby) - X) < jnp.linalg.norm(above[0] - X)
        Ws = [jnp.where(nearer, new, old) for new, old in zip(nearby, Ws, strict=True)]
    return Ws


def observe_chain(chain: Sequence[np.ndarray]) -> dict[str, Shaped[np.ndarray, "T ..."]]:
    """Compute the moment map (T, Σ d_p²) and the regulariser (T,) of saved chains, W_p (T, d_p, d_{p−1})."""
    squares = [W @ W.conj().swapaxes(1, 2) for W in chain[:-1]]
    other = [W.conj().swapaxes(1, 2) @ W for W in chain[1:]]
    moments = [(a - b).reshape(len(a), -1) for a, b in zip(squares, other, strict=True)]
    lengths = sum(np.sum(np.abs(W) ** 2, axis=(1, 2)) for W in chain) / 2
    return {"moment_map": np.concatenate(moments, axis=1), "regularizer": np.asarray(lengths)}


def _drift(Ws: Sequence[np.ndarray], X: np.ndarray) -> float:
    size = float(np.linalg.norm(X))
    return float(np.linalg.norm(np.linalg.multi_dot(list(Ws)[::-1]) - X)) / (size or 1.0)


def time_for_strength(strength: float) -> float:
    """Compute the time after which the induced flow has multiplied every imbalance by 1 − strength."""
    return -math.log1p(-strength) / 2
