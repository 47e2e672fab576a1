"""Which way buckets on GPUs take: where they lie if that was asked for and all ranks can, else through host memory.

Invariant: all ranks choose alike; where it was asked for and cannot be, one line of rank 0 says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from ringred import environment
from ringred.devices.groups import DeviceGroup, Place
from ringred.devices.leases import lease
from ringred.devices.recognition import torch_library
from ringred.torch.device_buckets import DeviceBucket
from ringred.torch.direct_way import DirectWay, Turns
from ringred.torch.parcels import Carrier
from ringred.torch.staged_way import StagedWay

ALIGNMENT = 256
"""Bytes, as torch's allocator aligns: kernels load and store 16 at a time."""

REDUCED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What communicators of devices take of the dtypes that gradients have."""


def open_buckets(buckets: Sequence[DeviceBucket], carrier: Carrier) -> list[Turns]:
    """Give memory and a way to all of these, which are alike on all ranks. Collective.

    Returns:
        The turns of those that are reduced where they lie, one for each device.
    """
    movable = [bucket for bucket in buckets if bucket.packed_dtype in REDUCED]
    devices = list(dict.fromkeys(bucket.device for bucket in movable))
    groups = _groups(devices, carrier) if devices else []
    turns = {device: Turns(group, device) for device, group in zip(devices, groups, strict=False)}
    for bucket in buckets:
        if bucket not in movable or not groups:
            flat = torch.zeros(bucket.count, dtype=bucket.packed_dtype, device=bucket.device)
            bucket.open(flat, StagedWay(flat, carrier))
    for device, group in zip(devices, groups, strict=False):
        here = [bucket for bucket in movable if bucket.device == device]
        for number, (bucket, flat) in enumerate(zip(here, _memory(group, here), strict=True)):
            bucket.open(flat, DirectWay(flat, carrier, turns[device], number))
    return list(turns.values())


def _memory(group: DeviceGroup, buckets: Sequence[DeviceBucket]) -> list[torch.Tensor]:
    """Zeros for each of these buckets; where devices reach each other, in memory that they have at the same offset."""
    sizes = [bucket.count * bucket.packed_dtype.itemsize for bucket in buckets]
    begins = list(itertools.accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    if group.communicator.is_direct:
        whole = group.memory(begins[-1], torch.uint8)
    else:
        whole = torch.empty(begins[-1], dtype=torch.uint8, device=buckets[0].device)
    whole[: begins[-1]].zero_()
    parts = zip(begins, sizes, buckets, strict=False)
    return [whole[begin : begin + size].view(bucket.packed_dtype) for begin, size, bucket in parts]


def _groups(devices: Sequence[torch.device], carrier: Carrier) -> list[DeviceGroup]:
    channel: Any = carrier.channel
    found = lease(channel.process_set, [_place(device) for device in devices], channel.share)
    settings = environment.read().settings
    if isinstance(found, list):
        if channel.rank == 0:
            hows = dict.fromkeys(group.communicator.how for group in found)
            environment.say(f"gradients on GPUs are reduced by their devices. {' '.join(hows)}", "info", settings)
        return found
    if found and channel.rank == 0:
        text = f"gradients on GPUs are copied to host memory and reduced there: {found} (docs/gpu.md)."
        environment.say(text, "warning", settings)
    return []


def _place(device: torch.device) -> Place:
    library: Any = torch_library(device.type)
    ordinal = library.module.current_device() if device.index is None else device.index
    return Place(device.type, ordinal)
