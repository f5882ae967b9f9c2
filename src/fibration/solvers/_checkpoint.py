"""Checkpoints: a run that is killed at any instant goes on from the last one, to bit-identical results.

A checkpoint directory holds `state.npz`, which is replaced atomically, and `saved-*.npz`, one file for the saved times
between two checkpoints, which are never rewritten once `state.npz` counts them. Nothing in it is pickled.
"""

import io
import itertools
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .. import _sharding
from .._validation import writable_directory
from .._version import __version__
from ..errors import CheckpointError, CheckpointMismatchError, StepSizeError, VersionWarning
from ..trees import PyTree
from ._identity import arrays_of, describe, digest, digest_arrays, digest_program, gathered, plain
from ._record import Record
from ._stepper import AbstractStepper, Carry
from ._stop import Conditions

try:
    import fcntl
except ImportError:  # not on Windows, where a directory is not locked
    fcntl = None

FORMAT = 2
PROGRAM = "the network, flow or method"


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run saves itself.

    `directory`: made if it is absent; one directory belongs to one call; `every`: seconds between checkpoints. The same
    call with the same directory goes on from the last checkpoint, or returns the finished run at once. A call that
    differs in its problem, flow, parameters, times or tolerances raises `CheckpointMismatchError`. Of several
    processes that share a problem's mesh, process 0 alone reads and writes: no other need see the directory.

    ```python
    >>> import tempfile, jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([1.0]), jnp.array([1.0]))
    >>> call = dict(step_size=0.5, steps=4, checkpoint=fb.Checkpoint(tempfile.mkdtemp(), every=10.0))
    >>> once = fb.descend(problem, fb.GradientFlow(), jnp.array(0.0), **call)
    >>> again = fb.descend(problem, fb.GradientFlow(), jnp.array(0.0), **call)  # read, not computed
    >>> print(again.params, again.stats["resumed_at"])
    [0.     0.5    0.75   0.875  0.9375] 2.0

    ```
    """

    directory: str | os.PathLike[str]
    every: float = 30.0

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise StepSizeError(f"every = {self.every}", "a number of seconds, not negative", "leave it at 30")


class CheckpointStore:
    """The checkpoint directory of one run; of processes that share a mesh, process 0 alone touches it."""

    def __init__(self, checkpoint: Checkpoint, mesh: Mesh | None = None) -> None:
        self.directory, self.every = Path(checkpoint.directory), checkpoint.every
        self.mesh, self.shared, self._lock = mesh, _sharding.is_shared(mesh), None
        _sharding.by_first(self._open, self.shared, self._failure)
        self.identity: dict[str, str] = {}
        self.parts, self.rows = 0, 0
        self.last = time.monotonic()

    def _open(self) -> None:
        self.directory = writable_directory(self.directory).resolve()
        self._lock = self._take_lock()

    def _failure(self) -> CheckpointError:
        return CheckpointError(
            f"process 0 could not write to {str(self.directory)!r}",
            "a directory of its own that process 0 can write to",
            "see what process 0 raised",
        )

    def _take_lock(self) -> Any:
        """Keep other processes out of the directory until this one closes it, or dies."""
        if fcntl is None:
            return None
        file = (self.directory / ".lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise CheckpointError(
                f"another run is writing to {str(self.directory)!r}",
                "a directory for each run",
                "wait for the other one to end, or pass another directory",
            ) from error
        return file

    def close(self) -> None:
        """Let the directory go."""
        if self._lock is not None:
            self._lock.close()

    def bind(
        self,
        stepper: AbstractStepper,
        conditions: Conditions,
        carry: Carry,
        grid: np.ndarray,
        end: float | int,
        record: Record,
    ) -> None:
        """Compute the identity of the call: what must not change between two attempts at the same run."""

        def program(s: AbstractStepper, c: Conditions, x: Carry) -> Any:
            new = s.step(x, jnp.asarray(end, x.clock.dtype))
            return new, c.first_met(s.visible(new.state), s.time(new.clock))

        stepper, conditions = gathered((stepper, conditions))
        given: Any = (stepper, conditions, carry)
        if self.mesh is not None:
            given = _sharding.placeless(given)
        traced = eqx.filter_make_jaxpr(program)(*given)[0]
        observers = {} if record.observation is None else record.observation.observers
        looks = sorted((name, describe(observer)) for name, observer in observers.items())
        self.identity = {
            PROGRAM: digest_program(traced),
            "the data, tolerances or thresholds": digest_arrays(arrays_of((stepper, conditions))),
            "the initial parameters": digest_arrays(arrays_of(carry.state)),
            "the saved times": digest([np.asarray(grid, float).tobytes(), str(float(end)).encode()]),
            "the stop conditions": digest([json.dumps(conditions.codes).encode()]),
            "the observers or what is saved": digest([json.dumps([looks, record.options.save]).encode()]),
        }

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return bool(_sharding.from_first(time.monotonic() - self.last >= self.every, self.shared))

    def save(
        self, carry: Carry, record: Record, *, next_save: int, tried: int, seconds: float, finished: str | None
    ) -> None:
        """Write what is new, then replace `state.npz` in one atomic step."""
        carried = [plain(leaf) for leaf in arrays_of(carry)]
        states = [] if record.observation is None else [plain(leaf) for leaf in arrays_of(record.observation.states)]
        facts = {"next_save": next_save, "tried": tried, "seconds": seconds, "finished": finished}
        _sharding.by_first(lambda: self._save(carried, states, record, facts), self.shared, self._failure)
        self.last = time.monotonic()

    def _save(self, carried: list[np.ndarray], states: list[np.ndarray], record: Record, facts: dict[str, Any]) -> None:
        observation = record.observation
        if record.n > self.rows:
            new = slice(self.rows, record.n)
            part = {"times": record.times[new]}
            if record.costs is not None:
                part["costs"] = record.costs[new]
            if record.options.save == "all":
                part |= {f"leaf-{i}": plain(leaf[new]) for i, leaf in enumerate(record.leaves)}
            if observation is not None:
                part |= {f"observed-{name}": np.stack(values[new]) for name, values in observation.values.items()}
            part |= {f"noted-{name}": np.asarray(values[new]) for name, values in record.noted.items()}
            self._write(self._part(self.parts), part)
            self.parts, self.rows = self.parts + 1, record.n
        arrays = {f"carry-{i}": leaf for i, leaf in enumerate(carried)}
        arrays |= {f"observer-{i}": leaf for i, leaf in enumerate(states)}
        if record.options.save == "last":
            arrays |= {f"leaf-{i}": plain(leaf) for i, leaf in enumerate(record.leaves)}
        own = {"format": FORMAT, "identity": self.identity, "versions": versions(self.mesh)}
        facts = own | {"parts": self.parts, "rows": self.rows} | facts
        self._write(self.directory / "state.npz", arrays | {"facts": np.asarray(json.dumps(facts))})

    def load(self, carry: Carry, record: Record) -> tuple[Carry, int, int, float, str | None] | None:
        """Read the checkpoint into `record` and return where to go on, or `None` if there is none.

        **Raises:** `CheckpointMismatchError` if another call wrote it, `CheckpointError` if it cannot be read.
        """
        path = self.directory / "state.npz"
        if not _sharding.from_first(path.exists(), self.shared):
            return None
        try:
            with self._read(path) as file, np.load(file, allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                self._compare(facts)
                carry = _fill(carry, stored, "carry")
                if record.observation is not None:
                    record.observation.states = _fill(record.observation.states, stored, "observer")
                if record.options.save == "last":
                    record.leaves = [_like(stored[f"leaf-{i}"], leaf.dtype) for i, leaf in enumerate(record.leaves)]
            self.parts, self.rows = facts["parts"], facts["rows"]
            for number in range(self.parts):
                self._load_part(number, record)
            if record.n != self.rows:
                raise ValueError(f"{record.n} saved times where {self.rows} were promised")
        except CheckpointMismatchError:
            raise
        except Exception as error:  # whatever a damaged archive makes numpy, zipfile or json raise
            raise CheckpointError(
                f"the checkpoint in {str(self.directory)!r} cannot be read: {type(error).__name__}: {error}",
                "a directory that Fibration wrote, whole",
                "delete the directory to start again, or pass another",
            ) from error
        return carry, facts["next_save"], facts["tried"], facts["seconds"], facts["finished"]

    def _compare(self, facts: dict[str, Any]) -> None:
        changed = [name for name, value in self.identity.items() if facts["identity"].get(name) != value]
        stored, here = ({"devices": "1"} | each for each in (facts["versions"], versions(self.mesh)))
        old = ", ".join(f"{name} {v}" for name, v in stored.items() if here.get(name) != v)
        if changed or facts["format"] != FORMAT:
            # Another JAX may print the same program otherwise, which cannot be told from another program.
            hint = f"; it was written with {old}" if old else ""
            raise CheckpointMismatchError(
                f"{str(self.directory)!r} holds the checkpoint of another call; what differs: "
                + ("; ".join(changed) or "its format")
                + hint,
                "the same call as the one that wrote it",
                "pass another directory, or delete this one to start again",
            )
        if old:
            warnings.warn(
                f"the checkpoint was written with {old}; the run goes on, but not bit for bit",
                VersionWarning,
                stacklevel=6,
            )

    def _read(self, path: Path) -> BinaryIO:
        return io.BytesIO(_sharding.bytes_from_first(path.read_bytes)) if self.shared else path.open("rb")

    def _part(self, number: int) -> Path:
        return self.directory / f"saved-{number:06d}.npz"

    def _load_part(self, number: int, record: Record) -> None:
        with self._read(self._part(number)) as file, np.load(file, allow_pickle=False) as part:
            rows = slice(record.n, record.n + len(part["times"]))
            record.times[rows] = part["times"]
            if record.costs is not None:
                record.costs[rows] = part["costs"]
            if record.options.save == "all":
                for i, leaf in enumerate(record.leaves):
                    leaf[rows] = _like(part[f"leaf-{i}"], leaf.dtype)
            if record.observation is not None:
                for name, values in record.observation.values.items():
                    values.extend(part[f"observed-{name}"])
            for name in part.files:
                if name.startswith("noted-"):
                    record.noted.setdefault(name.removeprefix("noted-"), []).extend(part[name])
            record.n = rows.stop

    def _write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            descriptor = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be written: {error.strerror or error}",
                "a directory that stays, with room on its disk",
                "mend that and call again: the last checkpoint is whole, and `error.trajectory` holds this run",
            ) from error


def versions(mesh: Mesh | None = None) -> dict[str, str]:
    """Tell the versions, and the number of devices if there are several, that a bit-identical run depends on."""
    own = {"fibration": __version__, "jax": jax.__version__, "diffrax": diffrax.__version__, "optax": optax.__version__}
    own |= {"backend": jax.default_backend(), "x64": str(jax.config.read("jax_enable_x64"))}
    return own if mesh is None else own | {"devices": str(mesh.size)}


def _like(stored: np.ndarray, dtype: Any) -> np.ndarray:
    """Undo `_plain` for numbers; a wrong dtype is damage."""
    array = stored.view(dtype) if np.dtype(dtype).kind == "V" else stored
    if array.dtype != dtype:
        raise ValueError(f"{array.dtype} where {dtype} belongs")
    return array


def _fill(tree: PyTree, stored: Any, prefix: str) -> PyTree:
    """Put stored arrays in the places of a pytree's arrays."""
    numbers = itertools.count()

    def fill(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        array = stored[f"{prefix}-{next(numbers)}"]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        array = _like(array, leaf.dtype)
        if array.shape != leaf.shape:
            raise ValueError(f"shape {array.shape} where {leaf.shape} belongs")
        return jnp.asarray(array)

    return jax.tree.map(fill, tree)
