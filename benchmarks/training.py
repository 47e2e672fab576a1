"""Times training steps with several ways of exchanging gradients, in one run, and checks that they train alike.

    ringred run -np 2 python benchmarks/training.py --workload a --optimizer adam
    ringred run -np 2 python benchmarks/training.py --workload a --memory --modes ddp
    python benchmarks/training.py --workload a --memory-table --np 2

The third line starts the second once for each mode. benchmarks/workloads.py has the workloads. The modes:

    none      a plain torch optimizer, nothing is exchanged: the baseline
    ringred   ringred.torch.DistributedOptimizer around it
    fused     the same with fused=True, where this version has it
    ddp       DistributedDataParallel over gloo, gradient_as_bucket_view=True, buffers not synchronized in forward

Every mode trains a model of its own from the same parameters with the same batches, which differ between ranks. In a
round every mode makes one step, in an order that rotates: a barrier, then zero_grad, forward, backward and step, timed.
A time is the slowest rank's; overhead is the time above that of `none` in the same round. Medians, with quartiles.

Every mode but `none` must end with the same parameters on all ranks, bit for bit. And modes must agree: in the first
step, and again after the rounds in one more step, for which all get the parameters and the optimizer state of the last
one. What each parameter tensor gains in such a step may differ between modes, in the 2-norm, by TOLERANCE of itself:
forward passes are the same, so only rounding differs, by some 1e-7 of a gradient, and by up to 1e-4 where a step is
small against its parameter. Over all rounds the difference is printed and not bounded: once rounding moves a ReLU's
input across zero, the gradient jumps, and the modes drift apart although every average is right.

Memory is the proportional set size, which counts shared pages once, summed over the ranks, above what it was after
rr.init(): after a step with its gradients alive, and at the peak, which is the sum of each rank's highest sample.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from workloads import MODES, SEED, WORKLOADS, Trainer, batch_of, build, plain_optimizer

import ringred as rr
from ringred.cli.bench_table import cores, processor

WARM_UP = 20
MEMORY_STEPS = 5
SAMPLING_SECONDS = 0.02
TOLERANCE = 0.001
HOROVOD = {(2, "sgd"): 70, (2, "adam"): 40, (4, "sgd"): 169, (4, "adam"): 156}  # ms of overhead in workload a
Figures = dict[str, list[float]]


def main() -> int:
    args = arguments()
    if args.memory_table:
        return memory_table(args)
    torch.set_num_threads(1)
    rr.init()
    result = memory(args) if args.memory else timing(args)
    if rr.rank() == 0 and args.json:
        args.json.write_text(json.dumps(facts(args) | result, indent=1) + "\n")
    rr.barrier()  # rank 0 serves gloo's store, and leaves last
    if dist.is_initialized():
        dist.destroy_process_group()
    rr.shutdown()
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, default="a")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="adam")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=MODES, help="separated by commas")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, metavar="STEPS", help="before the rounds, 1 or more")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--memory", action="store_true", help="measure the memory of one mode")
    parser.add_argument("--memory-table", action="store_true", help="start a job for the memory of each mode")
    parser.add_argument("--np", type=int, default=2, help="ranks of the jobs of --memory-table")
    args = parser.parse_args()
    if unknown := set(args.modes) - {*MODES, "fused"}:
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if args.memory and len(args.modes) != 1:
        parser.error("--memory measures one mode: add --modes MODE")
    if not (args.memory or args.memory_table) and "none" not in args.modes:
        parser.error("overhead is measured against the mode none: add it to --modes")
    if not args.memory and not set(args.modes) - {"none"}:
        parser.error("there must be a mode beside none")
    if args.rounds < 2 or args.warm_up < 1:
        parser.error("quartiles need two rounds at least, and the first step is no round")
    return args


def timing(args: argparse.Namespace, device: str = "cpu") -> dict[str, Any]:
    """All rounds, the checks, and the table; returns the times in seconds, of the slowest rank, by mode and round."""
    trainers = {mode: build(mode, args.workload, args.optimizer, device) for mode in args.modes}
    exchanging = {mode: trainer for mode, trainer in trainers.items() if mode != "none"}
    start = WORKLOADS[args.workload](SEED).model
    run_rounds(trainers, range(1))
    errors = {"first step": checked_difference(exchanging, start)}
    first, end = args.warm_up, args.warm_up + args.rounds
    run_rounds(trainers, range(1, first))
    times = run_rounds(trainers, range(first, end))
    for mode, trainer in exchanging.items():  # without buffers: each rank's BatchNorm has running statistics of its own
        named = trainer.workload.model.named_parameters()
        rr.check_replicas((f"{name} of mode {mode}", parameter) for name, parameter in named)
    errors["all steps"] = max(differences(exchanging, start).values())
    place = realign(exchanging)
    run_rounds(exchanging, range(end, end + 1))
    errors["one more from the same place"] = checked_difference(exchanging, place)
    if rr.rank() == 0:
        print("\n".join([*head(args, start), *table(times), *comparisons(times, args)]))
        parts = "; ".join(f"{when} {value:.1e}" for when, value in errors.items())
        print(f"same bits on all ranks; difference between modes: {parts}")
    return {"seconds": times, "difference between modes": errors}


def run_rounds(trainers: dict[str, Trainer], turns: range) -> Figures:
    modes = list(trainers)
    times = np.zeros((len(turns), len(modes)))
    for row, turn in enumerate(turns):
        batch = batch_of(trainers[modes[0]].workload, turn)
        for place in range(len(modes)):
            column = (turn + place) % len(modes)
            times[row, column] = trainers[modes[column]].timed_step(batch)
    slowest = rr.allreduce(times, rr.Max)
    return {mode: slowest[:, column].tolist() for column, mode in enumerate(modes)}


def realign(trainers: dict[str, Trainer]) -> nn.Module:
    """Give every mode the parameters and the optimizer state of the last one; returns a copy of the model."""
    *others, last = trainers.values()
    for trainer in others:
        trainer.workload.model.load_state_dict(last.workload.model.state_dict())
        trainer.optimizer.zero_grad()
        trainer.optimizer.load_state_dict(copy.deepcopy(last.optimizer.state_dict()))
    return copy.deepcopy(last.workload.model)


def checked_difference(trainers: dict[str, Trainer], start: nn.Module) -> float:
    """The largest of the differences, none of which may be above the tolerance."""
    found = differences(trainers, start)
    for what, value in found.items():
        if not value <= TOLERANCE:
            raise AssertionError(f"{what} is {value:.3g} of its way off, and {TOLERANCE} is allowed")
    return max(found.values())


def differences(trainers: dict[str, Trainer], start: nn.Module) -> dict[str, float]:
    """How far each parameter tensor is from that of the last mode, as a part of the way of that one from the start."""
    found = {}
    *_, last = trainers.values()
    for mode, trainer in trainers.items():
        named = trainer.workload.model.named_parameters()
        triples = zip(named, last.workload.model.parameters(), start.parameters(), strict=True)
        for (name, ours), theirs, before in triples:
            apart, way = distance(ours, theirs), distance(theirs, before)
            found[f"{name} of mode {mode}"] = apart / way if way else float(apart > 0)
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(one.detach().cpu() - other.detach().cpu()))


def head(args: argparse.Namespace, model: nn.Module) -> list[str]:
    sizes = [parameter.numel() for parameter in model.parameters()]
    known = facts(args)
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return [
        f"{known['processor']}, {known['cores']} cores; {versions}; {known['date']}",
        f"workload {args.workload}, {sum(sizes):,} parameters in {len(sizes)} tensors, {args.optimizer}; "
        f"{known['ranks']} ranks, {known['rounds']} rounds",
        f"{'mode':<10}{'step (ms)':>10}{'quartiles':>20}{'overhead (ms)':>16}{'quartiles':>20}",
    ]


def table(times: Figures) -> list[str]:
    lines = []
    for mode, seconds in times.items():
        over = f"{'':>16}{'':>20}" if mode == "none" else cells(overheads(times, mode), 16)
        lines.append(f"{mode:<10}{cells(seconds, 10)}{over}".rstrip())
    return lines


def cells(seconds: list[float], width: int) -> str:
    low, middle, high = (1e3 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return f"{middle:>{width}.1f}{f'{low:.1f} to {high:.1f}':>20}"


def overheads(times: Figures, mode: str) -> list[float]:
    return [took - base for took, base in zip(times[mode], times["none"], strict=True)]


def comparisons(times: Figures, args: argparse.Namespace) -> list[str]:
    """Our overheads as parts of those of DDP and of Horovod."""
    over = {mode: statistics.median(overheads(times, mode)) for mode in times}
    ours = [mode for mode in over if mode not in ("none", "ddp")]
    lines = [f"overhead of {mode} / ddp: {over[mode] / over['ddp']:.3f}" for mode in ours if over.get("ddp", 0) > 0]
    published = HOROVOD.get((rr.size(), args.optimizer)) if args.workload == "a" else None
    if published:
        lines.append(f"published for Horovod 0.28.1, on another machine with two cores: overhead {published} ms")
        lines += [f"overhead of {mode} / Horovod: {1e3 * over[mode] / published:.3f}" for mode in ours]
    return lines


def facts(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": cores(),
        "versions": {"ringred": rr.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "ranks": rr.size(),
        "workload": args.workload,
        "optimizer": args.optimizer,
        "modes": args.modes,
        "rounds": args.rounds,
    }


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Bytes of all ranks above those after rr.init(): after a step, and the peak."""
    plain_optimizer(args.optimizer, nn.Linear(1, 1)).step()  # torch imports some of its modules in a first step
    before = settled_bytes()
    with sampled() as samples:
        trainer = build(args.modes[0], args.workload, args.optimizer)
        for turn in range(MEMORY_STEPS):
            trainer.optimizer.zero_grad()
            trainer.compute(batch_of(trainer.workload, turn))
        after = settled_bytes()
    above = rr.allreduce(np.array([after, max(after, *samples)]) - before, rr.Sum).tolist()
    if rr.rank() == 0:
        print(f"{args.modes[0]}: {above[0] / 1e6:.0f} MB after a step, {above[1] / 1e6:.0f} MB at the peak")
    return {"bytes after a step": above[0], "bytes at the peak": above[1]}


