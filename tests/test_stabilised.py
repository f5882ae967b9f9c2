"""Stabilised methods: their order, their stability, their tolerance, and the choice between them and classical ones."""

import warnings

import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.solvers import RKC2, ROCK4, solve
from fibration.solvers._method import Classical
from fibration.solvers._spectral_radius import SpectralRadius, estimate_radius
from fibration.solvers._switching import Switching
from problems import digits_problem, form, quadratic, random_spd

METHODS = [RKC2(), ROCK4()]


def names(method):
    return type(method).__name__


def amplification(method, s, z):
    """One step of y' = z y, h = 1, with the stages that belong to s."""
    low, high = stage_window(method, s)
    radius = jnp.asarray(0.5 * (low + high))

    def one(z):
        return method.attempt(lambda t, y: z * y, jnp.zeros(()), jnp.ones(()), jnp.ones(()), z, radius)[0]

    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(z)))


def stage_window(method, s):
    """The step times radius for which the method takes s stages."""
    grid = np.geomspace(0.01, 2e5, 60_001)
    chosen = grid[np.asarray(jax.vmap(method.stages)(jnp.asarray(grid))) == s]
    return chosen[0], chosen[-1]


def chebyshev(s, x):
    """T_s, T_s' and T_s'' at x, in high precision, by their trigonometric definition."""
    angle = mpmath.acosh(x)  # imaginary within [-1, 1]
    t, sine = mpmath.cosh(s * angle), mpmath.sinh(angle)
    first = s * mpmath.sinh(s * angle) / sine
    return mpmath.re(t), mpmath.re(first), mpmath.re((s**2 * t - x * first) / sine**2)


@pytest.mark.parametrize("s", [2, 3, 4, 5, 7, 10, 23, 57, 140, 400])
def test_rkc2_has_the_stability_polynomial_of_its_definition(s):
    # R(z) = a + b T_s(w0 + w1 z), with b = T_s''(w0)/T_s'(w0)² and a = 1 − b T_s(w0).
    z = -np.linspace(0, 0.653 * (s**2 - 1), 101)
    with mpmath.workdps(40):
        w0 = 1 + mpmath.mpf(2) / (13 * s**2)
        t, first, second = chebyshev(s, w0)
        w1, b = first / second, second / first**2
        wanted = np.array([float(1 - b * t + b * chebyshev(s, w0 + w1 * mpmath.mpf(x))[0]) for x in z])
    found = amplification(RKC2(), s, z)
    # Rounding in s stages is multiplied by s² (Verwer, Hundsdorfer and Sommeijer 1990).
    assert np.abs(found - wanted).max() < max(1e-12, 10 * s**2 * np.finfo(float).eps)
    assert np.all(np.abs(found[1:]) < 1)
    assert stage_window(RKC2(), s)[1] <= -z[-1] * (1 + 1e-3)  # never fewer stages than stability needs


def test_rock4_chooses_stages_that_are_stable():
    for z in np.geomspace(0.1, 1e3, 25):
        s = int(ROCK4().stages(jnp.asarray(z)))
        assert np.abs(amplification(ROCK4(), s, -np.linspace(1e-3, z, 200))).max() < 1


def coupled(t, y):
    """Nonlinear and time dependent, with eigenvalues about −1, −3, −1."""
    return jnp.array([-y[0] * (1 + y[1]) + jnp.sin(t), -3 * y[1] + y[0] ** 2, -y[2] + y[0] * y[1]])


