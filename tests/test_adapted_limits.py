"""What a reader who had not seen the adapted flow's code broke: Gram matrices, scales, thresholds, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fibration as fb
from fibration.errors import EmptyDataError, ParameterError, RankLossError


def gates(p, x):
    """A loop along a parameter that is repeated over the width: one gate for each layer."""
    gates = jnp.broadcast_to(p["gate"][:, None], (len(p["gate"]), 4))
    return lax.scan(lambda c, row: (c + row * jnp.tanh(p["weight"] @ c), None), x, gates)[0][:3]


@pytest.mark.parametrize("method", ["auto", "structured"])
@pytest.mark.parametrize("layers", [3, 40])
def test_gram_of_gates_scanned_along_their_own_axis(method, layers):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"gate": 0.1 * jax.random.normal(keys[0], (layers,)), "weight": 0.3 * jax.random.normal(keys[1], (4, 4))}
    problem = fb.Problem(gates, jax.random.normal(keys[2], (5, 4)), jnp.zeros((5, 3)))
    D = fb.tangent.jacobian(problem, params)
    np.testing.assert_allclose(fb.tangent.gram(problem, params, method), D @ D.T, atol=1e-12 * np.abs(D @ D.T).max())
    only = {"gate": params["gate"]}
    fixed = fb.Problem(lambda p, x: gates({**params, **p}, x), problem.inputs, problem.targets)
    D = fb.tangent.jacobian(fixed, only)
    np.testing.assert_allclose(fb.tangent.gram(fixed, only, method), D @ D.T, atol=1e-12 * np.abs(D @ D.T).max())


def linear(matrix):
    return fb.Problem(lambda p, x: x @ p, jnp.asarray(matrix), jnp.zeros((len(matrix), 1)))


A = np.array([[3.0, 0, 0], [1, 2, 0], [0, 1, 1]])


@pytest.mark.parametrize("scale", [1e-140, 1e-80, 1.0, 1e80, 1e140])
def test_the_diagnosis_does_not_depend_on_the_scale(scale):
    sigma = np.linalg.svd(A, compute_uv=False)
    v, info = fb.tangent.minimum_norm(linear(scale * A), jnp.zeros(3), jnp.ones(3))
    np.testing.assert_allclose(v, np.linalg.solve(A, np.ones(3)) / scale, rtol=1e-12)
    np.testing.assert_allclose([info.sigma_max / scale, info.sigma_min / scale], sigma[[0, -1]], rtol=0.1)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_residual_does_not_depend_on_the_scale_of_the_velocity(scale):
    tall = fb.Problem(lambda p, x: x @ p, jnp.ones((2, 1)), jnp.zeros((2, 1)))
    _, info = fb.tangent.minimum_norm(tall, jnp.zeros(1), scale * jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(info.residual, np.sqrt(0.5), rtol=1e-12)


def test_a_differential_of_zero_ends_a_followed_path_by_name():
    dead = fb.Problem(lambda p, x: jax.nn.relu(p * x - 1), jnp.ones(1), jnp.ones(1))
    run = fb.follow(dead, jnp.array(0.5), t1=5.0)
    assert run.result.failed


def test_a_gradient_below_the_square_root_of_the_smallest_number_is_no_minimum():
    problem = fb.Problem(lambda p, x: x @ (p * 1e-160), jnp.asarray(A), jnp.asarray(A @ np.ones(3))[:, None])
    run = fb.optim.minimize(problem, jnp.zeros(3), steps=10)
    assert run.result.code != "stationary"
    assert run.result.failed


SQUARE = linear(A)
WIDE = fb.Problem(lambda p, x: p * x, jnp.array([[1.0], [1.0]]), jnp.zeros((2, 1)))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fb.tangent.minimum_norm(SQUARE, jnp.zeros(3), jnp.ones(3), rtol=float("nan")), ParameterError, "rtol"),
        (lambda: fb.tangent.minimum_norm(SQUARE, jnp.zeros(3), jnp.ones(3), rtol=1), ParameterError, "below 1"),
        (lambda: fb.tangent.minimum_norm(SQUARE, jnp.zeros(3), jnp.ones(3), rtol="x"), ParameterError, "real number"),
        (
            lambda: fb.tangent.minimum_norm(SQUARE, jnp.zeros(3), jnp.ones(3), iterations=0),
            ParameterError,
            "at least 1",
        ),
        (lambda: fb.tangent.minimum_norm(SQUARE, jnp.zeros(3), jnp.ones(3), damping="x"), ParameterError, "damping"),
        (lambda: fb.tangent.minimum_norm(SQUARE, jnp.zeros(3), 1j * jnp.ones(3)), ParameterError, "complex"),
        (lambda: fb.tangent.rank(SQUARE, jnp.zeros(3), 2.0), ParameterError, "rtol"),
        (lambda: fb.tangent.rank(None, jnp.zeros(3)), ParameterError, "an fb.Problem"),
        (
            lambda: fb.flows.bracket(WIDE, jnp.zeros(1), jnp.ones((2, 1)), jnp.ones((2, 1))),
            RankLossError,
            "not the rank 2",
        ),
        (lambda: fb.AdaptedFlow(metric="fisher"), ParameterError, "an instance"),
        (lambda: fb.AdaptedFlow(metric=fb.flows.SoftmaxFisher), ParameterError, "an instance"),
        (lambda: fb.InterpolatedFlow("x"), ParameterError, "alpha"),
        (lambda: fb.flows.Tikhonov(relative="x"), ParameterError, "relative"),
        (lambda: fb.optim.adapted(learning_rate=float("nan")), ParameterError, "finite"),
        (lambda: fb.optim.adapted(momentum="x"), ParameterError, "momentum"),
        (
            lambda: fb.tangent.gram(
                fb.Problem(lambda p, x: p[:0] * x, jnp.ones((2, 1)), jnp.ones((2, 0))), jnp.ones(1)
            ),
            EmptyDataError,
            "at least one",
        ),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
