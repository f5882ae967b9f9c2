import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.errors import EmptyDataError, NonFiniteDataError, ParameterError, ShapeError, StepSizeError
from fibration.fidelity import deep_linear_guarantee, whiten
from fibration.fidelity._descent_bound import _Tube
from fibration.fidelity._reduction import Start, distance


def unit(rng, n):
    v = rng.normal(size=n)
    return v / np.linalg.norm(v)


def case(n, w, c, lam, seed=0, d=3, hidden=4, samples=20):
    """Whitened data, targets and a balanced start with |W| = w, cos(W, L) = c and |L| = lam."""
    rng = np.random.default_rng(seed)
    inputs, _ = whiten(rng.normal(size=(samples, d)))
    frame = np.linalg.qr(rng.normal(size=(d, d)))[0]
    units = [c * frame[0] + np.sqrt(1 - c**2) * frame[1], *(unit(rng, hidden) for _ in range(n - 1)), np.ones(1)]
    Ws = [w ** (1 / n) * np.outer(after, before) for before, after in itertools.pairwise(units)]
    noise = rng.normal(size=samples)
    # Noise that no linear map explains moves the minimal cost and nothing else.
    noise -= inputs @ (noise @ inputs) / samples
    return inputs, inputs @ (lam * frame[0]) + 0.3 * noise, Ws


def reduced_flow(n, w, c, lam):
    """Equation by equation in (log w, y), the two variables integrated by scipy."""

    def field(t, state):
        speed = np.exp(state[0] * (1 - 2 / n))
        return [n * speed * (lam * np.tanh(state[1]) - np.exp(state[0])), lam * speed]

    return lambda times: (
        scipy.integrate.solve_ivp(
            field, (0, times[-1]), [np.log(w), np.arctanh(c)], "DOP853", times, rtol=1e-12, atol=1e-13
        ).y
    )


def norm_and_alignment(n, w, c, lam, times):
    log_w, y = reduced_flow(n, w, c, lam)(times)
    return np.stack([np.exp(log_w), y])


# Depth, |W|, cos(W, L), |L|, the time at which the flow's cost is 1e-6, and the elementary bound of that time.
ORBITS = [
    (2, 1e-3, -0.6, 1.0, 8.457747, 38.9),
    (3, 0.02, -0.6, 1.0, 14.599650, 57.4),
    (3, 0.02, 0.3, 2.0, 4.408968, 22.9),
    (4, 0.05, -0.3, 1.5, 7.645733, 36.3),
    (6, 0.1, 0.2, 1.2, 6.993368, 52.3),
]


@pytest.mark.parametrize(("n", "w", "c", "lam", "time", "bound"), ORBITS)
def test_exact_times_and_their_elementary_bound(n, w, c, lam, time, bound):
    # The flow reaches ½√(2·accuracy) for accuracy 4e-6 when its cost is 1e-6.
    guarantee = deep_linear_guarantee(*case(n, w, c, lam), 4e-6)
    np.testing.assert_allclose(guarantee.time, time, atol=6e-7)
    log_w, y = reduced_flow(n, w, c, lam)(np.array([guarantee.time]))[:, 0]
    np.testing.assert_allclose(0.5 * distance(np.exp(log_w), y, lam) ** 2, 1e-6, rtol=1e-7)
    at_1e_6 = deep_linear_guarantee(*case(n, w, c, lam), 1e-6)
    np.testing.assert_allclose(at_1e_6.time_bound, bound, atol=0.051)
    assert guarantee.time < at_1e_6.time_bound


@pytest.mark.parametrize(("n", "w", "c", "lam"), [row[:4] for row in ORBITS])
def test_the_orbit_in_closed_form_and_the_flow_in_time(n, w, c, lam):
    start = Start(n, lam, w, float(np.arctanh(c)))
    orbit = start.orbit_to(start.alignment + 5)
    times = np.linspace(0, orbit.end, 40)
    log_w, y = reduced_flow(n, w, c, lam)(times)
    norms, alignments = orbit.at(times)
    np.testing.assert_allclose(norms, np.exp(log_w), rtol=1e-8)
    np.testing.assert_allclose(alignments, y, atol=1e-8)
    np.testing.assert_allclose([start.norm_at(v) for v in y], np.exp(log_w), rtol=1e-9)
    if n == 2:
        y0 = start.alignment
        by_hand = (np.cosh(y0) ** 2 / w + ((y - y0) + (np.sinh(2 * y) - np.sinh(2 * y0)) / 2) / lam) / np.cosh(y) ** 2
        np.testing.assert_allclose(np.exp(log_w), 1 / by_hand, rtol=1e-9)
        np.testing.assert_allclose(y, y0 + lam * times, rtol=1e-9)


