import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.curvature import deep_linear_lower_bound, deep_linear_tube, homogeneous_lower_bound
from fibration.errors import ApplyError, ParameterError, ShapeError

SEEDS = st.integers(0, 2**31 - 1)
# Each shape is compiled once.
LINEAR = st.sampled_from(
    [((3, 2), None), ((2, 3, 2), fb.CrossEntropy()), ((3, 2, 2, 1), None), ((2, 2, 3, 2, 2), fb.CrossEntropy())]
)
SQUARED = st.sampled_from([(2, 3, 2), (3, 2, 2, 1), (2, 2, 3, 2, 2)])
HOMOGENEOUS = st.sampled_from(
    [
        ((2, 3, 2), "leaky_relu", True, "classes"),
        ((2, 3, 2), "relu", False, None),
        ((2, 3, 3, 2), "relu", True, None),
        ((2, 3, 3, 2), "leaky_relu", False, "classes"),
        ((2, 2, 2, 2, 1), "linear", True, None),
    ]
)


@eqx.filter_jit
def dense_hessian(problem, params):
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda v: problem.cost(unravel(v)))(flat)


@eqx.filter_jit
def third_derivative(problem, params, direction):
    """Differentiate the cost three times along one direction."""

    def line(t):
        return problem.cost(jax.tree.map(lambda p, d: p + t * d, params, direction))

    return jax.grad(jax.grad(jax.grad(line)))(0.0)


@eqx.filter_jit
def third_along(problem, params, direction):
    """The vector D³C[v, v, ·], whose power iteration climbs to the norm of D³C."""

    def slope(p):
        return jax.jvp(lambda q: jax.jvp(problem.cost, (q,), (direction,))[1], (p,), (direction,))[1]

    return jax.grad(slope)(params)


def smallest(problem, params):
    return float(np.linalg.eigvalsh(dense_hessian(problem, params))[0])


def tolerance(problem, params):
    """What rounding can make of an eigenvalue."""
    return 1e-12 * float(np.abs(dense_hessian(problem, params)).max()) + 1e-15


def draw(seed, widths, loss=None, weighted=False):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(5, widths[0]))
    targets = (
        rng.normal(size=(5, widths[-1])) * rng.uniform(0.1, 5) if loss is None else rng.uniform(size=(5, widths[-1]))
    )
    weights = rng.uniform(0, 3, 5) if weighted else np.ones(5)
    network, _ = fb.networks.deep_linear(widths, key=jax.random.key(0))
    Ws = [
        jnp.asarray(rng.uniform(0, 1.5) * rng.normal(size=shape)) for shape in zip(widths[1:], widths[:-1], strict=True)
    ]
    return fb.Problem(network, inputs, targets, loss=loss, weights=weights), Ws, rng


def move(params, radius, rng):
    """A random point of the ball, on its surface or inside, with all of the step in one layer or in all."""
    flat, unravel = ravel_pytree(params)
    step = rng.normal(size=flat.size) * rng.uniform(size=flat.size) ** rng.integers(0, 8)
    return unravel(flat + radius * rng.choice([1.0, rng.uniform()]) * step / np.linalg.norm(step))


@settings(max_examples=60, deadline=None)
@given(SEEDS, LINEAR, st.booleans())
def test_deep_linear_bound_holds_at_random_points(seed, case, weighted):
    problem, Ws, _ = draw(seed, *case, weighted=weighted)
    bound = deep_linear_lower_bound(problem, Ws)
    assert float(bound.crude_value) <= float(bound.value) <= 0
    assert smallest(problem, Ws) >= float(bound.value) - tolerance(problem, Ws)


