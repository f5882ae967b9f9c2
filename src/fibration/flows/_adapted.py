"""The adapted gradient flow, and the family between it and the gradient flow."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _validation, trees
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..tangent._differential import Differential
from ..trees import PyTree
from ._damping import as_array
from ._flow import Time
from ._lifted import AbstractLiftedFlow
from ._metrics import AbstractOutputMetric, Euclidean


class AdaptedFlow(AbstractLiftedFlow):
    r"""The geometrically adapted gradient flow θ' = −D⁺∇ₓC: gradient descent of the cost in the space of outputs.

    Where the differential D = ∂x/∂θ has full row rank, the outputs follow x' = −∇ₓC exactly. With `SquaredError`,
    C = (1/2N) Σᵢ |xᵢ − yᵢ|², every residual then decays as e^{−t/N} and the cost as e^{−2t/N}, whatever the network:
    `flows.stopping_time` is known beforehand. With less rank, x' = −P∇ₓC, P the projector onto the range of D: the cost
    falls, but at no known rate, to where the residual is orthogonal to that range, a critical point of C.

    | cost | residuals | cost decays as |
    |---|---|---|
    | (1/2N) Σ\|x − y\|², as here | e^{−t/N} | e^{−2t/N} |
    | ½ Σ\|x − y\|² | e^{−t} | e^{−2t} |
    | mean over all N·Q entries of (x − y)² | e^{−2t/(NQ)} | e^{−4t/(NQ)} |

    With sample weights, sample i decays as e^{−wᵢt/N}. In a stacked problem every block keeps its own N: outputs are
    joined and the metric is Euclidean on all of them; `metric=flows.Whitened()` gives all residuals the rate e^{−t}.

    **Arguments:**

    - `damping`: λ in D⁺ ≈ Dᵀ(DDᵀ + λ)⁻¹: a number, 0.0 for none at all, or a `Tikhonov`. "auto" damps when there are
      fewer than 1.5 parameters per output, with λ = 1e-6·σ_max(θ₀)²: there, undamped flows commonly lose rank.
    - `method`: how the solves are done; see `tangent.minimum_norm`.
    - `metric`: on outputs: `Euclidean`, `SoftmaxFisher` or `Whitened`.
    - `on_rank_loss`: at a point where the differential loses rank that it had at the start, undamped flows end. "stop"
      ends the run there, with the result "rank_loss" or "blow_up", a failure; "damp" carries on with damping
      λ = s² e^{−σ_min²/s²}, s = σ_min(θ₀)/100, nothing until σ_min falls below some 5 % of its start, at the price of
      a second solve.

    **Raises:** `ParameterError`, `UnknownNameError`. A run warns at its start of kinks (`NonsmoothModelWarning`),
    missing rank (`RankDeficientWarning`), labels without minimiser and lost precision.

    Allocates what one solve does: the Gram matrix or the Jacobian, by `method`.

    **Source:** Chen, arXiv 2311.15487, lemma 2.2; Chen and Muñoz Ewald, arXiv 2408.01517. Full rank along the orbit is
    an assumption, not a consequence: f = tanh θ with target 2 has full rank everywhere, and ends at t = ln 2.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: jnp.sinh(w * x), jnp.array([1.0]), jnp.array([0.0]))
    >>> run = fb.integrate(problem, fb.AdaptedFlow(damping=0.0), jnp.array(1.0), 2.0, rtol=1e-4, times=[0.0, 1.0, 2.0])
    >>> print((run.costs / run.costs[0]).round(3))  # e^{−2t}
    [1.    0.135 0.018]

    ```
    """

    metric: AbstractOutputMetric

    def __init__(
        self,
        damping: Any = "auto",
        method: str = "auto",
        metric: Any = None,
        on_rank_loss: str = "stop",
    ) -> None:
        super().__init__(damping, method, on_rank_loss)
        self.metric = Euclidean() if metric is None else metric
        if not isinstance(self.metric, AbstractOutputMetric):
            raise ParameterError(
                f"metric is {metric!r}", "a metric of the outputs", "pass an instance: `fb.flows.SoftmaxFisher()`"
            )

    def differential(self, problem: AbstractProblem, params: PyTree) -> Differential:
        """Give the differential of the outputs, or of the residuals for a metric that is theirs."""
        return Differential(problem, params, scaled=self.metric.scaled)

    def output_velocity(
        self,
        problem: AbstractProblem,
        outputs: Float[Array, " M"],
        time: Time,  # noqa: ARG002
    ) -> Float[Array, " M"]:
        """Compute −∇ₓC in the metric."""
        return self.metric.velocity(problem, outputs)


class InterpolatedFlow(AdaptedFlow):
    """Flows between the gradient flow (α = 0) and the adapted one (α = 1): θ' = −(αD⁺(D⁺)ᵀ + (1−α)κ)∇C.

    D⁺(D⁺)ᵀ = (DᵀD)⁺, so that θ' = −αD⁺∇ₓC − (1−α)κDᵀ∇ₓC. All of them have the same equilibria for α > 0, and for α = 0
    too. For a linear network, residuals along a left singular vector of D with singular value σ decay as
    e^{−(α + (1−α)κσ²)t/N}.

    **Arguments:** `alpha`: α in [0, 1]; `scale`: κ > 0, for the two terms have different units; the paper's is 1, and
    1/σ_max² makes the fastest rates equal. The others: see `AdaptedFlow`.

    **Raises:** `ParameterError`, `UnknownNameError`.

    **Source:** Chen, arXiv 2311.15487, theorem 2.3. That the vector fields have common zeros does not mean that their
    orbits have the same limits: they do not.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([2.0]))
    >>> [fb.InterpolatedFlow(alpha, damping=0.0)(problem, jnp.array(0.0)).item() for alpha in (0.0, 0.5, 1.0)]
    [4.0, 2.5, 1.0]

    ```
    """

    alpha: Any
    scale: Any

    def __init__(
        self,
        alpha: Any,
        scale: Any = 1.0,
        damping: Any = "auto",
        method: str = "auto",
        on_rank_loss: str = "stop",
    ) -> None:
        super().__init__(damping, method, on_rank_loss=on_rank_loss)
        if not trees.is_traced(alpha) and not 0 <= _validation.as_number("alpha", alpha) <= 1:
            raise ParameterError(f"alpha = {alpha}", "a number from 0 to 1", "alpha=0 is the gradient flow")
        if not trees.is_traced(scale) and not 0 < _validation.as_number("scale", scale) < float("inf"):
            raise ParameterError(f"scale = {scale}", "a positive number", "leave it at 1")
        self.alpha, self.scale = as_array(alpha), as_array(scale)

    @property
    def stiff(self) -> bool:
        """Whether rates may be large: those of the gradient flow's part are."""
        return True

    @property
    def gradient_evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Count a solve and a gradient."""
        return 2

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:
        """Compute the sum of both velocities; one solve and one gradient."""
        downhill = trees.scale(jnp.asarray((self.alpha - 1) * self.scale), problem.gradient(params))
        return trees.axpy(jnp.asarray(self.alpha), self.lifted(problem, params, time), downhill)