@pytest.mark.parametrize(("n", "w", "c", "lam"), [ORBITS[0][:4], ORBITS[3][:4]])
def test_the_reduction_is_the_flow_of_the_whole_network(n, w, c, lam):
    guarantee = deep_linear_guarantee(*case(n, w, c, lam), 1e-4)
    times = np.linspace(0, guarantee.time, 6)
    run = fb.integrate(
        guarantee.problem,
        fb.GradientFlow(),
        guarantee.params,
        guarantee.time,
        method="dopri8",
        rtol=1e-11,
        atol=1e-13,
        times=times,
    )
    excess = 0.5 * distance(*norm_and_alignment(n, w, c, lam, times), lam) ** 2
    np.testing.assert_allclose(run.costs - guarantee.minimal_cost, excess, rtol=1e-7, atol=1e-11)


# A table of the same guarantee with ε/√n for ε and without the uniform form's factor 2, on a time grid of 0.01, to
# which T is rounded up: depth, |W|, cos(W, L), with |L| = 1; T; e^M; the uniform form's step size and steps; the local
# form's step size, for a window of a few grid points.
CERTIFIED = [
    (2, 0.1, 0.3, 3.24, 6.4, 3.35e-3, 968, 1.23e-2),
    (3, 0.1, 0.3, 4.01, 27.1, 3.39e-4, 11842, 2.16e-3),
    (3, 0.1, -0.3, 5.52, 108.0, 8.09e-5, 68250, 8.29e-4),
    (3, 0.02, 0.3, 5.52, 58.0, 1.20e-4, 46055, 2.54e-3),
    (4, 0.1, 0.3, 4.44, 112.0, 4.20e-5, 105593, 4.23e-4),
]


def step_sizes_by_trapezoid(n, w, c, t, *, growth, radius, two_sided=True):
    """The uniform and the local step size for |L| = 1, and e^M, by scipy's flow, trapezoids and running maxima."""
    norms, y = norm_and_alignment(n, w, c, 1.0, t)
    s, r = norms ** (1 / n), distance(norms, y, 1.0)
    residual = r + (s + growth) ** n - s**n
    m = (n - 1) * (s + growth) ** (n - 2) * residual
    beta = n * (s + growth) ** (2 * n - 2) + m
    gamma = np.sqrt(n) * (s + growth) ** (n - 1) * residual
    M = scipy.integrate.cumulative_trapezoid(m, t, initial=0)
    kernel = np.exp(M[-1] - M)
    uniform = 2 * radius / (beta.max() * gamma.max() * np.trapezoid(kernel, t))

    def running_maximum(values, back, ahead):
        padded = np.pad(values, (back, ahead), constant_values=-np.inf)
        return np.lib.stride_tricks.sliding_window_view(padded, back + ahead + 1).max(axis=1)

    def local(step):
        k = int(np.ceil(step / (t[1] - t[0])))
        b = running_maximum(beta, k, k if two_sided else 0) * running_maximum(gamma, k, 0)
        return 2 * radius / np.trapezoid(kernel * b, t)

    return uniform, scipy.optimize.brentq(lambda h: local(h) - h, uniform, 1.0), np.exp(M[-1])


@pytest.mark.parametrize(("n", "w", "c", "time", "amplification", "uniform", "steps", "local"), CERTIFIED)
def test_step_sizes_agree_with_a_table_and_an_independent_computation(
    n, w, c, time, amplification, uniform, steps, local
):
    guarantee = deep_linear_guarantee(*case(n, w, c, 1.0), 1e-2)
    growth = guarantee.radius / np.sqrt(n)
    coarse = np.linspace(0, time, round(time / 0.01) + 1)
    table = step_sizes_by_trapezoid(n, w, c, coarse, growth=growth, radius=growth, two_sided=False)
    np.testing.assert_allclose(table[2], amplification, rtol=0.009)
    np.testing.assert_allclose(table[0] / 2, uniform, rtol=2e-3)
    np.testing.assert_allclose(2 * time / table[0], steps, rtol=1e-4, atol=1)
    np.testing.assert_allclose(table[1], local, rtol=8e-3)
    # The step sizes are larger by √n, and without the grid T is shorter and with it e^M smaller, by 0.4 % at most.
    assert time - 0.01 < guarantee.time <= time
    np.testing.assert_allclose(guarantee.uniform_step_size, np.sqrt(n) * table[0], rtol=4e-3)
    fine = np.linspace(0, guarantee.time, 20001)
    ours = step_sizes_by_trapezoid(n, w, c, fine, growth=growth, radius=guarantee.radius)
    np.testing.assert_allclose(guarantee.uniform_step_size, ours[0], rtol=1e-6)
    np.testing.assert_allclose(guarantee.amplification, ours[2], rtol=1e-7)
    # Ours lets the norm and the distance peak apart from each other within a window, and rounds down to T/K.
    assert 0.98 * ours[1] < guarantee.step_size <= ours[1] * (1 + 1e-3)
    np.testing.assert_allclose(guarantee.step_size * guarantee.iterations, guarantee.time, rtol=1e-12)
    assert guarantee.step_size > 1.3 * table[1]


