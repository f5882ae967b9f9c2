"""Balancing flows of linear systems: the coordinates of the state move, the transfer function stays."""

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._validation import check_name
from ...errors import ConditioningWarning
from ...solvers import Options, Trajectory, solve
from ...solvers._options import ProgressCallback
from .._arrays import adjoint
from ._gramians import gramian_factors
from ._read import read_system
from ._realization import balance_system

_METHODS = {"induced": "dopri8", "normal": "auto"}


class CoordinateField(eqx.Module):
    """The velocity T' = −ξ T of the coordinates T x, from factors of the Gramians, W_c = L_c L_c* and W_o = L_o L_o*.

    - "induced": ξ W_c + W_o ξ = W_c − W_o.
    - "normal": ξ = ½(W_c − W_o).
    """

    controllability: Any
    observability: Any
    kind: str = eqx.field(static=True)

    def __call__(self, time: Any, T: Any) -> Any:  # noqa: ARG002
        """Compute −ξ T."""
        Wc, Wo = moved_gramians(T, self.controllability, self.observability)
        if self.kind == "normal":
            return -(Wc - Wo) @ T / 2
        c, u = jnp.linalg.eigh(Wc)
        o, v = jnp.linalg.eigh(Wo)
        sums = jnp.maximum(o[:, None] + c, jnp.finfo(c.dtype).tiny)
        return -v @ ((adjoint(v) @ (Wc - Wo) @ u) / sums) @ adjoint(u) @ T


def moved_gramians(T: Any, controllability: Any, observability: Any) -> tuple[Any, Any]:
    """Compute T W_c T* and T^{−*} W_o T⁻¹ from factors of W_c and W_o."""
    xp = np if isinstance(T, np.ndarray) else jnp
    left, right = T @ controllability, xp.linalg.solve(adjoint(T), observability)
    return left @ adjoint(left), right @ adjoint(right)


def balancing_flow(
    A: Any,
    Bm: Any = None,
    C: Any = None,
    t: float = 1.0,
    kind: str = "induced",
    times: Any = None,
    *,
    dt: Any = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    method: str | None = None,
    progress: ProgressCallback | None = None,
    options: Options | None = None,
) -> Trajectory:
    """Follow a stable system to a balanced realisation along (T A T⁻¹, T B, C T⁻¹), from time 0 to t.

    With Λ = W_c − W_o and T' = −ξ T, so that A' = −[ξ, A], B' = −ξ B and C' = C ξ:

    - "induced": ξ W_c + W_o ξ = Λ, the gradient flow of ½(tr W_c + tr W_o) where the operators from past inputs to the
      state and on to future outputs have their own metric: Λ(t) = e^{−2t} Λ(0), whatever the system (derived).
    - "normal": ξ = ½ Λ, no equations to solve. P = T* T obeys P' = W_o − P W_c P with the W of the start, and has a
      closed form, `riccati_path(Wc, Wo, t / 2)`; P is found at rates σ_i + σ_j, slow where Hankel singular values
      are small and stiff where they spread. The unitary rest of T has no closed form.

    **Arguments:** the system as of `gramians`; `t`; `kind`; `times` (N,): increasing times to save at, in [0, t], by
    default 101; the others as of `solvers.solve`.

    **Returns:** a `Trajectory` in float64. `params`: [A, B, C] at the saved times. `observed`: "transformation"
    (N, n, n), T; "moment_map" (N, n²), the entries of Λ; "regularizer" (N,), ½(tr W_c + tr W_o), which falls to Σσ_i.
    T is what is solved for, and any T leaves the transfer function alone.

    **Raises:** as `gramians` and `solvers.solve`; `UnknownNameError`. A system that is not minimal has no balanced
    realisation with all its states: a `ConditioningWarning` says so, the coordinates grow without end.

    **Source:** Helmke and Moore, Optimization and Dynamical Systems (1994), chapter 7, for gradient flows to balanced
    realisations; the flow with a uniform rate is derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> system = np.array([[-1.0]]), np.array([[2.0]]), np.array([[4.0]])
    >>> run = fb.balance.balancing_flow(*system, t=1.0, times=[0.0, 1.0])
    >>> print((run.observed["moment_map"][:, 0] / 6).round(6), round(float(np.exp(-2)), 6))
    [-1.       -0.135335] 0.135335

    ```
    """
    check_name("kind", kind, tuple(_METHODS))
    system = read_system(A, Bm, C, dt=dt)
    factors, found = gramian_factors(system), balance_system(system)
    if found.rank < len(system.A):
        warnings.warn(
            f"{len(system.A) - found.rank} of {len(system.A)} states are not both controllable and observable: no "
            "coordinates balance them. `realization` finds the part that can be balanced",
            ConditioningWarning,
            stacklevel=2,
        )
    d = factors.scale[:, None]
    squares = factors.controllability / d, factors.observability * d
    with jax.enable_x64(True):
        field = CoordinateField(jnp.asarray(squares[0]), jnp.asarray(squares[1]), kind)
        start = jnp.eye(len(system.A), dtype=squares[0].dtype)
        run = solve(
            field,
            start,
            t,
            rtol=rtol,
            atol=atol,
            times=times,
            method=_METHODS[kind] if method is None else method,
            progress=progress,
            options=options,
        )
    T = np.asarray(run.params)
    C_of_t = np.linalg.solve(T.swapaxes(1, 2), np.broadcast_to(system.C.T, (len(T), *system.C.T.shape)))
    A_of_t = np.linalg.solve(T.swapaxes(1, 2), (T @ system.A).swapaxes(1, 2)).swapaxes(1, 2)
    pairs = [moved_gramians(each, *squares) for each in T]
    observed = {
        "transformation": T,
        "moment_map": np.stack([(Wc - Wo).ravel() for Wc, Wo in pairs]),
        "regularizer": np.array([np.trace(Wc + Wo).real / 2 for Wc, Wo in pairs]),
    }
    params = [A_of_t, T @ system.B, C_of_t.swapaxes(1, 2)]
    return dataclasses.replace(run, params=params, observed=observed, stats=dict(run.stats) | {"kind": kind})
