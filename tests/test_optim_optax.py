"""`fb.optim.adapted`: the damped adapted step among optax's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from test_optim import dense, fitting, linear, tanh_net


def batch_of(problem, rows):
    return fb.Problem(tanh_net, problem.inputs[rows], problem.targets[rows])


@pytest.mark.parametrize("size", [3, 30], ids=["wide", "tall"])
def test_projected_momentum_is_an_argmin(size):
    """φ_k = argmin |Dφ − ρ|² + λ|φ − μφ_{k−1}|², by dense least squares, over five minibatches."""
    problem, params = fitting(60)
    optimiser = fb.optim.adapted(0.7, damping=0.05, momentum=0.9)
    state, phi = optimiser.init(params), 0.0
    update = jax.jit(lambda x, y, state, params: optimiser.update(fb.Problem(tanh_net, x, y), state, params))
    for k in range(5):
        batch = batch_of(problem, slice(k * 7, k * 7 + size))
        theta, rho, jacobian = dense(batch, params)
        updates, state = update(batch.inputs, batch.targets, state, params)
        lam = float(state.damping)
        assert 0.95 < lam / (0.05 * np.linalg.norm(jacobian, 2) ** 2) < 1 + 1e-9  # σ_max is estimated from inside
        # min |(D; √λ) φ − (ρ; √λ μφ_{k−1})|, whose normal equations are those of the argmin.
        left = np.concatenate([jacobian, np.sqrt(lam) * np.eye(theta.size)])
        right = np.concatenate([np.asarray(rho(theta)), np.sqrt(lam) * 0.9 * phi * np.ones(theta.size)])
        phi = np.linalg.lstsq(left, right, rcond=None)[0]
        scale = np.abs(phi).max()
        np.testing.assert_allclose(ravel_pytree(updates)[0], -0.7 * phi, atol=1e-13 * max(1, scale))
        params = optax.apply_updates(params, updates)
    assert int(state.n_updates) == 5


def test_a_quadratic_in_one_step():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(8, 3)), rng.normal(size=(8, 1))
    problem, w = fb.Problem(linear, inputs, targets), jnp.zeros((1, 3))
    for adaptive in (False, True):
        optimiser = fb.optim.adapted(damping=1e-12, adaptive=adaptive)
        updates, _ = optimiser.update(problem, optimiser.init(w), w)
        solution = np.linalg.lstsq(inputs, targets, rcond=None)[0].T
        np.testing.assert_allclose(optax.apply_updates(w, updates), solution, atol=1e-10)


def test_it_combines_with_the_rest_of_optax():
    problem, params = fitting(6)
    plain = fb.optim.adapted(0.5, damping=0.01)
    wanted = plain.update(problem, plain.init(params), params)[0]
    gradient = problem.gradient(params)

    for optimiser, factor in (
        (optax.chain(fb.optim.adapted(damping=0.01), optax.scale(0.5)), 1),
        (optax.inject_hyperparams(fb.optim.adapted, static_args=("method", "adaptive", "acceleration"))(0.5, 0.01), 1),
        (optax.apply_if_finite(fb.optim.adapted(0.5, 0.01), 3), 1),
        (fb.optim.adapted(optax.constant_schedule(0.25), 0.01), 0.5),
        (optax.chain(optax.clip_by_global_norm(1e-3), plain), 1),  # of gradients, which are not used
    ):
        updates, _ = jax.jit(
            lambda g, s, p, optimiser=optimiser: optimiser.update(g, s, p, problem=problem)
        )(gradient, optimiser.init(params), params)  # fmt: skip
        for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got, factor * want, rtol=1e-10, atol=1e-13)


def test_adaptive_updates_are_the_steps_of_minimize():
    problem, params = fitting(6, hidden=8)
    run = fb.optim.minimize(problem, params, 12, 0, damping=0.1)
    optimiser = fb.optim.adapted(damping=0.1, adaptive=True, acceleration=True)
    descent = fb.descend(problem, optimiser, params, steps=12)
    np.testing.assert_allclose(descent.costs, run.costs, rtol=1e-6, atol=1e-25)
    state, update = optimiser.init(params), jax.jit(lambda s, p: optimiser.update(problem, s, p))
    ratios, here = [0.0], params
    for _ in range(3):
        updates, state = update(state, here)
        here = optax.apply_updates(here, updates)
        ratios.append(float(state.ratio))
    np.testing.assert_allclose(ratios, run.stats["ratio"][:4], rtol=1e-8)


def test_an_adaptive_update_is_zero_where_nothing_is_gained():
    problem = fb.Problem(linear, np.ones((2, 1)), np.array([[0.0], [2.0]]))
    w, optimiser = jnp.ones((1, 1)), fb.optim.adapted(adaptive=True)
    updates, state = optimiser.update(problem, optimiser.init(w), w)
    np.testing.assert_array_equal(updates, 0)
    assert float(state.ratio) == 0
    flat = fb.Problem(lambda w, x: 0 * w @ x, np.ones((2, 1)), np.ones((2, 1)))
    plain = fb.optim.adapted()
    np.testing.assert_array_equal(plain.update(flat, plain.init(w), w)[0], 0)


def test_descend_closes_the_problem_over_constant_leaves():
    problem, params = fitting(6)

    def apply(tree, x):
        return tree["factor"] * tanh_net(tree["net"], x)

    block = fb.Problem(apply, problem.inputs, problem.targets)
    tree = {"net": params, "factor": 1, "name": None}
    optimiser = fb.optim.adapted(damping=1e-3)
    runs = [fb.descend(p, optimiser, tree, steps=3) for p in (block, fb.stack([block, block]))]
    plain = fb.descend(problem, optimiser, params, steps=3)
    np.testing.assert_allclose(runs[0].costs, plain.costs, rtol=1e-10)
    np.testing.assert_allclose(runs[1].costs, 2 * plain.costs, rtol=1e-8)  # relative damping does not see the factor 2


def test_minibatches_of_a_consistent_problem_converge():
    """Block Kaczmarz: a linear system with a solution is solved by steps on parts of it."""
    rng = np.random.default_rng(1)
    inputs, w = rng.normal(size=(40, 10)), rng.normal(size=(1, 10))
    optimiser, here = fb.optim.adapted(damping=1e-6), jnp.zeros((1, 10))
    state = optimiser.init(here)
    update = jax.jit(lambda x, s, p: optimiser.update(fb.Problem(linear, x, x @ w.T), s, p))
    for k in range(60):
        updates, state = update(jnp.asarray(inputs[(4 * k) % 40 :][:4]), state, here)
        here = optax.apply_updates(here, updates)
    np.testing.assert_allclose(here, w, atol=1e-6)


def test_bad_input():
    problem, params = fitting(4)
    with pytest.raises(fb.errors.ParameterError, match="momentum"):
        fb.optim.adapted(momentum=1.0)
    with pytest.raises(fb.errors.ParameterError, match="adaptive"):
        fb.optim.adapted(0.1, adaptive=True)
    with pytest.raises(fb.errors.ParameterError, match="damping"):
        fb.optim.adapted(damping=-1.0)
    optimiser = fb.optim.adapted()
    state = optimiser.init(params)
    with pytest.raises(fb.errors.ParameterError, match="without a problem"):
        optimiser.update(problem.gradient(params), state, params)
    with pytest.raises(fb.errors.ParameterError, match="without params"):
        optimiser.update(problem, state)
    classes = fb.Problem(tanh_net, problem.inputs, np.array([0, 1, 1, 0]), loss=fb.CrossEntropy(n_classes=2))
    with pytest.raises(fb.errors.ParameterError, match="SquaredError"):
        optimiser.update(classes, state, params)
