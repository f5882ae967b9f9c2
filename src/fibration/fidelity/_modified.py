"""The modified flow of backward error analysis."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from .. import trees
from ..curvature import hvp
from ..errors import StepSizeError, UnknownNameError
from ..flows import AbstractFlow
from ..flows._flow import Time
from ..problem import AbstractProblem
from ..trees import PyTree


class ModifiedFlow(AbstractFlow):
    """The flow that gradient descent with steps η follows to second order: θ' = −∇C − (η/2) ∇²C ∇C + O(η²).

    It is the gradient flow of C + (η/4)|∇C|² (Barrett and Dherin, arXiv 2009.11162, eq. 5), and after a time t of order
    one descent is O(η²) from it, where it is O(η) from the gradient flow.

    **Arguments:**

    - `step_size`: η, positive.
    - `form`: "gradient", θ' = −∇C(θ + (η/2) ∇C(θ)), which agrees to O(η²) and takes two gradients and no Hessian
      (derived: ∇C(θ + (η/2)∇C) = ∇C + (η/2) ∇²C ∇C + O(η²)); or "hessian", the formula above, a gradient and a
      Hessian–vector product.

    **Raises:** `StepSizeError` unless η is positive and finite; `UnknownNameError` for another form.

    Its linearisation at a minimum has the eigenvalues −λ(1 + ηλ/2), where descent contracts like log(1 − ηλ)/η: the
    two agree for ηλ well below 1, with λ the largest eigenvalue of the Hessian, and beyond ηλ = 1, where descent
    oscillates, this flow says nothing about it.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([0.0]))
    >>> flow = fb.fidelity.ModifiedFlow(0.1)
    >>> print(flow(problem, jnp.array(1.0)))  # −(1 + η/2)
    -1.05

    ```
    """

    gradient_evaluations = 2

    step_size: Real[Array, ""]
    form: str = eqx.field(static=True)

    def __init__(self, step_size: float | Real[Array, ""], form: str = "gradient") -> None:
        if not isinstance(step_size, jax.core.Tracer) and not (np.isfinite(float(step_size)) and float(step_size) > 0):  # pyright: ignore[reportAttributeAccessIssue]
            raise StepSizeError(
                f"step_size = {step_size}", "a positive, finite step size", "pass that of the descent to be followed"
            )
        if form not in ("gradient", "hessian"):
            raise UnknownNameError(f"the form {form!r}", '"gradient" or "hessian"', "leave it at its default")
        self.step_size, self.form = jnp.asarray(step_size, jnp.result_type(float)), form

    def __call__(self, problem: AbstractProblem, params: PyTree, time: Time = 0.0) -> PyTree:  # noqa: ARG002
        """Compute the velocity: two gradients, or a gradient and a Hessian–vector product."""
        params = trees.as_coordinates(params)
        variable, constant = eqx.partition(params, eqx.is_inexact_array)
        gradient = eqx.filter(problem.gradient(params), eqx.is_inexact_array)
        if self.form == "gradient":
            ahead = trees.axpy(0.5 * self.step_size, gradient, variable)
            return jax.tree.map(lambda g: -g, problem.gradient(eqx.combine(ahead, constant)))
        change = eqx.filter(hvp(problem, params, gradient), eqx.is_inexact_array)
        return jax.tree.map(lambda g: -g, trees.axpy(0.5 * self.step_size, change, gradient))
