"""Adapters: models of other frameworks as `(apply, params)` with `apply(params, x)` for ONE sample x."""

import contextlib
import copy
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .errors import ApplyError, MissingExtraError, ParameterError, PrecisionWarning
from .trees import PyTree

_torchax_lock = threading.Lock()


class EquinoxApply(eqx.Module):
    """The function of an Equinox model's floating-point arrays and one sample; made by `from_equinox`."""

    # Not static: it may hold integer arrays and random keys.
    rest: PyTree

    def __call__(self, params: Any, x: ArrayLike) -> Any:
        """Call the model with these parameters on one sample."""
        return eqx.combine(params, self.rest)(x)


def from_equinox(model: Any) -> tuple[EquinoxApply, Any]:
    """Split an Equinox model, or any callable pytree, of one sample into its function and its parameters.

    **Arguments:** `model`: maps one sample to (Q,). Put dropout out of action with `eqx.nn.inference_mode` first.

    **Returns:** `(apply, params)`: `params` is `model` with its floating-point arrays only, `None` elsewhere; `apply`
    holds everything else, and apply(params, x) = model(x).

    **Raises:** `ApplyError` if `model` cannot be called.

    **Source:** `equinox.partition` and `equinox.combine` (Kidger and Garcia, arXiv 2111.00254).

    ```python
    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from fibration._adapters import from_equinox
    >>> model = eqx.nn.MLP(2, 3, 8, 1, key=jax.random.key(0))
    >>> apply, params = from_equinox(model)
    >>> bool(jnp.all(apply(params, jnp.ones(2)) == model(jnp.ones(2))))
    True

    ```
    """
    if not callable(model):
        raise ApplyError(
            f"the model is {type(model).__name__}, which cannot be called",
            "a model of one sample with `__call__(x)`",
            "pass an eqx.Module that has `__call__`",
        )
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    return EquinoxApply(rest), params


class FlaxApply(eqx.Module):
    """The function of a Flax linen module's parameters and one sample; made by `from_flax`."""

    # A bound method, which hashes by the module's identity; the module itself hashes by its fields, which may be lists.
    forward: Callable[..., Any] = eqx.field(static=True)
    constants: dict[str, Any]

    def __call__(self, params: Any, x: ArrayLike) -> Any:
        """Apply the module with these parameters to a batch of one sample."""
        return self.forward({**self.constants, "params": params}, jnp.asarray(x)[None])[0]


