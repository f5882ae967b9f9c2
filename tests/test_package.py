import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fibration as fb

ROOT = Path(__file__).parents[1]


def python(script, **environment):
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_pulls_in_no_plotting_web_or_distributed_package_and_sets_no_flag():
    drawing, serving = ["matplotlib", "plotly", "jinja2", "rich"], ["dask", "distributed", "tornado", "typer"]
    heavy = drawing + serving + ["pandas", "xarray", "sklearn", "pyarrow", "flax", "torch"]
    script = f"""
import sys, jax
before = dict(jax.config.values)
import fibration as fb
print([name for name in {heavy!r} if name in sys.modules])
print([key for key in before if before[key] != jax.config.values[key]])
fb.Problem, fb.integrate, fb.datasets.digits, fb.networks.mlp
print([name for name in {heavy!r} if name in sys.modules])
"""
    assert python(script).split("\n")[:3] == ["[]"] * 3


def test_everything_public_exists_and_is_documented():
    for name in fb.__all__:
        assert getattr(fb, name) is not None
    for room in (
        "canonical",
        "curvature",
        "datasets",
        "errors",
        "fidelity",
        "flows",
        "networks",
        "report",
        "solvers",
        "study",
        "trees",
    ):
        module = getattr(fb, room)
        assert module.__doc__
        for name in module.__all__:
            assert name == "ACTIVATIONS" or getattr(module, name).__doc__, f"{room}.{name}"
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = fb.nothing_here


def test_every_error_says_what_was_given_what_is_needed_and_what_to_do():
    for name in fb.errors.__all__:
        kind = getattr(fb.errors, name)
        assert kind.__doc__
        if issubclass(kind, fb.errors.FibrationError):
            error = kind("the cat", "a dog", "bark")
            assert str(error) == "the cat. Needed: a dog. To mend it: bark."


def test_the_version_is_the_same_everywhere():
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert facts["tool"]["hatch"]["version"]["path"] == "src/fibration/_version.py"
    assert f"version: {fb.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_name_packages_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pattern = re.compile(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*(; python_version (<|>=) '3\.\d+')?$")
    assert all(pattern.match(line) for line in lines)


def test_no_file_is_longer_than_400_lines():
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
