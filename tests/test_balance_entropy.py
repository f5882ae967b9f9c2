"""Entropy, measures on matrices and the prior of Gaussian weights, against volumes, integrals and special functions."""

import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from fibration.balance._balanced import factor
from fibration.balance._entropy import entropy, free_energy, log_volume_density, log_volume_of_group
from fibration.balance._prior import log_prior
from fibration.errors import (
    NonFiniteDataError,
    ParameterError,
    ShapeError,
    SingularProductError,
    UnknownNameError,
)

SEEDS = st.integers(0, 10**6)


def _coefficients(values, depth):
    widths = values ** (1 / depth)
    return sum(np.outer(widths ** (2 * (depth - p)), widths ** (2 * (p - 1))) for p in range(1, depth + 1))


def _skew_basis(d, field):
    """List an orthonormal basis (Frobenius) of the Lie algebra of O(d) or U(d)."""
    basis = []
    for i, j in itertools.combinations(range(d), 2):
        E = np.zeros((d, d), complex)
        E[i, j], E[j, i] = 1, -1
        basis.append(E / math.sqrt(2))
        if field == "complex":
            basis.append(1j * np.abs(E) / math.sqrt(2))
    if field == "complex":
        basis += [1j * np.diag(row) for row in np.eye(d)]
    return basis


def _orbit_density(Ws, field):
    """Compute √det L*L on the Lie algebra of K, from the infinitesimal action itself."""
    d, depth = len(Ws[0]), len(Ws)
    columns = []
    for p in range(depth - 1):
        for omega in _skew_basis(d, field):
            moved = [np.zeros((d, d), complex) for _ in Ws]
            moved[p] += omega @ Ws[p]
            moved[p + 1] -= Ws[p + 1] @ omega
            columns.append(np.concatenate([np.concatenate([m.real.ravel(), m.imag.ravel()]) for m in moved]))
    columns = np.array(columns).reshape(len(columns), 2 * depth * d**2)
    return np.linalg.slogdet(columns @ columns.T)[1] / 2


def test_volumes_of_the_groups():
    assert math.exp(log_volume_of_group(1, "real")) == pytest.approx(2, rel=1e-14)
    assert math.exp(log_volume_of_group(2, "real")) == pytest.approx(17.7715, rel=1e-5)
    assert math.exp(log_volume_of_group(2, "real")) == pytest.approx(4 * math.sqrt(2) * math.pi, rel=1e-14)
    assert math.exp(log_volume_of_group(3, "real")) == pytest.approx(446.647, rel=1e-6)
    assert math.exp(log_volume_of_group(1, "complex")) == pytest.approx(2 * math.pi, rel=1e-14)
    # U(2) = (U(1) × SU(2))/±1: a circle of length 2π√2 and a sphere S³ of radius √2.
    assert math.exp(log_volume_of_group(2, "complex")) == pytest.approx(8 * math.pi**3, rel=1e-14)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(2, 4), st.sampled_from(["real", "complex"]))
def test_the_entropy_is_the_volume_of_the_orbit(seed, d, depth, field):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(d, d)) + (1j * rng.normal(size=(d, d)) if field == "complex" else 0)
    Ws = factor(X, (d,) * (depth + 1), gauge="haar", key=jax.random.key(seed))
    values = np.linalg.svd(X, compute_uv=False)
    predicted = entropy(values, depth, field) - (depth - 1) * log_volume_of_group(d, field)
    assert predicted == pytest.approx(_orbit_density(Ws, field), rel=1e-9, abs=1e-9)


def test_the_total_volume_of_an_orbit():
    # N = 3, d = 2: four tori, parametrised by two angles; their area by summing parallelograms.
    values = np.array([2.0, 0.3])
    Lam = np.diag(values ** (1 / 3))

    def R(t):
        return np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])

    def chain(s, t):
        return np.concatenate([R(s) @ Lam, R(t) @ Lam @ R(-s), Lam @ R(-t)])

    angles = 2 * np.pi * np.arange(24) / 24
    area, e = 0.0, 1e-5
    for s, t in itertools.product(angles, angles):
        along_s = (chain(s + e, t) - chain(s - e, t)).ravel() / (2 * e)
        along_t = (chain(s, t + e) - chain(s, t - e)).ravel() / (2 * e)
        area += abs(np.prod(np.diag(np.linalg.qr(np.stack([along_s, along_t], 1))[1])))
    assert math.exp(entropy(values, 3)) == pytest.approx(4 * area * (angles[1]) ** 2, rel=1e-8)


def test_complex_numbers_have_circles():
    # N = 2, d = 1: (e^{iθ}λ, e^{−iθ}λ) is a circle of radius √2 λ.
    assert math.exp(entropy([3.0], 2, "complex")) == pytest.approx(2 * math.pi * math.sqrt(6), rel=1e-14)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, 5), st.sampled_from(["real", "complex"]))
