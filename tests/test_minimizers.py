"""The constructor: exact zero cost where it says so, honest where it does not."""

import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from clusters import clusters, slabs
from fibration.minimizers import Cone, construct
from fibration.minimizers._cone import contraction_of
from fibration.minimizers._network import forward


def weighted_cost(found, inputs, labels, share):
    """The cost by its definition, from the network's own outputs."""
    numbers = np.searchsorted(found.classes, labels)
    errors = np.sum((found.outputs(inputs) - found.targets[numbers]) ** 2, axis=1)
    counts = np.bincount(numbers)
    return np.sqrt(np.sum((share / counts)[numbers] * errors))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 12), st.floats(0.05, 0.999))
def test_the_closed_forms_of_a_cone(seed, n, contraction):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=n)
    cone = Cone(rng.normal(size=n), axis / np.linalg.norm(axis), contraction)
    weight = cone.weight
    assert np.linalg.norm(weight, 2) == pytest.approx(1.0, rel=1e-12)
    assert np.linalg.cond(weight) == pytest.approx(1 / contraction, rel=1e-9)
    np.testing.assert_allclose(weight @ cone.inverse, np.eye(n), atol=1e-11 / contraction)
    np.testing.assert_allclose(weight @ cone.axis, np.ones(n) / np.sqrt(n), atol=1e-12)
    z = cone.base_point + 3 * rng.normal(size=(40, n))
    pre = z @ weight.T + cone.bias
    np.testing.assert_allclose(cone.preactivations(z), pre, atol=1e-12)
    expected = (np.maximum(pre, 0) - cone.bias) @ np.linalg.inv(weight).T
    np.testing.assert_allclose(cone.truncate(z), expected, atol=1e-11 / contraction)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 9), st.floats(0.2, 3.0))
def test_a_cone_keeps_what_is_within_its_opening_and_collapses_the_opposite(seed, n, opening):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=n)
    axis /= np.linalg.norm(axis)
    cone = Cone(rng.normal(size=n), axis, contraction_of(opening, n))
    across = rng.normal(size=(50, n))
    across -= np.outer(across @ axis, axis)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = 0.4999 * opening * rng.uniform(size=(50, 1))
    inside = rng.uniform(0.1, 5, size=(50, 1)) * (np.cos(angle) * axis + np.sin(angle) * across)
    np.testing.assert_array_equal(cone.truncate(cone.base_point + inside), cone.base_point + inside)
    np.testing.assert_array_equal(cone.truncate(cone.base_point - inside), np.tile(cone.base_point, (50, 1)))
    # No wider cone is kept in every direction.
    wide = 0.501 * cone.opening
    if cone.contraction < 1:
        rim = np.cos(wide) * axis - np.sin(wide) * _towards_a_face(cone)
        assert np.any(cone.preactivations((cone.base_point + rim)[None]) < 0)


def _towards_a_face(cone):
    """The direction across the axis in which the pre-activation of unit 1 falls fastest."""
    gradient = cone.weight[0] - (cone.weight[0] @ cone.axis) * cone.axis
    return gradient / np.linalg.norm(gradient)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 8), st.integers(0, 12), st.sampled_from(["class", "sample", "own"]))
def test_zero_cost_on_random_clusters(seed, q, more, weights):
    rng = np.random.default_rng(seed)
    inputs, labels = clusters(rng, q, q + more, noise=0.15)
    share = {"class": np.ones(q), "sample": np.bincount(labels) / len(labels), "own": rng.uniform(0.5, 2, q)}[weights]
    shift = rng.choice([0.0, 10.0]) * rng.normal(size=inputs.shape[1])
    found = construct(inputs + shift, labels, weights=share if weights == "own" else weights)
    assert found.certified
    assert found.method == "cone"
    assert found.margin > 1e-3
    assert found.cost < 1e-12 * max(1, np.linalg.norm(shift))
    assert found.cost <= found.affine_cost + 1e-12
    assert weighted_cost(found, inputs + shift, labels, share) < 1e-11 * max(1, np.linalg.norm(shift))
    np.testing.assert_array_equal(found.predict(inputs + shift), labels)
    # The same network in JAX.
    outputs = jax.vmap(found.apply, (None, 0))(found.params, inputs + shift)
    np.testing.assert_allclose(outputs, np.eye(q)[labels], atol=1e-10 * max(1, np.linalg.norm(shift)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 6))
