"""Jobs that stall or fail, and what they say of it: to the user's screen, and to who looks from outside."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import autopsy_example
import pytest
from jobs import Ended, Job, clean_environment, run_ranks, start_ranks

pytestmark = pytest.mark.timeout(90)

RINGRED = [sys.executable, "-P", "-m", "ringred.cli"]
STALLED = """
def read_next_batch():
    (meeting.Path(os.environ["MEETING_DIRECTORY"]) / "stalled").touch()
    time.sleep(60)
rr.init()
rr.allreduce_async_(np.ones(3), name="before").wait()
if rr.rank() == 1:
    read_next_batch()
rr.allreduce_async_(np.ones(1000), name="layer1.weight").wait()
"""


def ringred(*words: object) -> subprocess.CompletedProcess[str]:
    """The ringred command, outside of any job."""
    command = [*RINGRED, *map(str, words)]
    environment = clean_environment()
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def stalled_job(stall: str = "time.sleep(60)") -> Iterator[Job]:
    """Rank 1 of two sleeps, rank 0 waits for it."""
    program = STALLED.replace("time.sleep(60)", stall)
    with start_ranks(2, program, settings={"RINGRED_STALL_SECONDS": "0"}) as job:
        deadline = time.monotonic() + 20
        while not (job.directory / "stalled").exists():
            assert time.monotonic() < deadline, [one.text for one in killed(job)]
            time.sleep(0.02)
        time.sleep(0.5)  # rank 0 submits
        yield job


def killed(job: Job) -> list[Ended]:
    job.kill()
    return job.wait()


def run_with_ringred(tmp_path: Path, ranks: int, body: str, **settings: str) -> tuple[Ended, float]:
    """Run a script under `ringred run`; how it ended and after how many seconds."""
    return run_launched([*RINGRED, "run", "-np", str(ranks), "--", sys.executable], tmp_path, body, **settings)


def run_launched(launcher: list[str], tmp_path: Path, body: str, **settings: str) -> tuple[Ended, float]:
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    script = tmp_path / "train.py"
    script.write_text("import os, sys, time\nimport numpy as np\nimport ringred as rr\n" + textwrap.dedent(body))
    start = time.monotonic()
    with Job() as job:
        job.start([*launcher, str(script)], clean_environment(**settings))
        (ended,) = job.wait()
        assert not job.left_behind()
    return ended, time.monotonic() - start


def mpirun(ranks: int) -> list[str]:
    launcher = Path(sys.executable).with_name("mpirun")
    found = str(launcher) if launcher.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("needs mpirun")
    return [found, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks), sys.executable]


# A stall


def test_stalled_job_prints_an_autopsy_with_the_missing_ranks_stack() -> None:
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    status, text = autopsy_example.run()
    assert status == 0, text
    autopsy = autopsy_example.autopsy_in(text)
    assert text.count(autopsy_example.HEADING) == 1, text
    assert "'layer1.weight' waits for 1" in autopsy
    assert "submitted by rank 0; missing: rank 1" in autopsy
    assert 'File "/home/you/train.py", line 9 in read_next_batch' in autopsy
    page = autopsy_example.PAGE.read_text()
    assert autopsy_example.shape(autopsy_example.shown(page)) == autopsy_example.shape(autopsy), (
        f"docs/diagnosis.md shows another autopsy than this; run tests/mpi/autopsy_example.py:\n{autopsy}"
    )


def test_autopsy_from_outside() -> None:
    with stalled_job() as job:
        pids = [process.pid for process in job.processes]
        assert "read_next_batch" not in ringred("autopsy", "--no-stacks", pids[0]).stdout
        for pid in pids:
            done = ringred("autopsy", pid)
            assert done.returncode == 0, done.stderr
            assert "missing: rank 1" in done.stdout
            assert "read_next_batch" in done.stdout
            assert f"process {pids[1]}" in done.stdout
        assert "'layer1.weight'" in ringred("autopsy").stdout  # whatever else runs here
        assert [process.poll() for process in job.processes] == [None, None]


def test_stack_of_a_rank_that_holds_the_gil_in_c_code() -> None:
    with stalled_job("import ctypes; ctypes.PyDLL(None).sleep(60)") as job:
        done = ringred("autopsy", job.processes[0].pid)
        assert done.returncode == 0, done.stderr
        assert "missing: rank 1" in done.stdout
        assert "read_next_batch" in done.stdout, done.stdout


def test_autopsy_of_a_job_whose_rank_cannot_answer() -> None:
    with stalled_job() as job:
        job.processes[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        done = ringred("autopsy", "--timeout", "0.5", job.processes[0].pid)
        assert time.monotonic() - start < 20
        assert done.returncode == 0, done.stderr
        assert "stopped" in done.stdout
        job.processes[1].send_signal(signal.SIGCONT)


def test_several_jobs_are_printed_under_headings() -> None:
    with stalled_job() as one, stalled_job() as other:
        pids = [job.processes[0].pid for job in (one, other)]
        done = ringred("autopsy", *pids)
        assert done.returncode == 0, done.stderr
        assert "Job 1 of 2, processes " in done.stdout and "Job 2 of 2, processes " in done.stdout
        assert done.stdout.count("missing: rank 1") == 2


def test_flight_recorders_from_outside() -> None:
    with stalled_job() as job:
        done = ringred("flight", job.processes[1].pid)
        assert done.returncode == 0, done.stderr
        recorders: list[dict[str, Any]] = json.loads(done.stdout)
    assert sorted(one["rank"] for one in recorders) == [0, 1]
    for recorder in recorders:
        (entry,) = recorder["entries"]
        assert (entry["name"], entry["kind"], entry["bytes"]) == ("before", "allreduce", 24)
        times = [entry[name] for name in ("submitted", "agreed", "started", "ended")]
        assert times == sorted(times) and times[0] > 0


# A failure

FAILING = """
def step(number):
    if rr.rank() == 2 and number == 3:
        raise ValueError("no such layer")
    rr.allreduce_async_(np.ones(3), name="layer1.weight").wait()