@settings(max_examples=30, deadline=None)
@given(SEEDS, LINEAR, st.floats(-3, 0.3))
def test_deep_linear_bound_holds_on_the_whole_ball(seed, case, log_radius):
    problem, Ws, rng = draw(seed, *case)
    radius = 10.0**log_radius
    bound = deep_linear_lower_bound(problem, Ws, radius=radius)
    for _ in range(5):
        moved = move(Ws, radius, rng)
        assert smallest(problem, moved) >= float(bound.value) - tolerance(problem, moved)
        here = deep_linear_lower_bound(problem, moved)
        assert float(here.gradient_norm) <= float(bound.gradient_norm) * (1 + 1e-12)
        assert float(here.value) >= float(bound.value) * (1 + 1e-12)


def test_the_gradient_is_with_respect_to_the_end_to_end_matrix():
    problem, Ws, _ = draw(3, (2, 3, 2))
    end_to_end = np.asarray(Ws[1] @ Ws[0])
    phi = (end_to_end @ problem.inputs.T - problem.targets.T) @ problem.inputs / 5
    bound = deep_linear_lower_bound(problem, Ws)
    np.testing.assert_allclose(bound.gradient_norm, np.linalg.norm(phi, 2), rtol=1e-12)
    np.testing.assert_allclose(bound.layer_norms, [np.linalg.norm(W, 2) for W in Ws], rtol=1e-12)
    np.testing.assert_allclose(bound.value, -np.linalg.norm(phi, 2), rtol=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_three_layers_attain_the_bound_and_nothing_bounds_all_parameters(size):
    problem, _, _ = draw(5, (3, 2, 2, 2))
    Ws = [jnp.zeros((2, 3)), size * jnp.eye(2), jnp.zeros((2, 2))]
    bound = deep_linear_lower_bound(problem, Ws)
    np.testing.assert_allclose(smallest(problem, Ws), bound.value, rtol=1e-11)
    np.testing.assert_allclose(bound.value, -size * float(bound.gradient_norm), rtol=1e-12)
    np.testing.assert_allclose(bound.crude_value, 2 * float(bound.value), rtol=1e-12)


@pytest.mark.parametrize("width", [1, 2])
def test_two_balanced_layers_with_one_output_attain_it_if_the_hidden_layer_is_wider_than_one(width):
    rng = np.random.default_rng(0)
    network, Ws = fb.networks.deep_linear((3, width, 1), key=jax.random.key(2), balanced=True)
    problem = fb.Problem(network, rng.normal(size=(6, 3)), rng.normal(size=(6, 1)))
    value, true = float(deep_linear_lower_bound(problem, Ws).value), smallest(problem, Ws)
    assert true >= value - 1e-12
    assert (abs(true / value - 1) < 1e-10) == (width == 2)


@pytest.mark.slow
def test_deep_linear_bound_along_a_flow_of_stacked_blocks():
    problem, Ws, rng = draw(11, (3, 2, 2, 1))
    both = fb.stack([problem, fb.Problem(problem.apply, rng.normal(size=(4, 3)), rng.normal(size=(4, 1)))])
    run = fb.integrate(both, fb.GradientFlow(), Ws, t1=20.0, method="tsit5", times=np.linspace(0, 20, 11))
    for k in range(11):
        here = [jnp.asarray(W[k]) for W in run.params]
        bound = deep_linear_lower_bound(both, here)
        assert smallest(both, here) >= float(bound.value) - 1e-12
        slope = np.asarray(both.gradient([here[2] @ here[1] @ here[0]])[0])
        np.testing.assert_allclose(bound.gradient_norm, np.linalg.norm(slope, 2), rtol=1e-9, atol=1e-15)


def lipschitz_estimate(problem, params, rng):
    """max |D³C[v, v, v]| over unit v, from below, by the shifted symmetric power iteration from random starts."""
    flat, unravel = ravel_pytree(params)
    best = 0.0
    for _ in range(2):
        v = rng.normal(size=flat.size)
        for _ in range(15):
            v /= np.linalg.norm(v)
            image = np.asarray(ravel_pytree(third_along(problem, params, unravel(jnp.asarray(v))))[0])
            best = max(best, abs(image @ v))
            v = image + 0.3 * np.linalg.norm(image) * v
            if not np.any(v):
                break
    return best


@settings(max_examples=20, deadline=None)
@given(SEEDS, SQUARED, st.booleans(), st.sampled_from([0.0, 0.01, 0.3]))
def test_tube_bounds_both_ends_the_third_derivative_and_the_gradient(seed, widths, weighted, radius):
    problem, Ws, rng = draw(seed, widths, weighted=weighted)
    tube = deep_linear_tube(problem, Ws, radius)
    slack = 1 + 1e-10
    for _ in range(2):
        moved = move(Ws, radius, rng) if radius else Ws
        values = np.linalg.eigvalsh(dense_hessian(problem, moved))
        size = 1e-12 * np.abs(values).max()
        assert values[0] >= float(tube.smallest_eigenvalue) - size
        assert values[-1] <= float(tube.largest_eigenvalue) * slack + size
        assert float(fb.trees.norm(problem.gradient(moved))) <= float(tube.gradient_norm) * slack
        assert lipschitz_estimate(problem, moved, rng) <= float(tube.hessian_lipschitz) * slack + size


def test_tube_is_an_equality_where_it_can_be():
    # One sample, one unit a layer, no residual: ∇²C = uuᵀ, and D³C[v, v, v] = 3 (u·v) vᵀPv at the point (1, …, 1).
    network, _ = fb.networks.deep_linear((1,) * 4, key=jax.random.key(0))
    problem = fb.Problem(network, np.ones((1, 1)), np.ones((1, 1)))
    Ws = [jnp.ones((1, 1))] * 3
    tube = deep_linear_tube(problem, Ws, 0.0)
    np.testing.assert_allclose(tube.smallest_eigenvalue, 0.0, atol=1e-12)
    np.testing.assert_allclose(tube.largest_eigenvalue, 3.0, rtol=1e-12)
    along = [jnp.full((1, 1), 3**-0.5)] * 3
    np.testing.assert_allclose(tube.hessian_lipschitz, third_derivative(problem, Ws, along), rtol=1e-12)
    # Away from the minimum, along the same direction, C = (z³ − y)²/2: every bound is attained but the last two's mix.
    far = fb.Problem(network, np.ones((1, 1)), -np.ones((1, 1)))
    tube = deep_linear_tube(far, Ws, 0.0)
    np.testing.assert_allclose(tube.largest_eigenvalue, np.linalg.eigvalsh(dense_hessian(far, Ws))[-1], rtol=1e-12)
    np.testing.assert_allclose(tube.gradient_norm, fb.trees.norm(far.gradient(Ws)), rtol=1e-12)
    np.testing.assert_allclose(tube.hessian_lipschitz, third_derivative(far, Ws, along), rtol=1e-12)


def test_the_gradient_needs_the_frobenius_norm():
    # Φ = −I of rank 2 and W_1 = 0: |∇C| = ‖W_2ᵀΦ‖_F is √2 times what the spectral norm would say.
    network, _ = fb.networks.deep_linear((2, 2, 2), key=jax.random.key(0))
    problem = fb.Problem(network, np.sqrt(2) * np.eye(2), np.sqrt(2) * np.eye(2))
    Ws = [jnp.zeros((2, 2)), jnp.eye(2)]
    tube = deep_linear_tube(problem, Ws, 0.0)
    np.testing.assert_allclose(tube.gradient_norm, fb.trees.norm(problem.gradient(Ws)), rtol=1e-12)
    np.testing.assert_allclose(tube.gradient_norm, np.sqrt(2), rtol=1e-12)
    np.testing.assert_allclose(tube.smallest_eigenvalue, -1.0, rtol=1e-12)


def mlp_problem(seed, widths, activation, bias, loss, weighted=False):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(5, widths[0]))
    targets = rng.normal(size=(5, widths[-1])) if loss is None else rng.integers(0, widths[-1], 5)
    network, params = fb.networks.mlp(widths, activation, key=jax.random.key(0), bias=bias)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0, 1.5) * rng.normal(size=leaf.shape)), params)
    loss = fb.CrossEntropy(n_classes=widths[-1]) if loss == "classes" else None
    weights = rng.uniform(0, 3, 5) if weighted else np.ones(5)
    return fb.Problem(network, inputs, targets, loss=loss, weights=weights), params, rng


