"""The pictures of minimisers: what they show is what the layers do."""

import itertools
import math

import matplotlib as mpl
import numpy as np
import pytest

import fibration as fb
from clusters import clusters
from fibration.errors import EmptyDataError, ShapeError
from fibration.minimizers import Cone, configuration, construct, noise_to_signal, truncation_view
from fibration.minimizers._film import BASE, EDGES, OPPOSITE, _clip, _edges, _plane, film_strip
from fibration.minimizers._plots import cost_ladder, degenerate_directions, noise_plot


def recipe(q, spread, seed):
    """The clusters of spec 002, section 4.3, and the largest radius."""
    rng = np.random.default_rng(seed)
    means = np.eye(q) + 0.15 * rng.normal(size=(q, q))
    labels = np.repeat(np.arange(q), 25 + 3 * np.arange(q))
    inputs = (means[:, labels] + spread * rng.normal(size=(q, len(labels)))).T
    centres = np.stack([inputs[labels == j].mean(axis=0) for j in range(q)])
    return inputs, labels, np.linalg.norm(inputs - centres[labels], axis=1).max()


@pytest.fixture(scope="module")
def three():
    inputs, labels = clusters(np.random.default_rng(0), 3, 5, noise=0.15, samples=40)
    return construct(inputs, labels), inputs, labels


@pytest.fixture(scope="module")
def ladder():
    inputs, labels, radius = recipe(3, 0.03, 1)
    flags = list(itertools.product((True, False), repeat=3))
    return {s: configuration(inputs, labels, s, shift=1.6 * radius) for s in flags}


def named(plot, start):
    return next((series for series in plot.series if series.name.startswith(start)), None)


# The film strip


def test_the_film_shows_what_the_layers_leave(three):
    found, inputs, labels = three
    film = film_strip(found, inputs, labels)
    assert len(film) == 4
    for layers, plot in enumerate(film):
        z = found.truncated(inputs, layers)
        assert plot.equal
        assert (plot.x_range, plot.y_range) == (film[0].x_range, film[0].y_range)
        for j in range(3):
            own, shown = z[labels == j], named(plot, f"class {j}")
            assert shown.dash == "none"
            # The plane of three means holds the differences of what lies in it, and shortens all others.
            apart = np.linalg.norm(own - own[0], axis=1)
            drawn = np.hypot(shown.x - shown.x[0], shown.y - shown.y[0])
            assert np.all(drawn <= apart + 1e-12)
            assert shown.wide == (layers > [step.label for step in found.steps].index(j))
    assert [plot.title for plot in film[1:]] == [
        f"Layer {place}: class {step.label} is a point" for place, step in enumerate(found.steps, 1)
    ]


def test_the_plane_of_three_classes_keeps_the_triangle_of_their_means(three):
    found, inputs, labels = three
    z = found.truncated(inputs, 0)
    plane = _plane(z, labels, 3)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-14)
    means = np.stack([z[labels == j].mean(axis=0) for j in range(3)])
    seen = means @ plane.T
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(seen[i] - seen[j]) == pytest.approx(np.linalg.norm(means[i] - means[j]), rel=1e-12)
    assert seen[0, 1] > max(seen[1, 1], seen[2, 1])  # the first class is on top


@pytest.mark.parametrize("q", [4, 5, 6])
def test_a_regular_simplex_is_shown_as_a_regular_polygon(q):
    plane = _plane(np.repeat(np.eye(q), 2, axis=0), np.repeat(np.arange(q), 2), q)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(plane, axis=0), math.sqrt(2 / q), rtol=1e-12)
    sides = np.linalg.norm(plane - np.roll(plane, 1, axis=1), axis=0)
    np.testing.assert_allclose(sides, math.sqrt(8 / q) * math.sin(math.pi / q), rtol=1e-12)


def test_other_means_are_seen_along_their_principal_axes():
    rng = np.random.default_rng(1)
    means, labels = rng.normal(size=(5, 4)) * [1, 9, 1, 5], np.repeat(np.arange(5), 3)
    plane = _plane(np.repeat(means, 3, axis=0), labels, 5)
    away = means - means.mean(axis=0)
    vectors = np.linalg.eigh(away.T @ away)[1]
    for row, place in ((0, -1), (1, -2)):
        assert abs(plane[row] @ vectors[:, place]) == pytest.approx(1.0, abs=1e-10)
    # Two means make a line; beside it, where the samples spread most.
    z = np.array([[0.0, 0, 0], [0, 0.1, 3], [0, 0.1, -3], [2, 0.2, 1], [2, 0, -1]])
    line = _plane(z, np.array([0, 0, 0, 1, 1]), 2)
    np.testing.assert_allclose(line @ line.T, np.eye(2), atol=1e-12)
    assert abs(line[1, 2]) > 0.99


