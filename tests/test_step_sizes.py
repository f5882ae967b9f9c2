import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.errors import CertificateError, DivergedError, ParameterError, StepSizeError, UnknownNameError
from test_certificates import FLOW, cost, deep_linear_problem, form, symmetric, tanh_problem, true_distance


def worst(problem, params, step_size, end):
    """The largest distance from the flow of a descent with this step size."""
    steps = int(end / step_size)
    descent = fb.descend(problem, FLOW, params, step_size=step_size, steps=steps, save_every=max(1, steps // 50))
    return np.max(true_distance(problem, params, descent))


def worst_on_form(hessian, start, step_size, end):
    """The same for a quadratic cost, in closed form; at up to a thousand of the steps."""
    values, vectors = np.linalg.eigh(hessian)
    k = np.unique(np.linspace(0, int(end / step_size), 1000).round())[:, None]
    growth = np.exp(k * np.log(np.abs(1 - step_size * values))) * np.sign(1 - step_size * values) ** k
    return np.max(np.linalg.norm((start @ vectors) * (growth - np.exp(-step_size * k * values)), axis=1))


def flow_of(problem, params, end, **options):
    return fb.integrate(problem, FLOW, params, end, rtol=1e-9, atol=1e-11, method="dopri8", **options)


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01])
def test_on_a_quadratic_the_promise_is_kept_and_the_estimate_is_right(epsilon):
    rng = np.random.default_rng(0)
    hessian, _ = symmetric(rng, np.linspace(-0.3, 5, 8))
    start = rng.normal(size=8)
    found = fb.fidelity.step_size_for(
        form(hessian), flow_of(form(hessian), start, 10.0), epsilon, hessian_lipschitz=0.0
    )
    assert found.kind == "theorem"
    assert worst_on_form(hessian, start, found.step_size, 10.0) <= epsilon
    np.testing.assert_allclose(worst_on_form(hessian, start, found.estimate, 10.0), epsilon, rtol=0.1)
    np.testing.assert_allclose(found.amplification, np.exp(3.0), rtol=1e-6)
    np.testing.assert_allclose(found.stable_step_size, 0.4, rtol=1e-9)
    assert np.max(found.bound) <= epsilon
    assert found.step_size > epsilon / 3000  # the form with global constants promises epsilon/3300


@pytest.mark.slow
def test_promises_are_kept_on_random_quadratics():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        hessian, _ = symmetric(rng, rng.normal(size=4) + 0.5)
        start, end, epsilon = rng.normal(size=4), 3.0, 0.1 * 10 ** rng.uniform(-1, 1)
        flow = flow_of(form(hessian), start, end, times=np.linspace(0, end, 31))
        found = fb.fidelity.step_size_for(form(hessian), flow, epsilon)
        assert worst_on_form(hessian, start, found.step_size, end) <= epsilon


@pytest.mark.slow
def test_promises_are_kept_on_a_network():
    problem, params = tanh_problem()
    found = fb.fidelity.step_size_for(problem, flow_of(problem, params, 1.5), 0.2, checks=31)
    assert found.kind == "conditional"
    assert worst(problem, params, found.step_size, 1.5) <= 0.2
    estimate = 0.05 * found.estimate  # of first order: right for small steps
    np.testing.assert_allclose(worst(problem, params, estimate, 1.5), 0.01, rtol=0.2)


@pytest.mark.slow
def test_promises_are_kept_on_a_deep_linear_network():
    problem, params = deep_linear_problem()
    flow = flow_of(problem, params, 1.0)
    joined, closed = (
        fb.fidelity.step_size_for(problem, flow, 0.1, "tube", dense_limit=limit, checks=21) for limit in (1500, 0)
    )
    assert (joined.kind, closed.kind) == ("theorem", "theorem")
    assert closed.step_size < joined.step_size
    assert worst(problem, params, joined.step_size, 1.0) <= 0.1


def test_a_convex_cost_needs_no_smaller_steps_for_longer_times():
    problem, start = form(np.diag([1.0, 3.0])), np.array([2.0, -1.0])
    sizes = [
        fb.fidelity.step_size_for(
            problem,
            flow_of(problem, start, end, times=np.linspace(0, end, int(20 * end) + 1)),
            0.05,
            hessian_lipschitz=0.0,
            checks=400,
        )
        for end in (4.0, 16.0)
    ]
    np.testing.assert_allclose(sizes[0].step_size, sizes[1].step_size, rtol=1e-6)
    assert sizes[0].amplification == 1
    assert worst(problem, start, sizes[1].step_size, 16.0) <= 0.05
    assert sizes[1].argmin_time < 4


