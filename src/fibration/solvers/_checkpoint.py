"""Checkpoints: a run that is killed at any instant goes on from the last one, to bit-identical results.

A checkpoint directory holds `state.npz`, which is replaced atomically, and `saved-*.npz`, one file for the saved times
between two checkpoints, which are never rewritten once `state.npz` counts them. Nothing in it is pickled.
"""

import hashlib
import itertools
import json
import os
import re
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._validation import writable_directory
from .._version import __version__
from ..errors import CheckpointError, CheckpointMismatchError, StepSizeError, VersionWarning
from ..trees import PyTree
from ._record import Record
from ._stepper import AbstractStepper, Carry
from ._stop import Conditions

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run saves itself.

    `directory`: made if it is absent; one directory belongs to one call; `every`: seconds between checkpoints. The same
    call with the same directory goes on from the last checkpoint, or returns the finished run at once. A call that
    differs in its problem, flow, parameters, times or tolerances raises `CheckpointMismatchError`.

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
    """The checkpoint directory of one run."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.directory, self.every = writable_directory(checkpoint.directory), checkpoint.every
        self.identity: dict[str, str] = {}
        self.parts, self.rows = 0, 0
        self.last = time.monotonic()

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
            return new, c.first_met(new.state, s.time(new.clock))

        closed = eqx.filter_make_jaxpr(program)(stepper, conditions, carry)[0]
        text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))
        observers = {} if record.observation is None else record.observation.observers
        looks = sorted((name, _code_of(observer)) for name, observer in observers.items())
        self.identity = {
            "the network, flow or method": _digest([text.encode(), *map(_bytes, _constants(closed))]),
            "the data, tolerances or thresholds": _digest(map(_bytes, _arrays((stepper, conditions)))),
            "the initial parameters": _digest(map(_bytes, _arrays(carry.state))),
            "the saved times": _digest([np.asarray(grid, float).tobytes(), str(float(end)).encode()]),
            "the observers or what is saved": _digest([json.dumps([looks, record.options.save]).encode()]),
        }

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self.last >= self.every

    def save(
        self, carry: Carry, record: Record, *, next_save: int, tried: int, seconds: float, finished: str | None
    ) -> None:
        """Write what is new, then replace `state.npz` in one atomic step."""
        observation = record.observation
        if record.n > self.rows:
            new = slice(self.rows, record.n)
            part = {"times": record.times[new]}
            if record.costs is not None:
                part["costs"] = record.costs[new]
            if record.options.save == "all":
                part |= {f"leaf-{i}": _plain(leaf[new]) for i, leaf in enumerate(record.leaves)}
            if observation is not None:
                part |= {f"observed-{name}": np.stack(values[new]) for name, values in observation.values.items()}
            self._write(self._part(self.parts), part)
            self.parts, self.rows = self.parts + 1, record.n
        arrays = {f"carry-{i}": _plain(leaf) for i, leaf in enumerate(_arrays(carry))}
        if observation is not None:
            arrays |= {f"observer-{i}": _plain(leaf) for i, leaf in enumerate(_arrays(observation.states))}
        if record.options.save == "last":
            arrays |= {f"leaf-{i}": _plain(leaf) for i, leaf in enumerate(record.leaves)}
        facts = {
            "format": FORMAT,
            "identity": self.identity,
            "versions": versions(),
            "parts": self.parts,
            "rows": self.rows,
            "next_save": next_save,
            "tried": tried,
            "seconds": seconds,
            "finished": finished,
        }
        self._write(self.directory / "state.npz", arrays | {"facts": np.asarray(json.dumps(facts))})
        self.last = time.monotonic()

    def load(self, carry: Carry, record: Record) -> tuple[Carry, int, int, float, str | None] | None:
        """Read the checkpoint into `record` and return where to go on, or `None` if there is none.

        **Raises:** `CheckpointMismatchError` if another call wrote it, `CheckpointError` if it cannot be read.
        """
        path = self.directory / "state.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
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
        if facts["versions"] != versions():
            old = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if versions().get(name) != v)
            # Another JAX prints the same program otherwise; the data and the parameters still tell calls apart.
            changed = [name for name in changed if name != "the network, flow or method"]
            warnings.warn(
                f"the checkpoint was written with {old}; the run goes on, but not bit for bit",
                VersionWarning,
                stacklevel=6,
            )
        if changed or facts["format"] != FORMAT:
            raise CheckpointMismatchError(
                f"{str(self.directory)!r} holds the checkpoint of another call; what differs: "
                + ("; ".join(changed) or "its format"),
                "the same call as the one that wrote it",
                "pass another directory, or delete this one to start again",
            )

    def _part(self, number: int) -> Path:
        return self.directory / f"saved-{number:06d}.npz"

    def _load_part(self, number: int, record: Record) -> None:
        with self._part(number).open("rb") as file, np.load(file, allow_pickle=False) as part:
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
                f"{str(path)!r} cannot be written: {error.strerror}", "room on the disk", "free some, and call again"
            ) from error


def versions() -> dict[str, str]:
    """Tell the versions that a bit-identical run depends on."""
    own = {"fibration": __version__, "jax": jax.__version__, "diffrax": diffrax.__version__, "optax": optax.__version__}
    return own | {"backend": jax.default_backend(), "x64": str(jax.config.read("jax_enable_x64"))}


def _arrays(tree: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]


def _constants(program: Any) -> list[Any]:
    """List the arrays that a traced program closes over, those of its inner functions too."""
    found = list(getattr(program, "consts", ()))
    for equation in getattr(program, "jaxpr", program).eqns:
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns"))
        for part in inner:
            if hasattr(part, "eqns"):
                found += _constants(part)
    return [constant for constant in found if eqx.is_array(constant)]


def _code_of(observer: Any) -> str:
    """Describe an observer well enough to notice another one under the same name."""
    code = getattr(observer, "__code__", None)
    if code is None:
        return type(observer).__qualname__
    return hashlib.blake2b(code.co_code + repr(code.co_names).encode()).hexdigest()[:16]


def _plain(array: Any) -> np.ndarray:
    """Turn an array into one of numpy's own dtypes: random keys into their data, bfloat16 and the like into bytes."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


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


def _bytes(array: Any) -> bytes:
    plain = _plain(array)
    return f"{plain.dtype}{plain.shape}".encode() + np.ascontiguousarray(plain).tobytes()


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
