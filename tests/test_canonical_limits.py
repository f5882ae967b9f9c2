"""The limits of canonical coordinates: extreme scales and sizes, coarse types, wrong input, transformations of JAX."""

import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from canonical_networks import random_problem, spread
from fibration import canonical as C
from fibration.canonical import Basis, quadrature
from fibration.canonical._experiments import _shallow_spectrum
from fibration.canonical._lattice import coincident_modes
from fibration.canonical._observer import _warn_of_rounding
from fibration.canonical._structure import linear_in_inputs, n_rescalings
from fibration.errors import (
    ApplyError,
    EmptyDataError,
    MemoryBudgetError,
    NonFiniteDataError,
    ParameterError,
    PrecisionError,
    PrecisionWarning,
    ResolutionWarning,
    ShapeError,
    UnknownNameError,
)

LINE, PLANE = Basis([(0, 1)], 3), Basis([(0, 1)] * 2, 3)


def tanh_layer():
    return fb.networks.mlp((1, 6, 1), "tanh", key=jax.random.key(0))


def affine(w, x):
    return w * x


def small_problem():
    return fb.Problem(affine, jnp.array([[0.2], [0.7]]), jnp.array([[1.0], [0.0]]))


# Lattices and other rules.


@pytest.mark.parametrize(("d", "degree", "name"), [(6, 4, "hc"), (6, 2, "box"), (10, 4, "l1")])
def test_a_default_lattice_tells_all_modes_apart(d, degree, name):
    """All sign flips of all multi-indices have distinct residues, by brute force."""
    basis = Basis([(0, 1)] * d, degree, index_set=name)
    rule = quadrature(basis)
    signs = np.array(list(itertools.product((1, -1), repeat=d)))
    flipped = np.unique((basis.indices[:, None] * signs).reshape(-1, d), axis=0)
    residues = flipped.astype(object) @ np.array(rule.z, dtype=object) % rule.n
    assert len(set(residues)) == len(flipped)


def test_coincident_modes_are_those_that_a_gram_matrix_shows():
    basis = Basis([(0, 1)] * 4, 3, index_set="l1")
    rule = C.LatticeRule(basis, 211, (1, 5, 25, 125))
    table = np.asarray(basis.evaluate_unit(jnp.asarray(rule.nodes)))
    off = np.abs(table.T @ table / rule.n - np.eye(basis.size)) > 1e-8
    assert 0 < coincident_modes(basis.indices, rule.z, rule.n) == np.count_nonzero(off.any(axis=0))


def test_a_rule_under_which_modes_are_not_orthonormal_is_warned_of():
    many = Basis([(0, 1)] * 6, 2, index_set="box")
    rules = [
        (quadrature(Basis([(0, 1)], 7), "gauss", nodes=3), "integrate"),
        (quadrature(Basis([(0, 1)], 7), nodes=3, breakpoints=[0.5]), "integrate"),
        (quadrature(Basis([(0, 1)], 7), "midpoint", nodes=5), "integrate"),
        (quadrature(Basis([(0, 1)], 7), "uniform"), "integrate"),
        (quadrature(many, nodes=16_000), "of the 729 modes coincide"),
    ]
    for rule, text in rules:
        with pytest.warns(ResolutionWarning, match=text):
            C.coordinates(lambda w, x: w * x[0], 1.0, rule.basis, rule=rule)
    with pytest.raises(ParameterError, match="729 modes"):
        quadrature(many, nodes=1000)


@pytest.mark.parametrize("degree", [700, 2000])
def test_many_modes_between_kinks(degree):
    """∫(u − ½)₊ √2 cos πku du = √2 (cos πk − cos πk/2)/(πk)², with the doubling that shows it."""
    basis = Basis((0, 1), degree)
    found = C.resolve(lambda w, x: w * jax.nn.relu(x - 0.5), 1.0, basis)
    assert found.change < 1e-12
    assert found.rule.n <= 512
    k = np.arange(1, degree + 1)
    exact = np.sqrt(2) * (np.cos(np.pi * k) - np.cos(np.pi * k / 2)) / (np.pi * k) ** 2
    np.testing.assert_allclose(found.theta[1:, 0], exact, atol=1e-14)


