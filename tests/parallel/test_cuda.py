"""What ranks on one node share before their devices do: host memory, bytes, and who is alive."""

from __future__ import annotations

import ctypes
import select
import sys
from types import ModuleType
from typing import Any

import pytest

import ringred as rr
from ringred import cuda, world


class Native:
    """Stands in for the compiled part: it looks at what it is given."""

    is_direct = False

    def __init__(self, rank: int, gather: Any, host_blocks: list[int], lifelines: list[int], **_: Any) -> None:
        bytes_of = [(ctypes.c_uint8 * 6000).from_address(address) for address in host_blocks]
        assert all(address % 4096 == 0 for address in host_blocks)
        assert not any(any(block) for block in bytes_of)
        assert gather(b"before") == [b"before"] * len(host_blocks)
        for at in (0, 5999):
            bytes_of[rank][at] = rank + 1
        assert gather(bytes([rank])) == [bytes([member]) for member in range(len(host_blocks))]
        assert [block[5999] for block in bytes_of] == list(range(1, len(host_blocks) + 1))
        self._gather = gather
        ended = select.select([line for line in lifelines if line >= 0], [], [], 0)[0]
        assert len(lifelines) == len(host_blocks) and lifelines[rank] == -1 and not ended

    def end(self) -> None:
        """Come to an end together: what is freed is zeroed."""
        self._gather(b"over")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("ringred._cuda")
    module.Communicator = Native
    module.host_bytes = lambda _: 6000
    monkeypatch.setitem(sys.modules, "ringred._cuda", module)


def test_members_of_a_node_see_each_others_host_memory(native: None) -> None:
    rr.init()
    for node in sorted(set(world.topology().nodes)):
        neighbours = rr.add_process_set(world.topology().ranks_of(node))
        if neighbours.included():
            for _ in range(2):
                with cuda.Communicator(neighbours, device=0):
                    pass
        rr.remove_process_set(neighbours)


def test_ranks_of_several_nodes_are_refused(native: None) -> None:
    rr.init()
    if world.topology().count == 1:
        pytest.skip("all ranks are on one node")
    with pytest.raises(rr.UsageError, match=r"for ranks of one node: ranks .* Make a process set for each node"):
        cuda.Communicator()
    rr.barrier()