@settings(max_examples=60, deadline=None)
@given(SEEDS, HOMOGENEOUS)
def test_homogeneous_bound_holds_at_random_points(seed, case):
    problem, params, _ = mlp_problem(seed, *case, weighted=bool(seed % 2))
    bound = homogeneous_lower_bound(problem, params)
    assert float(bound.crude_value) <= float(bound.value) <= 0
    assert smallest(problem, params) >= float(bound.value) - tolerance(problem, params)


@settings(max_examples=30, deadline=None)
@given(SEEDS, HOMOGENEOUS, st.floats(-2, 0.3))
def test_homogeneous_bound_holds_on_the_whole_ball(seed, case, log_radius):
    problem, params, rng = mlp_problem(seed, *case)
    radius = 10.0**log_radius
    bound = homogeneous_lower_bound(problem, params, radius=radius)
    for _ in range(4):
        moved = move(params, radius, rng)
        assert smallest(problem, moved) >= float(bound.value) - tolerance(problem, moved)
        here = homogeneous_lower_bound(problem, moved)
        assert float(here.gradient_norm) <= float(bound.gradient_norm) * (1 + 1e-12)
        assert float(here.value) >= float(bound.value) * (1 + 1e-12)


def test_biases_need_the_one_that_multiplies_them():
    # Without the 1 in [[W, b], [0, 1]], zero weights and large biases would leave a bound of zero.
    network, params = fb.networks.mlp((1, 1, 1, 1), "linear", key=jax.random.key(0))
    problem = fb.Problem(network, np.zeros((1, 1)), np.array([[3.0]]))
    params = [{"weight": jnp.zeros((1, 1)), "bias": jnp.zeros(1)} for _ in params]
    true, bound = smallest(problem, params), homogeneous_lower_bound(problem, params)
    np.testing.assert_allclose(true, -3.0, rtol=1e-12)  # of ½(w₃ b₂ − 3)², through b₂ alone
    without_pass_through = 0.0  # every ‖(W_j, b_j)‖ is 0, and so is P
    assert float(bound.value) <= true < without_pass_through


