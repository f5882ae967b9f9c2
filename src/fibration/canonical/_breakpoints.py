"""Where a network of one input has kinks: the zeros of what its ReLUs, absolute values and comparisons look at."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Float

from .. import trees
from ..errors import ParameterError
from ..trees import PyTree
from ._basis import Basis

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
        found: list[Array] = []
        _run(closed.jaxpr, closed.consts, [*leaves, x.reshape(basis.shape)], found)
        return jnp.concatenate([jnp.zeros(0), *[part.reshape(-1) for part in found]])

    if jax.eval_shape(one, jax.ShapeDtypeStruct((), sample.dtype)).shape == (0,):
        return None
    return eqx.filter_jit(jax.vmap(one))


def _run(jaxpr: Any, consts: list[Any], arguments: list[Any], found: list[Array]) -> list[Any]:
    """Evaluate a program, entering the ones it calls, and note what its switches look at."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        operands = [values[v] if not isinstance(v, Literal) else v.val for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        name = equation.primitive.name
        if inner is not None and name not in ("scan", "while", "cond"):
            body, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
            results = _run(body, constants, operands, found)
        else:
            if name in _COMPARES and all(jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in operands):
                found.append(jnp.asarray(operands[0] - operands[1]))
            elif name in _SIGNS and jnp.issubdtype(jnp.result_type(operands[0]), jnp.floating):
                found.append(jnp.asarray(operands[0]))
            results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [values[v] if not isinstance(v, Literal) else v.val for v in jaxpr.outvars]
