import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibration.datasets import fourier_target, gaussian_clusters, high_frequency, low_frequency, teacher_student
from fibration.errors import ApplyError, EmptyDataError, NonFiniteDataError, ShapeError, UnknownNameError


def network(params, x):
    return params["a"] @ jnp.tanh(params["w"] @ x)


PARAMS = {"a": np.array([[1.0, -2.0], [0.5, 0.0], [0.0, 1.0]]), "w": np.array([[1.0, 0.5], [-0.3, 2.0]])}


def teacher(x):
    return np.tanh(x @ PARAMS["w"].T) @ PARAMS["a"].T


def test_teachers_targets():
    x, y = teacher_student(network, PARAMS, (30, 2), seed=5)
    np.testing.assert_array_equal(x, np.random.default_rng(5).standard_normal((30, 2)))
    np.testing.assert_allclose(y, teacher(x), atol=2e-6)
    assert (x.dtype, y.dtype, y.shape) == (np.float64, np.float64, (30, 3))


def test_teacher_on_given_inputs_and_scalar_output():
    inputs = np.array([[1.0, 2.0], [3.0, 4.0]])
    x, y = teacher_student(lambda _, x: x.sum(), None, inputs)
    np.testing.assert_array_equal(x, inputs)
    np.testing.assert_allclose(y, [[3], [7]])


def test_noise_has_the_deviation_asked_for():
    _, clean = teacher_student(network, PARAMS, (2000, 2), seed=1)
    _, noisy = teacher_student(network, PARAMS, (2000, 2), seed=1, noise=0.3)
    assert (noisy - clean).std() == pytest.approx(0.3, rel=0.05)


def test_bad_teachers():
    with pytest.raises(ApplyError):
        teacher_student(lambda _, x: x @ np.ones(7), None, (3, 2))
    with pytest.raises(ApplyError):
        teacher_student(lambda _, x: jnp.outer(x, x), None, (3, 2))
    with pytest.raises(EmptyDataError):
        teacher_student(network, PARAMS, (0, 2))
    with pytest.raises(EmptyDataError):
        teacher_student(network, PARAMS, np.zeros((0, 2)))
    with pytest.raises(NonFiniteDataError):
        teacher_student(network, PARAMS, np.array([[np.nan, 1.0]]))
    with pytest.raises(NonFiniteDataError):
        teacher_student(network, PARAMS, (3, 2), noise=float("inf"))


@given(st.integers(2, 8), st.integers(0, 3), st.floats(0.1, 10))
def test_simplex_means_are_equally_far_apart(n_classes, extra, radius):
    x, y = gaussian_clusters(n_classes, 1, n_classes - 1 + extra, spread=0.0, radius=radius)
    inner = (n_classes * np.eye(n_classes) - 1) / (n_classes - 1)
    np.testing.assert_allclose(x @ x.T, radius**2 * inner, atol=1e-12 * radius**2)
    np.testing.assert_allclose(x.sum(axis=0), 0, atol=1e-12 * radius)
    assert y.tolist() == list(range(n_classes))


def test_clusters_sit_at_their_means():
    means = np.array([[0.0, 10.0], [5.0, -3.0]])
    x, y = gaussian_clusters(2, 4000, 2, means=means, spread=0.5, seed=2)
    for label in (0, 1):
        cloud = x[y == label]
        np.testing.assert_allclose(cloud.mean(axis=0), means[label], atol=0.05)
        np.testing.assert_allclose(cloud.std(axis=0), 0.5, rtol=0.05)
    assert y.dtype == np.int64


def test_random_means_lie_on_the_sphere_and_follow_the_seed():
    x, _ = gaussian_clusters(6, 1, 2, means="random", spread=0.0, radius=3.0, seed=1)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 3)
    np.testing.assert_array_equal(x, gaussian_clusters(6, 1, 2, means="random", spread=0.0, radius=3.0, seed=1).inputs)
    assert not np.allclose(x, gaussian_clusters(6, 1, 2, means="random", spread=0.0, radius=3.0, seed=2).inputs)


def test_one_class_is_centred():
    assert gaussian_clusters(1, 2, 3, spread=0.0).inputs.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((5, 3, 3), {}, ShapeError),
        ((2, 3, 3), {"means": [[0.0, 1.0]]}, ShapeError),
        ((2, 3, 3), {"means": "star"}, UnknownNameError),
        ((0, 3, 3), {}, EmptyDataError),
        ((2, 0, 3), {}, EmptyDataError),
        ((2, 3, 0), {}, EmptyDataError),
        ((2, 3, 3), {"spread": float("nan")}, NonFiniteDataError),
    ],
)
def test_impossible_clusters(arguments, options, error):
    with pytest.raises(error):
        gaussian_clusters(*arguments, **options)


def test_fourier_target_is_the_sum_written_out():
    waves, heights = [[1, 0], [2, 3], [0, 5]], [[1.0, 0.0], [0.5, 2.0], [0.0, -1.0]]
    x, y = fourier_target(50, waves, dim=2, seed=9, amplitudes=heights)
    expected = np.zeros((50, 2))
    for i in range(50):
        for (k1, k2), height in zip(waves, heights, strict=True):
            expected[i] += np.array(height) * np.cos(np.pi * k1 * x[i, 0]) * np.cos(np.pi * k2 * x[i, 1])
    np.testing.assert_allclose(y, expected, atol=1e-13)
    assert x.min() >= 0
    assert x.max() < 1
    np.testing.assert_array_equal(x, np.random.default_rng(9).random((50, 2)))


@given(st.integers(2, 9), st.data())
def test_cosines_on_the_grid_are_orthogonal(n, data):
    j, k = data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True))
    first, second = (fourier_target(n, [m], grid=True).targets[:, 0] for m in (j, k))
    assert abs(first @ second) < 1e-12
    assert first @ first == pytest.approx(n if j == 0 else n / 2)


def test_grid_covers_the_box():
    x, _ = fourier_target(3, [[1, 1]], dim=2, grid=True)
    assert x.shape == (9, 2)
    np.testing.assert_allclose(np.unique(x), [1 / 6, 1 / 2, 5 / 6])
    assert len(np.unique(x, axis=0)) == 9


@pytest.mark.parametrize(("make", "frequency"), [(low_frequency, 1), (high_frequency, 8)])
def test_single_frequencies(make, frequency):
    x, y = make(20, dim=3, seed=4)
    np.testing.assert_allclose(y[:, 0], np.cos(np.pi * frequency * x).prod(axis=1), atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((5, [[1, 2]]), {}, ShapeError),
        ((5, [1, 2]), {"dim": 2}, ShapeError),
        ((5, []), {}, ShapeError),
        ((5, [1, 2]), {"amplitudes": [1.0]}, ShapeError),
        ((0, [1]), {}, EmptyDataError),
        ((5, [float("inf")]), {}, NonFiniteDataError),
    ],
)
def test_impossible_targets(arguments, options, error):
    with pytest.raises(error):
        fourier_target(*arguments, **options)
