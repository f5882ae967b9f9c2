"""The disparity matrix: what each parameter does to each canonical coordinate."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .. import trees
from ..errors import MemoryBudgetError
from ..trees import PyTree
from ._arguments import concrete
from ._coordinates import prepared, values_at
from ._norms import length, unit
from ._quadrature import AbstractRule

# Bytes of the per-sample gradients of one chunk of nodes, and the most nodes of a chunk: XLA's gradients of a
# convolution's kernel for c samples, each on its own, take memory that grows like c².
_CHUNK, _NODES = 2**27, 1024


@concrete
def disparity(apply: Any, params: PyTree, basis: Any, *, rule: Any = None) -> Float[Array, "M KQ"]:
    """Compute the disparity matrix H(w), H[j, (k, o)] = ∂θ_{k,o}/∂w_j = ⟨∂f_{w,o}/∂w_j, e_k⟩.

    **Arguments:** as in `coordinates`.

    **Returns:** (M, K·Q): rows in the order of `ravel_pytree`, columns mode-major, so that column k·Q + o belongs to
    mode k and output o. With the projected cost 𝒬 (see `projected_cost`), ∇_w 𝒬(θ(w)) = H ∇_θ𝒬, to rounding for any
    rule; for the cost itself up to what the modes left out contribute.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`, `MemoryBudgetError` if H would take over 16 GiB.

    G backward passes for each output, G the number of nodes. If all their gradients fit 128 MiB they are transformed
    like the coordinates. Else those of a chunk of nodes are multiplied into H, and no Jacobian of all nodes is held:
    M·K·Q numbers, and about as many once more for a moment, and 128 MiB for a chunk; 2·G·M·K·Q operations.

    **Source:** Jiang, arXiv 1903.02140, in the orientation without a transpose.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=1)
    >>> H = fb.canonical.disparity(lambda w, x: w[0] + w[1] * x, jnp.zeros(2), basis)
    >>> print(H.round(3) + 0.0)
    [[ 1.     0.   ]
     [ 0.5   -0.287]]

    ```
    """
    params, rule = prepared(apply, params, basis, rule)
    return _disparity(apply, params, rule)


@eqx.filter_jit
def _disparity(apply: Any, params: PyTree, rule: AbstractRule) -> Float[Array, "M KQ"]:
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(state)

    def outputs(vector: Array, x: Array) -> Array:
        return jnp.atleast_1d(apply(eqx.combine(unravel(vector), constant), x))

    samples = rule.samples
    q = jax.eval_shape(outputs, flat, samples[0]).shape[0]
    m, k, g = flat.size, rule.basis.size, rule.size
    if m * k * q * flat.dtype.itemsize > 2**34:
        raise MemoryBudgetError(
            f"H has {m} rows and {k}·{q} columns", "at most 16 GiB", "use `disparity_operator`, or fewer modes"
        )
    size = max(1, min(g, _NODES, _CHUNK // (m * q * flat.dtype.itemsize)))
    count = math.ceil(g / size)
    size = math.ceil(g / count)
    rows = jax.jacrev(outputs) if q <= m else jax.jacfwd(outputs)
    if g * m * q * flat.dtype.itemsize <= _CHUNK:
        gradients = jax.lax.map(lambda x: rows(flat, x), samples, batch_size=size)
        return jnp.moveaxis(rule.analyse(gradients.reshape(g, q * m)).reshape(k, q, m), 2, 0).reshape(m, k * q)
    nodes, weights = jnp.asarray(rule.nodes), jnp.asarray(rule.weights)

    def step(total: Array, number: Array) -> tuple[Array, None]:
        start = jnp.minimum(number * size, g - size)
        new = start + jnp.arange(size) >= number * size
        x = jax.lax.dynamic_slice_in_dim(samples, start, size)
        gradients = jax.vmap(rows, in_axes=(None, 0))(flat, x)
        table = rule.basis.evaluate_unit(jax.lax.dynamic_slice_in_dim(nodes, start, size))
        table = table * jnp.where(new, jax.lax.dynamic_slice_in_dim(weights, start, size), 0)[:, None]
        part = jnp.einsum("gqm,gk->qmk", gradients, table.astype(flat.dtype))
        return total + part, None

    total = jax.lax.scan(step, jnp.zeros((q, m, k), flat.dtype), jnp.arange(count))[0]
    return jnp.moveaxis(total, 0, 2).reshape(m, k * q)


@concrete
def disparity_operator(apply: Any, params: PyTree, basis: Any, *, rule: Any = None) -> lineax.AbstractLinearOperator:
    """Make the disparity matrix a matrix-free `lineax` operator, from (K, Q) to pytrees like the parameters.

    **Returns:** an operator whose `mv(g)` is H g, one backward pass over the nodes, and whose `transpose().mv(v)` is
    Hᵀ v, one forward pass; each is the exact adjoint of the other. For the canonical gradient g = ∇_θ𝒬, H g is ∇_w𝒬;
    for a velocity v of the parameters, Hᵀ v is that of the coordinates.

    **Raises:** `ApplyError`, `ParameterError`, `NonFiniteDataError`.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=[(0, 1)], degree=1)
    >>> H = fb.canonical.disparity_operator(lambda w, x: w[0] + w[1] * x, jnp.zeros(2), basis)
    >>> print(H.mv(jnp.array([[1.0], [0.0]])), H.transpose().mv(jnp.array([0.0, 1.0])).ravel().round(3))
    [1.  0.5] [ 0.5   -0.287]

    ```
    """
    params, rule = prepared(apply, params, basis, rule)
    forward = pushforward(apply, params, rule)
    state = eqx.filter(params, eqx.is_inexact_array)
    shape = jax.eval_shape(forward, state)

    def product(theta: Array) -> PyTree:
        return jax.linear_transpose(forward, state)(theta)[0]

    return lineax.FunctionLinearOperator(product, shape)


def pushforward(apply: Any, params: PyTree, rule: AbstractRule) -> Callable[[PyTree], Float[Array, "K Q"]]:
    """Make the linear map v ↦ Hᵀv from tangent vectors to velocities of the coordinates."""
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    samples = rule.samples

    def theta(state: PyTree) -> Array:
        return rule.analyse(values_at(apply, eqx.combine(state, constant), samples))

    return jax.linearize(theta, state)[1]


def largest_singular_value(forward: Callable[[PyTree], Array], state: PyTree, *, iterations: int = 60) -> Array:
    """Estimate σ_max(H) by power iterations on HHᵀ, stopped when they gain less than 1e-6; a lower bound."""
    back = jax.linear_transpose(forward, state)
    start = unit(trees.random_like(jax.random.key(3), state))

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, sigma, before, count = carry
        return (count < iterations) & (sigma - before > 1e-6 * sigma) | (count == 0)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        vector, sigma, _, count = carry
        theta = forward(vector)
        return unit(back(unit(theta))[0]), length(theta), sigma, count + 1

    zero = jnp.zeros((), length(forward(start)).dtype)
    return jax.lax.while_loop(unfinished, step, (start, zero, zero, jnp.zeros((), int)))[1]
