"""Weights balanced on disk: the same function, whole outputs or none, untouched inputs."""

import numpy as np
import pytest
import safetensors.numpy
import torch

from adapters import (
    BF16,
    KEYS,
    LAYERS,
    WIDTH,
    checkpoint_tensors,
    digests,
    load_checkpoint,
    logits,
    lora_tensors,
    products,
    write_adapter,
    write_checkpoint,
)
from fibration.weights import balance_weights

EPS = {"F64": 2.0**-53, "F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def adapter(tmp_path, rng):
    return write_adapter(tmp_path / "adapter", lora_tensors(rng))


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_is_balanced_and_everything_else_is_copied(adapter, tmp_path):
    before, old = digests(adapter), products(adapter)
    report = balance_weights(adapter, tmp_path / "out")
    assert digests(adapter) == before
    after = digests(tmp_path / "out")
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == ["adapter_model.safetensors"]
    for name, product in products(tmp_path / "out").items():
        assert np.linalg.norm(product - old[name]) < 1e-14 * np.linalg.norm(old[name])
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, A in tensors.items():
        if "lora_A" in name:
            B = tensors[name.replace("lora_A", "lora_B")]
            assert np.linalg.norm(B.T @ B - A @ A.T) < 1e-13 * np.linalg.norm(A) ** 2
            # Of all factors the lowest squared norm: twice the nuclear norm of the product.
            nuclear = np.linalg.svd(B @ A, compute_uv=False).sum()
            assert np.linalg.norm(A) ** 2 + np.linalg.norm(B) ** 2 == pytest.approx(2 * nuclear, rel=1e-12)
    assert report.kind == "LoRA adapter"
    assert len(report.pairs) == 4
    assert not report.skipped
    for pair in report.pairs:
        assert pair.imbalance[0] > 0.1
        assert pair.imbalance[1] < 1e-14
        assert pair.change < 1e-14
        assert pair.shapes == ((12, 3), (3, 10))
        assert max(pair.norms[0]) / min(pair.norms[0]) > 1e3
        assert pair.norms[1][0] == pytest.approx(pair.norms[1][1], rel=1e-12)
        assert pair.conditions[1][0] == pytest.approx(pair.conditions[1][1], rel=1e-9)


def test_the_header_and_its_metadata_keep_every_byte(adapter, tmp_path):
    balance_weights(adapter, tmp_path / "out")
    old, new = ((p / "adapter_model.safetensors").read_bytes() for p in (adapter, tmp_path / "out"))
    length = 8 + int.from_bytes(old[:8], "little")
    assert old[:length] == new[:length]
    assert len(old) == len(new)
    with safetensors.safe_open(tmp_path / "out" / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32, np.float64], ids=str)
def test_numbers_are_rounded_to_the_type_of_the_file(tmp_path, rng, dtype):
    path = write_adapter(tmp_path / "a", lora_tensors(rng, dtype=dtype, scale=30.0))
    old = products(path)
    report = balance_weights(path, tmp_path / "out")
    new = products(tmp_path / "out")
    for pair, name in zip(report.pairs, sorted(old), strict=True):
        eps = EPS[pair.dtype]
        actual = np.linalg.norm(new[name] - old[name]) / np.linalg.norm(old[name])
        assert actual == pytest.approx(pair.change, rel=1e-2, abs=1e-15)
        assert actual < 2 * eps + 2e-15  # two factors, each rounded once, and the rounding of the computation
        assert pair.imbalance[1] < 2 * eps + 2e-15
    assert {
        info.dtype for info in safetensors.numpy.load_file(tmp_path / "out/adapter_model.safetensors").values()
    } == {np.dtype(dtype)}


def test_strength_multiplies_the_imbalance(adapter, tmp_path):
    balance_weights(adapter, tmp_path / "half", strength=0.5)
    old, new = (safetensors.numpy.load_file(p / "adapter_model.safetensors") for p in (adapter, tmp_path / "half"))
    for name in (name for name in old if "lora_A" in name):
        other = name.replace("lora_A", "lora_B")
        mu = [w[other].T @ w[other] - w[name] @ w[name].T for w in (old, new)]
        assert np.linalg.norm(mu[1] - 0.5 * mu[0]) < 1e-9 * np.linalg.norm(mu[0])


