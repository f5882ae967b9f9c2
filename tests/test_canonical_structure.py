"""Stalls in convolutions and in vectors of parameters, and what the rank report says on request."""

import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb
from canonical_networks import random_problem, spread
from fibration.canonical import Basis, rank_report


def convolution(params, x):
    """One convolution of three channels over a row of 4 inputs, ReLU, and a linear layer."""
    picture = x.reshape(1, 1, 4)
    hidden = jax.lax.conv_general_dilated(picture, params["kernel"], (1,), "VALID")[0] + params["bias"][:, None]
    return params["out"] @ jax.nn.relu(hidden).reshape(-1)


def kernels(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(3, 1, 2))),
        "bias": jnp.asarray(rng.normal(size=3)),
        "out": jnp.asarray(rng.normal(size=(1, 9))),
    }


def test_copies_and_dead_channels_of_a_convolution_are_found():
    basis = Basis([(-1, 1)] * 4, 2, index_set="l1")
    rule = fb.canonical.quadrature(basis, nodes=4096)
    plain = rank_report(convolution, kernels(), basis, rule=rule)
    assert not plain.copies
    assert not plain.dead

    copied = kernels()
    copied["kernel"] = copied["kernel"].at[2].set(copied["kernel"][0])
    copied["bias"] = copied["bias"].at[2].set(copied["bias"][0])
    copied["out"] = copied["out"].at[:, 6:].set(copied["out"][:, :3])
    report = rank_report(convolution, copied, basis, rule=rule)
    assert "duplicate units" in report.stalls
    assert {(a.index, b.index, sign) for a, b, sign in report.copies if a.axes == 3} == {(0, 2, 1)}
    assert "axis 0, slice 0 of ['kernel']" in str(report)

    dead = kernels()
    dead["bias"] = dead["bias"].at[1].set(-100.0)
    report = rank_report(convolution, dead, basis, rule=rule)
    assert [unit.index for unit in report.dead if "kernel" in unit.path] == [1]
    assert report.stalls == ("dead units",)


def test_units_of_networks_that_have_only_vectors():
    def apply(p, x):
        return p["a"] @ jax.nn.relu(p["u"] * x + p["c"])

    params = {"a": jnp.array([1.0, 2.0, 1.0, 0.5]), "u": jnp.array([3.0, -2.0, 3.0, 1.0])}
    params["c"] = jnp.array([-1.0, 1.5, -1.0, -9.0])
    report = rank_report(apply, params, Basis((0, 1), 9))
    assert {(a.path, a.index, b.index) for a, b, _ in report.copies} == {(f"['{name}']", 0, 2) for name in "auc"}
    assert {(unit.path, unit.index) for unit in report.dead} == {(f"['{name}']", 3) for name in "auc"}
    assert "entry 3 of ['a']" in str(report)


def test_the_report_looks_in_high_precision_on_request():
    apply, params = fb.networks.mlp((1, 4, 1), "tanh", key=jax.random.key(1))
    basis = Basis([(0, 1)], 12)
    report = rank_report(apply, params, basis, exact=True)
    assert report.canonical.ranks["eps"] < 13
    assert report.exact is not None
    assert not report.exact.singular
    # Where float64 still has digits the two agree.
    kept = report.canonical.singular_values > 1e-9
    np.testing.assert_allclose(report.exact.singular_values[kept], report.canonical.singular_values[kept], rtol=1e-5)
    assert "in high precision, σ_min" in str(report)
    assert "`exact=True`" in str(report)


def test_samples_on_a_line_in_the_box_are_told_to_go_by_the_data_rank():
    apply, params = spread(8, d=2)
    line = jnp.linspace(0.1, 0.9, 6)
    for slope in (0.0, 1e-9):
        inputs = jnp.stack([line, 0.5 + slope * line**2], axis=1)
        problem = fb.Problem(apply, inputs, jnp.sin(5 * line)[:, None])
        report = rank_report(apply, params, Basis([(0, 1), (0, 1)], 2), problem)
        assert "go by the data rank" in str(report)
    spread_out = random_problem(apply, params, 2, 6, 1)
    assert "go by the data rank" not in str(rank_report(apply, params, Basis([(0, 1), (0, 1)], 2), spread_out))


def test_cross_entropy_promises_no_envelope():
    apply, params = spread(6, q=3)
    inputs = jnp.linspace(0.1, 0.9, 6)[:, None]
    problem = fb.Problem(apply, inputs, jnp.arange(6) % 3, loss=fb.CrossEntropy(n_classes=3))
    watch = fb.canonical.observer(Basis([(0, 1)], 3))
    run = fb.integrate(problem, fb.GradientFlow(), params, t1=0.5, observe={"canonical": watch})
    rows = dict(zip(watch.columns, run.observed["canonical"].T, strict=False))
    assert np.isnan(rows["pl_ratio"]).all()
    assert np.isnan(rows["envelope"]).all()
    assert np.isfinite(rows["stall"]).all()
