import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.errors import (
    CertificateError,
    ParameterError,
    PrecisionError,
    StepSizeError,
    UnknownNameError,
)
from problems import Form, Value, cost, deep_linear_problem, form, symmetric, tanh_problem, true_distance

FLOW = fb.GradientFlow()


@pytest.mark.parametrize("save_every", [1, 7])
def test_exact_on_a_saddle_in_one_dimension(save_every):
    rate, eta, steps = 0.5, 0.1, 98
    descent = fb.descend(
        cost(lambda w: -0.5 * rate * w**2), FLOW, 1.0, step_size=eta, steps=steps, save_every=save_every
    )
    certificate = fb.fidelity.certify(cost(lambda w: -0.5 * rate * w**2), descent, hessian_lipschitz=0.0, step_size=eta)
    k = np.rint(certificate.times / eta)
    # e^{mt} − (1 + ηm)^k without cancellation
    true = -np.exp(rate * eta * k) * np.expm1(k * (np.log1p(eta * rate) - rate * eta))
    np.testing.assert_allclose(certificate.bound[1:] - certificate.rounding[1:], true[1:], rtol=2e-14)
    assert np.all(certificate.rounding <= 1e-11 * certificate.bound)
    assert certificate.kind == "theorem"
    np.testing.assert_allclose(certificate.amplification, np.exp(rate * eta * steps), rtol=1e-12)


N_EACH = 350


