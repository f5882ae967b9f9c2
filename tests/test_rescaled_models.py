"""Balanced networks of other frameworks, state dicts, precisions, and input that no network can be made of."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.errors import (
    ApplyError,
    NonFiniteDataError,
    ParameterError,
    ShapeError,
    StepSizeError,
    UnknownNameError,
)
from homogeneous import Residual, noisy
from optional import optional

B = fb.balance


def test_equinox_modules_come_back_as_modules():
    model = Residual(jax.random.key(0))
    new, report = B.network(model, jnp.ones(4))
    assert type(new) is Residual
    x = jnp.asarray(np.random.default_rng(0).normal(size=4))
    np.testing.assert_allclose(new(x), model(x), rtol=1e-12)
    assert report.skipped == {"head.bias": "inputs and outputs at its ends"}
    stream = report.units[report.units.layer.str.startswith("stem")]
    assert len(stream) == 5  # one scale for each channel of the stream, whatever adds to it


def test_flax_modules_come_back_with_their_other_collections():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x)))
            return nn.Dense(2)(x)

    module, x = Net(), jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    variables = module.init(jax.random.key(0), x)
    variables = {**variables, "batch_stats": jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])}
    (same, new), report = B.network((module, variables), x[0])
    assert same is module
    assert set(new) == set(variables)
    np.testing.assert_allclose(module.apply(new, x), module.apply(variables, x), atol=1e-6)
    # the mean that is subtracted ties what comes before it; gain and shift may be rescaled
    assert set(report.skipped) == {"Dense_0.bias", "Dense_0.kernel", "Dense_1.bias"}
    assert report.skipped["Dense_0.kernel"] == "a sum with a constant"
    assert len(report.units) == 5


def torch_network(torch):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 6, 3, groups=2),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 4, 7),
        torch.nn.PReLU(),
        torch.nn.Linear(7, 3, bias=False),
    ).double()


def test_torch_modules_and_state_dicts():
    torch = optional("torch", "torch")
    optional("torchax", "torch", load=False)
    module, order = torch_network(torch), ["0", "3", "6", "8"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    traced, report = B.network(module, jnp.ones((2, 8, 8)))
    listed, _ = B.network(module, order)
    state, counted = B.network(module.state_dict(), order)
    assert len(report.units) == len(counted.units) == 17
    assert np.isnan(counted.change)
    assert report.change < 1e-14
    for other in (traced, listed):
        assert type(other) is torch.nn.Sequential
        with torch.no_grad():
            assert float((other(x) - module(x)).abs().max() / module(x).abs().max()) < 1e-14
    for name, value in state.items():
        np.testing.assert_allclose(value.numpy(), traced.state_dict()[name].numpy(), atol=1e-13)
        assert torch.equal(before[name], module.state_dict()[name])
    assert "7.weight" in state  # PReLU's slope, which is not in the list of layers, is kept


def state_dict(rng, widths, bias=True):
    state = {}
    for number, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        state[f"net.{2 * number}.weight"] = rng.normal(size=(n_out, n_in)) * 10.0 ** rng.uniform(-3, 3)
        if bias:
            state[f"net.{2 * number}.bias"] = rng.normal(size=n_out)
    return state


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=3, max_size=13), st.booleans())
def test_state_dicts_of_any_depth(seed, widths, bias):
    """More than ten layers too, whose names do not sort as they follow."""
    rng = np.random.default_rng(seed)
    state = state_dict(rng, widths, bias)
    order = [f"net.{2 * number}" for number in range(len(widths) - 1)]
    new, report = B.network(state, order)
    assert report.converged
    assert list(new) == list(state)

    def run(state, x):
        for name in order:
            x = state[f"{name}.weight"] @ (x if name == order[0] else np.maximum(x, 0))
            x = x + state[f"{name}.bias"] if bias else x
        return x

    x = rng.normal(size=(widths[0], 9))
    if bias:
        x = x[:, 0]
    np.testing.assert_allclose(run(new, x), run(state, x), rtol=1e-9, atol=1e-11 * np.max(np.abs(run(state, x))))


@pytest.mark.parametrize(
    ("dtype", "accuracy"), [(np.float64, 1e-14), (np.float32, 1e-6), (np.float16, 5e-3), (ml_dtypes.bfloat16, 5e-2)]
)
def test_parameters_keep_their_type_and_are_computed_in_double_precision(dtype, accuracy):
    rng = np.random.default_rng(0)
    weights = [(scale * rng.normal(size=shape)).astype(dtype) for scale, shape in ((30, (6, 4)), (0.1, (3, 6)))]
    new, report = B.network({"a.weight": weights[0], "b.weight": weights[1]}, ["a", "b"])
    products = [
        np.maximum(first.astype(float) @ np.ones(4), 0) @ second.astype(float).T
        for first, second in (weights, new.values())
    ]
    assert all(W.dtype == dtype for W in new.values())
    np.testing.assert_allclose(products[1], products[0], rtol=accuracy, atol=accuracy)
    eps = 2.0 ** -{np.float64: 53, np.float32: 24, np.float16: 11, ml_dtypes.bfloat16: 8}[dtype]
    assert report.imbalance[1] < 2 * eps  # of what is returned
    jax_params = [jnp.asarray(W) for W in weights]
    (_, rounded), _ = B.network((lambda p, x: p[1] @ jax.nn.relu(p[0] @ x), jax_params), jnp.ones(4, dtype))
    assert [W.dtype for W in rounded] == [dtype, dtype]


def test_scales_that_are_far_apart():
    apply, params = fb.networks.mlp((3, 5, 4, 2), "relu", key=jax.random.key(0))
    params = noisy(params)
    (_, wanted), _ = B.network((apply, params))
    for power in (20, 60):
        action = B.rescaling(apply, params, jnp.zeros(3))
        xi = np.log(10.0) * power * np.where(np.arange(9) % 2, 1, -1) / 2
        far = action.exponential(jnp.asarray(xi), params)
        (_, found), report = B.network((apply, far))
        assert report.converged
        for first, second in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(second, first, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_read_is_named():
    apply, params = fb.networks.mlp((3, 5, 2), "relu", key=jax.random.key(0))
    state = state_dict(np.random.default_rng(0), (3, 5, 2))
    order = ["net.0", "net.2"]
    bad = {**state, "net.0.weight": np.full((5, 3), np.nan)}
    cases = [
        (lambda: B.network(3), ParameterError, "a model of type int"),
        (lambda: B.network(params), ParameterError, "a model of type list"),
        (lambda: B.network(eqx.nn.Linear(2, 3, key=jax.random.key(0))), ParameterError, "pass one sample"),
        (lambda: B.network((apply, params), jnp.ones((7, 4))), ApplyError, "one sample"),
        (lambda: B.network(state, ["net.0", "net.7"]), ParameterError, "net.7.weight"),
        (lambda: B.network(state, ["net.0"]), ParameterError, "net.2.weight, net.2.bias, which belong to no layer"),
        (lambda: B.network({**state, "n.weight": np.ones(5), "n.bias": np.ones(5)}, order), ParameterError, "n.weight"),
        (lambda: B.network(state, []), ParameterError, "names of the layers"),
        (lambda: B.network(state, order[::-1]), ShapeError, "net.0.weight"),
        (lambda: B.network(state, "net.0"), ParameterError, "layers"),
        (lambda: B.network(bad, order), NonFiniteDataError, "net.0.weight"),
        (lambda: B.network((apply, params), method="lbfgs"), UnknownNameError, "newton"),
        (lambda: B.network((apply, params), strength=1.5), ParameterError, "strength"),
        (lambda: B.network((apply, params), max_iterations=-1), StepSizeError, "max_iterations"),
        (lambda: B.network((apply, params), strength=0.5, method="cyclic"), ParameterError, "newton"),
        (lambda: B.rescaling(apply, params, jnp.zeros(3)).exponential(jnp.zeros(5), params[:1]), ShapeError, "arrays"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_a_limit_on_iterations_is_reported():
    apply, params = fb.networks.mlp((3, 6, 6, 2), "relu", key=jax.random.key(0))
    params[1]["weight"] = 1e3 * params[1]["weight"]
    _, report = B.network((apply, params), method="cyclic", max_iterations=2)
    assert not report.converged
    assert report.iterations == 2
    assert report.change < 1e-12
