"""Closed-form bounds of the Hessian of deep linear networks and of networks with homogeneous activations."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ..errors import ParameterError
from ..losses import SquaredError
from ..problem import AbstractProblem, Problem
from ..trees import PyTree, is_traced
from ._layers import (
    as_layers,
    as_matrices,
    augmented,
    blocks_of,
    check_model,
    model_error,
    output_gradient,
    relative_error,
    rows_of,
    sample_smoothness,
    slopes_of,
)


class HessianBound(NamedTuple):
    """A lower bound of the Hessian's smallest eigenvalue, and what it was computed from.

    `value` (): the bound, −`gradient_norm` · λ_max(P), where P_jk = Π_{i≠j,k} `layer_norms`_i off the diagonal and 0
    on it; `crude_value` (): −(n − 1) · `gradient_norm` · max P, below it; `gradient_norm` (): the size of the cost's
    gradient with respect to the network's map; `layer_norms` (n,): the spectral norms, plus the radius.
    """

    value: Float[Array, ""]
    crude_value: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    layer_norms: Float[Array, " n"]


class DeepLinearTube(NamedTuple):
    """What holds at every point of a ball of parameters of a deep linear network with squared error.

    `smallest_eigenvalue` () ≤ λ_min(∇²C); `largest_eigenvalue` () ≥ λ_max(∇²C); `hessian_lipschitz` () ≥
    |∇²C(p) − ∇²C(q)|/|p − q|; `gradient_norm` () ≥ |∇C|; `layer_norms` (n,): the spectral norms plus the radius.
    """

    smallest_eigenvalue: Float[Array, ""]
    largest_eigenvalue: Float[Array, ""]
    hessian_lipschitz: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    layer_norms: Float[Array, " n"]


def deep_linear_lower_bound(
    problem: AbstractProblem, Ws: PyTree, *, radius: float | Real[Array, ""] = 0.0, smoothness: float | None = None
) -> HessianBound:
    """Bound the smallest Hessian eigenvalue of a deep linear network from below, in closed form.

    With W = W_n … W_1, C(θ) = φ(W), Φ = ∇φ(W), spectral norms p_j = ‖W_j‖ and P_jk = Π_{i≠j,k} p_i (j ≠ k), P_jj = 0,

        λ_min(∇²C(θ)) ≥ −‖Φ‖ λ_max(P) ≥ −(n − 1) ‖Φ‖ max_{j≠k} P_jk.

    **Arguments:**

    - `problem`: a `Problem` of a deep linear network, or a stack of them, with a loss that is convex in the outputs, as
      `SquaredError` and `CrossEntropy` are.
    - `Ws`: a list of the matrices W_j (d_j, d_{j−1}), W_1 first.
    - `radius`: the bound holds at every θ' with |θ' − θ| ≤ `radius`; p_j is then ‖W_j‖ + `radius`, and ‖Φ‖ is bounded
      on the ball by its value plus λ_max(Σᵢ wᵢ Lᵢ xᵢxᵢᵀ/N) times how far W can move.
    - `smoothness`: with a radius and a loss of your own, a bound L of the eigenvalues of its Hessian in one sample's
      outputs; 1 for `SquaredError` and 1/2 for `CrossEntropy`.

    **Returns:** a `HessianBound`, whose `gradient_norm` is ‖Φ‖.

    **Raises:** `ParameterError` if the problem's outputs are not W_n … W_1 x, or for a negative radius; `ShapeError`.

    **Source:** Elkabetz and Cohen (arXiv 2107.06608) bound λ_min by (n − 1), the Frobenius norm of Φ and the largest
    product of n − 2 layer norms; λ_max(P) and the spectral norm are derived here, from
    ∇²C[Δ,Δ] = ∇²φ[W′,W′] + 2 Σ_{j<k} ⟨Φ, W_n…W_{k+1} Δ_k W_{k−1}…W_{j+1} Δ_j W_{j−1}…W_1⟩ and ⟨Φ, M⟩ ≤ ‖Φ‖ times the
    nuclear norm of M. The first bound is an equality for n = 3, W_1 = 0, W_3 = 0, W_2 = cI, where λ_min = −c‖Φ‖; so
    there is no bound over all parameters.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> network, _ = fb.networks.deep_linear((1, 1, 1, 1), key=jax.random.key(0))
    >>> problem = fb.Problem(network, jnp.array([[1.0]]), jnp.array([[2.0]]))
    >>> bound = fb.curvature.deep_linear_lower_bound(problem, [jnp.zeros((1, 1)), 5 * jnp.eye(1), jnp.zeros((1, 1))])
    >>> print(bound.value, bound.crude_value)  # the Hessian's eigenvalues are −10, 0 and 10
    -10.0 -20.0

    ```
    """
    matrices = as_matrices(Ws)
    bound, error = _linear_bound(blocks_of(problem, matrices), matrices, _radius(radius), smoothness)
    check_model(error, "W_n … W_1 x with the matrices in `Ws`, W_1 first")
    return bound


def homogeneous_lower_bound(
    problem: AbstractProblem,
    params: PyTree,
    *,
    slopes: tuple[float, float] | None = None,
    radius: float | Real[Array, ""] = 0.0,
    smoothness: float | None = None,
) -> HessianBound:
    """Bound the smallest Hessian eigenvalue of a network with a homogeneous activation from below, in closed form.

    For σ(z) = α max(z, 0) − ᾱ max(−z, 0) between n layers without biases, c = max(|α|, |ᾱ|), p_j = ‖W_j‖ (spectral),
    P_jk = Π_{i≠j,k} p_i (j ≠ k), P_jj = 0 and S = (1/N) Σᵢ wᵢ |∇ℓᵢ| |xᵢ|, wherever C is twice differentiable

        λ_min(∇²C(θ)) ≥ −c^{n−1} S λ_max(P) ≥ −(n − 1) c^{n−1} S max_{j≠k} P_jk.

    With biases, a 1 is carried through the network: xᵢ becomes (xᵢ, 1), c becomes max(c, 1), p_j the norm of
    [[W_j, b_j], [0, 1]], and p_n that of [W_n, b_n]. At kinks, where a unit's input is 0, nothing is said.

    **Arguments:**

    - `problem`: a `Problem` with a loss that is convex in the outputs, or a stack of them.
    - `params`: what `networks.mlp` returns, a list of {"weight": W_j, "bias": b_j}; or a list of matrices.
    - `slopes`: (α, ᾱ), the derivatives of σ right and left of 0; known for relu (1, 0), leaky_relu (1, 0.01) and linear
      (1, 1) of `networks.mlp`, and needed for a network of your own.
    - `radius`, `smoothness`: as for `deep_linear_lower_bound`; S grows by c^{n−1} Σᵢ wᵢ Lᵢ |xᵢ|²/N times how far
      the product of the layers can move.

    **Returns:** a `HessianBound`, whose `gradient_norm` is c^{n−1} S.

    **Raises:** `ParameterError` for an activation that is not homogeneous (tanh, gelu and sin bend everywhere: use
    `extreme_eigenvalues`), or if the problem's outputs are not that network's; `ShapeError`.

    **Source:** derived; of the shape of the bound of Elkabetz and Cohen (arXiv 2107.06608) for homogeneous networks.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> network, params = fb.networks.mlp((3, 4, 1), "relu", key=jax.random.key(0), bias=False)
    >>> problem = fb.Problem(network, jnp.eye(3), jnp.zeros((3, 1)))
    >>> bound = fb.curvature.homogeneous_lower_bound(problem, params)
    >>> bool(bound.value == bound.crude_value == -bound.gradient_norm)  # as always for two layers
    True

    ```
    """
    layers, ball = as_layers(params), _radius(radius)
    blocks = blocks_of(problem, params)
    chosen = {slopes_of(block, slopes) for block in blocks}
    largest = max(abs(slope) for pair in chosen for slope in pair)
    errors = [model_error(block, params, layers, slopes_of(block, slopes)) for block in blocks]
    check_model(jnp.max(jnp.stack(errors)), "the network's with these weights, biases and slopes")
    return _homogeneous_bound(blocks, params, layers, largest, ball, smoothness)


def deep_linear_tube(problem: AbstractProblem, Ws: PyTree, radius: float | Real[Array, ""]) -> DeepLinearTube:
    """Bound the curvature, its rate of change and the gradient of a deep linear network on a ball, for squared error.

    On |θ' − θ| ≤ r put p_j = ‖W_j‖ + r (spectral norms), λ_x = λ_max(Σᵢ wᵢ xᵢxᵢᵀ/N), Φ = ∇φ(W) at the centre,
    J = (Σ_j Π_{i≠j} p_i²)^{1/2}, P as for `deep_linear_lower_bound`, p_(3) the largest product of n − 3 of the p_j
    (0 for n < 3), D = min(Π p_j − Π ‖W_j‖, J r), which bounds ‖W' − W‖, and G = ‖Φ‖ + λ_x D. Then

        λ_min(∇²C) ≥ −G λ_max(P),                              λ_max(∇²C) ≤ λ_x J² + G λ_max(P),
        ‖∇²C(p) − ∇²C(q)‖ ≤ (3 λ_x J λ_max(P) + G (n − 1)(n − 2) n^{−1/2} p_(3)) |p − q|,
        |∇C| ≤ (‖Φ‖_F + λ_x D) J,   where the Frobenius norm is needed.

    **Arguments:** `problem`: a `Problem` of a deep linear network with `SquaredError`, or a stack of them; `Ws`: a list
    of the W_j (d_j, d_{j−1}), W_1 first; `radius`: r ≥ 0.

    **Returns:** a `DeepLinearTube`; exact bounds, up to the rounding of the floating-point type.

    **Raises:** `ParameterError` for another loss or a network that is not linear; `ShapeError`.

    **Source:** derived, from the derivatives of φ(W(θ)) along a line: φ is quadratic, ‖W′‖_F ≤ J, ‖W″‖_F ≤ λ_max(P) and
    ‖W‴‖_nuclear ≤ 6 C(n, 3) n^{−3/2} p_(3) for a unit direction; a symmetric trilinear form has its norm on the
    diagonal (Banach 1938).

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> network, _ = fb.networks.deep_linear((1, 1, 1), key=jax.random.key(0))
    >>> problem = fb.Problem(network, jnp.array([[1.0]]), jnp.array([[0.0]]))
    >>> tube = fb.curvature.deep_linear_tube(problem, [jnp.eye(1), jnp.eye(1)], 0.0)
    >>> print(tube.smallest_eigenvalue, tube.largest_eigenvalue)  # C = (w₁w₂)²/2 at (1, 1): ∇²C = [[1, 2], [2, 1]]
    -1.0 3.0

    ```
    """
    matrices = as_matrices(Ws)
    blocks = blocks_of(problem, matrices)
    for block in blocks:
        if type(block.loss) is not SquaredError:
            raise ParameterError(
                f"the loss is {type(block.loss).__name__}",
                "SquaredError, for which the cost is quadratic in the end-to-end matrix",
                "use `deep_linear_lower_bound`, which takes every convex loss",
            )
    ball = _radius(radius)
    tube, error = _tube(blocks, matrices, jnp.zeros(()) if ball is None else ball)
    check_model(error, "W_n … W_1 x with the matrices in `Ws`, W_1 first")
    return tube


@eqx.filter_jit
def _linear_bound(
    blocks: tuple[Problem, ...], matrices: list[Array], radius: Array | None, smoothness: float | None
) -> tuple[HessianBound, Array]:
    gradient, error = _end_to_end_gradient(blocks, matrices)
    norms = _norms(matrices)
    slope = jnp.linalg.norm(gradient, 2)
    if radius is not None:
        slope = slope + _input_curvature(blocks, smoothness) * _displacement(norms, radius)
        norms = norms + radius
    return _bound(slope, norms), error


@eqx.filter_jit
def _homogeneous_bound(
    blocks: tuple[Problem, ...],
    params: PyTree,
    layers: list[tuple[Array, Array | None]],
    largest_slope: float,
    radius: Array | None,
    smoothness: float | None,
) -> HessianBound:
    biased = any(bias is not None for _, bias in layers)
    norms = _norms(
        [augmented(*layer, last=k == len(layers) - 1) if biased else layer[0] for k, layer in enumerate(layers)]
    )
    factor = (max(largest_slope, 1.0) if biased else largest_slope) ** (len(layers) - 1)
    slope = jnp.zeros(())
    for block in blocks:
        sizes = jnp.sqrt(jnp.sum(rows_of(block) ** 2, axis=1) + biased)
        # The gradient of the mean, (1/N) wᵢ ∇ℓᵢ, row by row.
        slope = slope + jnp.sum(jnp.linalg.norm(output_gradient(block, params), axis=1) * sizes)
        if radius is not None:
            moved = factor * _displacement(norms, radius)
            slope = slope + moved * jnp.mean(sample_smoothness(block, smoothness) * sizes**2)
    return _bound(factor * slope, norms if radius is None else norms + radius)


@eqx.filter_jit
def _tube(blocks: tuple[Problem, ...], matrices: list[Array], radius: Array) -> tuple[DeepLinearTube, Array]:
    gradient, error = _end_to_end_gradient(blocks, matrices)
    centre = _norms(matrices)
    norms, depth = centre + radius, len(matrices)
    growth, moved = _input_curvature(blocks, None), _displacement(centre, radius)
    slope, jacobian = jnp.linalg.norm(gradient, 2) + growth * moved, _jacobian_norm(norms)
    coupling = jnp.linalg.eigvalsh(_coupling(norms))[-1]
    triple = jnp.prod(jnp.sort(norms)[3:]) if depth >= 3 else jnp.zeros(())
    tube = DeepLinearTube(
        smallest_eigenvalue=-slope * coupling,
        largest_eigenvalue=growth * jacobian**2 + slope * coupling,
        hessian_lipschitz=3 * growth * jacobian * coupling + slope * (depth - 1) * (depth - 2) / depth**0.5 * triple,
        gradient_norm=(jnp.linalg.norm(gradient) + growth * moved) * jacobian,
        layer_norms=norms,
    )
    return tube, error


def _bound(slope: Array, norms: Array) -> HessianBound:
    coupling = _coupling(norms)
    value = -slope * jnp.linalg.eigvalsh(coupling)[-1]
    crude = -slope * (len(norms) - 1) * jnp.max(coupling)
    # Equal for two layers, where rounding must not put one on the wrong side of the other.
    return HessianBound(value, jnp.minimum(crude, value), slope, norms)


def _norms(matrices: list[Array]) -> Array:
    return jnp.stack([jnp.linalg.norm(matrix, 2) for matrix in matrices])


def _coupling(norms: Array) -> Array:
    """Compute P: off the diagonal the product of all norms but two, on it zero."""
    n = len(norms)
    left_out = np.eye(n, dtype=bool)
    kept = ~(left_out[:, None, :] | left_out[None, :, :])
    return jnp.where(left_out, 0.0, jnp.prod(jnp.where(kept, norms, 1.0), axis=-1))


def _jacobian_norm(norms: Array) -> Array:
    """Bound the Frobenius norm of the derivative of W_n … W_1 along a unit direction."""
    others = jnp.prod(jnp.where(np.eye(len(norms), dtype=bool), 1.0, norms), axis=-1)
    return jnp.linalg.norm(others)


def _displacement(norms: Array, radius: Array) -> Array:
    """Bound how far W_n … W_1 moves, in the Frobenius norm, when the parameters move by `radius`."""
    product = jnp.prod(norms + radius) - jnp.prod(norms)
    return jnp.minimum(product, _jacobian_norm(norms + radius) * radius)


def _end_to_end_gradient(blocks: tuple[Problem, ...], matrices: list[Array]) -> tuple[Array, Array]:
    """Compute Φ, and how far the problem's outputs are from those of a deep linear network."""
    gradient, errors = jnp.zeros(()), []
    for block in blocks:
        inputs = rows_of(block)
        gradient = gradient + output_gradient(block, matrices).T @ inputs
        errors.append(relative_error(block.outputs(matrices), inputs, [(m, None) for m in matrices], (1.0, 1.0)))
    return gradient, jnp.max(jnp.stack(errors))


def _input_curvature(blocks: tuple[Problem, ...], smoothness: float | None) -> Array:
    total = jnp.zeros(())
    for block in blocks:
        inputs = rows_of(block)
        weighted = sample_smoothness(block, smoothness)[:, None] * inputs
        total = total + jnp.linalg.norm(weighted.T @ inputs, 2) / block.n_samples
    return total


def _radius(radius: Any) -> Array | None:
    """Check a radius; `None` stands for a bound at the point itself, which needs less."""
    if is_traced(radius):
        return radius
    if not (np.isfinite(float(radius)) and float(radius) >= 0):
        raise ParameterError(f"radius = {radius}", "a finite radius of 0 or more", "pass radius=0 for the point itself")
    return jnp.asarray(float(radius)) if radius > 0 else None
