"""Who shares a node, and what Horovod's local and cross ranks are made of."""

from __future__ import annotations

import pytest

from ringred.topology import Topology


def test_one_node() -> None:
    nodes = Topology((0, 0, 0))
    assert nodes.count == 1 and nodes.neighbours(2) == [0, 1, 2] and nodes.columns(2) == [0]
    assert nodes.is_homogeneous()


def test_nodes_of_different_sizes() -> None:
    nodes = Topology((0, 1, 0, 1, 0, 2))
    assert nodes.count == 3 and nodes.ranks_of(0) == [0, 2, 4] and nodes.neighbours(3) == [1, 3]
    assert [nodes.columns(rank) for rank in range(6)] == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0], [0, 1, 2]]
    assert str(nodes) == "node 0: ranks 0, 2, 4; node 1: ranks 1, 3; node 2: ranks 5"


@pytest.mark.parametrize(
    ("nodes", "same"), [((0, 0, 1, 1), True), ((0, 1, 2), True), ((0, 0, 1), False), ((0, 0, 0, 1, 2, 2), False)]
)
def test_homogeneous_is_as_many_ranks_on_each_node(nodes: tuple[int, ...], same: bool) -> None:
    assert Topology(nodes).is_homogeneous() == same
