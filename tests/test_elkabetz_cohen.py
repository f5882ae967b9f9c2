"""The experiments of Elkabetz and Cohen: the protocol against closed forms, the networks against PyTorch."""

import dataclasses
import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import fibration as fb
from fibration import report
from fibration.errors import (
    DivergedError,
    MissingFileError,
    PrecisionWarning,
    ShapeError,
    StepSizeError,
    UnknownNameError,
)
from fibration.study._elkabetz_cohen import compare_step_sizes
from fibration.study._elkabetz_cohen_models import setting
from optional import optional
from problems import quadratic, random_spd

TINY = {"samples": 20, "steps": 40, "ratios": (4, 2), "n_stamps": 5}


@pytest.fixture(scope="module")
def study():
    with jax.enable_x64(True):
        return fb.study.elkabetz_cohen("linear", **TINY)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    contents = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(contents) if path.suffix == ".gz" else contents)


def fake_mnist(folder, count=120, place="", end=""):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
    write_idx(folder / place / f"train-images-idx3-ubyte{end}", pixels)
    write_idx(folder / place / f"train-labels-idx1-ubyte{end}", labels)
    return pixels, labels


@pytest.mark.parametrize("smooth", [True, False])
def test_the_protocol_on_a_quadratic_in_closed_form(smooth):
    values, step, steps, ratios = np.array([0.3, 1.0, 4.0]), 0.02, 200, (2, 5, 10)
    hessian, start = random_spd(0, values), np.array([1.0, -2.0, 0.5])
    result = compare_step_sizes(
        quadratic(hessian),
        jnp.asarray(start),
        model="linear",
        smooth=smooth,
        step_size=step,
        steps=steps,
        ratios=ratios,
        n_stamps=20,
        checkpoint=None,
        progress=None,
        facts={},
    )
    times = step * np.arange(0, steps + 1, 10)
    vectors = np.linalg.eigh(hessian)[1]
    inside = vectors.T @ start

    def descent(ratio):
        k = np.arange(0, steps * ratio + 1, 10 * ratio)[:, None]
        return inside * (1 - step / ratio * values) ** k

    flow = inside * np.exp(-times[:, None] * values)
    runs = [flow, *(descent(ratio) for ratio in (1, *ratios))]
    np.testing.assert_allclose(result.times, times, rtol=1e-12)
    np.testing.assert_allclose(result.costs, [0.5 * (run**2 @ values) for run in runs], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(result.travelled, [np.linalg.norm(run - inside, axis=1) for run in runs], atol=2e-6)
    between = np.array([np.linalg.norm(runs[1] - run, axis=1) for run in runs[2:]])
    np.testing.assert_allclose(result.between, between, atol=1e-12)
    from_flow = [np.linalg.norm(run - flow, axis=1) for run in runs[1:]]
    # The solved flow's own error is what separates the measured distance from the exact one.
    assert np.all(np.abs(result.from_flow - from_flow) <= 2 * result.flow_error + 1e-12)
    assert result.flow_error.max() < 1e-5
    factor = np.array([2, 5 / 4, 10 / 9])[:, None]
    np.testing.assert_allclose(result.richardson(), factor * between, atol=1e-12)
    np.testing.assert_allclose(result.richardson()[:, -1], from_flow[0][-1], rtol=0.05)
    assert result.first_order()
    assert not result.first_order(tolerance=1e-6)
    np.testing.assert_allclose(result.sharpness, 4.0, rtol=1e-3)
    assert result.gradient_evaluations[1:].tolist() == [200, 400, 1000, 2000]
    if not smooth:
        assert result.gradient_evaluations[0] == 4 * 200 + 4 * 100


def test_runge_kutta_steps_are_the_classical_ones():
    hessian = random_spd(1, [0.5, 2.0])
    result = compare_step_sizes(
        quadratic(hessian),
        jnp.ones(2),
        model="relu",
        smooth=False,
        step_size=0.2,
        steps=4,
        ratios=(2,),
        n_stamps=2,
        checkpoint=None,
        progress=None,
        facts={},
    )
    z = -0.2 * hessian
    step = sum((np.linalg.matrix_power(z, k) / f for k, f in enumerate((1, 1, 2, 6, 24))), np.zeros((2, 2)))
    end = np.linalg.matrix_power(step, 4) @ np.ones(2)
    np.testing.assert_allclose(result.costs[0, -1], 0.5 * end @ hessian @ end, rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "count"), [("linear", 42_200), ("relu", 42_200), ("conv", 61_470), ("conv-pool", 61_706)]
)
def test_the_networks_have_the_papers_sizes_on_mnist(tmp_path, model, count):
    fake_mnist(tmp_path)
    problem, params, facts = setting(model, tmp_path, 2, 0)
    assert problem.n_parameters(params) == count == facts["parameters"]
    biased = any("bias" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    assert biased == (model == "conv-pool")
    assert problem.outputs(params).shape == (2, 10)


@pytest.mark.parametrize("model", ["conv", "conv-pool"])
def test_the_convolutional_networks_are_pytorchs(tmp_path, model):
    torch = optional("torch", "torch")
    functional = torch.nn.functional
    fake_mnist(tmp_path)
    problem, params, _ = setting(model, tmp_path, 2, 3)

    def tensor(array):
        return torch.from_numpy(np.array(array))

    pooled = model == "conv-pool"
    # As the authors' code: normalised 28 × 28 images, padded by 2, channels first.
    x = tensor(np.asarray(problem.inputs)[:, 2:-2, 2:-2, 0])[:, None]
    x = functional.pad(x, (2, 2, 2, 2))
    for layer in params["conv"]:
        weight = tensor(layer["weight"]).permute(3, 2, 0, 1)
        bias = tensor(layer["bias"]) if pooled else None
        x = torch.relu(functional.conv2d(x, weight, bias, stride=1 if pooled else 2))
        if pooled:
            x = functional.max_pool2d(x, 2, 2)
    x = x.permute(0, 2, 3, 1).reshape(2, -1)
    for number, layer in enumerate(params["dense"]):
        x = functional.linear(torch.relu(x) if number else x, tensor(layer["weight"]))
        if pooled:
            x = x + tensor(layer["bias"])
    np.testing.assert_allclose(problem.outputs(params), x.numpy(), rtol=1e-10, atol=1e-12)
    labels = tensor(problem.targets)
    np.testing.assert_allclose(problem.cost(params), functional.cross_entropy(x, labels).item(), rtol=1e-10)


def test_initial_parameters_follow_the_authors_laws():
    _, params, _ = setting("conv-pool", None, 10, 0)
    laws = [(layer["weight"], np.sqrt(6 / sum(layer["weight"].shape))) for layer in params["dense"]] + [
        (layer["weight"], 1 / np.sqrt(np.prod(layer["weight"].shape[:-1]))) for layer in params["conv"]
    ]
    for weight, bound in laws:
        assert jnp.abs(weight).max() <= bound
        # A uniform variable: variance bound²/3, and its square spread by √(4/45) bound².
        spread = np.sqrt(4 / 45 / weight.size)
        assert abs(jnp.mean(weight**2) / bound**2 - 1 / 3) < 4.5 * spread
    for layer, inputs in ((params["dense"][0], 64), (params["conv"][1], 54)):
        assert 0 < np.abs(layer["bias"]).max() <= 1 / np.sqrt(inputs)


@pytest.mark.parametrize(("place", "end"), [("", ""), ("MNIST/raw", ".gz")])
def test_mnist_images_are_every_fiftieth_normalised(tmp_path, place, end):
    pixels, labels = fake_mnist(tmp_path, place=place, end=end)
    problem, _, facts = setting("linear", tmp_path, 2, 0)
    expected = ((pixels[[0, 50]] / 255 - 0.1307) / 0.3081).reshape(2, 784)
    np.testing.assert_allclose(problem.inputs, expected, rtol=1e-12)
    np.testing.assert_array_equal(problem.targets, labels[[0, 50]])
    assert "every 50th" in facts["data"]
    padded = setting("conv", tmp_path, 2, 0)[0].inputs
    np.testing.assert_allclose(np.asarray(padded)[:, 2:-2, 2:-2, 0].reshape(2, 784), expected, rtol=1e-12)
    assert float(jnp.abs(padded[:, :2]).max()) == 0.0  # padded after the normalisation, as in the authors' code


def test_digits_take_mnists_place_and_are_normalised():
    problem, _, facts = setting("linear", None, 10_000, 0)
    assert problem.n_samples == facts["images"] == 1797
    np.testing.assert_allclose([problem.inputs.mean(), problem.inputs.std()], [0, 1], atol=1e-12)


def test_what_does_not_fit_is_named_before_any_work(tmp_path):
    with pytest.raises(UnknownNameError, match="conv-pool"):
        fb.study.elkabetz_cohen("resnet")
    with pytest.raises(MissingFileError, match="train-images-idx3-ubyte"):
        fb.study.elkabetz_cohen("linear", mnist=tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 8, 8)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(ShapeError, match="28"):
        fb.study.elkabetz_cohen("linear", mnist=tmp_path)
    for wrong in (
        {"steps": 1001},
        {"steps": 300},
        {"ratios": ()},
        {"ratios": (1,)},
        {"ratios": (2, 2)},
        {"step_size": -1.0},
        {"samples": 0},
    ):
        with pytest.raises(StepSizeError):
            fb.study.elkabetz_cohen("linear", **wrong)
    with pytest.raises(StepSizeError):
        fb.study.relu_order(step_counts=(4, 8), reference_steps=8)


def test_a_step_size_at_which_descent_diverges_is_an_error():
    with pytest.raises(DivergedError):
        fb.study.elkabetz_cohen("linear", step_size=1e4, **TINY)


def test_single_precision_warns(study, monkeypatch):
    monkeypatch.setattr("fibration.study._elkabetz_cohen.compare_step_sizes", lambda *_, **__: study)
    with jax.enable_x64(False), pytest.warns(PrecisionWarning, match="jax_enable_x64"):
        fb.study.elkabetz_cohen("linear", samples=5, steps=2, ratios=(2,), n_stamps=1)


def test_a_second_call_reads_its_checkpoints(study, tmp_path):
    first = fb.study.elkabetz_cohen("linear", checkpoint=tmp_path, **TINY)
    # The last descent is what a killed run had not begun.
    for path in (tmp_path / "descent-4").iterdir():
        path.unlink()
    tasks = []
    second = fb.study.elkabetz_cohen("linear", checkpoint=tmp_path, progress=progress_names(tasks), **TINY)
    for name in ("costs", "travelled", "from_flow", "between", "sharpness", "gradient_evaluations", "flow_error"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
        np.testing.assert_allclose(getattr(second, name), getattr(study, name), rtol=1e-9, atol=1e-12)
    assert len(tasks) == 5


def progress_names(names):
    def task(description):
        names.append(description)
        return lambda _: None

    return task


def test_a_small_experiment_is_labelled(study):
    data = study.to_xarray()
    assert data["run"].values.tolist() == ["flow", "η₀", "η₀/2", "η₀/4"]
    np.testing.assert_array_equal(data["distance_between"].sel(ratio=4), study.between[1])
    np.testing.assert_array_equal(data["cost"].sel(run="η₀/2"), study.costs[2])
    assert data.attrs["images"] == 20
    assert study.from_flow.shape == (3, 6)
    # Halving the step halves the distance, to first order.
    np.testing.assert_allclose(study.from_flow[0, 1:] / study.from_flow[1, 1:], 2, rtol=0.02)
    assert study.first_order()
    back = xarray.Dataset.from_dict(json.loads(json.dumps(data.to_dict())))
    xarray.testing.assert_allclose(back, data)


def test_figures_show_the_studys_own_numbers(study):
    plots = report.elkabetz_cohen_plots(study)
    steps = np.arange(0, 41, 8)
    for plot in plots:
        for series in plot.series:
            np.testing.assert_allclose(series.x, steps, rtol=1e-12)
    loss, paper, relative, flow, sharpness = ({s.name: s.y for s in plot.series} for plot in plots)
    np.testing.assert_array_equal(loss["η₀/4"], study.costs[3])
    np.testing.assert_array_equal(paper["η₀ from the start"], study.travelled[1])
    np.testing.assert_array_equal(paper["η₀/2"], study.between[0])
    np.testing.assert_allclose(relative["gradient flow"][1:], study.from_flow[0, 1:] / study.travelled[1, 1:])
    assert np.isnan(relative["gradient flow"][0])
    np.testing.assert_allclose(flow["Richardson, η₀/4"], study.between[1] * 4 / 3)
    np.testing.assert_array_equal(sharpness["gradient flow"], study.sharpness[0])
    figure = report.elkabetz_cohen_figure(study)
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), study.costs[1])