def test_entropy_is_differentiable_at_equal_values(seed, d, depth, field):
    values = np.random.default_rng(seed).uniform(0.5, 2, d)
    values[-1] = values[0]
    gradient = jax.jit(jax.grad(lambda s: entropy(s, depth, field)))(jnp.asarray(values))
    for i, step in enumerate(1e-5 * np.eye(d)):
        central = (entropy(values + step, depth, field) - entropy(values - step, depth, field)) / 2e-5
        assert gradient[i] == pytest.approx(central, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4), st.floats(0, 2))
def test_density_of_the_volume(seed, depth, kappa):
    values = np.sort(np.random.default_rng(seed).uniform(0.1, 3, 3))[::-1]
    a = _coefficients(values, depth)
    for field, power in (("real", 0.5), ("complex", 1)):
        found = log_volume_density(values, depth, kappa, field)
        assert found == pytest.approx(kappa * entropy(values, depth, field) - power * np.log(a).sum(), abs=1e-11)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 5))
def test_density_of_singular_values_in_their_roots(seed, depth):
    def spec(values):
        roots = values ** (1 / depth)
        pairs = [(x ** (2 * depth) - y ** (2 * depth)) * (x**2 - y**2) for x, y in itertools.combinations(roots, 2)]
        return 0.5 * np.sum(np.log(pairs)) - np.sum(np.log(roots ** (depth - 1)))  # dλ = dσ/(N λ^{N−1})

    rng = np.random.default_rng(seed)
    one, two = (np.sort(rng.uniform(0.1, 3, 3))[::-1] for _ in range(2))
    found = [log_volume_density(values, depth, of="singular_values") for values in (one, two)]
    assert found[0] - found[1] == pytest.approx(spec(one) - spec(two), abs=1e-9)