@pytest.mark.parametrize("contraction", [0.05, 0.3, 1.0])
def test_in_two_dimensions_the_edges_open_by_half_the_angle_about_the_axis(contraction):
    axis = np.array([math.cos(0.7), math.sin(0.7)])
    cone = Cone(np.array([0.2, -0.1]), axis, contraction)
    edges = _edges(cone, np.eye(2))
    angles = np.sort([math.atan2(axis[0] * e[1] - axis[1] * e[0], axis @ e) for e in edges])
    np.testing.assert_allclose(angles, [-cone.opening / 2, cone.opening / 2], atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_between_the_edges_stays_and_the_opposite_goes_to_the_base_point(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 6))
    plane = np.linalg.qr(rng.normal(size=(n, 2)))[0].T
    tilt = plane[0] + 0.2 * rng.normal(size=n)
    cone = Cone(rng.normal(size=n), tilt / np.linalg.norm(tilt), float(rng.uniform(0.05, 1)))
    edges = _edges(cone, plane)
    share = rng.uniform(0.01, 2, size=(30, 2))
    if len(edges):
        inside = share @ edges @ plane
        np.testing.assert_array_equal(cone.truncate(cone.base_point + inside), cone.base_point + inside)
        np.testing.assert_array_equal(cone.truncate(cone.base_point - inside), np.tile(cone.base_point, (30, 1)))
        # Just outside an edge something changes.
        for edge, other in (edges, edges[::-1]):
            outside = cone.base_point + (edge + 1e-3 * (edge - other)) @ plane
            assert np.any(cone.preactivations(outside[None]) < 0)
    else:
        turns = np.linspace(0, 2 * np.pi, 2000)
        around = np.stack([np.cos(turns), np.sin(turns)], axis=1) @ plane
        assert not np.any(np.all(cone.preactivations(cone.base_point + around) > 0, axis=1))


def test_rays_are_cut_to_the_picture():
    box = np.array([[0.0, 0.0], [2.0, 1.0]])
    np.testing.assert_allclose(_clip(np.array([1.0, 0.5]), np.array([1.0, 0.0]), box), [[1.0, 0.5], [2.0, 0.5]])
    np.testing.assert_allclose(_clip(np.array([-1.0, -1.0]), np.array([1.0, 1.0]), box), [[0.0, 0.0], [1.0, 1.0]])
    assert _clip(np.array([3.0, 0.5]), np.array([1.0, 0.0]), box) is None
    assert _clip(np.array([1.0, 2.0]), np.array([1.0, 0.0]), box) is None


def test_the_cone_of_the_film_holds_the_classes_that_stay(three):
    found, inputs, labels = three
    film = film_strip(found, inputs, labels)
    plane = _plane(found.truncated(inputs, 0), labels, 3)
    for plot, step in zip(film, found.steps, strict=False):
        base, kept, opposite = named(plot, BASE), named(plot, EDGES), named(plot, OPPOSITE)
        np.testing.assert_allclose([base.x[0], base.y[0]], plane @ step.cone.base_point, atol=1e-12)
        assert kept.dash == "solid"
        assert opposite.dash == "dashed"
        # Both rays begin at the base point and end at the frame.
        for series in (kept, opposite):
            np.testing.assert_allclose([series.x[0], series.y[0]], [base.x[0], base.y[0]], atol=1e-12)
            assert np.any(np.isclose([series.x[1], series.x[1], series.y[1], series.y[1]], plot.x_range + plot.y_range))
    assert named(film[-1], BASE) is None


def test_a_film_of_many_samples_shows_some_of_each_class():
    inputs, labels = fb.datasets.gaussian_clusters(2, 300, 2, spread=0.02, means=[[1.0, 0.0], [0.0, 1.0]])
    found = construct(inputs, labels)
    film = film_strip(found, inputs, labels, most=50)
    assert [len(named(film[0], f"class {j}").x) for j in (0, 1)] == [50, 50]
    shown = named(film[0], "class 0")
    np.testing.assert_array_equal(shown.x, found.truncated(inputs[:300], 0)[np.linspace(0, 299, 50).astype(int), 0])
    assert film[0].x_label == "z₁"


def test_a_film_needs_two_dimensions_and_labelled_samples(three):
    found, inputs, labels = three
    alone = construct(inputs, np.zeros(len(inputs)))
    with pytest.raises(ShapeError, match="one dimension"):
        film_strip(alone, inputs, labels)
    with pytest.raises(ShapeError, match="one label for each sample"):
        film_strip(found, inputs, labels[:-1])


@pytest.mark.parametrize("depth", [1, 5])
def test_films_of_fewer_and_of_more_layers_than_classes(depth):
    inputs, labels = clusters(np.random.default_rng(2), 3, 3, noise=0.1)
    found = construct(inputs, labels, depth=depth)
    film = film_strip(found, inputs, labels)
    assert len(film) == depth + 1
    extra = next((place for place, step in enumerate(found.steps) if step.label is None), None)
    assert (extra is None) == (depth == 1)
    if extra is not None:  # a layer that leaves all samples alone has no cone to show
        assert named(film[extra], BASE) is named(film[extra], EDGES) is None
        assert film[extra + 1].title == f"Layer {extra + 1}"


