"""What a traced network does to its parameters: views of a leaf, and the uses that are made of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Base:
    """A part of a leaf, taken out and reshaped: what operations do to the leaf, one after the other."""

    leaf: int
    chain: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]

    def then(self, name: str, how: Any, shape: Sequence[int]) -> "Base":
        """Add an operation."""
        return Base(self.leaf, (*self.chain, (name, how)), tuple(shape))

    @property
    def key(self) -> tuple[int, str]:
        """Tell bases apart."""
        return self.leaf, repr(self.chain)

    def places(self, leaf_shape: tuple[int, ...]) -> np.ndarray:
        """Tell which entries of the leaf, numbered, are here."""
        index = np.arange(math.prod(leaf_shape), dtype=np.int64).reshape(leaf_shape)
        for name, how in self.chain:
            index = _DO[name](index, how)
        return index


_DO = {
    "transpose": np.transpose,
    "reshape": np.reshape,
    "take": lambda index, how: index[how],
}


@dataclasses.dataclass(frozen=True)
class View:
    """Parameters as an array: an affine function, entry by entry, of those of a base.

    `axes[k]` is the axis of the base along axis k of the array, or `None` where the array repeats itself or is 1.
    The array is `scale` times the base, arranged, plus what is constant.
    """

    base: Base
    axes: tuple[int | None, ...]
    array: Array
    scale: Any = 1.0

    @classmethod
    def of_leaf(cls, leaf: int, array: Array) -> "View":
        """View a whole leaf."""
        return cls(Base(leaf, (), array.shape), tuple(range(array.ndim)), array)

    @property
    def one_to_one(self) -> bool:
        """Whether no entry is repeated."""
        return all(axis is not None or size == 1 for axis, size in zip(self.axes, self.array.shape, strict=True))

    def with_array(self, array: Array, axes: Sequence[int | None] | None = None, scale: Any = None) -> "View":
        """View the same base as another array."""
        return View(
            self.base, self.axes if axes is None else tuple(axes), array, self.scale if scale is None else scale
        )

    def spread(self, array: Array) -> "View":
        """View the same base where entries are repeated along axes that had one, or none, to fill an array."""
        sizes, axes = self.array.shape, self.axes
        if len(sizes) < array.ndim:  # a single number
            sizes, axes = (1,) * array.ndim, (None,) * array.ndim
        pairs = zip(axes, sizes, array.shape, strict=True)
        return self.with_array(array, [axis if size == whole else None for axis, size, whole in pairs])

    def restart(self, name: str, how: Any, array: Array) -> "View | None":
        """View what an operation on the array makes of it as a base of its own; `None` if entries are repeated."""
        if not self.one_to_one:
            return None
        order = [axis for axis in self.axes if axis is not None]
        dropped = [axis for axis in range(len(self.base.shape)) if axis not in order]  # of one entry each
        base = self.base.then("transpose", (*order, *dropped), [self.base.shape[axis] for axis in (*order, *dropped)])
        base = base.then("reshape", self.array.shape, self.array.shape)
        return View(base.then(name, how, array.shape), tuple(range(array.ndim)), array, self.scale)


@dataclasses.dataclass(frozen=True)
class Use:
    """A product of parameters with what the network computes, in the form J = Σ_s a_s ⊗ b_s for one sample and output.

    `a` (group, place, inner) is what the parameters are multiplied with; b (group, place, outer) is the cotangent of
    the product, rearranged. The axes of the base, but for those of size 1, are divided into `group`, `inner`, `outer`.

    `tap`: which product's cotangent; `steps`: how it is rearranged; `roles`: the axis of the base along each axis of
    the product, `None` for places; `host`: for parameters added to the product of another use, that use, and `onto`:
    which axis of its base each axis of theirs lies along.
    """

    base: Base
    a: Array
    group: tuple[int, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    sizes: tuple[int, int, int]  # group, place, outer
    tap: int
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    roles: tuple[int | None, ...] | None
    host: int | None = None
    onto: tuple[tuple[int, int], ...] = ()

    def arrange(self, cotangent: Array) -> Array:
        """Bring the product's cotangent to the shape (group, place, outer)."""
        for name, how in self.steps:
            cotangent = jnp.transpose(cotangent, how) if name == "transpose" else cotangent.reshape(how)
        return cotangent.reshape(self.sizes)


