"""Where adapted flows end, and what the library says: the counterexamples to "every orbit converges"."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from adapted import Scalar, flat, fold, linear, scalar, tanh_data, tanh_problem
from fibration.flows._smoothness import kinks

UNDAMPED = fb.AdaptedFlow(damping=0.0, method="svd")
FAST = {"rtol": 1e-8, "atol": 1e-11, "method": "dopri8"}


def test_fold_loses_rank_at_ln_2():
    """f = θ − θ²/2 with target 1: D = 1 − θ vanishes at t = ln 2, where a quarter of the cost is left."""
    run = fb.integrate(scalar(fold, 1.0), UNDAMPED, jnp.array(0.0), t1=3.0, **FAST)
    assert run.result.code == "rank_loss"
    assert run.result.time == pytest.approx(np.log(2), abs=1e-8)
    assert run.costs[-1] == pytest.approx(0.125, rel=1e-6)
    assert run.result.failed
    assert "sample 0" in run.result.message
    with pytest.raises(fb.errors.DifferentialRankError, match=r"t = 0\.693147.*on_rank_loss=\"damp\"") as caught:
        run.raise_if_failed()
    assert caught.value.trajectory is run


def test_fold_in_float32():
    with jax.enable_x64(False):
        problem = scalar(fold, 1.0)
        run = fb.integrate(problem, UNDAMPED, jnp.array(0.0), t1=3.0, rtol=1e-5, atol=1e-7, method="tsit5")
    assert run.result.code == "rank_loss"
    assert run.result.time == pytest.approx(np.log(2), abs=1e-4)


def test_tanh_runs_off_to_infinity_at_ln_2():
    """f = tanh θ with target 2: full rank everywhere, and the parameter is infinite at t = ln 2 with C = ½."""
    run = fb.integrate(scalar(jnp.tanh, 2.0), UNDAMPED, jnp.array(0.0), t1=3.0, **FAST)
    assert run.result.code == "blow_up"
    assert run.result.time == pytest.approx(np.log(2), abs=1e-5)
    assert run.costs[-1] == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(fb.errors.BlowUpError, match="go on to infinity"):
        run.raise_if_failed()


@pytest.mark.parametrize(("function", "rest"), [(fold, 0.125), (jnp.tanh, 0.5)])
def test_damping_carries_across(function, rest):
    """The law holds until the differential collapses, and then the flow goes on for all times, at a critical point."""
    flow = fb.AdaptedFlow(damping=0.0, method="svd", on_rank_loss="damp")
    target = 1.0 if function is fold else 2.0
    run = fb.integrate(
        scalar(function, target), flow, jnp.array(0.0), t1=3.0, rtol=1e-6, times=[0.0, 0.3, 0.6, 3.0], method="rkc2"
    )
    assert run.result.code == "completed"
    np.testing.assert_allclose(run.costs[:3], run.costs[0] * np.exp(-2 * run.times[:3]), rtol=1e-5)
    assert run.costs[-1] == pytest.approx(rest, rel=0.05)
    assert np.all(np.diff(run.costs) < 0)


def test_relative_damping_is_frozen_at_the_start():
    """With λ = ρσ_max(θ)² the fold would still end at ln 2; a λ that stays lets the flow exist (correction 4)."""
    flow = fb.AdaptedFlow(damping=fb.flows.Tikhonov(relative=1e-3), method="svd")
    run = fb.integrate(scalar(fold, 1.0), flow, jnp.array(0.0), t1=3.0, rtol=1e-6, times=[0.0, 3.0], method="tsit5")
    assert run.result.code == "completed"
    assert run.params[-1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("number", "exists"), [(0.98, True), (1.02, False)])
def test_newton_kantorovich_is_sharp(number, exists):
    """f = σ₀θ − ½Lθ² with 2L|r₀| = number·σ₀²: the flow exists for all times if and only if the number is at most 1."""
    problem = scalar(fold, number / 2)
    run = fb.integrate(problem, UNDAMPED, jnp.array(0.0), t1=12.0, **FAST)
    assert run.result.code == ("completed" if exists else "rank_loss")
    proof = fb.flows.certificate(problem, run, lipschitz=1.0, method="svd")
    assert proof.kantorovich[0] == pytest.approx(number)
    assert bool(proof.certified[0]) is exists
    if exists:
        bound = 1 - np.sqrt(1 - number)
        assert proof.movement[0] == pytest.approx(bound)
        assert abs(run.params[-1]) <= bound
        assert run.params[-1] == pytest.approx(bound, rel=1e-3)
    else:  # 1.02 e^{−t} y is missed by a fiftieth: r(t*) = ½ − ½·1.02 …
        assert run.result.time == pytest.approx(-np.log(1 - 1 / number), rel=1e-6)
        assert not np.any(proof.certified)


def test_isolated_equilibrium():
    """f = θ₁ − ½θ₁² − ½θ₂², target 1: a nondegenerate isolated equilibrium of rank 0, with C = ⅛, Hessian (½, ½)."""

    def f(w):
        return w[0] - 0.5 * w[0] ** 2 - 0.5 * w[1] ** 2

    problem = scalar(f, 1.0)
    point = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(jax.hessian(problem.cost)(point), 0.5 * np.eye(2), atol=1e-14)
    assert np.linalg.norm(UNDAMPED(problem, point)) == 0
    # Every orbit near it runs into it: the distance to it, 1 − 2f, is what the flow lowers, until rank is lost there.
    run = fb.integrate(problem, UNDAMPED, jnp.array([0.3, 0.4]), t1=5.0, **FAST)
    assert run.result.code == "rank_loss"
    np.testing.assert_allclose(run.params[-1], point, atol=1e-4)
    start = 1 - f(np.array([0.3, 0.4]))
    assert run.result.time == pytest.approx(np.log(start / 0.5), rel=1e-6)


@pytest.mark.slow
def test_rank_margin():
    """At K = QN an open set of data loses rank; with K = 4·QN the same data do not."""
    ends = []
    for width in (2, 8):
        apply, params = fb.networks.mlp((2, width, 2), "tanh", key=jax.random.key(3))
        inputs, targets, _ = tanh_data(1)
        problem = fb.Problem(apply, inputs, 2 * targets)
        run = fb.integrate(problem, UNDAMPED, params, t1=36.0, times=[0.0, 36.0], rtol=1e-6, method="tsit5")
        ends.append(run.result.code)
    assert ends[0] in ("rank_loss", "blow_up")
    assert ends[1] == "completed"


def test_conditions_are_the_flows_own_and_after_the_users():
    problem = scalar(fold, 1.0)
    stop = fb.Stop(when={"half": lambda problem, params, time: params > 0.5})
    run = fb.integrate(problem, UNDAMPED, jnp.array(0.0), t1=3.0, stop=stop, **FAST)
    assert run.result.code == "half"
    run = fb.descend(problem, fb.flows.WeightDecay(UNDAMPED, 0.1), jnp.array(0.0), step_size=0.1, steps=3)
    assert run.params[1] == pytest.approx(0.1)
    with pytest.raises(fb.errors.UnknownNameError):
        fb.Stop(when={"rank_loss": lambda problem, params, time: False})


def test_a_run_resumes_bit_for_bit(tmp_path):
    problem, params = tanh_problem()
    call = {"t1": 6.0, "times": np.linspace(0, 6, 4), "rtol": 1e-6, "method": "tsit5"}
    whole = fb.integrate(problem, UNDAMPED, params, **call)
    cut = fb.Options(max_steps=3)
    part = fb.integrate(problem, UNDAMPED, params, checkpoint=tmp_path, options=cut, **call)
    assert part.result.code == "max_steps"
    again = fb.integrate(problem, UNDAMPED, params, checkpoint=tmp_path, **call)
    assert again.stats["resumed_at"] > 0
    np.testing.assert_array_equal(flat(again.final_params), flat(whole.final_params))
    with pytest.raises(fb.errors.CheckpointMismatchError):
        fb.integrate(tanh_problem(1)[0], UNDAMPED, params, checkpoint=tmp_path, **call)


def test_a_failed_run_is_read_back_with_its_reason(tmp_path):
    call = {"t1": 3.0, "checkpoint": tmp_path, **FAST}
    first = fb.integrate(scalar(fold, 1.0), UNDAMPED, jnp.array(0.0), **call)
    again = fb.integrate(scalar(fold, 1.0), UNDAMPED, jnp.array(0.0), **call)
    assert again.result == first.result
    assert again.result.detail


def test_precision_warning_in_float32():
    with jax.enable_x64(False):
        problem = linear(np.diag([1.0, 1e-6]).astype(np.float32), np.ones(2, np.float32))
        with pytest.warns(fb.errors.PrecisionWarning, match="condition is 1"):
            UNDAMPED.prepare(problem, jnp.zeros(2))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", jax.nn.relu),
        ("leaky_relu", jax.nn.leaky_relu),
        ("abs", jnp.abs),
        ("max", lambda z: jnp.maximum(z, 0.1)),
        ("hard_tanh", jax.nn.hard_tanh),
    ],
)
def test_kinks_are_found(name, function):
    problem = fb.Problem(lambda w, x: function(w * x), jnp.ones(2), jnp.zeros(2))
    assert len(kinks(problem, jnp.array(1.0))) == 1
    with pytest.warns(fb.errors.NonsmoothModelWarning, match=r"fb\.follow"):
        fb.AdaptedFlow(damping=1.0, method="svd").prepare(problem, jnp.array(1.0))
    assert kinks(problem, jnp.array(1.0))[0] in (name, "max", "clip", "select_n", "gt")


@pytest.mark.parametrize(
    "function",
    [
        jnp.tanh,
        jax.nn.gelu,
        jax.nn.silu,
        jax.nn.softplus,
        jax.nn.elu,
        jax.nn.sigmoid,
        lambda z: jax.nn.softmax(jnp.stack([z, -z]))[0],
        lambda z: jax.nn.logsumexp(jnp.stack([z, -z])),
        lambda z: z * jax.lax.stop_gradient(jnp.maximum(z, 0)),
    ],
)
def test_smooth_networks_have_no_kinks(function):
    assert kinks(fb.Problem(lambda w, x: function(w * x), jnp.ones(2), jnp.zeros(2)), jnp.array(1.0)) == ()


def test_masks_of_the_inputs_and_kinks_in_loops():
    masked = fb.Problem(lambda w, x: jnp.where(x > 0, w, 2 * w), jnp.ones(2), jnp.zeros(2))
    assert kinks(masked, jnp.array(1.0)) == ()

    def scanned(w, x):
        return jax.lax.scan(lambda c, _: (jax.nn.relu(c * w), None), x, None, length=3)[0]

    assert kinks(fb.Problem(scanned, jnp.ones(2), jnp.zeros(2)), jnp.array(1.0)) == ("relu",)


def test_functions_and_other_flows_have_no_hooks_to_offer():
    problem, params = tanh_problem()
    run = fb.descend(problem, lambda p, w, t: p.gradient(w), params, step_size=1e-3, steps=2)
    assert run.result.code == "completed"
    assert fb.GradientFlow().prepare(problem, params) == fb.GradientFlow()
    assert isinstance(Scalar(fold), eqx.Module)
