"""What becomes of a study when processes are killed, disks are full, or files are changed; with real processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import xarray as xr

import fibration as fb
from study_files import command, small, start

LONG = 1_000_000


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def checkpoints(store):
    return list(store.glob("runs/*/checkpoints/*/state.npz"))


def results(store):
    """All results of a store by run, as they are on disk."""
    held = fb.study.Store(store)
    assert all(not held.verify(record) for record in held.records())
    return {record.id: record.open("long").load() for record in held.records()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Three points run without a disturbance, in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    small(folder / "s.toml", seeds=3, steps=LONG)
    code, out, err = command("run", "s.toml", "--store", "s", "--cluster", "none", folder=folder)
    assert code == 0, err
    assert "3 done" in out
    return results(folder / "s")


def same(store, expected):
    found = results(store)
    assert found.keys() == expected.keys()
    for run, dataset in found.items():
        for name in ("cost", "params.0.weight", "params.1.bias"):
            np.testing.assert_array_equal(dataset[name], expected[run][name])


def test_a_killed_runner_goes_on_to_the_same_bits(tmp_path, undisturbed):
    small(tmp_path / "s.toml", seeds=3, steps=LONG)
    store = tmp_path / "s"
    process = start("run", "s.toml", "--store", "s", "--cluster", "none", folder=tmp_path)
    wait_for(lambda: checkpoints(store))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    states = {record.status for record in fb.study.Store(store).records()}
    assert "interrupted" in states
    code, out, _ = command("resume", "small", "--store", "s", "--cluster", "none", folder=tmp_path)
    assert code == 0
    assert "3 points" in out
    same(store, undisturbed)
    assert not checkpoints(store)


def test_a_killed_worker_costs_time_and_no_results(tmp_path, undisturbed):
    small(tmp_path / "s.toml", seeds=3, steps=LONG)
    store = tmp_path / "s"
    process = start("run", "s.toml", "--store", "s", "--cluster", "local", folder=tmp_path)

    def busy():
        if not checkpoints(store):
            return []
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if child.cpu_times().user > 4 and "spawn_main" in " ".join(child.cmdline())]

    wait_for(busy)
    busy()[0].kill()
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "3 done" in out
    same(store, undisturbed)


def test_a_killed_scheduler_is_named_and_resume_goes_on(tmp_path, undisturbed):
    small(tmp_path / "s.toml", seeds=3, steps=LONG)
    store = tmp_path / "s"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"], **quiet
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"],
        cwd=tmp_path, **quiet,
    )  # fmt: skip
    try:
        process = start("run", "s.toml", "--store", "s", "--cluster", address, folder=tmp_path)
        wait_for(lambda: checkpoints(store))
        scheduler.kill()
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "ClusterError" in err
        assert "fibration resume" in err
    finally:
        for each in (scheduler, worker):
            for child in psutil.Process(each.pid).children(recursive=True) if each.poll() is None else ():
                child.kill()
            each.kill()
            each.wait()
    code, _, err = command("resume", "small", "--store", "s", "--cluster", "none", folder=tmp_path)
    assert code == 0, err
    same(store, undisturbed)


def test_no_scheduler_at_the_address_is_named(tmp_path):
    small(tmp_path / "s.toml")
    code, _, err = command("run", "s.toml", "--cluster", "tcp://127.0.0.1:9", folder=tmp_path)
    assert code == 1
    assert "ClusterError" in err
    assert "dask scheduler" in err


def test_two_runners_share_a_store(tmp_path, undisturbed):
    small(tmp_path / "s.toml", seeds=3, steps=LONG)
    both = [start("run", "s.toml", "--store", "s", "--cluster", "none", folder=tmp_path) for _ in range(2)]
    told = [process.communicate(timeout=280) for process in both]
    assert all("busy" in out or "done" in out or "kept" in out for out, _ in told), told
    code, out, _ = command("run", "s.toml", "--store", "s", "--cluster", "none", folder=tmp_path)
    assert code == 0
    assert "3 kept" in out
    same(tmp_path / "s", undisturbed)


def test_a_full_disk_keeps_what_was_done(tmp_path):
    small(tmp_path / "a.toml", seeds=1)
    assert command("run", "a.toml", "--store", "s", folder=tmp_path)[0] == 0
    before = results(tmp_path / "s")
    small(tmp_path / "b.toml", seeds=3)
    limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-m", "fibration"]  # 512 bytes a file
    process = subprocess.run(
        [*limited, "run", "b.toml", "--store", "s", "--cluster", "none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 1, process.stdout
    assert "Traceback" not in process.stderr
    assert "StoreError" in process.stderr or "File too large" in process.stderr
    after = results(tmp_path / "s")
    assert all(before[run].identical(after[run]) for run in before)
    code, out, _ = command("run", "b.toml", "--store", "s", "--cluster", "none", folder=tmp_path)
    assert code == 0
    assert "2 done, 1 kept" in out


def test_a_read_only_store_is_read_and_not_written(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    small(folder / "s.toml")
    assert command("run", "s.toml", "--store", "s", folder=folder)[0] == 0
    small(folder / "new.toml", steps=300)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chmod(os.path.join(place, name), 0o555)
    folder.chmod(0o555)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    tmp_path.chmod(0o755)
    script = """
