"""Vector-space operations on pytrees of arrays: parameters, velocities and tangent vectors.

Leaves that are not floating-point or complex arrays (integers, functions, `None`) are no coordinates: they are held
constant, and every function here skips them.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

if TYPE_CHECKING:
    PyTree: TypeAlias = Any  # jaxtyping leaves its own unknown to type checkers
else:
    from jaxtyping import PyTree

__all__ = ["all_finite", "as_coordinates", "axpy", "dot", "norm", "random_like", "scale", "size", "subtract"]


def size(tree: PyTree) -> int:
    """Count the coordinates of a pytree.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> trees.size({"weight": jnp.zeros((3, 2)), "bias": jnp.zeros(3), "name": "dense"})
    9

    ```
    """
    return sum(int(leaf.size) for leaf in coordinates(tree))


def coordinates(tree: PyTree) -> list[Array]:
    """List the leaves that are coordinates: the floating-point and the complex arrays."""
    return [leaf for leaf in jax.tree.leaves(as_coordinates(tree)) if eqx.is_inexact_array(leaf)]


def as_coordinates(tree: PyTree) -> PyTree:
    """Turn Python and numpy real or complex numbers among the leaves into JAX arrays; leave everything else alone.

    ```python
    >>> from fibration import trees
    >>> trees.as_coordinates({"scale": 0.5, "steps": 3})
    {'scale': Array(0.5, dtype=float32...), 'steps': 3}

    ```
    """

    def convert(leaf: Any) -> Any:
        return jnp.asarray(leaf) if is_coordinate(leaf) and not isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(convert, tree)


def is_coordinate(leaf: Any) -> bool:
    """Tell whether a leaf holds real or complex numbers: an array of JAX or NumPy, or a number."""
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))  # of bfloat16 too, which NumPy does not count
    return isinstance(leaf, float | complex)


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Compute the real inner product Re⟨a, b⟩ of two pytrees of one structure.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> print(trees.dot([jnp.array([1.0, 2.0])], [jnp.array([3.0, 4.0])]))
    11.0

    ```
    """
    products = [jnp.real(jnp.vdot(x, y)) for x, y in zip(coordinates(a), coordinates(b), strict=True)]
    return jnp.sum(jnp.stack(products)) if products else jnp.zeros(())


def norm(tree: PyTree) -> Float[Array, ""]:
    """Compute the Euclidean norm over all coordinates.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> print(trees.norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
    5.0

    ```
    """
    return jnp.sqrt(dot(tree, tree))


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """Compute a − b leaf by leaf.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> print(trees.subtract([jnp.array(3.0)], [jnp.array(1.0)])[0])
    2.0

    ```
    """
    return jax.tree.map(lambda x, y: x - y, a, b)


def scale(factor: float | Scalar, tree: PyTree) -> PyTree:
    """Compute factor · tree leaf by leaf, in each leaf's own dtype.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> print(trees.scale(2.0, [jnp.array(1.5)])[0])
    3.0

    ```
    """
    return jax.tree.map(lambda x: jnp.asarray(factor).astype(x.dtype) * x, tree)


def axpy(factor: float | Scalar, direction: PyTree, start: PyTree) -> PyTree:
    """Compute start + factor · direction leaf by leaf, in the dtype of `start`.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> print(trees.axpy(-0.5, [jnp.array(2.0)], [jnp.array(3.0)])[0])
    2.0

    ```
    """
    return jax.tree.map(
        lambda d, x: x + jnp.asarray(factor).astype(jnp.real(x).dtype) * d.astype(x.dtype), direction, start
    )


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Tell whether every coordinate is finite.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import trees
    >>> print(trees.all_finite([jnp.array([1.0, jnp.nan])]))
    False

    ```
    """
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in coordinates(tree)]))


def is_traced(array: Any) -> bool:
    """Tell whether an array is known by its shape only, inside a JAX transformation."""
    return isinstance(array, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]


def random_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """Draw a pytree of independent standard normal coordinates, shaped like `tree`.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from fibration import trees
    >>> trees.random_like(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
    (2, 3)

    ```
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    draws = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, draws)