@pytest.mark.parametrize(("n", "w", "c"), [row[:3] for row in CERTIFIED])
def test_descent_keeps_what_is_guaranteed_and_has_the_rate(n, w, c):
    guarantee = deep_linear_guarantee(*case(n, w, c, 1.0, seed=n), 1e-2)
    measured = guarantee.measure()
    assert measured.kept
    assert 1e-3 < measured.cost < 1e-2
    np.testing.assert_allclose(measured.cost, measured.trajectory.costs[-1] - guarantee.minimal_cost, rtol=1e-9)
    assert measured.trajectory.stats["steps"] == guarantee.iterations
    # The rate is the flow's; descent's own is off by the imbalance it has gathered, of order η.
    np.testing.assert_allclose(measured.rate, measured.predicted_rate, atol=0.3 * guarantee.step_size)
    flow = fb.integrate(
        guarantee.problem,
        fb.GradientFlow(),
        guarantee.params,
        measured.trajectory.times[-1],
        method="dopri8",
        rtol=1e-8,
        times=measured.trajectory.times,
    )
    distances = fb.fidelity.distance(measured.trajectory, flow)[1]
    assert distances.max() <= guarantee.radius


@pytest.mark.parametrize(("n", "lam"), [(2, 1.0), (3, 2.0), (4, 1.5), (6, 1.2)])
def test_the_rate_is_a_power_of_the_target(n, lam):
    guarantee = deep_linear_guarantee(*case(n, 0.2 * lam, 0.5, lam), 0.02 * lam**2)
    measured = guarantee.measure()
    assert measured.predicted_rate == pytest.approx(lam ** (2 - 2 / n), rel=1e-12)
    np.testing.assert_allclose(measured.rate / measured.predicted_rate, 1.0, atol=0.3 * guarantee.step_size * lam**2)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 5),
    st.floats(-3, 0.3),
    st.floats(-0.95, 1.0),
    st.floats(-1, 1),
    st.floats(-4, -0.5),
    st.integers(0, 2**31 - 1),
)
def test_guarantees_are_kept_from_random_starts(n, log_w, c, log_lam, log_share, seed):
    """Gradient descent in numpy, from anywhere, with or without the last bits of balance."""
    lam = 10.0**log_lam
    w = lam * 10.0**log_w
    inputs, targets, Ws = case(n, w, c, lam, seed % 100)
    start = 0.5 * (w**2 + lam**2 - 2 * w * lam * c)
    try:
        guarantee = deep_linear_guarantee(inputs, targets, Ws, start * 10.0**log_share)
    except (ParameterError, StepSizeError):
        return
    assert guarantee.uniform_step_size <= guarantee.step_size * (1 + 1e-9) + guarantee.time / guarantee.iterations**2
    if guarantee.iterations > 20000:
        return
    # On whitened data the descent is that of ½|W − L|², which needs no data.
    layers = [np.array(W) for W in Ws]
    for _ in range(guarantee.iterations):
        before = [np.eye(3)]
        for W in layers:
            before.append(W @ before[-1])
        slope, after = before[-1] - guarantee.target, np.eye(1)
        gradients = []
        for k in range(n - 1, -1, -1):
            gradients.append(after.T @ slope @ before[k].T)
            after = after @ layers[k]
        layers = [W - guarantee.step_size * g for W, g in zip(layers, gradients[::-1], strict=True)]
    row = np.eye(3)
    for W in layers:
        row = W @ row
    assert 0.5 * np.sum((row - guarantee.target) ** 2) <= guarantee.accuracy


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.floats(0.05, 2), st.floats(-0.9, 0.9), st.floats(0.001, 2), st.integers(0, 2**31 - 1))
def test_the_balls_bounds_hold_with_each_layer_grown_by_a_share(n, w, c, radius, seed):
    """m, β and γ, with s + ε/√n for each layer's norm, against the dense Hessian in the whole ball."""
    inputs, targets, Ws = case(n, w, c, 1.0, seed % 100, hidden=2)
    rng = np.random.default_rng(seed)
    tube = _Tube(n, radius / np.sqrt(n))
    s, r = np.array([w ** (1 / n)]), np.array([np.sqrt(w**2 + 1 - 2 * w * c)])
    flat, unravel = ravel_pytree([jnp.asarray(W) for W in Ws])
    problem = fb.Problem(lambda p, x: _product(p) @ x, inputs, targets)
    for kind in range(4):
        step = rng.normal(size=flat.size)
        if kind:  # along the layers themselves, which makes each grow, in equal or random shares
            parts = [rng.choice([1.0, rng.uniform()]) * W / np.linalg.norm(W) for W in Ws]
            step = np.asarray(ravel_pytree(parts)[0]) + 0.1 * (kind - 1) * step / np.linalg.norm(step)
        point = flat + radius * step / np.linalg.norm(step)
        values = np.linalg.eigvalsh(_hessian(problem, unravel(point)))
        assert -values[0] <= tube.descent(s, r) * (1 + 1e-9)
        assert np.abs(values).max() <= tube.curvature(s, r) * (1 + 1e-9)
        gradient = ravel_pytree(_gradient(problem, unravel(point)))[0]
        assert np.linalg.norm(gradient) <= tube.gradient(s, r) * (1 + 1e-9)