import os
import fibration as fb
from fibration.errors import StoreError
fb.study.run_study("s.toml", OTHER)  # imports all there is; Python itself may not be readable below
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
store = fb.study.Store("s", read_only=True)
print([record.status for record in store.records()])
try:
    fb.study.run_study("new.toml", "s")
except StoreError as error:
    print(error)
"""
    script = script.replace("OTHER", repr(str(tmp_path / "other")))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "['done']" in done.stdout
    assert "written" in done.stdout


def test_a_manifest_edited_by_hand_and_an_index_deleted(tmp_path):
    small(tmp_path / "s.toml", seeds=2)
    assert command("run", "s.toml", "--store", "s", "--cluster", "none", folder=tmp_path)[0] == 0
    before = results(tmp_path / "s")
    manifests = sorted(tmp_path.glob("s/runs/*/manifest.json"))
    edited = json.loads(manifests[0].read_text())
    edited["point"]["seed"] = 7
    manifests[0].write_text(json.dumps(edited))
    for file in tmp_path.glob("s/index.sqlite*"):
        file.unlink()
    _, out, _ = command("status", "--store", "s", folder=tmp_path)
    assert "not begun" in out
    assert re.search(r"manifest\.json does not|damaged", out.partition("not begun")[2]), out
    code, out, err = command("run", "s.toml", "--store", "s", "--cluster", "none", folder=tmp_path)
    assert code == 0, err
    assert "1 done, 1 kept" in out
    after = results(tmp_path / "s")
    assert all(before[run]["cost"].equals(after[run]["cost"]) for run in before)
    assert list(tmp_path.glob("s/runs/*/manifest.json.damaged-*"))


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    small(tmp_path / "s.toml")
    fb.study.Store(tmp_path / "s", create=True).close()
    file = tmp_path / "s" / "store.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 99').replace('"format":1', '"format":99'))
    code, _, err = command("run", "s.toml", "--store", "s", folder=tmp_path)
    assert code == 1
    assert "StoreError" in err
    assert "pgrade" in err


def test_results_open_with_plain_xarray_and_no_warning(tmp_path, recwarn):
    file = small(tmp_path / "s.toml")
    outcome = fb.study.run_study(file, tmp_path / "s")
    (run,) = outcome.outcomes
    dataset = xr.open_zarr(tmp_path / "s" / "runs" / run / "results" / "long.zarr")
    assert dataset["cost"].shape == (5,)
    assert not [one for one in recwarn if "zarr" in str(one.message).lower()]


def test_the_clock_may_jump(tmp_path, monkeypatch):
    file = small(tmp_path / "s.toml", seeds=2)
    clock = iter([4e9, 1e9] * 1000)
    lock = threading.Lock()

    def jumping():
        with lock:
            return next(clock)

    monkeypatch.setattr("time.time", jumping)
    outcome = fb.study.run_study(file, tmp_path / "s")
    assert outcome.complete
    assert all(0 < record.seconds < 300 for record in fb.study.Store(tmp_path / "s").records())


def test_a_script_that_starts_itself_again_is_told_how_to_be_written(tmp_path):
    small(tmp_path / "study.toml")
    script = tmp_path / "script.py"
    script.write_text('import fibration as fb\nfb.study.run_study("study.toml", "store", cluster="local", workers=1)\n')
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith('under `if __name__ == "__main__":`.')
    assert done.stderr.count("Traceback") <= 3


def test_ctrl_c_says_how_to_go_on(tmp_path):
    small(tmp_path / "study.toml", steps=30_000_000)
    process = start("run", "study.toml", "--cluster", "none", folder=tmp_path)
    wait_for(lambda: checkpoints(tmp_path / "fibration-store"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "The same command goes on from the last checkpoints." in err
    assert "Traceback" not in err