def test_hyperbolic_crosses_are_counted_by_divisors():
    """Pairs of positive numbers with product ≤ R are Σ ⌊R/k⌋; made without what lies outside."""
    degree = 30_000
    assert Basis([(0, 1)] * 2, degree, index_set="hc").size == 1 + 2 * degree + np.sum(
        degree // np.arange(1, degree + 1)
    )


# What a report says, against brute force.


def units(weights, biases, out):
    return {
        "weight": jnp.array(weights)[:, None],
        "bias": jnp.array(biases),
        "out": jnp.array([out]),
        "offset": jnp.zeros(1),
    }


def row(p, i):
    return np.array([p["weight"][i, 0], p["bias"][i], p["out"][0, i]])


# Weights, biases, outgoing weights; the sign of the pair 0, 1; whether descent keeps it.
TWINS = [
    ("tanh", ([1.0, 1.0, 3.0], [0.2, 0.2, -1.0], [1.0, 1.0, 0.5]), 1, True),
    ("tanh", ([1.0, -1.0, 3.0], [0.2, -0.2, -1.0], [1.0, -1.0, 0.5]), -1, True),
    ("tanh", ([1.0, 1.0, 3.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.5]), 1, True),
    ("tanh", ([1.0, -1.0, 3.0], [0.2, -0.2, -1.0], [1.0, 1.0, 0.5]), -1, False),
    ("tanh", ([1.0, 1.0, 3.0], [0.2, 0.2, -1.0], [1.0, -1.5, 0.5]), 1, False),
    ("relu", ([1.0, 2.0, 3.0], [2.0, 3.0, -1.0], [1.0, -1.0, 0.5]), -1, False),
]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_copies_are_what_gradient_descent_keeps(activation):
    """Incoming weights, biases and outgoing weights of kept pairs agree along a descent, those of others part."""
    apply, _ = spread(3, activation=activation)
    inputs = jnp.linspace(0.05, 0.95, 7)[:, None]
    problem = fb.Problem(apply, inputs, jnp.sin(5 * inputs))
    descent = jax.jit(
        lambda p: jax.lax.fori_loop(
            0, 400, lambda _, q: jax.tree.map(lambda a, b: a - 0.05 * b, q, problem.gradient(q)), p
        )
    )
    for _, entries, sign, kept in [case for case in TWINS if case[0] == activation]:
        params = units(*entries)
        report = C.rank_report(apply, params, Basis([(0, 1)], 3))
        assert bool(report.copies) == kept == ("duplicate units" in report.stalls)
        assert bool(report.alike) != kept
        assert ("gradient descent keeps" in str(report)) == kept
        assert ("alike now" in str(report)) != kept
        pairs = report.copies if kept else report.alike
        assert {(a.index, b.index) for a, b, _ in pairs} == {(0, 1)}
        last = descent(params)
        apart = np.abs(row(last, 0) - sign * row(last, 1)).max()
        assert apart < 1e-12 if kept else apart > 1e-3


def layer(activation, factor=1.0, dtype=float):
    apply, params = fb.networks.mlp((1, 6, 1), activation, key=jax.random.key(1))
    return apply, jax.tree.map(lambda leaf: (factor * leaf).astype(dtype), params)


def root_layer():
    """√s tanh(ux + c), defined for s > 0 only."""
    apply = lambda p, x: jnp.sum(jnp.sqrt(p["s"]) * jnp.tanh(p["u"] * x[0] + p["c"])) + p["b"]  # noqa: E731
    s, u, c = jnp.array([[0.5, 1.0, 2.0], [1.0, -4.0, 9.0], [0.1, 2.0, -5.0]])
    return apply, {"s": s, "u": u, "c": c, "b": jnp.zeros(())}


