"""The pictures of balance: the curves are those of the theory, and what is drawn as measured is what was computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import fibration as fb
from chains import unitary
from fibration import balance as B
from fibration.balance._density_plot import _Law, density_plot
from fibration.balance._plots import fibre_plot, moment_plot
from fibration.balance._value_plots import fast_slow_plot, singular_value_path, singular_value_plot
from fibration.errors import EmptyDataError, ParameterError, ShapeError, TimeMismatchError, UnknownNameError

KINDS = ("induced", "squared_moment", "newton")


def scalar(first, second):
    return [jnp.array([[first]]), jnp.array([[second]])]


def named(plot, start):
    return next(series for series in plot.series if series.name.startswith(start))


def pieces(series):
    """The curves that were joined with gaps."""
    gaps = np.flatnonzero(np.isnan(series.x))
    split = zip(np.split(series.x, gaps), np.split(series.y, gaps), strict=True)
    return [(x[~np.isnan(x)], y[~np.isnan(x)]) for x, y in split]


def drawn(plot):
    """Both drawers show every series, in order, with the same numbers."""
    figure, traces = fb.plots.to_matplotlib(plot), fb.plots.to_plotly(plot).data
    assert len(traces) == len(plot.series)
    for series, line, trace in zip(plot.series, figure.axes[0].lines, traces, strict=False):
        y = np.array([np.nan if value is None else value for value in trace.y])
        np.testing.assert_array_equal(line.get_ydata(), y)
        shown = np.isfinite(series.y) & ((series.y > 0) | (not plot.y_log))
        np.testing.assert_array_equal(y[shown], series.y[shown])
    return figure


# Fibres of chains of two numbers


def test_fibres_and_conserved_hyperbolas_fill_the_picture():
    plot = fibre_plot([-1.0, 0.5, 0.0, 2.0], conserved=[0.7, -1.2, 0.0], extent=3.0)
    for c in (-1.0, 0.5, 0.0, 2.0):
        name = f"w₂w₁ = {c:g}".replace("-", "−")
        first, second = pieces(next(series for series in plot.series if series.name == name))
        for x, y in (first, second):
            np.testing.assert_allclose(x * y, c, atol=1e-12)
            # Each branch begins and ends at the frame.
            np.testing.assert_allclose(np.maximum(np.abs(x), np.abs(y))[[0, -1]], 3.0)
        if c:
            np.testing.assert_array_equal(first[0], -second[0])
    branches = pieces(named(plot, "w₁² − w₂²"))
    for (x, y), G in zip(branches, [0.7, 0.7, -1.2, -1.2, 0.0, 0.0], strict=True):
        np.testing.assert_allclose(x**2 - y**2, G, atol=1e-12)
        np.testing.assert_allclose(np.maximum(np.abs(x), np.abs(y))[[0, -1]], 3.0)
    for x, y in pieces(named(plot, "balanced")):
        np.testing.assert_array_equal(np.abs(x), np.abs(y))
    assert plot.x_range == plot.y_range == (-3.0, 3.0)
    assert plot.equal
    assert drawn(plot).axes[0].get_aspect() == 1
    assert fb.plots.to_plotly(plot).layout.yaxis.scaleanchor == "x"


def test_flows_keep_to_fibres_and_learning_to_conserved_hyperbolas():
    flows = [B.flow(scalar(2.0, 0.5), 6.0, rtol=1e-10), B.flow(scalar(-0.5, 1.0), 6.0, rtol=1e-10)]
    problem = B.factored(B.regression(jnp.ones((1, 1)), 2 * jnp.ones((1, 1))))
    learned = fb.integrate(problem, fb.GradientFlow(), scalar(1.3, -0.3), 20.0, rtol=1e-9, times=np.linspace(0, 20, 50))
    plot = fibre_plot([1.0, -0.5, 2.0], [*flows, learned])
    for (x, y), c in zip(pieces(named(plot, "induced flow")), (1.0, -0.5), strict=True):
        np.testing.assert_allclose(x * y, c, rtol=1e-12)
        m, t = x[0] ** 2 - y[0] ** 2, flows[0].times
        # Spec 004, section 3.1: the solution for two numbers.
        decayed = m * np.exp(-2 * t)
        np.testing.assert_allclose(x**2, (decayed + np.sqrt(decayed**2 + 4 * c**2)) / 2, rtol=1e-7)
    assert named(plot, "induced flow").wide
    ((x, y),) = pieces(named(plot, "learning"))
    np.testing.assert_allclose(x**2 - y**2, 1.3**2 - 0.3**2, rtol=1e-7)
    np.testing.assert_allclose(x[-1] * y[-1], 2.0, rtol=1e-7)
    starts = named(plot, "starts")
    np.testing.assert_allclose(starts.x, [2.0, -0.5, 1.3])
    np.testing.assert_allclose(starts.y, [0.5, 1.0, -0.3])
    assert all(np.abs(series.x[~np.isnan(series.x)]).max() <= plot.x_range[1] for series in plot.series)
    assert [s.name for s in fibre_plot([1.0], {"to balance": flows[0]}).series][1] == "to balance"
    drawn(plot)


def test_what_does_not_fit_into_the_plane_is_refused():
    wide = dataclasses.replace(limit()[0], params=[np.ones((11, 2, 1)), np.ones((11, 1, 2))])
    with pytest.raises(ShapeError, match="fit into a plane"):
        fibre_plot([1.0], [wide])
    with pytest.raises(ParameterError, match="extent"):
        fibre_plot([4.0], extent=1.5)
    with pytest.raises(ParameterError, match="finite"):
        fibre_plot([np.nan])


# The moment map along the flows


@functools.cache
def three_flows():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        X = (unitary(rng, 2) * [1.0, 0.2]) @ unitary(rng, 2)
        Ws = B.act([np.eye(2) + 0.3 * rng.normal(size=(2, 2)) for _ in range(2)], B.factor(X, (2, 2, 2, 2)))
        return [B.flow(Ws, 8.0, kind, rtol=1e-11, atol=1e-13) for kind in KINDS]


@pytest.mark.slow
def test_the_moment_map_decays_as_the_theory_lines_say():
    plot = moment_plot(three_flows())
    exact, slowest = plot.series[:2]
    rate = 8 * 0.2 ** (2 / 3) * np.sin(np.pi / 6) ** 2
    assert slowest.name == f"theory: slowest rate, exp(−{rate:.3g}t)"
    t = three_flows()[0].times
    np.testing.assert_allclose(exact.y, np.exp(-2 * t))
    for name in ("induced flow", "Newton flow"):
        np.testing.assert_allclose(named(plot, name).y, exact.y, rtol=1e-4)
    other = named(plot, "squared-moment flow")
    late = slice(len(t) * 7 // 8, -1)
    np.testing.assert_allclose(-np.diff(np.log(slowest.y)) / np.diff(t), rate, rtol=1e-9)
    np.testing.assert_allclose(-np.gradient(np.log(other.y), t)[late], rate, rtol=0.02)
    np.testing.assert_allclose(other.y[0], 1)
    # The line goes through a measured point.
    assert np.min(np.abs(slowest.y / other.y - 1)) < 1e-12
    drawn(plot)


def test_an_orbit_that_is_not_closed_has_no_rate_and_chains_from_elsewhere_no_theory():
    Ws = [np.eye(3)[:, :2], np.diag([1.0, 2.0, 3.0]), np.eye(3)[:2]]
    with pytest.warns(fb.errors.ConditioningWarning, match="1/t"):
        run = B.flow(Ws, 2.0, "squared_moment", times=[0.0, 1.0, 2.0])
    assert [series.name for series in moment_plot([run]).series] == ["squared-moment flow"]
    learning, runs = limit()
    (series,) = moment_plot({"fast": runs[0.04]}).series
    np.testing.assert_allclose(series.y[:3], np.exp(-2 * series.x[:3] / 0.04), rtol=1e-4)
    with pytest.raises(EmptyDataError, match="trajectories"):
        moment_plot([])
    with pytest.raises(ShapeError, match="one matrix"):
        moment_plot([learning])
    with pytest.raises(ShapeError, match="each of the times"):
        moment_plot([dataclasses.replace(run, times=run.times[:1], observed={})])


# The fast–slow limit


@functools.cache
def limit():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        Ws = [jnp.asarray(np.eye(2) + 0.2 * rng.normal(size=(2, 2))) for _ in range(2)]
        Y = jnp.asarray(rng.normal(size=(2, 2)))
        times = np.linspace(0, 1, 11)

        def gradient(X):
            return X - Y

        learning = fb.solvers.solve(B.LearningFlow(gradient, 2), B.end_to_end(Ws), 1.0, times=times, rtol=1e-10)
        runs = {e: B.fast_slow(Ws, gradient, e, 1.0, times=times, rtol=1e-9) for e in (0.01, 0.04, 0.02)}
    return learning, runs


def test_the_distance_from_the_learning_flow_is_of_first_order():
    learning, runs = limit()
    over_time, over_epsilon = fast_slow_plot(runs, learning)
    assert [series.name for series in over_time.series] == ["ε = 0.01", "ε = 0.02", "ε = 0.04"]
    np.testing.assert_array_equal(over_time.series[0].x, learning.times[1:])
    for series, epsilon in zip(over_time.series, (0.01, 0.02, 0.04), strict=True):
        products = np.einsum("tij,tjk->tik", runs[epsilon].params[1], runs[epsilon].params[0])
        expected = np.linalg.norm(products - learning.params, axis=(1, 2))[1:]
        np.testing.assert_allclose(series.y, expected, atol=1e-12)
    line, measured = over_epsilon.series
    np.testing.assert_array_equal(measured.x, [0.01, 0.02, 0.04])
    np.testing.assert_array_equal(measured.y, [series.y[-1] for series in over_time.series])
    np.testing.assert_allclose(np.diff(np.log(line.y)) / np.diff(np.log(line.x)), 1, rtol=1e-12)
    orders = np.diff(np.log(measured.y)) / np.diff(np.log(measured.x))
    # The error is aε + bε² + …: the order tends to one.
    assert abs(orders[0] - 1) < abs(orders[1] - 1) < 0.04
    drawn(over_time)
    drawn(over_epsilon)


def test_runs_must_be_of_one_start_and_of_the_same_times():
    learning, runs = limit()
    short = dataclasses.replace(learning, times=learning.times[:-1], params=learning.params[:-1])
    with pytest.raises(TimeMismatchError):
        fast_slow_plot(runs, short)
    with pytest.raises(ParameterError, match="one product to start from"):
        fast_slow_plot(runs, dataclasses.replace(learning, params=learning.params + 0.1))
    with pytest.raises(ParameterError, match="positive"):
        fast_slow_plot({0.0: runs[0.01]}, learning)
    with pytest.raises(EmptyDataError):
        fast_slow_plot({}, learning)


# Singular values along learning


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_path_is_what_a_balanced_chain_does(depth, decay):
    rng, d = np.random.default_rng(depth), 3
    U, V = unitary(rng, d), unitary(rng, d)
    targets, start, times = np.array([2.0, 1.0, 0.2]), np.array([0.3, 0.2, 0.1]), np.linspace(0, 3, 13)
    path = singular_value_path(start, targets, times, depth, decay)
    Y, X = (U * targets) @ V.T, (U * start) @ V.T
    if depth == 1:
        run = fb.solvers.solve(lambda _, W: Y - (1 + decay) * W, jnp.asarray(X), 3.0, times=times, rtol=1e-10)
        products = run.params
    else:
        problem = B.factored(B.regression(np.sqrt(d) * np.eye(d), np.sqrt(d) * Y.T))
        flow = fb.flows.WeightDecay(fb.GradientFlow(), decay)
        Ws = [jnp.asarray(W) for W in B.factor(X, (d,) * (depth + 1))]
        run = fb.integrate(problem, flow, Ws, 3.0, times=times, rtol=1e-10, atol=1e-12)
        products = functools.reduce(lambda lower, W: W @ lower, run.params)
    measured = np.einsum("ij,tik,kj->tj", U, products, V)
    np.testing.assert_allclose(measured, path, atol=1e-7)


def test_the_path_in_closed_form_and_by_quadrature():
    t = np.array([0.0, 0.5, 4.0, 400.0])
    path = singular_value_path([0.5, 0.5, 0.5, 0.0, 2.0], [1.0, 0.0, 3.0, 1.0, 0.4], t, 2, 0.4)
    for column, (first, k) in zip(path.T, ((0.5, 0.6), (0.5, -0.4), (0.5, 2.6), (0.0, 0.6), (2.0, 0.0)), strict=True):
        run = scipy.integrate.solve_ivp(
            lambda _, s, k=k: 2 * s * (k - s), (0, 400), [first], "Radau", t, rtol=1e-10, atol=1e-13
        )
        np.testing.assert_allclose(column, run.y[0], rtol=1e-6, atol=1e-9)
    # For N = 4, t is an integral of elementary functions of σ.
    (sigma,) = singular_value_path([0.1], [2.0], [1.3], 4)[0]
    time, _ = scipy.integrate.quad(lambda s: 1 / (4 * s**1.5 * (2.0 - s)), 0.1, sigma)
    assert time == pytest.approx(1.3, rel=1e-8)
    ends = singular_value_path([1.0, 1.0, 0.03, 0.0], [3.0, 0.5, 3.0, 3.0], [1.0, 60.0], 3, 1.0)[-1]
    np.testing.assert_allclose(ends, [B.shrinkage([3.0], 1.0, 3)[0], 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1.0, 1.0], [1.0], [0.0], 2), ShapeError),
        (([1.0], [1.0], [], 2), ShapeError),
        (([-1.0], [1.0], [0.0], 2), ParameterError),
        (([1.0], [1.0], [1.0, 0.5], 2), ParameterError),
        (([1.0], [1.0], [0.0], 2, -1.0), ParameterError),
        (([1.0], [1.0], [0.0], 0), ParameterError),
    ],
)
def test_the_path_refuses_what_makes_no_sense(arguments, error):
    with pytest.raises(error):
        singular_value_path(*arguments)


@pytest.mark.slow
def test_the_learning_plot_has_theory_and_measurement_on_one_axis():
    rng, times = np.random.default_rng(4), np.linspace(0, 2, 9)
    Y = (unitary(rng, 3) * [2.0, 1.0, 0.1]) @ unitary(rng, 3)
    Ws = [jnp.asarray(W) for W in B.factor(0.2 * unitary(rng, 3), (3, 4, 3))]
    problem = B.factored(B.regression(np.eye(3), Y.T))
    chain_run = fb.integrate(problem, fb.GradientFlow(), Ws, 2.0, times=times, rtol=1e-9, atol=1e-11)
    gradient = B.regression(np.eye(3), Y.T).gradient
    theory = fb.solvers.solve(B.LearningFlow(gradient, 2), B.end_to_end(Ws), 2.0, times=times, rtol=1e-9)
    plot = singular_value_plot(
        {"chain": chain_run, "X": theory}, theory=theory, levels={"target": [0.1, 1.0, 2.0]}, y_log=True
    )
    predicted, measured, other = plot.series
    np.testing.assert_allclose(measured.y, predicted.y, atol=1e-6)
    np.testing.assert_array_equal(other.y, predicted.y)
    assert predicted.wide
    expected = np.linalg.svd(chain_run.params[1] @ chain_run.params[0], compute_uv=False)
    for (x, y), values in zip(pieces(measured), expected.T, strict=True):
        np.testing.assert_array_equal(x, times)
        np.testing.assert_allclose(y, values, rtol=1e-9)
    assert [(line.name, line.value) for line in plot.levels] == [("target", 2.0), ("", 1.0), ("", 0.1)]
    drawn(plot)
    assert singular_value_plot([chain_run], theory=(times, expected)).series[0].name == "theory"
    with pytest.raises(EmptyDataError):
        singular_value_plot([])
    with pytest.raises(ShapeError, match="times first"):
        singular_value_plot([chain_run], theory=(times, expected.T))


# Sampled densities


def energy(depth, a=1.5):
    def cost(X):
        return B.minimum_on_fibre(X, depth) - a * jnp.linalg.slogdet(X)[1]

    return cost


@pytest.mark.parametrize(("depth", "kappa", "beta"), [(1, 1.0, 1.0), (2, 1.0, 1.0), (2, 0.0, 2.0), (4, 1.0, 0.7)])
def test_the_predicted_densities_are_marginals_of_the_law_of_balanced_chains(depth, kappa, beta):
    a = 1.5
    law = _Law(energy(depth, a), depth, beta, kappa, np.array([[1.0, 0.5]]))

    def joint(second, first):  # in λ, spec 004, sections 6.1 and 6.2; the orbit's volume is ∏ √a_12
        s, t = first**depth, second**depth
        a12 = (s**2 - t**2) / (first**2 - second**2)
        measure = (s**2 - t**2) * (s * t) ** (a * beta) / a12 * a12 ** (kappa / 2)
        return measure * np.exp(-beta * depth / 2 * (first**2 + second**2))  # a_11 a_22 cancels dσ/dλ

    def over(function):
        return scipy.integrate.dblquad(
            lambda second, first: joint(second, first) * function(first, second), 0, 12, 0, lambda first: first
        )[0]

    total = over(lambda *_: 1.0)
    scale = (np.arange(800) + 0.5) / 100  # in λ: midpoints, since densities of σ are steep near zero
    for predicted, power in ((law.of_largest, lambda x, _: x), (law.of_smallest, lambda _, y: y)):
        density = predicted(scale**depth) * depth * scale ** (depth - 1)
        assert np.sum(density) * 0.01 == pytest.approx(1, abs=2e-4)
        mean = np.sum(density * scale) * 0.01
        assert mean == pytest.approx(over(power) / total, rel=1e-3)
    r = (np.arange(800) + 0.5) / 800
    density = law.of_ratio(r**depth) * depth * r ** (depth - 1)
    assert np.mean(density) == pytest.approx(1, abs=1e-4)
    assert np.mean(density * r) == pytest.approx(over(lambda x, y: y / x) / total, rel=1e-3)


@functools.cache
def sampled():
    with jax.enable_x64(True):
        options = {"step_size": 0.1, "steps": 1000, "save_every": 10, "chains": 200, "metropolis": True}
        return B.langevin(jnp.eye(2), energy(2), 2, key=jax.random.key(1), **options)


def apart(plot, name):
    """The largest distance between the distribution functions that are sampled and predicted."""
    curve, circles = named(plot, f"{name}, predicted"), named(plot, f"{name}, sampled")
    errors = circles.y - np.interp(circles.x, curve.x, curve.y)
    return np.max(np.abs(np.cumsum(errors))) * (circles.x[1] - circles.x[0])


@pytest.mark.slow
def test_samples_follow_the_predicted_densities():
    sample = sampled()
    plot = density_plot(sample, energy(2), 2, bins=24)
    kept = sample.singular_values[:, 50:].reshape(-1, 2)
    assert plot.caption.startswith(f"{len(kept):,} samples")
    for place, name in enumerate(("σ₁", "σ₂")):
        curve, circles = named(plot, f"{name}, predicted"), named(plot, f"{name}, sampled")
        width = circles.x[1] - circles.x[0]
        inside = np.mean(kept[:, place] <= circles.x[-1] + width / 2)
        assert np.sum(circles.y) * width == pytest.approx(inside, rel=1e-12)
        assert np.max(np.abs(circles.y - np.interp(circles.x, curve.x, curve.y))) < 0.1 * curve.y.max()
        assert apart(plot, name) < 0.02
    drawn(plot)
    ratio = density_plot(sample, energy(2), 2, of="ratio", bins=20)
    assert apart(ratio, "σ₂/σ₁") < 0.02
    drawn(ratio)
    # The theory can be wrong: another exponent, or no entropy, does not fit.
    for wrong in ({"cost": energy(2, 1.0)}, {"cost": energy(2), "kappa": 0.0}):
        assert apart(density_plot(sample, depth=2, bins=24, **wrong), "σ₁") > 0.05


def test_densities_that_are_not_of_two_singular_values_are_refused():
    sample = sampled()
    with pytest.raises(ParameterError, match="singular values alone"):
        density_plot(sample, lambda X: energy(2)(X) + X[0, 1], 2)
    with pytest.raises(ParameterError, match="finite integral"):
        density_plot(sample, lambda X: -energy(2)(X), 2)
    with pytest.raises(ParameterError, match="finite integral"):
        density_plot(sample, lambda X: jnp.linalg.norm(X) + 9 * jnp.linalg.slogdet(X)[1], 2)
    with pytest.raises(UnknownNameError):
        density_plot(sample, energy(2), 2, of="trace")
    with pytest.raises(ParameterError, match="burn_in"):
        density_plot(sample, energy(2), 2, burn_in=1.0)
    with pytest.raises(ParameterError, match="bins"):
        density_plot(sample, energy(2), 2, bins=0)
    three = dataclasses.replace(
        sample,
        matrices=np.ones((2, 4, 3, 3)),
        singular_values=np.ones((2, 4, 3)),
        times=np.arange(4.0),
        rejected=np.zeros(2),
    )
    with pytest.raises(ShapeError, match="two"):
        density_plot(three, energy(2), 2)
