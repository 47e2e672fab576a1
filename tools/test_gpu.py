"""Build for the GPU of this machine and test on it: `make test-gpu`, one call of under eight minutes.

    python tools/test_gpu.py [--stages build device memcheck racecheck python]

    build      kernels for compute capability 9.0, their tests and, where the interpreter has a torch, the Python module
    device     the tests of kernels (ctest -L gpu)
    memcheck   some of them under compute-sanitizer
    racecheck  likewise
    python     two processes that meet in torch's store and share the GPU; the pytest suite on tensors of the GPU

A stage runs even if one before it failed. Each has a limit, and all of them have less than eight minutes. One line for
each stage at the end; the exit code is 0 only if none failed. A stage that cannot run here is skipped, with the reason.
Without a GPU nothing is built, and a sentence says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gpu_build
import store_ranks
from gpu_build import ROOT

ALL_SECONDS = 470.0
LIMITS = {"build": 270.0, "device": 150.0, "memcheck": 90.0, "racecheck": 90.0, "python": 300.0}
SHORT_TESTS = (
    ("tests/cuda/cuda_launch_test", "threads of a block meet in shared memory"),
    ("tests/cuda/cuda_fusion_test", "pieces of large tensors meet without a seam"),
    ("tests/cuda/cuda_reduce_test", "the most arrays that there may be"),
    ("tests/cuda/cuda_update_test", "nan and infinity reach the parameters"),
    ("tests/cuda/cuda_player_test", "messages so long that every thread"),
    ("tests/cuda/cuda_leaf_test", "vectors so long that every thread"),
    ("benchmarks/gpu/gpu_bench", "--rehearse"),
)
"""What runs under compute-sanitizer: a program of the build and its argument, for tests a part of their name."""
REFUSALS = ("Device not supported", "Failed to initialize", "Unable to find injection library", "not permitted")
SANITIZER_ERRORS = 86
JOB_SECONDS = 90.0
DEVICE_VARIABLE = "RINGRED_TEST_DEVICE"
SUITE = {
    2: ["tests/parallel"],
    1: ["tests/parallel/test_torch_functions.py", "tests/parallel/test_torch_operations.py"],
    4: ["tests/parallel/test_collectives.py", "tests/parallel/test_torch_training.py"],
}
"""By number of ranks, which files of the pytest suite run on tensors of the GPU."""
DIRECT = ["tests/parallel/test_torch_training.py", "tests/parallel/test_torch_several_optimizers.py"]
"""Which of them also run with gradients that are reduced where they lie."""
MEETING = """
import numpy, ringred
ringred.init()
mean = ringred.allreduce(numpy.full(1000, float(ringred.rank())))
assert (mean == (ringred.size() - 1) / 2).all(), mean
"""


class Skip(Exception):
    """The stage cannot run here; the message says why."""


class Failure(Exception):
    """The stage failed; the message says how."""


@dataclass
class Run:
    """The machine's tools, the clock, and how stages ended."""

    build: Path
    deadline: float
    environment: dict[str, str]
    outcomes: dict[str, str] = field(default_factory=dict)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def command(self, words: Sequence[str], limit: float, variables: dict[str, str] | None = None) -> int:
        """Run to the end, or to the limit, which is a failure; return the status."""
        environment = {**self.environment, **(variables or {})}
        limit = max(1.0, min(limit, self.left()))
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            store_ranks.end(process)
            raise Failure(f"not finished after {limit:.0f} s: {' '.join(words)}") from None

    def listen(self, words: Sequence[str], limit: float, variables: dict[str, str] | None = None) -> tuple[int, str]:
        """The same, with what it wrote, which is printed at its end."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "output")
            try:
                redirected = ["sh", "-c", 'exec "$@" > "$0" 2>&1', str(path), *words]
                status = self.command(redirected, limit, variables)
            finally:
                text = path.read_text(errors="replace") if path.exists() else ""
                print(text, end="", flush=True)
        return status, text


def main() -> int:
    """Run the stages one after the other and print how each ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    args = parser.parse_args()
    if not gpu_build.has_gpu():
        print(gpu_build.NO_GPU + "nothing was tested.")
        return 0
    run = Run(gpu_build.BUILD, time.monotonic() + ALL_SECONDS, gpu_build.environment())
    return run_stages(run, args.stages)


def run_stages(run: Run, names: Sequence[str]) -> int:
    """The exit code; failures of one stage do not keep the next one from running."""
    for name in names:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            if run.left() < 1:
                raise Failure(f"no time left of {ALL_SECONDS:.0f} s")
            outcome = f"passed: {STAGES[name](run, LIMITS[name])}"
        except Skip as reason:
            outcome = f"skipped: {reason}"
        except Failure as reason:
            outcome = f"FAILED: {reason}"
        except Exception as reason:  # the stages behind it are still worth the machine's time
            traceback.print_exc()
            outcome = f"FAILED: {type(reason).__name__}: {reason}"
        run.outcomes[name] = f"{outcome} ({time.monotonic() - began:.0f} s)"
    print("== summary", *(f"  {name}: {outcome}" for name, outcome in run.outcomes.items()), sep="\n")
    return 1 if any(outcome.startswith("FAILED") for outcome in run.outcomes.values()) else 0