def from_flax(module: Any, variables: Any) -> tuple[FlaxApply, Any]:
    """Split a Flax linen module and its variables into a function of one sample and its parameters.

    **Arguments:** `module`: a `flax.linen.Module` that maps batches (N, …) to (N, Q); `variables`: what `module.init`
    returned.

    **Returns:** `(apply, params)`: `params` is `variables["params"]`; `apply` holds the other collections, such as
    batch statistics, constant. apply(params, x) = module.apply({…, "params": params}, x[None])[0].

    **Raises:** `MissingExtraError` without Flax; `ParameterError` if `module` is not a linen module, such as one of
    `flax.nnx` (the message shows how to split it), or if `variables` has no "params".

    **Source:** Flax, `flax.linen.Module.apply`.

    ```python
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from fibration._adapters import from_flax
    >>> module, x = nn.Dense(3), jnp.ones(2)
    >>> apply, params = from_flax(module, module.init(jax.random.key(0), x[None]))
    >>> apply(params, x).shape
    (3,)

    ```
    """
    linen = _import("flax.linen", "flax")
    if not isinstance(module, linen.Module):
        raise ParameterError(
            f"the module is {type(module).__module__}.{type(module).__name__}",
            "an instance of flax.linen.Module",
            "split a flax.nnx model by hand: `graph, params, rest = nnx.split(model, nnx.Param, ...)`, then pass "
            "`lambda params, x: nnx.merge(graph, params, rest)(x[None])[0]` to Problem",
        )
    if not isinstance(variables, Mapping) or "params" not in variables:
        held = ", ".join(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise ParameterError(
            f"variables hold {held or 'nothing'}",
            "a dictionary with the collection 'params'",
            "pass what `module.init(key, inputs)` returned, or wrap bare parameters: {'params': params}",
        )
    constants = {name: collection for name, collection in variables.items() if name != "params"}
    return FlaxApply(module.apply, constants), variables["params"]


class TorchApply(eqx.Module):
    """The function of a PyTorch module's parameters and one sample; made by `from_torch`."""

    forward: Callable[..., Any] = eqx.field(static=True)
    constants: dict[str, Array]

    def __call__(self, params: dict[str, Array], x: ArrayLike) -> Any:
        """Apply the module with these parameters to a batch of one sample."""
        return self.forward({**self.constants, **params}, jnp.asarray(x)[None])[0]


def from_torch(module: Any) -> tuple[TorchApply, dict[str, Array]]:
    """Turn a `torch.nn.Module` into a JAX function of one sample, through torchax, and its parameters.

    **Arguments:** `module`: maps batches (N, …) to (N, Q). A copy of it is used, in evaluation mode: the module does
    not change, and later changes of it have no effect.

    **Returns:** `(apply, params)`: `params` is a dictionary of arrays by the module's own names, in the module's
    floating-point types; `apply` holds buffers, and parameters with `requires_grad=False`, constant. `apply` can be
    differentiated, compiled and mapped like any JAX function: PyTorch runs only while JAX traces it.

    **Raises:** `MissingExtraError` without torch and torchax, or if the two do not fit together; `ParameterError` if
    `module` is not a `torch.nn.Module`, or has transposed convolutions in groups, which torchax gets wrong. Warns with
    `PrecisionWarning` if JAX, with x64 off, makes float64 parameters float32.

    For the rest of the process, importing torchax gives PyTorch a device named "jax" and its table for `torch.export` a
    few decompositions; torchax's other settings are put back.

    **Source:** torchax (github.com/google/torchax) and `torch.func.functional_call`.

    ```python
    apply, params = from_torch(torch.nn.Linear(2, 3))
    apply(params, jnp.ones(2))  # (3,)
    ```
    """
    torch = _import("torch", "torch")
    if not isinstance(module, torch.nn.Module):
        raise ParameterError(
            f"the module is {type(module).__name__}", "an instance of torch.nn.Module", "pass the module object itself"
        )
    _refuse_wrong(torch, module)
    environment = _import_torchax(torch).default_env()
    frozen_copy = copy.deepcopy(module).eval()
    for part in frozen_copy.modules():
        # Tensors that are plain attributes become buffers, so that the call below can replace them as well.
        for name in [name for name, value in vars(part).items() if isinstance(value, torch.Tensor)]:
            part.register_buffer(name, part.__dict__.pop(name))
    trainable = {name: p for name, p in frozen_copy.named_parameters() if p.requires_grad}
    fixed = {name: p for name, p in frozen_copy.named_parameters() if not p.requires_grad}
    params, constants = environment.t2j_copy((trainable, {**fixed, **dict(frozen_copy.named_buffers())}))
    if jnp.result_type(float) != jnp.float64 and any(p.dtype == torch.float64 for p in trainable.values()):
        warnings.warn(
            "the module's float64 parameters become float32, since x64 is off: "
            'enable it with `jax.config.update("jax_enable_x64", True)` before any computation',
            PrecisionWarning,
            stacklevel=2,
        )

    def forward(states: dict[str, Array], batch: Array) -> Any:
        tensors, tensor = environment.j2t_iso((states, batch))
        # The device, because constructors such as torch.ones in the module's own code must make JAX arrays too.
        with _slow_attention(torch), environment, torch.device("jax"):
            return environment.t2j_iso(torch.func.functional_call(frozen_copy, tensors, (tensor,)))

    return TorchApply(forward, constants), params


def _refuse_wrong(torch: Any, module: Any) -> None:
    """Refuse layers that torchax 0.0.13 computes wrongly, without an error."""
    kinds = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
    for name, part in module.named_modules():
        if isinstance(part, kinds) and part.groups > 1:
            raise ParameterError(
                f"{name or 'the module'} is a {type(part).__name__} in {part.groups} groups, which torchax gets wrong",
                "transposed convolutions in one group",
                "write it as one transposed convolution for each group",
            )


def _import(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name} cannot be imported: {error}", f"the package {name}", f"pip install 'fibration[{extra}]'"
        ) from error


def _import_torchax(torch: Any) -> Any:
    """Import torchax and build its environment, leaving global state as it was."""
    telemetry = "ENABLE_RUNTIME_UPTIME_TELEMETRY"
    with _torchax_lock, _slow_attention(torch), _named_tensor_overloads(torch):
        had_telemetry = telemetry in os.environ
        if "torchax" not in sys.modules:
            # An import that failed before leaves its parts behind, and with them the next one would fail as well.
            for part in [name for name in sys.modules if name.startswith("torchax.")]:
                del sys.modules[part]
        try:
            torchax = _import("torchax", "torch")
            torchax.default_env()
        except MissingExtraError:
            raise
        except Exception as error:  # it reads PyTorch's private tables, so that a new release can break it anywhere
            raise MissingExtraError(
                f"torchax does not work with torch {torch.__version__}: {type(error).__name__}: {error}",
                "releases of torch and torchax that fit together",
                "pip install --upgrade 'fibration[torch]', or an older torch",
            ) from error
        finally:
            if not had_telemetry:
                os.environ.pop(telemetry, None)
    return torchax


@contextlib.contextmanager
def _slow_attention(torch: Any) -> Generator[None]:
    """Switch off PyTorch's fused attention, which torchax cannot run, and put it back; importing torchax does not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _named_tensor_overloads(torch: Any) -> Generator[None]:
    """Stand in for the overloads for named tensors that torchax 0.0.13 lists on import and PyTorch 2.13 does not have.

    They are only keys of torchax's tables, so that any hashable object will do.
    """
    packet = type(torch.ops.aten.prod)
    look_up = packet.__getattr__

    def stand_in(self: Any, key: str) -> Any:
        try:
            return look_up(self, key)
        except AttributeError:
            if key.startswith("_") or "name" not in key.lower():
                raise
            return object()

    packet.__getattr__ = stand_in
    try:
        yield
    finally:
        packet.__getattr__ = look_up
