"""The 2^Q configurations, their costs and their status, against the tables of the theory and its counterexamples."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from clusters import clusters
from fibration.minimizers import configuration, shallow

# Costs from moments are roots of differences of numbers about one: below this there is rounding.
RESOLVED = 1e-8


def spec_data(q, spread, seed):
    """The recipe of the published tables: means I + 0.15·normal (columns), N_j = 25 + 3j, noise drawn at once."""
    rng = np.random.default_rng(seed)
    means = np.eye(q) + 0.15 * rng.normal(size=(q, q))
    labels = np.repeat(np.arange(q), [25 + 3 * j for j in range(q)])
    inputs = (means[:, labels] + spread * rng.normal(size=(q, len(labels)))).T
    centres = np.stack([inputs[labels == j].mean(axis=0) for j in range(q)])
    return inputs, labels, np.linalg.norm(inputs - centres[labels], axis=1).max()


# In the order 0…0, 0…1, …: cost at t = 1.6δ, at 2.2δ, with the tied bias, and the paper's value.
TABLES = {
    2: (0.05, 0, [
        (0, 0, 0, 0), (0.054374, 0.057876, 0.071958, 0.066522), (0.055955, 0.059558, 0.075962, 0.068375),
        (0.067251, 0.067251, 0.095285, 0.095285),
    ]),
    3: (0.03, 1, [
        (0, 0, 0, 0), (0.037433, 0.039783, 0.043413, 0.039390), (0.036646, 0.038581, 0.042157, 0.038895),
        (0.049195, 0.050490, 0.057725, 0.055342), (0.042821, 0.045812, 0.058350, 0.052401),
        (0.053962, 0.055780, 0.068201, 0.065533), (0.055099, 0.056943, 0.069410, 0.065238),
        (0.060939, 0.060939, 0.076178, 0.076178),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("q", [2, 3])
def test_the_published_tables(q):
    spread, seed, rows = TABLES[q]
    inputs, labels, radius = spec_data(q, spread, seed)
    for flags, (near, far, tied, paper) in zip(itertools.product([True, False], repeat=q), rows, strict=True):
        found = configuration(inputs, labels, flags, shift=1.6 * radius)
        assert found.cost == pytest.approx(near, abs=6e-7)
        assert found.tied_bias_cost == pytest.approx(tied, abs=6e-7)
        assert found.paper_cost == pytest.approx(paper, abs=6e-7)
        assert configuration(inputs, labels, flags, shift=2.2 * radius).cost == pytest.approx(far, abs=6e-7)
        mixed = any(flags) and not all(flags)
        assert found.status == ("not_stationary" if mixed else "global" if all(flags) else "local_minimum")
        # The paper calls mixed configurations local minima: their gradient says no.
        assert (found.gradient_norm > 1e-3) == mixed
        if not mixed:
            assert found.gradient_norm < 1e-12


@pytest.mark.parametrize(("q", "parameters"), [(2, 18), (3, 48), (4, 100)])
def test_the_rank_of_the_hessian(q, parameters):
    # Q² where all classes are collapsed, Q² + Q where none is, of Q(Q + 1)² parameters; positive semi-definite.
    inputs, labels, _ = spec_data(q, 0.03, 1)
    for flags, rank in (((True,) * q, q * q), ((False,) * q, q * q + q)):
        found = configuration(inputs, labels, flags)
        eigenvalues = found.hessian_eigenvalues
        assert len(eigenvalues) == parameters
        assert found.hessian_rank == rank
        assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_zero_cost_is_global_whatever_the_flags():
    # One sample in all classes but one: zero cost for mixed configurations as well.
    rng = np.random.default_rng(0)
    inputs = np.concatenate([np.eye(3)[0] + 0.05 * rng.normal(size=(20, 3)), np.eye(3)[1:]])
    labels = np.array([0] * 20 + [1, 2])
    for flags in ((True, False, False), (True, True, False), (True, False, True)):
        assert configuration(inputs, labels, flags).status == "global"


@pytest.mark.parametrize("flags", [(True, False), (False, True)])
def test_the_cost_of_a_mixed_configuration_grows_with_the_shift(flags):
    # ∂C²/∂t = 2 D f·Aᵀ(Ap + c − y) ≠ 0 for each collapsed class: against finite differences.
    inputs, labels, radius = spec_data(2, 0.05, 0)
    own = flags.index(True)
    h = 1e-5
    squares = [configuration(inputs, labels, flags, shift=1.8 * radius + d).cost ** 2 for d in (-h, h)]
    found = configuration(inputs, labels, flags, shift=1.8 * radius)
    means = np.stack([inputs[labels == j].mean(axis=0) for j in (0, 1)])
    axis = means.mean(axis=0) - means[own]
    axis /= np.linalg.norm(axis)
    point = means[own] + found.shifts[own] * axis
    cumulative = found.weights[2][0] @ found.weights[1][0] @ found.weights[0][0]
    value = fb.minimizers._network.forward(found.weights, point[None])[0]
    slope = 2 * axis @ cumulative.T @ (value - np.eye(2)[own])
    assert slope == pytest.approx((squares[1] - squares[0]) / (2 * h), rel=1e-5)
    assert slope > 1e-3


def test_the_tied_bias_value_is_not_the_minimum_and_moves_with_the_data():
    # The cross of the theory's second remark: the least cost does not depend on where the origin is, the paper's does.
    arms = 0.1 * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    inputs, labels = np.concatenate([np.eye(2)[0] + arms, np.eye(2)[1] + arms]), np.repeat([0, 1], 4)
    found = [configuration(inputs + shift, labels, (False, False)) for shift in (0.0, 1.0, 5.0)]
    np.testing.assert_allclose([f.cost for f in found], 0.0995, atol=5e-5)
    np.testing.assert_allclose([f.tied_bias_cost for f in found], [0.1407, 0.1049, 0.0999], atol=5e-5)


def test_the_infimum_of_a_mixed_configuration():
    # What the uncollapsed classes alone cost, which is reached only as the collapsed point goes to infinity.
    arms = 0.1 * np.concatenate([np.eye(3), -np.eye(3)])
    inputs, labels = np.concatenate([arms + corner for corner in np.eye(3)]), np.repeat([0, 1, 2], 6)
    alone = fb.minimizers.construct(inputs[labels > 0], labels[labels > 0], np.eye(3)[1:], method="affine").cost
    assert alone == pytest.approx(0.081379, abs=6e-7)
    costs = [configuration(inputs, labels, (True, False, False), shift=t).cost for t in (0.15, 0.3, 0.5)]
    assert alone < costs[0] < costs[1] < costs[2]


def test_shifts_beyond_the_centre_merge_two_classes():
    # Inside the paper's own interval of shifts; collapsed points cross the centre, and the cost is not zero.
    inputs = np.array([[1.0, 0.0], [0.0, 1.0]])
    distance = np.sqrt(0.5)
    assert configuration(inputs, [0, 1], (True, True), shift=0.9 * distance).cost < 1e-13
    with pytest.raises(fb.errors.ShiftError, match="between"):
        configuration(inputs, [0, 1], (True, True), shift=1.1 * distance)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 3), st.integers(0, 2), st.sampled_from(["class", "sample"]))
def test_costs_are_those_of_the_network_and_of_least_squares(seed, q, more, weights):
    rng = np.random.default_rng(seed)
    inputs, labels = clusters(rng, q, q + more, noise=0.1)
    share = (1 / np.bincount(labels) if weights == "class" else np.full(q, 1 / len(labels)))[labels]
    for flags in itertools.product([True, False], repeat=q):
        found = configuration(inputs, labels, flags, weights=weights)
        hidden, cumulative = inputs, np.zeros(inputs.shape[1])
        for weight, bias in found.weights[:-1]:
            hidden, cumulative = np.maximum(hidden @ weight.T + bias, 0), weight @ cumulative + bias
        root = np.sqrt(share)[:, None]
        goal = root * np.eye(q)[labels]

        def least(features, root=root, goal=goal):
            best = np.linalg.lstsq(root * features, goal, rcond=1e-12)[0]
            return np.linalg.norm(root * features @ best - goal)

        assert found.cost == pytest.approx(least(np.c_[hidden, np.ones(len(hidden))]), rel=1e-7, abs=1e-9)
        # The truncated inputs are W⁻¹(hidden − b) with the cumulative W and b; the tied bias leaves Az of them.
        if inputs.shape[1] == q:
            assert found.tied_bias_cost == pytest.approx(least(hidden - cumulative), rel=1e-6, abs=RESOLVED)
        outputs = jax.vmap(found.apply, (None, 0))(found.params, inputs)
        own = np.sqrt(np.sum(share * np.sum((np.asarray(outputs) - np.eye(q)[labels]) ** 2, axis=1)))
        assert found.cost == pytest.approx(own, rel=1e-7, abs=1e-9)
        assert found.cost <= found.tied_bias_cost * (1 + 1e-9) + RESOLVED


def test_bad_configurations_are_refused():
    inputs, labels, _ = spec_data(3, 0.03, 1)
    with pytest.raises(fb.errors.ShapeError, match="one for each of 3"):
        configuration(inputs, labels, (True, False))
    with pytest.raises(fb.errors.ClassMeansError, match="as many dimensions"):
        configuration(inputs[:, :2], labels, (True, False, True))
    with pytest.raises(fb.errors.ConstructionError, match="too wide"):
        configuration(np.array([[0.0, 0], [2, 0], [1, 0], [3, 0.1]]), [0, 0, 1, 1], (True, True))


# One hidden layer


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 6), st.integers(0, 6), st.sampled_from(["class", "sample"]))
def test_the_projection_costs_what_its_formula_says(seed, q, more, weights):
    rng = np.random.default_rng(seed)
    inputs, labels = clusters(rng, q, q + more, noise=0.1)
    found = shallow(inputs, labels, weights=weights, kind="projection")
    counts = np.bincount(labels)
    share = (1 / counts if weights == "class" else np.full(q, 1 / len(labels)))[labels]
    means = np.stack([inputs[labels == j].mean(axis=0) for j in range(q)])
    away = (inputs - means[labels]) @ np.linalg.pinv(means.T).T
    assert found.cost == pytest.approx(np.sqrt(np.sum(share * np.sum(away**2, axis=1))), rel=1e-8)
    assert found.noise_to_signal == pytest.approx(np.linalg.norm(away, axis=1).max(), rel=1e-10)
    assert found.cost <= found.bound
    others = rng.normal(size=(2, 20, q + more)) * 0.1
    inner = (others[0] - others[1]) @ np.linalg.pinv(means.T).T
    np.testing.assert_allclose(found.distance(*others), np.linalg.norm(inner, axis=1), rtol=1e-6, atol=1e-9)
    best = shallow(inputs, labels, weights=weights)
    assert best.cost == pytest.approx(best.affine_cost, rel=1e-7, abs=RESOLVED)
    assert best.affine_cost <= best.linear_cost * (1 + 1e-12) + RESOLVED
    assert best.linear_cost <= found.cost * (1 + 1e-9) + RESOLVED


def test_the_best_shallow_network_is_a_local_minimum_for_as_many_dimensions_as_classes():
    inputs, labels, _ = spec_data(3, 0.03, 1)
    found = shallow(inputs, labels)
    assert found.cost == pytest.approx(configuration(inputs, labels, (False,) * 3).cost, rel=1e-9)
    share = (1 / np.bincount(labels))[labels]
    problem = fb.Problem(found.apply, inputs, np.eye(3)[labels], weights=share * len(labels))
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(problem.gradient(found.params))) < 1e-13
    rng = np.random.default_rng(0)
    for _ in range(200):
        moved = [(w + 1e-3 * rng.normal(size=w.shape), b + 1e-3 * rng.normal(size=b.shape)) for w, b in found.weights]
        errors = np.sum((fb.minimizers._network.forward(moved, inputs) - np.eye(3)[labels]) ** 2, axis=1)
        assert np.sqrt(np.sum(share * errors)) >= found.cost


def test_one_layer_can_do_better_with_singular_weights():
    # Two units with one weight vector, a clipped ramp: zero cost with fewer layers than classes.
    inputs, labels, _ = spec_data(2, 0.05, 0)
    means = np.stack([inputs[labels == j].mean(axis=0) for j in (0, 1)])
    axis = means[1] - means[0]
    low, high = (inputs[labels == 0] @ axis).max(), (inputs[labels == 1] @ axis).min()
    assert low < high
    a, b = low + (high - low) / 3, low + 2 * (high - low) / 3
    ramp = (np.maximum(inputs @ axis - a, 0) - np.maximum(inputs @ axis - b, 0)) / (b - a)
    assert np.abs(ramp - labels).max() < 1e-12
    assert shallow(inputs, labels).cost > 0.05


def test_bad_shallow_networks_are_refused():
    inputs, labels, _ = spec_data(3, 0.03, 1)
    with pytest.raises(fb.errors.UnknownNameError, match="projection"):
        shallow(inputs, labels, kind="deep")
    with pytest.raises(fb.errors.ClassMeansError, match="centring"):
        shallow(inputs - np.stack([inputs[labels == j].mean(axis=0) for j in range(3)]).mean(axis=0), labels,
                kind="projection")  # fmt: skip


# What the papers say and is not so, beyond what the tables show


def test_narrowing_layers_with_rotations_of_their_own_do_not_exist():
    # arXiv 2405.07098, proposition 4.1: a layer can only see what the last one left. The construction in one common
    # projection has zero cost on the same data.
    rng = np.random.default_rng(0)
    q, dimension = 3, 5
    means = np.eye(q, dimension)
    labels = np.repeat(np.arange(q), 20)
    inputs = means[labels] + 0.03 * rng.normal(size=(len(labels), dimension))
    assert fb.minimizers.construct(inputs, labels).cost < 1e-13
    centre, widths, costs = means.mean(axis=0), (5, 4, 3), []
    for _ in range(100):
        hidden, previous, offset = inputs, np.eye(dimension), np.zeros(dimension)
        for j, width in enumerate(widths):
            axis = (centre - means[j]) / np.linalg.norm(centre - means[j])
            # Rows that are orthonormal and take the axis to the diagonal, otherwise random.
            frame = np.linalg.qr(np.column_stack([axis, rng.normal(size=(dimension, width - 1))]))[0].T
            turn = np.linalg.qr(np.column_stack([np.ones(width), rng.normal(size=(width, width - 1))]))[0]
            rows = (turn * np.sign(turn[0, 0])) @ (frame * np.sign(frame[0] @ axis))
            slack = fb.minimizers._cone.contraction_of(2.0, width)
            weight = slack * rows + (1 - slack) * np.ones((width, width)) @ rows / width
            bias = -weight @ (means[j] + 0.2 * axis)
            layer = weight @ np.linalg.pinv(previous)
            hidden = np.maximum(hidden @ layer.T + bias - layer @ offset, 0)
            previous, offset = weight, bias
        features = np.column_stack([hidden, np.ones(len(hidden))])
        goal = np.eye(q)[labels]
        left = goal - features @ np.linalg.lstsq(features, goal, rcond=1e-10)[0]
        costs.append(np.sqrt(np.sum(left**2) / 20))
    assert np.mean(np.array(costs) > 1e-3) > 0.3


def test_the_papers_interval_of_shifts_may_be_empty_where_the_construction_exists():
    found_empty = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q = 6
        inputs, labels = clusters(rng, q, q, noise=0.1)
        means = np.stack([inputs[labels == j].mean(axis=0) for j in range(q)])
        radius = np.linalg.norm(inputs - means[labels], axis=1).max()
        conditions = fb.minimizers.construct(inputs, labels).conditions
        if not conditions.satisfied_in_inputs:
            continue
        half, centre, tops = conditions.opening / 2, means.mean(axis=0), []
        for j in range(q):
            axis = (centre - means[j]) / np.linalg.norm(centre - means[j])
            to = np.delete(means, j, axis=0) - means[j]
            along = to @ axis
            across = np.linalg.norm(to - np.outer(along, axis), axis=1)
            tops.append(np.min(along - (radius + across * np.cos(half)) / np.sin(half)))
        found_empty += 2 * radius * np.sqrt(q) >= min(tops)
        # That of the later paper, (2δ, 3δ) with an opening of at least π/2, never is.
        wide = max(conditions.opening, np.pi / 2)
        for shift in (2.01 * radius, 2.99 * radius):
            assert configuration(inputs, labels, (True,) * q, shift=shift, opening=wide).cost < 1e-11
    assert found_empty > 0


@pytest.mark.slow
def test_descent_leaves_a_mixed_configuration_and_stays_at_the_others():
    inputs, labels, radius = spec_data(2, 0.05, 0)
    ends = {}
    for flags in itertools.product([True, False], repeat=2):
        found = configuration(inputs, labels, flags, shift=1.6 * radius)
        share = (1 / np.bincount(labels))[labels]
        problem = fb.Problem(found.apply, inputs, np.eye(2)[labels], weights=share * len(labels))  # the cost is C²/2
        top = fb.curvature.extreme_eigenvalues(problem, found.params, 1, tolerance=1e-3).largest[0]
        run = fb.descend(
            problem, fb.GradientFlow(), found.params, step_size=float(1 / top), steps=30_000, save_every=30_000
        )
        ends[flags] = np.sqrt(2 * run.costs)
    assert ends[True, True].max() < 1e-14
    np.testing.assert_allclose(ends[False, False], 0.067251, atol=6e-7)
    # The table's 0.050925 and 0.051842 are where another step size was after as many steps.
    for flags, start, end in (((True, False), 0.054374, 0.0515), ((False, True), 0.055955, 0.0525)):
        assert ends[flags][0] == pytest.approx(start, abs=6e-7)
        assert ends[flags][-1] < end


def test_configurations_in_more_dimensions_than_classes_are_stationary():
    for seed in range(5):
        inputs, labels = clusters(np.random.default_rng(seed), 3, 6, noise=0.3, samples=40, least=30)
        found = configuration(inputs, labels, (False,) * 3)
        assert found.status == "local_minimum"
        assert found.gradient_norm < 1e-9
        assert found.cost == pytest.approx(fb.minimizers.construct(inputs, labels, method="affine").cost, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_configurations_do_not_depend_on_the_scale(scale):
    inputs, labels, _ = spec_data(3, 0.03, 1)
    for flags in ((True,) * 3, (False,) * 3, (True, False, True)):
        own, found = configuration(inputs, labels, flags), configuration(scale * inputs, labels, flags)
        assert found.status == own.status
        assert found.cost == pytest.approx(own.cost, rel=1e-6, abs=1e-11)
    assert configuration(inputs + 1e6, labels, (True,) * 3).status == "global"


BAD = [
    (lambda x, y: configuration(x, 0 * y, (True,)), fb.errors.ShapeError, "two classes"),
    (lambda x, y: configuration(np.ones_like(x), y, (True,) * 3), fb.errors.ConstructionError, "centre"),
    (lambda x, y: configuration(x, y, (True,) * 3, opening=np.pi), fb.errors.ShapeError, "less than"),
    (lambda x, y: configuration(x, y, (True,) * 3, opening=np.nan), fb.errors.ShapeError, "more than 0"),
    (lambda x, y: configuration(x, y, (True,) * 3, shift="far"), fb.errors.UnknownNameError, "auto"),
    (lambda x, y: shallow(x, y).predict(x[:, :2]), fb.errors.ShapeError, r"\(N, 3\)"),
    (lambda x, y: shallow(x, y).predict(np.nan * x), fb.errors.NonFiniteDataError, "finite"),
    (lambda x, y: fb.minimizers.construct(x, ["a", None, 1] * (len(x) // 3)), fb.errors.ShapeError, "one type"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_what_a_reader_broke(call, error, words):
    inputs, labels, _ = spec_data(3, 0.03, 1)
    with pytest.raises(error, match=words):
        call(inputs[:84], labels[:84])


def test_dependent_means_have_no_noise_to_signal():
    found = fb.minimizers.noise_to_signal([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]], [0, 0, 1, 1])
    assert np.isnan(found.supremum)
    inputs, labels, _ = spec_data(3, 0.03, 1)
    centred = inputs - np.stack([inputs[labels == j].mean(axis=0) for j in range(3)]).mean(axis=0)
    assert np.isnan(shallow(centred, labels).bound)