@pytest.mark.parametrize(("method", "order"), [(RKC2(), 2), (ROCK4(), 4)], ids=["RKC2", "ROCK4"])
@pytest.mark.parametrize("stiffness", [1.0, 30.0, 100.0, 400.0])
def test_observed_order(method, order, stiffness):
    start = jnp.array([1.0, 0.5, 0.2])
    exact = scipy.integrate.solve_ivp(coupled, (0, 2), start, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]

    @jax.jit
    def run(h, steps):
        def step(k, y):
            t = k * h
            return method.attempt(coupled, t, h, y, coupled(t, y), stiffness / h)[0]

        return jax.lax.fori_loop(0, steps, step, start)

    errors = [float(jnp.linalg.norm(run(2.0 / n, n) - exact)) for n in (16, 32, 64)]
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(slopes - order) < 0.15), errors


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_error_estimate_is_of_the_order_that_the_control_assumes(method):
    start = jnp.array([1.0, 0.5, 0.2])

    def estimate(h):
        return float(
            jnp.linalg.norm(
                method.attempt(
                    coupled, jnp.asarray(0.3), jnp.asarray(h), start, coupled(0.3, start), jnp.asarray(20.0 / h)
                )[2]
            )
        )

    slope = np.log2(estimate(0.02) / estimate(0.01))
    assert abs(slope - method.control(None).order) < 0.2


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(["rkc2", "rock4", "auto"]))
def test_quadratic_flow_is_within_its_tolerance_at_every_saved_time(seed, method):
    rng = np.random.default_rng(seed)
    stiff = 10 ** rng.uniform(0, 7)  # largest eigenvalue times the time span
    values = np.concatenate([[1.0], 10 ** rng.uniform(-8, 0, 6), [0.0]])
    hessian, start = random_spd(seed, values), rng.normal(size=8)
    times = stiff * np.concatenate([[0.0], np.geomspace(1e-6, 1, 12)])
    rtol = float(10 ** rng.uniform(-6, -3))
    run = fb.integrate(
        form(hessian), fb.GradientFlow(), start, stiff, rtol=rtol, atol=rtol, times=times, method=method
    ).raise_if_failed()
    eigenvalues, vectors = np.linalg.eigh(hessian)
    exact = (np.exp(-np.outer(times, eigenvalues)) * (start @ vectors)) @ vectors.T
    # The norm in which the tolerance is given: the root mean square of error/(atol + rtol·|θ|).
    error = np.sqrt(np.mean(((run.params - exact) / (1 + np.abs(exact))) ** 2, axis=1))
    assert error.max() < rtol, (stiff, run.stats["method"], error)


@pytest.mark.parametrize(("method", "most"), [("rkc2", 45_000), ("auto", 45_000)])
def test_a_stiffness_of_ten_million_costs_thousands_of_gradients(method, most):
    values = np.geomspace(1e-7, 1, 20)
    start = np.ones(20)
    run = fb.integrate(
        quadratic(np.diag(values)), fb.GradientFlow(), start, 1e7, rtol=1e-3, atol=1e-5, method=method, times=[1e7]
    )
    assert np.linalg.norm(run.params[-1] - np.exp(-1e7 * values) * start) < 1e-3 * np.linalg.norm(start)
    assert run.stats["gradient_evaluations"] + 2 * run.stats["hvp_evaluations"] < most
    assert run.stats["spectral_radius"][-1] == pytest.approx(1.05, rel=0.05)


@pytest.mark.parametrize(("method", "rtol"), [("rkc2", 1e-6), ("rock4", 1e-9), ("auto", 1e-9)])
def test_nonlinear_network_agrees_with_diffrax_at_a_tight_tolerance(method, rtol):
    problem, params = digits_problem()
    flat, unravel = ravel_pytree(params)

    def field(t, y, args):
        return -ravel_pytree(problem.gradient(unravel(y)))[0]

    reference = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(),
        0.0,
        60.0,
        None,
        flat,
        stepsize_controller=diffrax.PIDController(rtol=1e-12, atol=1e-14),
        max_steps=100_000,
    ).ys[-1]
    run = fb.integrate(
        problem, fb.GradientFlow(), params, 60.0, rtol=rtol, atol=rtol / 100, times=[60.0], method=method
    )
    error = jnp.linalg.norm(ravel_pytree(run.final_params)[0] - reference) / jnp.linalg.norm(reference - flat)
    assert error < 30 * rtol


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_as_a_solver_of_diffrax(method):
    hessian = np.diag(np.geomspace(1e-3, 1e3, 7))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -jnp.asarray(hessian) @ y),
        method,
        0.0,
        10.0,
        None,
        jnp.ones(7),
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        adjoint=diffrax.ForwardMode(),
        max_steps=20_000,
    )
    np.testing.assert_allclose(solution.ys[-1], np.exp(-10 * np.diag(hessian)), atol=1e-5)
    spent = solution.solver_state.spent
    assert int(spent.evaluations) < 10_000  # Tsit5 needs 17 000: hλ stays below 3.5
    assert int(spent.products) > 0


