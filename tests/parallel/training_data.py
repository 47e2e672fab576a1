"""Models and batches for tests of training: every rank can make every rank's, and those of all ranks together."""

from __future__ import annotations

import torch
from torch import nn

import ringred.torch as hvd

SAMPLES_PER_RANK = 6


def assert_same_on_all_ranks(tensors: list[torch.Tensor]) -> None:
    """Fail on all ranks when one rank's bytes differ."""
    flat = torch.cat([tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])
    lowest, highest = hvd.allreduce(flat, op=hvd.Min), hvd.allreduce(flat, op=hvd.Max)
    assert int((lowest != highest).sum()) == 0


def make_model(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def all_inputs(step: int = 0) -> torch.Tensor:
    """The global batch (sample, 5), equal on all ranks."""
    return torch.randn(SAMPLES_PER_RANK * hvd.size(), 5, generator=torch.Generator().manual_seed(step))


def inputs_of(rank: int, step: int = 0) -> torch.Tensor:
    return all_inputs(step)[rank * SAMPLES_PER_RANK : (rank + 1) * SAMPLES_PER_RANK]


def backward(model: nn.Module, inputs: torch.Tensor) -> None:
    model(inputs).square().mean().backward()


class TwoBranches(nn.Module):
    """A forward pass uses one branch only; `never` is not used by anyone."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
        self.never = nn.Linear(2, 1, bias=False)

    def forward(self, inputs: torch.Tensor, branch: int) -> torch.Tensor:
        result: torch.Tensor = self.branches[branch](inputs)
        return result
