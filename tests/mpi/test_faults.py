"""What goes wrong between ranks: death, departure, signals, deadlines, settings that differ, ranks that cannot start.

No launcher is there to end the other ranks: they have to notice by themselves.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import check, run_ranks

pytestmark = pytest.mark.timeout(90)

CALLS = {
    "barrier": "rr.barrier()",
    "one-shot": "rr.allreduce(np.ones(4))",
    "two-shot, staged": "rr.allreduce(np.ones(400_000))",
    "two-shot, arena": "rr.allreduce_(values)",
    "broadcast": "rr.broadcast_(np.ones(400_000), 2)",
    "plan": "plan()",
}
PREPARED = """
rr.init()
values = rr.empty(400_000)
plan = rr.plan_allreduce(values)
processes = meeting.everybody()
call = lambda: {call}
"""


@pytest.fixture(autouse=True)
def nothing_in_shared_memory() -> Iterator[None]:
    before = shared_segments()
    yield
    assert not shared_segments() - before


def shared_segments() -> set[Path]:
    """What lies in /dev/shm, but for segments of Open MPI, whose jobs may come and go beside these tests."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sm_segment")}


# Death and departure


@pytest.mark.parametrize("call", list(CALLS))
def test_rank_killed_in_a_collective(call: str) -> None:
    program = PREPARED.format(call=CALLS[call]) + (
        "if rr.rank() == 2:\n"
        "    meeting.await_sleep(processes[1])\n"
        "    os.kill(processes[1], signal.SIGKILL)\n"
        "meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(call), 'rank 1', 'ended', seconds=5)\n"
        "meeting.expect(rr.PeerLostError, call, 'broken', 'rank 1', 'shutdown() and init()', seconds=0.5)\n"
        "assert rr.is_initialized() and (rr.rank(), rr.size()) != (1, 3)\n"
        "rr.shutdown()\n"
    )
    check(run_ranks(3, program), 0, -signal.SIGKILL, 0)


@pytest.mark.parametrize("algorithm", ["auto", "ring", "double_tree"])
def test_rank_killed_somewhere_in_a_busy_loop(algorithm: str) -> None:
    program = PREPARED.format(call="[rr.allreduce_(values), rr.allreduce(np.ones(100_000)), rr.barrier()]") + (
        "if rr.rank() == 1:\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "    signal.signal(signal.SIGALRM, signal.SIG_DFL)\n"
        "meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(call), 'rank 1', 'ended', seconds=5.2)\n"
    )
    check(run_ranks(3, program, settings={"RINGRED_ALGORITHM": algorithm}), 0, -signal.SIGALRM, 0)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("sys.exit(0)", "rank 1 left (its process came to its end)"),
        ("rr.shutdown(); meeting.everybody(2)", "rank 1 left (it called shutdown())"),
        ("os._exit(0)", "the process of rank 1 ended"),
        ("os.execv('/bin/true', ['true'])", "the process of rank 1 ended"),
    ],
)
def test_rank_that_leaves_early(ending: str, words: str) -> None:
    program = PREPARED.format(call="rr.allreduce(np.ones(4), tag='layer')") + (
        "call()\n"
        "if rr.rank() == 1:\n"
        f"    {ending}\n"
        "else:\n"
        f"    meeting.expect(rr.PeerLostError, call, {words!r}, \"tag='layer'\", seconds=5)\n"
        "    if 'meeting' in " + repr(ending) + ": meeting.everybody(2)\n"
    )
    check(run_ranks(3, program))


def test_rank_that_leaves_after_the_last_call_is_not_missed() -> None:
    program = """
        for turn in range(10):
            rr.init()
            values = rr.empty(300_000)
            rr.allreduce_(values)
            rr.allreduce(np.ones(300_000))
            rr.broadcast_(values, turn % 3)
            rr.shutdown()
        rr.init()
        rr.allreduce(np.ones(300_000))
    """
    check(run_ranks(3, program))