@pytest.mark.parametrize("method", ["rkc2", "rock4", "auto"])
def test_evaluations_are_counted_as_they_happen(method):
    calls = []

    class Counting(fb.GradientFlow):
        def __call__(self, problem, params, time=0.0):
            jax.debug.callback(lambda _: calls.append(1), time)
            return super().__call__(problem, params, time)

    problem = quadratic(random_spd(2, [0.0, 0.1, 1.0, 7.0, 400.0]))
    times = [0.0, 0.3, 0.31, 1.7, 8.0]
    run = fb.integrate(problem, Counting(), np.ones(5), t1=8.0, rtol=1e-4, method=method, times=times)
    jax.effects_barrier()
    # A Jacobian–vector product evaluates the field once along the way. One more call checks the first velocity.
    assert len(calls) - 1 == run.stats["gradient_evaluations"] + run.stats["hvp_evaluations"]
    assert run.stats["hvp_evaluations"] > 0


@pytest.mark.parametrize("method", ["rkc2", "rock4", "auto"])
def test_saving_changes_no_step(method):
    problem, start = quadratic(random_spd(1, [0.0, 0.1, 1.0, 7.0, 400.0])), np.ones(5)
    few = fb.integrate(problem, fb.GradientFlow(), start, t1=20.0, times=[20.0], method=method, rtol=1e-5)
    many = fb.integrate(
        problem, fb.GradientFlow(), start, t1=20.0, times=np.linspace(0, 20, 777), method=method, rtol=1e-5
    )
    assert few.stats["steps"] == many.stats["steps"]
    np.testing.assert_array_equal(few.params[-1], many.params[-1])
    assert np.array_equal(many.params[0], start)
    assert len(many.stats["spectral_radius"]) == 777


def test_auto_switches_to_the_stabilised_method_and_back():
    # The stiff coordinate is stiff between t = 20 and t = 60 only.
    def field(t, y):
        rate = 1 + 2000 * (jax.nn.sigmoid(4 * (t - 20)) - jax.nn.sigmoid(4 * (t - 60)))
        return jnp.array([-rate * (y[0] - jnp.cos(y[1])), 1.0])

    run = solve(field, jnp.array([1.0, 0.0]), 120.0, rtol=1e-6, atol=1e-8, times=[10.0, 40.0, 120.0])
    assert run.stats["switches"] % 2 == 0
    assert run.stats["method"] == "Tsit5 → ROCK4"
    assert 19 < run.stats["first_switch"] < 25
    assert run.stats["steps_by_method"]["Tsit5"] > 20
    assert run.stats["steps_by_method"]["ROCK4"] > 20
    radius = run.stats["spectral_radius"]
    assert np.isnan(radius[0])
    assert radius[1] == pytest.approx(2001, rel=0.1)
    assert np.isnan(radius[2])
    exact = scipy.integrate.solve_ivp(field, (0, 120), [1.0, 0.0], "Radau", rtol=1e-10, atol=1e-12).y[0, -1]
    assert run.params[-1, 0] == pytest.approx(exact, abs=1e-6)


def test_auto_sees_that_cross_entropy_is_not_stiff():
    inputs, targets = fb.datasets.digits(samples=200, one_hot=True)
    apply, params = fb.networks.mlp((64, 32, 10), "tanh", key=jax.random.key(0))
    problem = fb.Problem(apply, inputs - inputs.mean(axis=0), targets, loss=fb.CrossEntropy())
    spent = {}
    for method in ("auto", "tsit5", "dopri8"):
        stats = fb.integrate(problem, fb.GradientFlow(), params, 2000.0, rtol=1e-5, method=method, times=[2000.0]).stats
        spent[method] = stats["gradient_evaluations"] + 2 * stats["hvp_evaluations"]
    assert spent["auto"] <= 1.2 * min(spent.values())


