"""Weights that cannot be balanced: said by name, nothing written, nothing touched."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from adapters import (
    checkpoint_tensors,
    digests,
    lora_tensors,
    write_adapter,
    write_checkpoint,
)
from fibration.errors import (
    FileFormatError,
    MissingFileError,
    NonFiniteDataError,
    ParameterError,
    PickledDataError,
    ShapeError,
    UnknownNameError,
)
from fibration.weights import balance_weights


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def adapter(tmp_path, rng):
    return write_adapter(tmp_path / "adapter", lora_tensors(rng))


# --- refusals: nothing is written, nothing is touched -----------------------------------------------------------------


def _config(**changes):
    return lambda path: (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | changes))


def _tensors(change):
    def apply(path):
        file = path / "adapter_model.safetensors"
        tensors = {name: array.copy() for name, array in safetensors.numpy.load_file(file).items()}
        change(tensors, sorted(tensors))
        safetensors.numpy.save_file(tensors, file)

    return apply


def _set(tensors, name, value):
    tensors[name] = value


REFUSED = {
    "B = 0 everywhere": (
        _tensors(lambda t, names: [t[n].fill(0) for n in names if "lora_B" in n]),
        ParameterError,
        "before training",
    ),
    "mismatched ranks": (_tensors(lambda t, n: _set(t, n[1], np.ones((12, 4)))), ShapeError, "one rank"),
    "NaN": (_tensors(lambda t, n: t[n[-1]].__setitem__((0, 0), np.nan)), NonFiniteDataError, "1 numbers"),
    "one side missing": (_tensors(lambda t, n: t.pop(n[0])), FileFormatError, "no A"),
    "no LoRA names": (
        _tensors(lambda t, n: [_set(t, str(i), t.pop(k)) for i, k in enumerate(n)]),
        FileFormatError,
        "named",
    ),
    "another method": (_config(peft_type="ADALORA"), ParameterError, "ADALORA"),
    "block-diagonal": (_config(use_bdlora=True), ParameterError, "block-diagonal"),
    "config no table": (lambda p: (p / "adapter_config.json").write_text("[]"), FileFormatError, "table"),
    "config broken": (lambda p: (p / "adapter_config.json").write_text("{"), FileFormatError, "JSON"),
    "no weights": (lambda p: (p / "adapter_model.safetensors").unlink(), MissingFileError, "adapter_model"),
    "a pickle": (
        lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
        PickledDataError,
        "never loaded",
    ),
    "no configuration": (lambda p: (p / "adapter_config.json").unlink(), MissingFileError, "config.json"),
    "a link to a directory": (lambda p: (p / "link").symlink_to(p), FileFormatError, "link"),
    "a link to nothing": (lambda p: (p / "link").symlink_to(p / "nothing"), FileFormatError, "link"),
    "a pipe": (lambda p: os.mkfifo(p / "pipe"), FileFormatError, "neither"),
    "cut short": (
        lambda p: os.truncate(p / "adapter_model.safetensors", (p / "adapter_model.safetensors").stat().st_size - 1),
        FileFormatError,
        "bytes",
    ),
}


BESIDE = ("a link to a directory", "a link to nothing", "a pipe")  # what only a copy of the directory looks at


@pytest.mark.parametrize(
    ("case", "in_place"),
    [(case, place) for case in REFUSED for place in (False, True) if not (place and case in BESIDE)],
)
def test_what_cannot_be_balanced_is_refused_without_a_trace(adapter, tmp_path, case, in_place):
    spoil, error, words = REFUSED[case]
    spoil(adapter)
    listed = sorted(str(one) for one in tmp_path.rglob("*"))
    before = {} if case == "a pipe" else digests(adapter)
    with pytest.raises(error, match=words):
        balance_weights(adapter, None if in_place else tmp_path / "out", in_place=in_place)
    assert sorted(str(one) for one in tmp_path.rglob("*")) == listed
    assert case == "a pipe" or digests(adapter) == before


CHECKPOINT_REFUSED = {
    "unknown architecture": ({"model_type": "mamba"}, UnknownNameError, "llama"),
    "no architecture": ({"model_type": None}, UnknownNameError, "None"),
    "no heads": ({"num_attention_heads": None}, ParameterError, "num_attention_heads"),
    "heads that do not divide": ({"num_key_value_heads": 4}, ParameterError, "4 key heads"),
    "another width": ({"head_dim": 4}, ShapeError, "head"),
    "a strange share": ({"partial_rotary_factor": 2}, ParameterError, "partial_rotary_factor"),
    "a count that is a text": ({"hidden_size": "many"}, ParameterError, "hidden_size"),
}


@pytest.mark.parametrize("case", CHECKPOINT_REFUSED)
def test_configurations_that_do_not_fit_are_refused(tmp_path, rng, case):
    changes, error, words = CHECKPOINT_REFUSED[case]
    path = write_checkpoint(tmp_path / "model", checkpoint_tensors(rng), **changes)
    with pytest.raises(error, match=words):
        balance_weights(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update({next(iter(m)): "../elsewhere.safetensors"}), "names the file"),
        (lambda m: m.update({"missing": "model-00001-of-00002.safetensors"}), "not where"),
        (lambda m: m.clear(), "weight_map"),
        (lambda m: m.update({"x": 3}), "weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, rng, change, words):
    path = write_checkpoint(tmp_path / "model", checkpoint_tensors(rng), 2)
    index = path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    change(said["weight_map"])
    index.write_text(json.dumps(said))
    with pytest.raises(FileFormatError, match=words):
        balance_weights(path, tmp_path / "out")


def test_outputs_that_exist_or_overlap_are_refused(adapter, tmp_path):
    before = digests(adapter)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (adapter, adapter / "out", tmp_path, tmp_path / "full", tmp_path / "file", tmp_path / "link"):
        with pytest.raises(ParameterError):
            balance_weights(adapter, out)
    with pytest.raises(ParameterError, match="in_place"):
        balance_weights(adapter)
    with pytest.raises(ParameterError, match="in_place"):
        balance_weights(adapter, tmp_path / "out", in_place=True)
    with pytest.raises(ParameterError, match="strength"):
        balance_weights(adapter, tmp_path / "out", strength=1.5)
    with pytest.raises(UnknownNameError, match="gauge"):
        balance_weights(adapter, tmp_path / "out", gauge="polar")
    with pytest.raises(MissingFileError):
        balance_weights(tmp_path / "absent", tmp_path / "out")
    assert digests(adapter) == before
    assert (tmp_path / "full" / "precious").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert balance_weights(adapter, tmp_path / "empty").pairs
    assert digests(tmp_path / "empty").keys() == before.keys()


def test_links_to_files_are_followed_as_in_a_cache_of_downloads(adapter, tmp_path):
    blob = tmp_path / "blobs"
    blob.mkdir()
    (adapter / "adapter_model.safetensors").rename(blob / "abc")
    (adapter / "adapter_model.safetensors").symlink_to(blob / "abc")
    before = digests(blob)
    balance_weights(adapter, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").is_symlink()
    balance_weights(adapter, in_place=True)
    assert not (adapter / "adapter_model.safetensors").is_symlink()
    assert digests(blob) == before
