"""Write the tables of the docs pages anew from benchmarks/results/*.json, between their markers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOLVERS = (
    "fibration auto",
    "fibration rkc2",
    "fibration rock4",
    "diffrax Tsit5",
    "diffrax Dopri8",
    "scipy LSODA",
    "scipy BDF",
    "scipy Radau",
    "diffrax Kvaerno5",
    "torchdiffeq dopri5",
    "RK4, step 1/sharpness",
    "Euler, step 1.8/sharpness",
    "Euler, step 0.2/sharpness",
)


def gradient_flow(results: dict[str, Any]) -> str:
    """One table for each problem."""
    parts = []
    for name in ("A", "B", "C", "D", "quadratic"):
        problem = results["problems"][name]
        rows = sorted(problem["rows"], key=lambda row: (SOLVERS.index(row["solver"]), -(row["rtol"] or 0)))
        lines = [
            f"### {name[0].upper()}{name[1:]}: {problem['title']}",
            "",
            f"{problem['parameters']:,} parameters, t = 0 to {problem['t1']:,.0f}.",
            "",
            "| solver | rtol | gradients | seconds | first run | MB | relative error |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            rtol = "" if row["rtol"] is None else f"{row['rtol']:.0e}"
            lines.append(
                f"| {row['solver']} | {rtol} | {row['gradients']:,} | {row['seconds']:.2f} | {row['first']:.1f} | "
                f"{row['megabytes']:.0f} | {row['error']:.1e} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def minimizers_gallery(results: dict[str, Any]) -> str:
    """One row for each classifier and data set."""
    lines = ["| data | classifier | cost | accuracy, samples | accuracy, new |", "|---|---|---|---|---|"]
    for data, found in results.items():
        for row in found["rows"]:
            name = row["model"]
            if name == "construct":
                name = f"**`construct`**, {row['method']}{', certified' if row['certified'] else ''}"
            cost = f"{row['cost']:.2g}" if row.get("cost") is not None else ""
            lines.append(f"| {data} | {name} | {cost} | {row['train']:.3f} | {row['test']:.3f} |")
    return "\n".join(lines)


def minimizers(results: dict[str, Any]) -> str:
    """The million samples, then Adam."""
    lines = ["| pass over 1,000,000 × 100 numbers | read from | seconds | ratio | MB |", "|---|---|---|---|---|"]
    for row in results["stream"]["rows"]:
        lines.append(
            f"| {row['what']} | {row['read from']} | {row['seconds']:.2f} | {row['ratio']:.1f} | "
            f"{row['megabytes']:,.0f} |"
        )
    lines += [
        "",
        "| Q | starts below C² = 1e-6 | median C at the end | seconds of one start | `construct` | its cost |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for row in results["adam"]["rows"]:
        lines.append(
            f"| {row['Q']} | {row['reached 1e-6']} of {row['starts']} | {row['median cost at the end']:.2f} | "
            f"{row['seconds of one start']:.3f} | {1e3 * row['construct seconds']:.1f} ms | "
            f"{row['construct cost']:.0e} |"
        )
    return "\n".join(lines)


def balance(results: dict[str, Any]) -> str:
    """The narrow chain, Newton's method, the induced flow."""
    lines = ["| 4096-16-4096 | seconds | of two QRs | error of X | imbalance |", "|---|---|---|---|---|"]
    for row in results["narrow"]:
        errors = [f"{row[key]:.0e}" if key in row else "" for key in ("error", "imbalance")]
        ratio = f"{row['ratio']:.2f}" if row["ratio"] < 100 else f"{row['ratio']:,.0f}"
        lines.append(f"| {row['what']} | {row['seconds']:.4f} | {ratio} | {errors[0]} | {errors[1]} |")
    lines += ["", "| six 32 × 32 matrices | iterations | seconds | moment map |", "|---|---|---|---|"]
    for row in results["newton"]["rows"]:
        lines.append(f"| {row['what']} | {row['count']:,} | {row['seconds']:.3f} | {row['moment']:.0e} |")
    lines += ["", "| three 64 × 64 matrices | solves | seconds | MB more | residual, or error of the law |"]
    lines += ["|---|---|---|---|---|"]
    for row in results["induced"]:
        error = row["residual"] if "residual" in row else row["law"]
        lines.append(
            f"| {row['what']} | {row['count']:,} | {row['seconds']:.2f} | {row['megabytes']:.0f} | {error:.0e} |"
        )
    return "\n".join(lines)