@pytest.mark.parametrize("erk", [diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8()], ids=names)
def test_classical_methods_measure_their_stiffness(erk):
    method, hessian = Classical(erk), jnp.diag(jnp.array([0.1, 1.0, 20.0]))
    terms = diffrax.ODETerm(lambda t, y, args: -hessian @ y)
    start = jnp.array([0.0, 0.0, 1.0])
    state = method.init(terms, 0.0, 0.1, start, None)
    new, _, _, state, _ = method.step(terms, 0.0, 0.1, start, None, state, jnp.asarray(False))
    assert float(state.stiffness) == pytest.approx(2.0, rel=1e-9)
    np.testing.assert_allclose(method.slope(state), -hessian @ new, rtol=1e-13)
    # The boundary of stability on the real axis, as the method itself shows it.
    limit = method.ceiling()
    for z, grows in ((0.999 * limit, False), (1.001 * limit, True)):
        terms = diffrax.ODETerm(lambda t, y, args, z=z: -z * y)
        state = method.init(terms, 0.0, 1.0, jnp.ones(()), None)
        factor = method.step(terms, 0.0, 1.0, jnp.ones(()), None, state, jnp.asarray(False))[0]
        assert (abs(float(factor)) > 1) == grows


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_spectral_radius_is_bounded_from_above(seed, symmetric):
    rng = np.random.default_rng(seed)
    if symmetric:
        matrix = -random_spd(seed, 10 ** rng.uniform(-3, 3, 12) * rng.choice([1, 1, 1, -0.5], 12))
    else:  # a nonsymmetric matrix with a real spectrum
        basis = np.eye(12) + 0.2 * rng.normal(size=(12, 12))
        matrix = -basis @ np.diag(10 ** rng.uniform(-3, 3, 12)) @ np.linalg.inv(basis)
    exact = np.abs(np.linalg.eigvals(matrix)).max()
    start = jnp.zeros(12)
    found, products = estimate_radius(lambda y: jnp.asarray(matrix) @ y, start, SpectralRadius.unknown(start))
    assert 0.97 * exact <= float(found.radius) <= 1.25 * exact
    again, fewer = estimate_radius(lambda y: jnp.asarray(matrix) @ y, start, found)
    assert int(fewer) <= int(products)
    assert 0.97 * exact <= float(again.radius) <= 1.25 * exact


def test_spectral_radius_is_not_that_of_the_second_eigenvector():
    # Four hundred symmetric matrices whose two largest eigenvalues may be close, some with almost nothing of the
    # largest one in the first direction: plain power iteration stands still at the second, in one of a hundred.
    def hessian(seed):
        return random_spd(seed, np.concatenate([[1.0], 10 ** np.random.default_rng(seed).uniform(-8, 0, 6), [0.0]]))

    @jax.jit
    @jax.vmap
    def radius(matrix):
        unknown = SpectralRadius.unknown(jnp.zeros(8))
        return estimate_radius(lambda y: -matrix @ y, jnp.zeros(8), unknown)[0].radius

    found = radius(jnp.asarray(np.stack([hessian(seed) for seed in range(400)])))
    assert 1.0 < found.min() < found.max() < 1.1


def test_a_sudden_rise_of_the_spectral_radius_is_caught():
    # The radius jumps by ten thousand between two estimates; a step that blew up is tried again with the new one.
    def field(t, y):
        return -jnp.where(t > 5, 1e4, 1.0) * (y - 1e-3 * t)

    for method in ("rkc2", "rock4"):
        run = solve(field, jnp.array([1.0]), 10.0, rtol=1e-3, atol=1e-5, method=method, times=[4.0, 10.0])
        assert run.result.code == "completed"
        assert run.params[-1, 0] == pytest.approx(1e-2, abs=1e-4)
        assert run.stats["gradient_evaluations"] < 20_000


