"""The scikit-learn classifier: its contract, and that its scores say what the network does."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine, make_blobs
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from clusters import clusters
from fibration.errors import ConstructionError, UnknownNameError
from fibration.minimizers import construct
from fibration.minimizers._estimator import TruncationClassifier


# Some of scikit-learn's data are random labels on few points, whose class means nearly coincide. It skips its own check
# of other array libraries unless SCIPY_ARRAY_API is set; the classifier computes in NumPy.
@pytest.mark.filterwarnings("ignore::fibration.errors.ConditioningWarning")
@parametrize_with_checks([TruncationClassifier(), TruncationClassifier(method="affine", weights="sample")])
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def test_it_is_the_constructor():
    inputs, labels = clusters(np.random.default_rng(0), 4, 6, noise=0.15)
    names = np.array(["d", "c", "a", "b"])[labels]
    classifier = TruncationClassifier(depth=6, weights="sample").fit(inputs, names)
    found = construct(inputs, names, depth=6, weights="sample")
    assert classifier.certified_
    assert classifier.cost_ == found.cost < 1e-12
    assert classifier.minimizer_.method == "cone"
    assert len(classifier.minimizer_.layers) == 6
    assert classifier.score(inputs, names) == 1.0
    np.testing.assert_array_equal(classifier.classes_, ["a", "b", "c", "d"])
    anywhere = 3 * np.random.default_rng(1).normal(size=(500, 6))
    np.testing.assert_array_equal(classifier.predict(anywhere), found.predict(anywhere))


@pytest.mark.parametrize("method", ["cone", "affine"])
@pytest.mark.parametrize("q", [2, 3, 5])
def test_scores_are_the_distances_to_the_targets(q, method):
    rng = np.random.default_rng(q)
    inputs, labels = clusters(rng, q, q + 1, noise=0.15)
    classifier = TruncationClassifier(method=method).fit(inputs, labels)
    anywhere = 4 * rng.normal(size=(2000, q + 1))
    outputs = classifier.minimizer_.outputs(anywhere)
    halves = np.sum((outputs[:, None] - np.eye(q)) ** 2, axis=2) / 2
    scores, predicted = classifier.decision_function(anywhere), classifier.predict(anywhere)
    scale = 1e-13 * np.max(np.sum(outputs**2, axis=1))
    if q == 2:
        assert scores.shape == (2000,)
        np.testing.assert_allclose(scores, halves[:, 0] - halves[:, 1], atol=scale)
        np.testing.assert_array_equal(predicted, classifier.classes_[(scores > 0).astype(int)])
    else:
        assert scores.shape == (2000, q)
        np.testing.assert_allclose(scores - scores[:, :1], halves[:, :1] - halves, atol=scale)
        np.testing.assert_array_equal(predicted, classifier.classes_[np.argmax(scores, axis=1)])
    # Brute force: the first of the nearest.
    least = halves.min(axis=1, keepdims=True)
    gap = np.diff(np.sort(halves - least, axis=1)[:, :2], axis=1)[:, 0] / (1 + least[:, 0])
    clear, tied = gap > 1e-6, gap < 1e-12
    assert clear.sum() > 300
    first = np.argmax(halves <= least + 1e-12 * (1 + least), axis=1)
    np.testing.assert_array_equal(predicted[clear | tied], first[clear | tied])


def test_the_affine_scores_are_those_of_linear_regression():
    # An independent library: least squares on unit vectors, s_k = f_k − ½.
    inputs, labels = make_blobs(200, 5, centers=4, cluster_std=3.0, random_state=0)
    classifier = TruncationClassifier(method="affine", weights="sample").fit(inputs, labels)
    regression = LinearRegression().fit(inputs, np.eye(4)[labels])
    np.testing.assert_allclose(classifier.decision_function(inputs), regression.predict(inputs) - 0.5, atol=1e-12)
    misfit = regression.predict(inputs) - np.eye(4)[labels]
    assert classifier.cost_ == pytest.approx(np.sqrt(np.sum(misfit**2) / 200), rel=1e-12)
    two = labels < 2
    classifier.fit(inputs[two], labels[two])
    assert classifier.decision_function(inputs[two]).shape == (two.sum(),)
    assert roc_auc_score(labels[two], classifier.decision_function(inputs[two])) > 0.95


@pytest.mark.parametrize("q", [2, 3])
def test_ties_go_to_the_class_that_comes_first(q):
    vertices = np.eye(q)
    classifier = TruncationClassifier(method="affine").fit(vertices, np.arange(q)[::-1])
    centre = np.full(q, 1 / q)
    towards = vertices - centre
    # At the centre all are equal; 1e-13 away rounding would choose, and 1e-3 away it is no tie.
    near = np.concatenate([centre[None], centre + 1e-13 * towards, centre + 1e-3 * towards])
    predicted, scores = classifier.predict(near), classifier.decision_function(near)
    np.testing.assert_array_equal(predicted, [0] * (q + 1) + list(range(q))[::-1])
    np.testing.assert_array_equal(predicted, (scores > 0).astype(int) if q == 2 else np.argmax(scores, axis=1))


def test_a_single_class_is_always_named():
    classifier = TruncationClassifier().fit(np.random.default_rng(0).normal(size=(5, 3)), ["only"] * 5)
    assert list(classifier.predict(np.ones((2, 3)))) == ["only", "only"]
    assert classifier.decision_function(np.ones((2, 3))).shape == (2, 1)
    assert classifier.certified_


def test_cross_validation_in_a_pipeline_is_what_a_loop_gives():
    inputs, labels = load_wine(return_X_y=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(make_pipeline(StandardScaler(), TruncationClassifier()), inputs, labels, cv=folds)
    expected: list[float] = []
    for train, test in folds.split(inputs, labels):
        mean, deviation = inputs[train].mean(axis=0), inputs[train].std(axis=0)
        found = construct((inputs[train] - mean) / deviation, labels[train])
        expected.append(np.mean(found.predict((inputs[test] - mean) / deviation) == labels[test]))
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert scores.mean() > 0.9


def test_clones_copies_and_parameters():
    inputs, labels = clusters(np.random.default_rng(2), 3, 3, noise=0.15)
    classifier = TruncationClassifier(shift=0.2, weights=[1.0, 2.0, 3.0])
    assert classifier.get_params() == {
        "depth": None,
        "method": "auto",
        "weights": [1.0, 2.0, 3.0],
        "shift": 0.2,
        "opening": "auto",
    }
    classifier.fit(inputs, labels)
    copied = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(copied.decision_function(inputs), classifier.decision_function(inputs))
    fresh = clone(classifier)
    assert fresh.get_params() == classifier.get_params()
    assert not hasattr(fresh, "minimizer_")
    assert fresh.set_params(depth=5).fit(inputs, labels).minimizer_.weights[-1][0].shape == (3, 3)
    assert len(fresh.minimizer_.layers) == 5


def test_names_of_columns_are_kept_and_checked():
    inputs, labels = clusters(np.random.default_rng(3), 3, 3, noise=0.15)
    frame = pd.DataFrame(inputs, columns=["x", "y", "z"])
    classifier = TruncationClassifier().fit(frame, labels)
    assert classifier.n_features_in_ == 3
    np.testing.assert_array_equal(classifier.feature_names_in_, ["x", "y", "z"])
    assert classifier.score(frame, labels) == 1.0
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(frame.rename(columns={"x": "w"}))


def test_what_it_does_not_offer():
    inputs, labels = clusters(np.random.default_rng(4), 2, 2, noise=0.15)
    classifier = TruncationClassifier()
    assert not hasattr(classifier.fit(inputs, labels), "predict_proba")
    with pytest.raises(TypeError, match="sample_weight"):
        classifier.fit(inputs, labels, sample_weight=np.ones(len(labels)))


def test_errors_of_the_constructor_are_value_errors():
    inputs, labels = make_blobs(60, 2, centers=[[0, 0], [0.1, 0]], random_state=0)
    with pytest.raises(ConstructionError, match="too wide") as caught:
        TruncationClassifier(method="cone").fit(inputs, labels)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(UnknownNameError, match="method = 'best'"):
        TruncationClassifier(method="best").fit(inputs, labels)