@pytest.mark.parametrize(
    ("network", "box", "expected"),
    [
        (root_layer, (0, 1), 0),
        (lambda: layer("tanh", 1e-3), (1000, 1001), 0),
        (lambda: layer("tanh"), (-1e5, 1e5), 0),
        (lambda: layer("tanh", 1e8), (0, 1e-8), 0),
        (lambda: layer("tanh", 1.0, jnp.float32), (0, 0.02), 0),
        (lambda: layer("relu", 1e-3), (1000, 1001), 6),
    ],
)
def test_rescalings_and_linearity_on_boxes_and_parameters_of_any_scale(network, box, expected):
    apply, params = network()
    state, constant = eqx.partition(params, eqx.is_inexact_array)
    assert n_rescalings(apply, state, constant, Basis([box], 3)) == expected
    assert not linear_in_inputs(apply, state, constant, Basis([box], 3))


@pytest.mark.parametrize("box", [(0, 1), (1000, 1001), (0, 1e-8)])
def test_linear_networks_are_linear_on_boxes_of_any_scale(box):
    linear = lambda p, x: p["b"] @ (p["a"] @ x + p["c"])  # noqa: E731
    params = {"a": jnp.array([[1.0], [-3.0]]), "b": jnp.array([[2.0, 1.0]]), "c": jnp.array([-1000.5, 2.0])}
    assert linear_in_inputs(linear, params, jax.tree.map(lambda _: None, params), Basis([box], 3))


def test_what_is_observed_is_felt(monkeypatch):
    monkeypatch.setattr("fibration.canonical._rank_report.n_rescalings", lambda *_: 19)
    report = C.rank_report(*tanh_layer(), LINE)
    assert report.effective_parameters == report.canonical.ranks["eps"] == 4


def vectors(p, x):
    return p["a"] @ jnp.tanh(p["u"] * x[0] + p["c"]) + p["b"]


def test_zeros_are_told_from_dead_units():
    zero = {"a": jnp.zeros(4), "u": jnp.zeros(4), "c": jnp.zeros(4), "b": jnp.ones(1)}
    assert C.rank_report(vectors, zero, LINE).stalls == ("zero initialisation",)
    # Units behind a last layer of zeros live: one step of it, and they move.
    behind = zero | {"u": jnp.array([1.0, -2.0, 3.0, 4.0]), "c": jnp.array([0.1, 0.0, -1.0, 2.0])}
    assert not C.rank_report(vectors, behind, LINE).stalls


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_reports_of_functions_of_any_scale(scale):
    report = C.rank_report(lambda w, x: scale * w * jnp.tanh(x), 1.0, LINE)
    assert report.canonical.stable_rank == pytest.approx(1)
    assert report.canonical.entropy_rank == pytest.approx(1)
    speeds = C.speeds(lambda w, x: scale * w * jnp.tanh(x), 1.0, LINE)
    assert np.sum(speeds) == pytest.approx(1)


def test_speeds_of_what_does_not_move_are_zero():
    np.testing.assert_array_equal(C.speeds(lambda w, x: 0 * w * x, 1.0, LINE), 0)


# Coarse types.


def test_a_coarse_leaf_sets_the_floor():
    apply, params = tanh_layer()
    mixed = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.ndim == 1 else leaf, params)
    report = C.rank_report(apply, mixed, Basis([(0, 1)], 9))
    assert report.canonical.eps == np.finfo(np.float32).eps
    ranks = report.canonical.ranks
    assert ranks["eps"] == ranks["1e-08"] >= ranks["1e-04"]
    assert "float64" in str(report)
    assert "float64" not in str(C.rank_report(apply, params, Basis([(0, 1)], 9)))


def test_singularity_in_float32_is_counted_with_its_own_rounding():
    with jax.enable_x64(False), pytest.warns(PrecisionWarning, match="enable x64"):
        found = C.singularity_probability([8], seeds=2, scales=[1.0], activations=["tanh"])
    np.testing.assert_array_equal(found.fraction.values.ravel(), 1)


def test_a_float32_network_under_x64_is_resolved():
    single = jnp.float32
    found = C.resolve(lambda w, x: jnp.tanh(w * x.astype(single)), jnp.array(2.0, single), LINE)
    assert found.theta.dtype == single


