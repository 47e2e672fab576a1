"""What benchmarks/training.py trains, and how: four models in fp32, and a trainer for each way of exchanging gradients.

    a   six Linear(2048, 2048) with ReLU between, batch 16: 100 MB of gradients for little arithmetic
    b   a residual network for 3x32x32 pictures, 2.8 million parameters, BatchNorm, batch 16
    c   a GPT of 6 layers, 512 wide, 8 heads, vocabulary 8192 with tied embedding, 4 sequences of 128 tokens
    d   400 Linear(32, 32) with tanh between, batch 16: many small gradients

Each function builds one of them from a seed. Models have no parameter whose gradient is zero but for rounding (a bias
before BatchNorm, a bias of attention's keys): Adam would turn that rounding into full steps, in which no two ways of
summing agree.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import ringred as rr
import ringred.torch as hvd

SEED = 1
HAS_FUSED = "fused" in inspect.signature(hvd.DistributedOptimizer.__init__).parameters
DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"  # its old name
MODES = ("none", "ringred", *(["fused"] if HAS_FUSED else []), "ddp")
NCCL_SECONDS = 60
Batch = tuple[Tensor, Tensor]
WIDE, TINY, TINY_LAYERS = 2048, 32, 400
CLASSES = 10
CHANNELS = (32, 64, 128, 256)
VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 8192, 128, 512, 8, 6


@dataclass(frozen=True)
class Workload:
    """A model, a maker of batches (inputs, targets), and the loss of the model's outputs and the targets."""

    model: nn.Module
    batch: Callable[[Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        projection = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.shortcut = nn.Identity() if stride == 1 and channels == width else projection

    def forward(self, pictures: Tensor) -> Tensor:
        return functional.relu(self.path(pictures) + self.shortcut(pictures))


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.merge = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.project(tokens).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        queries, keys, values = (part.transpose(1, 2) for part in heads.unbind(2))
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        merged: Tensor = self.merge(mixed.transpose(1, 2).flatten(2))
        return merged


class TransformerLayer(nn.Module):
    """Attention and a two-layer network, each normalized before and added after."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(WIDTH), Attention())
        self.think = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(tokens)
        result: Tensor = tokens + self.think(tokens)
        return result


class LanguageModel(nn.Module):
    """From token numbers to scores of the next token, one row a token; the scores' matrix is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.layers = nn.Sequential(*(TransformerLayer() for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.layers(self.embedding(tokens) + self.positions)
        return functional.linear(hidden.flatten(0, 1), self.embedding.weight)


def wide_layers(seed: int) -> Workload:
    """Workload a."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(6) for layer in (nn.Linear(WIDE, WIDE), nn.ReLU())]
    return Workload(nn.Sequential(*layers[:-1]), vectors(WIDE))


def residual_network(seed: int) -> Workload:
    """Workload b."""
    torch.manual_seed(seed)
    first = CHANNELS[0]
    layers: list[nn.Module] = [nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
    for before, width in zip((first, *CHANNELS), CHANNELS, strict=False):
        layers += [BasicBlock(before, width, 1 if before == width else 2), BasicBlock(width, width, 1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], CLASSES)]

    def pictures(generator: Generator) -> Batch:
        targets = torch.randint(CLASSES, (16,), generator=generator)
        return torch.randn(16, 3, 32, 32, generator=generator), targets

    return Workload(nn.Sequential(*layers), pictures)


def language_model(seed: int) -> Workload:
    """Workload c."""
    torch.manual_seed(seed)

    def sequences(generator: Generator) -> Batch:
        tokens = torch.randint(VOCABULARY, (4, LENGTH + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:].flatten()

    return Workload(LanguageModel(), sequences)


def tiny_layers(seed: int) -> Workload:
    """Workload d. Orthogonal weights and no biases at first keep signals and gradients alive through 400 layers."""
    torch.manual_seed(seed)
    linears = [nn.Linear(TINY, TINY) for _ in range(TINY_LAYERS)]
    for linear in linears:
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
    layers = [layer for linear in linears for layer in (linear, nn.Tanh())]
    return Workload(nn.Sequential(*layers[:-1]), vectors(TINY))


def vectors(width: int) -> Callable[[Generator], Batch]:
    """A maker of batches of 16 random vectors, each with one of as many classes."""

    def batch(generator: Generator) -> Batch:
        targets = torch.randint(width, (16,), generator=generator)
        return torch.randn(16, width, generator=generator), targets

    return batch


WORKLOADS = {"a": wide_layers, "b": residual_network, "c": language_model, "d": tiny_layers}


@dataclass
class Trainer:
    """One mode's model, what is called for a forward pass (the model, or DDP around it), and its optimizer."""

    workload: Workload
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    device: str = "cpu"
    way: str = ""  # of gradients on a GPU: what RINGRED_GPU is while this one makes its buckets, in its first step

    def compute(self, batch: Batch) -> None:
        """Everything of a step that comes after zero_grad."""
        inputs, targets = batch
        self.workload.loss(self.forward(inputs), targets).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def timed_step(self, batch: Batch) -> float:
        inputs, targets = (part.to(self.device) for part in batch)
        if self.way:
            os.environ["RINGRED_GPU"] = self.way
        self.finish()
        rr.barrier()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.compute((inputs, targets))
        self.finish()
        return time.perf_counter() - start

    def finish(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.get_device_module(self.device).current_stream().synchronize()


def build(mode: str, workload_name: str, optimizer_name: str, device: str = "cpu") -> Trainer:
    """A model as the seed makes it, on all ranks, and the optimizer that trains it in this mode. Collective."""
    workload = WORKLOADS[workload_name](SEED)
    workload.model.to(device)
    optimizer = plain_optimizer(optimizer_name, workload.model)
    if mode == "none":
        return Trainer(workload, workload.model, optimizer, device)
    if mode in ("ddp", "nccl"):
        join_gloo()
        options: dict[str, Any] = {"gradient_as_bucket_view": True, SYNC_BUFFERS: False}
        if mode == "nccl":
            options["process_group"] = nccl_group()
        wrapped = DistributedDataParallel(workload.model, **options)
        return Trainer(workload, wrapped, optimizer, device)
    hvd.broadcast_parameters(workload.model.state_dict())
    options = {"fused": True} if mode == "fused" else {}
    named = workload.model.named_parameters()
    exchanging = hvd.DistributedOptimizer(optimizer, named_parameters=named, **options)
    return Trainer(workload, workload.model, exchanging, device, mode if mode in ("staged", "direct") else "")


def plain_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.01)
    return torch.optim.Adam(model.parameters(), lr=1e-4)


def join_gloo() -> None:
    """Initialise torch.distributed with ringred's ranks; they meet at a free port that the system chooses."""
    if dist.is_initialized():
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if rr.rank() == 0 else None
    port = rr.broadcast_object(store.port if store else None)
    store = store or TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rr.rank(), world_size=rr.size())


@functools.cache
def nccl_group() -> Any:
    """The ranks over NCCL. Raises where it cannot run, as with two ranks on one GPU. Collective."""
    join_gloo()
    group = dist.new_group(backend="nccl", timeout=datetime.timedelta(seconds=NCCL_SECONDS))
    ones = torch.ones(1, device="cuda")
    dist.all_reduce(ones, group=group)
    if ones.item() != rr.size():
        raise RuntimeError(f"the sum of {rr.size()} ones is {ones.item():g}")
    return group


def batch_of(workload: Workload, turn: int) -> Batch:
    """This rank's batch in this round."""
    return workload.batch(Generator().manual_seed(SEED + 1 + turn * rr.size() + rr.rank()))
