"""Networks of dense layers as lists of matrices: reading them from a problem, and checking that it is theirs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._validation import check_chain
from ..errors import ParameterError, ShapeError
from ..losses import CrossEntropy, SquaredError
from ..networks import MLP, DeepLinear
from ..problem import AbstractProblem, Problem, StackedProblem
from ..trees import PyTree, is_traced

# σ'(z) for z > 0 and for z < 0, of the activations of `networks` with σ(az) = aσ(z) for a > 0.
_SLOPES = {"relu": (1.0, 0.0), "leaky_relu": (1.0, 0.01), "linear": (1.0, 1.0)}


def output_gradient(block: Problem, params: PyTree) -> Array:
    """Compute the gradient of the block's cost with respect to its outputs, (N, Q)."""

    def cost(outputs: Array) -> Array:
        costs = block.loss.per_sample(outputs, block.targets)
        return jnp.mean(costs if block.weights is None else block.weights * costs)

    return jax.grad(cost)(block.outputs(params))


def sample_smoothness(block: Problem, smoothness: float | None) -> Array:
    """Bound the largest eigenvalue of the Hessian of wᵢ ℓᵢ in the outputs, for each sample, (N,)."""
    if smoothness is not None:
        bounds = jnp.full(block.n_samples, smoothness)
    elif type(block.loss) is SquaredError:
        bounds = jnp.ones(block.n_samples)
    elif type(block.loss) is CrossEntropy:
        # λ_max(diag p − ppᵀ) ≤ 1/2 (Böhning 1992), times the sample's total mass.
        mass = 1.0 if block.targets.ndim == 1 else jnp.sum(block.targets, axis=1)
        bounds = 0.5 * mass * jnp.ones(block.n_samples)
    else:
        raise ParameterError(
            f"a radius with the loss {type(block.loss).__name__}, whose curvature is not known",
            "a bound of the eigenvalues of its Hessian in one sample's outputs",
            "pass `smoothness=`, or radius=0 for a bound at the point itself",
        )
    return bounds if block.weights is None else block.weights * bounds


def augmented(weight: Array, bias: Array | None, *, last: bool) -> Array:
    """Build [[W, b], [0, 1]], which carries the 1 that biases multiply; the last layer need not pass it on."""
    column = jnp.zeros((weight.shape[0], 1)) if bias is None else bias[:, None]
    top = jnp.concatenate([weight, column], axis=1)
    if last:
        return top
    return jnp.concatenate([top, jnp.zeros((1, top.shape[1])).at[0, -1].set(1.0)])


@eqx.filter_jit
def model_error(
    block: Problem, params: PyTree, layers: list[tuple[Array, Array | None]], slopes: tuple[float, float]
) -> Array:
    """Compare the problem's outputs with those of the network that a bound is for; see `relative_error`."""
    return relative_error(block.outputs(params), rows_of(block), layers, slopes)


def relative_error(
    outputs: Array, rows: Array, layers: list[tuple[Array, Array | None]], slopes: tuple[float, float]
) -> Array:
    """Compare outputs with those of the network that a bound is for, relative to what rounding can do."""
    scale = jnp.max(jnp.sum(jnp.abs(rows), axis=1))
    for number, (weight, bias) in enumerate(layers):
        if number:
            rows = slopes[0] * jnp.maximum(rows, 0) - slopes[1] * jnp.maximum(-rows, 0)
        rows = rows @ weight.T + (0.0 if bias is None else bias)
        scale = scale * max(1.0, *map(abs, slopes)) * jnp.max(jnp.sum(jnp.abs(weight), axis=1)) + (
            0.0 if bias is None else jnp.max(jnp.abs(bias))
        )
    if outputs.shape != rows.shape:
        return jnp.asarray(jnp.inf)
    rounding = 1e3 * len(layers) * jnp.finfo(outputs.dtype).eps * scale
    return jnp.max(jnp.abs(outputs - rows)) / jnp.maximum(rounding, jnp.finfo(outputs.dtype).tiny)


def rows_of(block: Problem) -> Array:
    """Ravel every sample into a row, (N, d_0)."""
    return block.inputs.reshape(block.n_samples, -1)


def blocks_of(problem: AbstractProblem, params: PyTree) -> tuple[Problem, ...]:
    """List the blocks of data of a problem, checked against the parameters."""
    if isinstance(problem, StackedProblem):
        return tuple(block for part in problem.problems for block in blocks_of(part, params))
    if not isinstance(problem, Problem):
        raise ParameterError(
            f"problem is {type(problem).__name__}",
            "an fb.Problem or a stack of them, whose loss and data are known",
            "build it first: `fb.Problem(apply, inputs, targets)`",
        )
    problem.check(params)
    return (problem,)


def as_matrices(Ws: PyTree) -> list[Array]:
    """Check that parameters are matrices that can be multiplied, W_1 first."""
    if not isinstance(Ws, list | tuple) or not Ws or any(np.ndim(matrix) != 2 for matrix in Ws):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(Ws)]
        raise ShapeError(
            f"parameters with leaves of shapes {shapes}",
            "a list of matrices, W_1 first",
            "pass the list that `networks.deep_linear` returns",
        )
    matrices = [jnp.asarray(matrix) for matrix in Ws]
    check_chain(matrices)
    return matrices


def as_layers(params: PyTree) -> list[tuple[Array, Array | None]]:
    """Read the layers of `networks.mlp`, or plain matrices, as pairs of a weight and a bias."""
    if isinstance(params, list | tuple) and all(
        isinstance(layer, dict) and "weight" in layer and set(layer) <= {"weight", "bias"} for layer in params
    ):
        weights = as_matrices([layer["weight"] for layer in params])
        return [(weight, layer.get("bias")) for weight, layer in zip(weights, params, strict=True)]
    return [(weight, None) for weight in as_matrices(params)]


def slopes_of(block: Problem, slopes: tuple[float, float] | None) -> tuple[float, float]:
    """Find the slopes of a problem's activation; those that are given are checked against its outputs later."""
    if slopes is not None:
        return (float(slopes[0]), float(slopes[1]))
    if isinstance(block.apply, DeepLinear):
        return (1.0, 1.0)
    if not isinstance(block.apply, MLP):
        raise ParameterError(
            f"apply is {getattr(block.apply, '__name__', type(block.apply).__name__)}, whose activation is not known",
            "the slopes of a homogeneous activation right and left of 0",
            "pass `slopes=`, such as (1.0, 0.0) for relu",
        )
    if block.apply.activation not in _SLOPES:
        raise ParameterError(
            f"the activation is {block.apply.activation}, for which σ(az) = aσ(z) for a > 0 fails",
            f"a homogeneous activation, one of {', '.join(sorted(_SLOPES))}",
            "compute the spectrum itself, which `extreme_eigenvalues` does for every network",
        )
    return _SLOPES[block.apply.activation]


def check_model(error: Array, what: str) -> None:
    """Refuse a bound whose network is not the problem's; inside a transformation nothing can be checked."""
    if not is_traced(error) and not float(error) <= 1:
        raise ParameterError(
            "the problem's outputs are not those of the network that the bound is for",
            what,
            "pass the parameters in the order in which they act, and a problem of that network",
        )
