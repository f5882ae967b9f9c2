"""The Riemannian Langevin equation: its drift by finite differences, and its exact laws, upstairs and downstairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from fibration.balance._entropy import log_volume_density
from fibration.balance._fibre import minimum_on_fibre
from fibration.balance._langevin import langevin
from fibration.balance._langevin_steps import Law, _act, _adjoint, _solve, divergence, product_drift, state_at
from fibration.errors import (
    NonFiniteDataError,
    ParameterError,
    ShapeError,
    SingularProductError,
    StepSizeError,
    UnknownNameError,
)

A = 1.5


def _cost(X, depth):
    return minimum_on_fibre(X, depth=depth) - A * jnp.linalg.slogdet(X)[1]


def _shape(d, depth, kappa, beta=1.0):
    """Half the degree of the invariant density in λ: β R* has the gamma distribution of this shape."""
    return (d**2 + kappa * (depth - 1) * d * (d - 1) / 2 + depth * d * A * beta) / 2


@functools.cache
def _run(depth, kappa, space, step_size, time, chains, metropolis=False, d=2, beta=1.0, save=10):
    start = jnp.asarray(np.eye(d) + 0.3 * np.arange(d * d).reshape(d, d) / d)
    steps = round(time / step_size / save) * save
    return langevin(
        start,
        functools.partial(_cost, depth=depth),
        depth,
        step_size=step_size,
        steps=steps,
        key=jax.random.key(1),
        beta=beta,
        kappa=kappa,
        chains=chains,
        save_every=steps // save,
        space=space,
        metropolis=metropolis,
    )


def _mean(sample, depth):
    """Compute the mean of R* over the last six tenths, and its standard error from independent chains."""
    lowest = depth / 2 * np.sum(sample.singular_values[:, 4:] ** (2 / depth), axis=(1, 2)) / 6
    return lowest.mean(), lowest.std() / np.sqrt(len(lowest))


def _preconditioner(X, Z, depth):
    U, s, Vh = np.linalg.svd(X)
    widths = s ** (1 / depth)
    a = sum(np.outer(widths ** (2 * (depth - p)), widths ** (2 * (p - 1))) for p in range(1, depth + 1))
    return U @ (a * (U.T @ Z @ Vh.T)) @ Vh


def _differentiated(f, X, e=1e-5):
    """Compute Σ_mn ∂ f(X)[m, n] / ∂X_mn by central differences, f returning (d, d, d, d)."""
    d = len(X)
    total = np.zeros((d, d))
    for m in range(d):
        for n in range(d):
            E = np.zeros((d, d))
            E[m, n] = e
            total += (f(X + E)[m, n] - f(X - E)[m, n]) / (2 * e)
    return total


def _tensor(X, depth):
    """List A_X(E_mn) for all m, n."""
    d = len(X)
    return np.array(
        [[_preconditioner(X, np.eye(d)[:, [m]] @ np.eye(d)[[n]], depth) for n in range(d)] for m in range(d)]
    )


def _matrices():
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    return [U @ np.diag(s) @ V for s in ([2.0, 1.1, 0.4], [1.5, 1.5, 0.7], [0.8, 0.8, 0.8])]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_divergence_by_finite_differences(depth, which):
    X = _matrices()[which]
    U, s, Vh = np.linalg.svd(X)
    central = _differentiated(lambda X: _tensor(X, depth), X)
    found = U @ np.diag(divergence(jnp.asarray(s), depth)) @ Vh
    assert np.abs(found - central).max() < 2e-9


@pytest.mark.parametrize("kappa", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_drift_leaves_the_density_invariant(depth, which, kappa):
    # π drift = ∇·(A π)/β: no probability flows.
    X, beta, weight = _matrices()[which], 2.0, np.array([[0.3, 0.1, 0.0], [0.0, 0.2, 0.5], [0.1, 0.0, 0.4]])

    def density(X):
        values = np.linalg.svd(X, compute_uv=False)
        return float(np.exp(log_volume_density(values, depth, kappa) - beta * np.sum(weight * X**2)))

    law = Law(*(jnp.asarray(number) for number in (beta, kappa, 1e-12)))
    state = state_at(jnp.asarray(X), lambda X: jnp.sum(jnp.asarray(weight) * X**2), depth, law)
    drift = state.U @ product_drift(state, depth, law) @ state.Vh
    central = _differentiated(lambda X: _tensor(X, depth) * density(X), X) / density(X) / beta
    assert np.abs(drift - central).max() < 1e-7


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_action_upstairs(depth):
    rng = np.random.default_rng(0)
    widths = jnp.asarray([1.5, 0.7, 0.7])
    xi, V = rng.normal(size=(depth - 1, 3, 3)), rng.normal(size=(depth, 3, 3))
    assert float(jnp.vdot(_act(jnp.asarray(xi), widths), V)) == pytest.approx(
        float(jnp.vdot(xi, _adjoint(jnp.asarray(V), widths))), rel=1e-12
    )
    again = _solve(_adjoint(_act(jnp.asarray(xi), widths), widths), widths)
    assert np.abs(again - xi).max() < 1e-12


@pytest.mark.parametrize(("depth", "kappa"), [(2, 1.0), (2, 0.0), (3, 1.0), (3, 0.0)])
def test_exact_mean_downstairs(depth, kappa):
    mean, error = _mean(_run(depth, kappa, "product", 0.05, 10.0, 600, metropolis=True), depth)
    assert error < 0.08
    assert abs(mean - _shape(2, depth, kappa)) < 4 * error


@pytest.mark.parametrize(("depth", "kappa"), [(2, 1.0), (2, 0.0), (3, 1.0), (3, 0.0)])
def test_exact_mean_upstairs(depth, kappa):
    mean, error = _mean(_run(depth, kappa, "chain", 0.02, 8.0, 300), depth)
    assert error < 0.09
    assert abs(mean - _shape(2, depth, kappa)) < 4 * error


def test_the_bias_of_the_step_shrinks_downstairs():
    exact = _shape(2, 2, 1.0)
    (coarse, _), (fine, error) = (_mean(_run(2, 1.0, "product", h, 8.0, 600), 2) for h in (0.2, 0.02))
    assert abs(coarse - exact) > 8 * error
    assert abs(fine - exact) < 0.02 * exact + 4 * error


@pytest.mark.parametrize(
    ("depth", "space", "step_size", "metropolis"),
    [(2, "product", 0.05, True), (3, "product", 0.05, True), (2, "chain", 0.02, False)],
)
def test_laws_of_the_singular_values(depth, space, step_size, metropolis):
    sample = _run(depth, 1.0, space, step_size, 10.0 if metropolis else 8.0, 600 if metropolis else 300, metropolis)
    last = sample.singular_values[:, 5::2].reshape(-1, 2)  # three of each chain, far enough apart to be independent
    lowest = depth / 2 * np.sum(last ** (2 / depth), axis=1)
    assert scipy.stats.kstest(lowest, scipy.stats.gamma(_shape(2, depth, 1.0)).cdf).pvalue > 1e-3
    # The density of the ratio t = σ_2/σ_1, from the predicted one: its integral along the rays of equal t.
    nodes = np.linspace(0, 1, 801)[1:-1]
    radii = np.geomspace(1e-3, 1e3, 801)
    grid = np.stack(np.broadcast_arrays(radii, nodes[:, None] * radii), -1)
    energy = depth / 2 * np.sum(grid ** (2 / depth), -1) - A * np.sum(np.log(grid), -1)
    density = np.exp(log_volume_density(grid, depth, of="singular_values") - energy) * radii
    along = scipy.integrate.simpson(density * radii, np.log(radii), axis=1)
    nodes, along = np.concatenate([[0], nodes, [1]]), np.concatenate([[0], along, [0]])
    distribution = scipy.integrate.cumulative_trapezoid(along, nodes, initial=0)
    ratio = last[:, 1] / last[:, 0]
    assert scipy.stats.kstest(ratio, _interpolated(nodes, distribution)).pvalue > 1e-3
    # The tests can fail: without entropy the first law is another, and without all of ρ the second.
    assert scipy.stats.kstest(lowest, scipy.stats.gamma(_shape(2, depth, 0.0)).cdf).pvalue < 1e-3
    without = -log_volume_density(grid, depth)
    wrong = scipy.integrate.simpson(density * np.exp(without) * radii, np.log(radii), axis=1)
    wrong = scipy.integrate.cumulative_trapezoid(np.concatenate([[0], wrong, [0]]), nodes, initial=0)
    assert scipy.stats.kstest(ratio, _interpolated(nodes, wrong)).pvalue < 1e-3


def _interpolated(nodes, distribution):
    return lambda t: np.interp(t, nodes, distribution / distribution[-1])


@pytest.mark.slow
def test_other_sizes_and_temperatures():
    sample = _run(3, 0.5, "product", 0.02, 3.0, 150, metropolis=True, d=3, beta=2.0)
    mean, error = _mean(sample, 3)
    assert abs(2.0 * mean - _shape(3, 3, 0.5, beta=2.0)) < 4 * 2.0 * error
    sample = _run(3, 0.5, "chain", 0.01, 3.0, 150, d=3, beta=2.0)
    mean, error = _mean(sample, 3)
    assert abs(2.0 * mean - _shape(3, 3, 0.5, beta=2.0)) < 4 * 2.0 * error


@pytest.mark.parametrize("space", ["product", "chain"])
def test_what_is_returned(space):
    cost = functools.partial(_cost, depth=2)
    options = {"step_size": 0.05, "key": jax.random.key(2), "chains": 3, "space": space}
    starts = jnp.stack([jnp.eye(2), -jnp.eye(2), jnp.diag(jnp.asarray([1.0, -2.0]))])
    every = langevin(starts, cost, 2, steps=60, **options)
    assert every.matrices.shape == (3, 60, 2, 2)
    assert every.rejected.shape == (3,)
    some = langevin(starts, cost, 2, steps=60, save_every=20, **options)
    assert np.array_equal(some.matrices, every.matrices[:, 19::20])
    assert np.allclose(some.times, [1.0, 2.0, 3.0])
    assert np.allclose(np.linalg.svd(every.matrices, compute_uv=False), every.singular_values)
    assert np.all(np.sign(np.linalg.det(every.matrices)) == np.array([1, 1, -1])[:, None])
    still = np.all(np.diff(every.matrices, axis=1) == 0, axis=(2, 3)).sum(axis=1)
    assert np.all(np.abs(60 * every.rejected - still) <= 1)


def test_depth_one_is_the_ordinary_langevin_equation():
    def cost(X):
        return jnp.sum(X**2) / 2

    for space in ("product", "chain"):
        sample = langevin(
            jnp.eye(2), cost, 1, step_size=0.1, steps=60, key=jax.random.key(0), chains=400, save_every=60, space=space
        )
        assert np.mean(np.sum(sample.matrices**2, axis=(2, 3))) == pytest.approx(4 / (1 - 0.05), abs=0.6)


def test_hopeless_steps_are_rejected_and_counted():
    sample = langevin(
        jnp.eye(2), lambda X: _cost(X, 2), 2, step_size=1e6, steps=5, key=jax.random.key(0), space="chain"
    )
    assert sample.rejected[0] == 1
    assert np.array_equal(sample.matrices[0, -1], np.eye(2))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"X": np.ones((2, 2))}, SingularProductError),
        ({"X": np.ones((2, 3))}, ShapeError),
        ({"X": np.stack([np.eye(2)] * 3)}, ShapeError),
        ({"X": 1j * np.eye(2)}, ParameterError),
        ({"X": np.full((2, 2), np.nan)}, NonFiniteDataError),
        ({"cost": lambda X: X}, ParameterError),
        ({"cost": lambda X: X @ jnp.ones(5)}, ParameterError),
        ({"cost": lambda X: jnp.log(-jnp.trace(X))}, NonFiniteDataError),
        ({"depth": 0}, ParameterError),
        ({"beta": -1.0}, ParameterError),
        ({"kappa": -1.0}, ParameterError),
        ({"step_size": 0.0}, StepSizeError),
        ({"steps": 0}, StepSizeError),
        ({"steps": 10, "save_every": 3}, StepSizeError),
        ({"chains": 0}, ParameterError),
        ({"space": "fibre"}, UnknownNameError),
        ({"space": "chain", "metropolis": True}, ParameterError),
    ],
)
def test_bad_input(change, error):
    options = {"X": np.eye(2), "cost": jnp.trace, "depth": 2, "step_size": 0.1, "steps": 2, "key": jax.random.key(0)}
    with pytest.raises(error) as caught:
        langevin(**(options | change))
    assert caught.value.needed
    assert caught.value.fix
