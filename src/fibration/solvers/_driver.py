"""The driver: compiled chunks of steps, and between them everything that compiled code cannot do."""

import time as clock_of
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Real

from .. import _sharding
from ..errors import CheckpointError, ObserverError
from ..trees import PyTree
from ._checkpoint import CheckpointStore
from ._options import Options, Progress, ProgressCallback
from ._record import Record
from ._stepper import FAILURE_NAMES, RUNNING, AbstractStepper, Carry
from ._stop import Conditions
from ._trajectory import Result, Trajectory

# Of the state at which a run ended, the time, and the result code: the code that fits best, and a sentence.
Explanation = Callable[[PyTree, float, str], tuple[str, str]]


class _Chunk(eqx.Module):
    """What one compiled chunk hands back: the carry, and the saved times that it passed."""

    carry: Carry
    next_save: Int[Array, ""]
    tried: Int[Array, ""]
    filled: Int[Array, ""]
    buffer: PyTree
    notes: dict[str, Array]


@eqx.filter_jit
def _advance(
    stepper: AbstractStepper,
    conditions: Conditions,
    carry: Carry,
    grid: Real[Array, " T"],
    end: Real[Array, ""],
    next_save: Int[Array, ""],
    max_tries: Int[Array, ""],
    slots: int,
    mesh: Mesh | None,
) -> _Chunk:
    """Try up to `max_tries` steps, or until `slots` saved times are passed, the end is reached, or a stop is met.

    All devices of a mesh have the whole result.
    """
    shapes = jax.eval_shape(stepper.visible, carry.state)
    notes = jax.eval_shape(stepper.notes, carry)
    buffer, noted = jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), (shapes, notes))

    def next_clock(chunk: _Chunk) -> Array:
        return grid[jnp.minimum(chunk.next_save, grid.size - 1)]

    def due(chunk: _Chunk) -> Array:
        return (chunk.next_save < grid.size) & (next_clock(chunk) <= chunk.carry.clock)

    def within(chunk: _Chunk) -> Array:
        return due(chunk) & (next_clock(chunk) < chunk.carry.clock)

    def put(chunk: _Chunk, state: PyTree) -> _Chunk:
        rows = (stepper.visible(state), stepper.notes(chunk.carry))
        buffer, notes = jax.tree.map(lambda b, s: b.at[chunk.filled].set(s), (chunk.buffer, chunk.notes), rows)
        return _Chunk(chunk.carry, chunk.next_save + 1, chunk.tried, chunk.filled + 1, buffer, notes)

    def save(chunk: _Chunk) -> _Chunk:
        if not stepper.interpolates:
            return put(chunk, chunk.carry.state)
        inside = within(chunk), lambda: stepper.interpolate(chunk.carry, next_clock(chunk)), lambda: chunk.carry.state
        return put(chunk, jax.lax.cond(*inside))

    def saved(chunk: _Chunk) -> Array:
        return (chunk.filled < slots) & due(chunk) & (stepper.interpolates | ~within(chunk))

    def unfinished(chunk: _Chunk) -> Array:
        running = (chunk.carry.code == RUNNING) & (chunk.carry.clock < end) & (chunk.tried < max_tries)
        return (chunk.filled < slots) & (running | due(chunk))

    def body(chunk: _Chunk) -> _Chunk:
        if stepper.interpolates:
            between, carry, state = jnp.asarray(False), stepper.step(chunk.carry, end), None
        else:
            between = within(chunk)
            carry, state = stepper.step_within(chunk.carry, end, next_clock(chunk), between)
        if conditions.tests:
            untested = (carry.code == RUNNING) & carry.accepted & ~between
            carry = jax.lax.cond(untested, lambda c: _test(stepper, conditions, c), lambda c: c, carry)
        chunk = _Chunk(carry, chunk.next_save, chunk.tried + ~between, chunk.filled, chunk.buffer, chunk.notes)
        if not stepper.interpolates:
            chunk = jax.lax.cond(between, put, lambda c, _: c, chunk, state)
        return jax.lax.while_loop(saved, save, chunk)

    zero = jnp.zeros((), jnp.result_type(int))
    # Saved times that a full buffer left over come first, so that no step is tried while one is due.
    first = _Chunk(carry, next_save, zero, zero, buffer, noted)
    return _sharding.everywhere(jax.lax.while_loop(unfinished, body, jax.lax.while_loop(saved, save, first)), mesh)


@eqx.filter_jit
def _test(stepper: AbstractStepper, conditions: Conditions, carry: Carry) -> Carry:
    """Test the stop conditions at the carry's clock, and count what that costs."""
    met = conditions.first_met(stepper.visible(carry.state), stepper.time(carry.clock))
    evaluations = carry.spent.evaluations + conditions.gradient_evaluations
    return eqx.tree_at(lambda c: (c.code, c.spent.evaluations), carry, (met, evaluations))


