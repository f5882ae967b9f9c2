"""How the operations of a traced network carry a rescaling from their operands to their results."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._contractions import convolution, dot_general
from ._labels import ANY, GROUND
from ._values import Entries, Known, Signal, Value, Wiring, invariant

Parameters = dict[str, Any]
Rule = Callable[[Wiring, Sequence[Value], Parameters], Value]


def _unchanged(wiring: Wiring, values: Sequence[Value], _: Parameters) -> Value:  # noqa: ARG001
    return values[0]


def _convert(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    if jnp.issubdtype(equation["new_dtype"], jnp.inexact):
        return values[0]
    wiring.fix(values[0], "rounding to integers")
    return invariant(equation["out_shape"])


def _modulus(wiring: Wiring, values: Sequence[Value], _: Parameters) -> Value:
    return wiring.signal(values[0])


def _alike(name: str) -> Rule:
    """Results of operands that must be rescaled alike: sums, maxima, choices."""

    def rule(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
        signals = [value for value in values if isinstance(value, Signal)]
        found = Signal(np.full((), ANY), np.ones((), np.float32))
        # Signals first: a bias then is one, rather than a signal of its own.
        for value in [*signals, *(value for value in values if isinstance(value, Known))]:
            why = f"{name} with a constant" if isinstance(value, Known) else name
            found = wiring.unify(found, wiring.signal(value), why)
        for value in values:
            if isinstance(value, Entries):
                free = wiring.labels.find(found.label) == ANY
                if free.any():
                    found = wiring.unify(found, wiring.signal(value), name)
                else:
                    wiring.connect(value.index, found, invariant(()), name)
        return Signal(
            *(np.broadcast_to(a, equation["out_shape"]) for a in (wiring.labels.find(found.label), found.degree))
        )

    return rule


def _multiply(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    first, second = values
    if isinstance(first, Known) or isinstance(second, Known):
        constant, other = (first, second) if isinstance(first, Known) else (second, first)
        if isinstance(other, Entries):
            return Entries(np.broadcast_to(other.index, equation["out_shape"]))
        return _product(wiring, other, wiring.signal(constant), equation)
    if isinstance(first, Entries) != isinstance(second, Entries):
        weight, x = (first, second) if isinstance(first, Entries) else (second, first)
        return _gain(wiring, weight, wiring.signal(x), equation)
    return _product(wiring, wiring.signal(first), wiring.signal(second), equation)


def _gain(wiring: Wiring, weight: Any, x: Signal, equation: Parameters) -> Signal:
    """Multiply by parameters: each brings its signal to a new class, unless it is shared between classes."""
    index, label, degree = np.broadcast_arrays(weight.index, wiring.labels.find(x.label), x.degree)
    places, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    inverse = inverse.reshape(index.shape)
    same = (label == label.ravel()[first][inverse]) & (degree == degree.ravel()[first][inverse])
    shared = np.bincount(inverse[~same].ravel(), minlength=len(places)) > 0
    out = Signal(wiring.labels.new(len(places))[inverse], np.ones(index.shape, np.float32))
    keep = shared[inverse] | (index < 0) | (label == ANY)
    wiring.connect(np.where(keep, -1, index), out, Signal(label, degree), "a gain used twice")
    wiring.connect(np.where(keep, index, -1), invariant(()), invariant(()), "a gain shared between classes")
    found = np.where(keep, label, out.label)
    return Signal(
        np.broadcast_to(wiring.labels.find(found), equation["out_shape"]),
        np.broadcast_to(np.where(keep, degree, 1), equation["out_shape"]).astype(np.float32),
    )


def _product(wiring: Wiring, a: Any, b: Any, equation: Parameters) -> Signal:
    """Multiply signals: degrees add in one class; of two classes, one must be invariant."""
    a_label, a_degree, b_label, b_degree = np.broadcast_arrays(
        wiring.labels.find(a.label), a.degree, wiring.labels.find(b.label), b.degree
    )
    clash = (a_label > ANY) & (b_label > ANY) & (a_label != b_label)
    if clash.any():
        wiring.labels.ground(np.concatenate([a_label[clash], b_label[clash]]), "a product of two signals")
        a_label, b_label = wiring.labels.find(a_label), wiring.labels.find(b_label)
    zero = (a_label == ANY) | (b_label == ANY)
    both = (a_label > ANY) & (b_label > ANY)
    label = np.where(zero, ANY, np.where(a_label == GROUND, b_label, a_label))
    degree = np.where(both, a_degree + b_degree, np.where(a_label == GROUND, b_degree, a_degree))
    shape = equation["out_shape"]
    return Signal(np.broadcast_to(label, shape), np.broadcast_to(degree, shape).astype(np.float32))


def _divide(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    first, second = values
    if isinstance(first, Entries) and isinstance(second, Known):
        return Entries(np.broadcast_to(first.index, equation["out_shape"]))
    a, b = wiring.signal(first), wiring.signal(second)
    inverse = Signal(np.where(wiring.labels.find(b.label) == ANY, GROUND, b.label), -b.degree)
    return _invariant_if_flat(wiring, _product(wiring, a, inverse, equation))


def _invariant_if_flat(wiring: Wiring, signal: Signal) -> Signal:
    """Numbers of degree zero do not notice a scale: no scale is best for what they are made of, which is left alone."""
    flat = signal.degree == 0
    wiring.labels.ground(signal.label[flat], "a normalisation")
    return Signal(np.where(flat, GROUND, signal.label), np.where(flat, np.float32(1), signal.degree))


def _power(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    x, exponent = wiring.signal(values[0]), equation["y"]
    return _invariant_if_flat(wiring, Signal(x.label, (x.degree * exponent).astype(np.float32)))


def _root(exponent: float) -> Rule:
    return lambda wiring, values, _: _power(wiring, values, {"y": exponent})


def _sign(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    wiring.fix(values[0], "`sign`")
    return invariant(equation["out_shape"])


def _compare(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    _alike("a comparison")(wiring, values, equation)
    return invariant(equation["out_shape"])


def _select(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
    wiring.fix(values[0], "a choice between values")
    return _alike("a choice")(wiring, values[1:], equation)


def _along(axes_of: Callable[[Parameters], Sequence[int]], why: str, *, drop: bool = False) -> Rule:
    """Results of several entries along axes, which must be rescaled alike: sums, maxima, poolings."""

    def rule(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
        axes, shape = tuple(axes_of(equation)), equation["out_shape"]
        merged = wiring.merge(wiring.signal(values[0]), axes, why)
        index = tuple(0 if axis in axes else slice(None) for axis in range(merged.label.ndim)) if drop else ...
        return Signal(*(np.broadcast_to(array[index], shape) for array in (merged.label, merged.degree)))

    return rule


def _invariant_along(axes_of: Callable[[Parameters], Sequence[int]], why: str) -> Rule:
    def rule(wiring: Wiring, values: Sequence[Value], equation: Parameters) -> Value:
        wiring.merge(wiring.signal(values[0]), tuple(axes_of(equation)), why)
        return invariant(equation["out_shape"])

    return rule


def _windowed(equation: Parameters) -> list[int]:
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    sizes = zip(*(equation[name] for name in names), equation["padding"], strict=True)
    return [axis for axis, (*numbers, padding) in enumerate(sizes) if max(numbers) > 1 or any(padding)]


RULES: dict[str, Rule] = {
    "convert_element_type": _convert,
    **dict.fromkeys(("copy", "neg", "reduce_precision", "real", "stop_gradient"), _unchanged),
    "abs": _modulus,
    "sign": _sign,
    "add": _alike("a sum"),
    "add_any": _alike("a sum"),
    "sub": _alike("a sum"),
    "max": _alike("a maximum"),
    "min": _alike("a minimum"),
    "clamp": _alike("a clamp"),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compare),
    "select_n": _select,
    "mul": _multiply,
    "div": _divide,
    "integer_pow": _power,
    "square": _root(2.0),
    "sqrt": _root(0.5),
    "rsqrt": _root(-0.5),
    "dot_general": lambda wiring, values, equation: dot_general(wiring, values[0], values[1], equation),
    "conv_general_dilated": lambda wiring, values, equation: convolution(wiring, values[0], values[1], equation),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min"),
        _along(lambda e: e["axes"], "a sum or maximum over units", drop=True),
    ),
    **dict.fromkeys(("argmax", "argmin"), _invariant_along(lambda e: e["axes"], "a sum or maximum over units")),
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _along(_windowed, "a pooling's window")
    ),
    **dict.fromkeys(("cumsum", "cummax", "cummin"), _along(lambda e: [e["axis"]], "a running sum or maximum")),
}