def _product(matrices):
    row = matrices[0]
    for matrix in matrices[1:]:
        row = matrix @ row
    return row


@jax.jit
def _dense(inputs, targets, matrices):
    flat, unravel = ravel_pytree(matrices)
    return jax.hessian(lambda v: 0.5 * jnp.mean((inputs @ _product(unravel(v))[0] - targets) ** 2))(flat)


def _hessian(problem, matrices):
    return np.asarray(_dense(problem.inputs, problem.targets[:, 0], matrices))


def _gradient(problem, matrices):
    inputs, targets = np.asarray(problem.inputs), np.asarray(problem.targets[:, 0])
    layers = [np.asarray(W) for W in matrices]
    slope = ((inputs @ _product(layers)[0] - targets) @ inputs / len(inputs))[None]
    return [
        jnp.asarray(_chain(layers[k + 1 :], 1).T @ slope @ _chain(layers[:k], inputs.shape[1]).T)
        for k in range(len(layers))
    ]


def _chain(layers, size):
    if not layers:
        return np.eye(size)
    return _product(layers)


def test_an_aligned_start_is_as_fast_as_its_radial_mode():
    inputs, targets, Ws = case(3, 0.1, 1.0, 1.0)
    guarantee = deep_linear_guarantee(inputs, targets, Ws, 1e-2)
    assert guarantee.rate == pytest.approx(3.0)
    assert guarantee.start_cosine == 1.0
    # w′ = 3 w^{4/3} (1 − w) from 0.1 to 1 − ½√0.02.
    time = scipy.integrate.quad(lambda v: 1 / (3 * v ** (4 / 3) * (1 - v)), 0.1, 1 - 0.5 * np.sqrt(0.02), epsabs=1e-12)[
        0
    ]
    np.testing.assert_allclose(guarantee.time, time, rtol=1e-9)
    assert guarantee.measure(time_constants=4.0).kept


def test_a_start_that_is_nearly_balanced_costs_a_little_step_size():
    inputs, targets, Ws = case(3, 0.1, 0.3, 1.0)
    exact = deep_linear_guarantee(inputs, targets, Ws, 1e-2)
    rng = np.random.default_rng(3)
    moved = [W + 1e-8 * rng.normal(size=W.shape) for W in Ws]
    near = deep_linear_guarantee(inputs, targets, moved, 1e-2)
    by_name = {a.quantity: a.value for a in near.assumptions}
    assert 1e-9 < by_name["distance from a balanced start"] < 1e-7
    assert near.uniform_step_size < exact.uniform_step_size
    np.testing.assert_allclose(near.uniform_step_size, exact.uniform_step_size, rtol=1e-4)
    drawn = fb.networks.deep_linear((3, 5, 2, 1), key=jax.random.key(4), scale=0.5, balanced=True)[1]
    by_name = {a.quantity: a.value for a in deep_linear_guarantee(inputs, targets, drawn, 1e-2).assumptions}
    assert by_name["distance from a balanced start"] < 1e-14


