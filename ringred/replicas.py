"""check_replicas: whether all ranks hold the same bits, and if not, where they part.

    1. Every rank lists its tensors: name, shape, dtype. The list and each tensor's bytes are hashed, 64 bits each.
    2. One allgather tells all hashes to all ranks, so all ranks draw the same conclusion.
    3. Lists that differ are told in full. Otherwise the first tensor whose hashes differ is broadcast by a rank of the
       largest party, and every rank counts its elements that differ.

Invariant: a rank that cannot list its tensors still takes part in step 2, so that nobody waits for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringred import _core, world
from ringred.arrays import Array, is_tensor, on_host
from ringred.errors import MismatchError, ReplicaError, UsageError
from ringred.messages import exchange
from ringred.process_sets import ProcessSet, checked_set, global_process_set

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Entry:
    """One tensor of this rank; `bytes` are its elements in row-major order."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    item_bytes: int
    bytes: Bytes

    @property
    def layout(self) -> tuple[str, str, tuple[int, ...]]:
        return self.name, self.dtype, self.shape


def check_replicas(
    model_or_named_tensors: Any, optimizer: Any = None, process_set: ProcessSet = global_process_set
) -> None:
    """Raise on all ranks, naming tensor, ranks and element count, unless all ranks hold the same bits. Collective.

    Compared are names, shapes, dtypes and bytes, so NaNs with the same bits are equal, and 0.0 and -0.0 differ. Costs
    one pass over the memory, and 8 bytes a tensor between ranks.

    Args:
        model_or_named_tensors: a torch module (its parameters and buffers), a mapping from name to array such as a
            state_dict, or pairs (name, array). Arrays as allreduce takes them, of any shape and layout, also on a GPU.
        optimizer: a torch optimizer, whose state and numbers (learning rates and the like) are compared as well.
        process_set: the ranks that compare; all of them call.

    Raises:
        ReplicaError: tensors differ; also a MismatchError. Nothing is changed.
        UsageError: the arguments are none of these, which is a MismatchError on the other ranks; or the set is not
            registered, or this rank is no member.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    group = _Group(process_set)
    entries: list[Entry] = []
    failure: Exception | None = None
    try:
        entries = list_tensors(model_or_named_tensors, optimizer)
        hashes = [_core.hash_bytes(entry.bytes) for entry in entries]
    except Exception as error:
        failure, hashes = error, []
    layouts = json.dumps([entry.layout for entry in entries]).encode()
    head = [int(failure is not None), _core.hash_bytes(np.frombuffer(layouts, np.uint8)), len(entries)]
    told: list[Hashes] = [part.view(np.uint64) for part in group.allgather(np.array([*head, *hashes], np.uint64))]
    if failure is not None:
        raise failure
    _check_failed(told, group)
    if any(not np.array_equal(part[1:3], told[0][1:3]) for part in told):
        raise ReplicaError(_where_lists_part(group, layouts))
    table = np.stack([part[3:] for part in told])
    differing = np.flatnonzero((table != table[0]).any(axis=0))
    if differing.size:
        column = int(differing[0])
        raise ReplicaError(_where_tensors_part(group, entries[column], table[:, column], int(differing.size)))


def list_tensors(model_or_named_tensors: Any, optimizer: Any = None) -> list[Entry]:
    """This rank's tensors: parameters, buffers, the optimizer's state, its numbers, in this order."""
    pairs = _named_tensors(model_or_named_tensors)
    names = {id(tensor): name for name, tensor in pairs}
    if optimizer is not None:
        pairs += _optimizer_tensors(optimizer, names)
    return [_entry(name, tensor) for name, tensor in pairs]


class _Group:
    """The ranks that compare, and how they talk: bytes, under names of their own."""

    def __init__(self, process_set: ProcessSet) -> None:
        self.ranks: Sequence[int] = checked_set(process_set).ranks
        self._engine = world.engine()
        self._number = process_set.group()

    def allgather(self, values: NDArray[Any]) -> list[Bytes]:
        """The bytes of every rank's array, in rank order. An array has one at least."""
        parts = exchange(self._engine, self._number, "ringred.check_replicas", values.tobytes())
        return [np.frombuffer(part, np.uint8) for part in parts]

    def broadcast(self, values: Bytes, root: int) -> Bytes:
        """The bytes of rank number `root` of the group, of the same length on all ranks."""
        copy: Bytes = values.copy()
        if copy.size:
            name = "ringred.check_replicas.reference"
            self._engine.submit(self._number, "broadcast", name, [copy], [copy], root=root).wait()
        return copy


def _named_tensors(given: Any) -> list[tuple[str, Array]]:
    if hasattr(given, "named_parameters") and hasattr(given, "named_buffers"):
        return [*given.named_parameters(), *given.named_buffers()]
    pairs = given.items() if isinstance(given, Mapping) else given
    if isinstance(pairs, (str, bytes)) or is_tensor(pairs) or not isinstance(pairs, Iterable):
        raise UsageError(
            "check_replicas takes a torch module, a mapping from name to array, or pairs (name, array): it got a "
            f"{type(given).__qualname__}. Pass the model."
        )
    entries = list(pairs)
    for index, pair in enumerate(entries):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UsageError(f"check_replicas takes pairs (name, array): entry {index} is a {type(pair).__qualname__}.")
    return entries


