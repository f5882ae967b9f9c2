"""A network written down, for other frameworks: Equinox, Flax, PyTorch and ONNX."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._adapters import _import
from .._version import __version__
from ..errors import ParameterError, UnknownNameError
from ..plots._write import write_atomically
from ._network import Weights

# Old enough for the runtimes of these years to load; Gemm and Relu in double precision are older still.
OPSET, IR_VERSION = 17, 8


def to_equinox(minimizer: Any) -> eqx.nn.Sequential:
    """Make the network an Equinox module.

    **Arguments:** `minimizer`: a `Minimizer`, a `ShallowMinimizer` or a `Configuration`.

    **Returns:** an `eqx.nn.Sequential` of `Linear` and ReLU in JAX's current precision, for one sample (M,).

    **Raises:** `ParameterError` for something without weights.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> model = fb.minimizers.to_equinox(fb.minimizers.construct(inputs, labels))
    >>> model(inputs[0]).shape
    (3,)

    ```
    """
    layers: list[Any] = []
    dtype, key = jnp.result_type(float), jax.random.key(0)
    for weight, bias in _weights(minimizer):
        linear = eqx.nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype, key=key)
        values = jnp.asarray(weight, dtype), jnp.asarray(bias, dtype)
        layers += [eqx.tree_at(lambda at: (at.weight, at.bias), linear, values), eqx.nn.Lambda(jax.nn.relu)]
    return eqx.nn.Sequential(layers[:-1])


def to_flax(minimizer: Any) -> tuple[Any, dict[str, Any]]:
    """Make the network a Flax linen module.

    **Arguments:** `minimizer`: a `Minimizer`, a `ShallowMinimizer` or a `Configuration`.

    **Returns:** `(module, variables)`: a `flax.linen.Sequential` of `Dense` and ReLU, and its parameters in JAX's
    current precision; `module.apply(variables, inputs)` maps (N, M) to (N, P).

    **Raises:** `MissingExtraError` without Flax; `ParameterError` for something without weights.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> module, variables = fb.minimizers.to_flax(fb.minimizers.construct(inputs, labels))
    >>> module.apply(variables, inputs).shape
    (60, 3)

    ```
    """
    linen = _import("flax.linen", "flax")
    dtype = jnp.result_type(float)
    layers: list[Any] = []
    params: dict[str, dict[str, jax.Array]] = {}
    for weight, bias in _weights(minimizer):
        # Flax names the layers by their places in the sequence, and keeps weights transposed.
        params[f"layers_{len(layers)}"] = {"kernel": jnp.asarray(weight.T, dtype), "bias": jnp.asarray(bias, dtype)}
        layers += [linen.Dense(len(bias), param_dtype=dtype), linen.relu]
    return linen.Sequential(layers[:-1]), {"params": params}


def to_torch_state_dict(minimizer: Any, dtype: Any = None) -> dict[str, Any]:
    """Make the network's weights a PyTorch state dictionary.

    **Arguments:** `minimizer`: a `Minimizer`, a `ShallowMinimizer` or a `Configuration`; `dtype`: a floating-point
    `torch.dtype`, by default `torch.float64`.

    **Returns:** the tensors of `torch.nn.Sequential(Linear, ReLU, Linear, …, Linear)` by their names there:
    "0.weight", "0.bias", "2.weight", ….

    **Raises:** `MissingExtraError` without PyTorch; `ParameterError` for something without weights, or another `dtype`.

    ```python
    module.load_state_dict(fb.minimizers.to_torch_state_dict(minimizer, torch.float32))
    ```
    """
    torch = _import("torch", "torch")
    kind = torch.float64 if dtype is None else dtype
    if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ParameterError(f"dtype = {dtype!r}", "a floating-point torch.dtype", "leave it out for torch.float64")
    state: dict[str, Any] = {}
    for index, (weight, bias) in enumerate(_weights(minimizer)):
        # Copies, so that training the module does not change the minimiser.
        state[f"{2 * index}.weight"] = torch.tensor(weight, dtype=kind)
        state[f"{2 * index}.bias"] = torch.tensor(bias, dtype=kind)
    return state


def to_torch(minimizer: Any, dtype: Any = None) -> Any:
    """Make the network a PyTorch module.

    **Arguments:** as those of `to_torch_state_dict`.

    **Returns:** `torch.nn.Sequential(Linear, ReLU, Linear, …, Linear)` with the network's weights, which maps (N, M) to
    (N, P). PyTorch's random state is left as it is.

    **Raises:** those of `to_torch_state_dict`.

    ```python
    module = fb.minimizers.to_torch(minimizer)
    module(torch.from_numpy(inputs))  # (N, P)
    ```
    """
    state = to_torch_state_dict(minimizer, dtype)
    nn = _import("torch", "torch").nn
    layers: list[Any] = []
    for weight, _ in _weights(minimizer):
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=state["0.weight"].dtype)
        layers += [linear, nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    module.load_state_dict(state)
    return module


def to_onnx(minimizer: Any, path: str | os.PathLike[str] | None = None, dtype: str = "float64") -> Any:
    """Make the network an ONNX model of `Gemm` and `Relu` nodes, and check it.

    **Arguments:** `minimizer`: a `Minimizer`, a `ShallowMinimizer` or a `Configuration`; `path`: of a file to write, or
    to replace at once; `dtype`: "float64" or "float32", of weights, inputs and outputs. Some runtimes and accelerators
    have only the second, in which the network is no more exact than its conditioning allows.

    **Returns:** an `onnx.ModelProto` that maps "inputs" (batch, M) to "outputs" (batch, P), for batches of any size.

    **Raises:** `MissingExtraError` without ONNX; `UnknownNameError` for another `dtype`; `ParameterError` for something
    without weights; `OutputDirectoryError` if the file cannot be written.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> minimizer = fb.minimizers.construct(inputs, labels)
    >>> model = fb.minimizers.to_onnx(minimizer)
    >>> [node.op_type for node in model.graph.node]
    ['Gemm', 'Relu', 'Gemm', 'Relu', 'Gemm', 'Relu', 'Gemm']

    ```
    """
    if dtype not in ("float64", "float32"):
        raise UnknownNameError(f"dtype = {dtype!r}", '"float64" or "float32"', 'leave it at "float64"')
    weights = _weights(minimizer)
    onnx = _import("onnx", "onnx")
    helper, to_array = onnx.helper, onnx.numpy_helper.from_array
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes: list[Any] = []
    tensors: list[Any] = []
    name = "inputs"
    for index, (weight, bias) in enumerate(weights):
        last = index == len(weights) - 1
        tensors += [to_array(weight.astype(dtype), f"weight_{index}"), to_array(bias.astype(dtype), f"bias_{index}")]
        sums = "outputs" if last else f"sums_{index}"
        nodes.append(helper.make_node("Gemm", [name, f"weight_{index}", f"bias_{index}"], [sums], transB=1))
        if not last:
            name = f"hidden_{index}"
            nodes.append(helper.make_node("Relu", [sums], [name]))
    ends = [
        helper.make_tensor_value_info(end, element, ["batch", size])
        for end, size in (("inputs", weights[0][0].shape[1]), ("outputs", len(weights[-1][1])))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "minimizer", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fibration",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        write_atomically(Path(path), model.SerializeToString())
    return model


def _weights(minimizer: Any) -> Weights:
    weights = getattr(minimizer, "weights", None)
    # A classifier of scikit-learn has `weights` of another kind.
    if not isinstance(weights, list):
        raise ParameterError(
            f"the minimiser is {type(minimizer).__name__}",
            "a Minimizer, a ShallowMinimizer or a Configuration",
            "pass what `construct`, `shallow` or `configuration` returned, or a classifier's `minimizer_`",
        )
    return weights