# The other pictures


def test_the_noise_by_layer_is_that_of_the_truncated_samples(three):
    found, inputs, labels = three
    plot = noise_plot(found, inputs, labels)
    norm, supremum = plot.series
    for layers in range(3):
        expected = noise_to_signal(found.truncated(inputs, layers), labels)
        assert (norm.y[layers], supremum.y[layers]) == (expected.norm, expected.supremum)
    assert norm.y[3] == supremum.y[3] == 0
    assert plot.y_log
    assert plot.x_names == ("before", "1", "2", "3")
    assert np.isnan(fb.plots.to_matplotlib(plot).axes[0].lines[0].get_ydata()[3])
    assert plot.caption.endswith("From layer 3 on there is none.")
    assert [line.value for line in plot.moments] == [3.0]
    # The same through the products of the weights, to rounding.
    view = truncation_view(found)
    other = noise_plot(view, inputs, labels)
    assert len(other.series[0].y) == 4
    assert other.series[0].y[3] < 1e-9
    np.testing.assert_allclose(noise_plot(view, inputs, labels).series[0].y[:3], norm.y[:3], rtol=1e-8)


def test_the_ladder_shows_the_table_of_the_spec(ladder):
    plot = cost_ladder(list(ladder.values()))
    paper, tied, cost = (dict(zip(plot.x_names, series.y, strict=True)) for series in plot.series)
    # Spec 002, section 4.3, Q = 3, t = 1.6 δ.
    table = {
        "000": (0, 0, 0),
        "001": (0.037433, 0.043413, 0.039390),
        "010": (0.036646, 0.042157, 0.038895),
        "011": (0.049195, 0.057725, 0.055342),
        "100": (0.042821, 0.058350, 0.052401),
        "101": (0.053962, 0.068201, 0.065533),
        "110": (0.055099, 0.069410, 0.065238),
        "111": (0.060939, 0.076178, 0.076178),
    }
    for name, expected in table.items():
        assert (cost[name], tied[name], paper[name]) == pytest.approx(expected, abs=6e-7), name
    assert plot.x_names == ("000", "010", "001", "100", "011", "101", "110", "111")
    assert np.all(np.diff(plot.series[2].y) > 0)
    assert [(line.name, line.value) for line in plot.moments] == [("global", 0.0), ("local minimum", 7.0)]
    with pytest.raises(EmptyDataError, match="configurations"):
        cost_ladder([])


@pytest.mark.parametrize(("flags", "rank"), [((True,) * 3, "rank 9 = Q²"), ((False,) * 3, "rank 12 = Q² + Q")])
def test_the_spectrum_marks_the_rank_of_the_spec(ladder, flags, rank):
    plot = degenerate_directions(ladder[flags])
    assert [line.name for line in plot.moments] == [rank]
    sizes = np.fmax(*(series.y for series in plot.series)) if len(plot.series) > 1 else plot.series[0].y
    assert len(sizes) == 48
    assert np.all(np.diff(sizes[np.isfinite(sizes)]) <= 0)
    level = plot.levels[0].value
    above = np.sum(sizes > level)
    assert above == math.floor(plot.moments[0].value)
    assert plot.caption.startswith(f"{above} of 48 ")
    # A minimum: whatever is negative is rounding.
    assert len(plot.series) == 1 or np.nanmax(plot.series[1].y) < level


def test_a_spectrum_away_from_minima_claims_no_formula(ladder):
    plot = degenerate_directions(ladder[True, False, False])
    assert "=" not in plot.moments[0].name


# What plots learnt for them


def test_samples_without_a_line_names_and_equal_scales_are_drawn_by_both(three):
    found, inputs, labels = three
    film, noise = film_strip(found, inputs, labels), noise_plot(found, inputs, labels)
    figure = fb.plots.to_matplotlib(film)
    for axes, plot in zip(figure.axes, film, strict=True):
        assert axes.get_aspect() == 1.0
        assert (axes.get_xlim(), axes.get_ylim()) == (plot.x_range, plot.y_range)
        assert [line.get_linestyle() == "None" for line in axes.lines] == [one.dash == "none" for one in plot.series]
        assert all(line.get_marker() == "o" for line in axes.lines if line.get_linestyle() == "None")
    drawn = fb.plots.to_plotly(film[0])
    assert [trace.mode == "markers" for trace in drawn.data] == [one.dash == "none" for one in film[0].series]
    assert drawn.layout.yaxis.scaleanchor == "x"
    assert tuple(drawn.layout.xaxis.range) == pytest.approx(film[0].x_range)
    assert drawn.data[0].marker.color == mpl.colors.to_hex(figure.axes[0].lines[0].get_color())
    ticks = fb.plots.to_matplotlib(noise).axes[0].get_xticklabels()
    assert tuple(tick.get_text() for tick in ticks) == noise.x_names
    assert tuple(fb.plots.to_plotly(noise).layout.xaxis.ticktext) == noise.x_names
