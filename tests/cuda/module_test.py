"""The binding of the device's communicator: what Python gives it and gets from it. Ranks are threads.

python tests/cuda/module_test.py CORE_MODULE FAKE_MODULE      # files that the build has made
"""

from __future__ import annotations

import array
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIMIT_SECONDS = 60.0


def load(name: str, file: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Job:
    """Ranks that are threads, each in a process of its own on a machine that is made up."""

    def __init__(self, native: Any, size: int, has_peers: bool = True, seconds: float = 30) -> None:
        self.native, self.size = native, size
        self.machine = native.Machine(size, has_peers)
        self.blocks = [native.HostBlock(native.host_bytes(size)) for _ in range(size)]
        self.environment = {"RINGRED_TIMEOUT_SECONDS": str(seconds)}
        self._barrier = threading.Barrier(size)
        self._told = [b""] * size
        self._failures: list[BaseException] = []

    def gather(self, rank: int) -> Callable[[bytes], list[bytes]]:
        def meet(mine: bytes) -> list[bytes]:
            self._told[rank] = mine
            self._barrier.wait(LIMIT_SECONDS)
            everything = list(self._told)
            self._barrier.wait(LIMIT_SECONDS)
            return everything

        return meet

    def communicator(self, rank: int, lifelines: list[int] | None = None) -> Any:
        return self.native.Communicator(
            device=0,
            rank=rank,
            gather=self.gather(rank),
            host_blocks=[block.address for block in self.blocks],
            lifelines=lifelines or [-1] * self.size,
            cores_suffice=False,
            environment=self.environment,
        )

    def run(self, body: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=self._run, args=(body, rank), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_SECONDS)
            assert not thread.is_alive(), "a rank hangs"
        if self._failures:
            raise self._failures[0]

    def _run(self, body: Callable[[int], None], rank: int) -> None:
        self.machine.enter(rank)
        try:
            body(rank)
        except BaseException as failure:
            self._failures.append(failure)
            self._barrier.abort()
        finally:
            self.machine.leave()


def call(group: Any, address: int, count: int, **changes: Any) -> None:
    usual = {"stream": 1, "input": address, "output": address, "count": count, "dtype": "float32", "op": 1}
    group.allreduce(**usual | {"prescale": 1.0, "postscale": 1.0} | changes)


def call_and_wait(group: Any, address: int, count: int = 100, **changes: Any) -> None:
    call(group, address, count, **changes)
    group.wait()


def error_of(group: Any, address: int, count: int, **changes: Any) -> str:
    """Its class and text. The error itself would keep the communicator, which is to end in its own process."""
    from ringred.errors import RingredError

    try:
        call_and_wait(group, address, count, **changes)
    except RingredError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def sums(native: Any, has_peers: bool) -> None:
    job = Job(native, 3, has_peers)

    def body(rank: int) -> None:
        group = job.communicator(rank)
        assert group.is_direct == has_peers and group.sentence
        for count, algorithm in ((1, None), (1000, None), (300_000, None), (5000, "ring" if has_peers else None)):
            address = job.machine.allocate(4 * count)
            job.machine.write(address, array.array("f", [rank + 1.0] * count).tobytes())
            call(group, address, count, prescale=2.0, algorithm=algorithm)
            group.wait()
            group.check()
            assert array.array("f", job.machine.read(address, 4 * count)) == array.array("f", [12.0] * count)
        group.end()

    job.run(body)
    assert not job.machine.mistakes(), job.machine.mistakes()


def test_sums_on_peer_memory(native: Any) -> None:
    sums(native, has_peers=True)


def test_sums_through_host_memory(native: Any) -> None:
    sums(native, has_peers=False)


def test_bad_calls_are_usage_errors_and_start_nothing(native: Any) -> None:
    from ringred.errors import UsageError

    job = Job(native, 2)

    def body(rank: int) -> None:
        group = job.communicator(rank)
        address = job.machine.allocate(400)
        for changes, words in (
            ({"dtype": "int8"}, "int8"),
            ({"dtype": "text"}, "one that ringred knows: it is text"),
            ({"op": 2}, "Sum, Average, Min, Max or Product"),
            ({"stream": -1}, "stream"),
            ({"stream": 0}, "stream"),
            ({"algorithm": "none"}, "There is no algorithm of the name none"),
            ({"input": 64}, "device"),
        ):
            with pytest.raises(UsageError, match=words):
                call(group, address, 100, **changes)
        call_and_wait(group, address)
        group.end()

    job.run(body)


def test_ranks_that_disagree_get_a_mismatch(native: Any) -> None:
    job = Job(native, 2)
    errors: list[str] = []

    def body(rank: int) -> None:
        group = job.communicator(rank)
        address = job.machine.allocate(400)
        errors.append(error_of(group, address, 100 - rank))

    job.run(body)
    assert len(errors) == 2 and any(error.startswith("MismatchError") for error in errors), errors
    assert all("count=100" in error and "count=99" in error for error in errors), errors


def test_rank_that_does_not_come_is_named_and_one_whose_process_ended_soon(native: Any) -> None:
    for ended in (False, True):
        job = Job(native, 2, has_peers=False, seconds=30 if ended else 0.3)
        lifeline, end = os.pipe()
        if ended:
            os.close(end)
        done = threading.Event()
        errors: list[str] = []

        def body(rank: int, job: Job = job, lifeline: int = lifeline, done: Any = done, errors: Any = errors) -> None:
            group = job.communicator(rank, [-1, lifeline])
            if rank == 1:
                assert done.wait(LIMIT_SECONDS)
                return
            address = job.machine.allocate(400)
            errors.append(error_of(group, address, 100))
            done.set()

        job.run(body)
        assert errors[0].startswith("PeerLostError" if ended else "TimeoutError") and "rank 1" in errors[0], errors
        os.close(lifeline)
        if not ended:
            os.close(end)


def test_ranks_that_differ_in_the_tag_get_a_mismatch(native: Any) -> None:
    job = Job(native, 2)
    errors: list[str] = []

    def body(rank: int) -> None:
        group = job.communicator(rank)
        address = job.machine.allocate(400)
        call(group, address, 100, tag="bucket.1")
        group.wait()
        errors.append(error_of(group, address, 100, tag=f"bucket.{rank}"))

    job.run(body)
    assert any(error.startswith("MismatchError") and error.count("tag ") == 2 for error in errors), errors


def test_vectors_in_memory_that_all_ranks_have(native: Any) -> None:
    for has_peers in (True, False):
        in_common_memory(Job(native, 3, has_peers))


def in_common_memory(job: Job) -> None:
    count, begin = 600_000, 64

    def body(rank: int) -> None:
        group = job.communicator(rank)
        assert not group.waits_on_host
        base = group.allocate(4 * (count + begin))
        for turn in range(3):
            for first, length in ((begin, count), (0, begin), (begin + 3, 1000)):
                address = base + 4 * first
                job.machine.write(address, array.array("f", [rank + turn + 1.0] * length).tobytes())
                call(group, address, length)
                group.wait()
                expected = array.array("f", [6.0 + 3 * turn] * length)
                assert array.array("f", job.machine.read(address, 4 * length)) == expected
        group.end()

    job.run(body)
    assert not job.machine.mistakes(), job.machine.mistakes()


def test_what_lies_in_such_memory_on_one_rank_only_is_a_mismatch(native: Any) -> None:
    job = Job(native, 2)
    errors: list[str] = []

    def body(rank: int) -> None:
        group = job.communicator(rank)
        inside, outside = group.allocate(400), job.machine.allocate(400)
        errors.append(error_of(group, inside if rank == 0 else outside, 100))

    job.run(body)
    assert any(error.startswith("MismatchError") and "symmetric memory 0" in error for error in errors), errors


def test_rank_that_abandons_waits_for_nobody_and_is_named(native: Any) -> None:
    for ends in (True, False):
        one_abandons(Job(native, 2, seconds=5), ends)


def one_abandons(job: Job, ends: bool) -> None:
    gone = threading.Event()
    errors: list[str] = []

    def body(rank: int) -> None:
        group = job.communicator(rank)
        address = job.machine.allocate(400)
        call_and_wait(group, address)
        if rank == 1:
            group.abandon("it has nothing under way")
            gone.set()
            return
        assert gone.wait(LIMIT_SECONDS)
        group.check()  # all is over, so nothing is wrong
        group.wait()
        if ends:
            group.end()  # and does not wait for the other rank either
        else:
            errors.append(error_of(group, address, 100))

    job.run(body)
    assert errors == [] if ends else "rank 1 has left after 1 calls" in errors[0], errors


def test_rank_that_abandons_a_call_ends_it_for_all(native: Any) -> None:
    job = Job(native, 2)
    gone = threading.Event()
    errors: list[str] = []

    def body(rank: int) -> None:
        group = job.communicator(rank)
        address = job.machine.allocate(400)
        if rank == 1:
            call(group, address, 100)
            group.abandon("its user has had enough")
            gone.set()
            return
        assert gone.wait(LIMIT_SECONDS)
        errors.append(error_of(group, address, 100))

    job.run(body)
    assert errors[0].startswith("PeerLostError") and "rank 1 broke off: its user has had enough" in errors[0], errors


def main() -> int:
    """Run every function whose name begins with test_."""
    load("ringred._core", sys.argv[1])
    sys.path.insert(0, str(Path(__file__).parents[2]))
    native = load("_fake_cuda", sys.argv[2])
    for name, function in list(globals().items()):
        if name.startswith("test_"):
            print(name, flush=True)
            function(native)
    return 0


if __name__ == "__main__":
    sys.exit(main())