# The certificate.


def test_a_sampled_lipschitz_constant_sees_the_start():
    problem = fb.Problem(lambda w, x: jnp.tanh(w).sum() * x[0], [[1.0]], [[30.0]])
    found = C.lazy_certificate(problem, jnp.full(1, 0.5))
    second = 2 * np.tanh(0.5) / np.cosh(0.5) ** 2
    assert second <= found.lipschitz <= 4 / 3**1.5 + 1e-12  # the largest |tanh''|
    assert found.number > 1
    apply, params = tanh_layer()
    inputs = jnp.linspace(0.05, 0.95, 4)[:, None]
    found = C.lazy_certificate(fb.Problem(apply, inputs, jnp.sin(9 * inputs)), params, draws=1)
    vector, unravel = ravel_pytree(params)
    outputs = lambda w: jax.vmap(lambda x: apply(unravel(w), x)[0])(inputs)  # noqa: E731
    bent = jax.jit(lambda v: jnp.linalg.norm(jax.jvp(jax.jacrev(outputs), (vector,), (v,))[1], 2))
    directions = np.random.default_rng(0).normal(size=(200, vector.size))
    assert found.lipschitz >= max(float(bent(d / np.linalg.norm(d))) for d in directions)


def test_a_singular_differential_certifies_nothing():
    quadratic = lambda w, x: w[0] + w[1] * x[0] + w[2] * x[0] ** 2  # noqa: E731
    problem = fb.Problem(quadratic, [[0.1], [0.1], [0.7]], [[0.0], [1.0], [2.0]])
    found = C.lazy_certificate(problem, jnp.zeros(3), lipschitz=0.0)
    assert found.sigma == 0
    assert not found.certified
    assert found.conflict
    assert "zero cost is impossible" in str(found)


def test_a_certificate_in_float32_says_what_it_lost():
    near = np.nextafter(np.float32(0.1), np.float32(1))
    inputs = jnp.array([[0.1], [near]], jnp.float32)
    problem = fb.Problem(lambda w, x: w[0] + w[1] * x[0], inputs, jnp.array([[0.0], [1.0]], jnp.float32))
    with pytest.warns(PrecisionWarning, match="float64"):
        assert C.lazy_certificate(problem, jnp.zeros(2, jnp.float32)).sigma == 0


# The observer.


def test_an_observer_follows_kinks_that_move():
    apply, params = spread(5, activation="relu", scale=3.0)
    problem, basis = random_problem(apply, params, 1, 6, 1), Basis([(0, 1)], 5)
    watch = C.observer(basis, coordinates=True, spectrum=True)
    state = watch.init(problem, params)
    moved = params | {"bias": params["bias"] + 0.37}
    value = np.asarray(watch.update(problem, moved, 1.0, state)[0])
    assert len(value) == len(watch.columns) + 2 * basis.size
    sigma = np.linalg.svd(C.disparity(apply, moved, basis), compute_uv=False)
    np.testing.assert_allclose(value[8:14], sigma, atol=1e-13)
    np.testing.assert_allclose(value[14:], C.coordinates(apply, moved, basis)[:, 0], atol=1e-13)
    lost = watch.update(problem, moved | {"offset": jnp.full(1, jnp.inf)}, 2.0, state)[0]
    assert lost.shape == value.shape
    assert np.isnan(lost).all()


def test_an_observer_in_float32_says_what_it_lost():
    problem = fb.Problem(affine, np.full((2, 1), 0.5, np.float32), np.ones((2, 1), np.float32))
    row = jnp.array([0.0, 0.0, 1e-9, 1.0, 0.1, 1.0, 1.0])
    with pytest.warns(PrecisionWarning, match="float64"):
        _warn_of_rounding(row, jnp.ones((), jnp.float32), problem, 4)
    _warn_of_rounding(row, jnp.ones(()), small_problem(), 4)  # in float64 nothing is lost


# Extreme scales and empty data.


