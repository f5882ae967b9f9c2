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
from jaxtyping import Float, Shaped

from .._validation import check_name
from ..errors import ConditioningWarning, ParameterError, ShapeError, SingularProductError
from ..solvers import Options, Trajectory, solve
from ..solvers._options import ProgressCallback
from ..trees import PyTree
from ._action import AbstractAction, ChainAction, solve_generator
from ._arrays import Matrices, adjoint, hermitian, read_chain, read_matrix, widened
from ._chain import end_to_end, moved, narrowed, partial_products
from ._dual import fibre_velocity, pulled_back, solve_dual
from ._fibre import check_depth, orbit
from ._kempf_ness import in_float64, largest

_METHODS = {"induced": "dopri8", "squared_moment": "auto", "newton": "dopri8"}
_STAGES = 1000  # conjugate-gradient steps at most for one velocity
_ILL = 1e-8
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

    action: AbstractAction
    start: PyTree
    kind: str = eqx.field(static=True)
    rtol: float = eqx.field(static=True)

    def __call__(self, time: Any, g: PyTree) -> PyTree:  # noqa: ARG002
        """Compute −ξ g at W = g·W(0)."""
        W = self.action.act(g, self.start)
        xi = self.action.moment_map(W)
        if self.kind != "squared_moment":
            symmetric = self.kind == "newton"
            xi, _ = solve_generator(self.action, W, xi, symmetric=symmetric, rtol=self.rtol, max_steps=_STAGES)
        return jax.tree.map(lambda x, h: -x @ h, xi, g)


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
        field = OrbitField(ChainAction(), scaled, kind, max(1e-13, min(1e-10, 1e-2 * rtol)))
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


def squared_moment_rates(singular_values: Any, depth: int, hidden_widths: Sequence[int] | None = None) -> np.ndarray:
    """Compute the exponential rates of the squared-moment flow near balance, in increasing order.

    With λ = σ^{1/N} they are 2(λ_i² + λ_j² − 2 λ_i λ_j cos(kπ/N)) for i ≥ j and k = 1 … N − 1, and 2λ_i² once for each
    direction in which a hidden layer is wider than the rank (derived). The slowest is 8 σ_min^{2/N} sin²(π/2N), or
    2 σ_min^{2/N} if a hidden layer is wide; the largest over the smallest is how stiff the flow is.

    **Arguments:** `singular_values` (r,): those of X that are not zero; `depth`: N; `hidden_widths`: d_1 … d_{N−1}, as
    wide as the rank by default.

    **Raises:** `ParameterError` for a depth below 1, for singular values that are not positive, and for hidden widths
    that are not N − 1 or below the rank.

    ```python
    >>> import fibration as fb
    >>> print(fb.balance.squared_moment_rates([0.4, 1.0], depth=2).round(3))
    [1.6 2.8 4. ]

    ```
    """
    check_depth(depth)
    values = np.atleast_1d(np.asarray(singular_values, float))
    widths = [len(values)] * (depth - 1) if hidden_widths is None else [int(width) for width in hidden_widths]
    if values.ndim != 1 or not np.all((values > 0) & np.isfinite(values)):
        raise ParameterError(f"singular values {values}", "positive numbers", "leave out those that are zero")
    if len(widths) != depth - 1 or min(widths, default=len(values)) < len(values):
        raise ParameterError(
            f"hidden widths {widths} for {len(values)} singular values and depth {depth}",
            f"{depth - 1} widths of at least {len(values)}",
            "leave them out if they are as wide as the rank",
        )
    scales = values ** (1 / depth)
    first, second = np.triu_indices(len(scales))
    angles = np.cos(np.pi * np.arange(1, depth) / depth)
    squares = scales[first] ** 2 + scales[second] ** 2
    rates = [2 * (squares[:, None] - 2 * (scales[first] * scales[second])[:, None] * angles).ravel()]
    rates += [np.repeat(2 * scales**2, width - len(scales)) for width in widths]
    return np.sort(np.concatenate(rates))


