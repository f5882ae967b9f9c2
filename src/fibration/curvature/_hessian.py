"""The Hessian of the cost as a linear map, never as a matrix."""

import equinox as eqx
import jax

from .. import trees
from ..problem import AbstractProblem
from ..trees import PyTree


@eqx.filter_jit
def hessian_vector_product(problem: AbstractProblem, params: PyTree, vector: PyTree) -> PyTree:
    """Compute ∇²C(θ) v by forward over reverse differentiation; costs about two gradients and no matrix.

    **Arguments:** `params`: a pytree with real floating-point leaves; `vector`: a pytree like it.

    **Returns:** a pytree like `vector`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.array([[1.0, 3.0]]), jnp.array([0.0]))
    >>> print(fb.curvature.hessian_vector_product(problem, jnp.zeros(2), jnp.array([1.0, 0.0])))
    [1. 3.]

    ```
    """
    variable, constant = eqx.partition(trees.as_coordinates(params), eqx.is_inexact_array)
    vector = eqx.filter(trees.as_coordinates(vector), eqx.is_inexact_array)
    return jax.jvp(lambda p: problem.gradient(eqx.combine(p, constant)), (variable,), (vector,))[1]
