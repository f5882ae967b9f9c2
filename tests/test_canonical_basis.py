"""Bases and quadrature rules: counts, orthonormality, spectral accuracy, aliasing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.canonical import Basis, quadrature
from fibration.errors import MemoryBudgetError, ParameterError, ShapeError, UnknownNameError

COUNTS = {
    (2, 8): {"box": 81, "l1": 45, "hc": 37},
    (3, 8): {"box": 729, "l1": 165, "hc": 123},
    (6, 4): {"box": 15625, "l1": 210, "hc": 880},
    (10, 4): {"l1": 1001, "hc": 27904},
}


def unit_box(d):
    return [(0, 1)] * d


@pytest.mark.parametrize(
    ("d", "degree", "name", "count"), [(d, r, name, n) for (d, r), sets in COUNTS.items() for name, n in sets.items()]
)
def test_numbers_of_modes_are_those_of_the_specification(d, degree, name, count):
    assert Basis(unit_box(d), degree, index_set=name).size == count


MEMBERS = {
    "box": lambda k, r: max(k) <= r,
    "l1": lambda k, r: sum(k) <= r,
    "ball": lambda k, r: sum(i * i for i in k) <= r * r,
    "hc": lambda k, r: np.prod([max(1, i) for i in k]) <= r or not any(k),
}


@given(st.sampled_from(sorted(MEMBERS)), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=40)
def test_index_sets_against_their_definition(name, d, degree):
    every = [k for k in itertools.product(range(degree + 1), repeat=d) if MEMBERS[name](k, degree)]
    every.sort(key=lambda k: (sum(k), k))
    np.testing.assert_array_equal(Basis(unit_box(d), degree, index_set=name).indices, np.array(every).reshape(-1, d))
    both = Basis(unit_box(d), degree, kind="fourier", index_set=name).indices
    signed = {
        tuple(s * i for s, i in zip(signs, k, strict=True))
        for k in every
        for signs in itertools.product((1, -1), repeat=d)
    }
    assert {tuple(k) for k in both.tolist()} == signed
    assert len(both) == len(signed)


@pytest.mark.parametrize("kind", ["cosine", "fourier"])
@pytest.mark.parametrize(("d", "degree"), [(1, 0), (1, 20), (1, 400), (2, 7), (3, 3)])
def test_gauss_finds_the_modes_orthonormal(kind, d, degree):
    if degree == 400 and kind == "fourier":
        degree = 200
    basis = Basis(unit_box(d), degree, kind, index_set="l1")
    rule = quadrature(basis, "gauss")
    values = basis.evaluate_unit(jnp.asarray(rule.nodes))
    np.testing.assert_allclose(rule.analyse(values), np.eye(basis.size), atol=1e-12)
    assert abs(rule.weights.sum() - 1) < 1e-12


@pytest.mark.parametrize(
    ("kind", "method", "d"),
    [
        ("cosine", "gauss", 2),
        ("fourier", "gauss", 2),
        ("cosine", "midpoint", 3),
        ("fourier", "uniform", 2),
        ("fourier", "midpoint", 1),
        ("cosine", "uniform", 1),
        ("cosine", "lattice", 4),
        ("cosine", "lattice", 2),
    ],
)
def test_transforms_are_the_sums_over_the_nodes(kind, method, d):
    """Fast transforms against the plain sum Σ w e_k(u) f(u), and `spread` against its transpose."""
    basis = Basis([(-1, 2)] * d, 3, kind, index_set="l1")
    rule = quadrature(basis, method, nodes=None if method != "lattice" else 500)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rule.size, 2))
    table = np.asarray(basis.evaluate_unit(jnp.asarray(rule.nodes)))
    np.testing.assert_allclose(
        rule.analyse(jnp.asarray(values)), table.T @ (rule.weights[:, None] * values), atol=1e-12
    )
    theta = rng.normal(size=(basis.size, 2))
    np.testing.assert_allclose(rule.spread(jnp.asarray(theta)), rule.weights[:, None] * (table @ theta), atol=1e-12)
    assert rule.refined().size >= 2 * rule.size - 1


def test_exponential_by_four_rules():
    """Errors of the first nine coefficients of exp with 64 nodes: the orders of spec 001, 4.1."""
    basis = Basis((0, 1), 8)
    k = np.arange(9)
    exact = np.where(k == 0, np.e - 1, np.sqrt(2) * (np.e * (-1.0) ** k - 1) / (1 + (np.pi * k) ** 2))
    errors = {
        name: np.abs(
            quadrature(basis, name, nodes=64).analyse(jnp.exp(jnp.asarray(quadrature(basis, name, nodes=64).nodes)))[
                :, 0
            ]
            - exact
        ).max()
        for name in ("gauss", "midpoint", "uniform")
    }
    assert errors["gauss"] < 1e-14
    assert 1e-5 < errors["midpoint"] < 1e-4
    assert errors["uniform"] > 1e-3


def test_periodic_function_against_bessel():
    basis = Basis((0, 1), 10, "fourier")
    rule = quadrature(basis, "uniform", nodes=32)
    theta = np.asarray(rule.analyse(jnp.exp(jnp.cos(2 * jnp.pi * jnp.asarray(rule.nodes)))))[:, 0]
    k = basis.indices[:, 0]
    exact = np.where(k == 0, scipy.special.iv(0, 1), np.where(k > 0, np.sqrt(2) * scipy.special.iv(k, 1.0), 0))
    np.testing.assert_allclose(theta, exact, atol=1e-15)


def test_aliasing_adds_the_coefficients_a_grid_cannot_tell_apart():
    basis = Basis((0, 1), 3, "fourier")
    rule = quadrature(basis, "uniform", nodes=8)
    for frequency in (5, 8, 9, 11):
        seen = np.asarray(rule.analyse(jnp.cos(2 * jnp.pi * frequency * jnp.asarray(rule.nodes))))[:, 0]
        alias = min(frequency % 8, -frequency % 8)
        expected = np.where(basis.indices[:, 0] == alias, 1.0 if alias == 0 else np.sqrt(0.5), 0)
        np.testing.assert_allclose(seen, expected, atol=1e-14)


@pytest.mark.parametrize("name", ["box", "l1", "hc"])
def test_parseval_and_synthesis(name):
    basis = Basis([(0, 2), (-1, 1)], 4, index_set=name)
    theta = jax.random.normal(jax.random.key(0), (basis.size, 3))
    rule = quadrature(basis, "gauss")
    values = basis.synthesise(theta, rule.samples)
    np.testing.assert_allclose(rule.analyse(values), theta, atol=1e-12)
    mean_square = np.sum(rule.weights[:, None] * np.asarray(values) ** 2)
    np.testing.assert_allclose(np.sum(basis.energy(theta)), mean_square, rtol=1e-12)
    shells = [np.sum(np.asarray(theta)[basis.total_degrees == s] ** 2) for s in range(basis.total_degrees.max() + 1)]
    np.testing.assert_allclose(basis.energy(theta), shells, rtol=1e-12)


def test_scattered_samples():
    basis = Basis(unit_box(2), 3, index_set="l1")
    rng = np.random.default_rng(0)
    theta, x = rng.normal(size=(basis.size, 2)), rng.uniform(size=(60, 2))
    found, condition = fb.canonical.fit(basis, x, basis.synthesise(jnp.asarray(theta), x))
    np.testing.assert_allclose(found, theta, atol=1e-11)
    assert 1 < condition < 1e3
    assert np.isinf(fb.canonical.fit(basis, x[:5], np.ones(5))[1])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Basis([(0, 1)], 3, kind="sine"), UnknownNameError, "cosine"),
        (lambda: Basis([(0, 1)], 3, index_set="cross"), UnknownNameError, "hc"),
        (lambda: Basis([0, 1, 2], 3), ShapeError, r"shape \(…, 2\)"),
        (lambda: Basis([(0, 0)], 3), ParameterError, "lower bound below"),
        (lambda: Basis([(0, 1)], -1), ParameterError, "degree"),
        (lambda: Basis([(0, 1)] * 10, 9), MemoryBudgetError, "hc"),
        (
            lambda: Basis([(0, 1)], 3).evaluate(np.array([[0.5], [1.5]])),
            ParameterError,
            r"sample 1 is 1.5, out of the box",
        ),
        (lambda: Basis([(0, 1)], 3).evaluate(np.array([0.5])), ShapeError, "samples as rows"),
        (lambda: quadrature(Basis([(0, 1)], 3), "trapezoid"), UnknownNameError, "gauss"),
        (lambda: quadrature(Basis([(0, 1)] * 4, 2, "fourier")), ParameterError, "cosine"),
        (lambda: quadrature(Basis([(0, 1)] * 3, 2), nodes=2000), MemoryBudgetError, "lattice"),
        (lambda: quadrature(Basis([(0, 1)] * 2, 2), breakpoints=[0.5]), ParameterError, "one input"),
        (lambda: quadrature(Basis([(0, 1)], 2), nodes=0), ParameterError, "at least 1"),
        (lambda: fb.canonical.fit(Basis([(0, 1)], 2), np.ones((3, 1)), np.ones(4)), ShapeError, "one row"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
