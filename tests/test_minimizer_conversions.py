"""Finished networks in other frameworks: the same outputs, in the frameworks' own arithmetic."""

import itertools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from clusters import clusters, slabs
from fibration._adapters import from_equinox, from_flax, from_torch
from fibration.errors import MissingExtraError, OutputDirectoryError, ParameterError, UnknownNameError
from fibration.minimizers import configuration, construct, shallow
from fibration.minimizers._convert import to_equinox, to_flax, to_onnx, to_torch, to_torch_state_dict
from fibration.minimizers._network import forward
from optional import optional


def square_clusters(seed=0):
    return clusters(np.random.default_rng(seed), 3, 3, noise=0.15)


def deep():
    inputs, labels = clusters(np.random.default_rng(1), 4, 7, noise=0.15)
    return construct(inputs, labels, depth=6)


def wide_targets():
    inputs, labels = clusters(np.random.default_rng(2), 3, 5, noise=0.15)
    return construct(inputs, labels, targets=np.random.default_rng(3).normal(size=(3, 6)))


BUILT = {
    "cone": deep,
    "wide": wide_targets,
    "affine": lambda: construct(*slabs(np.random.default_rng(4), 3, 4), method="affine"),
    "one class": lambda: construct(np.random.default_rng(5).normal(size=(6, 3)), np.zeros(6)),
    "shallow": lambda: shallow(*square_clusters(), kind="projection"),
    "configuration": lambda: configuration(*square_clusters(), collapsed=(True, False, True)),
}


@pytest.fixture(params=BUILT, scope="module")
def network(request):
    with jax.enable_x64(True):
        built = BUILT[request.param]()
    inputs = 2 * np.random.default_rng(6).normal(size=(200, built.weights[0][0].shape[1]))
    outputs = built.outputs(inputs) if hasattr(built, "outputs") else forward(built.weights, inputs)
    return built, inputs, outputs


@pytest.fixture(scope="module")
def fitted():
    """A network of zero cost, its samples and their targets."""
    inputs, labels = clusters(np.random.default_rng(7), 4, 6, noise=0.15)
    with jax.enable_x64(True):
        found = construct(inputs, labels)
    assert found.certified
    return found, inputs, np.eye(4)[labels]


def assert_same(outputs, expected, tolerance=1e-10):
    outputs = np.asarray(outputs)
    assert outputs.shape == expected.shape
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def all_outputs(apply, params, inputs):
    return eqx.filter_jit(lambda params, x: jax.vmap(lambda one: apply(params, one))(x))(params, jnp.asarray(inputs))


def assert_no_cost(problem, params):
    assert float(problem.cost(params)) < 1e-20
    # And that it is a cost that can be something else.
    worse = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    assert float(problem.cost(worse)) > 1e-4


# Equinox


def test_equinox(network):
    built, inputs, outputs = network
    model = to_equinox(built)
    assert isinstance(model, eqx.Module)
    assert_same(all_outputs(lambda model, x: model(x), model, inputs), outputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))} == {np.dtype(np.float64)}


def test_equinox_and_flax_are_in_the_current_precision(fitted):
    found, inputs, _ = fitted
    with jax.enable_x64(False):
        model = to_equinox(found)
        assert model.layers[0].weight.dtype == np.float32
        assert model(inputs[0]).dtype == np.float32
        optional("flax.linen", "flax")
        _, variables = to_flax(found)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_equinox_and_back(fitted):
    found, inputs, targets = fitted
    model = to_equinox(found)
    assert_no_cost(*fb.Problem.from_equinox(model, inputs, targets))
    apply, params = from_equinox(model)
    assert_same(all_outputs(apply, params, inputs), targets)


# Flax


def test_flax(network):
    optional("flax.linen", "flax")
    built, inputs, outputs = network
    module, variables = to_flax(built)
    assert_same(jax.jit(module.apply)(variables, jnp.asarray(inputs)), outputs)
    # What the module itself would start with has the same names and shapes.
    fresh = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(inputs))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), variables)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), fresh) == shapes


def test_flax_and_back(fitted):
    optional("flax.linen", "flax")
    found, inputs, targets = fitted
    module, variables = to_flax(found)
    assert_no_cost(*fb.Problem.from_flax(module, variables, inputs, targets))
    apply, params = from_flax(module, variables)
    assert_same(all_outputs(apply, params, inputs), targets)


# PyTorch


@pytest.fixture(scope="module")
def torch():
    return optional("torch", "torch")


