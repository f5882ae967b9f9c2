"""The factors of the Gram matrix, sample by sample: what parameters meet, and the cotangents of what they make."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._plan import Block, Group, Plan
from ._trace import Tracer


class Factors(eqx.Module):
    """What the Gram matrix of some samples is made of; every array has a leading axis n, but for one sample's.

    `jacobian` (n, Q, K'): the columns of all groups with the route "jacobian", and of leaves differentiated by
    themselves. `pairs`: for each other group its factors, left (n, 1 or Q, group, place, left) and right alike.
    """

    jacobian: Float[Array, "*n q k"]
    pairs: list[list[tuple[Array, Array]]]


def factors(
    block: Block, index: int, plan: Plan, leaves: Sequence[Array], x: Float[Array, " ..."], scale: Float[Array, ""]
) -> Factors:
    """Compute the factors of one sample, with cotangents times `scale`, which is the factor of its rows; no axis n."""
    products: list[jax.ShapeDtypeStruct] = []

    def shapes() -> Array:
        value, tracer = block.evaluate(leaves, {i: leaves[i] for i in plan.own}, None, x)
        products.extend(tracer.products)
        return value

    jax.eval_shape(shapes)
    uses: list[Tracer] = []

    def run(taps: list[Array], own: dict[int, Array]) -> tuple[Array, list[Array]]:
        value, tracer = block.evaluate(leaves, own, taps, x)
        uses.append(tracer)
        return value, [use.a for use in tracer.uses]

    taps = [jnp.zeros(product.shape, product.dtype) for product in products]
    value, pull, met = jax.vjp(run, taps, {i: leaves[i] for i in plan.own}, has_aux=True)
    seeds = scale.astype(value.dtype) * jnp.eye(value.size, dtype=value.dtype)
    cotangents, own = jax.vmap(pull)(seeds)

    def sides(group: Group) -> list[tuple[Array, Array]]:
        """Join a group's uses along their places, those that change sides by themselves."""
        found: dict[bool, list[tuple[Array, Array]]] = {}
        for part in group.parts[index]:
            use = uses[0].uses[part.use]
            a, b = met[part.use][None], jax.vmap(use.arrange)(cotangents[use.tap])
            if group.bias is not None and part.flipped != group.bias_left:
                constant = jnp.zeros((), a.dtype) if part.bias is None else met[part.bias].ravel()[0].astype(a.dtype)
                a = jnp.concatenate([a, jnp.broadcast_to(constant, (*a.shape[:-1], 1))], axis=-1)
            elif group.bias is not None:
                b = jnp.concatenate([b, jnp.zeros((*b.shape[:-1], 1), b.dtype)], axis=-1)
            # With one output the two orders are alike.
            one = value.size == 1
            found.setdefault(part.flipped and not one, []).append((b, a) if part.flipped else (a, b))
        return [tuple(jnp.concatenate(side, axis=2) for side in zip(*parts, strict=True)) for parts in found.values()]  # pyright: ignore[reportReturnType]

    columns = [cotangent.reshape(value.size, -1) for cotangent in jax.tree.leaves(own)]
    pairs: list[list[tuple[Array, Array]]] = []
    for group, route in zip(plan.groups, plan.routes, strict=True):
        if route == "pairs":
            pairs.append(sides(group))
        else:
            columns.append(_columns(group, sides(group), value))
    dtype = jnp.result_type(value.dtype, jnp.float32)
    jacobian = jnp.concatenate([c.astype(dtype) for c in columns] or [jnp.zeros((value.size, 0), dtype)], axis=1)
    return Factors(jacobian, jax.tree.map(lambda part: part.astype(dtype), pairs))


def _columns(group: Group, sides: Sequence[tuple[Array, Array]], value: Array) -> Array:
    """Compute Σ_s left_s ⊗ right_s for every output: (Q, number of parameters)."""
    n_group, left, right = group.sizes
    left += group.bias is not None and group.bias_left
    right += group.bias is not None and not group.bias_left
    total = jnp.zeros((value.size, n_group, left, right), value.dtype)
    for a, b in sides:
        total = total + jnp.einsum("agsi,bgso->abgio", a, b).reshape(total.shape)
    return total.reshape(value.size, -1)


def contract(first: Factors, second: Factors) -> Float[Array, "M L"]:
    """Compute the Gram matrix between two sets of samples, rows sample-major."""
    n, q, _ = first.jacobian.shape
    m, r, _ = second.jacobian.shape
    total = (first.jacobian.reshape(n * q, -1) @ second.jacobian.reshape(m * r, -1).T).reshape(n, q, m, r)
    for ones, others in zip(first.pairs, second.pairs, strict=True):
        for a, b in ones:
            for c, d in others:
                total = total + _pair(a, b, c, d)
    return total.reshape(n * q, m * r)


def _pair(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Compute Σ_g Σ_{s,t} ⟨a_s, c_t⟩ ⟨b_s, d_t⟩ for every pair of samples and outputs."""
    if a.shape[2] == a.shape[3] == c.shape[3] == 1:  # one group, one place
        left, right = (jnp.einsum("nagsi,mcgti->namc", *sides) for sides in ((a, c), (b, d)))
        return left * right
    left, right = (jnp.einsum("nagsi,mcgti->namcgst", *sides) for sides in ((a, c), (b, d)))
    return jnp.sum(left * right, axis=(4, 5, 6))
