"""How the Gram matrix is put together: from which uses of which leaves, and by which route."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh
from jaxtyping import Array

from .. import _sharding
from ..problem import Problem
from ..trees import PyTree
from ._trace import Fixed, Tracer, plain
from ._views import Use, View

Route: TypeAlias = Literal["pairs", "jacobian"]
# A multiplication and addition, entry by entry, in the units of those of a matrix product.
_ENTRYWISE = 4


@dataclasses.dataclass(frozen=True)
class Part:
    """A use in a group: which, whether its factors change sides, and which use of a bias has the same product."""

    use: int
    flipped: bool
    bias: int | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose Jacobian is Σ_s left_s ⊗ right_s, in all blocks of data with the same axes.

    `parts[b]`: their uses in block b; `bias_left`: whether a bias is one more entry of the left factor or the right.
    """

    leaf: int
    sizes: tuple[int, int, int]  # group, left, right
    parts: tuple[tuple[Part, ...], ...]
    bias: int | None = None
    bias_left: bool = True


@dataclasses.dataclass(frozen=True)
class Block:
    """The traced program of one sample of a block of data."""

    program: ClosedJaxpr
    n_samples: int
    n_outputs: int

    def evaluate(
        self, leaves: Sequence[Array], own: dict[int, Array], taps: Sequence[Array] | None, x: Array
    ) -> tuple[Array, Tracer]:
        """Compute one sample's outputs; leaves in `own` are not followed."""
        tracer = Tracer(taps)
        inputs = [Fixed(own[i]) if i in own else View.of_leaf(i, leaf) for i, leaf in enumerate(leaves)]
        found = tracer.run(self.program.jaxpr, [Fixed(const) for const in self.program.consts], [*inputs, x])
        for value in found:
            if isinstance(value, View):
                tracer.opaque.add(value.base.leaf)
        return jnp.atleast_1d(plain(found[0])), tracer


