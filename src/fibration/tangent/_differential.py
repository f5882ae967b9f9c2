"""The differential of the map from parameters to outputs: products, the Jacobian, and the Gram matrix."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float

from .. import _sharding, trees
from ..errors import EmptyDataError, ParameterError, ShapeError
from ..problem import AbstractProblem, Problem, StackedProblem, mesh_of
from ..trees import PyTree
from ._gram import gram_matrix


class Linearised(eqx.Module):
    """The outputs at θ, and the products with D and its transpose, which share one evaluation of the network."""

    value: Float[Array, " M"]
    jvp: Callable[[PyTree], Float[Array, " M"]]
    vjp: Callable[[Float[Array, " M"]], PyTree]


class Differential(eqx.Module):
    """The differential D = ∂x/∂θ of a problem's outputs x at θ, a linear map from tangent vectors to R^M, M = N·Q.

    Rows are sample-major, those of several blocks one after the other; columns are in the order of `ravel_pytree`. With
    `scaled`, row i of a block has the factor √(wᵢ/N), so that D is the differential of `problem.residuals`.
    """

    problem: AbstractProblem
    params: PyTree
    constant: PyTree
    scaled: bool = eqx.field(static=True)

    def __init__(self, problem: AbstractProblem, params: PyTree, *, scaled: bool = False) -> None:
        self.problem, self.scaled = problem, scaled
        self.params, self.constant = eqx.partition(trees.as_coordinates(params), eqx.is_inexact_array)
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(self.params)):
            raise ParameterError(
                "parameters are complex", "real parameters for a differential", "split them in real and imaginary parts"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers M of outputs and K of parameters."""
        return self.problem.n_residuals, trees.size(self.params)

    @property
    def blocks(self) -> tuple[Problem, ...]:
        """The problem's blocks of data."""
        return blocks_of(self.problem)

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that the rows are divided over, or `None`."""
        return mesh_of(self.problem)

    def row_scales(self) -> Float[Array, " M"] | None:
        """The factors √(wᵢ/N) of the rows, or `None` if they are not scaled."""
        return jnp.concatenate([row_scale(block) for block in self.blocks]) if self.scaled else None

    def outputs(self, state: PyTree) -> Float[Array, " M"]:
        """Compute the vector of outputs, scaled like the rows, as a function of the floating-point leaves."""
        params = eqx.combine(state, self.constant)
        values = jnp.concatenate([block.outputs(params).reshape(-1) for block in self.blocks])
        scales = self.row_scales()
        return values if scales is None else scales * values

    def linearised(self) -> Linearised:
        """Evaluate the outputs once, and give them with the products with D and Dᵀ."""
        value, jvp = jax.linearize(self.outputs, self.params)
        transpose = jax.linear_transpose(jvp, self.params)
        return Linearised(value, jvp, lambda cotangent: transpose(cotangent)[0])

    def jacobian(self) -> Float[Array, "M K"]:
        """Compute the matrix D; M·K numbers, divided over the devices by rows."""
        parts: list[Array] = []
        for block in self.blocks:
            rows = _jacobian_of_samples(block, self.params, self.constant)
            parts.append(rows.reshape(-1, rows.shape[-1]))
        matrix = jnp.concatenate(parts)
        scales = self.row_scales()
        return _sharding.by_rows(matrix if scales is None else scales[:, None] * matrix, self.mesh)

    def gram(self, method: str = "auto") -> Float[Array, "M M"]:
        """Compute D Dᵀ; see `fibration.tangent.gram`."""
        return gram_matrix(self, method)

    def unravel(self, vector: Float[Array, " K"]) -> PyTree:
        """Cut a vector of K numbers into a pytree like the parameters."""
        return ravel_pytree(self.params)[1](vector)

    def flat(self, values: Any) -> Float[Array, " M"]:
        """Join values shaped like `problem.outputs`, (N, Q) or a tuple of them, or already (M,), in one vector."""
        parts = [jnp.asarray(part) for part in (values if isinstance(values, tuple | list) else [values])]
        vector = jnp.concatenate([part.reshape(-1) for part in parts])
        if vector.shape != (self.shape[0],):
            raise ShapeError(
                f"output vectors have shapes {[part.shape for part in parts]}",
                f"{self.shape[0]} numbers, shaped like `problem.outputs(params)`",
                "give one number for each sample and output",
            )
        return vector

    def unflat(self, vector: Float[Array, " M"]) -> Any:
        """Cut a vector of M numbers into the shapes of `problem.outputs`."""
        parts, start = [], 0
        for block in self.blocks:
            parts.append(vector[start : start + block.n_residuals].reshape(block.n_samples, block.n_outputs))
            start += block.n_residuals
        return tuple(parts) if isinstance(self.problem, StackedProblem) else parts[0]


def checked(problem: Any, params: PyTree) -> Differential:
    """Make the differential of a user's problem and parameters, or say what is wrong with them."""
    if not isinstance(problem, AbstractProblem):
        raise ParameterError(
            f"problem is {type(problem).__name__}", "an fb.Problem", "build it: `fb.Problem(apply, inputs, targets)`"
        )
    problem.check(params)
    differential = Differential(problem, params)
    if not all(differential.shape):
        raise EmptyDataError(
            "there are {} outputs and {} parameters".format(*differential.shape),
            "at least one of each",
            "check the shapes of the targets and of the parameters' leaves",
        )
    return differential


