"""The limits of canonical coordinates: coarse types, extreme scales, singular differentials, high precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from canonical_line import LINE, affine, small_problem, tanh_layer
from canonical_networks import random_problem, spread
from fibration import canonical as C
from fibration.canonical import Basis, quadrature
from fibration.canonical._experiments import _shallow_spectrum
from fibration.canonical._observer import _warn_of_rounding
from fibration.errors import PrecisionWarning

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