def test_centred_data_and_as_few_dimensions_as_can_be(seed, q):
    # Centring makes the class means linearly dependent, and Q − 1 dimensions hold Q affinely independent ones.
    rng = np.random.default_rng(seed)
    inputs, labels = clusters(rng, q, q - 1, noise=0.1)
    found = construct(inputs - inputs.mean(axis=0), labels)
    assert found.certified
    assert found.cost < 1e-12


def test_the_conditions_of_the_theorem_are_sufficient():
    # δ_P below ¼√((Q−1)/Q): the construction must exist, with the paper's a-priori shift and opening too.
    satisfied = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        q = 2 + seed % 5
        inputs, labels = clusters(rng, q, q, noise=0.2)
        found = construct(inputs, labels)
        assert found.certified or not found.conditions.satisfied
        satisfied += found.conditions.satisfied
    assert satisfied > 5


def test_more_layers_than_classes_change_nothing():
    inputs, labels = clusters(np.random.default_rng(0), 3, 4, noise=0.1)
    three, five = construct(inputs, labels), construct(inputs, labels, depth=5)
    assert len(five.layers) == 5
    assert five.certified
    assert five.margin > 0
    others = 3 * np.random.default_rng(1).normal(size=(200, 4))
    shared = np.all(five.truncated(others, 5) == three.truncated(others), axis=1)
    assert np.mean(shared) > 0.2  # far inputs may be cut off by the extra layers
    np.testing.assert_allclose(five.outputs(others[shared]), three.outputs(others[shared]), atol=1e-10)


def test_fewer_layers_than_classes_collapse_the_best_subset():
    inputs, labels = clusters(np.random.default_rng(3), 4, 5, noise=0.2, samples=40, least=40)
    costs = [construct(inputs, labels, depth=depth, method="cone").cost for depth in (1, 2, 3, 4)]
    assert construct(inputs, labels).affine_cost > costs[0] > costs[1] > costs[2] > 1e-3 > 1e-12 > costs[3]
    found = construct(inputs, labels, depth=2)
    assert not found.certified
    assert "not guaranteed" in found.attempts[0].reason
    assert found.cost == pytest.approx(weighted_cost(found, inputs, labels, np.ones(4)), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 5), st.integers(1, 6), st.integers(1, 6))
def test_never_worse_than_the_best_affine_map(seed, q, dimension, depth):
    # Overlapping clouds, of any depth and dimension: the affine cost against numpy's least squares.
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(q), rng.integers(0, q, 40)])
    inputs = rng.normal(size=(len(labels), dimension)) + labels[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fb.errors.ConditioningWarning)
        found = construct(inputs, labels, depth=depth)
    root = np.sqrt(1 / np.bincount(labels))[labels][:, None]
    padded = np.concatenate([inputs, np.ones((len(labels), 1))], axis=1)
    best = np.linalg.lstsq(root * padded, root * np.eye(q)[labels], rcond=None)[0]
    affine = np.linalg.norm(root * (padded @ best - np.eye(q)[labels]))
    assert found.affine_cost == pytest.approx(affine, rel=1e-8, abs=1e-10)
    assert found.cost <= affine * (1 + 1e-9) + 1e-12
    assert found.cost == pytest.approx(weighted_cost(found, inputs, labels, np.ones(q)), rel=1e-6, abs=1e-9)


