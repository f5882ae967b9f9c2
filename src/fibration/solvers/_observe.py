"""Observers: diagnostics that a run evaluates at its saved times."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from .. import _sharding
from ..errors import ObserverError, UnknownNameError
from ..problem import AbstractProblem
from ..trees import PyTree


@runtime_checkable
class StatefulObserver(Protocol):
    """An observer that carries something from one saved time to the next: a warm start, an integral.

    `init(problem, params) -> state`, then at each saved time `update(problem, params, time, state) -> (value, state)`.
    The state is a pytree of arrays; it is saved in checkpoints.
    """

    def init(self, problem: AbstractProblem, params: PyTree) -> PyTree:
        """Make the state before the first saved time."""
        ...

    def update(self, problem: AbstractProblem, params: PyTree, time: float, state: PyTree) -> tuple[Any, PyTree]:
        """Compute the value at a saved time, and the next state."""
        ...


Observe = Mapping[str, Any] | Sequence[Any] | Callable[..., Any] | None


def named(observe: Observe) -> dict[str, Callable[..., Any] | StatefulObserver]:
    """Give every observer a name: the mapping's key, or the function's own."""
    if observe is None:
        return {}
    if callable(observe) or isinstance(observe, StatefulObserver | str):
        observe = [observe]  # one observer, meant as a list of one
    if not isinstance(observe, Mapping):
        pairs = [(getattr(function, "__name__", type(function).__name__), function) for function in observe]
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise UnknownNameError(
                f"several observers are named {max(names, key=names.count)!r}",
                "a name of its own for each",
                'name them: `observe={"first": f, "second": g}`',
            )
        observe = dict(pairs)
    for name, observer in observe.items():
        if isinstance(observer, type) or not (callable(observer) or isinstance(observer, StatefulObserver)):
            raise UnknownNameError(
                f"observer {name!r} is {observer!r}",
                "a function (problem, params) -> array, or an object with `init` and `update`",
                "pass the function itself, not its value, and an object, not its class",
            )
    return dict(observe)


class Observation:
    """The observers of one run, their states, and the values so far."""

    def __init__(self, observe: Observe, problem: AbstractProblem, params: PyTree) -> None:
        self.observers = named(observe)
        self.problem = problem
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in self.observers}
        self.states = {
            name: observer.init(problem, params)
            for name, observer in self.observers.items()
            if isinstance(observer, StatefulObserver)
        }

    def record(self, params: PyTree, time: float) -> None:
        """Evaluate every observer at one saved time.

        **Raises:** `ObserverError`, chained to what the observer raised.
        """
        row: dict[str, np.ndarray] = {}
        states = dict(self.states)
        for name, observer in self.observers.items():
            # Containers of its own, so that nobody else sees what it does to them.
            own = jax.tree.map(lambda leaf: leaf, params)
            try:
                if isinstance(observer, StatefulObserver):
                    value, states[name] = observer.update(self.problem, own, time, states[name])
                else:
                    value = observer(self.problem, own)
                row[name] = np.asarray(_sharding.fetched(value))
                if row[name].dtype.kind == "V":  # bfloat16 and the like, which no file of numpy's can hold
                    row[name] = row[name].astype(np.float32)
            except Exception as error:
                raise ObserverError(
                    f"observer {name!r} raised {type(error).__name__} at t = {time:.6g}: {error}",
                    "an observer (problem, params) -> array",
                    "call it by hand on `error.trajectory.final_params`, which holds all before",
                ) from error
            before = self.values[name]
            if row[name].dtype == object or (before and row[name].shape != before[0].shape):
                raise ObserverError(
                    f"observer {name!r} returned {row[name].dtype} of shape {row[name].shape} at t = {time:.6g}",
                    f"numbers of shape {before[0].shape if before else '(...)'} at every saved time",
                    "pad what changes its size, or return a summary of it",
                )
        self.states = states
        for name, value in row.items():
            self.values[name].append(value)

    def stacked(self, count: int) -> dict[str, np.ndarray]:
        """Stack the first `count` values of each observer along a leading axis."""
        return {name: np.stack(v[:count]) if v[:count] else np.zeros((0,)) for name, v in self.values.items()}
