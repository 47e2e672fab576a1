"""The record of an uncaught exception, with an engine that keeps records in a list."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from ringred import PeerLostError, failures

ENGINE = """
import faulthandler, os, sys
import ringred as rr
from ringred import failures
class Engine:
    rank = 0
    def __init__(self, told=()): self.told = list(told)
    def record_failure(self, text): print('RECORD', text.splitlines()[0], len(text.splitlines()), flush=True)
    def failures(self): return self.told
"""


def end_of(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by an exception of its own."""
    own = {name: value for name, value in os.environ.items() if name != "RINGRED_RUN_DIR"}
    return subprocess.run(
        [sys.executable, "-c", ENGINE + textwrap.dedent(program)],
        env={**own, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_exception_is_recorded_then_printed_as_ever() -> None:
    done = end_of("failures.watch(Engine(), lambda: print('AFTER'))\nraise ValueError('no such layer')\n")
    assert done.returncode == 1
    assert done.stdout == "RECORD ValueError: no such layer 4\nAFTER\n"
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.splitlines()[-1] == "ValueError: no such layer"


def test_hook_of_the_program_still_runs() -> None:
    done = end_of("""
        sys.excepthook = lambda kind, error, trace: print('OWN', error)
        failures.watch(Engine())
        failures.watch(Engine())
        raise ValueError('x')
    """)
    assert done.stdout == "RECORD ValueError: x 4\nOWN x\n"
    assert done.stderr == ""


@pytest.mark.parametrize("ending", ["sys.exit(3)", "pass", "failures.unwatch(); raise ValueError('x')"])
def test_what_is_not_recorded(ending: str) -> None:
    assert "RECORD" not in end_of(f"failures.watch(Engine())\n{ending}\n").stdout


def test_forked_child_records_nothing() -> None:
    done = end_of("""
        failures.watch(Engine())
        if os.fork() == 0:
            raise ValueError('of the child')
        os.wait()
    """)
    assert done.stdout == ""
    assert "of the child" in done.stderr


LOSS = """
failures.watch(Engine([(2, 'ValueError: no\\nTraceback (most recent call last):\\n  File x\\nValueError: no\\n')]))
try:
    raise rr.PeerLostError('rank 2 failed: ValueError: no')
except rr.PeerLostError as error:
    raise RuntimeError('training ended') from error
"""


def test_consequence_is_not_recorded_and_the_cause_is_printed_last() -> None:
    done = end_of(LOSS)
    assert "RECORD" not in done.stdout
    assert done.stderr.endswith(
        "RuntimeError: training ended\n"
        "ringred: rank 2 failed first: ValueError: no\n"
        "    Traceback (most recent call last):\n      File x\n    ValueError: no\n"
    )


def test_under_ringred_run_the_launcher_prints_the_cause() -> None:
    assert end_of(LOSS, RINGRED_RUN_DIR="/").stderr.endswith("RuntimeError: training ended\n")


def test_own_failure_that_was_first_is_not_repeated() -> None:
    text = failures.first_failure(Failed([(0, "ValueError: mine\n"), (1, "KeyError: later\n")]))
    assert text == ""


def test_engine_that_fails_hides_nothing() -> None:
    done = end_of("""
        engine = Engine()
        engine.record_failure = lambda text: 1 / 0
        failures.watch(engine, lambda: 1 / 0)
        raise ValueError('the true one')
    """)
    assert "ZeroDivisionError" not in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: the true one"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGILL])
def test_fatal_signal_shows_the_stacks_and_ends_the_process_as_before(number: signal.Signals) -> None:
    program = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        def in_the_middle_of_this(): os.kill(os.getpid(), {int(number)})
        failures.watch(Engine())
        in_the_middle_of_this()
    """
    done = end_of(program)
    assert done.returncode == -number
    assert "Fatal Python error: " in done.stderr
    assert "in_the_middle_of_this" in done.stderr


def test_consequences() -> None:
    lost = PeerLostError("rank 1 left")
    cause, context, hidden = RuntimeError("a"), RuntimeError("b"), RuntimeError("c")
    cause.__cause__ = lost
    context.__context__ = lost
    hidden.__context__, hidden.__suppress_context__ = lost, True
    circular = ValueError("d")
    circular.__cause__ = circular
    assert [failures.is_consequence(error) for error in (lost, cause, context, hidden, circular, None)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("length", [0, 10, failures.RECORD_BYTES, 100_000])
@pytest.mark.parametrize("letter", ["x", "é", "\ud800"])
def test_record_fits_and_keeps_both_ends(length: int, letter: str) -> None:
    try:
        raise ValueError("begin" + letter * length + "end")
    except ValueError as error:
        text = failures.record_of(error)
    assert len(text.encode()) <= failures.RECORD_BYTES
    assert text.startswith("ValueError: begin")
    assert text.rstrip().endswith("end")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (KeyError(), "KeyError: "),
        (SyntaxError("odd", ("file", 1, 1, "x y", 1, 2)), "SyntaxError: odd (file, line 1)"),
        (Unspeakable(), "Unspeakable: (its text could not be made)"),
    ],
)
def test_record_starts_with_one_line(error: Exception, summary: str) -> None:
    assert failures.record_of(error).splitlines()[0] == summary


class Failed:
    """An engine of rank 0 that knows of failures."""

    rank = 0

    def __init__(self, told: list[tuple[int, str]]) -> None:
        self.told = told

    def record_failure(self, text: str) -> None:
        raise AssertionError(text)

    def failures(self) -> list[tuple[int, str]]:
        return self.told