def test_forked_child_does_not_keep_a_dead_rank_alive() -> None:
    """A data loader's worker outlives its rank for a moment; and its end is not the rank's."""
    program = PREPARED.format(call="rr.allreduce(np.ones(400_000))") + (
        "if rr.rank() == 1:\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "    os.wait()\n"
        "call()\n"
        "if rr.rank() == 1:\n"
        "    if os.fork() == 0:\n"
        "        while os.getppid() == processes[1]: time.sleep(0.01)\n"
        "        time.sleep(2)\n"
        "        os._exit(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "meeting.expect(rr.PeerLostError, call, 'rank 1', seconds=1.5)\n"
        "time.sleep(2)\n"
    )
    check(run_ranks(2, program), 0, -signal.SIGKILL)


# Signals


@pytest.mark.parametrize("call", list(CALLS))
def test_interrupt_in_a_collective(call: str) -> None:
    program = PREPARED.format(call=CALLS[call]) + (
        "if rr.rank() == 0:\n"
        "    meeting.expect(KeyboardInterrupt, call, seconds=5)\n"
        "    meeting.expect(rr.PeerLostError, call, 'broken', 'interrupted', seconds=0.5)\n"
        "    meeting.everybody(2)\n"
        "elif rr.rank() == 1:\n"
        "    meeting.expect(rr.PeerLostError, call, 'rank 0 broke off', 'interrupted', seconds=5)\n"
        "    meeting.everybody(2)\n"
        "else:\n"
        "    meeting.await_sleep(processes[0])\n"
        "    start = time.monotonic()\n"
        "    os.kill(processes[0], signal.SIGINT)\n"
        "    meeting.everybody(2)\n"
        "    assert time.monotonic() - start < 1\n"
        "    broken = lambda: meeting.again_and_again(call)\n"
        "    meeting.expect(rr.PeerLostError, broken, 'rank 0 broke off', 'interrupted', seconds=1)\n"
    )
    check(run_ranks(3, program))


def test_interrupt_that_nobody_catches() -> None:
    program = PREPARED.format(call="rr.barrier()") + (
        "if rr.rank() == 1:\n"
        "    meeting.await_sleep(processes[0])\n"
        "    import select\n"
        "    ended = os.pidfd_open(processes[0])\n"
        "    os.kill(processes[0], signal.SIGINT)\n"
        "    select.select([ended], [], [])\n"
        "    meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(call), 'rank 0', seconds=1)\n"
        "else:\n"
        "    call()\n"
    )
    ended = run_ranks(2, program)
    check(ended, -signal.SIGINT, 0)
    assert ended[0].text.rstrip().endswith("KeyboardInterrupt")


def test_signal_whose_handler_returns_does_not_disturb() -> None:
    program = PREPARED.format(call="rr.allreduce(np.full(400_000, rr.rank() + 1.0), rr.Sum)") + (
        "seen = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n"
        "meeting.everybody(2)\n"
        "if rr.rank() == 1:\n"
        "    meeting.await_sleep(processes[0])\n"
        "    for _ in range(20):\n"
        "        os.kill(processes[0], signal.SIGUSR1)\n"
        "        time.sleep(0.01)\n"
        "assert (call() == 3).all()\n"
        "assert bool(seen) == (rr.rank() == 0)\n"
    )
    check(run_ranks(2, program))


def test_error_in_a_signal_handler_comes_out() -> None:
    program = PREPARED.format(call="rr.barrier()") + (
        "def handler(*_): raise LookupError('from the handler')\n"
        "signal.signal(signal.SIGUSR1, handler)\n"
        "meeting.everybody(2)\n"
        "if rr.rank() == 1:\n"
        "    meeting.await_sleep(processes[0])\n"
        "    os.kill(processes[0], signal.SIGUSR1)\n"
        "    meeting.everybody(3)\n"
        "    meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(call), 'rank 0', seconds=1)\n"
        "else:\n"
        "    meeting.expect(LookupError, call, 'from the handler', seconds=5)\n"
        "    meeting.everybody(3)\n"
    )
    check(run_ranks(2, program))


# Waiting


