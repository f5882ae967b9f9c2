"""Sums over samples in chunks, so that what is alive at once fits a memory budget."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool

from . import _sharding
from .trees import PyTree

# What some rows (inputs, targets, weights), of which only the new ones count, contribute to a sum over samples.
Term = Callable[[Sequence[Array], Bool[Array, " c"]], PyTree]

# A Hessian–vector product keeps the intermediate results, their tangents, and both for their cotangents.
_COPIES = 4


def samples_per_chunk(function: Callable[..., Any], inputs: Array | jax.ShapeDtypeStruct, budget: float | int) -> int:
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


def sum_over_devices(term: Term, rows: Sequence[Array], size: int, mesh: Mesh | None, n_samples: int) -> PyTree:
    """Sum `term(chunk, new)` over chunks of at most `size` rows of each device, and then over the devices.

    This is the one place where devices meet to add up: XLA sends each leaf of the sum once, however many chunks there
    are. Rows from `n_samples` on are not new. With a mesh `term` is a pytree; see `_sharding.each_own`.
    """
    if mesh is None:
        return sum_over_chunks(term, rows, size)
    samples = jnp.arange(rows[0].shape[0]) < n_samples
    parts = _sharding.each_own(Partial(_sum_over_own, term, size), mesh)(samples, *rows)
    return _sharding.everywhere(jax.tree.map(lambda part: jnp.sum(part, axis=0), parts), mesh)


def _sum_over_own(term: Term, size: int, samples: Bool[Array, " n"], *rows: Array) -> PyTree:
    whole = size >= len(samples)
    total = term(rows, samples) if whole else sum_over_chunks(term, rows, size, samples)
    return jax.tree.map(lambda leaf: leaf[None], total)


def sum_over_chunks(term: Term, rows: Sequence[Array], size: int, samples: Bool[Array, " n"] | None = None) -> PyTree:
    """Sum `term(chunk, new)` over chunks of `size` rows; the last overlaps the one before, in rows that are not `new`.

    Only one chunk's intermediate results are alive at a time, under forward and under reverse differentiation. Rows
    that are not among the `samples` are not `new` either.
    """
    n = rows[0].shape[0]
    count = -(-n // size)
    size = -(-n // count)  # as even as can be

    def step(total: PyTree, number: Array) -> tuple[PyTree, None]:
        start = jnp.minimum(number * size, n - size)
        chunk = [jax.lax.dynamic_slice_in_dim(array, start, size) for array in rows]
        new = start + jnp.arange(size) >= number * size
        if samples is not None:
            new &= jax.lax.dynamic_slice_in_dim(samples, start, size)
        part = term(chunk, new)
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(lambda: term([array[:size] for array in rows], jnp.ones(size, bool)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), zeros, jnp.arange(count))[0]


def _traced_bytes(function: Callable[..., Any], inputs: Array | jax.ShapeDtypeStruct, n: int) -> int:
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
