"""Rank reports: the laws of ReLU networks, stalls by name, and what full rank does not imply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from canonical_networks import random_problem, spread
from fibration.canonical import Basis, rank_report


@pytest.mark.parametrize("seed", range(5))
def test_rank_of_shallow_relu_follows_its_kinks(seed):
    """rank H = 1 + 2p + [some unit is active on the whole box], p the kinks inside (spec 001, R7)."""
    rng = np.random.default_rng(seed)
    apply, params = spread(8, activation="relu")
    u, c = rng.normal(size=8), rng.normal(size=8)
    params = {**params, "weight": jnp.asarray(u[:, None]), "bias": jnp.asarray(c)}
    inside = (-c / u > 0) & (-c / u < 1)
    whole = ~inside & (u / 2 + c > 0)
    expected = 1 + 2 * inside.sum() + whole.any()
    report = rank_report(apply, params, Basis([(0, 1)], 59))
    assert report.canonical.ranks["eps"] == expected
    dead = ~inside & ~whole
    assert {unit.index for unit in report.dead if "weight" in unit.path and unit.axis == 0} == set(np.flatnonzero(dead))
    assert ("dead units" in report.stalls) == dead.any()


@pytest.mark.parametrize(
    ("widths", "activation", "expected"),
    [((2, 6, 1), "relu", 6), ((2, 6, 5, 1), "relu", 11), ((2, 6, 1), "tanh", 0), ((1, 8, 1), "tanh", 0)],
)
def test_rescalings_are_counted(widths, activation, expected):
    apply, params = fb.networks.mlp(widths, activation, key=jax.random.key(0))
    report = rank_report(
        apply,
        params,
        Basis([(-1, 1)] * widths[0], 3),
        rule=fb.canonical.quadrature(Basis([(-1, 1)] * widths[0], 3), nodes=40),
    )
    assert report.rescalings == expected
    assert report.effective_parameters == report.parameters - expected


def test_zero_initialisation():
    apply, params = spread(8)
    zero = jax.tree.map(jnp.zeros_like, params)
    problem = random_problem(apply, params, 1, 6, 1)
    basis = Basis([(0, 1)], 11)
    report = rank_report(apply, zero, basis, problem)
    assert report.stalls == ("zero initialisation",)
    assert report.canonical.ranks["eps"] == 1
    assert "symmetric saddle" in str(report)
    centred = {**zero, "offset": jnp.mean(problem.targets, axis=0)}
    assert float(fb.canonical.stall_index(problem, centred, basis)) < 1e-14
    run = fb.integrate(problem, fb.GradientFlow(), centred, t1=10.0)
    np.testing.assert_allclose(run.costs[-1], np.var(problem.targets) / 2, rtol=1e-12)


def test_duplicate_and_mirrored_units():
    apply, params = spread(3, scale=3.0)
    copies = {
        "weight": jnp.concatenate([params["weight"], params["weight"][:1], -params["weight"][1:2]]),
        "bias": jnp.concatenate([params["bias"], params["bias"][:1], -params["bias"][1:2]]),
        "out": jnp.concatenate([params["out"], params["out"][:, :1], params["out"][:, 1:2]], axis=1),
        "offset": params["offset"],
    }
    report = rank_report(apply, copies, Basis([(0, 1)], 11))
    assert report.stalls == ("duplicate units",)
    assert {(a.path, a.index, b.index, sign) for a, b, sign in report.copies} == {
        ("['weight']", 0, 3, 1),
        ("['out']", 0, 3, 1),
    }
    # A mirrored unit with the same outgoing weight is minus the unit: ∂weight is the same, ∂out the opposite. Its copy
    # under descent would have the opposite outgoing weight.
    assert {(a.path, a.index, b.index, sign) for a, b, sign in report.alike} == {
        ("['weight']", 1, 4, 1),
        ("['out']", 1, 4, -1),
    }
    assert report.canonical.ranks == rank_report(apply, params, Basis([(0, 1)], 11)).canonical.ranks
    assert "Copies, which gradient descent keeps" in str(report)
    assert "alike now" in str(report)
    # And along the descent: the copies stay equal, the others part.
    inputs = jnp.linspace(0.05, 0.95, 7)[:, None]
    problem = fb.Problem(apply, inputs, jnp.sin(5 * inputs))
    last = fb.descend(problem, fb.GradientFlow(), copies, step_size=0.05, steps=200, save_every=200).final_params
    for name, axis in (("weight", 0), ("bias", 0), ("out", 1)):
        unit = np.moveaxis(np.asarray(last[name]), axis, 0)
        np.testing.assert_allclose(unit[0], unit[3], atol=1e-12)
    assert np.abs(np.asarray(last["weight"][1] + last["weight"][4])).max() > 1e-3


def test_dead_relu():
    apply, params = spread(6, activation="relu")
    dead = {**params, "bias": jnp.full(6, -100.0)}
    report = rank_report(apply, dead, Basis([(0, 1)], 7))
    assert "dead units" in report.stalls or report.canonical.ranks["eps"] == 1
    assert report.canonical.ranks["eps"] == 1


def test_deep_linear():
    apply, params = fb.networks.mlp((2, 50, 50, 1), "linear", key=jax.random.key(0))
    report = rank_report(apply, params, Basis([(0, 1)] * 2, 4))
    assert report.stalls == ("linear in the inputs",)
    assert report.canonical.ranks["1e-08"] == 3  # with biases; 2 without
    assert "affine in its inputs" in str(report)


def test_report_is_never_a_boolean():
    apply, params = spread(16)
    problem = random_problem(apply, params, 1, 8, 1)
    report = rank_report(apply, params, Basis([(0, 1)], 15), problem)
    text = str(report)
    assert "Full rank does not by itself imply convergence" in text
    assert set(report.canonical.ranks) == {"eps", "1e-08", "1e-04"}
    sigma = report.canonical.singular_values
    assert report.canonical.stable_rank == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2)
    p = sigma**2 / np.sum(sigma**2)
    assert report.canonical.entropy_rank == pytest.approx(np.prod(p**-p))
    J = np.asarray(fb.tangent.jacobian(problem, params))
    np.testing.assert_allclose(report.data.singular_values, np.linalg.svd(J, compute_uv=False), atol=1e-12)
    assert report.data.needed == 8
    assert report.modes_at_data[0] == 8


def test_impossible_ranks_are_said():
    apply, params = spread(3)
    assert "columns for 10 parameters" in str(rank_report(apply, params, Basis([(0, 1)], 15)))
    apply, params = spread(6, activation="relu")
    assert "effective parameters" in str(rank_report(apply, params, Basis([(0, 1)], 15)))


def test_softmax_is_ranked_on_the_zero_sum_part():
    apply, params = spread(10, 2, 3)
    problem = random_problem(apply, params, 2, 5, 3, loss=fb.CrossEntropy(n_classes=3))
    report = rank_report(apply, params, Basis([(0, 1)] * 2, 3), problem)
    assert report.data.needed == 10
    assert report.data.ranks["1e-08"] == 10
    assert "no finite minimiser" in str(report)


def test_conflicting_labels_are_said():
    apply, params = spread(10)
    problem = fb.Problem(apply, jnp.array([[0.2], [0.2]]), jnp.array([[0.0], [1.0]]))
    assert "zero cost is impossible" in str(rank_report(apply, params, Basis([(0, 1)], 3), problem))


def test_data_rank_appears_with_the_parameters():
    """d = 5, N = 20: full in no seed with M < N, in all with M ≥ N (spec 001, 4.5)."""
    box = [(-2, 2)] * 5
    for width, full in ((2, False), (3, True)):
        for seed in range(3):
            apply, params = fb.networks.mlp((5, width, 1), "tanh", key=jax.random.key(seed))
            params = jax.tree.map(lambda leaf: leaf + 0.1, params)
            inputs = np.random.default_rng(seed).uniform(-2, 2, size=(20, 5))
            problem = fb.Problem(apply, inputs, np.zeros((20, 1)))
            basis = Basis(box, 1, index_set="l1")
            rule = fb.canonical.quadrature(basis, nodes=1000)
            report = rank_report(apply, params, basis, problem, rule=rule)
            assert (report.data.ranks["eps"] == 20) == full


def test_full_rank_does_not_imply_convergence():
    """The spiral: an invertible differential at every w, a strictly convex cost, and a limit of 1.859652 (2.5)."""
    problem = fb.canonical.spiral()
    for start in (0.02, 0.1, 0.3):
        w = jnp.array([0.0, np.arctanh(start / 0.75 - 1)])
        run = fb.integrate(problem, fb.GradientFlow(), w, t1=1e6, times=np.linspace(0, 1e6, 5))
        assert abs(np.linalg.det(fb.tangent.jacobian(problem, run.final_params))) > 0
        assert run.costs[-1] == pytest.approx(1.859652, abs=2e-3)
    far = fb.integrate(fb.canonical.arctan(), fb.GradientFlow(), jnp.zeros(()), t1=1e7)
    assert far.costs[-1] == pytest.approx(0.0921079, abs=1e-2)


def test_observer_along_a_run():
    """PL ratio ≥ 1 and the cost below its envelope, at every saved time (spec 001, 4.4)."""
    apply, params = spread(24)
    problem = random_problem(apply, params, 1, 8, 1)
    basis = Basis([(0, 1)], 7)
    watch = fb.canonical.observer(basis, coordinates=True)
    observe = {"canonical": watch}
    run = fb.integrate(problem, fb.GradientFlow(), params, t1=100.0, times=np.linspace(0, 100, 101), observe=observe)
    values = run.observed["canonical"]
    rows = dict(zip(watch.columns, values.T[:8], strict=True))
    assert np.all(rows["pl_ratio"] >= 1 - 1e-9)
    assert np.all(run.costs <= rows["envelope"] * (1 + 1e-3))
    theta = values[:, 8:]
    last = ravel_pytree(fb.canonical.coordinates(apply, run.final_params, basis))[0]
    np.testing.assert_allclose(theta[-1], last, atol=1e-10)
    index = fb.canonical.stall_index(problem, params, basis)
    np.testing.assert_allclose(rows["stall"][0], index, rtol=1e-4)
    sigma = np.linalg.svd(np.asarray(fb.canonical.disparity(apply, params, basis)), compute_uv=False)
    np.testing.assert_allclose([rows["sigma_max"][0], rows["sigma_min"][0]], sigma[[0, -1]], rtol=1e-9)


def test_lazy_certificate():
    """With a large output scale the bounds hold along the flow (spec 001, 4.4)."""
    base, params = spread(24)
    problem = random_problem(base, params, 1, 8, 1)
    sigma = np.linalg.svd(np.asarray(fb.tangent.jacobian(problem, params)), compute_uv=False)[-1]
    alpha = 60000.0

    def apply(p, x):
        return alpha * (base(p, x) - base(params, x))

    scaled = fb.Problem(apply, problem.inputs, problem.targets)
    found = fb.canonical.lazy_certificate(scaled, params)
    assert found.sigma == pytest.approx(alpha * sigma, rel=1e-9)
    assert found.number < 1
    assert not found.certified
    assert "evidence, not proof" in str(found)
    proof = fb.canonical.lazy_certificate(scaled, params, lipschitz=found.lipschitz)
    assert proof.certified
    # Time t of ½|r|² is N·t of the cost.
    t = 8 * 4 / found.sigma**2
    run = fb.integrate(scaled, fb.GradientFlow(), params, t1=t, times=[0.0, t])
    assert np.sqrt(run.costs[-1] / run.costs[0]) <= np.exp(-1)
    moved = fb.trees.norm(fb.trees.subtract(run.final_params, params))
    assert float(moved) <= found.radius


def test_the_envelope_starts_where_the_run_does():
    apply, params = spread(24)
    problem = random_problem(apply, params, 1, 8, 1)
    watch = fb.canonical.observer(Basis([(0, 1)], 7))
    rows = []
    for t0 in (0.0, 50.0):
        run = fb.integrate(problem, fb.GradientFlow(), params, t0=t0, t1=t0 + 5.0, observe={"watch": watch})
        rows.append(run.observed["watch"][:, watch.columns.index("envelope")])
    np.testing.assert_allclose(rows[1][[0, -1]], rows[0][[0, -1]], rtol=1e-9)
