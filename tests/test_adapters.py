import os
import subprocess
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fibration._adapters import from_equinox, from_flax, from_torch
from fibration.errors import ApplyError, MissingExtraError, ParameterError, PrecisionWarning
from optional import optional

IMAGES = np.random.default_rng(0).standard_normal((5, 8, 8, 1))
VECTORS = np.random.default_rng(1).standard_normal((5, 4))
TARGETS = np.random.default_rng(2).standard_normal((5, 3))


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def squared_error(apply, inputs):
    return lambda params: (
        0.5 * jnp.mean(jnp.sum((jax.vmap(apply, (None, 0))(params, jnp.asarray(inputs)) - TARGETS) ** 2, axis=1))
    )


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# Equinox


class EquinoxConvNet(eqx.Module):
    conv: eqx.nn.Conv2d
    dense: eqx.nn.Linear
    order: jax.Array
    key: jax.Array

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(1, 2, 3, key=key)
        self.dense = eqx.nn.Linear(18, 3, key=key)
        self.order = jnp.array([2, 0, 1])
        self.key = jax.random.key(7)

    def __call__(self, x):
        hidden = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))[:, ::2, ::2]
        return self.dense(jnp.ravel(hidden))[self.order] + jax.random.normal(self.key, (3,))


EQUINOX_MODELS = {
    "mlp": (lambda: eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(0)), VECTORS),
    "convnet": (lambda: EquinoxConvNet(jax.random.key(0)), IMAGES),
}


@pytest.mark.parametrize("name", EQUINOX_MODELS)
def test_equinox_outputs_and_gradients_are_the_models(name):
    build, inputs = EQUINOX_MODELS[name]
    model = build()
    apply, params = from_equinox(model)
    for x in inputs:
        np.testing.assert_array_equal(apply(params, x), model(jnp.asarray(x)))
    gradient = jax.grad(squared_error(apply, inputs))(params)
    expected = eqx.filter_grad(squared_error(lambda m, x: m(x), inputs))(model)
    assert_trees_close(gradient, expected, rtol=0, atol=0)


def test_equinox_parameters_are_the_floating_point_arrays_only():
    apply, params = from_equinox(EquinoxConvNet(jax.random.key(0)))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
    assert params.order is None
    assert params.key is None
    outputs = eqx.filter_jit(lambda a, p, x: a(p, x))(apply, params, IMAGES[0])
    np.testing.assert_allclose(outputs, apply(params, IMAGES[0]), rtol=1e-13)


def test_a_model_that_cannot_be_called_raises():
    with pytest.raises(ApplyError, match="cannot be called"):
        from_equinox({"weight": jnp.ones(3)})


# Flax


@pytest.fixture(scope="module")
def linen():
    return optional("flax.linen", "flax")


def flax_mlp(nn):
    # A list makes the module unhashable, which the adapter has to survive.
    return nn.Sequential([nn.Dense(6, param_dtype=jnp.float64), nn.tanh, nn.Dense(3, param_dtype=jnp.float64)]), VECTORS


def flax_convnet(nn):
    class ConvNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(2, (3, 3), param_dtype=jnp.float64)(x)
            x = nn.BatchNorm(use_running_average=True, param_dtype=jnp.float64)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
            return nn.Dense(3, param_dtype=jnp.float64)(x.reshape(x.shape[0], -1))

    return ConvNet(), IMAGES


@pytest.mark.parametrize("build", [flax_mlp, flax_convnet])
def test_flax_outputs_and_gradients_are_the_modules(linen, build):
    module, inputs = build(linen)
    variables = module.init(jax.random.key(0), inputs)
    if "batch_stats" in variables:  # other than the initial 0 and 1, so that they matter
        variables = {**variables, "batch_stats": jax.tree.map(lambda s: s + 0.5, variables["batch_stats"])}
    apply, params = from_flax(module, variables)
    for x in inputs:
        np.testing.assert_array_equal(apply(params, x), module.apply(variables, x[None])[0])

    def cost(params):
        outputs = module.apply({**variables, "params": params}, inputs)
        return 0.5 * jnp.mean(jnp.sum((outputs - TARGETS) ** 2, axis=1))

    gradient = eqx.filter_jit(lambda a, p: jax.grad(squared_error(a, inputs))(p))(apply, params)
    assert_trees_close(gradient, jax.grad(cost)(variables["params"]), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("variables", [{"batch_stats": {}}, {}, None])
def test_flax_variables_without_parameters_raise(linen, variables):
    with pytest.raises(ParameterError, match="'params'"):
        from_flax(linen.Dense(3), variables)


def test_nnx_models_raise_and_the_way_out_in_the_message_works(linen):
    nnx = optional("flax.nnx", "flax")
    model = nnx.Linear(4, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    with pytest.raises(ParameterError, match=r"nnx\.split\(model, nnx\.Param, \.\.\.\)"):
        from_flax(model, nnx.state(model))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    outputs = jax.jit(lambda params, x: nnx.merge(graph, params, rest)(x[None])[0])(params, VECTORS[0])
    np.testing.assert_allclose(outputs, VECTORS[0] @ np.asarray(model.kernel[...]), rtol=1e-12)


@pytest.mark.parametrize(
    ("absent", "extra", "call"),
    [
        ("flax.linen", "flax", lambda: from_flax(None, {})),
        ("torch", "torch", lambda: from_torch(None)),
    ],
)
def test_an_absent_package_raises_and_names_its_extra(monkeypatch, absent, extra, call):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fibration\[{extra}\]'"):
        call()


# PyTorch


@pytest.fixture(scope="module")
def torch():
    # Only looked up: torchax 0.0.13 cannot be imported beside PyTorch 2.13 by itself.
    optional("torchax", "torch", load=False)
    return optional("torch", "torch")


def torch_mlp(torch):
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3)), VECTORS