def trace(block: Problem, state: PyTree, constant: PyTree, mesh: Mesh | None = None) -> Block:
    """Trace `apply` on one sample; with a mesh, as the program of a single device."""
    structure = jax.tree.structure(state)

    def one(*arguments: Array) -> Any:
        *leaves, x = arguments
        return block.apply(eqx.combine(jax.tree.unflatten(structure, leaves), constant), x)

    given = [*jax.tree.leaves(state), block.inputs[0]]
    if mesh is not None:
        given = _sharding.placeless(given)
    program = jax.make_jaxpr(one)(*given)
    return Block(program, block.n_samples, block.n_outputs)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups, the route of each, and the leaves that are differentiated by themselves."""

    groups: tuple[Group, ...]
    routes: tuple[Route, ...]
    own: tuple[int, ...]
    per_pair: tuple[int, ...]  # for each block, the numbers that are held for two of its samples at a time


def plan(blocks: Sequence[Block], inputs: Sequence[Array], leaves: Sequence[Array], route: Route | None) -> Plan:
    """Find the uses of every leaf, and choose how to contract them; `None` chooses the cheaper route for each group."""
    own: set[int] = set()
    while True:
        found = [_discover(block, leaves, own, x[0]) for block, x in zip(blocks, inputs, strict=True)]
        uses = [tracer.uses for tracer in found]
        rejected = set().union(*(tracer.opaque for tracer in found)) - own
        groups: list[Group] = []
        for leaf in set(range(len(leaves))) - own - rejected:
            of_leaf = _groups_of(leaf, uses, leaves[leaf].shape)
            if of_leaf is None:
                rejected.add(leaf)
            else:
                groups += of_leaf
        if not rejected:
            break
        own |= rejected
    groups = _with_biases(groups, uses)
    routes: list[Route] = [_route(group, blocks, uses) if route is None else route for group in groups]
    paired = [group for group, way in zip(groups, routes, strict=True) if way == "pairs"]
    per_pair = tuple(
        max((_numbers_per_pair(group, block, uses[b], b) for group in paired), default=0) + block.n_outputs**2
        for b, block in enumerate(blocks)
    )
    return Plan(tuple(groups), tuple(routes), tuple(sorted(own)), per_pair)


def _numbers_per_pair(group: Group, block: Block, uses: Sequence[Use], index: int) -> int:
    """Count the inner products between two samples of a block that the route "pairs" holds at a time."""
    places = sum(uses[part.use].sizes[1] for part in group.parts[index])
    return group.sizes[0] * places**2 * block.n_outputs**2


def _discover(block: Block, leaves: Sequence[Array], own: set[int], x: Array) -> Tracer:
    tracers: list[Tracer] = []

    def run(leaves: Sequence[Array], x: Array) -> Array:
        value, tracer = block.evaluate(leaves, {i: leaves[i] for i in own}, None, x)
        tracers.append(tracer)
        return value

    jax.eval_shape(run, list(leaves), x)
    return tracers[0]


def _groups_of(leaf: int, uses: Sequence[Sequence[Use]], shape: tuple[int, ...]) -> list[Group] | None:
    """Sort the uses of a leaf into groups; `None` if two of them see the same entries along other axes."""
    found = [(b, i, use) for b, block in enumerate(uses) for i, use in enumerate(block) if use.base.leaf == leaf]
    by_base: dict[tuple[int, str], list[tuple[int, int, Use]]] = {}
    for item in found:
        by_base.setdefault(item[2].base.key, []).append(item)
    if len(by_base) > 1:
        places = [set(items[0][2].base.places(shape).ravel().tolist()) for items in by_base.values()]
        if sum(map(len, places)) > len(set().union(*places)):
            return None
    groups = []
    for items in by_base.values():
        keys = {(use.group, *sorted((use.inner, use.outer))) for _, _, use in items}
        if len(keys) > 1:
            return None
        parts: list[list[Part]] = [[] for _ in uses]
        for b, i, use in items:
            parts[b].append(Part(i, use.inner > use.outer, None))
        use = items[0][2]
        inner, outer = use.a.shape[2], use.sizes[2]
        left, right = (outer, inner) if use.inner > use.outer else (inner, outer)
        groups.append(Group(leaf, (use.sizes[0], left, right), tuple(map(tuple, parts))))
    return groups


def _with_biases(groups: list[Group], uses: Sequence[Sequence[Use]]) -> list[Group]:
    """Join biases to the weights to whose products they are added: one more input, which is always one."""
    at = {(b, part.use): k for k, group in enumerate(groups) for b, ps in enumerate(group.parts) for part in ps}
    per_leaf: dict[int, int] = {}
    for group in groups:
        per_leaf[group.leaf] = per_leaf.get(group.leaf, 0) + 1
    joined: dict[int, Group] = {}
    gone: set[int] = set()
    for k, group in enumerate(groups):
        items = [(b, part.use, uses[b][part.use]) for b, parts in enumerate(group.parts) for part in parts]
        hosts = {at.get((b, use.host)) if use.host is not None else None for b, _, use in items}
        if len(hosts) != 1 or None in hosts or per_leaf[group.leaf] > 1:
            continue
        (host,) = hosts
        target = joined.get(host, groups[host])  # pyright: ignore[reportArgumentType, reportCallIssue]
        hosting = {(b, use.host): i for b, i, use in items}
        flips = {part.flipped for b, parts in enumerate(target.parts) for part in parts if (b, part.use) in hosting}
        axes = {use.onto for _, _, use in items}
        met = {(*uses[b][use.host].group, *uses[b][use.host].outer) for b, _, use in items}  # pyright: ignore[reportArgumentType, reportCallIssue]
        covers = len(axes) == 1 and {tuple(sorted(h for _, h in next(iter(axes))))} == {tuple(sorted(m)) for m in met}
        if target.bias is not None or len(flips) != 1 or len(hosting) < len(items) or not covers or host in gone:
            continue
        parts = tuple(
            tuple(dataclasses.replace(part, bias=hosting.get((b, part.use))) for part in block)
            for b, block in enumerate(target.parts)
        )
        joined[host] = dataclasses.replace(target, parts=parts, bias=group.leaf, bias_left=not flips.pop())  # pyright: ignore[reportArgumentType]
        gone.add(k)
    return [joined.get(k, group) for k, group in enumerate(groups) if k not in gone]


def _route(group: Group, blocks: Sequence[Block], uses: Sequence[Sequence[Use]]) -> Route:
    """Count the operations of both routes from the shapes."""
    n_group, left, right = group.sizes
    left += group.bias is not None and group.bias_left
    right += group.bias is not None and not group.bias_left
    rows = []  # samples, outputs, rows of the left and of the right factor
    forming = 0.0
    for block, block_uses, parts in zip(blocks, uses, group.parts, strict=True):
        n, q = block.n_samples, block.n_outputs
        for flipped in (False, True):
            places = sum(block_uses[part.use].sizes[1] for part in parts if part.flipped == flipped)
            if places:
                rows.append((n, q, places, q if flipped else 1, 1 if flipped else q))
                forming += n * q * n_group * places * left * right
    pairs = 0.0
    for (n, q, s, a, b), (m, r, t, c, d) in itertools.product(rows, repeat=2):
        pairs += n * m * s * t * n_group * (a * c * left + b * d * right + _ENTRYWISE * q * r)
    outputs = sum(block.n_samples * block.n_outputs for block, parts in zip(blocks, group.parts, strict=True) if parts)
    dense = outputs**2 * n_group * left * right + 2 * forming
    return "pairs" if pairs < dense else "jacobian"
