"""Every algorithm at every size, measured and predicted, and what ringred chooses: a page and the figures.

    python benchmarks/algorithms.py [--layout 4 | --layout 2+2] [--memory private] [--rounds 5] [--output NAME]

A layout of several numbers makes hosts on this machine (tools/cluster.py). The sizes are 8 bytes to 64 MiB, by 4, in
jobs of some; each measures its costs for itself, unless RINGRED_TUNING names a file. How a figure is made is told by
ringred/cli/bench_algorithms.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tools")]

JOBS = [("8", "128K", "4"), ("512K", "8M", "4"), ("32M", "64M", "2")]
JOB_SECONDS = 300.0
WITHIN = 1.15  # of the fastest, or their spreads overlap


def main() -> int:
    """Run the jobs, print the page; 1 where a choice was not good enough."""
    from run_on_hosts import layout_of

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layout", type=layout_of, default=[2], help="ranks of each host (default: 2)")
    parser.add_argument("--memory", default="private", choices=["arena", "private"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    reports = [job(args, *sizes) for sizes in JOBS]
    rows = [row for report in reports for row in report["results"]]
    text = page(args, rows, [report["costs"] for report in reports])
    print(text)
    if args.output:
        args.output.with_suffix(".md").write_text(text + "\n")
        args.output.with_suffix(".json").write_text(json.dumps(reports, indent=1) + "\n")
    return 0 if all(good(row) for row in rows) else 1


def job(args: argparse.Namespace, begin: str, end: str, by: str) -> dict[str, Any]:
    """What `ringred bench --algorithms` reports for some sizes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        words = [sys.executable, "-P", "-m", "ringred", "bench", "allreduce", "--algorithms", "--memory", args.memory]
        words += ["-b", begin, "-e", end, "-f", by, "-N", str(args.rounds), "--json", str(file)]
        if len(args.layout) == 1:
            launcher = [sys.executable, "-P", "-m", "ringred", "run", "-np", str(args.layout[0]), "--"]
            subprocess.run(launcher + words, check=True, cwd=folder, timeout=JOB_SECONDS, stdout=subprocess.DEVNULL)
        else:
            on_hosts(args.layout, words)
        report: dict[str, Any] = json.loads(file.read_text())
    return report


def on_hosts(layout: list[int], words: list[str]) -> None:
    """Run a command on hosts that are made for it."""
    from cluster import Cluster
    from run_on_hosts import find_mpi, start

    with Cluster(len(layout)) as cluster:
        ended = start(cluster, layout, words, find_mpi(sys.executable), dict(os.environ)).wait(JOB_SECONDS)
    if ended.status != 0:
        raise SystemExit(f"algorithms.py: the job ended with {ended.status}: {ended.text[-3000:]}")


def good(row: dict[str, Any]) -> bool:
    """Whether the choice is near enough to the fastest."""
    return bool(row["chosen_over_best"] <= WITHIN or row["overlap"])


def page(args: argparse.Namespace, rows: list[dict[str, Any]], costs: list[dict[str, float]]) -> str:
    """The figures as a page in Markdown."""
    from ringred.cli.bench_algorithms import figure
    from ringred.cli.bench_table import cores, processor

    names = list(dict.fromkeys(name for row in rows for name in row["algorithms"]))
    layout = "+".join(map(str, args.layout))
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    lines = [
        f"# Allreduce by algorithm: {layout} ranks, {args.memory} arrays, {date}",
        "",
        f"Machine: {processor()}, {cores()} cores, {platform.system()} {platform.release()}. fp32, sum, in place; "
        f"median of {args.rounds} rounds. Microseconds measured (predicted); in bold what is chosen; its time over "
        "that of the fastest, ~ where their spreads overlap.",
        "",
        "| bytes | " + " | ".join(names) + " | ratio |",
        "|--:|" + "--:|" * (len(names) + 1),
    ]
    for row in rows:
        cells = [str(row["size"])]
        for name in names:
            one = row["algorithms"].get(name)
            text = "-" if one is None else f"{figure(one['time'])} ({figure(one['predicted'])})"
            cells.append(f"**{text}**" if name == row["chosen"] else text)
        overlaps = "~" if row["overlap"] and row["chosen"] != row["best"] else ""
        lines.append("| " + " | ".join([*cells, f"{row['chosen_over_best']:.2f}{overlaps}"]) + " |")
    lines += ["", "Costs of each job: " + "; ".join(cost_text(one) for one in costs) + "."]
    return "\n".join(lines)


def cost_text(costs: dict[str, float]) -> str:
    """Costs with three digits."""
    return ", ".join(f"{name} {value:.3g}" for name, value in costs.items())


if __name__ == "__main__":
    sys.exit(main())