@pytest.mark.parametrize("call", ["barrier", "two-shot, staged", "two-shot, arena", "plan"])
def test_deadline(call: str) -> None:
    program = PREPARED.format(call=CALLS[call].replace(", 2)", ", 1)")) + (
        "if rr.rank() == 0:\n"
        "    words = 'rank 0 waits for rank 1', 'RINGRED_TIMEOUT_SECONDS=1', 'py-spy'\n"
        "    start = time.monotonic()\n"
        "    meeting.expect(rr.TimeoutError, call, *words, seconds=1.5)\n"
        "    assert time.monotonic() - start >= 1\n"
        "meeting.everybody(2)\n"
        "broken = lambda: meeting.again_and_again(call)\n"
        "meeting.expect(rr.PeerLostError, broken, 'broke', 'RINGRED_TIMEOUT_SECONDS=1', seconds=1)\n"
    )
    check(run_ranks(2, program, settings={"RINGRED_TIMEOUT_SECONDS": "1"}))


def test_timeout_error_is_the_builtin_one_too() -> None:
    program = PREPARED.format(call="rr.barrier()") + (
        "if rr.rank() == 0: meeting.expect(TimeoutError, call, 'rank 1', seconds=1)\nmeeting.everybody(2)\n"
    )
    check(run_ranks(2, program, settings={"RINGRED_TIMEOUT_SECONDS": "0.2"}))


@pytest.mark.parametrize("level", ["warning", "error"])
def test_stall_report(level: str) -> None:
    program = PREPARED.format(call="rr.allreduce(np.ones(4), tag='layer')") + (
        "if rr.rank() == 1: time.sleep(0.8)\ncall()\nrr.barrier()\n"
    )
    ended = run_ranks(2, program, settings={"RINGRED_STALL_SECONDS": "0.2", "RINGRED_LOG_LEVEL": level})
    check(ended)
    assert ended[1].text == ""
    reports = ended[0].text.count("rank 0 waits for rank 1 in call 1, allreduce(op=Average")
    assert reports == (1 if level == "warning" else 0)


@pytest.mark.parametrize("wait", ["auto", "spin", "yield"])
def test_idle_rank_leaves_the_core_alone(wait: str) -> None:
    """Under 5 % of a core, as far as the clock of processes tells, which counts in microseconds."""
    program = PREPARED.format(call="None") + (
        "for call in (rr.barrier, plan, lambda: rr.allreduce(np.ones(400_000))):\n"
        "    if rr.rank() == 1:\n"
        "        meeting.await_sleep(processes[0])\n"
        "        before = os.times().elapsed\n"
        "        time.sleep(0.6)\n"
        "        call()\n"
        "    else:\n"
        "        start, busy = time.monotonic(), time.process_time()\n"
        "        call()\n"
        "        taken, busy = time.monotonic() - start, time.process_time() - busy\n"
        "        assert taken > 0.6 and busy < 0.05 * taken, (taken, busy)\n"
        "    rr.barrier()\n"
    )
    check(run_ranks(2, program, settings={"RINGRED_WAIT": wait}))


# Starting


def test_settings_that_differ_are_named_on_all_ranks() -> None:
    program = """
        words = "RINGRED_SLOT_BYTES must be the same", "'256K' on rank 0, rank 2", "'128K' on rank 1"
        meeting.expect(rr.MismatchError, rr.init, *words, seconds=5)
        assert not rr.is_initialized()
        os.environ["RINGRED_SLOT_BYTES"] = "128K"
        rr.init()
        assert rr.allreduce(np.ones(300_000), rr.Sum)[-1] == 3
    """
    check(run_ranks(3, program, settings={"RINGRED_SLOT_BYTES": "256K"}, own={1: {"RINGRED_SLOT_BYTES": "128K"}}))


@pytest.mark.parametrize(
    ("name", "value"), [("RINGRED_ALGORITHM", "ring"), ("RINGRED_TIMEOUT_SECONDS", "7"), ("RINGRED_CHUNK_BYTES", "1K")]
)
def test_each_setting_that_must_agree(name: str, value: str) -> None:
    program = f"meeting.expect(rr.MismatchError, rr.init, {name!r}, \"'{value}' on rank 0\", seconds=5)"
    check(run_ranks(2, program, own={0: {name: value}}))


