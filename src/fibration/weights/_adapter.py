"""LoRA adapters: the pairs B A in a file, by the names that the libraries give them."""

import re
from collections.abc import Mapping
from typing import Any

from ..balance import pair
from ..errors import FileFormatError, ParameterError, ShapeError
from ._interface import Entries, Found, Interface, Skipped, type_reason

# The names of A and B in one module: PEFT's (with or without the adapter's own name), and those of the collections of
# diffusion models.
SIDES = (
    re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight"),
    re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.[^.]+)?"),
    re.compile(r"(?P<module>.+)\.lora(?:\.|_)(?P<side>down|up)\.weight"),
)
A_SIDE = ("A", "down")
PREFIXES = ("base_model.model.", "lora_unet_", "lora_te_")


def find_pairs(entries: Entries, config: Mapping[str, Any]) -> Found:
    """Find the pairs of a LoRA adapter: A (r, n) and B (m, r), or a convolution's (r, n, h, w) and (m, r, 1, 1).

    The scale s of s·B A, the weights of DoRA and biases do not matter: all are functions of the product or beside it.

    **Arguments:** `entries` of the file; `config`: what adapter_config.json says, or nothing.

    **Raises:** `ParameterError` for an adapter of another kind; `FileFormatError` if one side of a pair is missing or
    none is there; `ShapeError` for ranks that differ.
    """
    _check_method(config)
    sides: dict[tuple[str, int], dict[str, str]] = {}
    for name in entries:
        for pattern, expression in enumerate(SIDES):
            match = expression.fullmatch(name)
            if match is not None:
                side = "A" if match["side"] in A_SIDE else "B"
                pair = sides.setdefault((match["module"], pattern), {})
                if side in pair:
                    raise FileFormatError(
                        f"{pair[side]!r} and {name!r} are both the {side} of {match['module']!r}",
                        "one adapter in a file",
                        "save each adapter by itself",
                    )
                pair[side] = name
                break
    if not sides:
        raise FileFormatError(
            f"none of {len(entries)} tensors is named as one of a LoRA pair",
            "names that end in lora_A.weight and lora_B.weight, lora_embedding_A and _B, or lora_down and lora_up",
            "check that it is a LoRA adapter; a whole model is recognised by its directory with config.json",
        )
    interfaces: list[Interface] = []
    skipped: list[Skipped] = []
    for (module, _), pair in sides.items():
        if len(pair) < 2:
            there, missing = ("A", "B") if "A" in pair else ("B", "A")
            raise FileFormatError(
                f"{pair[there]!r} has no {missing} beside it",
                "both sides of every pair in one file",
                "save the adapter again",
            )
        names = (pair["B"], pair["A"])
        reason = _reason(entries, module, names, config) or type_reason(entries, names)
        if reason:
            skipped.append(Skipped(short(module), reason))
            continue
        _check_ranks(entries, names)
        interfaces.append(Interface(short(module), module.rpartition(".")[2], "LoRA", names, _balance))
    return Found(tuple(interfaces), tuple(skipped))


def short(module: str) -> str:
    """Leave out of a module's name what all of them begin with."""
    for prefix in PREFIXES:
        module = module.removeprefix(prefix)
    return module


def _check_method(config: Mapping[str, Any]) -> None:
    method = config.get("peft_type", "LORA")
    if method != "LORA":
        raise ParameterError(
            f"an adapter of the kind {method!r}",
            "peft_type LORA: only there the weights enter as a product B A with nothing between",
            "merge it into its model, or leave it as it is",
        )
    if config.get("use_bdlora"):
        raise ParameterError(
            "an adapter of block-diagonal factors (use_bdlora)",
            "factors without a fixed pattern of zeros: balancing would fill it",
            "leave it as it is",
        )


def _reason(entries: Entries, module: str, names: tuple[str, str], config: Mapping[str, Any]) -> str:
    """Say why a pair is not a product of two matrices, if so."""
    targets = config.get("target_parameters")
    own = re.sub(r"(\.base_layer)+$", "", module)
    for target in targets if isinstance(targets, list) else ():
        if own == (parent := str(target).rpartition(".")[0]) or own.endswith("." + parent):
            return f"it adapts the parameter {target}, of several experts at once: its ranks are not one space"
    if any(name.startswith((f"{module}.lora_mid", f"{module}.lora_E")) for name in entries):
        return "there is a third tensor between its two sides"
    B, A = (entries[name].shape for name in names)
    if len(A) == len(B) > 2 and B[1] != A[0] and B[1] > 0 and A[0] % B[1] == 0:
        return "it is a convolution in groups: its ranks are divided among them"
    return ""


def _check_ranks(entries: Entries, names: tuple[str, str]) -> None:
    """Check that B A can be multiplied, as matrices or as a convolution and one of 1 × 1 after it."""
    B, A = (entries[name].shape for name in names)
    fits = len(A) == len(B) >= 2 and B[1] == A[0] and all(d == 1 for d in B[2:]) and 0 not in (*A, *B)
    if not fits:
        raise ShapeError(
            f"{names[0]!r} has shape {B} and {names[1]!r} {A}",
            "B of shape (m, r) and A (r, n) of one rank r, or a convolution's (m, r, 1, 1) and (r, n, h, w)",
            "save the adapter again: its two sides do not belong together",
        )


def _balance(arrays: list[Any], strength: float, gauge: str) -> tuple[list[Any], Any]:
    B, A = arrays
    (new_B, new_A), report = pair(B.reshape(len(B), -1), A.reshape(len(A), -1), gauge=gauge, strength=strength)
    return [new_B.reshape(B.shape), new_A.reshape(A.shape)], report
