"""What an optimiser remembers of a chain, moved to where the chain was moved."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...errors import ParameterError, ShapeError
from ...trees import PyTree
from .._arrays import Matrices, adjoint, computable, namespace, read_chain
from .._rescaling import Rescaling

# Fields of optax states that hold averages of gradients, and of their squares.
FIRST = frozenset({"mu", "trace", "ema", "acc_grads", "grad_acc"})
SECOND = frozenset({"nu", "nu_max", "sum_of_squares"})
COUNTERS = frozenset({"count", "mini_step"})

Chains = Callable[[PyTree], Sequence[Sequence[Any]]]


def transport_gradients(before: Any, after: Any, gradients: Any) -> Matrices:
    """Move gradients, or momenta that are averages of them, along with a chain that was moved along its fibre.

    For W'_p = g_p W_p g_{p−1}⁻¹ the gradients of a cost of the product are D'_p = g_p^{−*} D_p g_{p−1}* (derived).

    **Arguments:** `before`, `after`: two chains with the same product, W_1 first; `gradients`: matrices of the same
    shapes, for complex chains as from `Problem.gradient`.

    **Returns:** matrices of the kind and type of `gradients`, computed in float64; within `jax.jit` in their own
    precision.

    g is not asked for: it is found from S'_p = g_p S_p and T'_p = T_p g_p⁻¹, the partial products before and after, by
    QR and singular value decompositions. Where the orbit is closed and all of g is seen, this is exact for everything;
    otherwise for gradients, and averages lose what lies in directions that `before` does not use.

    **Raises:** `ShapeError`, `NonFiniteDataError`.

    **Source:** derived.

    ```python
    >>> import numpy as np
    >>> import fibration as fb
    >>> before, after = [np.array([[1.0]]), np.array([[4.0]])], [np.array([[2.0]]), np.array([[2.0]])]
    >>> [D.round(12).item() for D in transport_gradients(before, after, [np.array([[4.0]]), np.array([[1.0]])])]
    [2.0, 2.0]

    ```
    """
    old, new, given = read_chain(before), read_chain(after), read_chain(gradients)
    shapes = [[W.shape for W in matrices] for matrices in (old, new, given)]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise ShapeError(
            f"chains and gradients of shapes {shapes}",
            "the same shapes three times",
            "pass the chain before, the chain after, and gradients at the first",
        )
    matrices, back = computable(given + old + new)
    depth = len(given)
    moved = _move(matrices[:depth], _multipliers(matrices[depth : 2 * depth], matrices[2 * depth :]))
    dtype, xp = given[0].dtype, namespace(given[0])
    return [xp.asarray(D).astype(dtype) for D in back(moved)]


def transport_state(
    state: PyTree,
    params_before: PyTree,
    params_after: PyTree,
    *,
    chains: Chains | None = None,
    rescaling: Rescaling | None = None,
    log_scales: Any = None,
) -> PyTree:
    """Move what an optax optimiser remembers along with parameters that were balanced.

    - Averages of gradients (momentum, Adam's first moment, accumulated gradients) move as gradients do:
      `transport_gradients`, or division by the factors of a rescaling.
    - Averages of squared gradients ν move exactly under a rescaling: division by the squares of its factors. Under
      D' = h D k with matrices h, k the squares of entries would need the correlations of D, which are not remembered;
      ν' = |h|² ν |k|², with entries squared one by one, is right if the entries are uncorrelated with mean zero, for
      rescalings and permutations always (derived). It keeps ν positive and needs no reset of Adam's counter; resetting
      ν alone would make steps too large by orders.
    - Counters, schedules, and whatever is not recognised are left as they are. So is a chain that did not move.

    Fields are recognised by optax's names (mu, nu, trace, ema, acc_grads, sum_of_squares, …) and by holding a pytree
    like the parameters, some of which may be masked.

    **Arguments:** `state`: of any optax optimiser; `chains`: a function from parameters to the chains in them, each a
    list with W_1 first, as for `rebalance`; by default the parameters are one chain. `rescaling`, `log_scales` (n,): a
    network's rescaling by c, `np.log(report.units.scale)` of `network`; there are no chains then.

    **Returns:** a state like the given one.

    **Raises:** `ParameterError` if `chains` selects what is no chain; `ShapeError`.

    **Source:** derived.

    ```python
    >>> import jax.numpy as jnp, optax
    >>> import fibration as fb
    >>> before, after = [jnp.array([[1.0]]), jnp.array([[4.0]])], [jnp.array([[2.0]]), jnp.array([[2.0]])]
    >>> optimiser = optax.sgd(0.1, momentum=0.9)
    >>> _, state = optimiser.update([jnp.array([[4.0]]), jnp.array([[1.0]])], optimiser.init(before), before)
    >>> [round(D.item(), 5) for D in fb.balance.transport_state(state, before, after)[0].trace]
    [2.0, 2.0]

    ```
    """
    select = chain_selector(chains, rescaling)
    steps: list[Callable[[PyTree, bool], PyTree]] = []
    if rescaling is not None:
        factors = rescaling.factors(log_scales, params_before)
        steps.append(lambda tree, squared: _divided(tree, params_before, factors, squared))
    else:
        for number, (old, new) in enumerate(zip(select(params_before), select(params_after), strict=True)):
            matrices = computable([_array(W) for W in (*old, *new)])[0]
            still = _same(matrices[: len(old)], matrices[len(old) :])
            multipliers = _multipliers(matrices[: len(old)], matrices[len(old) :])
            steps.append(
                lambda tree, squared, number=number, multipliers=multipliers, still=still: _replaced(
                    tree, select, number, lambda chain: _moved_chain(chain, multipliers, still, squared)
                )
            )

    def move(tree: PyTree, squared: bool) -> PyTree:
        if not is_like(tree, params_before):
            return tree
        for step in steps:
            tree = step(tree, squared)
        return tree

    return visit(state, lambda name, tree: move(tree, name in SECOND))


def chain_selector(chains: Chains | None, rescaling: Rescaling | None) -> Chains:
    """Say which chains parameters hold: all of them one chain, unless something else was said."""
    if chains is None and rescaling is not None:
        return lambda _: []
    if chains is None:
        return lambda params: [jax.tree.leaves(params, is_leaf=masked)]

    def select(params: PyTree) -> Sequence[Sequence[Any]]:
        found = chains(params)
        if not isinstance(found, list | tuple) or not all(isinstance(chain, list | tuple) for chain in found):
            raise ParameterError(
                f"chains(params) = {found!r:.80}",
                "a list of chains, each a list of matrices from the parameters, W_1 first",
                "return [[A, B]] for one pair with the product B A",
            )
        return found

    return select


def replace_chains(params: PyTree, select: Chains, new: Sequence[Sequence[Any]]) -> PyTree:
    """Put chains back where they were selected."""
    if not new:
        return params
    flat = [W for chain in new for W in chain]
    return eqx.tree_at(lambda tree: [W for chain in select(tree) for W in chain], params, flat, is_leaf=masked)


def visit(state: Any, change: Callable[[str, PyTree], PyTree]) -> PyTree:
    """Change the fields of a state that hold averages of gradients or of their squares."""
    if masked(state):
        return state
    if _is_named(state):
        fields = {
            name: change(name, value) if name in FIRST | SECOND else visit(value, change)
            for name, value in zip(state._fields, state, strict=True)
        }
        return type(state)(**fields)
    if isinstance(state, tuple | list):
        return type(state)(visit(part, change) for part in state)
    if isinstance(state, dict):
        return {name: visit(part, change) for name, part in state.items()}
    return state


def reset_state(state: Any, fresh: Any) -> Any:
    """Let an optimiser forget its averages, and the counters that belong to them; schedules go on."""
    if masked(state):
        return state
    if _is_named(state):
        forgets = bool((FIRST | SECOND) & set(state._fields))
        fields = {
            name: getattr(fresh, name)
            if name in FIRST | SECOND or (forgets and name in COUNTERS)
            else reset_state(value, getattr(fresh, name))
            for name, value in zip(state._fields, state, strict=True)
        }
        return type(state)(**fields)
    if isinstance(state, tuple | list):
        return type(state)(reset_state(old, new) for old, new in zip(state, fresh, strict=True))
    if isinstance(state, dict):
        return {name: reset_state(part, fresh[name]) for name, part in state.items()}
    return state


def masked(node: Any) -> bool:
    """Whether optax has left a parameter out here."""
    return isinstance(node, optax.MaskedNode)


def _is_named(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def is_like(tree: PyTree, params: PyTree) -> bool:
    """Whether a pytree has the structure and shapes of the parameters, but for those that are masked."""
    try:
        leaves = jax.tree.structure(params).flatten_up_to(tree)
    except (ValueError, TypeError):
        return False
    pairs = zip(leaves, jax.tree.leaves(params), strict=True)
    return all(masked(leaf) or getattr(leaf, "shape", None) == np.shape(param) for leaf, param in pairs)


def _multipliers(before: Matrices, after: Matrices) -> list[tuple[Any, Any]]:
    """Find h_p = g_p^{−*} and k_p = g_{p−1}* for each p; None stands for the identity."""
    depth, below, above = len(before), [None], [None]
    low = (before[0], after[0])
    for p in range(1, depth):  # S'_p = g_p S_p
        below.append(adjoint(_quotient(*low)))
        low = (before[p] @ low[0], after[p] @ low[1])
    high = (before[-1], after[-1])
    for p in range(depth - 2, -1, -1):  # T'_p = T_p g_p⁻¹
        above.append(_quotient(adjoint(high[0]), adjoint(high[1])))
        high = (high[0] @ before[p], high[1] @ after[p])
    return list(zip(above[::-1], below, strict=True))


def _quotient(before: Any, after: Any) -> Any:
    """Compute after · before⁺: by QR if the matrices are wide, and by the singular values of a small square."""
    xp = namespace(before)
    if before.shape[1] > before.shape[0]:
        basis, triangle = xp.linalg.qr(adjoint(before))
        before, after = adjoint(triangle), after @ basis
    u, values, vh = xp.linalg.svd(before, full_matrices=False)
    cut = max(before.shape) * float(xp.finfo(before.dtype).eps) * values[0]
    inverse = xp.where(values > cut, 1 / xp.where(values > cut, values, 1), 0)
    return ((after @ adjoint(vh)) * inverse) @ adjoint(u)


def _move(gradients: Matrices, multipliers: list[tuple[Any, Any]]) -> Matrices:
    moved = []
    for D, (h, k) in zip(gradients, multipliers, strict=True):
        left = D if h is None else h @ D
        moved.append(left if k is None else left @ k)
    return moved


def _moved_chain(chain: Sequence[Any], multipliers: list[tuple[Any, Any]], still: Any, squared: bool) -> Sequence[Any]:
    if any(masked(D) for D in chain):
        return chain
    used = [(_squared(h), _squared(k)) for h, k in multipliers] if squared else multipliers
    wide = computable([_array(D) for D in chain])[0]
    return [
        jnp.where(still, D, jnp.asarray(new).astype(jnp.asarray(D).dtype))
        for D, new in zip(chain, _move(wide, used), strict=True)
    ]


def _squared(g: Any) -> Any:
    """Square the size of every entry."""
    return None if g is None else abs(g) ** 2


def _array(W: Any) -> Any:
    return W if isinstance(W, np.ndarray | jax.Array) else np.asarray(W)


def _same(before: Matrices, after: Matrices) -> Any:
    xp = namespace(before[0])
    return xp.all(xp.stack([xp.all(old == new) for old, new in zip(before, after, strict=True)]))


def _replaced(tree: PyTree, select: Chains, number: int, change: Callable[[Sequence[Any]], Sequence[Any]]) -> PyTree:
    found = list(select(tree))
    found[number] = change(found[number])
    return replace_chains(tree, select, found)


def _divided(tree: PyTree, params: PyTree, factors: PyTree, squared: bool) -> PyTree:
    """Divide by factors, or by their squares."""
    structure = jax.tree.structure(params)
    power = 2 if squared else 1
    leaves = [
        leaf if masked(leaf) else (leaf / jnp.asarray(factor, leaf.dtype) ** power).astype(leaf.dtype)
        for leaf, factor in zip(structure.flatten_up_to(tree), structure.flatten_up_to(factors), strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)
