"""How the optimizer reaches the other ranks: few calls, so that tests can put anything in their place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ringred import _core, asynchronous, world
from ringred.arrays import empty
from ringred.handles import Handle
from ringred.objects import allgather_object
from ringred.ops import Op
from ringred.process_sets import ProcessSet, checked_set, global_process_set
from ringred.replicas import check_replicas
from ringred.torch.gradient_pool import is_wanted, works
from ringred.torch.sparse import sparse_allreduce_async


class Waitable(Protocol):
    """What a started exchange returns."""

    def wait(self) -> Any:
        """Return when the exchange has ended, or raise its error."""


class Channel(Protocol):
    """What gradient exchange needs of a group of ranks."""

    @property
    def size(self) -> int:
        """Number of ranks that take part, at least 1."""

    @property
    def rank(self) -> int:
        """This rank's number among them."""

    @property
    def ranks(self) -> Sequence[int]:
        """Their numbers in the whole job."""

    def allreduce_(
        self,
        tensors: Sequence[torch.Tensor],
        op: Op,
        name: str,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        wire: str = "",
    ) -> Waitable:
        """Start the reduction of contiguous tensors in place, all or nothing."""

    def sparse_allreduce(self, tensor: torch.Tensor, op: Op, name: str) -> Waitable:
        """Start the reduction of a sparse tensor; the handle's result is a new coalesced one."""

    def share(self, value: Any, name: str) -> list[Any]:
        """Return the values of all ranks, in rank order."""

    def lateness(self) -> list[float]:
        """For how long in all, in seconds, the others have waited for each rank."""

    def check_replicas(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Raise on all ranks unless all hold the same bits."""


class ArenaChannel(Channel, Protocol):
    """A channel whose ranks all see each other's arenas."""

    def allocate(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Zeroed bytes of this rank's arena."""

    def lends_memory(self) -> bool:
        """Whether torch can compute gradients into a pool in this rank's arena."""

    def let_go(self) -> None:
        """Drop the arrays of operations that have ended."""

    def pool(self, sizes: Sequence[int]) -> _core.Pool:
        """Memory of this rank's arena for gradients of these sizes in bytes."""

    def reduce_in_place(self, array: torch.Tensor, op: Op, name: str, norm: bool = False) -> Waitable:
        """Start the reduction of a flat tensor of the arena, where it lies, on all ranks.

        With `norm` the handle has `squares` at the end: this rank's part of the sum of squares of the result.
        """


class EngineChannel:
    """The ranks of a process set, through the engine. Its messages have names that no other channel's have."""

    def __init__(self, process_set: ProcessSet = global_process_set) -> None:
        self._process_set = checked_set(process_set)
        self._rank, self._size = process_set.rank(), process_set.size()
        if self._size > 1:
            process_set.group()  # raises for a set that is not registered
        self._prefix = _next_prefix(process_set)
        self._pools = is_wanted()

    @property
    def process_set(self) -> ProcessSet:
        """The ranks."""
        return self._process_set

    @property
    def size(self) -> int:
        """Number of ranks in the process set."""
        return self._size

    @property
    def rank(self) -> int:
        """This rank's number in the process set."""
        return self._rank

    @property
    def ranks(self) -> list[int]:
        """The members' numbers in the world."""
        return list(self._process_set.ranks)

    def allreduce_(
        self,
        tensors: Sequence[torch.Tensor],
        op: Op,
        name: str,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        wire: str = "",
    ) -> Handle[list[torch.Tensor]]:
        """Submit a grouped allreduce."""
        return asynchronous.grouped_allreduce_async_(
            tensors,
            op,
            name=self._prefix + name,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
            wire=wire or None,
            process_set=self._process_set,
        )

    @property
    def nodes(self) -> list[int]:
        """The node of each member, by number."""
        nodes = world.topology().nodes
        return [nodes[rank] for rank in self.ranks]

    @property
    def neighbours(self) -> list[int]:
        """The members on this rank's node, by their numbers in the process set, ascending; this rank is one."""
        nodes = self.nodes
        return [member for member, node in enumerate(nodes) if node == nodes[self._rank]]

    def lateness(self) -> list[float]:
        """As the sequencer of the process set has counted it."""
        return [seconds for _, seconds in world.engine().stragglers(self._process_set.group())]

    def check_replicas(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Compare hashes."""
        check_replicas(named, process_set=self._process_set)

    def allocate(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Take memory of the arena."""
        return empty(size, np.uint8)

    def lends_memory(self) -> bool:
        """Try it."""
        return self._pools and works(world.engine())

    def let_go(self) -> None:
        """Do not wait for the next submission."""
        world.engine().let_go()

    def pool(self, sizes: Sequence[int]) -> _core.Pool:
        """Make a pool."""
        return _core.Pool(world.engine(), sizes)

    def reduce_in_place(self, array: torch.Tensor, op: Op, name: str, norm: bool = False) -> _core.Operation:
        """Submit an allreduce in place."""
        group = self._process_set.group()
        return world.engine().reduce_in_place(group, self._prefix + name, array, int(op), norm)

    @property
    def engine(self) -> _core.Engine:
        """This process's engine."""
        return world.engine()

    def update(self, name: str, gradients: torch.Tensor, op: Op, *arguments: Any, **options: Any) -> _core.Operation:
        """Submit the step of an optimizer, see Engine.update."""
        group = self._process_set.group()
        return world.engine().update(group, self._prefix + name, gradients, int(op), *arguments, **options)

    def gather(self, tensor: torch.Tensor, name: str) -> list[torch.Tensor]:
        """The tensors of all ranks, of one dimension and any length, in rank order."""
        lengths = self.share(tensor.numel(), f"{name}.lengths")
        whole = asynchronous.allgather_async(tensor, name=self._prefix + name, process_set=self._process_set).wait()
        return list(whole.split(lengths))

    def sparse_allreduce(self, tensor: torch.Tensor, op: Op, name: str) -> Handle[torch.Tensor]:
        """Submit a sparse allreduce."""
        return sparse_allreduce_async(tensor, self._prefix + name, op, self._process_set)

    def share(self, value: Any, name: str) -> list[Any]:
        """Gather objects."""
        values: list[Any] = allgather_object(value, name=self._prefix + name, process_set=self._process_set)
        return values


_counts: WeakKeyDictionary[ProcessSet, Iterator[int]] = WeakKeyDictionary()


def _next_prefix(process_set: ProcessSet) -> str:
    """A prefix for the names of the next optimizer of this set; ranks build their optimizers in the same order."""
    number = next(_counts.setdefault(process_set, itertools.count()))
    return "optimizer." if number == 0 else f"optimizer{number}."
