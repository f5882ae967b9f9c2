"""What the benchmarks' scripts share: parts that run alone, processes of their own, and the machine's description."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import fibration as fb


def machine():
    """Describe the machine, the versions and the day."""
    return fb.study.machine_facts() | {"date": time.strftime("%Y-%m-%d")}


def in_processes(script, names):
    """Run `script --one name` for each name, which prints a row as JSON, in a process of its own."""
    rows = []
    for name in names:
        answer = subprocess.run([sys.executable, script, "--one", name], capture_output=True, text=True, check=False)
        if answer.returncode:
            raise RuntimeError(answer.stderr[-2000:])
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    return rows


def run(description, parts, one, out):
    """Run the parts that are named, all by default, and keep the results of the others."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--one")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one)
        return
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results |= {"machine": machine()} | {name: parts[name]() for name in arguments.parts}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
