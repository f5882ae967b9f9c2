"""The command `fibration balance`, and the page it writes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import typer
from typer.testing import CliRunner

from adapters import BF16, checkpoint_tensors, digests, lora_tensors, write_adapter, write_checkpoint
from fibration import plots, report, weights
from fibration.cli._balance import balance
from fibration.errors import MissingFileError, OutputDirectoryError, ParameterError

COMMAND = Path(sys.executable).with_name("fibration")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def adapter(tmp_path, rng):
    tensors = lora_tensors(rng, modules=5, dtype=BF16)
    tensors["base_model.model.model.layers.4.self_attn.q_proj.lora_B.weight"][:] = 0
    return write_adapter(tmp_path / "adapter", tensors)


def invoke(*arguments):
    # By itself: the options that stand before a command are of another shape than their annotations say.
    app = typer.Typer()
    app.command()(balance)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_end_to_end_as_a_user_runs_it(adapter, tmp_path):
    before, page = digests(adapter), tmp_path / "pages" / "page.html"
    command = [COMMAND, "balance", adapter, "--out", tmp_path / "out", "--report", page]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(adapter) == before
    assert safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    for number in range(4):
        assert f"model.layers.{number}.self_attn" in done.stdout
    assert "4 of 5 pairs of the LoRA adapter were balanced" in done.stdout
    assert "B is zero, as in an adapter before training" in done.stdout
    assert "rounding, of which the unit is 0.00391 for BF16" in done.stdout
    assert str(tmp_path / "out") in done.stdout
    html = page.read_text("utf-8")
    assert "Change of the function" in html
    assert "B is zero" in html
    addresses = set(re.findall(r"https?://[^\s\"'<>)]*", html))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)


def test_an_error_is_one_message_and_leaves_nothing(adapter, tmp_path):
    command = [COMMAND, "balance", adapter, "--out", adapter / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ParameterError: ")
    assert "Traceback" not in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), ParameterError),
        (("--out", "OUT", "--in-place"), ParameterError),
        (("--out", "OUT", "--strength", "2"), ParameterError),
        (("--out", "FILE"), ParameterError),
        (("--out", "OUT", "--report", "FILE/page.html"), OutputDirectoryError),
    ],
)
def test_what_is_refused(adapter, tmp_path, arguments, error):
    (tmp_path / "FILE").write_text("mine")
    done = invoke(adapter, *(a if a.startswith("--") or a == "2" else tmp_path / a for a in arguments))
    assert isinstance(done.exception, error)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["FILE", "adapter"]
    assert isinstance(invoke(tmp_path / "absent", "--out", tmp_path / "out").exception, MissingFileError)
    assert invoke(adapter, "--out", tmp_path / "out", "--gauge", "polar").exit_code == 2


@pytest.mark.parametrize(
    "page",
    ["adapter/adapter_model.safetensors", "out/adapter_model.safetensors", "adapter/page.html", "out", "page.txt"],
)
def test_a_page_never_takes_the_place_of_weights(adapter, tmp_path, page):
    (adapter / "card.html").write_text("of the adapter")
    before = digests(adapter)
    for one in (page, "out/card.html"):
        done = invoke(adapter, "--out", tmp_path / "out", "--report", tmp_path / one)
        assert isinstance(done.exception, ParameterError), done.output
        assert not (tmp_path / "out").exists()
    assert digests(adapter) == before
    done = invoke(adapter, "--in-place", "--report", adapter / "adapter_model.safetensors")
    assert isinstance(done.exception, ParameterError)
    assert digests(adapter) == before


def test_many_pairs_are_summed_up_by_module(tmp_path, rng):
    path = write_adapter(tmp_path / "adapter", lora_tensors(rng, modules=40))
    short = invoke(path, "--out", tmp_path / "out")
    assert short.exit_code == 0
    for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert f" {module} " in short.stdout
    assert "The 10 furthest from balance" in short.stdout
    assert short.stdout.count("model.layers.") == 10
    every = invoke(path, "--all", "--in-place")
    assert every.stdout.count("model.layers.") == 40


def test_in_place_and_the_page_inside_the_output(tmp_path, rng):
    path = write_checkpoint(tmp_path / "model", checkpoint_tensors(rng), 2)
    done = invoke(path, "--out", tmp_path / "out", "--report", tmp_path / "out" / "page.html", "--strength", "0.5")
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "out" / "page.html").is_file()
    assert "balanced at strength 0.5" in done.stdout
    assert "Note: an adapter that was trained" in done.stdout
    assert invoke(path, "--in-place").exit_code == 0


def test_the_numbers_of_the_page_are_those_of_the_report(adapter, tmp_path):
    result = weights.balance_weights(adapter, tmp_path / "out")
    page = report.weights_page(result)
    imbalance, norms, conditions, change = page.plots
    assert [series.y.tolist() for series in imbalance.series] == [
        [pair.imbalance[when] for pair in result.pairs] for when in (0, 1)
    ]
    assert imbalance.levels[0].value == 2.0**-8
    assert norms.series[0].name == "left after"
    assert norms.series[0].y.tolist() == [pair.norms[1][0] for pair in result.pairs]
    assert norms.series[2].y.tolist() == [pair.norms[0][1] for pair in result.pairs]
    assert conditions.series[1].y.tolist() == [pair.conditions[0][0] for pair in result.pairs]
    assert change.series[0].y.tolist() == [pair.change for pair in result.pairs]
    assert all(len(series.x) == 4 for plot in page.plots for series in plot.series)
    tables = {table.title: table for table in page.tables}
    assert len(tables["All pairs"].rows) == 4
    assert tables["Skipped"].rows[0][0] == "model.layers.4.self_attn.q_proj"
    assert dict(tables["What was run"].rows)["tensors"] == "10"


def test_the_page_says_it_when_more_than_rounding_changed(tmp_path, rng):
    # Numbers at the lower end of float16 lose digits: the page must not call that rounding.
    tensors = lora_tensors(rng, modules=1, dtype=np.float16, scale=3000.0)
    tensors = {name: array * np.float16(3e-2 if "lora_A" in name else 1e-4 * 3000) for name, array in tensors.items()}
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = (tensors[name] * np.float16(1e-3)).astype(np.float16)
    path = write_adapter(tmp_path / "adapter", tensors)
    result = weights.balance_weights(path, tmp_path / "out")
    sentence = report.weights_sentences(result)[2]
    explained = result.pairs[0].change <= 4 * 2.0**-11 + 1e-13
    assert ("more than rounding" in sentence) == (not explained)
    shrunk = weights.WeightsReport(
        **{**vars(result), "pairs": (weights.BalancedPair(**{**vars(result.pairs[0]), "change": 0.1}),)}
    )
    assert "more than rounding" in report.weights_sentences(shrunk)[2]


def test_the_plots_are_drawn(adapter, tmp_path):
    result = weights.balance_weights(adapter, tmp_path / "out", strength=0.3)
    files = plots.save_figures(weights.weights_plots(result), tmp_path / "figures", ("png",))
    assert [file.name[:2] for file in files] == ["1-", "2-", "3-", "4-"]
    assert all(os.path.getsize(file) > 10_000 for file in files)
