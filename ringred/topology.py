"""Which ranks share a node.

Invariant: it is the same on all ranks, since they made it of what all had told all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """The nodes of a world.

    Attributes:
        nodes: the number of every rank's node, from 0, by rank.
    """

    nodes: tuple[int, ...]

    def ranks_of(self, node: int) -> list[int]:
        """The ranks of a node, ascending."""
        return [rank for rank, one in enumerate(self.nodes) if one == node]

    def neighbours(self, rank: int) -> list[int]:
        """The ranks of a rank's node, itself included, ascending: its place among them is its local rank."""
        return self.ranks_of(self.nodes[rank])

    def columns(self, rank: int) -> list[int]:
        """The nodes that have a rank with this rank's local rank, ascending."""
        local_rank = self.neighbours(rank).index(rank)
        return [node for node in range(self.count) if len(self.ranks_of(node)) > local_rank]

    @property
    def count(self) -> int:
        """The number of nodes."""
        return len(set(self.nodes))

    def is_homogeneous(self) -> bool:
        """Whether all nodes have the same number of ranks."""
        return len({len(self.ranks_of(node)) for node in range(self.count)}) == 1

    def __str__(self) -> str:
        rows = (f"node {node}: ranks " + ", ".join(map(str, self.ranks_of(node))) for node in range(self.count))
        return "; ".join(rows)
