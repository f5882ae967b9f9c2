import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from linear_maps import linear, with_singular_values


def tanh(inputs, targets, hidden=12, **options):
    """A network that is wide enough, with one output."""
    inputs = np.asarray(inputs, float)
    apply, params = fb.networks.mlp((inputs.shape[1], hidden, 1), "tanh", key=jax.random.key(0))
    return fb.Problem(apply, inputs, np.asarray(targets, float).reshape(len(inputs), 1), **options), params


@settings(max_examples=15)
@given(st.sampled_from([(7, 12), (12, 7)]), st.integers(1, 7), st.integers(0, 999), st.booleans())
def test_rank_singular_values_and_leverage_are_those_of_the_matrix(shape, rank, seed, small):
    d = with_singular_values(*shape, np.random.default_rng(seed).uniform(0.1, 2, rank), seed)
    budget = 1 if small else 2**30
    report = fb.tangent.rank(*linear(d, memory_budget=budget))
    assert (report.rank, report.needed, report.parameters) == (rank, *shape)
    assert report.from_gram == small
    assert report.full == (rank == shape[0])
    atol = 1e-6 if small else 1e-13
    np.testing.assert_allclose(report.singular_values, np.linalg.svd(d, compute_uv=False), atol=atol)
    null = np.eye(shape[0]) - d @ np.linalg.pinv(d, rcond=1e-10)
    np.testing.assert_allclose(report.leverage, np.diag(null), atol=1e-12)
    assert report.leverage.sum() == pytest.approx(shape[0] - rank, abs=1e-10)
    assert str(report).startswith(f"rank {rank} of {shape[0]} (σ_min/σ_max = ")


def test_samples_with_identical_inputs_are_named_with_what_it_means():
    inputs = np.random.default_rng(0).normal(size=(10, 2))
    inputs[9] = inputs[4]
    inputs[7] = inputs[6] = inputs[1]
    targets = np.arange(10.0)
    targets[[1, 6, 7]] = 5.0
    report = fb.tangent.rank(*tanh(inputs, targets))
    assert (report.rank, report.needed) == (7, 10)
    assert report.dependent_samples.tolist() == [1, 4, 6, 7, 9]
    np.testing.assert_allclose(report.leverage[[4, 9, 1, 6, 7]], [1 / 2, 1 / 2, 2 / 3, 2 / 3, 2 / 3], atol=1e-10)
    assert "Samples 4 and 9 have identical inputs with different targets; no parameters can fit both." in str(report)
    assert "Samples 1, 6 and 7 have identical inputs and equal targets" in str(report)
    assert "linearly dependent" not in str(report)


def test_rank_counts_one_output_at_a_time():
    # Two outputs with a common last layer for one of them only: the second output is twice the first.
    def apply(w, x):
        hidden = jnp.tanh(w["in"] @ x)
        return jnp.stack([w["out"] @ hidden, 2 * w["out"] @ hidden])

    inputs = np.random.default_rng(0).normal(size=(3, 2))
    params = {"in": jnp.asarray(np.random.default_rng(1).normal(size=(5, 2))), "out": jnp.ones(5)}
    report = fb.tangent.rank(fb.Problem(apply, inputs, np.zeros((3, 2))), params)
    assert (report.rank, report.needed) == (3, 6)
    np.testing.assert_allclose(report.leverage, 1, atol=1e-12)
    assert "The rows of samples 0, 1 and 2 are linearly dependent." in str(report)


def test_too_few_parameters_are_said_and_no_sample_is_listed():
    d = np.random.default_rng(0).normal(size=(30, 4))
    report = fb.tangent.rank(*linear(d))
    assert report.rank == 4
    assert len(report.dependent_samples) == 30
    assert "There are 4 parameters for 30 outputs, so that the rank cannot exceed 4" in str(report)
    assert "linearly dependent" not in str(report)
    assert len(str(report)) < 250


def test_dead_units_and_samples_that_move_nothing():
    inputs = np.abs(np.random.default_rng(0).normal(size=(30, 2)))
    dead = fb.Problem(lambda w, x: jax.nn.relu(w["a"] @ x) @ w["b"], inputs, np.zeros((30, 1)))
    weights = {"a": jnp.asarray([[1.0, 0.2], [-1.0, -1.0], [0.3, 1.0]]), "b": jnp.ones(3)}
    report = fb.tangent.rank(dead, weights)
    assert "2 of the 6 parameters in ['a'] move no output" in str(report)
    assert "1 of the 3 parameters in ['b'] move no output" in str(report)
    inputs = np.array([[1.0, 0.5], [-1.0, -2.0], [0.3, 2.0]])
    weights = {"a": jnp.asarray([[1.0, 0.2], [0.3, 1.0]]), "b": jnp.ones(2)}
    report = fb.tangent.rank(fb.Problem(dead.apply, inputs, np.zeros((3, 1))), weights)
    assert report.rank == 2
    assert report.dependent_samples.tolist() == [1]
    assert "Outputs of sample 1 move with no parameter." in str(report)


def test_near_duplicates_are_named_where_the_condition_suffers():
    inputs = np.random.default_rng(0).normal(size=(8, 2))
    fine = fb.tangent.rank(*tanh(inputs, np.zeros(8), hidden=40))
    assert fine.full
    assert "nearest" not in str(fine)
    inputs[5] = inputs[2] + [1e-9, 0]
    report = fb.tangent.rank(*tanh(inputs, np.zeros(8), hidden=40))
    assert report.full
    assert report.ratio < 1e-8
    assert "The nearest inputs are those of samples 2 and 5, at distance 1.0e-09" in str(report)
    coarse = fb.tangent.rank(*tanh(inputs, np.zeros(8), hidden=40), rtol=1e-7)
    assert (coarse.rank, coarse.dependent_samples.tolist()) == (7, [2, 5])
    assert "The rows of samples 2 and 5 are linearly dependent. The nearest inputs" in str(coarse)


def test_samples_of_stacked_problems_are_named_by_block():
    first, params = tanh(np.random.default_rng(0).normal(size=(4, 2)), np.zeros(4), hidden=20)
    second = fb.Problem(first.apply, np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]]), np.array([[0.0], [1.0], [2.0]]))
    report = fb.tangent.rank(fb.stack([first, second]), params)
    assert (report.rank, report.needed, report.blocks) == (6, 7, (4, 3))
    assert report.dependent_samples.tolist() == [4, 6]
    assert "Samples 0 of block 1 and 2 of block 1 have identical inputs with different targets" in str(report)


def test_bad_input():
    with pytest.raises(fb.errors.NonFiniteDataError, match="differential"):
        fb.tangent.rank(fb.Problem(lambda w, x: jnp.sqrt(x @ w), np.eye(4), np.zeros((4, 1))), jnp.zeros(4))
    with pytest.raises(fb.errors.ParameterError):
        fb.tangent.rank(fb.Problem(lambda w, x: x, np.eye(4), np.eye(4)), {"n": 1})