rr.init()
for number in range(10):
    step(number)
"""


def test_first_failure_is_the_last_thing_on_the_screen(tmp_path: Path) -> None:
    ended, seconds = run_with_ringred(tmp_path, 3, FAILING)
    assert ended.status == 1, ended.text
    assert seconds < 20
    report = ended.text[ended.text.index("ringred run: rank 2 of 3 failed first") :]
    assert "in step\n" in report
    assert report.rstrip().splitlines()[-1] == "ValueError: no such layer"


def test_first_failure_without_a_launcher_of_ours(tmp_path: Path) -> None:
    ended, seconds = run_launched(mpirun(3), tmp_path, FAILING)
    assert ended.status != 0, ended.text
    assert seconds < 20
    assert "PeerLostError" in ended.text
    assert "ringred: rank 2 failed first: ValueError: no such layer\n    Traceback" in ended.text
    own = ended.text.index("\nValueError: no such layer")
    assert own < ended.text.index("ringred: rank 2 failed first")


def test_survivors_error_names_the_failure() -> None:
    program = FAILING.replace("for number in range(10):", "for number in range(3 if rr.rank() == 0 else 10):") + (
        "call = rr.allreduce_async_(np.ones(3), name='layer1.weight')\n"
        "meeting.expect(rr.PeerLostError, call.wait, 'rank 2', 'no such layer', seconds=5)\n"
    )
    ended = run_ranks(3, program)
    assert ended[0].status == 0, ended


def test_segmentation_fault_is_shown_with_its_stack(tmp_path: Path) -> None:
    body = """
        import ctypes, resource
        def crash():
            ctypes.string_at(0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        rr.init()
        if rr.rank() == 1:
            crash()
        rr.allreduce_async_(np.ones(3), name="layer1.weight").wait()
    """
    ended, seconds = run_with_ringred(tmp_path, 3, body)
    assert ended.status == 128 + signal.SIGSEGV, ended.text
    assert seconds < 20
    report = ended.text[ended.text.index("ringred run: rank 1 of 3 failed first: killed by SIGSEGV") :]
    assert "last traceback of rank 1:\nFatal Python error: Segmentation fault" in report
    assert "in crash\n" in report


def test_flight_recorders_are_kept_where_asked(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "flights"
    program = FAILING.replace("rank() == 2", "rank() == 1")
    ended = run_ranks(2, program, settings={"RINGRED_FLIGHT_RECORDER": str(directory)})
    assert [one.status for one in ended] == [1, 1], ended
    for rank in range(2):
        recorder = json.loads((directory / f"ringred-flight-{rank}.json").read_text())
        assert recorder["rank"] == rank
        assert [entry["name"] for entry in recorder["entries"]][:3] == ["layer1.weight"] * 3


# Settings and records


def test_flight_recorder_on_request(tmp_path: Path) -> None:
    program = f"""
        import json
        rr.init()
        for number in range(5000):
            rr.allreduce_async_(np.ones(3), name=f"x{{number % 7}}").wait()
        text = rr.dump_flight_recorder({str(tmp_path)!r})
        assert open(f"{tmp_path}/ringred-flight-{{rr.rank()}}.json").read() == text + "\\n"
        recorder = json.loads(text)
        assert len(recorder["entries"]) == 4096
        assert recorder["entries"][-1]["name"] == f"x{{4999 % 7}}"
        rr.shutdown()
    """
    ended = run_ranks(2, program)
    assert [one.status for one in ended] == [0, 0], ended


@pytest.mark.parametrize("ending", ["rr.shutdown()", "pass", "sys.exit(0)", "rr.stop_timeline()"])
def test_timeline_of_all_ranks_in_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text("of an earlier job")
    program = f"""
        rr.init()
        for number in range(20):
            rr.allreduce_async_(np.ones(3), name=f"layer{{number}}").wait()
        {ending}
    """
    ended = run_ranks(3, program, settings={"HOROVOD_TIMELINE": str(path), "HOROVOD_CYCLE_TIME": "1"})
    assert [one.status for one in ended] == [0, 0, 0], ended
    events: list[dict[str, Any]] = json.loads(path.read_text())
    for rank in range(3):
        own = [event for event in events if event["pid"] == rank]
        assert {f"layer{number}" for number in range(20)} <= {event["name"] for event in own}
        assert "rank" in next(event for event in own if event["name"] == "process_name")["args"]["name"]
    said = "".join(one.text for one in ended)
    assert said == f"ringred: reads HOROVOD_TIMELINE={path} as RINGRED_TIMELINE={path}\n"


def test_timeline_by_call(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    program = f"""
        rr.init()
        rr.allreduce_async_(np.ones(3), name="before").wait()
        rr.start_timeline({str(path)!r}, mark_cycles=True)
        try: rr.start_timeline("other")
        except rr.UsageError: pass
        else: raise AssertionError
        rr.allreduce_async_(np.ones(3), name="between").wait()
        rr.stop_timeline()
        rr.allreduce_async_(np.ones(3), name="after").wait()
        try: rr.start_timeline("/no/such/directory/x")
        except rr.UsageError as error: assert "directory that exists" in str(error)
        else: raise AssertionError
    """
    ended = run_ranks(2, program)
    assert [one.status for one in ended] == [0, 0], ended
    names = {event["name"] for event in json.loads(path.read_text())}
    assert "between" in names
    assert not names & {"before", "after"}


@pytest.mark.parametrize("name", ["HOROVOD_FUSION_THRESHOLD", "HOROVOD_LOG_LEVEL"])
def test_wrong_value_of_horovods_variable_fails_all_ranks(name: str) -> None:
    program = f"meeting.expect(rr.RingredError, rr.init, '{name} must be', seconds=20)"
    ended = run_ranks(2, program, own={1: {name: "64 MB"}})
    assert [one.status for one in ended] == [0, 0], ended


def test_unwritable_timeline_fails_all_ranks(tmp_path: Path) -> None:
    program = "meeting.expect(rr.RingredError, rr.init, 'A timeline needs a file', seconds=20)"
    ended = run_ranks(2, program, own={1: {"RINGRED_TIMELINE": str(tmp_path / "no" / "trace.json")}})
    assert [one.status for one in ended] == [0, 0], ended


def test_the_late_rank_is_a_straggler() -> None:
    program = """
        rr.init()
        for number in range(10):
            if rr.rank() == 1: time.sleep(0.02)
            rr.allreduce_async_(np.ones(3), name="x").wait()
        late = rr.stragglers()
        assert sorted(row.rank for row in late) == [0, 1, 2], late
        assert late[0].rank == 1 and late[0].times_last >= 8 and late[0].seconds > 0.1, late
        rr.barrier()
    """
    ended = run_ranks(3, program)
    assert [one.status for one in ended] == [0, 0, 0], ended


def test_recorders_work_after_an_interrupt() -> None:
    program = """
        import threading
        rr.init()
        if rr.rank() == 0:
            call = rr.allreduce_async_(np.ones(3), name="x")
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            meeting.expect(KeyboardInterrupt, call.wait, seconds=5)
            assert json.loads(rr.dump_flight_recorder())["entries"] == []
        meeting.everybody(2)
    """
    ended = run_ranks(2, "import json\n" + textwrap.dedent(program))
    assert [one.status for one in ended] == [0, 0], ended