def test_settings_that_may_differ() -> None:
    own = {
        0: {"RINGRED_WAIT": "spin", "RINGRED_ARENA_BYTES": "64M", "RINGRED_HUGE_PAGES": "0", "RINGRED_ISA": "baseline"},
        1: {"RINGRED_WAIT": "yield", "RINGRED_STALL_SECONDS": "3", "RINGRED_SPIN_MICROSECONDS": "0"},
    }
    program = PREPARED.format(call="rr.allreduce(np.arange(400_000), rr.Sum)") + (
        "for _ in range(5):\n    assert (call() == 2 * np.arange(400_000)).all()\n    plan()\n"
    )
    check(run_ranks(2, program, own=own))


def test_versions_that_differ() -> None:
    program = """
        from ringred import world
        if os.environ["MEETING_RANK"] == "1": world.__version__ = "99.9"
        meeting.expect(rr.MismatchError, rr.init, "ringred version", "'99.9' on rank 1", seconds=5)
    """
    check(run_ranks(2, program))


def test_rank_with_a_bad_setting_stops_all() -> None:
    program = """
        bad = os.environ["MEETING_RANK"] == "1"
        words = ("'1X'",) if bad else ("rank 1 could not", "no rank can start", "'1X'")
        kind = rr.UsageError if bad else rr.SystemError
        meeting.expect(kind, rr.init, "RINGRED_ARENA_BYTES", *words, seconds=5)
        os.environ.pop("RINGRED_ARENA_BYTES", None)
        rr.init()
        rr.barrier()
    """
    check(run_ranks(3, program, own={1: {"RINGRED_ARENA_BYTES": "1X"}}))


@pytest.mark.parametrize(("limit", "value"), [("RLIMIT_FSIZE", 1 << 16), ("RLIMIT_AS", 4 << 30)])
def test_rank_that_cannot_have_what_it_needs_stops_all(limit: str, value: int) -> None:
    """And no rank keeps anything of it: when the limit is gone they start."""
    program = f"""
        import resource
        bad = os.environ["MEETING_RANK"] == "1"
        before = len(os.listdir("/proc/self/fd"))
        if bad:
            hard = resource.getrlimit(resource.{limit})[1]
            resource.setrlimit(resource.{limit}, ({value}, hard))
        try:
            rr.init()
            raise AssertionError("init returned")
        except rr.RingredError as error:
            assert isinstance(error, rr.SystemError)
            assert bad or "rank 1 could not" in str(error), error
        if bad: resource.setrlimit(resource.{limit}, (hard, hard))
        assert not rr.is_initialized()
        assert len(os.listdir("/proc/self/fd")) == before, os.listdir("/proc/self/fd")
        rr.init()
        assert rr.allreduce(np.ones(300_000), rr.Sum)[-1] == 3
    """
    check(run_ranks(3, program))


@pytest.mark.parametrize(
    "function", ["socket.socket.bind", "socket.socket.connect", "socket.send_fds", "socket.recv_fds"]
)
def test_rank_that_cannot_exchange_memory_stops_all(function: str) -> None:
    """Whichever step fails on one rank alone, nobody waits for it, and it may be tried again."""
    program = f"""
        import socket
        bad = os.environ["MEETING_RANK"] == "1"
        before = len(os.listdir("/proc/self/fd"))
        working = {function}
        def broken(*_): raise OSError(24, "Too many open files")
        if bad: {function} = broken
        meeting.expect(rr.SystemError, rr.init, "rank", "Too many open files" if bad else "", seconds=5)
        {function} = working
        assert not rr.is_initialized()
        assert len(os.listdir("/proc/self/fd")) == before, os.listdir("/proc/self/fd")
        rr.init()
        assert rr.allreduce(np.ones(300_000), rr.Sum)[-1] == 3
    """
    check(run_ranks(3, program))