def settled_bytes() -> int:
    """This rank's memory while no rank does anything else."""
    rr.barrier()
    value = own_bytes()
    rr.barrier()
    return value


def own_bytes() -> int:
    """The proportional set size of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


@contextmanager
def sampled() -> Iterator[list[int]]:
    """A list to which a thread adds this process's memory until the context ends."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            samples.append(own_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def memory_table(args: argparse.Namespace) -> int:
    """One job for each mode, so that none meets what another has left behind."""
    print(f"workload {args.workload}, {args.optimizer}, {args.np} ranks: MB of all ranks, gradients alive")
    print(f"{'mode':<10}{'after a step':>14}{'peak':>10}")
    tables = []
    for mode in args.modes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "memory.json")
            launch = [sys.executable, "-m", "ringred", "run", "-np", str(args.np), "--", sys.executable, __file__]
            options = ["--workload", args.workload, "--optimizer", args.optimizer, "--modes", mode, "--json", str(file)]
            subprocess.run([*launch, "--memory", *options], check=True, stdout=subprocess.DEVNULL)
            told = json.loads(file.read_text())
        tables.append(told)
        after, peak = told["bytes after a step"] / 1e6, told["bytes at the peak"] / 1e6
        print(f"{mode:<10}{after:>14.0f}{peak:>10.0f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
