"""Sums over samples in chunks, so that what is alive at once fits a memory budget."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .trees import PyTree

# A Hessian–vector product keeps the intermediate results, their tangents, and both for their cotangents.
_COPIES = 4


def samples_per_chunk(function: Callable[..., Any], inputs: Array, budget: float | int) -> int:
    """Tell how many rows of `inputs` a Hessian–vector product of a batched function may take at once.

    Estimated from the traced program: the intermediate results that grow with the number of rows, four times. XLA fuses
    many of them away, so that this is an upper estimate. At least one row.
    """
    n = inputs.shape[0]
    whole = _traced_bytes(function, inputs, n)
    if _COPIES * whole <= budget or n == 1:
        return n
    half = n // 2
    per_row = (whole - _traced_bytes(function, inputs, half)) / (n - half)
    if _COPIES * per_row * n <= budget:
        return n
    return max(1, int(budget / (_COPIES * per_row)))


def sum_over_chunks(
    term: Callable[[Sequence[Array], Bool[Array, " size"]], PyTree], rows: Sequence[Array], size: int
) -> PyTree:
    """Sum `term(chunk, new)` over chunks of `size` rows; the last overlaps the one before, in rows that are not `new`.

    Only one chunk's intermediate results are alive at a time, under forward and under reverse differentiation.
    """
    n = rows[0].shape[0]
    count = -(-n // size)
    size = -(-n // count)  # as even as can be

    def step(total: PyTree, number: Array) -> tuple[PyTree, None]:
        start = jnp.minimum(number * size, n - size)
        chunk = [jax.lax.dynamic_slice_in_dim(array, start, size) for array in rows]
        part = term(chunk, start + jnp.arange(size) >= number * size)
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(lambda: term([array[:size] for array in rows], jnp.ones(size, bool)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), zeros, jnp.arange(count))[0]


def _traced_bytes(function: Callable[..., Any], inputs: Array, n: int) -> int:
    rows = jax.ShapeDtypeStruct((n, *inputs.shape[1:]), inputs.dtype)
    return _bytes(jax.make_jaxpr(function)(rows).jaxpr)


def _bytes(program: Any) -> int:
    """Add up the results of a program's operations; those of a loop count once for each iteration."""
    total = 0
    for equation in program.eqns:
        inner = [_bytes(part) for part in _inside(equation)]
        outer = sum(out.aval.size * out.aval.dtype.itemsize for out in equation.outvars)
        total += equation.params.get("length", 1) * sum(inner) if inner else outer
    return total


def has_loops(program: Any) -> bool:
    """Tell whether a traced program holds a loop, at any depth."""
    return any(
        equation.primitive.name in ("scan", "while") or any(map(has_loops, _inside(equation)))
        for equation in program.eqns
    )


def _inside(equation: Any) -> list[Any]:
    """List the programs that an operation runs."""
    parts = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda part: hasattr(part, "eqns"))
    return [part for part in parts if hasattr(part, "eqns")]
