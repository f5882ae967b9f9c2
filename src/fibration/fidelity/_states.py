"""The saved states of a trajectory, one at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ParameterError
from ..solvers import Trajectory
from ..solvers._trajectory import is_saved
from ..trees import PyTree


def saved_matrix(trajectory: Trajectory) -> np.ndarray:
    """Ravel the saved parameters into a matrix (T, K); raise `ParameterError` if only the last were kept."""
    count = len(trajectory.times)
    leaves = [leaf for leaf in jax.tree.leaves(trajectory.params) if is_saved(leaf)]
    if any(leaf.shape[0] != count for leaf in leaves):
        raise ParameterError(
            "a trajectory that kept its last parameters only",
            "the parameters at every saved time",
            'run it with `options=fb.Options(save="all")`, the default',
        )
    return np.concatenate([leaf.reshape(count, -1) for leaf in leaves], axis=1)


def state_at(trajectory: Trajectory, index: int) -> PyTree:
    """Give the whole parameters, constant leaves and all, at one saved time."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]) if is_saved(leaf) else leaf, trajectory.params)


def check_real(matrix: np.ndarray, what: str) -> None:
    """Raise `ParameterError` for complex parameters, over which the Hessian is no symmetric matrix."""
    if np.iscomplexobj(matrix):
        raise ParameterError(
            f"{what} of complex parameters", "real parameters", "write complex parameters as pairs of real ones"
        )


def unit_roundoff(tree: PyTree) -> float:
    """The largest relative error of one rounding among the floating-point leaves."""
    types: list[Any] = [leaf.dtype for leaf in jax.tree.leaves(tree) if is_saved(leaf) or isinstance(leaf, jax.Array)]
    return max(float(jnp.finfo(t).eps) / 2 for t in types if jnp.issubdtype(t, jnp.inexact))
