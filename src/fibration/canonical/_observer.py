"""Along training: the stall index, the smallest singular values, the PL ratio, and the envelope that they promise."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import trees
from ..problem import AbstractProblem, Problem
from ..tangent._differential import Differential
from ..trees import PyTree
from ._basis import Basis
from ._coordinates import _coordinates, prepared
from ._disparity import _disparity
from ._projected import _gradient, felt_part, single
from ._quadrature import AbstractRule

_COLUMNS = (
    "stall",
    "canonical_gradient",
    "sigma_min",
    "sigma_max",
    "data_sigma_min",
    "data_sigma_max",
    "pl_ratio",
    "envelope",
)


class Observer(eqx.Module):
    """Made by `observer`."""

    basis: Basis
    rule: AbstractRule | None
    coordinates: bool = eqx.field(static=True, default=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of an observation are, before the coordinates."""
        return _COLUMNS

    def init(self, problem: AbstractProblem, params: PyTree) -> PyTree:
        """Fix the quadrature rule, and start the integral of σ_min²/N."""
        problem = single(problem)
        params, rule = prepared(problem.apply, params, self.basis, self.rule)
        self.basis.evaluate(problem.inputs)  # says so if a sample lies out of the box
        zero = jnp.zeros(())
        return {
            "rule": rule,
            "time": jnp.full((), jnp.nan),
            "rate": zero,
            "integral": zero,
            "cost": problem.cost(params),
        }

    def update(
        self, problem: AbstractProblem, params: PyTree, time: float, state: PyTree
    ) -> tuple[Float[Array, " C"], PyTree]:
        """Compute one row of numbers, and carry the integral on."""
        problem = single(problem)
        row, theta, rate = _look(problem, trees.as_coordinates(params), self.basis, state["rule"])
        begun = jnp.isfinite(state["time"])  # the run may start at any time
        step = jnp.where(begun, time - jnp.where(begun, state["time"], 0), 0)
        integral = state["integral"] + step * (rate + state["rate"]) / 2
        envelope = state["cost"] * jnp.exp(-2 * integral)
        following = {**state, "time": jnp.asarray(float(time)), "rate": rate, "integral": integral}
        parts = [row, envelope[None], *([theta.reshape(-1)] if self.coordinates else [])]
        return jnp.concatenate(parts), following


@eqx.filter_jit
def _look(problem: Problem, params: PyTree, basis: Basis, rule: AbstractRule) -> tuple[Array, Array, Array]:
    theta = _coordinates(problem.apply, params, rule)
    gradient = _gradient(problem, theta, basis.evaluate_unit(basis.to_unit(problem.inputs)))
    H = _disparity(problem.apply, params, rule)
    sigma = _padded(jnp.linalg.svd(H, compute_uv=False), H.shape[1])
    D = Differential(problem, params, scaled=True).jacobian()
    data = _padded(jnp.linalg.svd(D, compute_uv=False), D.shape[0])
    size = jnp.linalg.norm(gradient)
    stall = felt_part(jnp.linalg.norm(H @ gradient.reshape(-1)), sigma[0], size)
    cost, slope = problem.cost_and_gradient(params)
    rate = data[-1] ** 2
    promised = 2 * rate * cost
    ratio = trees.dot(slope, slope) / jnp.where(promised > 0, promised, 1)
    ratio = jnp.where(promised > 0, ratio, jnp.inf)
    return jnp.stack([stall, size, sigma[-1], sigma[0], data[-1], data[0], ratio]), theta, rate


def _padded(sigma: Array, needed: int) -> Array:
    return jnp.concatenate([sigma, jnp.zeros(max(0, needed - sigma.size), sigma.dtype)])


def observer(basis: Basis, *, rule: AbstractRule | None = None, coordinates: bool = False) -> Observer:
    """Make an observer of what the canonical space says along a run, for `observe=` of `integrate` and `descend`.

    **Arguments:** `rule`: by default resolved at the start of the run; `coordinates`: also records θ.

    **Returns:** an observer whose value at each saved time is a row of its `columns`:

    - `stall`: ρ of `stall_index`; `canonical_gradient`: |∇_θ𝒬|; `sigma_min`, `sigma_max`: of H, number K·Q of its
      singular values;
    - `data_sigma_min`, `data_sigma_max`: of J/√N, J the differential of the outputs, rows times √(wᵢ/N);
    - `pl_ratio`: |∇C|²/(2 σ_min² C), at least 1 for the squared error; `envelope`: C(0) exp(−2∫σ_min² dt) by the
      trapezoid rule over the saved times, which the gradient flow stays below;

    and with `coordinates` the K·Q coordinates after these. Each evaluation is one dense H and one dense J with their
    singular values.

    **Source:** derived (Polyak–Łojasiewicz inequality; Jiang, arXiv 1903.02140, for H).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=1)
    >>> problem = fb.Problem(lambda w, x: w[0] + w[1] * x, jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [2.0]]))
    >>> watch = fb.canonical.observer(basis)
    >>> run = fb.integrate(problem, fb.GradientFlow(), jnp.zeros(2), t1=4.0, observe={"canonical": watch})
    >>> rows = dict(zip(watch.columns, run.observed["canonical"].T))
    >>> bool((rows["pl_ratio"] >= 1 - 1e-6).all()), bool((run.costs <= rows["envelope"] * (1 + 1e-3)).all())
    (True, True)

    ```
    """
    return Observer(basis, rule, coordinates)
