"""Networks of several frameworks, read as parameters and their rescaling, and written back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._adapters import from_equinox, from_flax, from_torch
from ...errors import ParameterError, ShapeError
from ...trees import PyTree
from ._action import Rescaling, from_wiring, rescaling
from ._values import Signal, Wiring, invariant

_SAMPLE = "pass one sample as `structure`: network(model, x)"


@dataclass(frozen=True, eq=False)
class Model:
    """A network's parameters, its rescaling, how to put new parameters in its place, and its function, if known."""

    params: PyTree
    action: Rescaling
    write: Callable[[PyTree], Any]
    apply: Callable[[PyTree, Any], Any] | None
    sample: Any


def read_model(model: Any, structure: Any) -> Model:
    """Read a model of any kind that `network` takes."""
    names = isinstance(structure, Sequence) and all(isinstance(name, str) for name in structure)
    if isinstance(structure, Rescaling):
        return Model(model, structure, lambda params: params, None, None)
    if names and hasattr(model, "state_dict"):
        return _module_in_order(model, structure)
    if names:
        return _in_order(model, structure)
    apply, params, write = _function(model)
    sample = _sample(apply, structure)
    return Model(params, rescaling(apply, params, sample), write, apply, sample)


def _function(model: Any) -> tuple[Callable[..., Any], PyTree, Callable[[PyTree], Any]]:
    if isinstance(model, tuple) and len(model) == 2:
        first, second = model
        if hasattr(first, "init_with_output"):  # a linen module, which calls itself on variables too
            apply, params = from_flax(first, second)
            return apply, params, lambda new: (first, {**second, "params": new})
        if callable(first):
            return first, second, lambda new: (first, new)
    if hasattr(model, "named_parameters"):
        apply, params = from_torch(model)
        return apply, params, lambda new: _with_state(model, new)
    if callable(model):
        import equinox as eqx

        apply, params = from_equinox(model)
        return apply, params, lambda new: eqx.combine(new, model)
    raise ParameterError(
        f"a model of type {type(model).__name__}",
        "a pair (apply, params), an Equinox module, a pair (linen module, variables), a torch module, or a state_dict "
        "with the order of its layers",
        'pass network(state_dict, structure=["0", "2", …]) for bare parameters',
    )


def _sample(apply: Any, structure: Any) -> Any:
    if structure is not None:
        numbers = isinstance(structure, Sequence) and all(isinstance(entry, int | float) for entry in structure)
        return jnp.asarray(structure) if numbers else jax.tree.map(jnp.asarray, structure)
    shape = getattr(apply, "input_shape", None) or getattr(apply, "sizes", (None,))[:1]
    if shape == (None,):
        raise ParameterError(f"a network ({type(apply).__name__}) whose input is not known", "its shape", _SAMPLE)
    return jnp.zeros(shape)


def _with_state(module: Any, params: Mapping[str, Any]) -> Any:
    """Copy a torch module, with other parameters."""
    import copy

    import torch

    new = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if name in params:
                array = _array(params[name])
                wide = array.astype(np.float32 if array.dtype.kind == "V" else array.dtype)  # copied, and bfloat16
                parameter.copy_(torch.as_tensor(wide))
    return new


