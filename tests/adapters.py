"""Adapters and checkpoints as other programs write them, small, and a decoder in torch that reads them."""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
import torch
from safetensors.torch import load_file

HIDDEN, HEADS, KEYS, WIDTH, UNITS, LAYERS, VOCABULARY = 24, 6, 2, 8, 40, 2, 17
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "head_dim": WIDTH,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "rope_theta": 10000.0,
}
BF16 = np.dtype(ml_dtypes.bfloat16)


def lora_tensors(rng, modules=4, m=12, n=10, r=3, dtype=np.float64, scale=100.0):
    """Pairs whose two sides differ by `scale`, as PEFT names them."""
    tensors = {}
    for number in range(modules):
        name = f"base_model.model.model.layers.{number}.self_attn.{'qkvo'[number % 4]}_proj"
        tensors[f"{name}.lora_A.weight"] = (scale * rng.normal(size=(r, n))).astype(dtype)
        tensors[f"{name}.lora_B.weight"] = (rng.normal(size=(m, r)) / scale).astype(dtype)
    return tensors


def write_adapter(folder, tensors, **config):
    """A PEFT adapter's directory, with what lies beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 16, "use_rslora": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    (folder / "README.md").write_text("A card.")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    return folder


def products(folder):
    """The products of an adapter's pairs, by name."""
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    return {
        name[:-14]: tensors[name[:-14] + ".lora_B.weight"].astype(float) @ array.astype(float)
        for name, array in tensors.items()
        if name.endswith(".lora_A.weight")
    }


def checkpoint_tensors(rng, dtype=np.float64, biases=False, gains=False):
    """A small Llama with grouped queries; with `biases` those of Qwen2, with `gains` those of Qwen3."""
    sizes = {
        "self_attn.q_proj": (HEADS * WIDTH, HIDDEN),
        "self_attn.k_proj": (KEYS * WIDTH, HIDDEN),
        "self_attn.v_proj": (KEYS * WIDTH, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
        "mlp.gate_proj": (UNITS, HIDDEN),
        "mlp.up_proj": (UNITS, HIDDEN),
        "mlp.down_proj": (HIDDEN, UNITS),
    }
    tensors = {
        "model.embed_tokens.weight": rng.normal(size=(VOCABULARY, HIDDEN)),
        "model.norm.weight": 1 + 0.1 * rng.normal(size=HIDDEN),
        "lm_head.weight": rng.normal(size=(VOCABULARY, HIDDEN)),
    }
    for layer in range(LAYERS):
        for name, shape in sizes.items():
            scale = np.exp(rng.normal()) / np.sqrt(shape[1])
            tensors[f"model.layers.{layer}.{name}.weight"] = scale * rng.normal(size=shape)
            if biases and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                tensors[f"model.layers.{layer}.{name}.bias"] = rng.normal(size=shape[0])
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = 1 + 0.1 * rng.normal(size=HIDDEN)
        for name in ("q_norm", "k_norm") if gains else ():
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = np.exp(rng.normal(size=WIDTH))
    return {name: array.astype(dtype) for name, array in tensors.items()}


def write_checkpoint(folder, tensors, shards=1, **config):
    """A Hugging Face directory; tensors go to shards in turn, so that most interfaces lie in several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    where = {name: files[number % shards] for number, name in enumerate(sorted(tensors))}
    for file in files:
        own = {name: array for name, array in tensors.items() if where[name] == file}
        safetensors.numpy.save_file(own, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def load_checkpoint(folder):
    """All tensors of a checkpoint, read by the library of the format into torch."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def logits(tensors, tokens):
    """What the decoder computes: RMS norms, grouped queries, rotary embeddings in halves, SwiGLU."""

    def norm(x, gain):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain

    def turned(x, angles):
        first, second = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
        cos, sin = torch.cos(angles), torch.sin(angles)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    x = tensors["model.embed_tokens.weight"][tokens]
    rates = 10000.0 ** (-torch.arange(0, WIDTH, 2, dtype=x.dtype) / WIDTH)
    angles = torch.arange(len(tokens), dtype=x.dtype)[:, None] * rates
    for layer in range(LAYERS):
        own = f"model.layers.{layer}."

        def linear(name, h, own=own):
            y = h @ tensors[f"{own}{name}.weight"].T
            return y + tensors[f"{own}{name}.bias"] if f"{own}{name}.bias" in tensors else y

        h = norm(x, tensors[own + "input_layernorm.weight"])
        q, k, v = (
            linear(f"self_attn.{part}_proj", h).reshape(len(tokens), -1, WIDTH).transpose(0, 1) for part in "qkv"
        )
        if own + "self_attn.q_norm.weight" in tensors:
            q, k = norm(q, tensors[own + "self_attn.q_norm.weight"]), norm(k, tensors[own + "self_attn.k_norm.weight"])
        k, v = (part.repeat_interleave(HEADS // KEYS, 0) for part in (k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            turned(q, angles), turned(k, angles), v, is_causal=True
        )
        x = x + linear("self_attn.o_proj", mixed.transpose(0, 1).reshape(len(tokens), -1))
        h = norm(x, tensors[own + "post_attention_layernorm.weight"])
        x = x + linear("mlp.down_proj", torch.nn.functional.silu(linear("mlp.gate_proj", h)) * linear("mlp.up_proj", h))
    return norm(x, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T


def digests(folder):
    """What every file holds, to see that nothing was touched."""
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(one for one in folder.rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}
