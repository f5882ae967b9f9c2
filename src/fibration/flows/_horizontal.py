"""The sub-Riemannian geometry of a trajectory: horizontal and vertical parts of its motion."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import RankLossError
from ..problem import AbstractProblem
from ..tangent._differential import Differential
from ..tangent._minimum_norm import factorize
from ..trees import PyTree
from ._saved import Saved, at, each, integral, saved


@dataclass(frozen=True, eq=False)
class Horizontality:
    """How a trajectory moves with respect to the fibres of outputs: across them, horizontally, or along them.

    - `times` (T,); `defect` (T,): |(I − Π)θ'|/|θ'|, the vertical part of the velocity, Π the projector onto the range
      of Dᵀ; 0 where nothing moves. For the adapted flows it is zero but for rounding.
    - `horizontal_length` (T,): ∫√h(θ', θ')dt with h(v, w) = ⟨Dv, Dw⟩, the length of the outputs' path so far, for the
      adapted flow |r₀|(1 − e^{−t/N}); `energy` (T,): ∫h(θ', θ')dt, for the adapted flow C₀ − C(t).
    - `length` (T,): ∫|θ'|dt, the Euclidean length.
    """

    times: Float[np.ndarray, " T"]
    defect: Float[np.ndarray, " T"]
    horizontal_length: Float[np.ndarray, " T"]
    energy: Float[np.ndarray, " T"]
    length: Float[np.ndarray, " T"]

    def __str__(self) -> str:
        return (
            f"vertical part at most {self.defect.max():.1e} of the velocity; horizontal length "
            f"{self.horizontal_length[-1]:.6g}, energy {self.energy[-1]:.6g}, Euclidean length {self.length[-1]:.6g}"
        )


@eqx.filter_jit
def _parts(problem: AbstractProblem, params: PyTree, velocity: PyTree, method: str) -> tuple[Array, Array, Array]:
    """Compute the norms of a velocity's vertical part, of the outputs' velocity, and of the velocity."""
    factor = factorize(Differential(problem, params), method=method)
    speed = trees.norm(velocity)
    # Of unit length, so that small velocities lose no digits.
    unit = trees.scale(1 / jnp.where(speed > 0, speed, 1), velocity)
    image = factor.jvp(unit)
    return trees.norm(trees.subtract(unit, factor.solve(image))), speed * jnp.linalg.norm(image), speed


def horizontality(
    problem: AbstractProblem, trajectory: Saved, flow: Any = None, *, method: str = "auto"
) -> Horizontality:
    """Measure how much of a trajectory's motion is horizontal, orthogonal to the fibres, and how long it is.

    **Arguments:**

    - `trajectory`: with parameters at five saved times or more.
    - `flow`: the flow that made it, for velocities that are exact. Without it they are the derivative of the polynomial
      through five neighbouring times, with an error of O(Δt⁴): save times densely.
    - `method`: how the solves are done; see `tangent.minimum_norm`.

    **Returns:** a `Horizontality`; integrals are those of cubic splines over the saved times, O(Δt⁴) too.

    **Raises:** `TimeSpanError` without enough saved times.

    **Source:** derived, from the bundle metric of Chen, arXiv 2311.15487, section 2.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w[0] * w[1] * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> run = fb.descend(problem, fb.AdaptedFlow(), jnp.array([2.0, 1.0]), step_size=0.01, steps=500, save_every=10)
    >>> measured = fb.flows.horizontality(problem, run)
    >>> bool(measured.defect.max() < 0.01), measured.horizontal_length[-1].round(2).item()  # |r₀|(1 − e^{−t})
    (True, 1.99)

    ```
    """
    times, leaves, constant = saved(trajectory, 5)
    if flow is not None and hasattr(flow, "bound"):
        flow = flow.bound(problem, at(leaves, constant, 0))[0]
    rows: list[tuple[float, float, float]] = []
    for row, params in enumerate(each(leaves, constant, len(times))):
        if flow is None:
            velocity = _derivative(times, leaves, row)
        else:
            velocity = _evaluate(flow, problem, params, jnp.asarray(times[row]))
        vertical, image, speed = _parts(problem, params, velocity, method)
        rows.append((float(vertical), float(image), float(speed)))
    vertical, image, speed = np.array(rows).T
    return Horizontality(times, vertical, integral(times, image), integral(times, image**2), integral(times, speed))


@eqx.filter_jit
def _evaluate(flow: Any, problem: AbstractProblem, params: PyTree, time: Array) -> PyTree:
    return eqx.filter(flow(problem, params, time), eqx.is_inexact_array)


def _derivative(times: Float[np.ndarray, " T"], leaves: PyTree, row: int) -> PyTree:
    """Differentiate the polynomial through the five times around one."""
    first = int(np.clip(row - 2, 0, len(times) - 5))
    near = times[first : first + 5] - times[row]
    width = np.max(np.abs(near))
    # Σ wⱼ p(tⱼ) = p'(0) for p = 1, t, …, t⁴.
    weights = np.linalg.solve(np.vander(near / width, increasing=True).T, [0, 1, 0, 0, 0]) / width
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.tensordot(weights, leaf[first : first + 5], 1).astype(leaf.dtype)), leaves
    )


@dataclass(frozen=True, eq=False)
class Holonomy:
    """What a closed path of the outputs did to the parameters.

    - `drift`: θ(T) − θ(0), a pytree like the parameters; `length`: its norm.
    - `gap`: |x(T) − x(0)|, how far the outputs' path is from closed; `vertical`: the norm of the drift's part in the
      kernel of D at the start.
    """

    drift: PyTree
    length: float
    gap: float
    vertical: float

    def __str__(self) -> str:
        ends = f"the outputs miss closing by {self.gap:.1e}"
        return f"drift {self.length:.6g}, {self.vertical:.6g} of it along the fibre; {ends}"


def holonomy(problem: AbstractProblem, trajectory: Saved, *, method: str = "auto") -> Holonomy:
    """Measure how far along its fibre a closed path of the outputs moved the parameters.

    For a small square with sides ε along outputs i and j it is ε²[hᵢ, hⱼ] + O(ε³), see `bracket`: the final parameters
    depend on the way that outputs take, and not only on where they end.

    **Arguments:** `trajectory`: one that brings the outputs back, such as that of a `PathFlow`; `method`: see
    `tangent.minimum_norm`.

    **Returns:** a `Holonomy`.

    **Raises:** `TimeSpanError` without two saved times.

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w[0] * w[1] * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> there_and_back = lambda t: 1 + jnp.sin(t)[None, None]
    >>> run = fb.follow(problem, jnp.array([1.0, 1.0]), t1=jnp.pi, path=there_and_back, step=0.05)
    >>> bool(fb.flows.holonomy(problem, run).length < 1e-3)  # one output only: it goes back as it came
    True

    ```
    """
    times, leaves, constant = saved(trajectory, 2)
    first, last = at(leaves, constant, 0), at(leaves, constant, len(times) - 1)
    drift = jax.tree.map(lambda leaf: jnp.asarray(leaf[-1] - leaf[0]), leaves)
    vertical, _, length = _parts(problem, first, drift, method)
    outputs = [Differential(problem, params) for params in (first, last)]
    gap = jnp.linalg.norm(outputs[1].outputs(outputs[1].params) - outputs[0].outputs(outputs[0].params))
    return Holonomy(drift, float(length), float(gap), float(vertical * length))


def bracket(problem: AbstractProblem, params: PyTree, first: Any, second: Any) -> PyTree:
    """Compute the bracket [h₁, h₂] of two horizontal vector fields hᵢ(θ) = D(θ)⁺eᵢ: the curvature of the fibration.

    Along the commutator of the flows, e^{−εh₂}e^{−εh₁}e^{εh₂}e^{εh₁}, parameters move by ε²[h₁, h₂] + O(ε³), and the
    outputs come back: the bracket is vertical, D[h₁, h₂] = 0. It vanishes for networks linear in their parameters.

    **Arguments:** `first`, `second`: the directions eᵢ, shaped like `problem.outputs`, (N, Q). D must have full row
    rank.

    **Returns:** a pytree like `params`, with `None` at leaves that are not floating-point.

    **Raises:** `ShapeError`, `ApplyError`, `ParameterError`, `NonFiniteDataError`; `RankLossError` without full row
    rank. Allocates the Jacobian, M·K numbers, a few times.

    With zᵢ = (DDᵀ)⁻¹eᵢ it is (I − Π)[(D²x[h₁])ᵀz₂ − (D²x[h₂])ᵀz₁].

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> step = lambda w, x: jnp.array([w[0], w[1] + w[0] * w[2]])  # not linear
    >>> problem = fb.Problem(step, jnp.array([1.0]), jnp.zeros((1, 2)))
    >>> one, two = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(fb.flows.bracket(problem, jnp.zeros(3), one, two))
    [0. 0. 1.]

    ```
    """
    problem.check(params)
    differential = Differential(problem, params)
    directions = [differential.flat(direction).astype(float) for direction in (first, second)]
    for name, direction in zip(("first", "second"), directions, strict=True):
        _validation.check_finite(direction, name)
    needed, columns = differential.shape
    found, full = (None, False) if columns < needed else _bracket(differential, *directions)
    if not trees.is_traced(full) and not bool(full):
        raise RankLossError(
            f"the differential has not the rank {needed}",
            "full row rank, so that every direction of the outputs has a lift",
            "see `fb.tangent.rank` for the samples it is lost on",
        )
    return found


@eqx.filter_jit
def _bracket(differential: Differential, first: Float[Array, " M"], second: Float[Array, " M"]) -> tuple[PyTree, Array]:
    matrix = differential.jacobian()
    q, r = jnp.linalg.qr(matrix.T)
    sigma = jnp.linalg.svd(r, compute_uv=False)
    full = sigma[-1] > max(matrix.shape) * jnp.finfo(sigma.dtype).eps * sigma[0]
    lifts = [solve_triangular(r, e.astype(r.dtype), trans=1) for e in (first, second)]
    horizontals = [q @ w for w in lifts]
    duals = [solve_triangular(r, w) for w in lifts]

    def turned(direction: Array, dual: Array) -> Array:
        """(D²x[direction])ᵀ dual."""

        def cogradient(state: PyTree) -> PyTree:
            return jax.vjp(differential.outputs, state)[1](dual.astype(first.dtype))[0]

        change = jax.jvp(cogradient, (differential.params,), (differential.unravel(direction),))[1]
        return ravel_pytree(change)[0]

    change = turned(horizontals[0], duals[1]) - turned(horizontals[1], duals[0])
    return differential.unravel(change - q @ (q.T @ change)), full