def test_every_point_of_every_ball_gets_its_target():
    inputs, labels = clusters(np.random.default_rng(5), 3, 3, noise=0.1)
    found = construct(inputs, labels)
    # In the construction's coordinates, balls about the means that the certificate's margin covers.
    rng = np.random.default_rng(6)
    for name in range(3):
        convex = rng.dirichlet(np.ones((labels == name).sum()), size=500) @ inputs[labels == name]
        np.testing.assert_allclose(found.outputs(convex), np.tile(np.eye(3)[name], (500, 1)), atol=1e-12)


def test_the_metric_is_that_of_the_truncated_inputs():
    inputs, labels = clusters(np.random.default_rng(7), 4, 4, noise=0.1)
    found = construct(inputs, labels)
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 300, 4))
    points = np.stack([found.truncated(inputs[labels == j][:1])[0] for j in range(4)])
    middle = points.mean(axis=0)
    matrix = np.linalg.lstsq(points - middle, np.eye(4) - 0.25, rcond=1e-12)[0].T
    expected = np.linalg.norm((found.truncated(a) - found.truncated(b)) @ matrix.T, axis=1)
    np.testing.assert_allclose(found.distance(a, b), expected, atol=1e-12)
    # The class is that of the nearest collapsed point.
    to_points = np.linalg.norm((found.truncated(a)[:, None] - points) @ matrix.T, axis=2)
    clear = np.sort(to_points, axis=1)[:, 1] - to_points.min(axis=1) > 1e-9
    np.testing.assert_array_equal(found.predict(a)[clear], to_points.argmin(axis=1)[clear])


def test_ties_go_to_the_class_that_comes_first():
    found = construct([[0.0, 1.0], [1.0, 0.0]], ["b", "a"])
    middle = np.array([[0.5, 0.5]])
    np.testing.assert_allclose(found.outputs(middle), [[0.5, 0.5]], atol=1e-12)
    assert found.predict(middle)[0] == "a"


def test_one_sample_in_each_class():
    found = construct(np.eye(4), [0, 1, 2, 3])
    assert found.certified
    assert found.cost < 1e-13
    assert found.affine_cost < 1e-12


def test_one_class_is_a_constant():
    found = construct(np.random.default_rng(0).normal(size=(5, 3)), ["only"] * 5, targets=[[2.0, 3.0]])
    assert found.method == "constant"
    assert found.cost == 0
    assert found.predict(np.ones((2, 3))).tolist() == ["only", "only"]


def test_own_targets_and_scale_invariance():
    rng = np.random.default_rng(9)
    inputs, labels = clusters(rng, 3, 5, noise=0.1)
    targets = rng.normal(size=(3, 2))
    for scale in (1e-12, 1.0, 1e12):
        found = construct(scale * inputs, labels, targets=targets)
        assert found.certified
        np.testing.assert_allclose(found.outputs(scale * inputs), targets[labels], atol=1e-9)


def test_samples_are_read_in_chunks(tmp_path, monkeypatch):
    inputs, labels = clusters(np.random.default_rng(10), 3, 6, noise=0.1, samples=200)
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, inputs.shape)
    stored[:] = inputs
    whole = construct(inputs, labels)
    monkeypatch.setattr("fibration.minimizers._statistics.CHUNK_BYTES", 48 * 7)
    parts = construct(np.load(tmp_path / "x.npy", mmap_mode="r"), labels)
    assert parts.certified
    for a, b in zip(whole.weights, parts.weights, strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-9, atol=1e-11)
    assert parts.affine_cost == pytest.approx(whole.affine_cost, rel=1e-10)


def test_tight_clusters_far_from_the_origin_keep_their_digits():
    rng = np.random.default_rng(11)
    inputs, labels = clusters(rng, 3, 3, noise=0.1, least=8)
    found = construct(1e6 + 1e-3 * inputs, labels)
    assert found.certified
    near = construct(inputs, labels)
    assert found.affine_cost == pytest.approx(near.affine_cost, rel=1e-3)