def _integral(density, d, top, field):
    """Integrate a density of 1×1 or 2×2 matrices over all of them, through their singular values."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2

    # Powers of the nodes take the logarithmic singularities at singular matrices away.
    if d == 1:
        values, volumes = top * nodes[:, None] ** 4, weights * 4 * top * nodes**3
    else:
        x, y = nodes[:, None], nodes
        values = np.stack([top * x**2 + 0 * y, top * x**2 * y**3], -1).reshape(-1, 2)
        volumes = (weights[:, None] * weights * 2 * top * x * 3 * y**2 * top * x**2).ravel()
    measure = log_volume_density(values, 1, of="singular_values", field=field) - log_volume_density(
        values, 1, field=field
    )
    return np.sum(volumes * np.exp(measure + [density(np.diag(row)) for row in values]))


@pytest.mark.parametrize(
    ("d", "depth", "field", "tolerance"),
    [
        (1, 1, "real", 1e-9),
        (2, 1, "real", 1e-9),
        (2, 1, "complex", 1e-9),
        (1, 2, "real", 1e-6),
        (1, 3, "real", 1e-5),
        (1, 3, "complex", 1e-6),
        (2, 2, "real", 1e-6),
        (2, 2, "complex", 1e-6),
    ],
)
def test_exact_priors_are_normalised(d, depth, field, tolerance):
    zero = 0j if field == "complex" else 0

    def density(X):
        return float(log_prior(X + zero, depth, 0.7, "quadrature"))

    assert _integral(density, d, {1: 8.0, 2: 18.0, 3: 40.0}[depth], field) == pytest.approx(1, abs=tolerance)


def test_exact_prior_of_two_by_two_matrices_against_samples():
    rng, n, radius = np.random.default_rng(0), 400_000, 0.6
    W, V = 0.7 * rng.normal(size=(2, n, 2, 2))
    largest = np.linalg.svd(V @ W, compute_uv=False)[:, 0]
    share = np.mean(largest < radius)

    def density(X):
        return float(log_prior(X, 2, 0.7, "quadrature"))

    assert abs(_integral(density, 2, radius, "real") - share) < 4 * math.sqrt(share / n)


@pytest.mark.parametrize("x", [1e-200, 1e-8, 0.02, 0.9, 5.0, 1e3, 1e6])
@pytest.mark.parametrize("variance", [0.01, 0.1, 3.0])
def test_exact_prior_of_two_numbers(x, variance):
    scale = math.sqrt(variance)
    bessel = math.log(scipy.special.kve(0, x / variance)) - x / variance
    found = log_prior(np.array([[-x]]), 2, scale, "quadrature")
    assert found == pytest.approx(bessel - math.log(math.pi * variance), rel=1e-14, abs=1e-13)
    twice = log_prior(np.array([[1j * x]]), 2, scale, "quadrature")
    assert twice == pytest.approx(
        bessel + math.log(2 * math.pi) - 2 * math.log(2 * math.pi * variance), abs=1e-13, rel=1e-14
    )


@pytest.mark.parametrize("x", [1e-30, 1e-6, 0.5, 1.0, 30.0])
def test_exact_prior_of_three_numbers(x):
    z = mpmath.mpf(x) ** 2 / mpmath.mpf("0.18") ** 3  # Meijer's G of a product of normal numbers
    exact = mpmath.log(mpmath.meijerg([[], []], [[0] * 3, []], z) / mpmath.mpf("0.18") ** 1.5 / mpmath.pi**1.5)
    assert log_prior(np.array([[x]]), 3, 0.3, "quadrature") == pytest.approx(float(exact), rel=2e-15, abs=2e-14)


def test_exact_prior_of_five_numbers_in_its_tail():
    # From four numbers to five by another integration rule, where the density is 1e-1300 of its scale.
    def four(u):
        return float(log_prior(np.array([[5.0 * math.exp(-u)]]), 4, 0.03, "quadrature"))

    def exponent(u):
        return four(u) - math.exp(2 * u) / (2 * 0.03**2) - math.log(0.03 * math.sqrt(2 * math.pi))

    reference = log_prior(np.array([[5.0]]), 5, 0.03, "quadrature")
    total, _ = scipy.integrate.quad(lambda u: 2 * math.exp(exponent(u) - reference), 0.0, 0.7, epsabs=0, epsrel=1e-11)
    assert total == pytest.approx(1, rel=1e-10)
    assert reference < -2900


@pytest.mark.parametrize(("variance", "ratio"), [(0.1, 0.98689), (0.01, 0.99862)])
def test_laplace_against_the_exact_prior_of_numbers(variance, ratio):
    X, scale = np.array([[0.9]]), math.sqrt(variance)
    found = math.exp(log_prior(X, 2, scale, "quadrature") - log_prior(X, 2, scale))
    assert found == pytest.approx(ratio, abs=6e-6)


@pytest.mark.parametrize("field", ["real", "complex"])
@pytest.mark.parametrize(("d", "depth"), [(1, 2), (1, 3), (1, 6), (2, 2)])
def test_laplace_errs_in_proportion_to_the_variance(d, depth, field):
    X = np.array([[1.3, 0.2], [-0.1, 0.8]])[:d, :d] + (0.3j if field == "complex" else 0)
    errors = [
        math.expm1(log_prior(X, depth, scale, "quadrature") - log_prior(X, depth, scale)) / scale**2
        for scale in (0.02, 0.01)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=2e-3)
    assert 0.01 < abs(errors[1]) < 2


def test_laplace_can_be_differentiated():
    X = np.array([[1.0, 0.2], [0.1, 0.5]])
    gradient = jax.grad(lambda X: log_prior(X, 3, 0.5))(jnp.asarray(X))
    step = np.zeros((2, 2))
    step[0, 1] = 1e-5
    central = (log_prior(X + step, 3, 0.5) - log_prior(X - step, 3, 0.5)) / 2e-5
    assert gradient[0, 1] == pytest.approx(central, rel=1e-7)


def test_a_depth_of_one_is_the_normal_distribution():
    X = np.array([[1.0, 0.2], [0.1, 0.5]])
    normal = -np.sum(X**2) / 0.5 - 2 * math.log(2 * math.pi * 0.25)
    for method in ("laplace", "quadrature"):
        assert log_prior(X, 1, 0.5, method) == pytest.approx(normal, rel=1e-14)


def test_free_energy():
    values = [2.0, 0.5]
    assert free_energy(1.0, values, 3, beta=4.0, kappa=0.5) == pytest.approx(1 - entropy(values, 3) / 8, rel=1e-14)
    assert free_energy(1.0, values, 3, beta=4.0, kappa=0.0) == 1.0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: entropy([1.0, 0.0], 2), SingularProductError),
        (lambda: entropy([1.0, np.nan], 2), NonFiniteDataError),
        (lambda: entropy(1.0, 2), ShapeError),
        (lambda: entropy([1.0], 0), ParameterError),
        (lambda: entropy([1.0], 2, "quaternionic"), UnknownNameError),
        (lambda: log_volume_density([1.0], 2, -1.0), ParameterError),
        (lambda: log_volume_density([1.0], 2, of="eigenvalues"), UnknownNameError),
        (lambda: free_energy(0.0, [1.0], 2, beta=0.0), ParameterError),
        (lambda: log_prior(np.ones((2, 2)), 2, 1.0), SingularProductError),
        (lambda: log_prior(np.ones((2, 3)), 2, 1.0), ShapeError),
        (lambda: log_prior(np.eye(2), 2, 0.0), ParameterError),
        (lambda: log_prior(np.eye(2), 2, 1.0, "exact"), UnknownNameError),
        (lambda: log_prior(np.eye(3), 2, 1.0, "quadrature"), ParameterError),
        (lambda: log_prior(np.eye(2), 3, 1.0, "quadrature"), ParameterError),
        (lambda: jax.jit(lambda X: log_prior(X, 2, 1.0, "quadrature"))(jnp.eye(2)), ParameterError),
    ],
)
def test_bad_input(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.needed
    assert caught.value.fix