def test_the_page_says_what_was_measured(study, tmp_path):
    page = report.elkabetz_cohen_page(study)
    between, flow, _, price = page.lead
    share = 100 * study.between[:, -1].max() / study.travelled[1, -1]
    assert f"{share:.2g} % of it" in between
    assert "2.62" in between
    assert "agree with one another" in flow
    assert "240 " in price or "280" in price
    row = page.tables[0].rows[0]
    assert row[:3] == ("Fully connected, linear", "2.62", "≤ 0.02 (0.8 %)")
    assert len(page.tables[1].rows) == 4
    path = report.write_page(page, tmp_path / "page.html")
    assert "Fully connected, linear" in path.read_text("utf-8")


def test_disagreeing_estimates_are_said_to_disagree(study):
    rough = dataclasses.replace(study, between=study.between * np.array([[1.0], [1.2]]), flow_error=study.from_flow[0])
    assert not rough.first_order()
    sentence = report.elkabetz_cohen_sentences(rough)[1]
    assert "differ by more than 5 %" in sentence
    assert "error of the solved flow" in sentence


def test_convolutional_networks_without_biases():
    build = {"kernel": 3, "channels": (2, 3), "dense": (4,), "key": jax.random.key(0)}
    apply, params = fb.networks.convnet((8, 8, 1), 3, bias=False, **build)
    with_zeros, biased = fb.networks.convnet((8, 8, 1), 3, **build)
    assert not any("bias" in layer for layer in params["conv"] + params["dense"])
    x = jax.random.normal(jax.random.key(1), (8, 8, 1))
    np.testing.assert_array_equal(apply(params, x), with_zeros(biased, x))


