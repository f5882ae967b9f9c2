"""Lattices and other rules, and what a report of canonical ranks says, against brute force."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from canonical_line import LINE, tanh_layer
from canonical_networks import spread
from fibration import canonical as C
from fibration.canonical import Basis, quadrature
from fibration.canonical._lattice import coincident_modes
from fibration.canonical._structure import linear_in_inputs, n_rescalings
from fibration.errors import ParameterError, ResolutionWarning

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
