"""The command line, run as a user runs it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fibration as fb

COMMAND = Path(sys.executable).with_name("fibration")


def run(*arguments, **environment):
    return subprocess.run(
        [str(COMMAND), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=200,
        check=False,
    )


def test_version_and_doctor():
    assert run("--version").stdout == f"fibration {fb.__version__}\n"
    doctor = run("doctor")
    assert doctor.returncode == 0
    assert re.search(r"float64\s+on", doctor.stdout)
    assert re.search(r"jax\s+0\.\d+", doctor.stdout)
    assert re.search(r"extra report\s+complete", doctor.stdout)


def test_an_unknown_command_is_refused():
    bogus = run("bogus")
    assert bogus.returncode == 2
    assert "bogus" in bogus.stderr


def test_doctor_and_version_work_without_extras_and_demo_names_them(tmp_path):
    blocker = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("matplotlib", "plotly", "jinja2", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""
    (tmp_path / "sitecustomize.py").write_text(blocker)
    without = {"PYTHONPATH": str(tmp_path)}
    assert run("--version", **without).returncode == 0
    doctor = run("doctor", **without)
    assert doctor.returncode == 0, doctor.stderr
    assert "pip install 'fibration[report]'" in doctor.stdout
    began = time.monotonic()
    demo = run("demo", "--quick", "--out", str(tmp_path / "out"), **without)
    assert demo.returncode == 1
    assert "MissingExtraError" in demo.stderr
    assert "fibration[report]" in demo.stderr
    assert time.monotonic() - began < 30  # said before the computation, not after it


def test_an_unwritable_directory_is_named_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    demo = run("demo", "--out", str(tmp_path / "file"))
    assert demo.returncode == 1
    assert "OutputDirectoryError" in demo.stderr
    assert "Traceback" not in demo.stderr


@pytest.mark.slow
def test_quick_demo_writes_a_page_and_three_sentences(tmp_path):
    demo = run("demo", "--quick", "--out", str(tmp_path / "out"))
    assert demo.returncode == 0, demo.stderr
    page = tmp_path / "out" / "index.html"
    assert demo.stdout.rstrip().endswith(str(page))
    sentences = demo.stdout.strip().splitlines()
    assert len([line for line in sentences if line.endswith(".")]) == 3
    html = page.read_text()
    assert len(re.findall(r'href="data:image/png', html)) >= 4
    addresses = set(re.findall(r"https?://[^\s\"'<>)]*", html))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)
    assert len(list((tmp_path / "out" / "figures").glob("*.svg"))) >= 4
    assert "four-tenths" in demo.stderr  # the progress bar