def elementwise(view: View, other: Array | None, tap: int) -> Use:
    """Make the use of parameters that are multiplied with an array of their shape, entry by entry, or added to it."""
    shape, real = view.array.shape, _real(view)
    along = [place for _, place in sorted((axis, place) for place, axis in enumerate(real) if axis is not None)]
    order = (*along, *(place for place in range(len(shape)) if place not in along))
    count = math.prod(shape[place] for place in along)
    sizes = (count, math.prod(shape) // count, 1)
    a = jnp.ones(shape, view.array.dtype) if other is None else jnp.broadcast_to(other, shape)
    return Use(
        base=view.base,
        a=(view.scale * jnp.transpose(a, order)).reshape(sizes),
        group=tuple(sorted(axis for axis in real if axis is not None)),
        inner=(),
        outer=(),
        sizes=sizes,
        tap=tap,
        steps=(("transpose", order),),
        roles=tuple(real),
    )


def contraction(view: View, x: Array, dims: Any, tap: int, *, weight_first: bool) -> Use | None:
    """Make the use of a matrix, or a stack of them, in a product (`dot_general`) with an array."""
    if not view.one_to_one:
        return None
    (w_summed, x_summed), (w_batch, x_batch) = dims if weight_first else [pair[::-1] for pair in dims]
    w_free = [axis for axis in range(view.array.ndim) if axis not in (*w_summed, *w_batch)]
    x_free = [axis for axis in range(x.ndim) if axis not in (*x_summed, *x_batch)]
    real = _real(view)

    def sort(axes: Sequence[int]) -> tuple[list[int], tuple[int, ...], int]:
        """Sort a list's places by the axes of the base, those of size one last; give these axes, and their size."""
        keys = [real[axis] for axis in axes]
        found = sorted((key, place) for place, key in enumerate(keys) if key is not None)
        order = [place for _, place in found] + [place for place, key in enumerate(keys) if key is None]
        return order, tuple(key for key, _ in found), math.prod(view.array.shape[axis] for axis in axes)

    (batch, group, n_group), (summed, inner, n_inner), (free, outer, n_outer) = map(sort, (w_batch, w_summed, w_free))
    n_place = math.prod(x.shape[axis] for axis in x_free)
    x_order = [*(x_batch[place] for place in batch), *x_free, *(x_summed[place] for place in summed)]
    # The product's axes: batch, then the free ones of the first factor, then those of the second.
    first = len(w_batch) + (0 if weight_first else len(x_free))  # of w's
    of_x = range(len(w_batch) + (len(w_free) if weight_first else 0), len(x_free) + first + len(w_free))
    of_x = list(of_x)[: len(x_free)]
    order = (*batch, *of_x, *(first + place for place in free))
    w_roles, x_roles = [real[axis] for axis in w_free], [None] * len(x_free)
    return Use(
        base=view.base,
        a=(view.scale * jnp.transpose(x, x_order)).reshape(n_group, n_place, n_inner),
        group=group,
        inner=inner,
        outer=outer,
        sizes=(n_group, n_place, n_outer),
        tap=tap,
        steps=(("transpose", order),),
        roles=(*(real[axis] for axis in w_batch), *(w_roles + x_roles if weight_first else x_roles + w_roles)),
    )


def convolution(view: View, x: Array, params: Any, tap: int, out_shape: tuple[int, ...]) -> Use | None:
    """Make the use of a convolution's filter: a product with the patches that it meets."""
    x_spec, w_spec, out_spec = params["dimension_numbers"]
    groups = params["feature_group_count"]
    if params["batch_group_count"] != 1 or not view.one_to_one:
        return None
    filters = jnp.transpose(view.array, w_spec)  # (out, in, taps…)
    kernel: View | None = view.with_array(filters, [view.axes[axis] for axis in w_spec])
    split = (groups, filters.shape[0] // groups, *filters.shape[1:])
    if groups == 1:
        kernel = kernel.with_array(filters[None], (None, *kernel.axes))
    else:
        kernel = kernel.restart("reshape", split, filters.reshape(split))
    if kernel is None:
        return None
    window = filters.shape[2:]
    patches = _patches(jnp.transpose(x, x_spec), window, params)
    n, _, *places = patches.shape[: 2 + len(window)]
    patches = patches.reshape(n, groups, -1, *places, *window)
    # A product with the batch axis `groups`, summed over channels and the window.
    summed = tuple(range(2, 3 + len(window)))
    met = (2, *range(3 + len(places), 3 + len(places) + len(window)))
    use = contraction(kernel, patches, ((summed, met), ((0,), (1,))), tap, weight_first=True)
    if use is None:
        return None
    sizes = [out_shape[axis] for axis in out_spec]
    # From the convolution's own layout to that product's: (groups, out, batch, places…).
    before = (
        ("transpose", tuple(out_spec)),
        ("reshape", (sizes[0], groups, sizes[1] // groups, *sizes[2:])),
        ("transpose", (1, 2, 0, *range(3, 1 + len(sizes)))),
    )
    roles = (
        None if groups > 1 else tuple(_real(kernel)[1] if axis == out_spec[1] else None for axis in range(len(sizes)))
    )
    return dataclasses.replace(use, steps=(*before, *use.steps), roles=roles)


def _real(view: View) -> list[int | None]:
    """List the axes of the base along an array, leaving out those of size one."""
    return [None if axis is None or view.base.shape[axis] == 1 else axis for axis in view.axes]


def _patches(x: Array, window: Sequence[int], params: Any) -> Array:
    """Cut out what each entry of a filter meets: (batch, channels, places…, window…)."""
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    spread = [(0, 0, 0), (0, 0, 0)] + [
        (low, high, by - 1) for (low, high), by in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), spread)
    counts = [
        (size - (wide - 1) * by - 1) // stride + 1
        for size, wide, by, stride in zip(x.shape[2:], window, dilation, strides, strict=True)
    ]
    pieces = []
    for corner in np.ndindex(*window):
        start = [place * by for place, by in zip(corner, dilation, strict=True)]
        stop = [s + (count - 1) * stride + 1 for s, count, stride in zip(start, counts, strides, strict=True)]
        pieces.append(jax.lax.slice(x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *strides)))
    return jnp.stack(pieces, axis=-1).reshape(*x.shape[:2], *counts, *window)