def test_the_stall_index_does_not_depend_on_the_scale():
    apply, params = spread(5)
    basis = Basis([(0, 1)], 5)
    rule, base = quadrature(basis, nodes=60), random_problem(apply, params, 1, 6, 1)
    indices = []
    for scale in (1.0, 1e-170, 1e170):
        problem = fb.Problem(lambda p, x, s=scale: s * apply(p, x), base.inputs, scale * base.targets)
        indices.append(float(C.stall_index(problem, params, basis, rule=rule)))
    np.testing.assert_allclose(indices[1:], indices[0], rtol=1e-9)


def test_kinks_of_tiny_signals_and_of_clamps():
    found = C.breakpoints(lambda w, x: jax.nn.relu(w * (x - 0.3)), 1e-170, Basis((0, 1), 3))
    np.testing.assert_allclose(found, [0.3], rtol=1e-15)
    found = C.breakpoints(lambda w, x: jax.lax.clamp(1.0, w * x, 3.0), 4.0, Basis((0, 1), 3))
    np.testing.assert_allclose(found, [0.25, 0.75], rtol=1e-15)


def test_steep_units_have_as_many_cells_as_they_need():
    basis = Basis((0, 1), 7)
    cells = C._experiments._cells(200.0)
    spectra = [_shallow_spectrum(jax.random.key(0), 6, 200.0, "tanh", basis, n) for n in (cells, 4 * cells)]
    np.testing.assert_allclose(spectra[0], spectra[1], rtol=1e-13, atol=1e-14)


def test_settling_of_what_is_not_a_number():
    theta = np.array([[1.0, np.nan, 1.0], [0.0, 0.0, np.nan], [0.0, 0.0, np.nan]])
    np.testing.assert_array_equal(C.settling_times(theta, np.zeros(3), np.arange(3.0)), [1.0, np.inf, np.inf])


def test_costs_along_lines_from_zero_and_with_constants():
    problem = fb.Problem(lambda p, x: p["a"] * x + p["n"], jnp.array([[0.2], [0.7]]), jnp.array([[1.0], [0.0]]))
    found = C.convexity(problem, {"a": 0.0, "n": 2}, LINE, lines=2, points=5)
    assert np.isfinite(found.literal).all()
    assert float(found.literal_defect.max()) < 1e-12  # the cost of an affine network is convex
    assert np.ptp(found.literal.values) > 0


def test_the_law_of_wide_relu_layers():
    """P(1 + 2p < K, nothing active) and so on, by counting outcomes of a simulated layer."""
    assert 0 <= C.relu_singularity(2048, 64) < 1e-150
    rng = np.random.default_rng(0)
    u, c = rng.normal(size=(2, 20_000, 12))
    inside = (-c / u > 0) & (-c / u < 1)
    full = ((u / 2 + c > 0) & ~inside).any(axis=1)
    fraction = np.mean(1 + 2 * inside.sum(axis=1) + full < 8)
    assert C.relu_singularity(12, 8) == pytest.approx(fraction, abs=0.015)


# High precision.


@pytest.mark.parametrize("activation", [jax.nn.softplus, jnp.arctan])
def test_common_smooth_activations_in_high_precision(activation):
    apply = lambda w, x: w[0] * activation(w[1] * x[0] + w[2])  # noqa: E731
    w = jnp.array([1.0, 0.5, 0.3])
    basis = Basis([(0, 1)], 2)
    found = C.exact_spectrum(apply, w, basis, nodes=16)
    np.testing.assert_allclose(
        found.singular_values, np.linalg.svd(C.disparity(apply, w, basis), compute_uv=False), rtol=1e-10
    )


def test_fewer_parameters_than_modes_are_singular():
    found = C.exact_spectrum(lambda w, x: w[0] * jnp.tanh(w[1] * x[0]), jnp.array([0.5, 0.3]), LINE, nodes=16)
    assert found.singular
    assert found.sigma_min == 0
    assert "4 modes for 2 parameters" in str(found)


# Transformations of JAX.


