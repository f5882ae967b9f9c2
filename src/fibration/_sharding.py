"""Samples divided over the devices of a mesh, and everything else on every device.

The style is `jax.jit` with `NamedSharding` on a mesh of Auto axes: programs are written for the whole arrays, and XLA
inserts the reductions. What is here says where arrays lie, and lets several processes agree. Without a mesh, `None`,
the functions give back what they were given.

One thing XLA (of JAX 0.10) gets wrong without a word: it divides the gradient of a convolution's filter, sample by
sample, into groups that do not fit. So every network is evaluated through `each_own`, where XLA has nothing to divide.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from .errors import FibrationError, ParameterError
from .trees import PyTree, is_traced

_PIECE = 2**26  # bytes that are moved to the hosts at a time


def as_mesh(mesh: Any) -> Mesh | None:
    """Check that a mesh has Auto axes and devices of this process, and of every other one if of any.

    **Raises:** `ParameterError`.
    """
    if mesh is None:
        return None
    make = 'jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))'
    if not isinstance(mesh, Mesh):
        raise ParameterError(
            f"mesh is {type(mesh).__name__}", "a jax.sharding.Mesh of devices", f"pass `mesh={make}`, or leave it out"
        )
    others = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Auto]
    if others:
        raise ParameterError(
            f"the mesh's axes {', '.join(map(repr, others))} are not Auto (`jax.make_mesh` makes Explicit ones)",
            "axes of the type Auto, on which XLA shards ordinary code",
            f"pass `axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)}` to `jax.make_mesh`",
        )
    processes = {device.process_index for device in mesh.devices.flat}
    if processes not in ({jax.process_index()}, set(range(jax.process_count()))):
        raise ParameterError(
            f"the mesh holds devices of the processes {sorted(processes)}; this is process {jax.process_index()} of "
            f"{jax.process_count()}",
            "devices of this process alone, or of all processes",
            f"pass `mesh={make}`, or one of `jax.local_devices()`",
        )
    return mesh


def check_devices(params: PyTree, mesh: Mesh | None) -> None:
    """Check that no parameters were put on other devices than the mesh's.

    **Raises:** `ParameterError`.
    """
    if mesh is None:
        return
    devices = set(mesh.devices.flat)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, Array) and not is_traced(leaf) and leaf.committed and leaf.sharding.device_set != devices:
            raise ParameterError(
                f"parameters{jax.tree_util.keystr(path)} were put on {len(leaf.sharding.device_set)} devices, which "
                f"are not the {len(devices)} of the problem's mesh",
                "parameters on every device of the mesh, or not put anywhere in particular",
                "pass them as NumPy arrays, or `jax.device_put(params, NamedSharding(mesh, PartitionSpec()))`",
            )


def count(mesh: Mesh | None) -> int:
    """Count the devices that samples are divided over."""
    return 1 if mesh is None else mesh.size


def by_rows(array: Array, mesh: Mesh | None) -> Array:
    """Divide rows over the devices; inside a compiled program their number need not be divisible."""
    return array if mesh is None else jax.lax.with_sharding_constraint(array, _rows(mesh))


def everywhere(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Hold whole arrays on every device."""
    return tree if mesh is None else eqx.filter_shard(tree, NamedSharding(mesh, PartitionSpec()))


def _rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))


def place(array: Array, mesh: Mesh | None) -> Array:
    """Divide a user's rows over the devices, the last one repeated until the devices have equally many.

    A global array, of which each process holds a part, stays where it is; its rows must be divisible.
    """
    if mesh is None:
        return array
    n = array.shape[0]
    extra = -n % mesh.size
    if is_traced(array):
        repeated = jnp.concatenate([array, jnp.repeat(array[-1:], extra, axis=0)]) if extra else array
        return by_rows(repeated, mesh)
    if is_elsewhere(array):
        if extra:
            raise ParameterError(
                f"a global array of {n} samples for {mesh.size} devices",
                "a number of samples that the number of devices divides",
                "repeat some of them with weight zero, or pass all samples to every process, as NumPy arrays",
            )
        return jax.device_put(array, _rows(mesh))
    host = np.asarray(array)

    def part(index: Any) -> np.ndarray:
        return host[np.minimum(np.arange(*index[0].indices(n + extra)), n - 1)]

    return jax.make_array_from_callback((n + extra, *array.shape[1:]), _rows(mesh), part)


