"""Run all tests: C++ tests, pytest on one rank, then under mpirun with 2, 3 and 4 ranks. One summary line at the end.

    python tools/test.py [--cpp BUILD_DIRECTORY] [--only-ranks] [--ranks 2 3 4] [--hosts 2+2 3+1] [-- pytest arguments]
    python tools/test.py --device cuda [--ranks 2 4] [-- pytest arguments]

tests/python runs on one rank, tests/parallel on every rank count (some files of it on four), tests/mpi and tests/hosts
once (their tests start jobs of their own). Three ranks are on two nodes, told apart by RINGRED_NODE. With --hosts
tests/parallel also runs over several hosts that are made on this machine, with so many ranks on each (run_on_hosts.py);
where they cannot be made, that counts as a skipped test, with the reason.

Two ranks also run some files with tensors on a device that is made up (tests/parallel/fake_gpu.py). With --device cuda
nothing runs but these and a few more, with tensors on a GPU, on one rank and on as many as --ranks says; where torch
sees no GPU, they are skipped. Without mpi4py torchrun starts these ranks, and nobody compares their outcomes.
The exit code is 0 only if every stage ran to its end, found tests, and none failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import reason_against
from run_on_hosts import layout_of
from store_ranks import end

from ringred import cores
from ringred.cli import mpi_launcher

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
STAGE_SECONDS = 900.0  # the slowest stage takes a fraction of this on two cores; more is a hang
SHOWN_LINES = 40
NODES = {3: (" on two nodes", {"RINGRED_TEST_NODES": "0 0 1"})}
"""By number of ranks, where they are if not on one node: a name, and the variables that put them there."""
_CALLS = ("algorithms", "asynchronous", "objects", "process_sets", "random_operations", "replicas")
FILES = {4: [f"tests/parallel/test_{name}.py" for name in (*_CALLS, "torch_fused_state", "torch_training")]}
"""By number of ranks, which files: with more ranks than cores those that wait for each other most. Else all. The
collectives run on four ranks in tests/hosts."""

RUN = "tests/mpi/test_run.py"  # looks for what jobs leave in /dev/shm, so no other jobs may come and go
APART = [f"tests/mpi/test_{name}.py" for name in ("bench", "diagnosis", "links")]
"""Of tests/mpi, what runs by itself, and what runs beside the rest: with Open MPI, whose traces nobody looks for."""

ON_FAKE = [f"tests/parallel/test_{name}.py" for name in ("devices", "direct", "direct_groups")]
_MORE = [*ON_FAKE, "tests/parallel/test_gpu_training.py"]
_FACE = ("functions", "operations", "optimizer_options", "several_optimizers", "sync_batch_norm", "training")
ON_DEVICES = [*_MORE, *(f"tests/parallel/test_torch_{name}.py" for name in _FACE)]
"""Which files also run with all tensors on a device. All pass on the one that is made up; CI has time for ON_FAKE."""


@dataclass(frozen=True)
class Stage:
    """One command whose results stand in a JUnit file; ``ranks`` > 1 means it runs under mpirun.

    ``obstacle`` is why it cannot run on this machine; ``beside``: it runs at the same time as the one before, and its
    output follows.
    """

    name: str
    words: list[str]
    results: Path
    ranks: int = 1
    environment: dict[str, str] | None = None
    obstacle: str | None = None
    beside: bool = False


@dataclass
class Count:
    """How many tests passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def main() -> int:
    """Run the stages one after the other and print the sum."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpp", type=Path, metavar="DIRECTORY", help="also run the C++ tests built there")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3, 4], help="rank counts under mpirun")
    parser.add_argument("--device", choices=["cuda", "fake"], help="only tests with tensors on a device of this kind")
    parser.add_argument("--only-ranks", action="store_true", help="leave out the stages of pytest without mpirun")
    parser.add_argument(
        "--hosts", type=layout_of, nargs="*", default=[], metavar="LAYOUT", help="ranks of each host, such as 2+2"
    )
    parser.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments for pytest")
    args = parser.parse_args()
    # A shell ignores it for what it starts in the background, and so would all that is started here, to be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    total = Count()
    lines = []
    for together in side_by_side(stages(args)):
        for stage, count in zip(together, run(together), strict=True):
            lines.append(f"  {stage.name}: {count}" + (f" ({stage.obstacle})" if stage.obstacle else ""))
            total.passed += count.passed
            total.failed += count.failed
            total.skipped += count.skipped
    print("\n".join(["== summary", *lines]))
    print(f"tests: {total}")
    return 1 if total.failed or not total.passed else 0


def stages(args: argparse.Namespace) -> list[Stage]:
    """The stages, in order."""
    if args.device is not None:
        alone = pytest_stage(f"1 rank on {args.device}", ON_DEVICES, args.pytest)
        alone = replace(alone, environment={**os.environ, "RINGRED_TEST_DEVICE": args.device})
        return [alone, *(ranks_stage(ranks, args.pytest, args.device, all_files=True) for ranks in args.ranks)]
    found = []
    if args.cpp is not None:
        ctest = shutil.which("ctest", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        results = REPORTS / "cpp.xml"
        words = [ctest or "ctest", "--test-dir", str(args.cpp), "--output-on-failure", "--no-tests=error", "-j2"]
        words += ["--label-exclude", "gpu|nightly"]
        found.append(Stage("C++", [*words, "--timeout", "300", "--output-junit", str(results)], results))
    if not args.only_ranks:
        alone = ["tests/python", "tests/parallel", "--ignore=tests/parallel/test_torch_buckets.py"]  # of several ranks
        found.append(pytest_stage("1 rank", alone, args.pytest))
        found.append(pytest_stage("jobs of ringred run", [RUN], args.pytest))
        # Tests that mostly wait for the jobs that they have started.
        rest = ["tests/mpi", *(f"--ignore={one}" for one in (RUN, *APART))]
        found.append(pytest_stage("jobs started by tests", rest, args.pytest))
        for name, places in (("more jobs started by tests", APART), ("hosts made by tests", ["tests/hosts"])):
            found.append(replace(pytest_stage(name, places, args.pytest), beside=True))
    found += [ranks_stage(ranks, args.pytest) for ranks in args.ranks]
    if 2 in args.ranks:
        found.append(ranks_stage(2, args.pytest, "fake"))
    found += [hosts_stage(layout, args.pytest) for layout in args.hosts]
    return found


def ranks_stage(ranks: int, more: list[str], device: str | None = None, all_files: bool = False) -> Stage:
    """tests/parallel under mpirun; with a device, files that run on it, with all tensors there."""
    where, variables = NODES.get(ranks, ("", {}))
    files = FILES.get(ranks, ["tests/parallel"])
    if device is not None:
        where, variables = f"{where} on {device}", {**variables, "RINGRED_TEST_DEVICE": device}
        files = ON_DEVICES if all_files else ON_FAKE
    stage = pytest_stage(f"{ranks} ranks{where}", files, more)
    if device is not None and importlib.util.find_spec("mpi4py") is None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        words = [*torchrun, *stage.words[1:]]
        return Stage(f"{stage.name} (torchrun)", words, stage.results, 1, {**os.environ, **variables})
    library = mpi_launcher.loaded_library()
    launcher = mpi_launcher.find_launcher(library)
    machine = mpi_launcher.this_machine(cores.usable_cores())
    words = mpi_launcher.command_line(library.flavour, launcher, ranks, machine, [], stage.words)
    environment = mpi_launcher.launch_environment(library.flavour, launcher, ranks, machine, None)
    return Stage(f"{stage.name} ({library.flavour})", words, stage.results, ranks, {**environment, **variables})


def hosts_stage(layout: list[int], more: list[str]) -> Stage:
    """tests/parallel over several hosts, with so many ranks on each."""
    text = "+".join(map(str, layout))
    stage = pytest_stage(f"hosts {text}", ["tests/parallel"], more)
    runner = [sys.executable, str(ROOT / "tools" / "run_on_hosts.py"), "--seconds", str(STAGE_SECONDS)]
    words = [*runner, "--layout", text, "--", *stage.words]
    return Stage(stage.name, words, stage.results, sum(layout), obstacle=reason_against())


def pytest_stage(name: str, directories: list[str], more: list[str]) -> Stage:
    """A pytest run over ``directories``."""
    results = REPORTS / f"{name.replace(' ', '-')}.xml"
    # mpirun gives its ranks a pseudo-terminal, so pytest itself cannot tell whether anybody sees colours.
    color = "yes" if sys.stdout.isatty() else "no"
    words = [sys.executable, "-m", "pytest", "-q", f"--color={color}", f"--junitxml={results}", *directories, *more]
    return Stage(name, words, results)


def side_by_side(stages: list[Stage]) -> list[list[Stage]]:
    """The stages in groups that run at the same time."""
    groups: list[list[Stage]] = []
    for stage in stages:
        if stage.beside and groups:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def run(together: list[Stage]) -> list[Count]:
    """Run stages at the same time, and count the results of each."""
    running: list[Running | None] = []
    try:
        for number, stage in enumerate(together):
            running.append(None if stage.obstacle else Running(stage, number > 0))
        return [Count(skipped=1) if one is None else one.count() for one in running]
    except KeyboardInterrupt:
        for one in running:
            if one is not None:
                end(one.process)
        raise


class Running:
    """A stage under way. What a hidden one prints is shown when it is counted."""

    def __init__(self, stage: Stage, hidden: bool) -> None:
        for rank in range(stage.ranks):
            (REPORTS / f"rank{rank}.txt").unlink(missing_ok=True)
        self.stage = stage
        self.deadline = time.monotonic() + STAGE_SECONDS
        self.output = stage.results.with_suffix(".txt") if hidden else None
        if not hidden:
            print(f"== {stage.name}", flush=True)
        with contextlib.ExitStack() as files:
            output = None if self.output is None else files.enter_context(self.output.open("wb"))
            self.process = subprocess.Popen(
                stage.words,
                cwd=ROOT,
                env=stage.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )

    def count(self) -> Count:
        """Wait for its end, end it if it hangs, and count its results; if it broke, that is one more failure."""
        stage = self.stage
        try:
            status = self.process.wait(max(self.deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            print(f"{stage.name}: not finished after {STAGE_SECONDS:.0f} s: ended", flush=True)
            status = end(self.process)
        if self.output is not None:
            print(f"== {stage.name}", self.output.read_text(errors="replace"), sep="\n", flush=True)
        count = results_of(stage.results)
        if status != 0 and count.failed == 0:
            print(f"{stage.name}: ended with exit code {status}", flush=True)
            count.failed += 1
            show_ranks(stage.ranks)
        elif status == 0 and count.passed == 0:
            print(f"{stage.name}: no test passed", flush=True)
            count.failed += 1
        return count


def results_of(path: Path) -> Count:
    """Count the test cases in a JUnit file; nothing if the stage did not get so far."""
    count = Count()
    if not path.exists():
        return count
    for case in ElementTree.parse(path).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            count.failed += 1
        elif (skipped := case.find("skipped")) is not None and skipped.get("type") != "pytest.xfail":
            count.skipped += 1
        else:
            count.passed += 1
    return count


def show_ranks(ranks: int) -> None:
    """Show where each rank had come to."""
    for rank in range(ranks):
        path = REPORTS / f"rank{rank}.txt"
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            marks = [number for number, line in enumerate(lines) if line.startswith("-> ")]
            lines = lines[marks[-1] if marks else 0 :][:SHOWN_LINES]
            print(f"-- rank {rank} was at", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except mpi_launcher.LauncherError as error:
        sys.exit(f"tools/test.py: {error}")
