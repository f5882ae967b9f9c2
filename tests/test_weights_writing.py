"""Weights balanced on disk, where writing fails or is killed: whole outputs or none, untouched inputs."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fibration as fb
from adapters import (
    checkpoint_tensors,
    digests,
    lora_tensors,
    products,
    write_adapter,
    write_checkpoint,
)
from fibration.errors import (
    FibrationError,
    FileFormatError,
    OutputDirectoryError,
)
from fibration.weights import _balance, balance_weights


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def adapter(tmp_path, rng):
    return write_adapter(tmp_path / "adapter", lora_tensors(rng))


# --- writing that fails or is killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk_while_writing(adapter, tmp_path, monkeypatch, in_place):
    before, calls = digests(tmp_path), []

    def full(file, place, array):
        calls.append(place)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, place, array)

    original = _balance.put
    monkeypatch.setattr(_balance, "put", full)
    with pytest.raises(OutputDirectoryError, match="No space left"):
        balance_weights(adapter, None if in_place else tmp_path / "out", in_place=in_place)
    assert digests(tmp_path) == before


def test_a_disk_that_is_too_small_is_named_before_copying(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(_balance.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(OutputDirectoryError, match="100 left"):
        balance_weights(adapter, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_a_limit_of_the_operating_system(tmp_path, rng):
    # The limit on a file's size makes a real write fail, in a process of its own.
    path = write_adapter(tmp_path / "a", lora_tensors(rng, m=400, n=400))
    before = digests(tmp_path)
    done = python(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        balance_weights({str(path)!r}, {str(tmp_path / "out")!r})
        """
    )
    assert "OutputDirectoryError" in done.stderr
    assert "File too large" in done.stderr
    assert digests(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_output(adapter, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(OutputDirectoryError, match="Permission"):
        balance_weights(adapter, locked / "out")


def test_an_output_below_a_file(adapter, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputDirectoryError, match="cannot be written"):
        balance_weights(adapter, tmp_path / "file" / "out")


def python(code):
    prelude = "import os, signal\nfrom fibration.weights import balance_weights\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_killed_in_mid_write_leaves_nothing_but_a_named_directory(adapter, tmp_path):
    before = digests(adapter)
    done = python(
        f"""
        def kill(done, total, name):
            if done == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        balance_weights({str(adapter)!r}, {str(tmp_path / "out")!r}, progress=kill)
        """
    )
    assert done.returncode == -signal.SIGKILL
    assert digests(adapter) == before
    left = [one.name for one in tmp_path.iterdir() if one.name != "adapter"]
    assert len(left) == 1
    assert left[0].startswith(".out.fibration-")
    assert left[0].endswith(".partial")
    other = tmp_path / ".other.fibration-x.partial"
    other.mkdir()
    balance_weights(adapter, tmp_path / "out")  # the next run clears it away, and no other's
    assert sorted(one.name for one in tmp_path.iterdir()) == [other.name, "adapter", "out"]


def test_the_directory_of_a_running_process_is_left_alone(adapter, tmp_path):
    seen = []

    def meanwhile(done, total, name):
        if done == 1 and not seen:
            seen.append(True)
            done = python(f"balance_weights({str(adapter)!r}, {str(tmp_path / 'out')!r})")
            assert done.returncode == 0, done.stderr

    with pytest.raises(OutputDirectoryError):  # the other was faster: its output stays
        balance_weights(adapter, tmp_path / "out", progress=meanwhile)
    assert seen
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter", "out"]
    assert products(tmp_path / "out").keys() == products(adapter).keys()


def test_in_place_replaces_only_the_weights(adapter, tmp_path):
    old, before = products(adapter), digests(adapter)
    os.chmod(adapter / "adapter_model.safetensors", 0o640)
    report = balance_weights(adapter, in_place=True)
    after = digests(adapter)
    assert [name for name in before if before[name] != after[name]] == ["adapter_model.safetensors"]
    assert after.keys() == before.keys()
    assert (adapter / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o640
    for name, product in products(adapter).items():
        assert np.linalg.norm(product - old[name]) < 1e-14 * np.linalg.norm(old[name])
    assert report.out == str(adapter)


def test_in_place_killed_between_two_shards_is_finished_by_the_next_run(tmp_path, rng):
    path = write_checkpoint(tmp_path / "model", checkpoint_tensors(rng), 3)
    whole = balance_weights(path, tmp_path / "whole")
    before, wanted = digests(path), digests(tmp_path / "whole")
    done = python(
        f"""
        import fibration.weights._atomic as atomic
        replace, count = os.replace, []
        def killed(old, new):
            count.append(new)
            if len(count) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(old, new)
        atomic.os.replace = killed
        balance_weights({str(path)!r}, in_place=True)
        """
    )
    assert done.returncode == -signal.SIGKILL
    now = {name: digest for name, digest in digests(path).items() if not name.startswith(".")}
    assert sum(now[name] != before[name] for name in before) == 1  # one shard new, two old: not a model
    with pytest.raises(FileFormatError, match="killed"):
        balance_weights(path, tmp_path / "out")
    report = balance_weights(path, in_place=True)
    assert "finished an earlier run" in report.notes[-1]
    assert max(pair.imbalance[0] for pair in report.pairs) < 1e-13  # it was balanced by the run that was killed
    assert digests(path).keys() == before.keys()
    assert {name for name in wanted if wanted[name] != before[name]} == {n for n in wanted if n.startswith("model-")}
    assert len(whole.pairs) == len(report.pairs)


def test_progress_and_an_exception_in_it(adapter, tmp_path):
    seen = []
    balance_weights(adapter, tmp_path / "out", progress=lambda *call: seen.append(call))
    assert [call[:2] for call in seen] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[0][2] == "model.layers.0.self_attn.q_proj"

    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        balance_weights(adapter, tmp_path / "other", progress=stop)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter", "out"]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_largest_pair(tmp_path, rng):
    # 40 pairs of 2 MB each, 84 MB of file, beside a tensor of 200 MB that is only copied.
    tensors = lora_tensors(rng, modules=40, m=16384, n=16384, r=16, dtype=np.float32)
    tensors["base_model.model.lm_head.weight"] = np.zeros((50_000_000,), np.float32)
    path = write_adapter(tmp_path / "a", tensors)
    del tensors
    done = python(
        f"""
        import resource, tracemalloc
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        small = peak()
        tracemalloc.start()
        balance_weights({str(path)!r}, {str(tmp_path / "out")!r})
        print(tracemalloc.get_traced_memory()[1], (peak() - small) * 1024)
        """
    )
    traced, resident = map(int, done.stdout.split())
    assert traced < 60e6  # the pair is 4 MB in float64, of which the algorithm holds several copies
    assert resident < 120e6


def test_errors_are_all_of_the_house():
    assert issubclass(OutputDirectoryError, FibrationError)
    assert fb.weights.balance_weights is balance_weights
