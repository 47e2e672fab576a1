"""Nodes without MPI between them: ranks of one machine that RINGRED_NODE sets apart, connected over TCP."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
from jobs import Job, check, clean_environment, run_ranks, start_ranks
from test_launchers import mpirun

pytestmark = pytest.mark.timeout(90)

MASTER = {"MASTER_ADDR": "127.0.0.1"}
REMARK = (
    "ringred: Between nodes data goes over TCP (127.0.0.1), not through MPI: no launcher of MPI's started these ranks."
)


def nodes(layout: str) -> dict[int, Mapping[str, str]]:
    """The node of each rank: "aab" puts rank 2 on another than ranks 0 and 1."""
    return {rank: {"RINGRED_NODE": node} for rank, node in enumerate(layout)}


def test_all_collectives_and_process_sets_and_a_second_world() -> None:
    program = """
        rr.init()
        rank, size = rr.rank(), rr.size()
        assert (rr.local_size(), len({*rr.allgather_object(rr.local_rank())})) == (1 if rank == 3 else 3, 3)
        for count in (0, 1, 5000, 300_001):
            mine = np.arange(count, dtype="float32") % 7 + rank
            expected = (mine - rank) * size + 6
            assert np.array_equal(rr.allreduce(mine, rr.Sum), expected)
            handles = [rr.allreduce_async(mine, rr.Sum, name=str(i)) for i in range(3)]
            assert all(np.array_equal(handle.wait(), expected) for handle in handles)
            assert np.array_equal(rr.broadcast(mine, 3), mine - rank + 3)
        assert np.array_equal(rr.reducescatter(np.full((8, 3), rank), rr.Sum), np.full((2, 3), 6))
        rows = rr.allgather(np.full((rank + 1, 3), rank))
        assert rows[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
        sent, splits = rr.alltoall(np.repeat(np.arange(size), rank + 1), [rank + 1] * size)
        assert sent.tolist() == [rank] * 10 and splits.tolist() == [1, 2, 3, 4]
        corners = rr.add_process_set([0, 3])
        if corners.included():
            big = np.full(300_000, rank + 1.0)
            assert (rr.allreduce_async(big, rr.Sum, name="big", process_set=corners).wait() == 5).all()
        meeting.expect(rr.MismatchError, lambda: rr.allreduce(np.ones(rank + 1)), "the same call", seconds=5)
        rr.shutdown()
        rr.init()
        assert rr.allreduce(np.ones(3), rr.Sum).tolist() == [4.0] * 3
        rr.shutdown()
        """
    ended = run_ranks(4, program, settings=MASTER, own=nodes("aaab"))
    check(ended)
    assert [one.text.count(REMARK) for one in ended] == [2, 0, 0, 0]


def test_death_on_another_node_is_noticed_at_once_also_with_a_forked_child_left() -> None:
    program = """
        rr.init()
        plan = rr.plan_allreduce(np.ones(8))
        plan()
        meeting.everybody()
        if rr.rank() == 2:
            if os.fork() == 0:
                meeting.expect(rr.UsageError, plan, "was forked from the one that called init()", seconds=1)
                print("the child was refused", flush=True)
                time.sleep(20)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        call = lambda: rr.allreduce_(np.ones(300_000))
        meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(call), "rank 2 on another node", seconds=5)
        rr.shutdown()
        """
    with start_ranks(3, program, settings=MASTER, own=nodes("aab")) as job:
        ended = job.wait()
    check(ended, 0, 0, -signal.SIGKILL)
    assert "the child was refused" in ended[2].text


def test_link_that_is_asked_for_and_not_to_be_had_is_an_error() -> None:
    program = """
        meeting.expect(rr.UsageError, rr.init, "MPI must know these ranks", "no launcher of MPI's", seconds=9)
        """
    check(run_ranks(2, program, settings={**MASTER, "RINGRED_LINK": "mpi"}, own=nodes("ab")))


def test_reason_of_an_end_reaches_other_nodes() -> None:
    program = """
        rr.init()
        if rr.rank() == 2:
            raise LookupError("no such sample")
        call = lambda: rr.allreduce_(np.ones(300_000))
        meeting.expect(rr.PeerLostError, lambda: meeting.again_and_again(call), "rank 2", "no such sample", seconds=5)
        """
    check(run_ranks(3, program, settings=MASTER, own=nodes("aab")), 0, 0, 1)


def test_node_that_is_not_reached_is_an_error_on_all_ranks() -> None:
    """192.0.2.1 is nobody's (RFC 5737): there is no such interface to listen at."""
    program = """
        from ringred import sockets
        if meeting.FileBootstrap(-1).rank == 0:
            sockets.address_of = lambda environment, other: "192.0.2.1"
        meeting.expect(rr.SystemError, rr.init, "rank 0 could not listen at 192.0.2.1", "GLOO_SOCKET_IFNAME", seconds=9)
        assert not rr.is_initialized()
        """
    check(run_ranks(2, program, settings=MASTER, own=nodes("ab")))


