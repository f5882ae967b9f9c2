"""Observers of the spectrum along a run, each warm-started from the last saved time."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import trees
from ..problem import AbstractProblem
from ..trees import PyTree
from ._spectrum import ExtremeEigenvalues, ends_of_spectrum, start_direction


def _no_direction(params: PyTree) -> PyTree:
    """Make the state before the first saved time, from which a warm start is noise."""
    return jax.tree.map(jnp.zeros_like, eqx.filter(trees.as_coordinates(params), eqx.is_inexact_array))


def _evaluate(
    problem: AbstractProblem, params: PyTree, state: PyTree, ends: tuple[bool, bool], tolerance: float, limit: int
) -> tuple[ExtremeEigenvalues, PyTree]:
    """Compute the ends that are asked for, NaN where the curvature is, and the sum of their eigenvectors."""
    found = ends_of_spectrum(
        problem,
        params,
        start_direction(state, params),
        None,
        jnp.zeros(()),
        jnp.asarray(tolerance),
        jax.random.key(0),
        k=1,
        ends=ends,
        dimension=40,
        max_products=jnp.asarray(limit),
    )
    return found, _sum(found.vectors, ends)


@partial(jax.jit, static_argnames="ends")
def _sum(vectors: PyTree, ends: tuple[bool, bool]) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.sum(leaf[np.flatnonzero(ends), 0], axis=0), vectors)


class _WarmStarted(eqx.Module):
    """What observers of the spectrum share: their accuracy, and the direction that the next evaluation starts from."""

    tolerance: float = eqx.field(static=True, default=1e-3)
    max_products: int = eqx.field(static=True, default=400)

    def init(self, problem: AbstractProblem, params: PyTree) -> PyTree:  # noqa: ARG002
        """Make the state before the first saved time."""
        return _no_direction(params)


class Sharpness(_WarmStarted):
    """An observer of the largest Hessian eigenvalue, for `observe=` of `integrate` and `descend`.

    Each evaluation starts from the eigenvector of the last saved time and ends at the residual `tolerance`·max|λ|, or
    when `max_products` are spent. The value is NaN where the curvature is. Compare it with 2/step size by `stability`:
    above that line gradient descent cannot follow the flow (Elkabetz and Cohen, arXiv 2107.06608).

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([2.0]), jnp.array([0.0]))
    >>> observe = {"sharpness": fb.curvature.Sharpness()}
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=0.1, steps=2, observe=observe)
    >>> print(run.observed["sharpness"])
    [4. 4. 4.]

    ```
    """

    def update(
        self,
        problem: AbstractProblem,
        params: PyTree,
        time: float,  # noqa: ARG002
        state: PyTree,
    ) -> tuple[Float[Array, ""], PyTree]:
        """Compute the sharpness and the vector that the next evaluation starts from."""
        found, state = _evaluate(problem, params, state, (False, True), self.tolerance, self.max_products)
        return found.largest[0], state


class Spectrum(_WarmStarted):
    """An observer of both ends of the Hessian's spectrum: (2, 2) at each saved time, smallest first, then largest.

    Each row holds a Ritz value and its residual |∇²C v − λ v|, NaN where the curvature is; see `extreme_eigenvalues`
    for what they prove. Each evaluation starts from the eigenvectors of the last saved time.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w * x, jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)))
    >>> observe = {"spectrum": fb.curvature.Spectrum()}
    >>> run = fb.descend(problem, fb.GradientFlow(), jnp.ones(2), step_size=0.1, steps=2, observe=observe)
    >>> print(run.observed["spectrum"][:, :, 0].round(3))
    [[1. 4.]
     [1. 4.]
     [1. 4.]]

    ```
    """

    def update(
        self,
        problem: AbstractProblem,
        params: PyTree,
        time: float,  # noqa: ARG002
        state: PyTree,
    ) -> tuple[Float[Array, "2 2"], PyTree]:
        """Compute both ends, and the vector that the next evaluation starts from."""
        found, state = _evaluate(problem, params, state, (True, True), self.tolerance, self.max_products)
        values = jnp.stack([found.smallest, found.largest])
        return jnp.concatenate([values, found.residuals], axis=1), state