def test_float32_parameters_where_jax_has_no_more():
    inputs, labels = clusters(np.random.default_rng(12), 4, 4, noise=0.1)
    with jax.enable_x64(False):
        found = construct(inputs.astype(np.float32), labels)
        outputs = np.asarray(jax.vmap(found.apply, (None, 0))(found.params, inputs.astype(np.float32)))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, np.eye(4)[labels], atol=1e-4)
    assert found.cost < 1e-12  # the cost is that of the weights in double precision


def test_an_explicit_shift_and_opening():
    inputs, labels = clusters(np.random.default_rng(13), 3, 3, noise=0.05)
    found = construct(inputs, labels, shift=0.3, opening=2.0)
    assert found.certified
    for layer in found.layers:
        assert layer.opening == pytest.approx(2.0)
        assert layer.interval[0] < 0.3 < layer.interval[1]
    for shift in (1e-4, 0.82):
        with pytest.raises(fb.errors.ShiftError, match="between"):
            construct(inputs, labels, shift=shift)


def test_the_network_is_what_its_layers_say():
    inputs, labels = clusters(np.random.default_rng(14), 3, 7, noise=0.1)
    found = construct(inputs, labels)
    hidden = inputs
    for layer in found.layers:
        pre = hidden @ layer.W.T + layer.b
        own = labels == layer.collapses
        assert np.all(pre[own] < 0)
        assert np.all(pre[~own] > 0)
        hidden = np.maximum(pre, 0)
    last, offset = found.weights[-1]
    np.testing.assert_allclose(hidden @ last.T + offset, found.outputs(inputs), atol=1e-13)
    np.testing.assert_allclose(forward(found.weights, inputs), np.eye(3)[labels], atol=1e-12)
    assert "certified" in str(found)


BAD = [
    (lambda: construct(np.zeros((0, 2)), []), fb.errors.EmptyDataError, "at least one sample"),
    (lambda: construct(np.ones((3, 2)), [0, 1]), fb.errors.ShapeError, "one label"),
    (lambda: construct(np.ones(3), [0, 1, 1]), fb.errors.ShapeError, "row for each sample"),
    (lambda: construct([[np.nan, 1.0], [0.0, 1.0]], [0, 1]), fb.errors.NonFiniteDataError, "sample 0"),
    (lambda: construct(np.eye(2), [0.0, np.nan]), fb.errors.NonFiniteDataError, "labels"),
    (lambda: construct(np.eye(2) + 1j, [0, 1]), fb.errors.ShapeError, "real"),
    (lambda: construct(np.eye(3), [0, 1, 2], targets=[[0.0], [1.0], [2.0]]), fb.errors.TargetError, "affinely"),
    (lambda: construct(np.eye(3), [0, 1, 2], targets=np.eye(2)), fb.errors.ShapeError, "target for each class"),
    (lambda: construct(np.eye(2), [0, 1], depth=0), fb.errors.ShapeError, "at least 1"),
    (lambda: construct(np.eye(2), [0, 1], method="magic"), fb.errors.UnknownNameError, "separable"),
    (lambda: construct(np.eye(2), [0, 1], weights="big"), fb.errors.UnknownNameError, "sample"),
    (lambda: construct(np.eye(2), [0, 1], weights=[1.0, -1.0]), fb.errors.ShapeError, "positive"),
    (lambda: construct(np.eye(2), [0, 1], shift="far"), fb.errors.UnknownNameError, "auto"),
    (lambda: construct(np.eye(2), [0, 1], opening=4.0), fb.errors.ShapeError, "less than"),
    (
        lambda: construct([[0.0, 0], [1, 0], [2, 0]], [0, 1, 2], method="cone"),
        fb.errors.ConstructionError,
        "affinely dependent",
    ),
    (
        lambda: construct([[0.0, 0], [2, 0], [1, 0], [3, 0.1]], [0, 0, 1, 1], method="cone"),
        fb.errors.ConstructionError,
        "too wide",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input_is_refused_with_advice(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert all([caught.value.given, caught.value.needed, caught.value.fix])


def test_wrong_inputs_to_a_finished_network():
    found = construct(np.eye(3), [0, 1, 2])
    with pytest.raises(fb.errors.ShapeError, match=r"\(N, 3\)"):
        found.predict(np.ones(3))


def test_nearly_dependent_means_warn():
    inputs = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0 + 3e-8]])
    with pytest.warns(fb.errors.ConditioningWarning, match="nearly dependent"):
        construct(inputs, [0, 1, 2], method="cone")