def _batch(problem_of, params_of, seeds, step_size, steps, save_every, fine):
    """Descend and solve the flow for many problems of one shape at once: both at the saved times."""

    def one(seed):
        problem, params = problem_of(seed), params_of(seed)
        flat, unravel = ravel_pytree(params)

        def slope(w):
            return ravel_pytree(problem.gradient(unravel(w)))[0]

        def euler(w, _):
            return w - step_size * slope(w), None

        def rk4(w, _):
            h = step_size / fine
            k1 = -slope(w)
            k2 = -slope(w + h / 2 * k1)
            k3 = -slope(w + h / 2 * k2)
            k4 = -slope(w + h * k3)
            return w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        def saved(w, _):
            w = jax.tree.map(
                lambda x, f, n: jax.lax.scan(f, x, None, n)[0], w, (euler, rk4), (save_every, save_every * fine)
            )
            return w, w

        _, (descent, flow) = jax.lax.scan(saved, (flat, flat), None, steps // save_every)
        return problem, params, *(jnp.concatenate([flat[None], run]) for run in (descent, flow))

    return jax.jit(jax.vmap(one))(seeds)


def _certified(batch, index, step_size, save_every, steps, **options):
    problem, params, descents, flows = jax.tree.map(lambda leaf: leaf[index], batch)
    unravel = ravel_pytree(params)[1]
    saved = jax.vmap(unravel)(descents)
    descent = fb.Trajectory(
        times=step_size * save_every * np.arange(len(descents)),
        params=jax.tree.map(np.asarray, saved),
        costs=None,
        observed={},
        result=fb.Result("completed", step_size * steps),
        stats={"method": "Euler", "steps": steps},
    )
    certificate = fb.fidelity.certify(problem, descent, step_size=step_size, **options)
    return certificate, np.linalg.norm(np.asarray(descents - flows), axis=1)


def _quadratic(seed):
    key = jax.random.key(seed)
    matrix = jax.random.normal(key, (4, 4))
    return fb.Problem(Form(), ((matrix + matrix.T) / 2)[None], jnp.zeros((1, 1)), loss=Value())


NETWORK = fb.networks.mlp((2, 3, 1), "tanh", key=jax.random.key(0))[0]
LINEAR = fb.networks.deep_linear((2, 2, 1), key=jax.random.key(0))[0]


def _tanh(seed):
    inputs, targets = jax.random.split(jax.random.key(seed))
    return fb.Problem(NETWORK, jax.random.normal(inputs, (6, 2)), jax.random.normal(targets, (6, 1)))


def _linear(seed):
    inputs, targets = jax.random.split(jax.random.key(seed))
    return fb.Problem(LINEAR, jax.random.normal(inputs, (6, 2)), jax.random.normal(targets, (6, 1)))


def _tanh_params(seed):
    return fb.networks.mlp((2, 3, 1), "tanh", key=jax.random.key(seed + 7))[1]


def _linear_params(seed):
    return fb.networks.deep_linear((2, 2, 1), key=jax.random.key(seed + 7), scale=0.7)[1]


FAMILIES = {
    "quadratic": (_quadratic, lambda seed: jax.random.normal(jax.random.key(seed + 7), (4,)), 0.1, {}),
    "tanh": (_tanh, _tanh_params, 0.02, {}),
    "deep linear": (_linear, _linear_params, 0.02, {"curvature": "tube"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold_on_many_random_problems(family):
    problem_of, params_of, step_size, options = FAMILIES[family]
    steps, save_every, fine = 60, 12, 4
    batch = _batch(problem_of, params_of, jnp.arange(N_EACH), step_size, steps, save_every, fine)
    finite = 0
    for index in range(N_EACH):
        certificate, true = _certified(batch, index, step_size, save_every, steps, **options)
        # The reference's own error: classical Runge–Kutta at a quarter of the step.
        assert np.all(true <= certificate.bound * (1 + 1e-6) + 1e-7), (index, true, certificate.bound)
        finite += np.isfinite(certificate.bound[-1])
        assert certificate.kind == ("theorem" if family == "deep linear" else "conditional")
    # A bound that is always infinite would hold too.
    assert finite > 0.6 * N_EACH, finite


def test_tight_on_the_quadratic_and_the_enclosure_tighter():
    rng = np.random.default_rng(0)
    values = np.linspace(-0.3, 5, 8)
    hessian, vectors = symmetric(rng, values)
    start, eta, steps = rng.normal(size=8), 0.02, 500
    descent = fb.descend(form(hessian), FLOW, start, step_size=eta, steps=steps, save_every=25)
    k = np.rint(descent.times / eta)[:, None]
    components = (start @ vectors) * ((1 - eta * values) ** k - np.exp(-eta * k * values))
    true = np.linalg.norm(components, axis=1)
    certificate = fb.fidelity.certify(form(hessian), descent, hessian_lipschitz=0.0)
    assert np.all(certificate.bound >= true * (1 - 1e-12))
    assert certificate.bound[-1] < 25 * true[-1]
    found = fb.fidelity.enclose(form(hessian), descent, hessian_lipschitz=0.0)
    assert np.all((found.lower <= true) & (true <= found.upper))
    assert found.upper[-1] < 1.0001 * true[-1]


@pytest.mark.slow
def test_a_network_is_certified_until_the_certificate_is_lost():
    problem, params = tanh_problem()
    found = {}
    for eta, end in ((0.005, 10.0), (0.005, 20.0), (0.05, 10.0)):
        steps = round(end / eta)
        descent = fb.descend(problem, FLOW, params, step_size=eta, steps=steps, save_every=steps // 100)
        certificate = fb.fidelity.certify(problem, descent)
        true = true_distance(problem, params, descent)
        assert np.all(true <= certificate.bound)
        found[eta, end] = certificate
    assert found[0.005, 10.0].bound[-1] < 0.2
    assert found[0.005, 10.0].reason == ""
    lost = found[0.05, 10.0]
    assert 1 < lost.valid_until < 6
    assert np.all(np.isfinite(lost.bound) == (lost.times <= lost.valid_until))
    assert "no guarantee beyond t = " in lost.message
    assert "runs away" in lost.reason
    assert np.isnan(lost.smallest_eigenvalues[-1])  # nobody looked where nothing was left to bound


def test_what_was_saved_between_checks_changes_nothing():
    problem, params = tanh_problem()
    runs = [fb.descend(problem, FLOW, params, step_size=0.01, steps=60, save_every=every) for every in (1, 10, 60)]
    bounds = [fb.fidelity.certify(problem, run, checks=2, hessian_lipschitz=12.0).bound for run in runs]
    np.testing.assert_allclose(bounds[0][::10], bounds[1], rtol=1e-9)
    np.testing.assert_allclose(bounds[1][[0, -1]], bounds[2], rtol=1e-9)
    more = fb.fidelity.certify(problem, runs[0], checks=61, hessian_lipschitz=12.0)
    assert more.bound[-1] < bounds[0][-1]  # the more the Hessian is looked at, the better


@pytest.mark.slow
def test_lanczos_serves_where_the_hessian_is_too_large():
    problem, params = tanh_problem()
    descent = fb.descend(problem, FLOW, params, step_size=0.01, steps=100, save_every=20)
    dense = fb.fidelity.certify(problem, descent, hessian_lipschitz=12.0)
    lanczos = fb.fidelity.certify(problem, descent, hessian_lipschitz=12.0, dense_limit=100)
    assert (dense.kind, lanczos.kind) == ("theorem", "conditional")
    np.testing.assert_allclose(lanczos.bound[-1], dense.bound[-1], rtol=0.05)
    np.testing.assert_allclose(lanczos.smallest_eigenvalues, dense.smallest_eigenvalues, atol=0.02)


def test_a_deep_linear_network_has_a_theorem():
    problem, params = deep_linear_problem()
    descent = fb.descend(problem, FLOW, params, step_size=0.002, steps=400, save_every=8)
    true = true_distance(problem, params, descent)
    joined = fb.fidelity.certify(problem, descent, "tube")
    closed = fb.fidelity.certify(problem, descent, "tube", dense_limit=0)
    for certificate in (joined, closed):
        assert certificate.kind == "theorem"
        assert np.all(true <= certificate.bound)
        assert np.isfinite(certificate.bound[-1])
        assert {a.status for a in certificate.assumptions} == {"proven"}
    assert joined.bound[-1] < closed.bound[-1]
    mine = fb.fidelity.certify(
        problem, descent, lambda p, radius: fb.curvature.deep_linear_tube(problem, p, radius), dense_limit=0
    )
    np.testing.assert_allclose(mine.bound, closed.bound)
    assert mine.assumptions[0].status == "given"


def test_a_tube_of_ones_own_on_a_quadratic():
    values = np.array([-0.3, 1.0, 2.0])
    hessian, _ = symmetric(np.random.default_rng(2), values)
    descent = fb.descend(form(hessian), FLOW, np.ones(3), step_size=0.05, steps=50)
    zero = jnp.zeros(())
    tube = fb.curvature.DeepLinearTube(zero - 0.3, zero + 2.0, zero, zero + np.inf, jnp.zeros(1))
    path = fb.fidelity.certify(form(hessian), descent, hessian_lipschitz=0.0)
    own = fb.fidelity.certify(form(hessian), descent, lambda params, radius: tube, dense_limit=0)
    np.testing.assert_allclose(own.bound, path.bound, rtol=1e-12)
    with pytest.raises(ParameterError, match="smallest_eigenvalue"):
        fb.fidelity.certify(form(hessian), descent, lambda params, radius: (1.0, 2.0))


@pytest.mark.slow
def test_a_kink_ends_a_certificate():
    apply, params = fb.networks.mlp((2, 8, 1), "relu", key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (20, 2))
    problem = fb.Problem(apply, inputs, jnp.sin(3 * inputs[:, :1]))
    descent = fb.descend(problem, FLOW, params, step_size=0.005, steps=400)
    certificate = fb.fidelity.certify(problem, descent)

    def signs(t):
        layer = jax.tree.map(lambda leaf: leaf[t], descent.params)[0]
        return np.sign(inputs @ layer["weight"].T + layer["bias"])

    flips = [t for t in range(400) if np.any(signs(t) != signs(t + 1))]
    assert "a kink of the network" in certificate.reason
    assert certificate.valid_until <= 0.005 * flips[0] * (1 + 1e-9)


def test_a_hessian_that_is_not_finite_ends_a_certificate():
    problem = cost(lambda w: jnp.sum(jnp.abs(w) ** 1.5) / 1.5)
    descent = fb.descend(problem, FLOW, np.array([0.25, 4.0]), step_size=0.25, steps=8)
    landed = np.flatnonzero(descent.params[:, 0] == 0)
    assert len(landed) == 0
    descent = fb.descend(problem, FLOW, np.array([0.25, 4.0]), step_size=0.5, steps=8)
    assert descent.params[1, 0] == 0
    certificate = fb.fidelity.certify(problem, descent)
    assert certificate.valid_until == 0
    assert "not finite" in certificate.reason
    assert np.all(np.isinf(certificate.bound[1:]))


class Restless(fb.problem.AbstractProblem):
    """A gradient with noise of its own."""

    noise: np.random.Generator

    def outputs(self, params):
        return params

    def cost(self, params):
        return 0.5 * jnp.sum(params**2)

    def residuals(self, params):
        return params

    def check(self, params):
        pass

    @property
    def n_residuals(self):
        return 1

    def gradient(self, params):
        return params + self.noise.normal(size=params.shape)


def _descent(**options):
    return fb.descend(form(np.eye(2)), FLOW, np.ones(2), **({"step_size": 0.1, "steps": 10} | options))


BAD = [
    (lambda: fb.descend(form(np.eye(2)), optax.adam(0.1), np.ones(2), steps=5), {}, CertificateError, "optax"),
    (lambda: fb.integrate(form(np.eye(2)), FLOW, np.ones(2), 1.0), {}, CertificateError, "gradient descent"),
    (lambda: fb.descend(form(2 * np.eye(2)), FLOW, np.ones(2), step_size=0.1, steps=5), {}, CertificateError, "misses"),
    (
        lambda: fb.descend(form(np.eye(2)), lambda p, w, t: -2 * p.gradient(w), np.ones(2), step_size=0.1, steps=5),
        {},
        CertificateError,
        "misses",
    ),
    (lambda: _descent(options=fb.Options(save="last")), {}, ParameterError, "last parameters only"),
    (_descent, {"step_size": 0.07}, StepSizeError, "whole"),
    (_descent, {"step_size": -0.1}, StepSizeError, "positive"),
    (_descent, {"step_size": 0.05}, CertificateError, "misses"),
    (_descent, {"curvature": "closed"}, UnknownNameError, "tube"),
    (_descent, {"checks": 1}, ParameterError, "at least 2"),
    (_descent, {"hessian_lipschitz": -1.0}, ParameterError, "≥ 0"),
    (_descent, {"hessian_lipschitz": np.nan}, ParameterError, "finite"),
]


@pytest.mark.parametrize(("run", "options", "error", "words"), BAD)
def test_what_no_certificate_speaks_of_is_refused(run, options, error, words):
    with pytest.raises(error, match=words) as caught:
        fb.fidelity.certify(form(np.eye(2)), run(), **options)
    assert all([caught.value.given, caught.value.needed, caught.value.fix])


def test_noise_and_complex_parameters_are_refused():
    with pytest.raises(CertificateError, match="changes from one call"):
        fb.fidelity.certify(Restless(np.random.default_rng(0)), _descent())
    problem = fb.Problem(lambda w, x: jnp.real(w * x), np.ones(1), np.zeros(1))
    descent = fb.descend(problem, FLOW, jnp.array(1.0 + 1.0j), step_size=0.1, steps=3)
    with pytest.raises(ParameterError, match="complex"):
        fb.fidelity.certify(problem, descent)


def test_bounds_below_rounding_are_refused():
    hessian = np.diag([1.0, 0.5])
    with jax.enable_x64(False):
        problem, start = form(hessian.astype(np.float32)), jnp.ones(2, jnp.float32)
        tiny = fb.descend(problem, FLOW, start, step_size=1e-4, steps=1000, save_every=100)
        with pytest.raises(PrecisionError, match="jax_enable_x64"):
            fb.fidelity.certify(problem, tiny)
        large = fb.descend(problem, FLOW, start, step_size=0.1, steps=20)
        certificate = fb.fidelity.certify(problem, large, hessian_lipschitz=0.0)
    k = np.arange(21)[:, None]
    true = np.linalg.norm(large.params - np.exp(-0.1 * k * np.diag(hessian)), axis=1)
    assert np.all(true <= certificate.bound)


def test_a_start_at_rest_stays_there():
    descent = fb.descend(form(np.eye(2)), FLOW, np.zeros(2), step_size=0.1, steps=5)
    certificate = fb.fidelity.certify(form(np.eye(2)), descent)
    np.testing.assert_array_equal(certificate.bound, 0.0)