def drive(
    stepper: AbstractStepper,
    conditions: Conditions,
    state: PyTree,
    grid: Real[np.ndarray, " T"],
    end: float | int,
    record: Record,
    *,
    wall_seconds: float | None,
    store: CheckpointStore | None,
    progress: ProgressCallback | None,
    options: Options,
    explain: Explanation | None = None,
) -> Trajectory:
    """Run a stepper to its end, saving at the clocks in `grid`; `explain` tells why one ended early.

    Memory: the carry, a buffer of at most `options.buffer_bytes`, and the record; none grows with the number of steps.

    Processes that share a problem's mesh all run this, and get the same trajectory. What depends on the time that has
    passed is decided by process 0, which alone reports and writes.
    """
    began = clock_of.monotonic()
    mesh = record.mesh
    shared = _sharding.is_shared(mesh)
    seconds_before = 0.0  # of earlier attempts at this run
    bytes_per_save = max(1, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    slots = int(np.clip(options.buffer_bytes // bytes_per_save, 1, min(len(_padded(grid)), 256)))
    carry = _sharding.everywhere(stepper.init(_sharding.everywhere(state, mesh), jnp.asarray(end)), mesh)
    device_end = jnp.asarray(end, carry.clock.dtype)
    grid, end = grid.astype(carry.clock.dtype), device_end.item()  # one rounding for both sides
    device_grid = jnp.asarray(_padded(grid))
    first, next_save, tried, finished = carry.clock.item(), 0, 0, None
    stats: dict[str, Any] = {}

    def seconds() -> float:
        return seconds_before + clock_of.monotonic() - began

    def so_far() -> dict[str, Any]:
        cost_evaluations = int(carry.steps + 1) * conditions.cost_evaluations
        return (
            stats
            | stepper.account(carry)
            | record.notes()
            | {
                "gradient_evaluations": int(carry.spent.evaluations),
                "hvp_evaluations": int(carry.spent.products),
                "cost_evaluations": cost_evaluations + (0 if record.costs is None else record.n),
                "steps": int(carry.steps),
                "rejected": int(carry.rejected),
                "wall_seconds": seconds(),
            }
        )

    def result(code: str) -> Result:
        # An early end is the last time saved; where a cost turned infinite the clock stands beyond it.
        early = code != "completed" and record.n > 0
        time = float(record.times[record.n - 1] if early else stepper.time(carry.clock))
        if explain is None or code == "interrupted":
            return Result(code, time)
        code, detail = explain(stepper.visible(carry.state), time, code)
        return Result(code, time, detail)

    def save(code: str | None) -> None:
        if store is not None:
            store.save(carry, record, next_save=next_save, tried=tried, seconds=seconds(), finished=code)

    def report(done: bool) -> None:
        if progress is not None and _sharding.is_first(shared):
            fraction = 1.0 if done else (carry.clock.item() - first) / (end - first)
            now = float(stepper.time(carry.clock))
            cost, evaluations = record.last_cost, int(carry.spent.evaluations)
            progress(Progress(fraction, now, int(carry.steps), evaluations, cost, seconds(), done))

    chunk_tries = 8
    deadline = began + (float("inf") if wall_seconds is None else wall_seconds)
    try:
        if store is not None:
            store.bind(stepper, conditions, carry, grid, end, record)
            loaded = store.load(carry, record)
            if loaded is not None:
                carry, next_save, tried, seconds_before, finished = loaded
                carry = _sharding.everywhere(carry, mesh)
                stats["resumed_at"] = float(stepper.time(carry.clock))
        if conditions.tests and "resumed_at" not in stats:
            carry = _test(stepper, conditions, carry)  # a start that meets a condition needs no step
        while finished is None:
            chunk_began = clock_of.monotonic()
            tries = jnp.asarray(min(chunk_tries, options.max_steps - tried))
            saved_so_far = jnp.asarray(next_save)
            chunk = _advance(stepper, conditions, carry, device_grid, device_end, saved_so_far, tries, slots, mesh)
            carry, filled = jax.block_until_ready(chunk.carry), int(chunk.filled)
            tried, seen = tried + int(chunk.tried), record.n
            if filled:
                saved = np.asarray(stepper.time(grid[next_save : next_save + filled]), float)
                next_save += filled
                record.extend(saved, chunk.buffer, chunk.notes)
            late = _sharding.from_first(clock_of.monotonic() >= deadline, shared)
            if next_save == len(grid) or grid[next_save] > carry.clock.item():
                finished = _ending(carry, conditions, end, options.max_steps - tried, bool(late))
            infinite = record.drop_after_infinite_cost(seen)
            if infinite:
                finished = "nonfinite"
            # A run cut short by a limit is not over: its checkpoint lets a later call go on.
            cut_short = finished in ("wall_seconds", "max_steps")
            if store is not None and (cut_short or (finished is None and store.due())):
                save(None)
            now = float(stepper.time(carry.clock))
            unsaved = record.n == 0 or now > record.times[record.n - 1]
            if finished not in (None, "completed") and unsaved and not infinite:
                last = jax.tree.map(lambda leaf: leaf[None], (stepper.visible(carry.state), stepper.notes(carry)))
                record.extend(np.asarray([now]), *last)
            if finished is not None and not cut_short:
                save(finished)
            report(done=finished is not None)
            took = _sharding.from_first(clock_of.monotonic() - chunk_began, shared)
            chunk_tries = max(1, chunk_tries * 2 if took < options.chunk_seconds else chunk_tries // 2)
    except (ObserverError, CheckpointError) as error:
        error.trajectory = record.trajectory(result("interrupted"), so_far())
        raise
    finally:
        if store is not None:
            store.close()
    return record.trajectory(result(finished), so_far())


def _padded(grid: Real[np.ndarray, " T"]) -> Real[np.ndarray, " S"]:
    """Pad to a power of two with clocks that are never reached, so that few lengths are ever compiled."""
    never = np.inf if grid.dtype.kind == "f" else np.iinfo(grid.dtype).max
    size = 1 << (len(grid) - 1).bit_length()
    return np.concatenate([grid, np.full(size - len(grid), never, grid.dtype)])


def _ending(carry: Carry, conditions: Conditions, end: float | int, tries_left: int, late: bool) -> str | None:
    """Name the reason why the run is over, or give `None`."""
    code = int(carry.code)
    if code > RUNNING:
        return conditions.codes[code - 1]
    if code < RUNNING:
        return FAILURE_NAMES[code]
    if carry.clock.item() >= end:
        return "completed"
    if tries_left <= 0:
        return "max_steps"
    return "wall_seconds" if late else None
