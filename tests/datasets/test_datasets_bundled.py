import numpy as np
import pytest
import sklearn.datasets

from fibration import datasets
from fibration.errors import EmptyDataError, ShapeError

CLASSES = ["digits", "iris", "wine", "breast_cancer"]


def sklearns(name):
    return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)


@pytest.mark.parametrize("name", CLASSES)
def test_all_samples_are_sklearns(name):
    x, y = sklearns(name)
    inputs, targets = getattr(datasets, name)()
    np.testing.assert_array_equal(inputs, x / 16 if name == "digits" else x)
    np.testing.assert_array_equal(targets, y)
    assert inputs.dtype == np.float64
    assert targets.dtype == np.int64


def test_diabetes_is_sklearns():
    x, y = sklearns("diabetes")
    inputs, targets = datasets.diabetes(7)
    np.testing.assert_array_equal(inputs, x[:7])
    np.testing.assert_array_equal(targets, y[:7, None])


@pytest.mark.parametrize("name", CLASSES)
def test_without_seed_the_classes_take_turns(name):
    _, y = sklearns(name)
    n_classes = int(y.max()) + 1
    _, targets = getattr(datasets, name)(4 * n_classes + 1)
    assert np.bincount(targets).tolist() == [5] + [4] * (n_classes - 1)


def test_unbalanced_classes_run_out():
    _, y = sklearns("wine")
    _, targets = datasets.wine(170)
    assert np.bincount(targets).tolist() == [59, 170 - 59 - 48, 48]
    assert np.bincount(y).tolist() == [59, 71, 48]


def test_chosen_samples_are_the_first_of_their_class():
    x, y = sklearns("iris")
    inputs, targets = datasets.iris(9)
    for label in range(3):
        np.testing.assert_array_equal(inputs[targets == label], x[y == label][:3])


@pytest.mark.parametrize("name", [*CLASSES, "diabetes"])
def test_seed_shuffles_and_keeps_pairs_together(name):
    x, y = sklearns(name)
    order = np.random.default_rng(3).permutation(len(x))[:20]
    inputs, targets = getattr(datasets, name)(20, seed=3)
    np.testing.assert_array_equal(inputs, x[order] / (16 if name == "digits" else 1))
    np.testing.assert_array_equal(targets.ravel(), y[order])
    assert not np.array_equal(inputs, getattr(datasets, name)(20, seed=4).inputs)


def test_digits_as_images():
    raw = sklearn.datasets.load_digits().images
    inputs, _ = datasets.digits(images=True)
    np.testing.assert_array_equal(inputs[..., 0], raw / 16)
    assert inputs.min() == 0
    assert inputs.max() == 1


@pytest.mark.parametrize("name", [*CLASSES, "diabetes"])
def test_standardized_features(name):
    raw, _ = getattr(datasets, name)(50)
    inputs, _ = getattr(datasets, name)(50, standardize=True)
    constant = raw.std(axis=0) == 0
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(inputs.std(axis=0)[~constant], 1, rtol=1e-10)
    assert (inputs[:, constant] == 0).all()
    assert constant.any() == (name == "digits")


def test_one_hot_keeps_classes_that_the_samples_lack():
    _, targets = datasets.digits(4, one_hot=True)
    np.testing.assert_array_equal(targets, np.eye(10)[:4])


@pytest.mark.parametrize(("samples", "error"), [(0, EmptyDataError), (-1, EmptyDataError), (151, ShapeError)])
def test_impossible_numbers_of_samples(samples, error):
    with pytest.raises(error):
        datasets.iris(samples)