def test_strangers_that_knock_are_sent_away() -> None:
    program = """
        import socket
        from ringred import sockets
        listen, strangers = sockets._Meeting.listen, []
        def listen_and_be_found(self, address, peers):
            listen(self, address, peers)
            strangers.extend(socket.create_connection(self.endpoint[:2]) for _ in range(2))
            strangers[0].sendall(sockets._HELLO.pack(b"guess", 1))
            strangers[1].shutdown(socket.SHUT_WR)
        sockets._Meeting.listen = listen_and_be_found
        rr.init()
        assert rr.allreduce(np.ones(3), rr.Sum).tolist() == [2.0] * 3
        assert rr.rank() == 1 or [one.recv(1) for one in strangers] == [b"", b""]
        rr.shutdown()
        """
    check(run_ranks(2, program, settings=MASTER, own=nodes("ab")))


def test_mpi_is_used_where_it_numbers_the_ranks_alike_and_tcp_cannot_be_had(tmp_path: Path) -> None:
    """They meet elsewhere, as a script that sets torchrun's variables makes them do."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    program = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        number = int(os.environ["OMPI_COMM_WORLD_RANK"])
        os.environ.update(MEETING_SIZE="2", RINGRED_NODE="ab"[number])
        import meeting
        import numpy as np
        import ringred as rr
        meeting.install()
        from ringred import links, sockets
        links.has_fabric = lambda: False
        find, tried = sockets.address_of, False
        def no_address(environment, other):
            if number:
                raise OSError("no address")
            return find(environment, other)
        for rank, link in ((number, "mpi"), (number, "auto"), (1 - number, "auto"), (number, "tcp"), (number, "auto")):
            sockets.address_of = no_address if (rank, link) == (number, "auto") and not tried else find
            tried |= link == "auto"
            os.environ.update(MEETING_RANK=str(rank), RINGRED_LINK=link)
            rr.init()
            assert rr.rank() == rank and "mpi4py.MPI" in sys.modules
            assert rr.allreduce(np.full(300_000, rank), rr.Sum).tolist() == [1] * 300_000
            rr.shutdown()
        """
    environment = clean_environment(**MASTER, MEETING_DIRECTORY=str(tmp_path))
    with Job() as job:
        job.start(mpirun(2, sys.executable, "-c", textwrap.dedent(program)), environment)
        (ended,) = job.wait(30)
    assert ended.status == 0, ended.text
    said = [line for line in ended.text.splitlines() if "Between nodes" in line]
    assert len(said) == 4 and "goes through MPI, which numbers the ranks" in said[0], ended.text
    assert "through MPI, not over TCP, which was tried first: rank 1 could not find its address" in said[1], ended.text
    assert "not through MPI: rank 0 of 2 is 1 of 2 for MPI" in said[2], ended.text
    assert "not through MPI: RINGRED_LINK=tcp says so" in said[3], ended.text
