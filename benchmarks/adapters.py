"""Weights balanced on disk: a Llama-sized LoRA adapter, 32 layers of 7 pairs at rank 16.

    python benchmarks/adapters.py [--out benchmarks/results/adapters.json]

Each case in a process of its own, three times; the median of the seconds, and the largest resident set of the process
(`ru_maxrss`), which counts the interpreter and its imports, said beside it. Reading, computing, writing and bringing
to the disk are all in. The input lies in the page cache. Imports are not in the seconds of `balance_weights`; those of
the command count everything, from the shell's point of view.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, RANK, HIDDEN, UNITS, KEYS = 32, 16, 4096, 14336, 1024
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (UNITS, HIDDEN),
    "mlp.up_proj": (UNITS, HIDDEN),
    "mlp.down_proj": (HIDDEN, UNITS),
}
SQUARE = dict.fromkeys(MODULES, (HIDDEN, HIDDEN))
REPEATS = 3


def write_adapter(folder, modules, dtype):
    """Pairs of ordinary size in A and small B, as after some training."""
    import ml_dtypes
    import numpy as np

    from fibration import weights

    rng = np.random.default_rng(0)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "BF16" else np.float32)
    tensors = {}
    for layer in range(LAYERS):
        for module, (m, n) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = (rng.normal(size=(RANK, n)) / n**0.5).astype(kind)
            tensors[f"{name}.lora_B.weight"] = (1e-3 * rng.normal(size=(m, RANK))).astype(kind)
    folder.mkdir()
    weights.write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK}))


def once(path, out, strength):
    """One run in this process."""
    from fibration import weights

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    report = weights.balance_weights(path, out, strength=strength)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rss_after_imports_mb": imported / 1024,
        "pairs": len(report.pairs),
        "largest_imbalance_after": max(pair.imbalance[1] for pair in report.pairs),
        "largest_change": report.worst_change,
    }


def measure(folder, path, strength):
    runs = []
    for _ in range(REPEATS):
        out = folder / "out"
        command = [sys.executable, __file__, "--once", str(path), str(out), str(strength)]
        runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        shutil.rmtree(out)
    numbers = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return numbers | {"seconds_of_all_runs": [run["seconds"] for run in runs]}


def command_seconds(folder, path):
    out = folder / "out"
    command = [Path(sys.executable).with_name("fibration"), "balance", path, "--out", out]
    began = time.perf_counter()
    subprocess.run(list(map(str, command)), capture_output=True, check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="benchmarks/results/adapters.json", type=Path)
    parser.add_argument("--once", nargs=3)
    parser.add_argument("--write", nargs=3)
    options = parser.parse_args()
    if options.once:
        path, out, strength = options.once
        print(json.dumps(once(path, out, float(strength))))
        return
    if options.write:
        path, chosen, dtype = options.write
        write_adapter(Path(path), SQUARE if chosen == "square" else MODULES, dtype)
        return
    load, cases = os.getloadavg(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, modules, dtype, strength in (
            ("4096 x 4096, all seven", SQUARE, "F32", 1.0),
            ("Llama 3 8B's seven modules", MODULES, "F32", 1.0),
            ("Llama 3 8B's seven modules", MODULES, "BF16", 1.0),
            ("Llama 3 8B's seven modules", MODULES, "BF16", 0.5),
        ):
            path = folder / "adapter"
            # In a process of its own: a child's `ru_maxrss` begins with what its parent holds.
            chosen = "square" if modules is SQUARE else "llama"
            subprocess.run([sys.executable, __file__, "--write", str(path), chosen, dtype], check=True)
            size = (path / "adapter_model.safetensors").stat().st_size / 1e6
            case = {"name": name, "type": dtype, "strength": strength, "file_mb": size}
            case |= measure(folder, path, strength)
            if strength == 1 and dtype == "BF16":
                case["seconds_of_the_command"] = command_seconds(folder, path)
            cases.append(case)
            print(json.dumps(case, indent=1))
            shutil.rmtree(path)
    from fibration.study import machine_facts  # not before: children begin with the memory of their parent

    results = {"machine": machine_facts() | {"load average at start": load}, "cases": cases}
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