def test_every_kind_of_pair_that_peft_writes(tmp_path, rng):
    tensors = {
        "base_model.model.conv.lora_A.weight": 9 * rng.normal(size=(3, 5, 3, 3)),
        "base_model.model.conv.lora_B.weight": rng.normal(size=(7, 3, 1, 1)),
        "base_model.model.embed.lora_embedding_A": 9 * rng.normal(size=(4, 11)),
        "base_model.model.embed.lora_embedding_B": rng.normal(size=(6, 4)),
        "base_model.model.q.lora_A.default.weight": 9 * rng.normal(size=(2, 8)),
        "base_model.model.q.lora_B.default.weight": rng.normal(size=(8, 2)),
        "base_model.model.q.lora_B.default.bias": rng.normal(size=8),
        "base_model.model.q.lora_magnitude_vector": rng.normal(size=8),
        "base_model.model.lm_head.weight": rng.normal(size=(11, 8)),  # of modules_to_save
        "base_model.model.wide.lora_A.weight": rng.normal(size=(12, 4)),  # a rank beyond both sizes
        "base_model.model.wide.lora_B.weight": 50 * rng.normal(size=(5, 12)),
        "lora_unet_down.lora_down.weight": rng.normal(size=(2, 4)),
        "lora_unet_down.lora_up.weight": 50 * rng.normal(size=(5, 2)),
        "lora_unet_down.alpha": np.array(4.0),
        "base_model.model.groups.lora_A.weight": rng.normal(size=(4, 3, 3, 3)),
        "base_model.model.groups.lora_B.weight": rng.normal(size=(8, 2, 1, 1)),
        "base_model.model.q8.lora_A.weight": rng.integers(-5, 5, (2, 8)).astype(np.int8),
        "base_model.model.q8.lora_B.weight": rng.integers(-5, 5, (8, 2)).astype(np.int8),
        "base_model.model.mixed.lora_A.weight": rng.normal(size=(2, 8)),
        "base_model.model.mixed.lora_B.weight": rng.normal(size=(8, 2)).astype(np.float32),
        "base_model.model.mlp.experts.lora_A.weight": rng.normal(size=(4, 8)),
        "base_model.model.mlp.experts.lora_B.weight": rng.normal(size=(8, 4)),
        "base_model.model.fresh.lora_A.weight": rng.normal(size=(4, 8)),
        "base_model.model.fresh.lora_B.weight": np.zeros((8, 4)),
    }
    path = write_adapter(tmp_path / "a", tensors, use_dora=True, target_parameters=["mlp.experts.gate_up_proj"])
    report = balance_weights(path, tmp_path / "out")
    new = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {pair.name for pair in report.pairs} == {"conv", "embed", "q", "wide", "down"}
    reasons = {one.name: one.reason for one in report.skipped}
    assert reasons.keys() == {"groups", "q8", "mixed", "mlp.experts", "fresh"}
    assert "groups" in reasons["groups"]
    assert "I8" in reasons["q8"]
    assert "F32, F64" in reasons["mixed"]
    assert "experts" in reasons["mlp.experts"]
    assert "before training" in reasons["fresh"]
    changed = {name for name in tensors if not np.array_equal(tensors[name], new[name])}
    assert changed == {
        name for name in tensors if any(f"{p}.lora_" in name for p in ("conv", "embed", "q", "wide", "_down"))
    } - {
        "base_model.model.q.lora_B.default.bias",
        "base_model.model.q.lora_magnitude_vector",
    }
    images = torch.from_numpy(rng.normal(size=(2, 5, 9, 9)))

    def convolved(w):
        A, B = (torch.from_numpy(w[f"base_model.model.conv.lora_{side}.weight"]) for side in "AB")
        return torch.nn.functional.conv2d(torch.nn.functional.conv2d(images, A, stride=2, padding=1), B)

    assert torch.allclose(convolved(tensors), convolved(new), rtol=1e-12, atol=1e-12)
    for A, B in (
        ("base_model.model.embed.lora_embedding_A", "base_model.model.embed.lora_embedding_B"),
        ("base_model.model.wide.lora_A.weight", "base_model.model.wide.lora_B.weight"),
        ("lora_unet_down.lora_down.weight", "lora_unet_down.lora_up.weight"),
    ):
        assert np.allclose(tensors[B] @ tensors[A], new[B] @ new[A], rtol=1e-12, atol=1e-11)


