"""Follow the parameters of a traced network to their uses."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

from ._views import Use, View, contraction, convolution, elementwise

_UNROLLED = 64  # steps of a loop that are followed one by one
_INSIDE = ("jaxpr", "call_jaxpr")  # where calls keep what they call
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "remat2")


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A value that does not depend on the sample, and on no parameters whose uses are followed."""

    array: Any


Value = View | Fixed | Array


class Tracer:
    """One pass through a traced network: its products in order, and what it uses of each leaf.

    With `taps`, one array for each product, these are added to the products, so that the network's derivative with
    respect to them is the cotangent of each product.
    """

    def __init__(self, taps: Sequence[Array] | None = None) -> None:
        self.taps = taps
        self.uses: list[Use] = []
        self.products: list[jax.ShapeDtypeStruct] = []
        self.opaque: set[int] = set()

    def run(self, jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        """Evaluate a program."""
        values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        read_by = Counter(a for e in jaxpr.eqns for a in e.invars if not isinstance(a, Literal))
        read_by.update(a for a in jaxpr.outvars if not isinstance(a, Literal))
        made: dict[Any, int] = {}  # which variable is the product of which use

        def read(atom: Any) -> Value:
            return Fixed(atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            before = len(self.uses)
            hosts = {
                place: made[atom]
                for place, atom in enumerate(equation.invars)
                if not isinstance(atom, Literal) and atom in made and read_by[atom] == 1
            }
            found = self._step(equation, [read(atom) for atom in equation.invars], hosts)
            values.update(zip(equation.outvars, found, strict=True))
            if len(self.uses) > before and self.uses[-1].host is None and equation.primitive.name in _PRODUCTS:
                made[equation.outvars[0]] = before
        return [read(atom) for atom in jaxpr.outvars]

    def _step(self, equation: Any, values: list[Value], hosts: dict[int, int]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if not any(isinstance(value, View) for value in values):
            return _evaluate(equation, values)
        if name in _CALLS:
            inside = next(params[key] for key in _INSIDE if key in params)
            closed = inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())
            return self.run(closed.jaxpr, [Fixed(const) for const in closed.consts], values)
        if name == "scan" and 0 < params["length"] <= _UNROLLED:
            return self._scan(params, values)
        result, views = None, [value for value in values if isinstance(value, View)]
        if name in _REARRANGE:
            view = values[0]
            result = _REARRANGE[name](view, equation) if isinstance(view, View) and len(values) == 1 else None
        elif name == "split" and isinstance(values[0], View):
            return self._split(values[0], equation)
        elif name in _PRODUCTS:
            result = _PRODUCTS[name](self, equation, values, hosts)
        if result is not None:
            return [result]
        if name in _PRODUCTS and len(views) == 2:
            # Where only the smaller leaf is not followed, the uses of the larger may yet be.
            views = [min(views, key=lambda view: view.array.size)]
        self.opaque |= {view.base.leaf for view in views}
        return _evaluate(equation, values)

    def tapped(self, product: Array, make: Callable[[int], Use | None]) -> Array | None:
        """Note a use and tap its product; `None` if there is no such use."""
        use = make(len(self.products))
        if use is None:
            return None
        self.products.append(jax.ShapeDtypeStruct(product.shape, product.dtype))
        self.uses.append(use)
        return product if self.taps is None else product + self.taps[use.tap]

    def _scan(self, params: Any, values: list[Value]) -> list[Value]:
        """Go through a loop step by step: layers that are stacked, or a recurrent network."""
        n_consts, n_carry, closed = params["num_consts"], params["num_carry"], params["jaxpr"]
        fixed, carry, stacked = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
        results: list[list[Value]] = []
        for place in reversed(range(params["length"])) if params["reverse"] else range(params["length"]):
            inputs = [*fixed, *carry, *(self._row(value, place) for value in stacked)]
            found = self.run(closed.jaxpr, [Fixed(const) for const in closed.consts], inputs)
            carry = found[:n_carry]
            results.append(found[n_carry:])
        ordered = results[::-1] if params["reverse"] else results
        for step in ordered:
            self.opaque |= {value.base.leaf for value in step if isinstance(value, View)}
        return [*carry, *(jnp.stack([plain(step[i]) for step in ordered]) for i in range(len(ordered[0])))]

    def _split(self, view: View, equation: Any) -> list[Value]:
        parts, start = _bind(equation, [view.array]), 0
        views: list[Value] = []
        for part, size in zip(parts, equation.params["sizes"], strict=True):
            where = [slice(None)] * view.array.ndim
            where[equation.params["axis"]] = slice(start, start + size)
            piece = view.restart("take", tuple(where), part)
            if piece is None:
                self.opaque.add(view.base.leaf)
                return parts
            views.append(piece)
            start += size
        return views

    def _row(self, value: Value, place: int) -> Value:
        """Take what one step of a loop sees of a stacked value."""
        if isinstance(value, Fixed):
            return Fixed(value.array[place])
        if not isinstance(value, View):
            return value[place]
        row = value.restart("take", (place,), value.array[place])
        if row is None and value.axes[0] is None:  # repeated along the loop: the same in every step
            return value.with_array(value.array[place], value.axes[1:])
        if row is None:
            self.opaque.add(value.base.leaf)
            return value.array[place]
        return row


def plain(value: Value) -> Any:
    """Give a value as an array."""
    return value if not isinstance(value, View | Fixed) else value.array


def _bind(equation: Any, arrays: Sequence[Any]) -> list[Any]:
    found = equation.primitive.bind(*arrays, **equation.primitive.get_bind_params(equation.params))
    return list(found) if equation.primitive.multiple_results else [found]


def _evaluate(equation: Any, values: Sequence[Value]) -> list[Value]:
    """Compute what an operation makes of values, whatever they are; without the sample it is fixed."""
    found = _bind(equation, [plain(value) for value in values])
    return [Fixed(part) for part in found] if all(isinstance(v, View | Fixed) for v in values) else found


def _same_entries(view: View, equation: Any) -> View:
    return view.with_array(_bind(equation, [view.array])[0])


def _transpose(view: View, equation: Any) -> View:
    order = equation.params["permutation"]
    return view.with_array(jnp.transpose(view.array, order), [view.axes[axis] for axis in order])


def _reshape(view: View, equation: Any) -> View | None:
    if equation.primitive.name == "reshape" and equation.params["dimensions"] is not None:
        return None
    array, axes = view.array.reshape(equation.outvars[0].aval.shape), []
    # Axes of size one may come and go; all others must stay as they are.
    long = [axis for axis, size in zip(view.axes, view.array.shape, strict=True) if size > 1]
    if tuple(size for size in array.shape if size > 1) == tuple(size for size in view.array.shape if size > 1):
        left = iter(long)
        axes = [next(left) if size > 1 else None for size in array.shape]
        return view.with_array(array, axes)
    return view.restart("reshape", array.shape, array)


def _broadcast(view: View, equation: Any) -> View:
    array = _bind(equation, [view.array])[0]
    axes: list[int | None] = [None] * array.ndim
    for place, at in enumerate(equation.params["broadcast_dimensions"]):
        if view.array.shape[place] == array.shape[at]:
            axes[at] = view.axes[place]
    return view.with_array(array, axes)


def _slice(view: View, equation: Any) -> View | None:
    params = equation.params
    strides = params["strides"] or (1,) * view.array.ndim
    where = tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
    return view.restart("take", where, view.array[where])


def _reverse(view: View, equation: Any) -> View | None:
    flipped = equation.params["dimensions"]
    where = tuple(slice(None, None, -1) if axis in flipped else slice(None) for axis in range(view.array.ndim))
    return view.restart("take", where, view.array[where])


def _convert(view: View, equation: Any) -> View | None:
    return _same_entries(view, equation) if jnp.issubdtype(equation.params["new_dtype"], jnp.floating) else None


def _negate(view: View, _: Any) -> View:
    return view.with_array(-view.array, scale=-view.scale)


_REARRANGE: dict[str, Callable[[View, Any], View | None]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "rev": _reverse,
    "convert_element_type": _convert,
    "copy": _same_entries,
    "neg": _negate,
}


def _operands(values: list[Value]) -> tuple[int, View, Value] | None:
    """Find the one operand that is a view, with its place, and the other; `None` if both are."""
    places = [place for place, value in enumerate(values) if isinstance(value, View)]
    if len(places) != 1:
        return None
    view = values[places[0]]
    assert isinstance(view, View)  # noqa: S101
    return places[0], view, values[1 - places[0]]


def _widens(view: View, other: Value, product: Array) -> bool:
    """Tell whether the product is of parameters only, and no smaller: tapping it would gain nothing."""
    return isinstance(other, Fixed) and product.size >= view.array.size


def _dot(tracer: Tracer, equation: Any, values: list[Value], _: Any) -> Array | None:
    found = _operands(values)
    if found is None:
        return None
    place, view, other = found
    product, dims = _bind(equation, [plain(v) for v in values])[0], equation.params["dimension_numbers"]
    if _widens(view, other, product):
        return None
    return tracer.tapped(product, lambda tap: contraction(view, plain(other), dims, tap, weight_first=place == 0))


def _conv(tracer: Tracer, equation: Any, values: list[Value], _: Any) -> Array | None:
    found = _operands(values)
    if found is None or found[0] == 0:
        return None
    _, view, other = found
    product = _bind(equation, [plain(v) for v in values])[0]
    if _widens(view, other, product):
        return None
    return tracer.tapped(product, lambda tap: convolution(view, plain(other), equation.params, tap, product.shape))


def _multiply(tracer: Tracer, equation: Any, values: list[Value], _: Any) -> Value | None:
    found = _operands(values)
    divided = equation.primitive.name == "div"
    if found is None or (divided and found[0] == 1):
        return None
    _, view, other = found
    product = _bind(equation, [plain(v) for v in values])[0]
    factor = 1 / plain(other) if divided else plain(other)
    view = view.spread(product)
    if isinstance(other, Fixed) and jnp.size(factor) == 1:
        return view.with_array(product, scale=view.scale * jnp.reshape(factor, ()))
    if isinstance(other, Fixed):
        return None
    return tracer.tapped(product, lambda tap: elementwise(view, factor, tap))


def _add(tracer: Tracer, equation: Any, values: list[Value], hosts: dict[int, int]) -> Value | None:
    found = _operands(values)
    if found is None:
        return None
    place, view, other = found
    total = _bind(equation, [plain(v) for v in values])[0]
    view = view.spread(total)
    if place == 1 and equation.primitive.name == "sub":
        view = view.with_array(total, scale=-view.scale)
    if isinstance(other, Fixed):
        return view
    host = hosts.get(1 - place)
    if host is None or jnp.shape(plain(other)) != total.shape:
        return tracer.tapped(total, lambda tap: elementwise(view, None, tap))
    # What is added to a product has the product's cotangent; what it is taken from has the opposite.
    if place == 0 and equation.primitive.name == "sub":
        view = view.with_array(total, scale=-view.scale)
    use = elementwise(view, None, tracer.uses[host].tap)
    roles, host_roles = use.roles, tracer.uses[host].roles
    onto: tuple[tuple[int, int], ...] = ()
    if host_roles is not None and roles is not None and [r is None for r in roles] == [r is None for r in host_roles]:
        onto = tuple(sorted((r, h) for r, h in zip(roles, host_roles, strict=True) if r is not None and h is not None))
    tracer.uses.append(dataclasses.replace(use, host=host if onto else None, onto=onto))
    return total


_PRODUCTS: dict[str, Callable[..., Value | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "mul": _multiply,
    "div": _multiply,
    "add": _add,
    "add_any": _add,
    "sub": _add,
}
