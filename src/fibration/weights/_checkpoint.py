"""Checkpoints of transformers: which tensors are balanced together, by the architecture's names."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from ..balance import attention, gated, query_key_norm, value_output
from ..errors import ParameterError, ShapeError, UnknownNameError
from ._interface import Entries, Found, Interface, Skipped, type_reason

# Decoders whose layers are named alike, with rotations of dimensions j and j + d/2 by one angle.
ARCHITECTURES = ("gemma", "gemma2", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")
_PART = re.compile(
    r"(?P<layer>(?:.*\.)?layers\.\d+)\.(?P<part>(?:self_attn|mlp)\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj|q_norm|k_norm))"
    r"\.(?P<field>weight|bias)"
)


def find_interfaces(entries: Entries, config: Mapping[str, Any]) -> Found:
    """Find the linear interfaces of a decoder: query and key, value and output, and the linear branch of gated units.

    **Arguments:** `entries` of all shards together; `config`: what config.json says.

    **Raises:** `UnknownNameError` for an architecture that is not recognised; `ParameterError` for numbers of heads
    that are missing or make no sense; `ShapeError` for tensors that are not of the shape that config.json says.
    """
    architecture = config.get("model_type")
    if architecture not in ARCHITECTURES:
        raise UnknownNameError(
            f"model_type is {architecture!r} in config.json",
            f"one of {', '.join(ARCHITECTURES)}; or a LoRA adapter, by adapter_config.json",
            "balance its layers by `balance.attention`, `balance.value_output` and `balance.gated`, which ask for no "
            "names",
        )
    layers: dict[str, dict[str, str]] = {}
    for name in entries:
        match = _PART.fullmatch(name)
        if match is not None:
            key = match["part"].rpartition(".")[2] + ("" if match["field"] == "weight" else ".bias")
            layers.setdefault(match["layer"], {})[key] = name
    if not layers:
        raise ParameterError(
            f"none of {len(entries)} tensors is named as a layer's of {architecture!r}",
            "names such as model.layers.0.self_attn.q_proj.weight",
            "check that config.json belongs to these files; packed or quantised weights cannot be balanced",
        )
    heads = _Heads(config)
    interfaces: list[Interface] = []
    skipped: list[Skipped] = []
    for layer, parts in layers.items():
        for make in (_query_key, _value_output, _gated):
            made = make(layer, parts, entries, heads)
            (skipped if isinstance(made, Skipped) else interfaces).append(made)  # pyright: ignore[reportArgumentType]
    note = "an adapter that was trained for the model as it was does not fit its balanced weights"
    return Found(tuple(interfaces), tuple(skipped), (note,))


class _Heads:
    """The numbers of heads and what is done to queries and keys, as config.json says."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        query = _natural(config, "num_attention_heads", None)
        self.keys = _natural(config, "num_key_value_heads", query)
        if query % self.keys:
            raise ParameterError(
                f"{query} query heads and {self.keys} key heads in config.json",
                "as many query heads for each key head",
                "check config.json",
            )
        self.groups = query // self.keys
        hidden = _natural(config, "hidden_size", None)
        self.width = _natural(config, "head_dim", hidden // query)
        rope = config.get("rope_parameters")
        share = config.get("partial_rotary_factor", rope.get("partial_rotary_factor") if isinstance(rope, dict) else 1)
        share = 1.0 if share is None else share
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ParameterError(
                f"partial_rotary_factor is {share!r} in config.json", "a number from 0 to 1", "check config.json"
            )
        self.rotary = int(self.width * share)
        self.rope = "half" if self.rotary else False
        self.clipped = bool(config.get("clip_qkv"))


def _natural(config: Mapping[str, Any], name: str, default: int | None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise ParameterError(
            f"{name} is {value!r} in config.json", "a positive integer", "complete config.json: it says what a head is"
        )
    return value


def _query_key(layer: str, parts: Mapping[str, str], entries: Entries, heads: _Heads) -> Interface | Skipped:
    name = f"{layer}.self_attn.q_proj, k_proj"
    if "q_norm" in parts or "k_norm" in parts:
        return _gains(layer, parts, entries, heads)
    if heads.clipped:
        return Skipped(name, "queries, keys and values are clipped (clip_qkv)")
    rows = heads.keys * heads.width
    shapes = {"q_proj": (heads.groups * rows, None), "k_proj": (rows, None)}
    call = functools.partial(_balance_query_key, heads)
    return _interface(name, "query and key", "q, k", parts, entries, shapes, ("q_proj", "k_proj"), call)


def _gains(layer: str, parts: Mapping[str, str], entries: Entries, heads: _Heads) -> Interface | Skipped:
    """Find the gains of normalised queries and keys: one for all heads, or of all heads side by side."""
    name = f"{layer}.self_attn.q_norm, k_norm"
    tensors = tuple(parts[part] for part in ("q_norm", "k_norm") if part in parts)
    shapes = [entries[tensor].shape for tensor in tensors]
    rows = heads.keys * heads.width
    shared = shapes == [(heads.width,)] * 2
    if (not shared and shapes != [(heads.groups * rows,), (rows,)]) or {"q_norm.bias", "k_norm.bias"} & set(parts):
        return Skipped(
            name, f"normalised queries and keys with gains of shapes {shapes}, or shifts, are not recognised"
        )
    reason = type_reason(entries, tensors)
    if reason:
        return Skipped(name, reason)
    return Interface(name, "q, k gains", "gains", tensors, functools.partial(_balance_gains, heads, shared))


def _value_output(layer: str, parts: Mapping[str, str], entries: Entries, heads: _Heads) -> Interface | Skipped:
    name = f"{layer}.self_attn.v_proj, o_proj"
    if heads.clipped:
        return Skipped(name, "queries, keys and values are clipped (clip_qkv)")
    rows = heads.keys * heads.width
    shapes = {"v_proj": (rows, None), "o_proj": (None, heads.groups * rows)}
    call = functools.partial(_balance_value_output, heads)
    return _interface(name, "value and output", "v, o", parts, entries, shapes, ("v_proj",), call, left=1)


def _gated(layer: str, parts: Mapping[str, str], entries: Entries, heads: _Heads) -> Interface | Skipped:  # noqa: ARG001
    units = entries[parts["up_proj"]].shape[0] if "up_proj" in parts and entries[parts["up_proj"]].shape else None
    shapes = {"up_proj": (units, None), "down_proj": (None, units)}
    name = f"{layer}.mlp.up_proj, down_proj"
    if "gate_proj" not in parts:
        return Skipped(name, "there is no gate_proj beside them: the activation stands between the two")
    return _interface(name, "gated", "up, down", parts, entries, shapes, ("up_proj",), _balance_gated, left=1)


def _interface(
    name: str,
    kind: str,
    module: str,
    parts: Mapping[str, str],
    entries: Entries,
    shapes: Mapping[str, tuple[int | None, int | None]],
    biased: tuple[str, ...],
    call: Any,
    left: int = 0,
) -> Interface | Skipped:
    """Put an interface together, once its tensors are there and of the shapes that config.json says."""
    missing = [part for part in shapes if part not in parts]
    if missing:
        return Skipped(name, f"{', '.join(missing)} is not there as an array of its own")
    present = [part + ".bias" for part in biased if part + ".bias" in parts]
    tensors = tuple(parts[part] for part in (*shapes, *present))
    reason = type_reason(entries, tensors)
    if reason:
        return Skipped(name, reason)
    for part, wanted in shapes.items():
        shape = entries[parts[part]].shape
        fits = len(shape) == 2 and all(w in (None, d) and d > 0 for w, d in zip(wanted, shape, strict=True))
        if not fits:
            raise ShapeError(
                f"{parts[part]!r} has shape {shape}",
                f"{tuple('any' if w is None else w for w in wanted)}, by the heads in config.json",
                "check that config.json belongs to these files",
            )
    for part in present:
        rows = entries[parts[part.removesuffix(".bias")]].shape[0]
        if entries[parts[part]].shape != (rows,):
            raise ShapeError(
                f"{parts[part]!r} has shape {entries[parts[part]].shape}", f"({rows},)", "save the model again"
            )
    return Interface(name, module, kind, tensors, functools.partial(call, tuple(present)), left, 1 - left)


def _balance_query_key(
    heads: _Heads,
    biases: tuple[str, ...],
    arrays: list[Any],
    strength: float,
    gauge: str,  # noqa: ARG001
) -> tuple[list[Any], Any]:
    given = dict(zip(biases, arrays[2:], strict=True))
    new, report = attention(
        arrays[0],
        arrays[1],
        given.get("q_proj.bias"),
        given.get("k_proj.bias"),
        heads=heads.keys,
        groups=heads.groups,
        rope=heads.rope,
        rotary=heads.rotary if heads.rope else None,
        strength=strength,
    )
    return [one for one in new if one is not None], report


def _balance_gains(
    heads: _Heads,
    shared: bool,
    arrays: list[Any],
    strength: float,
    gauge: str,  # noqa: ARG001
) -> tuple[list[Any], Any]:
    counts = {} if shared else {"heads": heads.keys, "groups": heads.groups}
    rotary = heads.rotary if heads.rope else None
    new, report = query_key_norm(*arrays, **counts, rope=heads.rope, rotary=rotary, strength=strength)
    return list(new[:2]), report


def _balance_value_output(
    heads: _Heads,
    biases: tuple[str, ...],
    arrays: list[Any],
    strength: float,
    gauge: str,  # noqa: ARG001
) -> tuple[list[Any], Any]:
    new, report = value_output(
        arrays[0],
        arrays[1],
        arrays[2] if biases else None,
        heads=heads.keys,
        groups=heads.groups,
        strength=strength,
    )
    return [one for one in new if one is not None], report


def _balance_gated(
    biases: tuple[str, ...],
    arrays: list[Any],
    strength: float,
    gauge: str,  # noqa: ARG001
) -> tuple[list[Any], Any]:
    new, report = gated(arrays[0], arrays[1], arrays[2] if biases else None, strength=strength)
    return [one for one in new if one is not None], report
