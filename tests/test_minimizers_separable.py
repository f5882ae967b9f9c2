"""The rungs below the cones: classes that hyperplanes peel off one by one, and those that they almost do."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import fibration as fb
from clusters import slabs
from fibration.minimizers import Cone, construct
from fibration.minimizers._affine import best_affine
from fibration.minimizers._hyperplanes import (
    Overlap,
    between,
    contraction_bound,
    scaled_coordinates,
    separate,
)
from fibration.minimizers._ladder import Task, clouds_in
from fibration.minimizers._separable import Search, apart, lifted, separable
from fibration.minimizers._soft import soft
from fibration.minimizers._statistics import as_classes, class_statistics
from fibration.minimizers._types import Failure


def task_of(inputs, labels, depth=None, memory_budget=2**30):
    classes = as_classes(inputs, labels, "class")
    q = len(classes.names)
    return Task(classes, class_statistics(classes), np.eye(q), depth or q, None, None, memory_budget)


def peeled(rng, q, dimension, gap=0.05):
    """Classes cut off by random hyperplanes ⟨h_j, z⟩ = −r_j, one after another, in an order that is then shuffled.

    The r_j grow, so that the foot point −r_j h_j is above all later hyperplanes: the order is one that works.
    """
    while True:
        axes = rng.normal(size=(q, dimension))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        radii = np.sort(rng.uniform(0.2, 1.2, q))
        points = 3 * rng.normal(size=(5000, dimension))
        heights = points @ axes.T + radii
        clouds = [
            points[(heights[:, j] < -gap) & np.all(heights[:, :j] > gap, axis=1)][: rng.integers(1, 21)]
            for j in range(q)
        ]
        if all(map(len, clouds)):
            return np.concatenate(clouds), np.repeat(rng.permutation(q), list(map(len, clouds)))


def shells(rng, dimension, samples=60):
    """Class 0 inside a shell of class 1."""
    directions = rng.normal(size=(samples, dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    inside = 0.5 * rng.uniform(-1, 1, size=(samples, dimension)) / np.sqrt(dimension)
    return np.concatenate([inside, 2 * directions, -2 * directions]), np.repeat([0, 1], [samples, 2 * samples])


def real(name, components=None):
    """70 % of a data set, its features standardised, perhaps reduced."""
    data = getattr(datasets, f"load_{name}")()
    inputs, _, labels, _ = train_test_split(data.data, data.target, test_size=0.3, random_state=0, stratify=data.target)
    inputs = StandardScaler().fit_transform(inputs)
    return (PCA(components, svd_solver="full").fit_transform(inputs) if components else inputs), labels


def hulls_meet(first, second):
    """Whether two convex hulls have a point in common: by a linear program for its weights."""
    a, b = len(first), len(second)
    equations = np.vstack(
        [np.hstack([first.T, -second.T]), np.repeat([1.0, 0.0], [a, b]), np.repeat([0.0, 1.0], [a, b])]
    )
    return linprog(np.zeros(a + b), A_eq=equations, b_eq=np.append(np.zeros(first.shape[1]), [1.0, 1.0])).status == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.floats(0, 3))
def test_a_hyperplane_is_found_if_and_only_if_the_hulls_do_not_meet(seed, dimension, apart_by):
    rng = np.random.default_rng(seed)
    own, rest = rng.normal(size=(rng.integers(1, 120), dimension)), rng.normal(size=(rng.integers(1, 120), dimension))
    rest[:, 0] += apart_by
    found = separate(own, rest)
    assert isinstance(found, Overlap) == hulls_meet(own, rest)
    if isinstance(found, Overlap):
        assert found.proven
        assert found.violation >= 0
    else:
        # Its margin is nearly that of a support vector machine.
        assert np.max(own @ found.axis) - found.level == pytest.approx(-found.margin)
        assert np.min(rest @ found.axis) - found.level == pytest.approx(found.margin)
        machine = SVC(kernel="linear", C=1e9).fit(np.concatenate([own, rest]), np.repeat([0, 1], [len(own), len(rest)]))
        assert found.margin > 0.9 * between(own, rest, machine.coef_[0]).margin


def test_the_violation_is_that_of_the_best_hyperplane():
    # On a line: ±1 against ±2 around 3/4; with ⟨h, Δ⟩ = |Δ| there is one direction, and the best level is half-way.
    own, rest = np.array([[-1.0], [1.0]]), np.array([[-1.25], [2.75]])
    assert separate(own, rest).violation == pytest.approx((1 + 1.25) / 2 / 0.75)
    assert separate(own, own).violation == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 7))
def test_the_bound_of_the_contraction_is_sharp(seed, dimension):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=dimension)
    axis /= np.linalg.norm(axis)
    points = 2 * rng.normal(size=(60, dimension))
    below = points @ axis < 0
    base = rng.normal(size=dimension)
    base -= (base @ axis) * axis
    bound = contraction_bound(points[below], points[~below], base, axis)
    for contraction, expected in ((0.999 * bound, True), (1.001 * bound, False)):
        cone = Cone(base, axis, contraction)
        right = np.all(cone.preactivations(points[below]) < 0) and np.all(cone.preactivations(points[~below]) > 0)
        assert right == expected


@pytest.mark.parametrize("generator", [slabs, peeled])
@pytest.mark.parametrize("q", range(2, 7))
def test_zero_cost_on_sequentially_separable_classes(generator, q):
    for dimension in range(2, 7):
        for seed in range(3):
            inputs, labels = generator(np.random.default_rng(100 * seed + dimension), q, dimension)
            found = separable(task_of(inputs, labels))
            assert not isinstance(found, Failure), found
            assert found.certified
            assert found.cost < 1e-9
            assert np.min(found.margins) > 0
            assert sorted(step.label for step in found.steps) == list(range(q))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 5), st.integers(1, 5))
def test_the_whole_network_maps_every_sample_to_its_target(seed, q, dimension):
    inputs, labels = slabs(np.random.default_rng(seed), q, dimension)
    found = construct(inputs, labels, method="separable")
    assert found.certified
    assert found.cost < 1e-9
    np.testing.assert_allclose(found.outputs(inputs), np.eye(q)[labels], atol=1e-8)
    # And every convex combination of a class's samples.
    inside = np.random.default_rng(0).dirichlet(np.ones(30), size=50) @ inputs[labels == 0]
    np.testing.assert_allclose(found.outputs(inside), np.tile(np.eye(q)[0], (50, 1)), atol=1e-8)


@pytest.mark.parametrize(("q", "dimension", "seed"), [(3, 2, 57), (4, 3, 17), (5, 4, 49)])
def test_another_order_where_the_largest_margin_first_comes_to_a_dead_end(q, dimension, seed):
    task = task_of(*peeled(np.random.default_rng(seed), q, dimension))
    coordinates, _ = scaled_coordinates(task)
    clouds = clouds_in(task, coordinates)
    search = Search(20 * q)
    assert search.peel(clouds) == []
    steps = search.descend(clouds, [], search.first)
    assert search.dead_ends > 0
    assert search.programs < search.budget
    assert sorted(step.label for step in steps) == list(range(q))
    found = separable(task)
    assert found.certified
    assert len(found.coordinates.offset) == dimension  # no spare unit was needed
    # Without the budget to go back, the spare unit helps.
    search = Search(0)
    search.peel(clouds)
    assert search.descend(clouds, [], search.first) is None
    coordinates, search.lift = scaled_coordinates(task, spare=True)
    clouds, search.budget, search.programs, search.dead_ends = clouds_in(task, coordinates), 20 * q, 0, 0
    assert search.descend(clouds, [], search.first) is not None
    assert search.dead_ends == 0


def test_classes_between_others_need_a_spare_unit():
    # Wide slabs: the points of the outer classes would enclose the middle one, wherever they are near the samples.
    inputs, labels = slabs(np.random.default_rng(0), 5, 6)
    found = construct(inputs, labels, method="separable")
    assert [layer.W.shape[0] for layer in found.layers] == [7] * 5
    # More classes than the features allow for independent points.
    inputs, labels = slabs(np.random.default_rng(0), 6, 1)
    assert construct(inputs, labels).layers[0].W.shape == (6, 1)


def test_classes_around_others_are_refused_with_the_reason():
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 5):
        inputs, labels = shells(rng, dimension)
        found = separable(task_of(inputs, labels))
        assert isinstance(found, Failure)
        assert "not sequentially linearly separable" in found.reason
        assert "any of the 2 classes" in found.reason
        assert found.numbers["classes"] == 2
        assert 0 < found.numbers["smallest_violation"] <= found.numbers["largest_violation"]
    # A third class outside can be peeled off; the other two never.
    inputs, labels = shells(rng, 3)
    found = separable(task_of(np.concatenate([inputs, inputs[:20] + 9]), np.append(labels, np.full(20, 2))))
    assert "any of 2 of the 3 classes" in found.reason
    assert found.numbers["inseparable"] == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 4), st.integers(1, 3))
def test_a_refusal_holds_for_every_order(seed, q, dimension):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(q), rng.integers(0, q, 12)])
    inputs = rng.normal(size=(len(labels), dimension)) + 1.5 * rng.normal(size=(q, dimension))[labels]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fb.errors.ConditioningWarning)
        found = separable(task_of(inputs, labels))

    def works(order):
        return not any(
            hulls_meet(inputs[labels == order[k]], inputs[np.isin(labels, order[k + 1 :])]) for k in range(q - 1)
        )

    assert isinstance(found, Failure) != any(map(works, itertools.permutations(range(q))))


def test_a_memory_budget_and_too_few_layers():
    inputs, labels = slabs(np.random.default_rng(0), 3, 4)
    assert "memory" in separable(task_of(inputs, labels, memory_budget=100)).reason
    assert "memory" in soft(task_of(inputs, labels, memory_budget=100)).reason
    assert "fewer layers than classes" in separable(task_of(inputs, labels, depth=2)).reason


def test_one_sample_and_more_features_than_samples():
    rng = np.random.default_rng(1)
    inputs, labels = slabs(rng, 3, 4)
    few = np.concatenate([np.flatnonzero(labels == 0)[:1], np.flatnonzero(labels > 0)])
    found = separable(task_of(inputs[few], labels[few]))
    assert found.certified
    assert found.cost < 1e-9
    wide = rng.normal(size=(12, 300))
    found = construct(wide, np.arange(12) % 3, method="separable")
    assert found.certified
    assert found.cost < 1e-12
    assert found.layers[0].W.shape == (11, 300)  # the span of twelve samples
    np.testing.assert_allclose(found.outputs(wide), np.eye(3)[np.arange(12) % 3], atol=1e-11)


def test_base_points_stay_in_the_hyperplane_and_leave_the_span():
    rng = np.random.default_rng(2)
    axis = rng.normal(size=5)
    axis /= np.linalg.norm(axis)
    first, second = rng.normal(size=(2, 5))
    base = (2 * first + second) / 3
    moved = apart(base, axis, [first, second], 0.1)
    assert (moved - base) @ axis == pytest.approx(0, abs=1e-14)
    line = (second - first) / np.linalg.norm(second - first)
    off = (moved - first) - ((moved - first) @ line) * line
    assert np.linalg.norm(off) >= 0.1
    raised = lifted(base, axis, 4)
    assert raised[4] == pytest.approx(1) or np.linalg.norm(raised - base) == pytest.approx(2)
    assert (raised - base) @ axis == pytest.approx(0, abs=1e-14)


REAL = [("wine", None, 1e-12), ("wine", 3, 1e-11), ("digits", 60, 1e-10)]


@pytest.mark.parametrize(("name", "components", "most"), REAL)
def test_real_data_that_are_separable(name, components, most):
    inputs, labels = real(name, components)
    found = construct(inputs, labels, method="separable")
    assert found.certified
    assert found.margin > 1e-4
    assert found.cost < most
    np.testing.assert_array_equal(found.predict(inputs), labels)
    # The certificate, from the network alone: signs of pre-activations.
    hidden = inputs
    for layer in found.layers:
        pre = hidden @ layer.W.T + layer.b
        own = labels == layer.collapses
        assert np.all(pre[own] < 0)
        assert np.all(pre[~own] >= 0) if layer is not found.layers[0] else np.all(pre[~own] > 0)
        hidden = np.maximum(pre, 0)


# The numbers of the spec's section 7, of 70/30 splits.
@pytest.mark.parametrize(("name", "components", "affine"), [("iris", None, 0.884), ("digits", 10, 2.274)])
def test_real_data_that_are_not(name, components, affine):
    task = task_of(*real(name, components))
    assert best_affine(task.statistics, task.targets)[2] == pytest.approx(affine, abs=1e-3)
    found = separable(task)
    assert "not sequentially linearly separable" in found.reason


def test_the_soft_cost_of_iris():
    found = construct(*real("iris"))
    assert found.method == "soft"
    assert not found.certified
    assert found.cost == pytest.approx(0.453, abs=0.02)  # 0.448 here; the heuristic's candidates are not the spec's
    assert found.affine_cost == pytest.approx(0.884, abs=1e-3)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 4), st.integers(1, 5), st.integers(1, 3))
def test_soft_costs_no_more_than_the_best_affine_map(seed, q, dimension, depth):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(q), rng.integers(0, q, 40)])
    inputs = rng.normal(size=(len(labels), dimension)) + labels[:, None]
    task = task_of(inputs, labels, depth)
    affine = best_affine(task.statistics, task.targets)[2]
    found = soft(task)
    if isinstance(found, Failure):
        assert found.numbers["affine_cost"] == pytest.approx(affine)
        assert "best affine map" in found.reason
        return
    assert found.cost <= affine
    assert not found.certified
    assert len(found.steps) == depth
    assert all(step.label is None for step in found.steps)
    # The cost is the network's, layer by layer in the inputs themselves.
    hidden = inputs
    for weight, bias in found.weights[:-1]:
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    outputs = hidden @ found.weights[-1][0].T + found.weights[-1][1]
    squares = np.sum((outputs - np.eye(q)[labels]) ** 2, axis=1) / np.bincount(labels)[labels]
    assert np.sqrt(squares.sum()) == pytest.approx(found.cost, rel=1e-6)


def test_soft_bends_where_an_affine_map_cannot():
    # A class inside a shell, which an affine map hardly tells apart (its cost is nearly √(1/2 · 2) = 1).
    inputs, labels = shells(np.random.default_rng(3), 2)
    found = construct(inputs, labels, depth=4)
    assert found.affine_cost > 0.95
    assert found.method == "soft"
    assert found.cost < 0.85 * found.affine_cost


def test_both_rungs_are_deterministic():
    for rung, data in ((separable, slabs(np.random.default_rng(4), 4, 3)), (soft, real("iris"))):
        first, second = rung(task_of(*data)), rung(task_of(*data))
        for a, b in zip(first.weights, second.weights, strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])


def test_constant_features_and_scales():
    inputs, labels = slabs(np.random.default_rng(5), 3, 3)
    padded = np.hstack([inputs, np.full((len(inputs), 2), 7.0)])
    for scale in (1e-9, 1.0, 1e9):
        found = separable(task_of(scale * padded, labels))
        assert found.certified
        assert found.cost < 1e-9
