"""What must not change between two attempts at the same run: digests of programs, arrays and functions."""

import copy
import hashlib
import re
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _sharding
from ..problem import Problem
from ..trees import PyTree


def arrays_of(tree: PyTree) -> list[Any]:
    """List the arrays of a pytree."""
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]


def gathered(tree: PyTree) -> PyTree:
    """Replace problems on a mesh by the same ones without, in the host's memory: a run is the same on any devices."""

    def one(node: Any) -> Any:
        if not isinstance(node, Problem) or node.mesh is None:
            return node
        whole = copy.copy(node)
        with _sharding.in_host_memory(node.mesh):
            for name in ("_inputs", "_targets", "_weights"):
                rows = getattr(node, name)
                whole_rows = None if rows is None else jnp.asarray(_sharding.on_host(rows)[: node.n_samples])
                object.__setattr__(whole, name, whole_rows)
        object.__setattr__(whole, "mesh", None)
        object.__setattr__(whole, "_repeated", 0)
        return whole

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, Problem))


def plain(array: Any) -> np.ndarray:
    """Turn an array into one of numpy's own dtypes: random keys into their data, bfloat16 into integers."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = _sharding.on_host(array)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def digest(pieces: Iterable[bytes]) -> str:
    """Hash a sequence of pieces, their lengths included."""
    total = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.hexdigest()


def digest_arrays(arrays: Iterable[Any]) -> str:
    """Hash arrays: their types, shapes and values."""
    return digest(_bytes(array) for array in arrays)


def digest_program(program: Any) -> str:
    """Hash a traced program: its text, the arrays that it and its inner functions close over, and Python callbacks."""
    constants, callbacks = _inside(program)
    text = re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr))
    return digest([text.encode(), *map(_bytes, constants), *(describe(callback).encode() for callback in callbacks)])


def describe(thing: Any, depth: int = 4) -> str:
    """Describe a function or an object well enough to notice another one: its code, and what that closes over."""
    if eqx.is_array(thing):
        return hashlib.blake2b(_bytes(thing)).hexdigest()
    if depth == 0 or isinstance(thing, str | bytes | int | float | complex | bool | None):
        return re.sub(r"0x[0-9a-f]+", "", repr(thing))
    function = getattr(thing, "__func__", thing)
    code = getattr(function, "__code__", None)
    if code is not None:
        constants = [describe(c, depth - 1) if not hasattr(c, "co_code") else c.co_code.hex() for c in code.co_consts]
        closed = [describe(cell.cell_contents, depth - 1) for cell in function.__closure__ or ()]
        parts = [code.co_code.hex(), code.co_names, constants, closed, describe(function.__defaults__, depth - 1)]
        return hashlib.blake2b(repr(parts).encode()).hexdigest()
    if isinstance(thing, dict):
        return repr(sorted((str(key), describe(value, depth - 1)) for key, value in thing.items()))
    if isinstance(thing, list | tuple):
        return repr([describe(part, depth - 1) for part in thing])
    return f"{type(thing).__qualname__}: {describe(getattr(thing, '__dict__', None), depth - 1)}"


def _inside(program: Any) -> tuple[list[Any], list[Any]]:
    """Collect the constants and the callbacks of a program and of the programs in it."""
    constants, callbacks = list(getattr(program, "consts", ())), []
    for equation in getattr(program, "jaxpr", program).eqns:
        if "callback" in equation.params:
            callback = equation.params["callback"]
            callbacks.append(getattr(callback, "callback_func", callback))
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(part, "eqns"):
                found = _inside(part)
                constants, callbacks = constants + found[0], callbacks + found[1]
    return [constant for constant in constants if eqx.is_array(constant)], callbacks


def _bytes(array: Any) -> bytes:
    values = plain(array)
    return f"{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes()
