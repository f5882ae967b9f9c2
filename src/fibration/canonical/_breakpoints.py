"""Where a network of one input has kinks: the zeros of what its ReLUs, absolute values and comparisons look at."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import trees
from ..errors import ParameterError
from ..trees import PyTree
from ._basis import Basis
from ._program import run

# Switches are looked for between so many points, and then halved down to rounding.
_POINTS, _HALVINGS = 4096, 60
# Of each comparing operation: the difference of its two operands changes sign where it switches.
_COMPARES = {"max", "min", "gt", "lt", "ge", "le"}
_SIGNS = {"abs", "sign"}


def breakpoints(apply: Any, params: PyTree, basis: Basis) -> Float[np.ndarray, " B"]:
    """Find the inputs at which a network of one input switches from one smooth piece to the next, within the box.

    Follows the traced program of `apply` and finds where operands of `max`, `min`, comparisons, `abs` and `sign` cross,
    to rounding. Two crossings within 1/4096 of the box can be missed, and loops are not entered; doubling the nodes
    (`resolve`) shows it.

    **Returns:** (B,), ascending, in the units of the input; none for smooth activations.

    **Raises:** `ParameterError` for more than one input.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> basis = fb.canonical.Basis(box=(0, 1), degree=4)
    >>> fb.canonical.breakpoints(lambda c, x: jax.nn.relu(4 * x - c), 1.0, basis)
    array([0.25])

    ```
    """
    if basis.dimension != 1:
        raise ParameterError(f"a box of {basis.dimension} inputs", "a function of one input", "take a box of one side")
    low, high = float(basis.low[0]), float(basis.high[0])
    function = _switches(apply, trees.as_coordinates(params), basis)
    if function is None:
        return np.zeros(0)
    grid = np.linspace(low, high, _POINTS + 1)
    values = np.asarray(function(jnp.asarray(grid)))
    before, after = values[:-1], values[1:]
    # A signal that is zero on both sides of a point does not switch there.
    exact = np.nonzero((values[1:-1] == 0) & ((values[:-2] != 0) | (values[2:] != 0)))[0] + 1
    cell, switch = np.nonzero(before * after < 0)
    if len(cell) == 0:
        return np.unique(grid[exact])
    left, right = grid[cell], grid[cell + 1]
    sign = np.sign(before[cell, switch])
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        found = np.asarray(function(jnp.asarray(middle)))[np.arange(len(middle)), switch]
        same = np.sign(found) == sign
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    return np.unique(np.concatenate([grid[exact], (left + right) / 2]))


def _switches(apply: Any, params: PyTree, basis: Basis) -> Callable[[Array], Array] | None:
    """Make the function from inputs (n,) to all switching quantities (n, S), or `None` if there are none."""
    sample = jax.ShapeDtypeStruct(basis.shape, jnp.result_type(float))
    state, constant = eqx.partition(params, eqx.is_array)
    closed = jax.make_jaxpr(lambda s, x: apply(eqx.combine(s, constant), x))(state, sample)
    leaves = jax.tree.leaves(state)

    def one(x: Array) -> Array:
        found = [jnp.zeros(0)]

        def evaluate(equation: Any, operands: list[Any]) -> Sequence[Any]:
            name, real = equation.primitive.name, [jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in operands]
            if name in _COMPARES and all(real):
                found.append((operands[0] - operands[1]).reshape(-1))
            elif name in _SIGNS and all(real):
                found.append(operands[0].reshape(-1))
            results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
            return results if equation.primitive.multiple_results else [results]

        run(closed.jaxpr, closed.consts, [*leaves, x.reshape(basis.shape)], evaluate)
        return jnp.concatenate(found)

    if jax.eval_shape(one, jax.ShapeDtypeStruct((), sample.dtype)).shape == (0,):
        return None
    return eqx.filter_jit(jax.vmap(one))
