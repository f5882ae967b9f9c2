"""Weight decay: any flow with a pull towards zero."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .. import _validation, trees
from ..errors import ParameterError
from ..problem import AbstractProblem
from ..trees import PyTree
from ._flow import AbstractFlow, Time


class WeightDecay(AbstractFlow):
    """A flow with decoupled weight decay, θ' = F(θ, t) − λθ.

    With `GradientFlow` it is the gradient flow of C(θ) + ½λ|θ|². On the matrices of a deep linear network, whatever the
    cost, imbalances then decay as G(t) = e^{−2λt} G(0) (derived; λ = 0 is Arora, Cohen and Hazan, arXiv 1802.06509,
    theorem 1), and the diagonal entries of G do in a ReLU network without biases. Euler's method on it is gradient
    descent with weight decay, θ⁺ = (1 − ηλ)θ − η∇C.

    **Arguments:** `flow`: a flow, or a function `(problem, params, time)`; `rate`: λ ≥ 0.

    **Raises:** `ParameterError` for a rate that is negative or not finite.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([2.0]))
    >>> print(fb.flows.WeightDecay(fb.GradientFlow(), rate=0.5)(problem, jnp.array(1.0)))
    -0.5

    ```
    """

    flow: AbstractFlow | Callable[..., PyTree]
    rate: Any

    def __init__(self, flow: AbstractFlow | Callable[..., PyTree], rate: Any) -> None:
        if not trees.is_traced(rate) and not 0 <= _validation.as_number("rate", rate) < float("inf"):
            raise ParameterError(f"rate = {rate}", "a finite number, not negative", "try rate=1e-4")
        self.flow = flow
        # An array, so that runs with another rate share their compilation; NumPy's, to keep its float64.
        self.rate = rate if isinstance(rate, jax.Array) else np.asarray(rate, float)

    @property
    def gradient_evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Count the gradients of one call: those of the flow inside."""
        return int(getattr(self.flow, "gradient_evaluations", 1))

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:
        """Compute F(θ, t) − λθ; as many gradient evaluations as F takes."""
        velocity = eqx.filter(self.flow(problem, params, time), eqx.is_inexact_array)
        return trees.axpy(-self.rate, eqx.filter(trees.as_coordinates(params), eqx.is_inexact_array), velocity)

    def prepare(self, problem: AbstractProblem, params: PyTree) -> "WeightDecay":
        """Prepare the flow inside."""
        prepare = getattr(self.flow, "prepare", None)
        return self if prepare is None else WeightDecay(prepare(problem, params), self.rate)

    def conditions(self, problem: AbstractProblem) -> Mapping[str, Callable[..., Any]]:
        """Give the stop conditions of the flow inside."""
        conditions = getattr(self.flow, "conditions", None)
        return {} if conditions is None else conditions(problem)

    def explain(
        self, problem: AbstractProblem, start: PyTree, params: PyTree, time: float, code: str
    ) -> tuple[str, str]:
        """Let the flow inside say why a run ended."""
        explain = getattr(self.flow, "explain", None)
        return (code, "") if explain is None else explain(problem, start, params, time, code)