def test_a_single_file_is_recognised_by_its_names(tmp_path, rng):
    path = tmp_path / "one.safetensors"
    safetensors.numpy.save_file(lora_tensors(rng), path)
    before = digests(path)
    report = balance_weights(path, tmp_path / "two.safetensors")
    assert report.kind == "LoRA file"
    assert len(safetensors.numpy.load_file(tmp_path / "two.safetensors")) == 8
    assert digests(path) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_checkpoint_computes_the_same(tmp_path, rng, shards, kind):
    tensors = checkpoint_tensors(rng, biases=kind == "qwen2", gains=kind == "qwen3")
    path = write_checkpoint(tmp_path / "model", tensors, shards, model_type=kind)
    before = digests(path)
    report = balance_weights(path, tmp_path / "out")
    assert digests(path) == before
    assert [pair.kind for pair in report.pairs].count("gains" if kind == "qwen3" else "query and key") == LAYERS
    assert len(report.pairs) == 3 * LAYERS
    assert not report.skipped
    tokens = torch.arange(11)
    old, new = (load_checkpoint(p) for p in (path, tmp_path / "out"))
    was, now = logits(old, tokens), logits(new, tokens)
    assert torch.linalg.norm(was - now) < 1e-12 * torch.linalg.norm(was)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    own = ("q_proj", "k_proj") if kind != "qwen3" else ("q_norm", "k_norm")
    assert {name.split(".")[-2] for name in changed} == {*own, "v_proj", "o_proj", "up_proj", "down_proj"}
    # The moment maps vanish, computed here from the files by their definitions.
    for layer in range(LAYERS):
        w = {name.removeprefix(f"model.layers.{layer}."): new[name].numpy() for name in new}
        V = w["self_attn.v_proj.weight"].reshape(KEYS, WIDTH, -1)
        if kind == "qwen2":
            V = np.concatenate([V, w["self_attn.v_proj.bias"].reshape(KEYS, WIDTH, 1)], -1)
        outputs = w["self_attn.o_proj.weight"].reshape(len(w["self_attn.o_proj.weight"]), KEYS, -1, WIDTH)
        mu = np.einsum("hdm,hem->hde", V, V) - np.einsum("nhgd,nhge->hde", outputs, outputs)
        assert np.linalg.norm(mu) < 1e-13 * (np.linalg.norm(V) ** 2 + np.linalg.norm(outputs) ** 2)
        up, down = w["mlp.up_proj.weight"], w["mlp.down_proj.weight"]
        assert np.allclose((up**2).sum(1), (down**2).sum(0), rtol=1e-13)


def test_a_checkpoint_in_bfloat16_keeps_its_function_to_rounding(tmp_path, rng):
    path = write_checkpoint(tmp_path / "model", checkpoint_tensors(rng, BF16), 2)
    report = balance_weights(path, tmp_path / "out")
    assert 0 < report.worst_change < 2 * EPS["BF16"]
    old, new = ({k: v.double() for k, v in load_checkpoint(p).items()} for p in (path, tmp_path / "out"))
    was, now = (logits(w, torch.arange(11)) for w in (old, new))
    assert torch.linalg.norm(was - now) < 5 * EPS["BF16"] * torch.linalg.norm(was)


def test_what_stands_between_is_skipped(tmp_path, rng):
    tensors = checkpoint_tensors(rng)
    del tensors["model.layers.0.mlp.gate_proj.weight"], tensors["model.layers.1.self_attn.o_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"][3] = 0  # a dead unit
    path = write_checkpoint(tmp_path / "model", tensors)
    report = balance_weights(path, tmp_path / "out")
    assert {one.name.split("layers.")[1]: one.reason for one in report.skipped} == {
        "0.mlp.up_proj, down_proj": "there is no gate_proj beside them: the activation stands between the two",
        "1.self_attn.v_proj, o_proj": "o_proj is not there as an array of its own",
    }
    clipped = write_checkpoint(tmp_path / "clipped", checkpoint_tensors(rng), clip_qkv=8.0)
    assert len(balance_weights(clipped, tmp_path / "out2").pairs) == LAYERS