def test_shutdown_and_init_leak_nothing() -> None:
    program = """
        from pathlib import Path
        def held():
            return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("ringred")
        for turn in range(11):
            rr.init()
            rr.init()
            rr.allreduce_(rr.empty(100_000))
            rr.shutdown()
            rr.shutdown()
            if turn == 0: before = held()
        assert held() == before, (before, held())
    """
    check(run_ranks(3, program))


def test_arena_arrays_survive_into_the_next_world() -> None:
    program = """
        rr.init()
        values = rr.empty(300_000)
        values[...] = rr.rank() + 1
        rr.shutdown()
        assert (values[::1000] > 0).all()
        rr.init()
        newer = rr.empty(300_000)
        rr.allreduce_(values, rr.Sum)
        assert (values == 6).all() and not newer.any()
    """
    check(run_ranks(3, program))


def test_forked_child_cannot_reach_the_peers() -> None:
    program = PREPARED.format(call="rr.allreduce(np.full(50, rr.rank() + 1.0), rr.Sum)") + (
        "if rr.rank() == 0:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            meeting.expect(rr.UsageError, call, 'forked child', seconds=1)\n"
        "            meeting.expect(rr.UsageError, rr.init, 'forked child', seconds=1)\n"
        "            meeting.expect(rr.UsageError, plan, 'fork', seconds=1)\n"
        "        except BaseException as error:\n"
        "            print(error, flush=True)\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "for _ in range(5): assert (call() == 6).all()\n"
        "assert rr.rank() > 0 or status == 0\n"
    )
    check(run_ranks(3, program, settings={"RINGRED_TIMEOUT_SECONDS": "5"}))


# Forced choices


@pytest.mark.parametrize("size", [2, 3, 4])
def test_forced_algorithms_and_instruction_sets(size: int) -> None:
    """Sums of small whole numbers are exact in any order; sums of others are the same on all ranks."""
    program = """
        import hashlib
        from ringred import _core
        algorithms = ["ring", "double_tree", "halving_doubling", "recursive_doubling", "circulant", "auto"]
        for algorithm in algorithms:
            for isa in ["baseline", "avx2", "avx512"] if algorithm in ("auto", "ring") else ["auto"]:
                try: _core.instruction_set(isa)
                except rr.UsageError: continue
                os.environ.update(RINGRED_ALGORITHM=algorithm, RINGRED_ISA=isa)
                rr.init()
                n = rr.size()
                for count in (0, 1, n - 1, n, n + 1, 97, 5000, 70_001, 250_007):
                    for dtype in ("float32", "int8", "float16"):
                        whole = np.arange(count) % 3 - 1
                        sums = rr.allreduce((whole * (rr.rank() + 1)).astype(dtype), rr.Sum)
                        assert (sums == whole * (n * (n + 1) // 2)).all(), (algorithm, isa, count, dtype)
                        means = rr.allreduce((whole * 4 * n).astype(dtype), rr.Average)
                        assert (means == (whole * 4 * n).astype(dtype)).all()
                    values = rr.empty(count)
                    values[...] = np.random.default_rng(rr.rank()).standard_normal(count)
                    terms = [np.random.default_rng(rank).standard_normal(count).astype("f4") for rank in range(n)]
                    rr.allreduce_(values, rr.Sum)
                    bound = n * np.finfo("f4").eps / 2 * np.abs(terms).sum(0, dtype="f8")
                    assert (np.abs(values - np.sum(terms, 0, dtype="f8")) <= bound).all(), (algorithm, isa, count)
                    digest = np.frombuffer(hashlib.blake2b(values.tobytes(), digest_size=8).digest(), "u8")
                    assert rr.allreduce(digest, rr.Min) == rr.allreduce(digest, rr.Max) == digest
                try: rr.allreduce(np.ones(5 + rr.rank()))
                except rr.MismatchError: pass
                else: raise AssertionError("no mismatch")
                rr.barrier()
                rr.shutdown()
    """
    check(run_ranks(size, program))