def test_where_no_step_size_can_be_guaranteed_it_says_until_when():
    problem = cost(lambda w: -0.5 * w[0] ** 2 + 0.5 * w[1] ** 2)
    flow = flow_of(problem, np.array([1e-18, 1.0]), 60.0)
    found = fb.fidelity.step_size_for(problem, flow, 1e-3, hessian_lipschitz=0.0)
    assert found.step_size is None
    assert "none is known beyond t = " in found.message
    until = float(found.reason.split("t = ")[1].split(",")[0])
    assert 5 < until < 40
    np.testing.assert_allclose(found.amplification, np.exp(60.0), rtol=1e-6)
    assert np.all(np.isinf(found.bound[1:]))
    shorter = fb.fidelity.step_size_for(
        problem, flow_of(problem, np.array([1e-18, 1.0]), until), 1e-3, hessian_lipschitz=0.0
    )
    assert shorter.step_size > 0


def test_an_initial_error_is_amplified():
    problem, start = form(np.diag([-1.0, 1.0])), np.array([0.1, 1.0])
    flow = flow_of(problem, start, 4.0)
    fine = fb.fidelity.step_size_for(problem, flow, 0.1, hessian_lipschitz=0.0)
    less = fb.fidelity.step_size_for(problem, flow, 0.1, hessian_lipschitz=0.0, initial_error=0.5 * 0.1 * np.exp(-4))
    none = fb.fidelity.step_size_for(problem, flow, 0.1, hessian_lipschitz=0.0, initial_error=0.01)
    np.testing.assert_allclose(less.step_size, 0.5 * fine.step_size, rtol=0.05)
    assert none.step_size is None
    time = float(none.reason.split("t = ")[1])
    assert abs(time - np.log(10)) <= 0.05  # 0.01 eᵗ reaches 0.1, at the next saved time


def test_what_it_cannot_work_with_is_refused():
    problem, start = form(np.eye(2)), np.ones(2)
    flow = flow_of(problem, start, 1.0)
    with pytest.raises(CertificateError, match="solved gradient flow"):
        fb.fidelity.step_size_for(problem, fb.descend(problem, FLOW, start, step_size=0.1, steps=3), 0.1)
    for bad in ({"epsilon": 0.0}, {"epsilon": np.inf}, {"epsilon": 0.1, "initial_error": -1.0}):
        with pytest.raises(ParameterError, match="distance"):
            fb.fidelity.step_size_for(problem, flow, **bad)
    with pytest.raises(UnknownNameError):
        fb.fidelity.step_size_for(problem, flow, 0.1, "balls")
    with pytest.raises(CertificateError, match="one saved time"):
        fb.fidelity.step_size_for(problem, flow_of(problem, start, 1.0, times=[1.0]), 0.1)
    blows_up = cost(lambda w: -jnp.sum(w**3))
    with pytest.raises(DivergedError):
        fb.fidelity.step_size_for(blows_up, flow_of(blows_up, np.ones(1), 2.0), 0.1)


# The first-order error, and the modified flow


def test_first_order_error_of_a_quadratic_in_closed_form():
    values = np.array([-0.5, 1.0, 4.0])
    hessian, vectors = symmetric(np.random.default_rng(3), values)
    start = np.array([1.0, -2.0, 0.5])
    flow = flow_of(form(hessian), start, 3.0, times=np.linspace(0, 3, 7))
    found = fb.fidelity.first_order_error(form(hessian), flow, rtol=1e-9, atol=1e-11, method="dopri8")
    t = flow.times[:, None]
    exact = (-(t / 2) * values**2 * np.exp(-t * values) * (start @ vectors)) @ vectors.T
    np.testing.assert_allclose(found.vectors, exact, atol=1e-7)
    np.testing.assert_allclose(found.norms, np.linalg.norm(exact, axis=1), atol=1e-7)


@pytest.mark.slow
def test_first_order_error_predicts_the_distance_to_first_order():
    problem, params = tanh_problem()
    flow = flow_of(problem, params, 10.0, times=[0.0, 5.0, 10.0])
    norms = fb.fidelity.first_order_error(problem, flow, rtol=1e-8, atol=1e-10, method="dopri8").norms
    ratios = []
    for eta in (0.02, 0.01, 0.005):
        steps = round(10 / eta)
        descent = fb.descend(problem, FLOW, params, step_size=eta, steps=steps, save_every=steps // 2)
        ratios.append(eta * norms[1:] / true_distance(problem, params, descent)[1:])
    np.testing.assert_allclose(ratios[-1], 1.0, atol=0.01)
    errors = np.abs(np.array(ratios) - 1)
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2.0, rtol=0.1)