def test_a_thin_margin_warns():
    inputs = np.array([[0.0], [1.0], [1.0 + 1e-7], [2.0]])
    with pytest.warns(fb.errors.ConditioningWarning, match="ill-conditioned"):
        found = construct(inputs, [0, 0, 1, 1])
    assert found.certified
    assert found.margin < 1e-7


def test_data_frames_and_lists():
    inputs, labels = clusters(np.random.default_rng(15), 3, 3, noise=0.1)
    expected = construct(inputs, labels).weights[0][0]
    for same in (pd.DataFrame(inputs, columns=list("abc")), inputs.tolist(), inputs.reshape(-1, 3, 1)):
        np.testing.assert_array_equal(construct(same, labels.tolist()).weights[0][0], expected)


def test_too_large_for_the_memory_budget_leaves_out_the_costly_rungs():
    inputs, labels = slabs(np.random.default_rng(0), 3, 4)
    found = construct(inputs, labels, memory_budget=100)
    assert {attempt.method for attempt in found.attempts if "memory" in attempt.reason} == {"separable", "soft"}


def test_an_ill_conditioned_network_is_not_certified(monkeypatch):
    # All signs are right, and rounding still ruins the outputs: by several tens of percent at this opening.
    inputs, labels = clusters(np.random.default_rng(16), 3, 4, noise=0.1)
    with monkeypatch.context() as patch:
        patch.setattr("fibration.minimizers._construct.WIDEST", np.pi)
        with pytest.raises(fb.errors.ConstructionError, match="rounding"):
            construct(inputs, labels, opening=np.pi - 1e-9, method="cone")
        assert construct(inputs, labels, opening=np.pi - 1e-9).method != "cone"
    with pytest.raises(fb.errors.ShapeError, match="less than"):
        construct(inputs, labels, opening=np.pi - 1e-6)


@pytest.mark.parametrize("unit", [1e-9, 1e-7, 1e7, 1e9])
def test_a_feature_in_other_units_changes_nothing(unit):
    inputs, labels = fb.datasets.iris()
    units = np.array([1.0, 1.0, 1.0, unit])
    expected, found = construct(inputs, labels), construct(inputs * units, labels)
    assert found.affine_cost == pytest.approx(expected.affine_cost, rel=1e-9)
    assert found.cost == pytest.approx(expected.cost, rel=1e-3)
    np.testing.assert_allclose(found.predict(inputs * units) == labels, expected.predict(inputs) == labels)


def test_samples_that_are_all_one_point_cost_what_the_best_constant_does():
    for counts in ([42, 49, 59], [3, 1], [7, 7, 9, 2]):
        labels = np.repeat(np.arange(len(counts)), counts)
        for inputs in (np.full((len(labels), 1), 3.0), np.tile([[0.1, 1e6, -7.7]], (len(labels), 1))):
            found = construct(inputs, labels)
            q = len(counts)
            assert found.cost == pytest.approx(np.sqrt(q - 1), rel=1e-9)
            outputs = jax.vmap(found.apply, (None, 0))(found.params, inputs)
            np.testing.assert_allclose(outputs, found.outputs(inputs), atol=1e-9)


def test_fewer_layers_that_cost_more_than_an_affine_map_are_refused():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(30):
        inputs, labels = rng.normal(size=(6, 5)), np.array([0, 1, 2, 0, 1, 2])
        try:
            found = construct(inputs, labels, depth=2, method="cone")
        except fb.errors.ConstructionError:
            refused += 1
        else:
            assert found.cost <= found.affine_cost * (1 + 1e-9) + 1e-12
    assert refused