def test_the_statistics_reach_a_file(tmp_path):
    run = solve(lambda t, y: -100 * (y - jnp.cos(t)), jnp.zeros(1), 10.0, rtol=1e-4)
    run.to_xarray().to_zarr(tmp_path / "run.zarr", consolidated=False)
    again = xarray.open_zarr(tmp_path / "run.zarr", consolidated=False)
    np.testing.assert_array_equal(again["spectral_radius"], run.stats["spectral_radius"])
    assert again.attrs["steps_ROCK4"] == run.stats["steps_by_method"]["ROCK4"] > 0


def test_a_field_with_nothing_in_it():
    run = solve(lambda t, y: jnp.zeros_like(y), jnp.ones(3), 1e3, method="rkc2", rtol=1e-3)
    np.testing.assert_array_equal(run.params[-1], np.ones(3))
    assert run.result.code == "completed"


def test_float32_keeps_to_few_stages():
    values = np.geomspace(1e-6, 1, 8)
    hessian = jnp.asarray(np.diag(values), jnp.float32)
    with jax.enable_x64(False):
        for method in ("rkc2", "rock4"):
            run = solve(lambda t, y: -hessian @ y, jnp.ones(8, jnp.float32), 1e4, rtol=1e-3, atol=1e-5, method=method)
            assert run.result.code == "completed"
            np.testing.assert_allclose(run.params[-1], np.exp(-1e4 * values), atol=3e-3)


def test_names():
    with pytest.raises(fb.errors.UnknownNameError, match="'rkc2', 'rock4'"):
        fb.integrate(quadratic(np.eye(2)), fb.GradientFlow(), np.ones(2), 1.0, method="rkc3")


@pytest.mark.parametrize(("method", "rate"), [("auto", 1e2), ("auto", 1e3), ("rkc2", 1e2), ("rock4", 1e3)])
def test_single_precision_at_a_tolerance_near_its_rounding(method, rate):
    # The error estimates of stabilised methods hold rounding in proportion to the step: were it not bounded, it would
    # exceed the tolerance and no step would be accepted.
    rates = np.array([1.0, rate], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fb.errors.PrecisionWarning)
        run = solve(lambda t, y: -rates * y, jnp.ones(2, jnp.float32), 3.0, rtol=1e-6, method=method)
    assert run.result.code == "completed"
    np.testing.assert_allclose(run.params[-1], np.exp(-3 * rates), atol=3e-6)


def test_a_complex_velocity_of_a_real_state_is_refused():
    with pytest.raises(fb.errors.FlowError, match="complex128"):
        solve(lambda t, y: 1j * y, jnp.ones(1), 1.0)


def test_rkc2_warns_where_rounding_hides_its_error():
    with pytest.warns(fb.errors.PrecisionWarning, match="RKC2"):
        solve(lambda t, y: -y, jnp.ones(2, jnp.float32), 1.0, rtol=1e-6, method="rkc2")


def test_double_precision_at_a_tolerance_near_its_rounding():
    rates = np.array([1.0, 2500.0])
    run = solve(lambda t, y: -rates * (y - 1), jnp.zeros(2), 3.0, rtol=1e-12, atol=1e-14)
    assert run.result.code == "completed"
    np.testing.assert_allclose(run.params[-1], 1 - np.exp(-3 * rates), rtol=1e-11)


class Refusing(ROCK4):
    """Never content with a step longer than a tenth of the radius."""

    def attempt(self, field, t0, h, y0, slope, radius):
        new, new_slope, error = super().attempt(field, t0, h, y0, slope, radius)
        return new, new_slope, error + jnp.where(h * radius > 0.1, jnp.inf, 0)


def test_auto_hands_back_from_a_method_that_cannot_go_on():
    method = Switching((Classical(diffrax.Tsit5()), Refusing()))
    run = solve(lambda t, y: -jnp.array([1.0, 1e3]) * y, jnp.ones(2), 3.0, rtol=1e-4, method=method)
    assert run.result.code == "completed"
    assert run.stats["steps_by_method"]["Tsit5"] > 0.9 * run.stats["steps"]
    assert run.stats["rejected"] < 0.3 * run.stats["steps"]
