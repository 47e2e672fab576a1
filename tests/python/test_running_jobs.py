"""Finding jobs from outside, by processes that hold segments named as ringred names them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringred import UsageError
from ringred.cli import main, running_jobs


@contextmanager
def holder(*inherited: int, own: bool = True) -> Iterator[int]:
    """A process that holds a segment of its own and the inherited ones; its number."""
    program = f"import os, sys; {own} and os.memfd_create('ringred'); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


@contextmanager
def segment() -> Iterator[int]:
    """A segment that this process holds and can hand to others."""
    descriptor = os.memfd_create("ringred")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def jobs_of(*processes: int) -> list[running_jobs.Job]:
    """The jobs that these processes belong to, without what else may run on the machine."""
    return [job for job in running_jobs.running() if set(job.processes) & set(processes)]


def test_processes_that_share_a_segment_are_one_job() -> None:
    with segment() as shared, holder(shared) as first, holder(shared) as second:
        (job,) = jobs_of(first)
        assert {first, second, os.getpid()} == set(job.processes)
        assert len(job.segments) == 3  # the shared one once
        with running_jobs.opened(job.segments) as descriptors:
            assert len(descriptors) == 3
            assert len({os.fstat(one).st_ino for one in descriptors}) == 3
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


def test_jobs_apart_are_told_apart() -> None:
    with holder() as first, holder() as second:
        assert [job.processes for job in jobs_of(first, second)] == sorted([[first], [second]])
        assert [job.processes for job in running_jobs.find([second])] == [[second]]
        assert [job.processes for job in running_jobs.find([second, first, second])] == [[second], [first]]


def test_a_chain_of_segments_is_one_job_in_whatever_order_it_is_found() -> None:
    with segment() as one, segment() as two, holder(one, own=False) as first, holder(two, own=False) as second:
        assert [job.processes for job in jobs_of(first)] == [sorted([os.getpid(), first, second])]


def test_launcher_stands_for_its_ranks() -> None:
    with holder() as rank:
        assert [rank] in [job.processes for job in running_jobs.find([os.getpid()])]


def test_segment_of_a_process_that_ended_is_left_out(tmp_path: Path) -> None:
    with running_jobs.opened([tmp_path / "gone"]) as descriptors:
        assert descriptors == []


def test_no_jobs(tmp_path: Path) -> None:
    (tmp_path / "17" / "fd").mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"No ringred job of this user \(number {os.geteuid()}\) runs"):
        running_jobs.find([], tmp_path)


def test_process_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no process 4000000"):
        running_jobs.find([4000000])
    with holder(own=False) as process, pytest.raises(UsageError, match=f"Process {process} is no rank of ringred"):
        running_jobs.find([process])


def test_process_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "17").mkdir()

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "fd":
            raise PermissionError(13, "Permission denied")
        return true_iterdir(path)

    true_iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError, match=rf"process 17 belongs to user {os.geteuid()}"):
        running_jobs.find([17], tmp_path)


@pytest.mark.parametrize("subcommand", ["autopsy", "flight"])
def test_wrong_process_is_exit_code_2(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([subcommand, "4000000"]) == 2
    assert f"ringred {subcommand}: A process must run to be looked at" in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", ["autopsy", "flight"])
def test_job_that_cannot_be_looked_into_is_told_and_passed_over(
    subcommand: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder() as first, holder() as second:
        assert main.main([subcommand, str(first), str(second)]) == 1
        told = capsys.readouterr()
        assert f"process {first}: " in told.err and f"process {second}: " in told.err
        assert "Traceback" not in told.err
        assert subcommand == "autopsy" or json.loads(told.out) == []