def test_what_looks_at_values_says_so_when_it_is_traced():
    apply, problem = affine, small_problem()
    calls = [
        (lambda w: C.coordinates(apply, w, LINE), "quadrature"),
        (lambda w: C.disparity(apply, w, LINE), "quadrature"),
        (lambda w: C.disparity_operator(apply, w, LINE).mv(jnp.ones((4, 1))), "quadrature"),
        (lambda w: C.stall_index(problem, w, LINE), "quadrature"),
        (lambda w: C.speeds(apply, w, LINE), "quadrature"),
        (lambda w: C.resolve(apply, w, LINE).theta, "outside"),
        (lambda w: C.rank_report(apply, w, LINE, rule=quadrature(LINE)), "outside"),
        (lambda w: C.breakpoints(apply, w, LINE), "outside"),
        (lambda w: C.lazy_certificate(problem, w), "outside"),
        (lambda w: C.exact_spectrum(apply, w, LINE), "outside"),
        (lambda w: C.convexity(problem, w, LINE), "outside"),
    ]
    for call, fix in calls:
        with pytest.raises(ParameterError, match=f"inside a JAX transformation.*{fix}"):
            jax.jit(call)(1.0)
    slopes = jax.grad(lambda w: C.coordinates(apply, w, LINE, rule=quadrature(LINE))[0, 0])(1.0)
    assert slopes == pytest.approx(0.5)


# Wrong input, by name.