# What may stand between layers that are balanced by their names, since it lets positive factors pass.
_PASSING = {
    *(
        "Sequential",
        "ReLU",
        "LeakyReLU",
        "PReLU",
        "Identity",
        "Flatten",
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
    ),
    *(f"{kind}Pool{n}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in (1, 2, 3)),
    *("Linear", "Conv1d", "Conv2d", "Conv3d", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d"),
}


def _module_in_order(module: Any, order: Sequence[str]) -> Model:
    strange = sorted({type(part).__name__ for part in module.modules()} - _PASSING)
    if strange:
        raise ParameterError(
            f"a module with {', '.join(strange)}, and the names of its layers",
            "dense and convolutional layers in a row, and between them nothing that is not homogeneous",
            "pass one sample instead of names: then it is followed operation by operation",
        )
    read = _in_order(dict(module.named_parameters()), order)
    return Model(read.params, read.action, lambda new: _with_state(module, read.write(new)), None, None)


def _in_order(state: Any, order: Sequence[str]) -> Model:
    """Wire a state_dict's dense and convolutional layers one after the other, as torch lays them out.

    Weights are (out, in, …); between a convolution and a dense layer the image is flattened, channels first.
    """
    if not isinstance(state, Mapping):
        raise ParameterError(f"parameters of type {type(state).__name__}", "a mapping of names", _SAMPLE)
    keys = [key for name in order for key in (f"{name}.weight", f"{name}.bias")]
    if missing := [key for key in keys[::2] if key not in state] or not order:
        raise ParameterError(
            f"layers {missing}, which are not among {', '.join(list(state)[:12])}",
            "the names of the layers, inputs first, without `.weight`",
            "name dense and convolutional layers; what is between them has no parameters",
        )
    others = [key for key in state if key not in keys and (np.ndim(_array(state[key])) > 1 or _is_norm(key, state))]
    if others:
        raise ParameterError(
            f"{', '.join(others[:4])}, which belong to no layer that is named",
            "the names of all layers: what is left out is taken for homogeneous, without weights",
            "name them too; pass a part of the state dict alone; or pass the model and one sample, which follows "
            "normalisations and everything else",
        )
    params = {key: _array(state[key]) for key in keys if key in state}
    wiring = Wiring(sum(array.size for array in params.values()))
    places, start = {}, 0
    for key in sorted(params):  # as pytrees lay out dictionaries
        places[key] = np.arange(start, start + params[key].size, dtype=np.int32).reshape(params[key].shape)
        start += params[key].size
    labels = np.zeros(_fan_in(params[keys[0]], order[0]), np.int32)
    for name in order:
        weight = places[f"{name}.weight"]
        labels = _spread(labels, weight.shape, name)
        new = wiring.labels.new(weight.shape[0])
        across = (-1, *(1,) * (weight.ndim - 1))
        group = np.arange(weight.shape[0]) // (weight.shape[0] * weight.shape[1] // len(labels))
        met = labels[group[:, None] * weight.shape[1] + np.arange(weight.shape[1])]
        loss = met.reshape(*met.shape, *(1,) * (weight.ndim - 2))
        degree = np.ones((), np.float32)
        wiring.connect(weight, Signal(new.reshape(across), degree), Signal(loss, degree), "")
        if f"{name}.bias" in places:
            wiring.connect(places[f"{name}.bias"], Signal(new, degree), invariant(()), "")
        labels = new
    wiring.labels.ground(labels, "")
    return Model(
        params,
        from_wiring(wiring, params),
        lambda new: {key: _as_given(value, new[key]) if key in new else value for key, value in state.items()},
        None,
        None,
    )


def _is_norm(key: str, state: Mapping[str, Any]) -> bool:
    """Tell the vectors of normalisation layers, which have a shift or statistics, from the slopes of PReLU."""
    layer = key.rpartition(".")[0]
    return any(f"{layer}.{name}" in state for name in ("bias", "running_mean"))


def _fan_in(weight: np.ndarray, name: str) -> int:
    if weight.ndim < 2:
        raise ShapeError(
            f"{name}.weight of shape {weight.shape}",
            "(out, in, …)",
            "name dense and convolutional layers; with normalisation layers pass the model and a sample",
        )
    return weight.shape[1]


def _spread(labels: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Give every input of a layer the label of the unit it comes from: a channel's places follow one another."""
    n_in = _fan_in(np.empty(shape, bool), name)
    if len(shape) == 2 and n_in % len(labels) == 0:
        return np.repeat(labels, n_in // len(labels))
    if len(shape) > 2 and len(labels) % n_in == 0 and shape[0] % (len(labels) // n_in) == 0:  # groups of channels
        return labels
    raise ShapeError(
        f"{name}.weight of shape {shape} after a layer with {len(labels)} outputs",
        "as many inputs, times the places of a channel for a dense layer, or divided by groups for a convolution",
        "name all layers, in their order",
    )


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _as_given(old: Any, new: Any) -> Any:
    if hasattr(old, "detach"):
        import torch

        return torch.as_tensor(np.array(new, copy=True)).to(dtype=old.dtype, device=old.device)
    return jnp.asarray(new) if isinstance(old, jnp.ndarray) else new
