"""The guarantee for deep linear networks with one output: from data, depth and start to a step size and a rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import ParameterError
from ..flows import GradientFlow
from ..networks import DeepLinear
from ..problem import AbstractProblem, Problem
from ..solvers import Trajectory, descend
from ..trees import PyTree
from ._assumptions import Assumption
from ._descent_bound import explicit_time, step_sizes
from ._reduction import Start
from ._scalar_data import balanced_start, read_data, read_matrices


@dataclass(frozen=True)
class DeepLinearMeasurement:
    """A descent that was run, beside what was guaranteed of it.

    - `trajectory`: the guaranteed number of steps; `continuation`: the steps after them. Both hold |W − L| at every
      saved time in `observed["distance"]`.
    - `cost`: ½|W − L|², which is C − min C, after the guaranteed number of steps; `accuracy`: what was guaranteed.
    - `rate`: the rate per unit of time at which |W − L| decays at the end of the continuation, (1 − q)/η with the
      factor q per step; NaN if rounding hides it; `predicted_rate`: its limit.
    """

    trajectory: Trajectory
    continuation: Trajectory
    cost: float
    accuracy: float
    rate: float
    predicted_rate: float

    @property
    def kept(self) -> bool:
        """Whether the descent did what was guaranteed."""
        return self.cost <= self.accuracy


@dataclass(frozen=True)
class DeepLinearGuarantee:
    """What gradient descent on a deep linear network with one output is certain to do; made by `deep_linear_guarantee`.

    - `step_size` η and `iterations` K: after K steps of size η, C − min C ≤ `accuracy`.
    - `rate`: the limit of −d/dt log |W − L| along the flow, λ^{2−2/n}; C − min C decays at twice the rate.
    - `time`: T = Kη, the time at which the flow has |W − L| = ½√(2·accuracy); `time_bound`: one for the flow's cost to
      reach `accuracy`, in elementary functions and larger.
    - `radius`: the descent stays within it of the flow up to T, in the Euclidean norm of all parameters.
    - `amplification`: e^M, by how much the flow can stretch a deviation up to T.
    - `uniform_step_size`, `uniform_iterations`: from the largest curvature and gradient anywhere in the tube, in place
      of those at each time.
    - `depth` n; `target_norm` λ = |L|; `start_norm` |W|, `start_cosine` cos(W, L) and `start_cost` ½|W − L|² of the
      start; `minimal_cost`: min C.
    - `assumptions`: what the guarantee rests on, as `Assumption`s.
    - `problem`, `params`, `target`: the problem, the start and L.
    """

    step_size: float
    iterations: int
    accuracy: float
    rate: float
    time: float
    time_bound: float
    radius: float
    amplification: float
    uniform_step_size: float
    uniform_iterations: int
    depth: int
    target_norm: float
    start_norm: float
    start_cosine: float
    start_cost: float
    minimal_cost: float
    assumptions: tuple[Assumption, ...]
    problem: Problem = field(repr=False)
    params: list[Array] = field(repr=False)
    target: Float[np.ndarray, " d"] = field(repr=False)

    def measure(self, *, time_constants: float = 8.0, saves: int = 100) -> DeepLinearMeasurement:
        """Run the descent for K steps and compare; then go on, to see the rate.

        **Arguments:** `time_constants`: the continuation's length in time, in multiples of 1/rate; `saves`: about how
        many times are saved in each part.

        **Returns:** a `DeepLinearMeasurement`.

        **Raises:** what `descend` raises.
        """
        target = jnp.asarray(self.target)

        def deviation(problem: AbstractProblem, params: PyTree) -> Array:  # noqa: ARG001
            row = params[0]
            for matrix in params[1:]:
                row = matrix @ row
            return jnp.linalg.norm(row[0] - target)

        def run(params: PyTree, steps: int) -> Trajectory:
            return descend(
                self.problem,
                GradientFlow(),
                params,
                step_size=self.step_size,
                steps=steps,
                save_every=max(1, steps // saves),
                observe={"distance": deviation},
            ).raise_if_failed()

        promised = run(self.params, self.iterations)
        continued = run(promised.final_params, max(8, math.ceil(time_constants / (self.rate * self.step_size))))
        return DeepLinearMeasurement(
            trajectory=promised,
            continuation=continued,
            cost=float(0.5 * promised.observed["distance"][-1] ** 2),
            accuracy=self.accuracy,
            rate=self._decay_rate(continued),
            predicted_rate=self.rate,
        )

    def _decay_rate(self, run: Trajectory) -> float:
        distances = run.observed["distance"]
        # Below this, the distance to L is rounding.
        seen = np.flatnonzero(distances > 1e4 * np.finfo(distances.dtype).eps * self.target_norm)
        if len(seen) < 4:
            return math.nan
        late, last = int(seen[3 * len(seen) // 4]), int(seen[-1])
        steps = (run.times[last] - run.times[late]) / self.step_size
        return float(-np.expm1(np.log(distances[last] / distances[late]) / steps) / self.step_size)


def deep_linear_guarantee(inputs: Any, targets: Any, Ws: Sequence[Any], accuracy: float) -> DeepLinearGuarantee:
    """Compute a step size and a number of steps with which gradient descent on a deep linear network is certain to fit.

    For whitened inputs, XᵀX = N·I, C − min C = ½|W − L|² with the row W = W_n … W_1 and L = YᵀX/N. From a balanced
    start, W_{j+1}ᵀW_{j+1} = W_jW_jᵀ, its gradient flow is known exactly: with w = |W|, λ = |L|, cos(W, L) = tanh y,

        w′ = n w^{2−2/n} (λ tanh y − w),   y′ = λ w^{1−2/n}.

    T is the time at which it has r = |W − L| = ½√(2·accuracy). At t ≤ T, within ε of the flow (Euclidean norm of all
    parameters), with s = w^{1/n}, p = s + ε/√n, G = r + pⁿ − sⁿ:

        −λ_min(∇²C) ≤ m = (n − 1) p^{n−2} G,   λ_max(∇²C) ≤ β = n p^{2n−2} + m,   |∇C| ≤ γ = √n p^{n−1} G.

    With M(t) = ∫₀ᵗ m and a start at the distance e₀ of a balanced one, descent stays within ε of the flow up to T, if

        η ≤ 2 (ε − e^{M(T)} e₀) / ∫₀ᵀ e^{M(T)−M(t)} b(t) dt,

    b(t) the largest β on [t − η, t + η] times the largest γ on [t − η, t], or the largest of all (`uniform_step_size`).
    ε is such that W then errs by ½√(2·accuracy) at most. K = ⌈T/η⌉, and the step size is T/K.

    **Arguments:**

    - `inputs`: (N, …), whitened in float64: `whiten` does that; `targets`: (N,) or (N, 1).
    - `Ws`: matrices W_j (d_j, d_{j−1}), W_1 first, d_n = 1, n ≥ 2; `networks.deep_linear(…, balanced=True)` draws them.
    - `accuracy`: the bound of C − min C, below the start's.

    **Returns:** a `DeepLinearGuarantee`; its method `measure` runs the descent beside it.

    **Raises:** `ShapeError` for more than one output or a single matrix; `NonFiniteDataError`; `ParameterError` for
    inputs that are not whitened, a start that is unbalanced, zero or opposite to L (the flow from there does not reach
    L), L = 0, or an accuracy that is not below the start's cost; `StepSizeError` if no step size is small enough.

    **Sources:** Elkabetz and Cohen (arXiv 2107.06608), theorems on numerical integration and on deep linear networks;
    the flow of W from Arora, Cohen and Hazan (arXiv 1802.06509). The reduction to two variables, the constants, the
    factor 2 and the form with b(t) are derived here. With w₀ small, e^M grows like (2/(1 + c₀))^{n−1} (λ/w₀)^{1−1/n}.

    ```python
    >>> import jax, jax.numpy as jnp, numpy as np
    >>> import fibration as fb
    >>> inputs, _ = fb.fidelity.whiten(np.random.default_rng(0).normal(size=(50, 3)))
    >>> targets = inputs @ np.array([0.6, -0.8, 0.0])
    >>> network, Ws = fb.networks.deep_linear((3, 4, 1), key=jax.random.key(1), scale=0.6, balanced=True)
    >>> promise = fb.fidelity.deep_linear_guarantee(inputs, targets, Ws, accuracy=1e-2)
    >>> run = promise.measure()
    >>> run.kept, bool(abs(run.rate - promise.rate) < 0.05)
    (True, True)

    ```
    """
    matrices = read_matrices(Ws)
    data = read_data(inputs, targets, matrices)
    reference = balanced_start(matrices, data.target)
    start, depth = reference.start, len(matrices)
    goal = _goal(accuracy, start)
    end = start.alignment_where(lambda y: start.distance_at(y) <= goal)
    orbit = start.orbit_to(end)
    steps = step_sizes(orbit, goal, reference.offset)
    widths = (matrices[0].shape[1], *(len(matrix) for matrix in matrices))
    iterations = math.ceil(orbit.end / steps.step_size)
    # Along an aligned start only the radial mode is left, which is n times as fast.
    rate = start.target ** (2 - 2 / depth) * (depth if reference.aligned else 1)
    return DeepLinearGuarantee(
        step_size=orbit.end / iterations,
        iterations=iterations,
        accuracy=float(accuracy),
        rate=rate,
        time=orbit.end,
        time_bound=explicit_time(start, float(accuracy)),
        radius=steps.radius,
        amplification=steps.amplification,
        uniform_step_size=steps.uniform_step_size,
        uniform_iterations=math.ceil(orbit.end / steps.uniform_step_size),
        depth=depth,
        target_norm=start.target,
        start_norm=start.norm,
        start_cosine=math.tanh(start.alignment),
        start_cost=0.5 * start.distance_at(start.alignment) ** 2,
        minimal_cost=data.minimal_cost,
        assumptions=(
            Assumption("|XᵀX/N − I|", data.deviation, "proven", "whitened inputs; taken as 0"),
            Assumption("distance from a balanced start", reference.offset, "proven", "the step size allows for it"),
            Assumption(
                "relative error of the integrals", 1e-8, "given", "Gauss–Legendre rule on the closed-form orbit"
            ),
            Assumption("rounding error of the descent", 0.0, "given", "exact arithmetic is assumed"),
        ),
        problem=Problem(DeepLinear(widths), data.inputs, data.targets),
        params=[jnp.asarray(matrix) for matrix in matrices],
        target=data.target,
    )


def _goal(accuracy: float, start: Start) -> float:
    """Turn the accuracy into the distance |W − L| that the flow should reach."""
    cost = 0.5 * start.distance_at(start.alignment) ** 2
    # Beyond 1e-11 of L rounding decides where descent ends.
    least = 2 * (1e-11 * start.target) ** 2
    if not least <= accuracy < cost:
        raise ParameterError(
            f"accuracy = {accuracy!r}, from a start whose cost is {cost:.6g} above the minimum",
            f"an accuracy from {least:.1e} to below the start's cost",
            "ask for less than the start has; the cost of a start is `0.5 * |W − L|²`",
        )
    return 0.5 * math.sqrt(2 * float(accuracy))