@pytest.mark.parametrize(("form_of", "gradients"), [("gradient", 2), ("hessian", 2)])
def test_descent_follows_the_modified_flow_to_second_order(form_of, gradients):
    problem, params = tanh_problem()
    ends = {"plain": [], "modified": []}
    for eta in (0.04, 0.02, 0.01):
        steps = round(4 / eta)
        descent = fb.descend(problem, FLOW, params, step_size=eta, steps=steps, save_every=steps)
        for name, flow in (("plain", FLOW), ("modified", fb.fidelity.ModifiedFlow(eta, form_of))):
            run = fb.integrate(problem, flow, params, 4.0, rtol=1e-11, atol=1e-13, times=descent.times, method="dopri8")
            ends[name].append(fb.fidelity.distance(descent, run)[1][-1])
    orders = {name: np.log2(np.array(values[:-1]) / values[1:]) for name, values in ends.items()}
    np.testing.assert_allclose(orders["plain"], 1.0, atol=0.05)
    np.testing.assert_allclose(orders["modified"], 2.0, atol=0.05)
    assert fb.fidelity.ModifiedFlow(0.1, form_of).gradient_evaluations == gradients


def test_the_modified_flow_is_what_it_says():
    problem, params = tanh_problem()
    flat, unravel = ravel_pytree(params)
    slope = lambda w: ravel_pytree(problem.gradient(unravel(w)))[0]  # noqa: E731
    gradient = slope(flat)
    expected = -slope(flat + 0.05 * gradient)
    found = ravel_pytree(fb.fidelity.ModifiedFlow(0.1)(problem, params))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    penalised = jax.grad(lambda w: problem.cost(unravel(w)) + 0.025 * jnp.sum(slope(w) ** 2))(flat)
    found = ravel_pytree(fb.fidelity.ModifiedFlow(0.1, "hessian")(problem, params))[0]
    np.testing.assert_allclose(found, -penalised, rtol=1e-9, atol=1e-12)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(StepSizeError):
            fb.fidelity.ModifiedFlow(bad)
    with pytest.raises(UnknownNameError):
        fb.fidelity.ModifiedFlow(0.1, "both")


# Where an exponentially small step size cannot be avoided


def separation(m, c, x0, terms=40):
    """The cost x²/2 − my²/2 + cx²y, and a start on the stable manifold of its saddle at 0."""
    problem = cost(lambda w: 0.5 * w[0] ** 2 - 0.5 * m * w[1] ** 2 + c * w[0] ** 2 * w[1])
    a = np.zeros(terms + 1)
    for k in range(1, terms + 1):
        a[k] = (c * (k == 1) - 4 * c * sum(i * a[i] * a[k - i] for i in range(1, k))) / (m + 2 * k)
    return problem, np.array([x0, np.polyval(a[::-1], x0**2)])


@pytest.mark.parametrize("m", [0.5, 1.0])
def test_exponential_separation(m):
    c, x0, ends = 0.3, 0.5, np.array([6.0, 8.0, 10.0])
    problem, start = separation(m, c, x0)
    flow = fb.integrate(problem, FLOW, start, 10.0, rtol=1e-12, atol=1e-15, method="dopri8", times=[0.0, *ends])
    assert np.max(np.abs(flow.params[-1])) < 1e-3  # the flow goes to the saddle
    norms = fb.fidelity.first_order_error(problem, flow, rtol=1e-11, atol=1e-13, method="dopri8").norms[1:]
    np.testing.assert_allclose(np.diff(np.log(norms)) / np.diff(ends), m, rtol=0.02)
    theory = c * x0**2 * np.exp(m * ends) / (m + 2) ** 2
    np.testing.assert_allclose(norms, theory, rtol=0.1)
    # Descent does leave it so, and no guarantee can promise a larger step size than the truth allows.
    eta = 1e-3 / norms[-1]
    steps = int(10 / eta)
    descent = fb.descend(problem, FLOW, start, step_size=eta, steps=steps, save_every=steps)
    np.testing.assert_allclose(true_distance(problem, start, descent)[-1], 1e-3, rtol=0.1)
    guaranteed = [
        fb.fidelity.step_size_for(
            problem,
            fb.integrate(problem, FLOW, start, end, rtol=1e-11, atol=1e-14, times=np.linspace(0, end, 101)),
            1e-3,
        )
        for end in ends
    ]
    assert all(one.step_size < 1e-3 / norm for one, norm in zip(guaranteed, norms, strict=True))
    sizes = np.log([one.step_size for one in guaranteed])
    assert np.all(np.diff(sizes) / np.diff(ends) < -m)