BAD = {
    "degree": ([lambda v=v: Basis((0, 1), v) for v in ("3", np.nan, np.inf, None, [3], -1, 1.5)], ParameterError),
    "mend_degree": ([lambda v=v: Basis((0, 1), v) for v in (1e30, 3 * 10**8, 2 * 10**7)], MemoryBudgetError),
    "index_set": ([lambda: Basis((0, 1), 3, index_set=["l1"])], UnknownNameError),
    "box|bound": (
        [lambda v=v: Basis(v, 3) for v in ("x", [(0, 1), (0,)], None, (0, 1j), ["0", "1"])],
        ShapeError,
    ),
    "box's side": ([lambda v=v: Basis(v, 3) for v in ((-1e308, 1e308), (0, np.nan))], NonFiniteDataError),
    "theta": (
        [
            lambda: LINE.synthesise(np.ones(3), np.ones((1, 1))),
            lambda: LINE.energy([1.0, 2.0]),
            lambda: C.projected_cost(small_problem(), "abc", LINE),
            lambda: C.projected_cost(small_problem(), None, LINE),
            lambda: C.projected_gradient(small_problem(), np.ones((4, 2)), LINE),
        ],
        ShapeError,
    ),
    "complex": (
        [
            lambda: C.projected_cost(small_problem(), 1j * np.ones(4), LINE),
            lambda: C.fit(LINE, np.ones((2, 1)), 1j * np.ones(2)),
        ],
        ParameterError,
    ),
    "basis is 3": (
        [
            lambda: C.coordinates(affine, 1.0, 3),
            lambda: C.resolve(affine, 1.0, 3),
            lambda: C.breakpoints(affine, 1.0, 3),
            lambda: C.disparity_operator(affine, 1.0, 3),
            lambda: C.projected_cost(small_problem(), np.ones(4), 3),
            lambda: C.fit(3, np.ones((2, 1)), np.ones(2)),
            lambda: C.observer(3),
            lambda: C.exact_spectrum(affine, 1.0, 3),
            lambda: C.convexity(small_problem(), 1.0, 3),
            lambda: quadrature(3),
        ],
        ParameterError,
    ),
    "rule is 'gauss'": (
        [lambda: C.disparity(affine, 1.0, LINE, rule="gauss"), lambda: C.observer(LINE, rule="gauss")],
        ParameterError,
    ),
    "nodes": ([lambda v=v: quadrature(LINE, nodes=v) for v in ("5", 5.5, np.nan, 0)], ParameterError),
    "breakpoints": (
        [lambda: quadrature(LINE, breakpoints="x"), lambda: quadrature(PLANE, breakpoints=[0.5])],
        ParameterError,
    ),
    "breakpoints hold": ([lambda: quadrature(LINE, breakpoints=[np.nan])], NonFiniteDataError),
    "at most 2048 Gauss": ([lambda: quadrature(LINE, "gauss", nodes=100_000)], MemoryBudgetError),
    "lattice of 300000000": ([lambda: quadrature(Basis([(0, 1)] * 4, 1), nodes=3 * 10**8)], MemoryBudgetError),
    "tolerance": ([lambda: C.resolve(affine, 1.0, LINE, tolerance="x")], ParameterError),
    "draws": ([lambda v=v: C.lazy_certificate(small_problem(), 1.0, draws=v) for v in (0, 2.5)], ParameterError),
    "lines|points|length": (
        [
            lambda k=k, v=v: C.convexity(small_problem(), 1.0, LINE, **{k: v})
            for k, v in (("lines", 0), ("points", 2), ("length", 0))
        ],
        ParameterError,
    ),
    "widths|seeds|scale|activations": (
        [
            lambda: C.singularity_probability(4),
            lambda: C.singularity_probability([4], seeds=[0, 1]),
            lambda: C.singularity_probability([4], scales=[]),
            lambda: C.singularity_probability([4], scales=[np.nan]),
            lambda: C.singularity_probability([4], activations="tanh"),
        ],
        ParameterError,
    ),
    "scale = 1e": ([lambda: C.singularity_probability([4], scales=[1e7])], MemoryBudgetError),
    "width": ([lambda v=v: C.relu_singularity(v, 3) for v in (2.5, -1)], ParameterError),
    "times": (
        [
            lambda: C.settling_times(np.ones((3, 1)), np.ones(1), np.ones(2)),
            lambda: C.settling_times([], [], []),
            lambda: C.settling_times("x", np.ones(1), np.ones(2)),
        ],
        ShapeError,
    ),
    "has shape": (
        [
            lambda: C.spectrum_plot([0, 1], [1.0, 2.0]),
            lambda: C.spectrum_plot([], np.ones((0, 3))),
            lambda: C.frequency_plot([0, 1], np.ones((2, 3)), np.ones(2), [0, 1, 2]),
            lambda: C.frequency_plot([0, 1], np.ones((2, 3)), np.ones(3), [0, 1]),
        ],
        ShapeError,
    ),
    "found is": ([lambda: C.landscape_plots(3), lambda: C.singularity_plot(None, "relu", 1.0)], ParameterError),
    "no samples": ([lambda: C.fit(LINE, np.ones((0, 1)), np.ones(0))], EmptyDataError),
    r"shape \(0,\)": ([lambda: C.disparity(lambda w, x: w * x[:0], 1.0, LINE)], ApplyError),
    "digits|nodes is": (
        [
            lambda k=k, v=v: C.exact_spectrum(affine, 1.0, LINE, **{k: v})
            for k, v in (("digits", 0), ("digits", -3), ("digits", "6"), ("nodes", 0))
        ],
        ParameterError,
    ),
    "no real value": ([lambda: C.exact_spectrum(lambda w, x: x / w, 0.0, LINE, nodes=2)], PrecisionError),
    "doubling": ([lambda: C.exact_spectrum(lambda w, x: jax.nn.relu(x - w), 0.3, LINE, nodes=4)], PrecisionError),
    "one class": (
        [lambda: C.rank_report(affine, 1.0, LINE, fb.Problem(affine, [[0.5]], [0], loss=fb.CrossEntropy(n_classes=1)))],
        ParameterError,
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_named(text):
    calls, error = BAD[text]
    for call in calls:
        with pytest.raises(error, match=re.sub("^mend_", "", text)):
            call()


def test_whole_numbers_of_any_type_are_taken():
    assert Basis((0, 1), np.array(3)).degree == Basis((0, 1), 3.0).degree == 3


def test_errors_say_what_helps():
    with pytest.raises(ShapeError) as said:
        Basis("x", 3)
    assert "samples" not in str(said.value)
    with pytest.raises(ParameterError) as said:
        quadrature(PLANE, breakpoints=[0.5])
    assert "gauss" not in str(said.value)