def build(run: Run, limit: float) -> str:
    """Configure and build, with the Python module if it can be built here."""
    if missing := gpu_build.missing_tool():
        raise Failure(missing)
    with_module = gpu_build.reason_against_module() is None
    configure = gpu_build.configure_command
    configured = run.command(configure(run.build, with_module), limit) == 0
    # Kernels need no Python: what keeps the module from being built does not keep them.
    if not configured and run.command(configure(run.build, with_module=False), limit) != 0:
        raise Failure("cmake could not configure the build")
    if run.command(gpu_build.build_command(run.build, "gpu_tests"), limit) != 0:
        raise Failure("the tests of kernels")
    if not with_module:
        return "kernels and their tests"
    if not configured or run.command(gpu_build.build_command(run.build, "python_modules"), limit) != 0:
        raise Failure("the Python module; the tests of kernels are built")
    return "kernels and their tests, the Python module"


def device(run: Run, limit: float) -> str:
    """The tests of kernels."""
    results = run.build / "device.xml"
    results.unlink(missing_ok=True)
    words = ["ctest", "--test-dir", str(run.build), "-L", "gpu", "--no-tests=error", "--output-on-failure"]
    status = run.command([*words, "--timeout", "120", "--output-junit", str(results)], limit)
    passed, skipped = counts(results)
    if status != 0:
        raise Failure(f"{passed} programs passed, the others are named above")
    if passed == 0:
        raise Skip("CUDA can use no GPU here: no program ran, see above")
    return f"{passed} programs" + (f", {skipped} skipped" if skipped else "")


def counts(results: Path) -> tuple[int, int]:
    """How many programs passed, and how many were skipped, in ctest's file."""
    states = [case.get("status") for case in ElementTree.parse(results).iter("testcase")] if results.exists() else []
    return states.count("run"), sum(state in ("notrun", "disabled", "skipped") for state in states)


def sanitized(tool: str) -> Callable[[Run, float], str]:
    """The stage that runs some tests under one of compute-sanitizer's tools."""

    def stage(run: Run, limit: float) -> str:
        found = shutil.which("compute-sanitizer", path=run.environment.get("PATH"))
        usual = Path("/usr/local/cuda/bin/compute-sanitizer")
        if found is None and not usual.exists():
            raise Skip("there is no compute-sanitizer")
        checker = [found or str(usual), "--tool", tool, "--error-exitcode", str(SANITIZER_ERRORS)]
        checker += ["--report-api-errors", "no", "--print-limit", "5"]
        began = time.monotonic()
        for number, (program, argument) in enumerate(SHORT_TESTS):
            left = limit - (time.monotonic() - began)
            status, text = run.listen([*checker, str(run.build / program), argument], max(left, 1))
            refusal = next((line.strip("= ") for line in text.splitlines() if any(r in line for r in REFUSALS)), None)
            if refusal and number == 0:
                raise Skip(f"compute-sanitizer is refused the device: {refusal}")
            if status != 0:
                what = f"{tool} found errors" if status == SANITIZER_ERRORS else f"exit code {status}"
                raise Failure(f"{Path(program).name} '{argument}': {what}")
        return f"{len(SHORT_TESTS)} programs"

    return stage


def python(run: Run, limit: float) -> str:
    """Jobs and tests that import the module from a folder of its own."""
    if against := gpu_build.reason_against_module():
        raise Skip(against)
    see = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 3)"
    if run.command([sys.executable, "-c", see], 120) != 0:
        raise Skip(f"the torch of {sys.executable} can use no GPU here")
    install_module(run)
    paths = gpu_build.module_variables(run.build)
    together(run, ["-c", MEETING], paths)
    if importlib.util.find_spec("cupy") is not None:
        together(run, [str(ROOT / "examples" / "cupy_allreduce.py")], paths)
    if DEVICE_VARIABLE not in (ROOT / "tests" / "parallel" / "conftest.py").read_text():
        raise Skip("two processes met through torch's store; the pytest suite has no tensors of a GPU yet")
    for count, files in SUITE.items():
        together(run, ["-m", "pytest", "-q", *files], {**paths, DEVICE_VARIABLE: "cuda"}, count, limit)
    direct = {**paths, DEVICE_VARIABLE: "cuda", "RINGRED_GPU": "direct"}
    together(run, ["-m", "pytest", "-q", *DIRECT], direct, 2, limit)
    return "the pytest suite on " + ", ".join(map(str, SUITE)) + " ranks"


def install_module(run: Run) -> None:
    """Make the folder from which ringred is imported: the built modules, and links to the rest of the package."""
    shutil.rmtree(gpu_build.site_of(run.build), ignore_errors=True)
    if run.command(gpu_build.install_command(run.build), 60) != 0:
        raise Failure("cmake --install of the Python module")
    if not gpu_build.link_package(run.build):
        raise Failure("the stage 'build' has built no Python module")


def together(
    run: Run, words: Sequence[str], variables: dict[str, str], count: int = 2, limit: float = JOB_SECONDS
) -> None:
    """Run Python as so many ranks, without MPI or a launcher."""
    seconds = min(limit, max(1.0, run.left()))
    if failure := store_ranks.run(words, {**run.environment, **variables}, count, seconds, run.build):
        raise Failure(failure)


STAGES: dict[str, Callable[[Run, float], str]] = {
    "build": build,
    "device": device,
    "memcheck": sanitized("memcheck"),
    "racecheck": sanitized("racecheck"),
    "python": python,
}

if __name__ == "__main__":
    sys.exit(main())
