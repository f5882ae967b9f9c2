"""The saved parameters of a trajectory, one time after the other."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..errors import TimeSpanError
from ..trees import PyTree


@runtime_checkable
class Saved(Protocol):
    """What is asked of a trajectory: increasing times, and parameters with a leading axis for them."""

    @property
    def times(self) -> Any:
        """The saved times (T,)."""
        ...

    @property
    def params(self) -> Any:
        """The saved parameters, with a leading axis T on floating-point arrays."""
        ...


def saved(trajectory: Saved, least: int) -> tuple[Float[np.ndarray, " T"], PyTree, PyTree]:
    """Give the times, the saved leaves, and the constant ones.

    **Raises:** `TimeSpanError` for fewer than `least` saved parameters, or not one for each time.
    """
    times = np.asarray(trajectory.times, float)
    leaves, constant = eqx.partition(trajectory.params, _is_saved)
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(leaves)}
    if len(times) < least or rows != {len(times)}:
        raise TimeSpanError(
            f"a trajectory with {len(times)} times and parameters at {', '.join(map(str, sorted(rows)))} of them",
            f"parameters at {least} saved times or more",
            'save more times (`times=`), and all of them (`Options(save="all")`)',
        )
    return times, leaves, constant


def _is_saved(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def at(leaves: PyTree, constant: PyTree, row: int) -> PyTree:
    """Give the parameters at one saved time."""
    return eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(leaf[row]), leaves), constant)


def each(leaves: PyTree, constant: PyTree, n_times: int) -> Iterator[PyTree]:
    """Go through the parameters at the saved times."""
    for row in range(n_times):
        yield at(leaves, constant, row)


def integral(times: Float[np.ndarray, " T"], values: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "T ..."]:
    """Integrate a smooth function over time, from the first time to each, by its cubic spline."""
    from scipy.interpolate import CubicSpline

    return np.asarray(CubicSpline(times, values).antiderivative()(times))