def each_own(function: PyTree, mesh: Mesh | None) -> Callable[..., PyTree]:
    """Let every device apply a function of rows to its own ones; results are rows again.

    The function is a pytree, such as a `jax.tree_util.Partial`. Its arrays are on every device, and JAX adds up their
    cotangents over the devices. It should close over none: in a `shard_map` what is closed over is of another type.
    """
    if mesh is None:
        return function
    rows, arrays, rest = _rows(mesh).spec, *eqx.partition(function, eqx.is_array)

    def own(arrays: PyTree, *given: PyTree) -> PyTree:
        return eqx.combine(arrays, rest)(*given)

    def mapped(*given: PyTree) -> PyTree:
        specs = (PartitionSpec(), *(rows for _ in given))
        # Networks may hold loops, whose carries the check takes exception to.
        return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False))(arrays, *given)

    return mapped


def part_of_each(array: Array, start: Any, size: int, mesh: Mesh | None) -> Array:
    """Cut the rows start, …, start + size − 1 out of every device's own rows: size times the number of devices."""
    if mesh is None:
        return jax.lax.dynamic_slice_in_dim(array, start, size)
    shape = array.shape[1:]
    own = array.reshape(mesh.size, array.shape[0] // mesh.size, *shape)
    return by_rows(jax.lax.dynamic_slice_in_dim(own, start, size, axis=1).reshape(mesh.size * size, *shape), mesh)


def placeless(tree: PyTree) -> PyTree:
    """Replace arrays by their shapes and types, without the devices that they are on, which traced programs name."""

    def one(leaf: Any) -> Any:
        weak = getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak) if eqx.is_array(leaf) else leaf

    return jax.tree.map(one, tree)


def in_host_memory(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Make new arrays in the host's memory, so that data to be divided need not fit on the first device."""
    if mesh is None:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # a JAX that was told to do without its CPU
        return contextlib.nullcontext()


def is_elsewhere(array: Any) -> bool:
    """Tell whether other processes hold parts of an array that this one does not."""
    return isinstance(array, Array) and not array.is_fully_addressable and not array.is_fully_replicated


def on_host(array: Any) -> np.ndarray:
    """Copy an array to the host, wherever its parts are; if processes share it, all of them have to ask."""
    if not is_elsewhere(array):
        return np.asarray(array)
    step = max(1, _PIECE * array.shape[0] // max(1, array.nbytes))
    whole = NamedSharding(array.sharding.mesh, PartitionSpec())  # pyright: ignore[reportAttributeAccessIssue]
    starts = range(0, array.shape[0], step)
    return np.concatenate([np.asarray(jax.device_put(array[start : start + step], whole)) for start in starts])


def fetched(tree: PyTree) -> PyTree:
    """Copy all arrays of a pytree to the host, as `jax.device_get` does, wherever their parts are."""
    return jax.device_get(jax.tree.map(lambda leaf: on_host(leaf) if is_elsewhere(leaf) else leaf, tree))


def is_shared(mesh: Mesh | None) -> bool:
    """Tell whether several processes work together on a mesh, so that they must do the same in the same order."""
    return mesh is not None and len({device.process_index for device in mesh.devices.flat}) > 1


def is_first(shared: bool) -> bool:
    """Tell whether this process writes files and reports: process 0, or any that works alone."""
    return not shared or jax.process_index() == 0


def from_first(value: float | bool, shared: bool) -> float | bool:
    """Give process 0's value to all: clocks differ, and decisions must not."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if shared else value


def bytes_from_first(read: Callable[[], bytes]) -> bytes:
    """Let process 0 read, and give what it read to all.

    **Raises:** `OSError` in all of them if process 0 could not.
    """
    data = None
    with contextlib.suppress(OSError):
        data = read() if jax.process_index() == 0 else b""
    size = np.asarray((-1, 0) if data is None else divmod(len(data), _PIECE), np.int32)
    whole, rest = (int(number) for number in multihost_utils.broadcast_one_to_all(size))
    if whole < 0:
        raise OSError("process 0 could not read it")
    pieces: list[bytes] = []
    for number, length in enumerate([_PIECE] * whole + [rest] * (rest > 0)):
        piece = np.frombuffer(data, np.uint8, length, number * _PIECE) if data else np.zeros(length, np.uint8)
        pieces.append(np.asarray(multihost_utils.broadcast_one_to_all(piece)).tobytes())
    return b"".join(pieces)


def by_first(action: Callable[[], Any], shared: bool, failure: Callable[[], FibrationError]) -> None:
    """Let process 0 act alone; what it raises of Fibration's own, or `failure`, is raised in all."""
    error: FibrationError | None = None
    if is_first(shared):
        try:
            action()
        except FibrationError as raised:
            error = raised
    if from_first(error is not None, shared):
        raise failure() if error is None else error