def blocks_of(problem: AbstractProblem) -> tuple[Problem, ...]:
    """List the blocks of data of a problem, in the order of its residuals."""
    if isinstance(problem, Problem):
        return (problem,)
    if isinstance(problem, StackedProblem):
        return tuple(block for part in problem.problems for block in blocks_of(part))
    raise ParameterError(
        f"the problem is a {type(problem).__name__}",
        "an fb.Problem, or several joined by fb.stack",
        "give the outputs of one sample as `apply`: the differential is taken sample by sample",
    )


def row_scale(block: Problem) -> Float[Array, " M"]:
    """Give √(wᵢ/N) for each output of each sample of a block."""
    weights = jnp.ones(block.n_samples) if block.weights is None else block.weights
    return jnp.repeat(jnp.sqrt(weights / block.n_samples), block.n_outputs)


def _jacobian_of_samples(block: Problem, params: PyTree, constant: PyTree) -> Float[Array, "N Q K"]:
    """Compute every sample's own Jacobian."""
    jacobians = Partial(_jacobians, block.apply, block.n_outputs, params, constant)
    rows = _sharding.each_own(jacobians, block.mesh)(block._inputs)
    return rows[: block.n_samples] if block._repeated else rows


def _jacobians(apply: Any, n_outputs: int, params: PyTree, constant: PyTree, inputs: Array) -> Float[Array, "n Q K"]:
    """Compute Jacobians by rows, or by columns if there are fewer parameters than outputs."""
    flat, unravel = ravel_pytree(params)

    def one(x: Array) -> Array:
        def outputs(vector: Array) -> Array:
            return jnp.atleast_1d(apply(eqx.combine(unravel(vector), constant), x))

        return (jax.jacfwd if flat.size < n_outputs else jax.jacrev)(outputs)(flat)

    return jax.vmap(one)(inputs)


def operator(problem: AbstractProblem, params: PyTree) -> lineax.AbstractLinearOperator:
    """Make the differential D a matrix-free `lineax` operator, from pytrees like `params` to outputs.

    **Arguments:** `params`: a pytree whose floating-point leaves, real, are the K parameters.

    **Returns:** a linear operator whose `mv` is a Jacobian–vector product, one forward pass, and whose `transpose().mv`
    is a vector–Jacobian product, one backward pass. Its output has the shape of `problem.outputs(params)`.

    **Raises:** `ApplyError`, `ParameterError`. Nothing is computed before the first product; no matrix is formed.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.eye(2), jnp.zeros((2, 1)))
    >>> D = fb.tangent.operator(problem, jnp.ones((1, 2)))
    >>> print(D.mv(jnp.array([[3.0, 4.0]])).ravel())
    [3. 4.]

    ```
    """
    differential = checked(problem, params)
    shape = jax.eval_shape(lambda tree: tree, differential.params)

    def product(tangent: PyTree) -> Any:
        outputs = functools.partial(_outputs, problem, differential.constant)
        return jax.jvp(outputs, (differential.params,), (tangent,))[1]

    return lineax.FunctionLinearOperator(product, shape)


def _outputs(problem: AbstractProblem, constant: PyTree, state: PyTree) -> Any:
    return problem.outputs(eqx.combine(state, constant))


def jacobian(problem: AbstractProblem, params: PyTree) -> Float[Array, "M K"]:
    """Compute the Jacobian matrix D = ∂x/∂θ of the outputs of all samples, (N·Q, K).

    **Arguments:** `params`: a pytree whose floating-point leaves, real, are the K parameters.

    **Returns:** rows sample-major (row n·Q + q is the gradient of output q of sample n), blocks of a stacked problem
    one after the other; columns in the order of `jax.flatten_util.ravel_pytree`.

    **Raises:** `ApplyError`, `ParameterError`.

    Every sample is differentiated by itself, so that it costs Q backward passes of the whole batch (or K forward ones,
    if that is fewer), and not N·Q. Allocates N·Q·K numbers: `gram` and `operator` do not. With a mesh each device has
    the rows of its own samples; if N·Q cannot be so divided, the matrix is returned whole to every device.

    **Source:** Chen and Muñoz Ewald, arXiv 2408.01517, section 2.

    ```python
    >>> import jax.numpy as jnp
    >>> import fibration as fb
    >>> problem = fb.Problem(lambda w, x: w @ x, jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 1)))
    >>> print(fb.tangent.jacobian(problem, jnp.ones((1, 2))))
    [[1. 2.]
     [3. 4.]]

    ```
    """
    return _jacobian(checked(problem, params))


@eqx.filter_jit
def _jacobian(differential: Differential) -> Float[Array, "M K"]:
    return differential.jacobian()
