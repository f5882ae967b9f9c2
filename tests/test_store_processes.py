"""The run store and its processes: several at once, and killed at any instant."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fibration.errors import RunBusyError
from fibration.study._manifest import run_id
from fibration.study._store import Store
from seeded_stores import COMMON, answer, check_whole, compute, leftovers, point, start

# Several processes ----------------------------------------------------------------------------------------------------

HAMMER = """
path, first, theirs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = Store(path, create=True)
study = store.add_study("", {"name": "both"}, [point(number) for number in range(100)])
longest, busy = 0, 0
for number in range(first, first + 50):
    while True:
        try:
            compute(store, number)
            break
        except RunBusyError:  # the other process is at it
            time.sleep(0.01)
    records = store.records()
    assert all(record.status in ("done", "running", "interrupted") for record in records)
    mine = {record.seed for record in records if record.status == "done"}
    assert mine >= set(range(first, number + 1)), (mine, number)
    longest = max(longest, len(records))
    try:
        compute(store, theirs + number - first)  # at times at the same instant as the other process
    except RunBusyError:
        busy += 1
print(json.dumps([longest, busy]))
"""


@pytest.mark.slow
def test_two_processes_write_into_one_store(tmp_path):
    path = tmp_path / "store"
    processes = [start(HAMMER, path, 0, 100), start(HAMMER, path, 100, 0)]
    try:
        for process in processes:
            answer(process)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    records = check_whole(path, least=100)
    assert sorted(record.seed for record in records) == [*range(50), *range(100, 150)]
    assert len({record.sequence for record in records}) == 100
    assert leftovers(path) == []
    with Store(path) as store:
        assert len(store.studies()) == 1


HOLD = """
store = Store(sys.argv[1])
with store.claim(point(1)) as run:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_held_until_its_process_dies(tmp_path):
    with Store(tmp_path / "store", create=True) as store:
        script = [sys.executable, "-c", COMMON + HOLD, str(store.path)]
        process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        assert store.record(run_id(point(1))).status == "running"
        assert Store(store.path, read_only=True).records()[0].status == "running"
        with pytest.raises(RunBusyError, match=f"process {process.pid}"), store.claim(point(1)):
            pass
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        assert store.record(run_id(point(1))).status == "interrupted"
        assert [record.status for record in store.records(status="interrupted")] == ["interrupted"]
        assert compute(store, 1) == "done"


# Killed at any instant ------------------------------------------------------------------------------------------------

# Importing takes seconds, so one process imports and forks those that are killed.
ENDLESS = """
dataset(0)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        store = Store(sys.argv[1], create=True)
        for number in range(int(line), 1000):
            compute(store, number)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_store_survives_processes_that_are_killed(tmp_path):
    path, done = tmp_path / "store", 0
    rng = random.Random(0)
    command = [sys.executable, "-W", "ignore", "-c", COMMON + ENDLESS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        for _ in range(20):
            parent.stdin.write(f"{done}\n")
            parent.stdin.flush()
            victim = int(parent.stdout.readline())
            time.sleep(rng.uniform(0.05, 0.6))
            os.kill(victim, signal.SIGKILL)
            assert int(parent.stdout.readline()) == -signal.SIGKILL
            if not path.exists():
                continue
            Store(path, create=True).close()  # it may have died while it made the store
            records = check_whole(path, least=done)
            done = sum(record.status == "done" for record in records)
            assert sum(record.status != "done" for record in records) <= 1
        parent.stdin.close()
    assert done > 10
    with Store(path) as store:
        for record in store.records():
            assert compute(store, record.seed) == "done"
            assert store.verify(record) == []
    assert leftovers(path) == []


# Each child dies at one call to the file system, without cleaning up; together they die at every one.
EVERY_CALL = """
root = sys.argv[1]
CALLS = ("fsync", "replace", "rename", "mkdir", "open", "close", "unlink", "rmdir", "ftruncate")
from fibration.study._files import flush_all
from fibration.study._run import describe_machine
describe_machine(), dataset(0)

def work(path):
    store = Store(path, create=True)
    study = store.add_study("", {"name": "s"}, [point(1)])
    with store.claim(point(1), study=study.id) as run:
        for name in ("flow", "flow", "descent"):  # the second replaces the first
            run.write(name, dataset(1))
        run.finish({"seed": 1})

def child(number):
    count = 0
    def dying(call):
        def wrapped(*args, **options):
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)
            return call(*args, **options)
        return wrapped
    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    work(f"{root}/{number}")
    os._exit(0)

work(f"{root}/0")
number, step = 1, int(sys.argv[2])
while True:
    pid = os.fork()
    if pid == 0:
        try:
            child(number)
        finally:
            os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9), code
    if code == 0:
        break
    number += step
print(json.dumps(number))
"""


@pytest.mark.slow
def test_a_process_may_die_at_any_call_to_the_file_system(tmp_path):
    last = answer(start(EVERY_CALL, tmp_path, 2))
    assert last > 100
    for number in range(1, last, 2):
        path = tmp_path / str(number)
        with Store(path, create=True) as store:
            store.records()
        records = check_whole(path)
        assert len(records) <= 1
        with Store(path) as store:
            study = store.add_study("", {"name": "s"}, [point(1)])
            assert compute(store, 1) == "done"
            assert [record.status for record in store.records(study=study.id)] == ["done"]
            assert store.verify(run_id(point(1))) == []
        assert leftovers(path) == []
