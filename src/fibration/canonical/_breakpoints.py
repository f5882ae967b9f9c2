"""Where a network of one input has kinks: the zeros of what its ReLUs, absolute values and comparisons look at."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import trees
from ..errors import ParameterError
from ..trees import PyTree
from ._arguments import concrete
from ._basis import Basis, check_basis
from ._program import run

# Switches are looked for between so many points, and then halved down to rounding.
_POINTS, _HALVINGS = 4096, 60
# Of each comparing operation: the difference of its two operands changes sign where it switches.
_COMPARES = {"max", "min", "gt", "lt", "ge", "le"}
_SIGNS = {"abs", "sign"}


@concrete
def breakpoints(apply: Any, params: PyTree, basis: Any) -> Float[np.ndarray, " B"]:
    """Find the inputs at which a network of one input switches from one smooth piece to the next, within the box.

    Follows the traced program of `apply` and finds where operands of `max`, `min`, `clamp`, comparisons, `abs` and
    `sign` cross, to rounding. Two crossings within 1/4096 of the box can be missed; loops are not entered, and sorting
    and the largest of several numbers are not looked at. Doubling the nodes (`resolve`) shows what is missed.

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
    if check_basis(basis).dimension != 1:
        raise ParameterError(f"a box of {basis.dimension} inputs", "a function of one input", "take a box of one side")
    low, high = float(basis.low[0]), float(basis.high[0])
    params = trees.as_coordinates(params)
    grid = np.linspace(low, high, _POINTS + 1)
    values = np.asarray(_signals(apply, params, basis, jnp.asarray(grid)))
    signs = np.sign(values)  # and no products: those of small numbers are zero
    # A signal that is zero on both sides of a point does not switch there.
    exact = np.nonzero((values[1:-1] == 0) & ((values[:-2] != 0) | (values[2:] != 0)))[0] + 1
    cell, switch = np.nonzero(signs[:-1] * signs[1:] < 0)
    if len(cell) == 0:
        return np.unique(grid[exact])
    left, right = grid[cell], grid[cell + 1]
    sign = signs[cell, switch]
    padded = max(64, 2 ** (len(cell) - 1).bit_length())  # few sizes, so that little is compiled anew
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        found = _signals(apply, params, basis, jnp.asarray(np.resize(middle, padded)))
        same = np.sign(np.asarray(found)[np.arange(len(middle)), switch]) == sign
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    return np.unique(np.concatenate([grid[exact], (left + right) / 2]))


@eqx.filter_jit
def _signals(apply: Any, params: PyTree, basis: Basis, inputs: Float[Array, " n"]) -> Float[Array, "n S"]:
    """Compute all quantities whose zeros are switches, at inputs (n,)."""
    sample = jax.ShapeDtypeStruct(basis.shape, jnp.result_type(float))
    state, constant = eqx.partition(params, eqx.is_array)
    closed = jax.make_jaxpr(lambda s, x: apply(eqx.combine(s, constant), x))(state, sample)
    leaves = jax.tree.leaves(state)

    def one(x: Array) -> Array:
        found = [jnp.zeros(0)]

        def evaluate(equation: Any, operands: list[Any]) -> Sequence[Any]:
            name, real = equation.primitive.name, [jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in operands]
            if all(real):
                found.extend(signal.reshape(-1) for signal in _switching(name, operands))
            results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
            return results if equation.primitive.multiple_results else [results]

        run(closed.jaxpr, closed.consts, [*leaves, x.reshape(basis.shape)], evaluate)
        return jnp.concatenate(found)

    return jax.vmap(one)(inputs)


def _switching(name: str, operands: list[Any]) -> list[Any]:
    """List the quantities whose zeros are kinks or jumps of an operation."""
    if name in _COMPARES:
        return [operands[0] - operands[1]]
    if name == "clamp":
        low, value, high = operands
        return [value - low, high - value]
    return [operands[0]] if name in _SIGNS else []
