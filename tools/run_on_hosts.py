"""Run an MPI job over several hosts that are made on this machine (cluster.py), as mpirun does it over real ones.

    python tools/run_on_hosts.py [--layout 2+2] [--rate 1gbit] [--seconds 600] -- COMMAND...

--layout is the number of ranks on each host. mpirun runs on the cluster's head, which has no rank, and reaches the
hosts through the cluster's agent in place of ssh. Open MPI, MPICH and Intel MPI: whichever mpi4py loads in --python.
Unlike ssh, the agent hands on mpirun's environment. The exit code is the job's; 124 if it was ended for lateness.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import HEAD, Cluster, ClusterError, Ended, Running

from ringred import cores
from ringred.cli import mpi_launcher
from ringred.cli.mpi_launcher import INTEL_MPI, OPEN_MPI, LauncherError

JOB_SECONDS = 60.0

# Ranks that wait take turns on a core that they share. Without it they spin: 1 MB over two ranks on each of two hosts
# of one core took Open MPI 150 ms instead of 2, and Intel MPI 16 instead of 5. MPICH does so by itself.
YIELDING = {"OMPI_MCA_mpi_yield_when_idle": "true", "I_MPI_THREAD_YIELD": "3"}


@dataclass(frozen=True)
class Mpi:
    """An MPI: its flavour, and its mpirun."""

    flavour: str
    launcher: Path


def find_mpi(python: str = sys.executable) -> Mpi:
    """The MPI that mpi4py loads in an interpreter.

    Raises:
        LauncherError: there is none, or no mpirun that fits it.
    """
    library = mpi_launcher.loaded_library(python)
    return Mpi(library.flavour, mpi_launcher.find_launcher(library))


def start(
    cluster: Cluster,
    layout: Sequence[int],
    command: Sequence[str],
    mpi: Mpi | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | str = "/",
    interleaved: bool = False,
    show: bool = False,
) -> Running:
    """Start a job with ``layout[i]`` ranks on host i.

    Args:
        environment: of mpirun and the ranks; this process's by default.
        interleaved: deal the ranks out one host after the other: 0 2 | 1 3. Otherwise they fill the hosts: 0 1 | 2 3.
        show: let the output through, instead of keeping it.
    """
    if len(layout) > len(cluster.hosts) or not layout or min(layout) < 1:
        raise ClusterError(
            f"a layout names at least one rank for each host, and no more hosts than the {len(cluster.hosts)} that "
            f"there are: it is {'+'.join(map(str, layout))}; make a Cluster with more hosts"
        )
    mpi = mpi or find_mpi()
    ranks = sum(layout)
    machine = mpi_launcher.this_machine(cores.usable_cores())
    extra = options(cluster, layout, mpi, interleaved)
    words = mpi_launcher.command_line(mpi.flavour, mpi.launcher, ranks, machine, extra, command)
    machine = mpi_launcher.Machine(
        machine.is_root, machine.cores, machine.has_fabric, dict(os.environ if environment is None else environment)
    )
    variables = mpi_launcher.launch_environment(mpi.flavour, mpi.launcher, ranks, machine, None)
    if mpi.flavour == OPEN_MPI:
        variables["PRTE_MCA_plm_ssh_agent"] = str(cluster.agent)
    if is_crowded(cluster, layout):
        variables = {**YIELDING, **variables}
    return cluster.start(HEAD, words, variables, directory, show)


def run(
    cluster: Cluster,
    layout: Sequence[int],
    command: Sequence[str],
    mpi: Mpi | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | str = "/",
    interleaved: bool = False,
    seconds: float = JOB_SECONDS,
) -> Ended:
    """Start a job like ``start`` and wait for its end."""
    return start(cluster, layout, command, mpi, environment, directory, interleaved).wait(seconds)


def options(cluster: Cluster, layout: Sequence[int], mpi: Mpi, interleaved: bool) -> list[str]:
    """What mpirun is told about the hosts."""
    slots = [f"{host}:{ranks}" for host, ranks in zip(cluster.hosts, layout, strict=False)]
    if mpi.flavour == OPEN_MPI:
        return ["--host", ",".join(slots), "--map-by", "node" if interleaved else "slot"]
    turns = [host for turn in range(max(layout)) for host, ranks in enumerate(layout) if turn < ranks]
    more: list[str] = []
    if interleaved and mpi.flavour == INTEL_MPI:
        slots = [f"{cluster.hosts[host]}:1" for host in turns]
    elif interleaved:  # MPICH takes a host that is named twice for two hosts
        more = ["-rankmap", ",".join(map(str, turns))]
    machines = cluster.directory / "machines"
    machines.write_text("".join(f"{line}\n" for line in slots))
    which = "-bootstrap" if mpi.flavour == INTEL_MPI else "-launcher"
    return ["-machinefile", str(machines), which, "ssh", f"{which}-exec", str(cluster.agent), *more]


def is_crowded(cluster: Cluster, layout: Sequence[int]) -> bool:
    """True if a host's ranks outnumber its cores, with the ranks of the hosts that share these cores."""
    cores = [set(cluster.cores[host]) for host in cluster.hosts[: len(layout)]]
    demands = (sum(ranks for ranks, its in zip(layout, cores, strict=True) if its & own) for own in cores)
    return any(demand > len(own) for demand, own in zip(demands, cores, strict=True))


def layout_of(text: str) -> list[int]:
    """Read "2+2"."""
    parts = text.split("+")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"a layout is the ranks of each host, such as 2+2 or 3+1, not {text!r}")
    return [int(part) for part in parts]


def main() -> int:
    """Run one job and pass on what it prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layout", type=layout_of, default=[2, 2], help="ranks of each host (default: 2+2)")
    parser.add_argument("--interleaved", action="store_true", help="deal ranks out one host after the other")
    parser.add_argument("--rate", help="limit each host's link, e.g. to 1gbit")
    parser.add_argument("--seconds", type=float, default=600.0, help="end the job after so long (default: 600)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter whose mpi4py says which MPI it is")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    args = parser.parse_args()
    mpi = find_mpi(args.python)
    with Cluster(len(args.layout)) as cluster:
        if args.rate:
            cluster.throttle(args.rate)
        job = start(
            cluster, args.layout, args.command, mpi, directory=Path.cwd(), interleaved=args.interleaved, show=True
        )
        ended = job.wait(args.seconds)
    if ended.timed_out:
        print(f"tools/run_on_hosts.py: the job was ended after {args.seconds:g} s", file=sys.stderr)
    return ended.status if ended.status >= 0 else 128 - ended.status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, LauncherError) as error:
        sys.exit(f"tools/run_on_hosts.py: {error}")
