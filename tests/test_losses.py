import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.errors import IntegerDataError, ParameterError, ShapeError


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_cost_is_half_the_squared_distance_over_n(n, q, seed):
    rng = np.random.default_rng(seed)
    outputs, targets, weights = rng.normal(size=(n, q)), rng.normal(size=(n, q)), rng.uniform(size=n)
    problem = fb.Problem(lambda p, x: p * x, outputs, targets, weights=weights)
    expected = np.sum(weights[:, None] * (2 * outputs - targets) ** 2) / (2 * n)
    np.testing.assert_allclose(problem.cost(jnp.array(2.0)), expected, rtol=1e-12)
    residuals = problem.residuals(jnp.array(2.0))
    assert residuals.shape == (problem.n_residuals,) == (n * q,)
    np.testing.assert_allclose(0.5 * np.sum(np.square(residuals)), expected, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31 - 1))
def test_cross_entropy_agrees_with_scipy_for_integers_one_hot_and_any_mass(n, q, seed):
    rng = np.random.default_rng(seed)
    outputs, labels = jnp.asarray(30 * rng.normal(size=(n, q))), rng.integers(0, q, size=n)
    log_p = scipy.special.log_softmax(outputs, axis=1)
    loss = fb.CrossEntropy(n_classes=q)
    # Outputs are of size 100, so their differences are known to 1e-14 and the loss to no more than that.
    integer = loss.per_sample(outputs, loss.prepare(labels))
    np.testing.assert_allclose(integer, -log_p[np.arange(n), labels], rtol=1e-12, atol=1e-13)
    masses = rng.uniform(size=(n, q))
    np.testing.assert_allclose(
        loss.per_sample(outputs, loss.prepare(masses)), -np.sum(masses * log_p, axis=1), rtol=1e-12, atol=1e-12
    )
    one_hot = np.eye(q)[labels]
    np.testing.assert_allclose(
        loss.per_sample(outputs, loss.prepare(jnp.asarray(one_hot))),
        loss.per_sample(outputs, loss.prepare(labels)),
        atol=1e-10,
    )


def test_cross_entropy_gradient_is_softmax_minus_target():
    outputs = np.random.default_rng(0).normal(size=(4, 3))
    labels = np.array([0, 2, 1, 1])
    problem = fb.Problem(lambda p, x: p + x, outputs, labels, loss=fb.CrossEntropy())
    gradient = problem.gradient(jnp.zeros(3))
    expected = np.mean(scipy.special.softmax(outputs, axis=1) - np.eye(3)[labels], axis=0)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_number_of_outputs_of_integer_classes():
    x = np.zeros((3, 2))
    assert fb.Problem(lambda p, x: p, x, np.array([0, 4, 1]), loss=fb.CrossEntropy()).n_outputs == 5
    assert fb.Problem(lambda p, x: p, x, np.array([0, 4, 1]), loss=fb.CrossEntropy(n_classes=10)).n_residuals == 30


@pytest.mark.parametrize(
    ("loss", "targets", "error"),
    [
        (fb.SquaredError(), np.array([1, 2, 3]), IntegerDataError),
        (fb.SquaredError(), np.zeros((3, 2, 2)), ShapeError),
        (fb.CrossEntropy(), np.array([0.0, 1.0, 2.0]), IntegerDataError),
        (fb.CrossEntropy(), np.array([-1, 0, 1]), ParameterError),
        (fb.CrossEntropy(), np.array([[0], [1], [1]]), ShapeError),
        (fb.CrossEntropy(n_classes=2), np.array([0, 1, 2]), ParameterError),
        (fb.CrossEntropy(), np.array([[0.5, -0.5]] * 3), ParameterError),
    ],
)
def test_targets_that_the_loss_cannot_take(loss, targets, error):
    with pytest.raises(error) as caught:
        fb.Problem(lambda p, x: p, np.zeros((3, 2)), targets, loss=loss)
    assert caught.value.given
    assert caught.value.needed
    assert caught.value.fix


def test_integer_classes_inside_a_transformation_need_their_number():
    def cost(labels, loss):
        return fb.Problem(lambda p, x: p, np.zeros((3, 2)), labels, loss=loss).cost(jnp.zeros(2))

    with pytest.raises(ParameterError, match="n_classes"):
        jax.jit(lambda y: cost(y, fb.CrossEntropy()))(np.array([0, 1, 1]))
    assert np.isclose(jax.jit(lambda y: cost(y, fb.CrossEntropy(n_classes=2)))(np.array([0, 1, 1])), np.log(2))
