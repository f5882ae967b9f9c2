"""The rescalings of a network as an action of a torus."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import trees
from ...errors import ShapeError
from ...trees import PyTree
from .._action import AbstractAction
from .._kempf_ness import begin, newton_step
from ._labels import ANY
from ._trace import trace
from ._values import Wiring

_STEPS = 12  # of Newton's method within compiled code
_ROUNDING = 16  # machine epsilons of |W|²


class Leaf(eqx.Module):
    """How an array of parameters is rescaled: w ↦ w exp(k_gain s[gain] − k_loss s[loss]).

    Tables have length 1 along axes where all entries are equal.
    """

    gain: Any
    loss: Any
    gain_degree: Any
    loss_degree: Any


class Rescaling(AbstractAction):
    """The rescalings c > 0 of a network's units that leave its function as it is; made by `rescaling`.

    A generator is a vector ξ (n,), log c of every unit. A weight between two units is multiplied by c_to/c_from, a bias
    by c, what touches inputs and outputs by one factor only; the moment map of a unit is μ = |in|² − |out|². As an
    `AbstractAction` it also serves `kempf_ness`.

    - `n_units`: n. `names`: of the arrays of parameters. `reasons`: why an array is left alone, or empty.
    """

    leaves: list[Leaf | None]  # of the arrays of real or complex numbers; None: left alone
    n_units: int = eqx.field(static=True)
    groups: Any  # (n,): units of one group are not connected, unless they were tied by later sums
    names: tuple[str, ...] = eqx.field(static=True)
    reasons: tuple[str, ...] = eqx.field(static=True)

    def infinitesimal(self, W: PyTree, xi: PyTree) -> PyTree:
        """Compute w ξ_to − w ξ_from."""
        return self._times(self._exponents(xi), W)

    def adjoint(self, W: PyTree, V: PyTree) -> Any:
        """Sum w v over what comes into each unit, less over what goes out."""
        arrays, _ = self._split(W)
        others, _ = self._split(V)
        total = jnp.zeros(self.n_units + 1, jnp.result_type(*(jnp.asarray(w).real.dtype for w in arrays)))
        for leaf, w, v in zip(self.leaves, arrays, others, strict=True):
            if leaf is not None:
                product = (jnp.conj(w) * v).real
                total = total.at[leaf.gain].add(
                    leaf.gain_degree.astype(product.dtype) * _summed(product, leaf.gain, leaf.gain_degree)
                )
                total = total.at[leaf.loss].add(
                    -leaf.loss_degree.astype(product.dtype) * _summed(product, leaf.loss, leaf.loss_degree)
                )
        return total[1:]

    def exponential(self, xi: PyTree, W: PyTree) -> PyTree:
        """Multiply weights by exp(ξ_to − ξ_from)."""
        return self._times([None if e is None else jnp.exp(e) for e in self._exponents(xi)], W)

    def hermitian(self, xi: PyTree) -> PyTree:
        """Return ξ: rescalings have no compact part."""
        return xi

    def factors(self, xi: Any, params: PyTree) -> PyTree:
        """Compute what exp(ξ) multiplies every parameter by: a pytree like the parameters."""
        return self.exponential(xi, jax.tree.map(lambda w: jnp.ones_like(w) if trees.is_coordinate(w) else w, params))

    def log_scales(self, params: PyTree) -> Any:
        """Find log c of the balanced parameters, exp(log c)·W, by Newton steps in their own precision.

        For compiled code, in training: `network` does more. Gradients and momenta belong to the balanced parameters
        when multiplied by exp(−log c), their squares by exp(−2 log c): `exponential(-s, gradient)`.
        """
        start = begin(self, params)

        def unfinished(carry: Any) -> Any:
            _, length, moment, step, _, number = carry
            rounding = _ROUNDING * jnp.finfo(length.dtype).eps
            return (moment > rounding * 2 * length) & (step > 0) & (number < _STEPS)

        def advance(carry: Any) -> Any:
            params, length, _, _, total, number = carry
            there = newton_step(self, params, length)
            return there.params, there.length, there.moment, there.step, total + there.generator, number + 1

        zero = jnp.zeros(self.n_units, start.length.dtype)
        first = (params, start.length, start.moment, jnp.ones((), start.length.dtype), zero, jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(unfinished, advance, first)[4]

    def _exponents(self, xi: Any) -> list[Any]:
        s = jnp.concatenate([jnp.zeros(1, jnp.asarray(xi).dtype), xi])
        return [
            None
            if leaf is None
            else leaf.gain_degree.astype(s.dtype) * s[leaf.gain] - leaf.loss_degree.astype(s.dtype) * s[leaf.loss]
            for leaf in self.leaves
        ]

    def _times(self, multipliers: list[Any], W: PyTree) -> PyTree:
        arrays, rebuild = self._split(W)
        pairs = zip(arrays, multipliers, strict=True)
        return rebuild([w if by is None else w * by.astype(jnp.asarray(w).real.dtype) for w, by in pairs])

    def _split(self, W: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
        """Take the arrays of real or complex numbers out of a pytree."""
        leaves, structure = jax.tree.flatten(W)
        places = [place for place, leaf in enumerate(leaves) if trees.is_coordinate(leaf)]
        if len(places) != len(self.leaves):
            raise ShapeError(
                f"{len(places)} arrays of parameters",
                f"the {len(self.leaves)} of the network whose rescaling this is",
                "find the rescaling of this network",
            )

        def rebuild(arrays: list[Any]) -> PyTree:
            new = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                new[place] = array
            return jax.tree.unflatten(structure, new)

        return [leaves[place] for place in places], rebuild


def _summed(product: Any, label: Any, degree: Any) -> Any:
    """Sum over the axes along which neither label nor degree differs."""
    shape = np.broadcast_shapes(label.shape, degree.shape)
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and product.shape[axis] != 1)
    return product.sum(axes, keepdims=True)


def rescaling(apply: Callable[..., Any], params: PyTree, x: Any) -> Rescaling:
    """Find every rescaling of hidden units that a network's function does not notice, by following its operations.

    One sample is traced through `apply`, and every intermediate number gets a class of numbers that are rescaled alike:
    a product with a weight makes a new class; sums, maxima, poolings and residual streams tie classes; ReLU, leaky
    ReLU, PReLU and absolute values keep them; powers multiply degrees; constants that are added, and functions that are
    not homogeneous, take them to the ground, which is not rescaled. So networks need not be described layer by layer,
    and what cannot be rescaled is found out with its reason. Batch norm with fixed statistics is followed like any
    other operation: its gain and shift can be rescaled, what comes before it cannot.

    **Arguments:** `apply`, `params`: as for `Problem`: apply(params, x) for one sample; `x`: one sample: only its shape
    and type matter.

    **Returns:** a `Rescaling`, an `AbstractAction`. Every rescaling in it keeps the function. `while`,
    `cond` and loops of more than 512 steps, and products of two rescaled signals, are left alone, though some could be
    rescaled.

    **Raises:** `ApplyError` if the network cannot be called on x.

    Allocates 17 bytes per parameter, and two numbers per intermediate result.

    **Source:** derived; for dense networks Stock et al. (arXiv 1902.10416), and Neyshabur et al. (arXiv 1506.02617).

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((4, 8, 8, 2), "relu", key=jax.random.key(0))
    >>> fb.balance.rescaling(apply, params, jnp.zeros(4)).n_units
    16
    >>> apply, params = fb.networks.mlp((4, 8, 2), "tanh", key=jax.random.key(0))
    >>> fb.balance.rescaling(apply, params, jnp.zeros(4)).reasons[0]
    '`tanh`'

    ```
    """
    return from_wiring(trace(apply, params, x), params)


def from_wiring(wiring: Wiring, params: PyTree) -> Rescaling:
    """Number the classes that move parameters, and keep one label where a whole axis has the same."""
    find = wiring.labels.find
    wiring.labels.ground(_boundless(wiring), "a size that does not matter, or only grows")
    gain, loss = find(wiring.gain.label), find(wiring.loss.label)
    met = np.zeros(len(wiring.labels.groups), bool)
    met[gain] = met[loss] = True
    moving = np.flatnonzero(met[ANY + 1 :]) + ANY + 1
    number = np.zeros(len(met), np.int32)
    number[moving] = np.arange(1, len(moving) + 1)
    leaves, names, reasons, start = [], [], [], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not trees.is_coordinate(leaf):
            continue
        part = slice(start, start + np.size(leaf))
        start = part.stop
        labels = [_compressed(table[part].reshape(np.shape(leaf))) for table in (gain, loss)]
        degrees = [_compressed(table.degree[part].reshape(np.shape(leaf))) for table in (wiring.gain, wiring.loss)]
        shaped = Leaf(number[labels[0]], number[labels[1]], *degrees)
        still = not (np.any(shaped.gain) or np.any(shaped.loss))
        leaves.append(None if still else shaped)
        names.append(jax.tree_util.keystr(path, simple=True, separator="."))
        used = bool(wiring.used[part].any())
        why = wiring.labels.reason(wiring.gain.label[part]) if used else "not used"
        reasons.append((why or "inputs and outputs at its ends") if still else "")
    return Rescaling(leaves, len(moving), wiring.labels.groups[moving], tuple(names), tuple(reasons))


def _boundless(wiring: Wiring) -> np.ndarray:
    """Find the classes that only lengthen parameters, or only shorten them, as they grow: no scale is best for them.

    Such are units that are only compared, sorted or divided by, and units that nothing looks at.
    """
    gain, loss = wiring.labels.find(wiring.gain.label), wiring.labels.find(wiring.loss.label)
    moved = (gain != loss) | (wiring.gain.degree != wiring.loss.degree)
    up, down = np.zeros((2, len(wiring.labels.groups)), bool)
    for label, degree in ((gain, wiring.gain.degree), (loss, -wiring.loss.degree)):
        up[label[moved & (degree > 0)]] = True
        down[label[moved & (degree < 0)]] = True
    lonely = np.flatnonzero(up ^ down)
    return lonely[lonely > ANY]


def _compressed(table: np.ndarray) -> np.ndarray:
    for axis in range(table.ndim):
        first = np.take(table, [0], axis) if table.shape[axis] else table
        if np.array_equal(np.broadcast_to(first, table.shape), table):
            table = first
    return table