def rescaling(results: dict[str, Any]) -> str:
    """Networks: Newton's method beside sweeps and forward passes."""
    lines = [
        "| network | parameters, units | `rescaling`, `network`, seconds | Newton iterations | "
        "each, of a forward pass | sweeps | function changed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ratio = f"{row['ratio']:.1f}" if row["ratio"] > 0.1 else f"{row['ratio']:.3f}"
        lines.append(
            f"| {row['name']} | {row['parameters']:,}, {row['units']:,} | {row['rescaling']:.2f}, "
            f"{row['network']:.2f} | {row['iterations']} | {ratio} | {row['sweeps']} | {row['change']:.0e} |"
        )
    return "\n".join(lines)


def adapters(results: dict[str, Any]) -> str:
    """Adapters on disk."""
    lines = [
        "| 224 pairs, r = 16 | type | strength | file, MB | seconds | peak, MB | of it imports | product changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["cases"]:
        lines.append(
            f"| {row['name']} | {row['type']} | {row['strength']:g} | {row['file_mb']:.0f} | {row['seconds']:.1f} | "
            f"{row['peak_rss_mb']:.0f} | {row['rss_after_imports_mb']:.0f} | {row['largest_change']:.0e} |"
        )
    return "\n".join(lines)


def linear_systems(results: dict[str, Any]) -> str:
    """Balanced truncation, beside slycot and pyMOR."""
    lines = ["| n = 200 | time | seconds | of slycot's | bounds differ by |", "|---|---|---|---|---|"]
    for row in results["dense"]:
        time = "discrete" if row["discrete"] else "continuous"
        difference = f"{row['difference']:.0e}" if row["difference"] else ""
        lines.append(f"| {row['what']} | {time} | {row['seconds']:.3f} | {row['ratio']:.2f} | {difference} |")
    lines += ["", "| n = 1,000 | seconds | MB more |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['seconds']:.1f} | {row['megabytes']:.0f} |" for row in results["large"]]
    exact = results["digits"]["exact"]
    lines += ["", f"| smallest Hankel singular value, {exact:.2e} | relative error |", "|---|---|"]
    lines += [f"| {row['what']} | {row['error']:.0e} |" for row in results["digits"]["rows"]]
    return "\n".join(lines)


def gram(results: dict[str, Any]) -> str:
    """The Gram matrix, beside the Jacobian's."""
    lines = [
        "| network | N·Q, K | `gram`, seconds | structured | jacobian | `jacrev`, `J @ J.T` | buffers, matrix, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in [row for rows in results.values() if isinstance(rows, list) for row in rows]:
        found = [row.get(rival, {}) for rival in ("structured", "jacobian", "jacrev")]
        ratios = [f"{r['ratio']:,.2f}" if "ratio" in r else "out of memory" if r else "" for r in found]
        lines.append(
            f"| {row['case']} | {row['outputs']:,}, {row['parameters']:,} | {row['auto']['seconds']:.3f} | "
            f"{' | '.join(ratios)} | {row['auto']['temporary_mb']:.0f}, "
            f"{row['gram_mb']:.0f} |"
        )
    return "\n".join(lines)


def canonical(results: dict[str, Any]) -> str:
    """The disparity matrix beside its parts, and coordinates in six dimensions beside Monte Carlo."""
    (whole,), (lattice,) = results["disparity"], results["lattice"]
    both = lattice["search seconds"] + lattice["lattice seconds"]
    return "\n".join(
        [
            "| M, K, nodes | gradients alone, s | product alone, s | `disparity`, s | over their sum | peak, H, MB |",
            "|---|---|---|---|---|---|",
            f"| {whole['parameters']:,}, {whole['modes']}, {whole['nodes']:,} | {whole['gradients, seconds']:.1f} | "
            f"{whole['product, seconds']:.1f} | {whole['disparity, seconds']:.1f} | {whole['ratio']:.2f} | "
            f"{whole['peak MB']:.0f}, {whole['H MB']:.0f} |",
            "",
            f"| {lattice['modes']} modes, {lattice['nodes']:,} nodes | root mean square error | seconds |",
            "|---|---|---|",
            f"| lattice | {lattice['lattice error']:.1e} | {both:.1f}, of which the search "
            f"{lattice['search seconds']:.1f} |",
            f"| Monte Carlo | {lattice['Monte Carlo error']:.1e} | {lattice['Monte Carlo seconds']:.0f} |",
        ]
    )


def _times(rows: list[dict[str, Any]], title: str) -> str:
    """How long each contender took to each level; Adam is listed for each learning rate."""
    levels = list(next(row for row in rows if "to" in row)["to"])
    lines = [f"| {title} | steps | {' | '.join(levels)} | compiling |", "|---|---|" + "---|" * (len(levels) + 1)]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed: {row['failed'].split('.')[0][:90]} |{' |' * (len(levels) + 1)}")
            continue
        cells = ["" if row["to"][level] is None else f"{row['to'][level]:.1f}" for level in levels]
        name = row["name"] + (f", start {row['seed']}" if "seed" in row and row["name"] == "fibration" else "")
        lines.append(f"| {name} | {row['steps']:,} | {' | '.join(cells)} | {row['compile_seconds']:.1f} |")
    return "\n".join(lines)


def adapted_fitting(results: dict[str, Any]) -> str:
    """Seconds to each cost."""
    return _times(results["fitting"], "seconds to a cost of")


def adapted_pinn(results: dict[str, Any]) -> str:
    """Seconds to each error, in both dimensions."""
    parts = (("poisson-2d", "2-d, seconds to an error of"), ("poisson-5d", "5-d, seconds to an error of"))
    return "\n\n".join(_times(results[part], title) for part, title in parts if part in results)


def adapted_memory(results: dict[str, Any]) -> str:
    """Memory of one step."""
    lines = [
        "| one step | parameters | peak, MB | less the Gram matrix, in parameters | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in results["memory"]:
        lines.append(
            f"| {row['name']} | {row['parameters']:,} | {row['peak MB']:.0f} | "
            f"{row['peak less the Gram matrix, in parameters']:.1f} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


def rebalancing(results: dict[str, Any]) -> str:
    """One table for each problem and optimiser: a row for each method, a column for each start."""
    parts = []
    rules = {"sgd": "SGD", "momentum": "momentum", "adam": "Adam"}
    for part, what in (("adapters", "Adapters"), ("networks", "Deep ReLU networks")):
        rows = results[part]["rows"]
        starts = list(dict.fromkeys(row["start"] for row in rows))
        costs = {(row["rule"], row["method"]): row["microseconds"] for row in results[part]["overhead"]}
        for rule in dict.fromkeys(row["rule"] for row in rows):
            found = {(row["method"], row["start"]): row for row in rows if row["rule"] == rule}
            lines = [
                f"| {what}, {rules[rule]} | {' | '.join(starts)} | μs a step |",
                "|---|" + "---|" * (len(starts) + 1),
            ]
            for method in dict.fromkeys(row["method"] for row in rows if row["rule"] == rule):
                cells = [_training(found[method, start]) if (method, start) in found else "" for start in starts]
                cost = f"{costs[rule, method]:.0f}" if (rule, method) in costs else ""
                lines.append(f"| {method} | {' | '.join(cells)} | {cost} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _training(row: dict[str, Any]) -> str:
    """Median loss and its range, median test error, learning rate; null losses are infinite."""
    losses = sorted(float("inf") if loss is None else loss for loss in row["loss"])
    errors = sorted(row["error"])
    middle = [(values[len(values) // 2 - 1] + values[len(values) // 2]) / 2 for values in (losses, errors)]
    low, mid, high = (f"{loss:.2g}".replace("inf", "∞") for loss in (losses[0], middle[0], losses[-1]))
    return f"{mid} ({low}–{high}), {100 * middle[1]:.1f} %"


WRITERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "gradient_flow": ("benchmarks", gradient_flow),
    "minimizers": ("benchmarks", minimizers),
    "balance": ("benchmarks", balance),
    "rescaling": ("benchmarks", rescaling),
    "adapters": ("benchmarks", adapters),
    "linear_systems": ("benchmarks", linear_systems),
    "gram": ("benchmarks", gram),
    "adapted_fitting": ("benchmarks", adapted_fitting),
    "adapted_pinn": ("benchmarks", adapted_pinn),
    "adapted_memory": ("benchmarks", adapted_memory),
    "canonical": ("benchmarks", canonical),
    "rebalancing": ("rebalancing", rebalancing),
    "minimizers_gallery": ("minimizers", minimizers_gallery),
}


def main() -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    for name, (title, write) in WRITERS.items():
        page = ROOT / "docs" / f"{title}.md"
        text = page.read_text()
        results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{write(results)}\n\n{end}{rest.split(end)[1]}"
        page.write_text(text)


if __name__ == "__main__":
    main()