@pytest.mark.slow
def test_kinks_leave_order_one_and_make_error_control_take_many_steps():
    measured = fb.study.relu_order(
        samples=200, hidden=16, t1=3.0, step_counts=(64, 128, 256, 512), rtols=(1e-3, 1e-5), reference_steps=2048
    )
    order = measured["order"].to_pandas()
    np.testing.assert_allclose(order.loc["tanh"], [1, 4], atol=0.05)
    # The gradient's jumps leave first order: not the fourth, whatever the scheme.
    np.testing.assert_allclose(order.loc["relu", "Euler"], 1, atol=0.2)
    np.testing.assert_allclose(order.loc["relu", "Runge–Kutta 4"], 1, atol=0.4)
    steps = measured["steps_taken"]
    growth = steps.sel(rtol=1e-5) / steps.sel(rtol=1e-3)
    assert float(growth.sel(activation="tanh")) < 3.5  # 100^(1/5) = 2.5
    assert float(growth.sel(activation="relu")) > 6
    assert int(measured["rejected"].sel(activation="relu", rtol=1e-5)) > 20
    # Equal steps are the better bargain across kinks: less error for fewer gradients.
    assert int(measured["gradient_evaluations"].sel(activation="relu", rtol=1e-5)) > 4 * 512
    fixed = measured["fixed_error"].sel(activation="relu", scheme="Runge–Kutta 4", steps=512)
    assert float(fixed) < 0.5 * float(measured["error"].sel(activation="relu", rtol=1e-5))


@pytest.mark.slow
def test_the_command_writes_page_figures_and_numbers(tmp_path):
    command = [Path(sys.executable).with_name("fibration"), "reproduce", "elkabetz-cohen"]
    small = ["--model", "relu", "--samples", "20", "--steps", "200", "--ratio", "2", "--ratio", "3"]

    def run(*arguments):
        return subprocess.run(
            [*map(str, command), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "200"},
            timeout=250,
            check=False,
            cwd=tmp_path,
        )

    missing = run("--mnist", tmp_path)
    assert missing.returncode == 1
    assert "MissingFileError" in missing.stderr
    assert "Traceback" not in missing.stderr
    done = run(*small)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "elkabetz-cohen-relu"
    assert done.stdout.rstrip().endswith(str(out / "index.html"))
    assert len([line for line in done.stdout.splitlines() if line.endswith(".")]) == 4
    assert len(list((out / "figures").glob("*.svg"))) == 5
    numbers = xarray.Dataset.from_dict(json.loads((out / "numbers.json").read_text("utf-8")))
    assert numbers["ratio"].values.tolist() == [2, 3]
    assert numbers.attrs["model"] == "relu"
    assert float(numbers["distance_from_flow"][0, -1]) > 0