def torch_convnet(torch):
    nn = torch.nn
    hidden = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.GELU(), nn.MaxPool2d(2))
    return nn.Sequential(hidden, nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3)), np.moveaxis(IMAGES, -1, 1)


def torch_odd(torch):
    """Tied and frozen parameters, an integer buffer, a plain tensor, and a tensor made in the call."""

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.frozen = torch.nn.Parameter(torch.full((4,), 1.5, dtype=torch.float64), requires_grad=False)
            self.plain = torch.linspace(0, 1, 4, dtype=torch.float64)
            self.register_buffer("order", torch.tensor([3, 0, 2]))

        def forward(self, x):
            hidden = self.second(torch.tanh(self.first(x))) * self.frozen
            return (hidden + torch.ones(4, dtype=x.dtype) + self.plain)[:, self.order]

    return Odd(), VECTORS


def torch_parametrised(torch):
    return torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3)), VECTORS


@pytest.mark.parametrize("build", [torch_mlp, torch_convnet, torch_odd, torch_parametrised])
def test_torch_outputs_and_gradients_are_the_modules(torch, build):
    torch.manual_seed(0)
    module, inputs = build(torch)
    module.double()
    samples = torch.from_numpy(inputs.copy())
    with torch.no_grad():
        module(samples)  # moves the running statistics
    apply, params = from_torch(module)
    assert module.training

    module.eval()
    reference = module(samples)
    (0.5 * ((reference - torch.from_numpy(TARGETS)) ** 2).sum(1).mean()).backward()
    expected = {name: p.grad.numpy() for name, p in module.named_parameters() if p.requires_grad}

    outputs = jax.jit(jax.vmap(apply, (None, 0)))(params, inputs)
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(outputs, reference.detach().numpy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(apply(params, inputs[0]), outputs[0], rtol=1e-13, atol=1e-14)
    cost = squared_error(apply, inputs)
    gradient = jax.jit(jax.grad(cost))(params)
    assert_trees_close({name: np.asarray(g) for name, g in gradient.items()}, expected, rtol=1e-12, atol=1e-14)
    _, slope = jax.jvp(cost, (params,), (gradient,))
    assert slope == pytest.approx(sum(np.sum(g**2) for g in expected.values()), rel=1e-12)


def test_torch_parameters_keep_their_names_and_types(torch):
    module = torch_convnet(torch)[0]
    apply, params = from_torch(module)
    assert {name: p.shape for name, p in params.items()} == {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert {p.dtype for p in params.values()} == {np.dtype(np.float32)}
    assert set(apply.constants) == {name for name, _ in module.named_buffers()}
    assert apply.constants["0.1.num_batches_tracked"].dtype == np.int64


def test_torch_module_and_parameters_do_not_share_memory(torch):
    module = torch.nn.Linear(4, 3)
    apply, params = from_torch(module)
    before = np.array(apply(params, VECTORS[0]))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    np.testing.assert_array_equal(apply(params, VECTORS[0]), before)


def test_float64_modules_warn_while_x64_is_off(torch):
    module = torch.nn.Linear(4, 3).double()
    with jax.enable_x64(False), pytest.warns(PrecisionWarning, match="jax_enable_x64"):
        _, params = from_torch(module)
    assert params["weight"].dtype == np.float32


def test_a_torch_module_of_another_kind_raises(torch):
    with pytest.raises(ParameterError, match="ndarray"):
        from_torch(np.ones(3))


def test_a_torchax_that_does_not_fit_raises(torch, monkeypatch):
    broken = types.ModuleType("torchax")
    broken.default_env = lambda: torch.ops.aten.prod.no_such_overload
    monkeypatch.setitem(sys.modules, "torchax", broken)
    with pytest.raises(MissingExtraError, match=rf"torchax does not work with torch {torch.__version__[:4]}"):
        from_torch(torch.nn.Linear(4, 3))
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(MissingExtraError, match="torchax cannot be imported"):
        from_torch(torch.nn.Linear(4, 3))


GLOBAL_STATE = """
import contextlib, os, jax, numpy as np, torch
from fibration._adapters import from_torch

def state():
    return {
        **jax.config.values, "dtype": torch.get_default_dtype(), "device": torch.get_default_device(),
        "fast": torch.backends.mha.get_fastpath_enabled(), "environment": dict(os.environ),
        "gradients": torch.is_grad_enabled(), "made": torch.ones(1).device, "made in jax": jax.numpy.ones(1).dtype,
        "missing": hasattr(torch.ops.aten.prod, "no_such_name"), "backend": jax.default_backend(),
    }

torch.nn.Linear(2, 1)(torch.ones(1, 2))
before = state()
with contextlib.suppress(AttributeError):  # what a user sees first with PyTorch 2.13 must not stand in the way
    if FIRST: import torchax
attempted = state()
apply, params = from_torch(torch.nn.Linear(2, 1))
assert apply(params, np.ones(2)).shape == (1,)
after = state()
if FIRST: before["environment"] = attempted["environment"]; before["fast"] = attempted["fast"]
changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
assert not changed, changed
"""


@pytest.mark.parametrize("first", [False, True])
def test_torchax_leaves_global_state_as_it_was(torch, first):
    code = GLOBAL_STATE.replace("FIRST", str(first))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
