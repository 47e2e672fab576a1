"""Batch normalisation over the batches of all ranks.

Invariant: in training the ranks together compute what one process computes on their concatenated batches, gradients
included; batches may differ in length, and be empty. What is differentiated is the sum over ranks of their losses.

With n the number of values of a channel over all ranks, m their mean, v their variance, h = (x - m) / sqrt(v + eps):

    y  = w h + b
    dx = w / sqrt(v + eps) (dy - sum(dy) / n - h sum(dy h) / n)        dw = sum(dy h)        db = sum(dy)

The sums in dx are over all ranks; dw and db are those of this rank, since DistributedOptimizer averages them.

    forward:  one allgather of this rank's count, means and sums of squared deviations, 2 C + 1 float64
    backward: one allreduce of both sums, 2 C float64
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ringred.arguments import shown
from ringred.errors import UsageError
from ringred.ops import Op
from ringred.process_sets import ProcessSet, checked_set, global_process_set
from ringred.torch.allgather import allgather
from ringred.torch.allreduce import allreduce_


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over all ranks, for inputs (N, C, ...) with any number of further dimensions.

    In evaluation it is the ordinary local one. All ranks call it equally often in training.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as for torch.nn.BatchNorm1d. With momentum None the
            running statistics are plain averages.
        process_set: the ranks that normalise together.

    Raises:
        ValueError: in forward: fewer than two dimensions, or in training one value per channel on all ranks together.
        MismatchError: in forward: ranks have different numbers of channels.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_set: ProcessSet = global_process_set,
    ) -> None:
        checked_set(process_set)
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_set = process_set
        self.message_name = _next_name(process_set)

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_set: ProcessSet = global_process_set
    ) -> torch.nn.Module:
        """Replace every BatchNorm inside `module` by a SyncBatchNorm with the same parameters and statistics.

        Returns `module` itself, or its replacement where it is a BatchNorm.

        Raises:
            UsageError: it is no module.
        """
        checked_set(process_set)
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"convert_sync_batchnorm takes a torch module: this is {shown(module)}. Pass the model.")
        if isinstance(module, _BatchNorm) and not isinstance(module, cls):
            return cls._like(module, process_set)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_set))
        return module

    @classmethod
    def _like(cls, module: _BatchNorm, process_set: ProcessSet) -> SyncBatchNorm:
        result = cls(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, process_set
        )
        for name, parameter in module.named_parameters(recurse=False):
            setattr(result, name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(result, name, buffer)
        return result.train(module.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """Copy parameters and statistics; the ranks of a set cannot be copied, both modules talk to the same ones."""
        result = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self.process_set)] = self.process_set
        result.__dict__ = copy.deepcopy(self.__dict__, memo)
        return result

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"The input must have shape (N, C, ...): it has {input.dim()} dimension(s).")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise `input`, of shape (N, C, ...) and a floating-point dtype; the result has its shape and dtype."""
        if not self.training or self.process_set.size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, count = self._statistics(input)
        if count <= 1:
            raise ValueError(f"Training needs more than one value per channel on all ranks together: there is {count}.")
        self._update(mean, variance * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        result: torch.Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean, scale, count, self
        )
        return result

    def _statistics(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Mean and variance per channel over all ranks, float64, and the number of values that they are of.

        What ranks tell each other is small, and is put together on the CPU also where the input is on a GPU.
        """
        channels = _by_channel(_wide(input.detach()))
        own_count = channels.shape[1]
        own = torch.zeros(2 * channels.shape[0] + 1, dtype=torch.float64, device="cpu")
        if own_count:
            variance, mean = torch.var_mean(channels, dim=1, correction=0)
            sums = torch.cat([mean, variance * own_count]).to("cpu", torch.float64)
            own = torch.cat([torch.tensor([own_count], device="cpu"), sums])
        told = allgather(own.unsqueeze(0), f"{self.message_name}.forward", self.process_set)
        counts, means, squares = told[:, :1], told[:, 1 : channels.shape[0] + 1], told[:, channels.shape[0] + 1 :]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        return mean.to(input.device), variance.to(input.device), int(count.item())

    def _update(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        scale: torch.Tensor,
        count: int,
        module: SyncBatchNorm,
    ) -> torch.Tensor:
        ctx.save_for_backward(input, weight, mean, scale)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.count, ctx.process_set, ctx.name = count, module.process_set, f"{module.message_name}.backward"
        result = _normalised(input, mean, scale)
        if weight is not None:
            result = result * _as_channels(weight, result)
        if bias is not None:
            result = result + _as_channels(bias, result)
        return result.to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight, mean, scale = ctx.saved_tensors
        normalised, gradient = _normalised(input, mean, scale), _wide(gradient)
        of_bias = _by_channel(gradient).sum(1)
        of_weight = _by_channel(gradient * normalised).sum(1)
        of_input = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat([of_bias, of_weight]).to(torch.float64)
            allreduce_(sums, name=ctx.name, op=Op.Sum, process_set=ctx.process_set)
            of_all_biases, of_all_weights = (sums / ctx.count).chunk(2)
            centred = gradient - _as_channels(of_all_biases, gradient)
            factor = scale if weight is None else scale * weight
            of_input = (centred - normalised * _as_channels(of_all_weights, gradient)) * _as_channels(factor, gradient)
            of_input = of_input.to(input.dtype)
        return (
            of_input,
            None if weight is None else of_weight.to(weight.dtype),
            None if ctx.bias_dtype is None else of_bias.to(ctx.bias_dtype),
            *[None] * 4,
        )


def _normalised(input: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    wide = _wide(input)
    return (wide - _as_channels(mean, wide)) * _as_channels(scale, wide)


def _as_channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per channel, so that it multiplies tensors (N, C, ...) of the dtype of `like`."""
    return values.to(like.dtype).view(1, -1, *[1] * (like.dim() - 2))


def _by_channel(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of shape (C, values of a channel)."""
    return tensor.transpose(0, 1).flatten(1)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Half types are too coarse to add in."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


_counts: WeakKeyDictionary[ProcessSet, Iterator[int]] = WeakKeyDictionary()


def _next_name(process_set: ProcessSet) -> str:
    """The name of the next module of this set; ranks build their modules in the same order."""
    return f"SyncBatchNorm.{next(_counts.setdefault(process_set, itertools.count()))}"