@pytest.mark.slow
def test_homogeneous_bound_along_a_flow():
    problem, params, _ = mlp_problem(4, (2, 3, 3, 2), "relu", True, None)
    run = fb.integrate(
        problem, fb.GradientFlow(), params, t1=5.0, method="tsit5", rtol=1e-4, times=np.linspace(0, 5, 6)
    )
    for k in range(6):
        here = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf[k]), run.params)
        assert smallest(problem, here) >= float(homogeneous_lower_bound(problem, here).value) - 1e-12


def test_slopes_of_a_network_of_ones_own():
    def apply(Ws, x):
        hidden = Ws[0] @ x
        return Ws[1] @ (3.0 * jnp.maximum(hidden, 0) + 2.0 * jnp.maximum(-hidden, 0))

    rng = np.random.default_rng(1)
    problem = fb.Problem(apply, rng.normal(size=(6, 3)), rng.normal(size=(6, 2)))
    Ws = [jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(2, 4)))]
    bound = homogeneous_lower_bound(problem, Ws, slopes=(3.0, -2.0))
    assert smallest(problem, Ws) >= float(bound.value)
    residuals = np.asarray(problem.outputs(Ws) - problem.targets)
    scale = np.mean(np.linalg.norm(residuals, axis=1) * np.linalg.norm(problem.inputs, axis=1))
    np.testing.assert_allclose(bound.value, -3 * scale, rtol=1e-12)
    with pytest.raises(ParameterError, match="slopes"):
        homogeneous_lower_bound(problem, Ws)
    with pytest.raises(ParameterError, match="outputs are not those"):
        homogeneous_lower_bound(problem, Ws, slopes=(3.0, 2.0))


