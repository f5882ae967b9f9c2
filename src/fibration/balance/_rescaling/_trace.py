"""Find how a network can be rescaled by following its operations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ... import trees
from ...errors import ApplyError
from ...trees import PyTree
from ._labels import ANY, GROUND
from ._rules import RULES
from ._values import ABSENT, Entries, Known, Signal, Value, Wiring, invariant

_UNROLLED = 512  # steps of a loop that are followed one by one
_INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where calls keep what they call
_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "checkpoint",
    "remat2",
)
_REARRANGE = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "rev", "split")


def trace(apply: Callable[..., Any], params: PyTree, x: Any) -> Wiring:
    """Follow params and one sample through `apply`, and note how each parameter may be rescaled."""
    places, size = [], 0
    for leaf in jax.tree.leaves(params):
        if trees.is_coordinate(leaf):
            places.append(Entries(np.arange(size, size + np.size(leaf), dtype=np.int32).reshape(np.shape(leaf))))
            size += np.size(leaf)
        else:
            places.append(Known(leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)))
    try:
        closed = jax.make_jaxpr(apply)(params, x)
    except Exception as error:
        raise ApplyError(
            f"the network cannot be followed on this sample: {type(error).__name__}: {str(error)[:300]}",
            "apply(params, x) for ONE sample x, in operations that JAX can trace",
            "pass one sample, without a batch axis, and parameters that are arrays",
        ) from error
    wiring = Wiring(size)
    signals = [invariant(jnp.shape(leaf)) for leaf in jax.tree.leaves(x)]
    outputs = _run(wiring, closed.jaxpr, [Known(const) for const in closed.consts], [*places, *signals])
    for output in outputs:
        wiring.fix(output, "")  # outputs are to stay what they are, which needs no reason
    return wiring


def _run(wiring: Wiring, jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Value:
        return Known(np.asarray(atom.val)) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        found = _step(wiring, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(wiring: Wiring, equation: Any, values: list[Value]) -> list[Value]:
    name, shapes = equation.primitive.name, [var.aval.shape for var in equation.outvars]
    if name in _CALLS:
        inside = next(equation.params[key] for key in _INSIDE if key in equation.params)
        closed = inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())
        return _run(wiring, closed.jaxpr, [Known(const) for const in closed.consts], values)
    constants = [value.value for value in values if isinstance(value, Known)]
    if len(constants) == len(values):
        found = equation.primitive.bind(*constants, **equation.params)
        return [Known(part) for part in (found if equation.primitive.multiple_results else [found])]
    if name in _REARRANGE and all(isinstance(value, Known) for value in values[1:]):
        return _rearranged(wiring, equation, values)
    if name in ("concatenate", "pad"):
        return [_joined(wiring, equation, values)]
    if name in ("gather", "dynamic_slice"):
        return [_looked_up(wiring, equation, values)]
    if name == "scan" and equation.params["length"] <= _UNROLLED:
        return _scanned(wiring, equation.params, values)
    if name == "sort" and len(values) == 1:
        x = wiring.signal(values[0])
        merged = wiring.merge(x, (equation.params["dimension"],), "a sorted axis")
        return [Signal(*(np.broadcast_to(array, shapes[0]) for array in (merged.label, merged.degree)))]
    if name in RULES:
        return [RULES[name](wiring, values, {**equation.params, "out_shape": shapes[0]})]
    for value in values:
        wiring.fix(value, f"`{name}`")
    return [invariant(shape) for shape in shapes]


def _scanned(wiring: Wiring, params: Any, values: list[Value]) -> list[Value]:
    """Go through a loop step by step: layers that are stacked, or a recurrent network."""
    n_consts, n_carry, closed = params["num_consts"], params["num_carry"], params["jaxpr"]
    fixed, carry, stacked = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
    results: list[list[Value]] = []
    for place in reversed(range(params["length"])) if params["reverse"] else range(params["length"]):
        inputs = [*fixed, *carry, *(_slice(value, place) for value in stacked)]
        found = _run(wiring, closed.jaxpr, [Known(const) for const in closed.consts], inputs)
        carry = found[:n_carry]
        results.append(found[n_carry:])
    ordered = results[::-1] if params["reverse"] else results
    shapes = [var.aval.shape for var in closed.jaxpr.outvars[n_carry:]]
    if not ordered:
        return [*carry, *(Known(np.zeros((0, *shape))) for shape in shapes)]
    return [*carry, *(_stacked(wiring, [step[place] for step in ordered]) for place in range(len(shapes)))]


def _slice(value: Value, place: int) -> Value:
    if isinstance(value, Known):
        return Known(value.value[place])
    if isinstance(value, Entries):
        return Entries(value.index[place])
    return Signal(value.label[place], value.degree[place])


def _stacked(wiring: Wiring, values: list[Value]) -> Value:
    signals = [wiring.signal(value) for value in values]
    return Signal(*(np.stack(arrays) for arrays in zip(*((x.label, x.degree) for x in signals), strict=True)))


def _bind(equation: Any, *arrays: Any) -> list[np.ndarray]:
    """Do to arrays of labels or of places what an operation does to numbers."""
    params = equation.params if "fill_value" not in equation.params else {**equation.params, "fill_value": 0}
    found = equation.primitive.bind(*(jnp.asarray(array) for array in arrays), **params)
    return [np.asarray(part) for part in (found if equation.primitive.multiple_results else [found])]


def _rearranged(wiring: Wiring, equation: Any, values: list[Value]) -> list[Value]:
    value, rest = values[0], [other.value for other in values[1:] if isinstance(other, Known)]
    if isinstance(value, Entries):
        return [Entries(part) for part in _bind(equation, value.index, *rest)]
    x = wiring.signal(value)
    parts = zip(_bind(equation, x.label, *rest), _bind(equation, x.degree, *rest), strict=True)
    return [Signal(label, degree) for label, degree in parts]


def _joined(wiring: Wiring, equation: Any, values: list[Value]) -> Value:
    """Concatenate, or pad: of parameters and zeros parameters, otherwise signals."""
    places = [_places(value) for value in values]
    if all(place is not None for place in places):
        return Entries(_bind(equation, *places)[0])
    signals = [wiring.signal(value) for value in values]
    return Signal(
        _bind(equation, *(signal.label for signal in signals))[0],
        _bind(equation, *(signal.degree for signal in signals))[0],
    )


def _places(value: Value) -> np.ndarray | None:
    if isinstance(value, Entries):
        return value.index
    return (
        np.full(np.shape(value.value), ABSENT, np.int32)
        if isinstance(value, Known) and not np.any(value.value)
        else None
    )


def _looked_up(wiring: Wiring, equation: Any, values: list[Value]) -> Value:
    """Take a part: the same part if the indices are constants; any part, if not, which are then rescaled alike."""
    value, indices = values[0], values[1:]
    places = [index.value for index in indices if isinstance(index, Known)]
    if len(places) < len(indices):
        for index in indices:
            wiring.fix(index, "an index")
        signal, sizes = wiring.signal(value, "rows looked up"), equation.params["slice_sizes"]
        if _fill(equation) != 0:
            wiring.labels.ground(signal.label, "a lookup that fills what is outside")
        axes = tuple(axis for axis, size in enumerate(sizes) if size < signal.label.shape[axis])
        merged = wiring.merge(signal, axes, "rows looked up")
        shape = signal.label.shape
        value = Signal(*(np.broadcast_to(array, shape) for array in (merged.label, merged.degree)))
        places = [np.zeros(var.aval.shape, var.aval.dtype) for var in equation.invars[1:]]
    outside = _outside(equation, value, places)
    if isinstance(value, Entries) and (_fill(equation) == 0 or not outside.any()):
        return Entries(np.where(outside, ABSENT, _bind(equation, value.index, *places)[0]))
    x = wiring.signal(value)
    label, degree = (_bind(equation, array, *places)[0] for array in (x.label, x.degree))
    return Signal(np.where(outside, ANY if _fill(equation) == 0 else GROUND, label), np.where(outside, 1, degree))


def _fill(equation: Any) -> Any:
    """Find what a lookup puts where an index is outside: zero stands for NaN too, which no rescaling changes."""
    if str(equation.params.get("mode")) not in ("GatherScatterMode.FILL_OR_DROP", "1"):
        return 0
    fill = equation.params.get("fill_value")
    return 0 if fill is None or np.isnan(fill) else fill


def _outside(equation: Any, value: Value, places: list[Any]) -> np.ndarray:
    """Tell where a lookup finds nothing."""
    if "mode" not in equation.params:
        return np.zeros(equation.outvars[0].aval.shape, bool)
    table = value.index if isinstance(value, Entries) else value.label if isinstance(value, Signal) else value.value
    return _bind(equation, np.ones(table.shape, np.int32), *places)[0] == 0