def _optimizer_tensors(optimizer: Any, names: Mapping[int, str]) -> list[tuple[str, Array]]:
    if not (hasattr(optimizer, "state") and hasattr(optimizer, "param_groups")):
        raise UsageError(f"optimizer must be a torch optimizer or None: it is a {type(optimizer).__qualname__}.")
    found: list[tuple[str, Array]] = []
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            owner = names.get(id(parameter), f"parameter {index} of group {number}")
            state = optimizer.state.get(parameter, {})
            found += [(f"{key} of {owner} in the optimizer", state[key]) for key in sorted(state)]
    for number, group in enumerate(optimizer.param_groups):
        found += [(f"{key} of the optimizer's group {number}", group[key]) for key in sorted(group)]
    return [(name, _as_array(value)) for name, value in found if is_tensor(value) or _is_number(value)]


def _is_number(value: Any) -> bool:
    """Whether it is one, or a tuple of some, such as Adam's betas."""
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, (bool, int, float))


def _as_array(value: Any) -> Array:
    return value if is_tensor(value) else np.asarray(value, np.float64)


def _entry(name: str, tensor: Array) -> Entry:
    values = on_host(tensor)
    if not is_tensor(values):
        if values.dtype.hasobject:
            raise UsageError(f"check_replicas compares plain values: {name!r} has dtype {values.dtype}.")
        return Entry(name, values.shape, str(values.dtype), values.itemsize, values.reshape(-1).view(np.uint8))
    import torch

    flat = values.reshape(-1).view(torch.uint8).numpy()
    dtype = str(values.dtype).removeprefix("torch.")
    return Entry(name, tuple(values.shape), dtype, values.element_size(), flat)


def _check_failed(told: Sequence[Hashes], group: _Group) -> None:
    failed = [rank for rank, part in zip(group.ranks, told, strict=True) if part[0]]
    if failed:
        raise MismatchError(
            f"All ranks must list their tensors: {_ranks(failed)} could not, and raised an error that says why."
        )


def _where_lists_part(group: _Group, layouts: bytes) -> str:
    """The first entry in which the lists of two ranks differ."""
    rule = "All ranks must hold tensors of the same names, dtypes and shapes"
    lists: list[list[Any]] = [json.loads(bytes(part)) for part in group.allgather(np.frombuffer(layouts, np.uint8))]
    for index in range(max(map(len, lists))):
        rows = [_in_words(entries[index]) if index < len(entries) else "none" for entries in lists]
        if len(set(rows)) > 1:
            said = "; ".join(f"{row} on {_ranks(_holders(group, rows, row))}" for row in dict.fromkeys(rows))
            return f"{rule}: tensor {index} is {said}. Build the model in the same way on all ranks."
    return f"{rule}: they differ."


def _where_tensors_part(group: _Group, entry: Entry, hashes: Hashes, tensors: int) -> str:
    """Which ranks differ in how many elements of the first tensor that differs."""
    values = hashes.tolist()
    counts = Counter(values)
    root = min(range(len(values)), key=lambda index: (-counts[values[index]], index))
    reference = group.broadcast(entry.bytes, root)
    different, first = _difference(entry, reference)
    facts = [part.view(np.int64).tolist() for part in group.allgather(np.array([different, first]))]
    total = entry.bytes.size // entry.item_bytes
    said = "; ".join(
        f"rank {rank} differs in {count} of {total} elements, first in number {place}"
        for rank, (count, place) in zip(group.ranks, facts, strict=True)
        if count
    )
    alike = _ranks(_holders(group, values, values[root]))
    further = f" {tensors - 1} more of the tensors differ." if tensors > 1 else ""
    return (
        f"All ranks must hold the same bits, and of {_in_words(entry.layout)} they do not: compared with {alike}, "
        f"{said}.{further} "
        "Broadcast parameters and optimizer state at the start, and let every rank apply the same averaged gradients."
    )


def _difference(entry: Entry, reference: Bytes) -> tuple[int, int]:
    """How many elements differ from the reference, and the number of the first one (row-major), or -1."""
    pair = [data.reshape(-1, entry.item_bytes) for data in (entry.bytes, reference)]
    places = np.flatnonzero((pair[0] != pair[1]).any(axis=1))
    return places.size, int(places[0]) if places.size else -1


def _holders(group: _Group, values: Sequence[Any], value: Any) -> list[int]:
    return [rank for rank, one in zip(group.ranks, values, strict=True) if one == value]


def _in_words(layout: Sequence[Any]) -> str:
    name, dtype, shape = layout
    return f"{name!r} ({dtype}, shape {tuple(shape)})"


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
