"""Times training steps on GPUs with several ways of exchanging gradients, in one run, and checks that they train alike.

    python benchmarks/gpu/gpu_training.py     # as each of two ranks, which may share a GPU: make bench-gpu does so

The workload is c of benchmarks/workloads.py, a small GPT, and rounds, checks and the table are those of
benchmarks/training.py. The modes:

    none      a plain torch optimizer, nothing is exchanged: the baseline
    staged    DistributedOptimizer, RINGRED_GPU=staged: gradients go through host memory
    direct    DistributedOptimizer, RINGRED_GPU=direct: gradients are reduced by the devices
    ddp       DistributedDataParallel over gloo
    nccl      DistributedDataParallel over NCCL, where it runs: it refuses two ranks on one GPU

A step is over when the device is idle; overhead is exposed communication: the time above a step of `none`, whose ranks
use the same devices at the same moment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ringred as rr

sys.path.insert(0, str(Path(__file__).parents[1]))

import training  # of the folder above
import workloads

MODES = ("none", "staged", "direct", "ddp", "nccl")
NO_GPU = "ringred: torch sees no GPU here; nothing was measured."


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    rr.init()
    if args.device == "cuda":
        torch.cuda.set_device(rr.local_rank() % torch.cuda.device_count())
    result = measure(args)
    if rr.rank() == 0 and args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    rr.barrier()  # rank 0 serves gloo's store, and leaves last
    if dist.is_initialized():
        dist.destroy_process_group()
    rr.shutdown()
    return 0


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default="c")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="adam")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=MODES, help="separated by commas")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--warm-up", type=int, default=training.WARM_UP, metavar="STEPS", help="before the rounds")
    parser.add_argument("--device", default="cuda", help="cpu for a rehearsal")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(words)
    if unknown := set(args.modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if "none" not in args.modes or len(args.modes) < 2:
        parser.error("overhead is measured against the mode none: there must be that and another one")
    if args.rounds < 2 or args.warm_up < 1:
        parser.error("quartiles need two rounds at least, and the first step is no round")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of the modes that can run here, and what the table does not say; returns all figures. Collective."""
    against = reason_against_nccl(args.device) if "nccl" in args.modes else ""
    args.modes = [mode for mode in args.modes if mode != "nccl" or not against]
    before = os.environ.get("RINGRED_GPU")
    try:
        result = training.timing(args, args.device)
    finally:
        os.environ.pop("RINGRED_GPU", None)
        if before is not None:
            os.environ["RINGRED_GPU"] = before
    notes = [f"device: {device_name(args.device)}, ranks of it: {rr.local_size()}"]
    notes += [f"nccl does not run here: {against}"] if against else []
    if rr.rank() == 0:
        print("\n".join(notes), flush=True)
    return training.facts(args) | result | {"notes": notes}


def reason_against_nccl(device: str) -> str:
    """Why NCCL cannot connect these ranks, "" where it can; the same on all of them."""
    error = "it is for GPUs"
    if device == "cuda":
        try:
            workloads.nccl_group()
            error = ""
        except (RuntimeError, ValueError) as refusal:  # torch's errors of communication are of the first kind
            error = str(refusal).splitlines()[0]
    return next((one for one in rr.allgather_object(error) if one), "")


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    sys.exit(main())