def riccati_path(A: Any, Bm: Any, times: Any) -> Float[np.ndarray, "T d d"] | Shaped[np.ndarray, "T d d"]:
    """Compute P(t) = g(t)* g(t) along the squared-moment flow of two factors, in closed form.

    With A = W_1 W_1* and B = W_2* W_2 it solves P' = 2(B − P A P), P(0) = I:

        P(t) = A^{−1/2} {S tanh 2tS + sech 2tS [A⁻¹ + S⁻¹ tanh 2tS]⁻¹ sech 2tS} A^{−1/2},

    where S = (A^{1/2} B A^{1/2})^{1/2} has the singular values of X = W_2 W_1 for eigenvalues (derived). Its limit is
    the geometric mean A⁻¹ # B, of the polar gauge.

    **Arguments:** `A`, `Bm` (d, d): Hermitian, A positive definite, B positive semi-definite; `times` (T,): t ≥ 0.

    **Returns:** P (T, d, d), in float64.

    **Raises:** `SingularProductError` if A is singular, with a `ConditioningWarning` if its condition number is above
    1e8. `ParameterError` unless they are Hermitian and semi-definite; `ShapeError`, `NonFiniteDataError`.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> path = fb.balance.riccati_path(np.diag([1.0, 4.0]), np.diag([9.0, 1.0]), [0.0, 10.0])
    >>> print(path[1].round(6))
    [[3.  0. ]
     [0.  0.5]]

    ```
    """
    first, B = (_read_gram(matrix, name) for matrix, name in ((A, "A"), (Bm, "Bm")))
    instants = np.asarray(times, float)
    if first.shape != B.shape or instants.ndim != 1 or not np.all((instants >= 0) & np.isfinite(instants)):
        raise ShapeError(
            f"A of shape {first.shape}, Bm of shape {B.shape} and times {times!r:.80}",
            "two matrices of one size, and a vector of finite times t ≥ 0",
            "pass W_1 W_1* and W_2* W_2 of one pair",
        )
    a, u = np.linalg.eigh(first)
    if a[0] <= len(a) * np.finfo(float).eps * a[-1]:
        raise SingularProductError(
            f"A = W_1 W_1* with eigenvalues from {a[0]:.1e} to {a[-1]:.1e}",
            "a positive definite A",
            'follow the flow numerically: `flow(Ws, t, "squared_moment")`',
        )
    if a[0] < _ILL * a[-1]:
        warnings.warn(
            f"A has the condition number {a[-1] / a[0]:.0e}: the path loses as many digits",
            ConditioningWarning,
            stacklevel=2,
        )
    root, inverse_root, inverse = ((u * a**power) @ adjoint(u) for power in (0.5, -0.5, -1.0))
    squares, v = np.linalg.eigh(hermitian(root @ B @ root))
    s = np.sqrt(np.maximum(squares, 0))
    path = [np.empty((0, len(a), len(a)), root.dtype)]
    for t in instants:
        x = 2 * t * s
        sech, tanh = 1 / np.cosh(np.minimum(x, 700.0)), np.tanh(x)
        over = np.where(s > 0, tanh / np.where(s > 0, s, 1), 2 * t)  # tanh(2ts)/s
        middle = np.linalg.inv(adjoint(v) @ inverse @ v + np.diag(over))
        inner = np.diag(s * tanh) + sech[:, None] * middle * sech
        path.append(hermitian(inverse_root @ v @ inner @ adjoint(v) @ inverse_root)[None])
    return np.concatenate(path)


def _read_gram(matrix: Any, name: str) -> Any:
    """Read a Hermitian, positive semi-definite matrix."""
    gram = widened(read_matrix(matrix, name))
    size = np.max(np.abs(gram))
    if gram.shape[0] != gram.shape[1]:
        raise ShapeError(f"{name} of shape {gram.shape}", "a square matrix", "pass W_1 W_1* and W_2* W_2")
    if np.max(np.abs(gram - adjoint(gram))) > 1e-10 * size or np.linalg.eigvalsh(gram)[0] < -1e-10 * len(gram) * size:
        raise ParameterError(
            f"{name} is not Hermitian and positive semi-definite", "a Gram matrix", "pass W_1 W_1* and W_2* W_2"
        )
    return hermitian(gram)


def time_for_strength(strength: float) -> float:
    """Compute the time after which the induced flow has multiplied every imbalance by 1 − strength."""
    return -math.log1p(-strength) / 2
