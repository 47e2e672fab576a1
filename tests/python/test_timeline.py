"""The timeline's file, with engines that produce events on demand: one in this process, or some in processes of their
own that share a file."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringred import UsageError, timeline

MANY_SECONDS = 3600.0


class Engine:
    """Gives out what a test has put into it."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.recording = False
        self.starts = 0
        self.events: list[str] = []
        self.lock = threading.Lock()  # events come on one thread and are drained on another

    def timeline_start(self) -> None:
        self.recording = True
        self.starts += 1

    def timeline_stop(self) -> None:
        assert self.recording
        self.recording = False

    def timeline_drain(self) -> str:
        with self.lock:
            text, self.events = ",\n".join(self.events), []
        return text

    def event(self, name: str) -> None:
        event = json.dumps({"name": name, "ph": "X", "pid": self.rank, "tid": 0, "ts": 1.5, "dur": 2.0})
        with self.lock:
            self.events.append(event)


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    timeline.stop_timeline()


@pytest.fixture
def rare_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "FLUSH_SECONDS", MANY_SECONDS)


def events_under_lock(path: Path) -> list[Any]:
    """What is in the file while nobody writes to it."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        events: list[Any] = json.loads(file.read())
    return events


def names(path: Path) -> list[str]:
    """The names of all events in a file."""
    events: list[dict[str, Any]] = json.loads(path.read_text())
    return [event["name"] for event in events]


@pytest.mark.usefixtures("rare_flushes")
def test_file_is_complete_from_start_to_stop(tmp_path: Path) -> None:
    engine, path = Engine(3), tmp_path / "trace.json"
    timeline.begin(engine, path)
    assert engine.recording
    engine.event("a")
    engine.event("b")
    assert names(path) == []
    timeline.stop_timeline()
    assert names(path) == ["a", "b"]
    assert not engine.recording
    timeline.stop_timeline()


def test_events_arrive_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "FLUSH_SECONDS", 0.01)
    engine, path = Engine(), tmp_path / "trace.json"
    timeline.begin(engine, path)
    for expected in (["a"], ["a", "b"]):
        engine.event(expected[-1])
        deadline = time.monotonic() + 10
        while names(path) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        assert names(path) == expected


@pytest.mark.usefixtures("rare_flushes")
def test_file_of_an_earlier_job_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("[\n" + "x" * 100_000)
    for name in ("first", "second"):
        engine = Engine()
        timeline.begin(engine, path)
        engine.event(name)
        timeline.stop_timeline()
        assert names(path) == [name]


@pytest.mark.usefixtures("rare_flushes")
def test_two_at_once_are_refused(tmp_path: Path) -> None:
    timeline.begin(Engine(), tmp_path / "one")
    with pytest.raises(UsageError, match=r"one timeline at a time.*stop_timeline\(\) first"):
        timeline.begin(Engine(), tmp_path / "two")
    assert not (tmp_path / "two").exists()
    timeline.stop_timeline()
    timeline.begin(Engine(), tmp_path / "two")


@pytest.mark.parametrize("path", ["no/such/directory/trace.json", "."])
def test_file_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    engine = Engine()
    with pytest.raises(UsageError, match=r"may write and lock: .*Give a path in a directory that exists"):
        timeline.begin(engine, tmp_path / path)
    assert engine.starts == 0
    timeline.begin(engine, tmp_path / "trace.json")


@pytest.mark.usefixtures("rare_flushes")
def test_full_disk_ends_the_recording_and_leaves_the_file_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    engine, path = Engine(), tmp_path / "trace.json"
    timeline.begin(engine, path)
    engine.event("lost")
    true_pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda file, data, place: true_pwrite(file, data[: max(2, len(data) // 2)], place)
    )
    timeline.stop_timeline()
    assert names(path) == []
    assert capfd.readouterr().err.count("rank 0 writes no more into the timeline") == 1
    assert not engine.recording


@pytest.mark.usefixtures("rare_flushes")
def test_forked_child_leaves_the_file_alone(tmp_path: Path) -> None:
    engine, path = Engine(), tmp_path / "trace.json"
    timeline.begin(engine, path)
    engine.event("a")
    child = os.fork()
    if child == 0:
        timeline.stop_timeline()
        os._exit(0 if names(path) == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    engine.event("b")
    timeline.stop_timeline()
    assert names(path) == ["a", "b"]


def test_ranks_share_a_file_that_is_valid_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("[ what an earlier job left")
    program = f"""
        import sys
        from test_timeline import Engine
        from ringred import timeline
        timeline.FLUSH_SECONDS = 0.001
        engine = Engine(int(sys.argv[1]))
        timeline.begin(engine, {str(path)!r})
        print('ready', flush=True)
        sys.stdin.readline()
        for number in range(300):
            engine.event(f'{{engine.rank}}.{{number}}')
            timeline._running._flush()
        print('done', flush=True)
        sys.stdin.readline()
        timeline.stop_timeline()
    """
    words = [sys.executable, "-P", "-c", textwrap.dedent(program)]
    python_path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": python_path}
    ranks = [
        subprocess.Popen(
            [*words, str(rank)],
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for step in ("ready", "done"):
            for rank in ranks:
                assert rank.stdout is not None
                assert rank.stdout.readline() == step + "\n"
            for rank in ranks:
                assert rank.stdin is not None
                rank.stdin.write("\n")
                rank.stdin.flush()
            for _ in range(50):
                events_under_lock(path)
        assert [rank.wait(20) for rank in ranks] == [0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    events = json.loads(path.read_text())
    for number in range(3):
        own = [event["name"] for event in events if event["pid"] == number]
        assert own == [f"{number}.{index}" for index in range(300)]
