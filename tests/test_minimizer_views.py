"""Truncation maps, networks read as repeated truncation, and noise to signal."""

import itertools

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from clusters import clusters
from fibration.minimizers import construct, noise_to_signal, truncation, truncation_view


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.floats(1e-3, 1e3))
def test_the_truncation_map_in_its_cone(seed, n, scale):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(n, n)), rng.normal(size=n)
    base, edges = -np.linalg.solve(weight, bias), np.linalg.inv(weight)
    coefficients = rng.normal(size=(30, n))
    points = base + coefficients @ edges.T
    tolerance = 1e-11 * np.linalg.cond(weight) * (1 + np.abs(points).max())
    once = truncation(weight, bias, points)
    np.testing.assert_allclose(once, base + np.maximum(coefficients, 0) @ edges.T, atol=tolerance)
    np.testing.assert_allclose(truncation(weight, bias, once), once, atol=10 * tolerance)
    np.testing.assert_allclose(truncation(scale * weight, scale * bias, points), once, atol=10 * tolerance)
    assert truncation(weight, bias, points[0]).shape == (n,)


def test_a_wide_layer_uses_the_pseudo_inverse():
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=(2, 5)), rng.normal(size=2), rng.normal(size=(10, 5))
    expected = (np.maximum(x @ weight.T + bias, 0) - bias) @ np.linalg.pinv(weight).T
    np.testing.assert_allclose(truncation(weight, bias, x), expected, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(1, 6), min_size=2, max_size=6))
def test_a_network_is_repeated_truncation_and_an_affine_map(seed, sizes):
    sizes = sorted(sizes, reverse=True)
    rng = np.random.default_rng(seed)
    weights = [(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in itertools.pairwise(sizes)]
    # The output layer is free to grow.
    weights.append((rng.normal(size=(7, sizes[-1])), rng.normal(size=7)))
    view = truncation_view(weights)
    inputs = rng.normal(size=(25, sizes[0]))
    hidden = inputs
    for weight, bias in weights[:-1]:
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    expected = hidden @ weights[-1][0].T + weights[-1][1]
    size = 1e-12 * view.conditions.max() ** 2 * (1 + np.abs(expected).max())
    np.testing.assert_allclose(view.outputs(inputs), expected, atol=size)
    # x^(ℓ) = W^(ℓ) x^(τ,ℓ) + b^(ℓ) for the last hidden layer
    weight, bias = view.cumulative[-2]
    np.testing.assert_allclose(view.truncated(inputs) @ weight.T + bias, hidden, atol=size)


def test_networks_of_others():
    model = eqx.nn.MLP(4, 4, 4, 2, key=jax.random.key(0))
    inputs = np.random.default_rng(0).normal(size=(10, 4))
    expected = jax.vmap(model)(inputs)
    view = truncation_view(model)
    assert view.base_points.shape == (2, 4)
    np.testing.assert_allclose(view.outputs(inputs), expected, atol=1e-8)
    apply, params = fb.networks.mlp((4, 3, 3), "relu", key=jax.random.key(1), bias=False)
    np.testing.assert_allclose(
        truncation_view(params).outputs(inputs), jax.vmap(apply, (None, 0))(params, inputs), atol=1e-10
    )


def test_a_constructed_network_squashes_one_class_after_another():
    inputs, labels = clusters(np.random.default_rng(1), 4, 6, noise=0.15)
    found = construct(inputs, labels)
    view = truncation_view(found, inputs, labels)
    np.testing.assert_allclose(view.outputs(inputs), np.eye(4)[labels], atol=1e-10)
    np.testing.assert_allclose(view.base_points, [layer.base_point for layer in found.layers], atol=1e-10)
    norms = [noise.norm for noise in view.noise]
    assert len(norms) == 5
    assert min(norms[:-1]) > 0.01  # they need not fall from layer to layer
    assert norms[-1] < 1e-10


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 5), st.integers(0, 4))
def test_noise_to_signal_by_its_definition(seed, q, more):
    rng = np.random.default_rng(seed)
    inputs, labels = clusters(rng, q, q + more, noise=0.2)
    means = np.stack([inputs[labels == j].mean(axis=0) for j in range(q)]).T
    away = np.linalg.pinv(means) @ (inputs.T - means[:, labels])
    found = noise_to_signal(inputs, labels, linear=True)
    assert found.linear
    assert found.supremum == pytest.approx(np.linalg.norm(away, axis=0).max(), rel=1e-9)
    matrix = away / np.bincount(labels)[labels] @ away.T
    np.testing.assert_allclose(found.matrix, matrix, rtol=1e-7, atol=1e-12)
    assert found.norm == pytest.approx(np.sqrt(np.trace(matrix)), rel=1e-8)
    # Where centring has made the means dependent, a row of ones takes part: this one does not see shifts.
    centred = noise_to_signal(inputs - means.mean(axis=1), labels)
    assert not centred.linear
    middle = means.mean(axis=1, keepdims=True)
    away = np.linalg.pinv(means - middle, rcond=1e-12) @ (inputs.T - means[:, labels])
    assert centred.supremum == pytest.approx(np.linalg.norm(away, axis=0).max(), rel=1e-8)


BAD = [
    (lambda: truncation(np.eye(2), [0.0], [1.0, 2.0]), fb.errors.ShapeError, "shapes"),
    (lambda: truncation(np.ones((3, 2)), np.zeros(3), np.ones(2)), fb.errors.ConstructionError, "full row rank"),
    (lambda: truncation(np.ones((2, 2)), np.zeros(2), np.ones(2)), fb.errors.ConstructionError, "ratio"),
    (lambda: truncation_view([np.ones(3)]), fb.errors.ParameterError, "pairs"),
    (lambda: truncation_view(3.0), fb.errors.ParameterError, "dense layers"),
    (lambda: truncation_view([(np.ones((2, 2)), np.ones(2)), (np.ones((2, 3)), np.ones(2))]), fb.errors.ParameterError,
     "fit one another"),
    (lambda: truncation_view([(np.ones((4, 2)), np.ones(4)), (np.ones((2, 4)), np.ones(2))]),
     fb.errors.ConstructionError, "grow"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_what_is_no_truncation_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
