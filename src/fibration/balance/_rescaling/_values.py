"""What an intermediate result of a network is, seen by a rescaling: a constant, parameters, or a signal."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._labels import ANY, GROUND, Labels

_MANY = 100_000  # parameters, from which on it pays to look whether they are met for the first time
ABSENT = -1  # the index of a constant zero among parameters, from padding


@dataclass(frozen=True, eq=False)
class Known:
    """A constant that does not depend on parameters or inputs."""

    value: Any


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of the parameters, up to constant factors: their places among all parameters, laid end to end."""

    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Signal:
    """Numbers that a rescaling multiplies by c^degree, c the factor of their class."""

    label: Any  # integers, and their degrees: arrays of one shape, or of shapes that broadcast to the signal's
    degree: Any


Value = Known | Entries | Signal


def invariant(shape: Any) -> Signal:
    """Make a signal that no rescaling changes."""
    return Signal(np.broadcast_to(np.int32(GROUND), shape), np.broadcast_to(np.float32(1), shape))


class Wiring:
    """How every parameter is rescaled, w ↦ w c_gain^{k_gain}/c_loss^{k_loss}, as found so far.

    A weight brings a signal of class `loss` and degree k_loss to one of class `gain`; a bias has the ground for a loss.
    """

    def __init__(self, size: int) -> None:
        self.labels: Labels = Labels()
        self.used: np.ndarray = np.zeros(size, bool)
        self.gain: Signal = _table(size)
        self.loss: Signal = _table(size)

    def connect(self, index: np.ndarray, gain: Signal, loss: Signal, why: str) -> None:
        """Let parameters bring a loss to a gain; those that did so before must do both alike."""
        if self._connected_at_once(index, gain, loss):
            return
        arrays = np.broadcast_arrays(index, gain.label, gain.degree, loss.label, loss.degree)
        index, *rest = (array.ravel() for array in arrays)
        there = index != ABSENT
        index, gain_label, gain_degree, loss_label, loss_degree = (array[there] for array in (index, *rest))
        loss_label = np.where(self.labels.find(loss_label) == ANY, GROUND, loss_label)
        fresh = ~self.used[index]
        for table, label, degree in ((self.gain, gain_label, gain_degree), (self.loss, loss_label, loss_degree)):
            table.label[index[fresh]] = label[fresh]
            table.degree[index[fresh]] = degree[fresh]
        self.used[index] = True
        # Places that are met twice, now or before.
        self.unify(Signal(self.gain.label[index], self.gain.degree[index]), Signal(gain_label, gain_degree), why)
        self.unify(Signal(self.loss.label[index], self.loss.degree[index]), Signal(loss_label, loss_degree), why)

    def _connected_at_once(self, index: np.ndarray, gain: Signal, loss: Signal) -> bool:
        """Connect parameters that are met for the first time, each in one place: nearly all of them."""
        if index.size < _MANY or index.shape != np.broadcast_shapes(index.shape, gain.label.shape, loss.label.shape):
            return False
        if (index == ABSENT).any() or self.used[index].any():
            return False
        before = np.count_nonzero(self.used)
        self.used[index] = True
        if np.count_nonzero(self.used) - before != index.size:
            self.used[index] = False
            return False
        loss_label = np.where(self.labels.find(loss.label) == ANY, GROUND, loss.label)
        self.gain.label[index], self.loss.label[index] = gain.label, loss_label
        for table, degree in ((self.gain, gain.degree), (self.loss, loss.degree)):
            if np.any(degree != 1):
                table.degree[index] = degree
        return True

    def unify(self, first: Signal, second: Signal, why: str) -> Signal:
        """Let two signals be rescaled alike, as those are that are added or compared."""
        find = self.labels.find
        a, b = np.broadcast_arrays(find(first.label), find(second.label))
        degree, other = np.broadcast_arrays(first.degree, second.degree)
        clash = (a > ANY) & (b > ANY) & (degree != other)
        if clash.any():
            self.labels.ground(np.concatenate([a[clash], b[clash]]), f"{why} of different degrees")
        return Signal(self.labels.unify(a, b, why), np.where(a > ANY, degree, other))

    def merge(self, signal: Signal, axes: tuple[int, ...], why: str) -> Signal:
        """Let a signal be rescaled alike along axes, which are left with length 1."""
        axes = tuple(axis for axis in axes if signal.label.shape[axis] != 1)
        if not axes:
            return signal
        if signal.label.size == 0:
            shape = [1 if axis in axes else size for axis, size in enumerate(signal.label.shape)]
            return Signal(np.full(shape, ANY, np.int32), np.ones(shape, np.float32))
        kept = [axis for axis in range(signal.label.ndim) if axis not in axes]
        order = (*kept, *axes)
        shape = tuple(signal.label.shape[axis] for axis in kept)
        rows = np.transpose(self.labels.find(signal.label), order).reshape(*shape, -1)
        degrees = np.transpose(signal.degree, order).reshape(*shape, -1)
        # Any class stands for the row, but the ground only if there is no other, and that of zeros last of all.
        chosen = np.argmax(np.where(rows == ANY, -1, rows), axis=-1)[..., None]
        row = Signal(np.take_along_axis(rows, chosen, -1), np.take_along_axis(degrees, chosen, -1))
        self.unify(row, Signal(rows, degrees), why)
        return Signal(*(np.expand_dims(array[..., 0], axes) for array in (self.labels.find(row.label), row.degree)))

    def signal(self, value: Value, why: str = "use by itself") -> Signal:
        """See any value as a signal: a constant as invariant, parameters as signals that they emit."""
        if isinstance(value, Signal):
            return value
        if isinstance(value, Known):
            if jnp.issubdtype(value.value.dtype, jax.dtypes.extended):  # a random key
                return invariant(value.value.shape)
            array = np.asarray(value.value)
            array = array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16 and its like
            free = (array == 0) | ~np.isfinite(array)
            return Signal(np.where(free, ANY, GROUND).astype(np.int32), np.ones(array.shape, np.float32))
        places, inverse = np.unique(value.index, return_inverse=True)
        labels = self.labels.new(len(places))
        labels[places == ABSENT] = ANY
        found = Signal(labels[inverse].reshape(value.index.shape), np.ones(value.index.shape, np.float32))
        self.connect(value.index, found, invariant(()), why)
        return Signal(self.labels.find(found.label), found.degree)

    def fix(self, value: Value, why: str) -> None:
        """Say that a value is not rescaled."""
        self.labels.ground(self.signal(value, why).label, why)


def _table(size: int) -> Signal:
    return Signal(np.full(size, GROUND, np.int32), np.ones(size, np.float32))