def test_linear_networks_have_both_bounds_and_the_trace_dual_one_is_better():
    problem, Ws, _ = draw(8, (3, 2, 2, 2))
    linear, general = deep_linear_lower_bound(problem, Ws), homogeneous_lower_bound(problem, Ws)
    assert float(general.value) < float(linear.value) < 0
    np.testing.assert_allclose(linear.layer_norms, general.layer_norms, rtol=1e-12)


class Huber(fb.AbstractLoss):
    """A convex loss with curvature at most one, √(1 + |x − y|²)."""

    def per_sample(self, outputs, targets):
        return jnp.sqrt(1 + jnp.sum((outputs - targets) ** 2, axis=-1))

    def prepare(self, targets):
        return jnp.asarray(targets)

    def n_outputs(self, targets):
        return targets.shape[1]


def test_a_loss_of_ones_own_needs_its_smoothness_on_a_ball_only():
    problem, Ws, rng = draw(2, (2, 3, 2))
    problem = fb.Problem(problem.apply, problem.inputs, problem.targets, loss=Huber())
    assert smallest(problem, Ws) >= float(deep_linear_lower_bound(problem, Ws).value)
    with pytest.raises(ParameterError, match="smoothness"):
        deep_linear_lower_bound(problem, Ws, radius=0.1)
    with pytest.raises(ParameterError, match="smoothness"):
        homogeneous_lower_bound(problem, Ws, radius=0.1)
    ball = deep_linear_lower_bound(problem, Ws, radius=0.5, smoothness=1.0)
    for _ in range(20):
        assert smallest(problem, move(Ws, 0.5, rng)) >= float(ball.value)
    with pytest.raises(ParameterError, match="SquaredError"):
        deep_linear_tube(problem, Ws, 0.1)


def test_bounds_trace():
    problem, Ws, _ = draw(2, (2, 3, 2))
    traced = jax.jit(lambda p, r: deep_linear_lower_bound(problem, p, radius=r).value)(Ws, 0.1)
    np.testing.assert_allclose(traced, deep_linear_lower_bound(problem, Ws, radius=0.1).value, rtol=1e-12)
    traced = jax.jit(lambda p: homogeneous_lower_bound(problem, p).value)(Ws)
    np.testing.assert_allclose(traced, homogeneous_lower_bound(problem, Ws).value, rtol=1e-12)


def test_what_the_bounds_are_not_for_is_refused():
    problem, Ws, _ = draw(2, (2, 3, 2))
    with pytest.raises(ParameterError, match="radius"):
        deep_linear_lower_bound(problem, Ws, radius=-1.0)
    with pytest.raises(ParameterError, match="radius"):
        deep_linear_tube(problem, Ws, np.inf)
    with pytest.raises(ShapeError, match="W_1 first"):
        deep_linear_lower_bound(problem, [Ws[0], Ws[0]])
    with pytest.raises(ApplyError, match="one sample"):
        deep_linear_lower_bound(problem, Ws[::-1])
    with pytest.raises(ShapeError, match="list of matrices"):
        deep_linear_lower_bound(problem, {"a": Ws[0]})
    tanh, params, _ = mlp_problem(0, (2, 3, 2), "tanh", False, None)
    with pytest.raises(ParameterError, match="activation is tanh"):
        homogeneous_lower_bound(tanh, params)
    with pytest.raises(ParameterError, match="outputs are not those"):
        homogeneous_lower_bound(tanh, params, slopes=(1.0, 1.0))
    curved = fb.Problem(lambda p, x: p[1] @ jnp.tanh(p[0] @ x), problem.inputs, problem.targets)
    for function in (deep_linear_lower_bound, lambda *a: deep_linear_tube(*a, 0.1)):
        with pytest.raises(ParameterError, match="outputs are not those"):
            function(curved, Ws)
