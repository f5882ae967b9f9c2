"""Along training: the stall index, the smallest singular values, the PL ratio, and the envelope that they promise."""

import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import trees
from ..errors import NonFiniteDataError, ParameterError, PrecisionWarning
from ..losses import SquaredError
from ..problem import AbstractProblem, Problem
from ..tangent._differential import Differential
from ..trees import PyTree
from ._arguments import epsilon
from ._basis import Basis, check_basis
from ._coordinates import _coordinates, prepared
from ._disparity import _disparity
from ._norms import length, unit
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
    spectrum: bool = eqx.field(static=True, default=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of an observation are, before the spectrum and the coordinates."""
        return _COLUMNS

    def init(self, problem: AbstractProblem, params: PyTree) -> PyTree:
        """Check what can be checked before the run, and start the integral of σ_min²/N."""
        problem = single(problem)
        prepared(problem.apply, params, self.basis, self.rule)
        self.basis.evaluate(problem.inputs)  # says so if a sample lies out of the box
        zero = jnp.zeros(())
        return {"time": jnp.full((), jnp.nan), "rate": zero, "integral": zero, "cost": problem.cost(params)}

    def update(
        self, problem: AbstractProblem, params: PyTree, time: float, state: PyTree
    ) -> tuple[Float[Array, " C"], PyTree]:
        """Compute one row of numbers, and carry the integral on; NaN where the function is not finite."""
        problem = single(problem)
        try:  # kinks and steep units move: without a rule given, it is found anew
            params, rule = prepared(problem.apply, params, self.basis, self.rule)
        except NonFiniteDataError:
            size = self.basis.size * problem.n_outputs
            return jnp.full(len(_COLUMNS) + (self.spectrum + self.coordinates) * size, jnp.nan), state
        row, sigma, theta, rate = _look(problem, params, self.basis, rule)
        _warn_of_rounding(row, params, problem, len(sigma))
        begun = jnp.isfinite(state["time"])  # the run may start at any time
        step = jnp.where(begun, time - jnp.where(begun, state["time"], 0), 0)
        integral = state["integral"] + step * (rate + state["rate"]) / 2
        promise = 1.0 if isinstance(problem.loss, SquaredError) else jnp.nan
        envelope = promise * state["cost"] * jnp.exp(-2 * integral)
        following = {**state, "time": jnp.asarray(float(time)), "rate": rate, "integral": integral}
        parts = [row, envelope[None], *([sigma] if self.spectrum else [])]
        return jnp.concatenate([*parts, *([theta.reshape(-1)] if self.coordinates else [])]), following


@eqx.filter_jit
def _look(problem: Problem, params: PyTree, basis: Basis, rule: AbstractRule) -> tuple[Array, Array, Array, Array]:
    theta = _coordinates(problem.apply, params, rule)
    gradient = _gradient(problem, theta, basis.evaluate_unit(basis.to_unit(problem.inputs)))
    H = _disparity(problem.apply, params, rule)
    sigma = _padded(jnp.linalg.svd(H, compute_uv=False), H.shape[1])
    D = Differential(problem, params, scaled=True).jacobian()
    data = _padded(jnp.linalg.svd(D, compute_uv=False), D.shape[0])
    size = length(gradient)
    stall = felt_part(length(H @ unit(gradient).reshape(-1)), sigma[0], size)
    cost, slope = problem.cost_and_gradient(params)
    rate = data[-1] ** 2
    promised = 2 * rate * cost
    ratio = trees.dot(slope, slope) / jnp.where(promised > 0, promised, 1)
    ratio = jnp.where(promised > 0, ratio, jnp.inf) if isinstance(problem.loss, SquaredError) else jnp.nan * ratio
    return jnp.stack([stall, size, sigma[-1], sigma[0], data[-1], data[0], ratio]), sigma, theta, rate


def _warn_of_rounding(row: Array, params: PyTree, problem: Problem, columns: int) -> None:
    """Warn of σ_min that a type coarser than float64 cannot tell from zero."""
    eps = epsilon(params, problem.inputs)
    least, largest = np.asarray(row[jnp.array([2, 4])], float), np.asarray(row[jnp.array([3, 5])], float)
    floor = max(trees.size(params), columns, problem.n_residuals) * eps * largest
    if eps > np.finfo(float).eps and np.any((least > 0) & (least <= floor)):
        warnings.warn(
            f"σ_min is below what parameters or inputs of a rounding unit of {eps:.0e} tell from zero: use float64 for "
            "all of them (`jax_enable_x64`)",
            PrecisionWarning,
            stacklevel=3,
        )


def _padded(sigma: Array, needed: int) -> Array:
    return jnp.concatenate([sigma, jnp.zeros(max(0, needed - sigma.size), sigma.dtype)])


def observer(basis: Any, *, rule: Any = None, coordinates: bool = False, spectrum: bool = False) -> Observer:
    """Make an observer of what the canonical space says along a run, for `observe=` of `integrate` and `descend`.

    **Arguments:** `rule`: by default found anew at each saved time, since kinks and steep units move (see `resolve`),
    while a rule given is kept; `spectrum`: also records all singular values of H, for `spectrum_plot`; `coordinates`:
    also records θ, for `frequency_plot` and `settling_times`.

    **Returns:** an observer whose value at each saved time is a row of its `columns`:

    - `stall`: ρ of `stall_index`; `canonical_gradient`: |∇_θ𝒬|; `sigma_min`, `sigma_max`: of H, number K·Q of its
      singular values;
    - `data_sigma_min`, `data_sigma_max`: of J/√N, J the differential of the outputs, rows times √(wᵢ/N);
    - `pl_ratio`: |∇C|²/(2 σ_min² C), at least 1; `envelope`: C(0) exp(−2∫σ_min² dt) by the trapezoid rule over the
      saved times, which the gradient flow stays below; both NaN for losses that promise neither: all but the squared
      error;

    after these with `spectrum` the K·Q singular values of H, descending, and last with `coordinates` the K·Q
    coordinates. A row is NaN where the function is not finite.

    An observer is not told what moves the parameters. The envelope is a promise for the gradient flow alone; `descend`
    with that flow follows it if the steps are short. The times of an optimiser such as Adam are numbers of steps, and
    its envelope means nothing: go by `pl_ratio`, which holds at every point.

    Each evaluation is one dense H and one dense J with their singular values, and without a rule the passes of
    `resolve`. Warns with `ResolutionWarning` as that does, and with `PrecisionWarning` where σ_min is lost to the
    rounding of a type coarser than float64.

    **Raises:** `ParameterError`; at the start of the run what `coordinates` raises, and for samples out of the box.

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
    if rule is not None and not isinstance(rule, AbstractRule):
        raise ParameterError(f"rule is {rule!r}", "a rule from `fb.canonical.quadrature`", "or leave it out")
    return Observer(check_basis(basis), rule, bool(coordinates), bool(spectrum))