def test_a_state_dict_loads_into_a_sequence_of_layers(torch, network):
    built, inputs, outputs = network
    sizes = [built.weights[0][0].shape[1], *(len(bias) for _, bias in built.weights)]
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1]).double()
    module.load_state_dict(to_torch_state_dict(built), strict=True)
    with torch.no_grad():
        assert_same(module(torch.from_numpy(inputs)), outputs)


def test_torch(torch, network):
    built, inputs, outputs = network
    module = to_torch(built)
    assert_same(module(torch.from_numpy(inputs)).detach(), outputs)
    assert all(parameter.requires_grad for parameter in module.parameters())
    single = to_torch(built, torch.float32)
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    reached = single(torch.from_numpy(inputs.astype(np.float32))).detach()
    assert reached.dtype == torch.float32
    assert_same(reached, outputs, single_precision(built, inputs, outputs))


def test_torch_and_back(torch, fitted):
    optional("torchax", "torch", load=False)
    found, inputs, targets = fitted
    module = to_torch(found)
    assert_no_cost(*fb.Problem.from_torch(module, inputs, targets))
    apply, params = from_torch(module)
    assert_same(all_outputs(apply, params, inputs), targets)


def test_torch_takes_copies_and_leaves_the_random_state(torch, fitted):
    found, inputs, _ = fitted
    before, state = found.outputs(inputs), torch.get_rng_state()
    module = to_torch(found)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(found.outputs(inputs), before)


@pytest.mark.parametrize("dtype", ["float32", np.float32, "int"])
def test_torch_types_of_another_kind_raise(torch, fitted, dtype):
    with pytest.raises(ParameterError, match=r"floating-point torch\.dtype"):
        to_torch_state_dict(fitted[0], torch.int64 if dtype == "int" else dtype)


# ONNX


@pytest.fixture(scope="module")
def onnx():
    return optional("onnx", "onnx")


def run(model, inputs):
    return optional("onnx.reference", "onnx").ReferenceEvaluator(model).run(["outputs"], {"inputs": inputs})[0]


def single_precision(built, inputs, outputs):
    """What rounding in float32 makes of the outputs, relative to the largest, with room for another order of sums."""
    weights = [(weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in built.weights]
    error = np.abs(forward(weights, inputs.astype(np.float32)) - outputs).max() / np.abs(outputs).max()
    assert error < 1e-3
    return 4 * max(error, 1e-7)


def test_onnx(onnx, network):
    built, inputs, outputs = network
    model = to_onnx(built)
    reached = run(model, inputs)
    assert reached.dtype == np.float64
    assert_same(reached, outputs)
    for size in (1, 7):
        assert_same(run(model, inputs[:size]), outputs[:size])
    single = run(to_onnx(built, dtype="float32"), inputs.astype(np.float32))
    assert single.dtype == np.float32
    assert_same(single, outputs, single_precision(built, inputs, outputs))


def test_onnx_names_shapes_and_nodes(onnx, fitted):
    model = to_onnx(fitted[0])
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Relu"] * 4 + ["Gemm"]
    for value, name, size in ((model.graph.input, "inputs", 6), (model.graph.output, "outputs", 4)):
        assert [entry.name for entry in value] == [name]
        batch, width = value[0].type.tensor_type.shape.dim
        assert (batch.dim_param, width.dim_value) == ("batch", size)


def test_onnx_files_are_whole_or_absent(onnx, fitted, tmp_path, monkeypatch):
    found, inputs, targets = fitted
    path = tmp_path / "new" / "network.onnx"
    model = to_onnx(found, path)
    assert onnx.load(path) == model
    assert_same(run(str(path), inputs), targets)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OutputDirectoryError, match="disk full"):
        to_onnx(found, str(path), dtype="float32")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["network.onnx"]


def test_onnx_types_of_another_name_raise(fitted):
    with pytest.raises(UnknownNameError, match="'float16'"):
        to_onnx(fitted[0], dtype="float16")


# All


@pytest.mark.parametrize(
    ("absent", "extra", "call"),
    [
        ("flax.linen", "flax", to_flax),
        ("torch", "torch", to_torch),
        ("torch", "torch", to_torch_state_dict),
        ("onnx", "onnx", to_onnx),
    ],
)
def test_an_absent_package_raises_and_names_its_extra(fitted, monkeypatch, absent, extra, call):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fibration\[{extra}\]'"):
        call(fitted[0])


@pytest.mark.parametrize(
    ("call", "package"), [(to_equinox, None), (to_flax, "flax"), (to_torch, "torch"), (to_onnx, "onnx")]
)
def test_something_without_weights_raises(call, package):
    if package:
        optional(package, package)
    with pytest.raises(ParameterError, match="minimizer_"):
        call(np.ones(3))
