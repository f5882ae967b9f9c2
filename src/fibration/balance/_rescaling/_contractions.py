"""Rescaling through products of a signal with weights: `dot_general`, and convolutions."""

from typing import Any

import numpy as np

from ._labels import ANY
from ._values import Entries, Known, Signal, Value, Wiring, invariant

Parameters = dict[str, Any]


def dot_general(wiring: Wiring, left: Value, right: Value, equation: Parameters) -> Signal:
    """A weight between class c' of what it meets and a new class c, for each place that is not summed over: c/c'."""
    (left_summed, right_summed), (left_batch, right_batch) = equation["dimension_numbers"]
    if isinstance(left, Signal) and isinstance(right, Entries):
        x, weight, weight_first = _met(wiring, left, left_batch, left_summed), right.index, False
        batch, summed = right_batch, right_summed
    elif isinstance(left, Entries) and isinstance(right, Signal):
        x, weight, weight_first = _met(wiring, right, right_batch, right_summed), left.index, True
        batch, summed = left_batch, left_summed
    else:
        return _between_signals(wiring, left, right, equation)
    free = [axis for axis in range(weight.ndim) if axis not in (*batch, *summed)]
    weight = np.transpose(weight, (*batch, *summed, *free))
    shape, n_batch, n_free = weight.shape, len(batch), len(free)
    heads, ends = shape[:n_batch], shape[len(shape) - n_free :]
    new = wiring.labels.new((*heads, *ends))
    spread = new.reshape(*heads, *(1,) * len(summed), *ends)
    loss = Signal(*(array.reshape(*array.shape, *(1,) * n_free) for array in (x.label, x.degree)))
    wiring.connect(weight, Signal(spread, np.ones((1,) * weight.ndim)), loss, "a weight used twice")
    out_shape = equation["out_shape"]
    others = len(out_shape) - n_batch - n_free
    middle = (*heads, *ends, *(1,) * others) if weight_first else (*heads, *(1,) * others, *ends)
    label = np.broadcast_to(wiring.labels.find(new).reshape(middle), out_shape)
    return Signal(label, np.ones(out_shape, np.float32))


def _met(wiring: Wiring, x: Signal, batch: Any, summed: Any) -> Signal:
    """Find the classes that weights meet: the same at all places where they are used."""
    free = tuple(axis for axis in range(x.label.ndim) if axis not in (*batch, *summed))
    merged = wiring.merge(x, free, "weights shared between places")
    order = (*batch, *summed, *free)
    shape = tuple(x.label.shape[axis] for axis in (*batch, *summed))
    return Signal(*(np.transpose(array, order).reshape(shape) for array in (merged.label, merged.degree)))


def _between_signals(wiring: Wiring, left: Value, right: Value, equation: Parameters) -> Signal:
    """A product of two signals is a signal if one of them is invariant; otherwise both are left alone."""
    (left_summed, right_summed), (left_batch, right_batch) = equation["dimension_numbers"]
    if any(isinstance(side, Known) and not np.any(side.value) for side in (left, right)):
        return Signal(*(np.full(equation["out_shape"], fill) for fill in (ANY, 1)))  # zero, whatever the other is
    if isinstance(left, Known) and isinstance(right, Entries):
        right = wiring.signal(right)
    if isinstance(right, Known) and isinstance(left, Entries):
        left = wiring.signal(left)
    a, b = wiring.signal(left), wiring.signal(right)
    fixed = [np.all(wiring.labels.find(signal.label) <= ANY) for signal in (a, b)]
    if not any(fixed):
        for signal in (a, b):
            wiring.labels.ground(signal.label, "a product of two signals")
        return invariant(equation["out_shape"])
    n_batch = len(left_batch)
    if fixed[1]:
        moving, batch, summed, first = a, left_batch, left_summed, True
    else:
        moving, batch, summed, first = b, right_batch, right_summed, False
    moving = wiring.merge(moving, tuple(summed), "a sum with fixed weights")
    free = [axis for axis in range(moving.label.ndim) if axis not in (*batch, *summed)]
    shape = tuple(moving.label.shape[axis] for axis in (*batch, *free))
    out_shape = equation["out_shape"]
    others = len(out_shape) - len(shape)
    middle = (*shape, *(1,) * others) if first else (*shape[:n_batch], *(1,) * others, *shape[n_batch:])
    order = (*batch, *free, *summed)
    return Signal(
        *(
            np.broadcast_to(np.transpose(array, order).reshape(middle), out_shape)
            for array in (wiring.labels.find(moving.label), moving.degree)
        )
    )


def convolution(wiring: Wiring, left: Value, right: Value, equation: Parameters) -> Signal:
    """A filter's tap between class c' of an input channel and the class c of its output channel: c/c'."""
    x_spec, weight_spec, out_spec = equation["dimension_numbers"]
    out_shape, groups = equation["out_shape"], equation["feature_group_count"]
    x = wiring.signal(left)
    why = "a convolution's places"
    if equation["batch_group_count"] != 1 or isinstance(right, Signal):
        for value in (x, right):
            wiring.fix(value, "an unusual convolution")
        return invariant(out_shape)
    channels = x_spec[1]
    x = wiring.merge(x, tuple(axis for axis in range(x.label.ndim) if axis != channels), why)
    if isinstance(right, Known):  # a fixed filter mixes all channels of a group; or all of all groups, to be brief
        x = wiring.merge(x, (channels,), "a fixed filter")
        return Signal(*(np.broadcast_to(array.ravel()[0], out_shape) for array in (x.label, x.degree)))
    weight = np.moveaxis(right.index, weight_spec[:2], (0, 1))
    weight = weight.reshape(*weight.shape[:2], -1)  # (out, in of a group, taps)
    new = wiring.labels.new(weight.shape[0])
    group = np.arange(weight.shape[0]) // (weight.shape[0] // groups)
    met = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])
    loss = Signal(*(array.ravel()[met][..., None] for array in (x.label, x.degree)))
    wiring.connect(weight, Signal(new[:, None, None], np.ones((1, 1, 1))), loss, "a filter used twice")
    across = [1] * len(out_shape)
    across[out_spec[1]] = -1
    return Signal(np.broadcast_to(wiring.labels.find(new).reshape(across), out_shape), np.ones(out_shape, np.float32))