def test_data_only_matter_through_the_target():
    inputs, targets, Ws = case(2, 0.1, 0.3, 1.0)
    guarantee = deep_linear_guarantee(inputs, targets[:, None], Ws, 1e-2)
    expected = np.linalg.lstsq(inputs, targets, rcond=None)
    np.testing.assert_allclose(guarantee.target, expected[0], atol=1e-12)
    np.testing.assert_allclose(guarantee.minimal_cost, expected[1][0] / (2 * len(inputs)), rtol=1e-10)
    assert guarantee.minimal_cost > 0.01
    np.testing.assert_allclose(
        guarantee.start_cost + guarantee.minimal_cost, guarantee.problem.cost(guarantee.params), rtol=1e-12
    )
    assert guarantee.start_norm == pytest.approx(0.1)
    assert guarantee.start_cosine == pytest.approx(0.3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 20), st.floats(0, 5), st.integers(0, 2**31 - 1))
def test_whitened_inputs_are_white_and_the_transform_makes_them(d, more, spread, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(d + more + 1, d)) * 10.0 ** rng.uniform(-spread / 2, spread / 2, d)
    white, transform = whiten(inputs)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(d), atol=1e-9)
    np.testing.assert_allclose(inputs @ transform, white, atol=1e-6)


def test_what_the_guarantee_is_not_for_is_refused():
    inputs, targets, Ws = case(3, 0.1, 0.3, 1.0)
    along = np.asarray(deep_linear_guarantee(inputs, targets, Ws, 1e-2).target)

    def refused(kind, match, inputs=inputs, targets=targets, Ws=Ws, accuracy=1e-2):
        with pytest.raises(kind, match=match):
            deep_linear_guarantee(inputs, targets, Ws, accuracy)

    first = Ws[0]
    refused(ParameterError, "not balanced", Ws=[2 * first, *Ws[1:]])
    refused(ParameterError, "not balanced", Ws=[first + 1e-5 * np.ones_like(first), *Ws[1:]])
    refused(ParameterError, "end-to-end row is 0", Ws=[0 * W for W in Ws])
    after = Ws[1].T @ Ws[2].T  # along u₂, on the side that makes the end-to-end row opposite to L
    opposite = [-np.linalg.norm(first) * np.outer(after / np.linalg.norm(after), along), *Ws[1:]]
    refused(ParameterError, "opposite", Ws=opposite)
    refused(ParameterError, "whitened", inputs=inputs * 1.001)
    refused(ParameterError, "whitened", inputs=inputs.astype(np.float32))
    refused(ParameterError, "explains any part", targets=np.zeros(20))
    refused(ParameterError, "explains any part", targets=targets - inputs @ along)
    refused(ParameterError, "accuracy", accuracy=5.0)
    refused(ParameterError, "accuracy", accuracy=0.0)
    refused(ParameterError, "accuracy", accuracy=1e-30)
    refused(ParameterError, "accuracy", accuracy=float("nan"))
    refused(ShapeError, "two or more", Ws=[np.ones((1, 3))])
    refused(ShapeError, "two or more", Ws=Ws[:2])
    refused(ShapeError, "in which they act", Ws=[np.ones((2, 3)), np.ones((1, 4))])
    refused(ShapeError, "first width", inputs=whiten(np.random.default_rng(0).normal(size=(20, 2)))[0])
    refused(ShapeError, "one target", targets=np.ones((20, 2)))
    refused(NonFiniteDataError, "targets", targets=np.full(20, np.nan))
    refused(NonFiniteDataError, "W_2", Ws=[Ws[0], Ws[1] * np.inf, Ws[2]])
    # An imbalance that the flow may stretch beyond the tube.
    inputs, targets, Ws = case(4, 1e-7, -0.9, 1.0)
    rng = np.random.default_rng(1)
    uneven = [W + 1e-8 * W.max() * rng.normal(size=W.shape) for W in Ws]
    refused(StepSizeError, "balance the start", inputs, targets, uneven, 1e-4)
    times = np.arange(5.0)
    with pytest.raises(ParameterError, match="rank 2"):
        whiten(np.stack([times**0, times, 2 - times], axis=1))
    with pytest.raises(EmptyDataError):
        whiten(np.ones((0, 3)))
