"""DistributedOptimizer: an optimizer that averages gradients over all ranks before it uses them.

Invariant: the wrapped optimizer never sees a gradient that is not the same on all ranks. (With op=Adasum it sees this
rank's own, and it is the parameters that are the same after each step; see deltas.py.)
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from ringred.arguments import checked_factor, checked_op, is_whole
from ringred.devices.recognition import check_device
from ringred.errors import UsageError
from ringred.ops import Op
from ringred.process_sets import ProcessSet, global_process_set
from ringred.torch.agreement import NamedTensor
from ringred.torch.channel import Channel, EngineChannel
from ringred.torch.closures import LossReduction
from ringred.torch.composed import ComposedOptimizer
from ringred.torch.compression import Compression, checked_compression
from ringred.torch.deltas import DeltaExchange
from ringred.torch.exchange import BUCKET_BYTES, GradientExchange
from ringred.torch.fused import FusedStep, check_optimizer
from ringred.torch.fused_exchange import FusedExchange
from ringred.torch.groups import form_groups
from ringred.torch.names import name_parameters
from ringred.torch.overlap import Overlap
from ringred.torch.parcels import Carrier

OPS = (Op.Average, Op.Sum, Op.Adasum)


class DistributedOptimizer(ComposedOptimizer):
    """Wrap `optimizer` so that `step()` sees gradients averaged (or summed) over all ranks.

    `step()` replaces every gradient by the average over ranks of what it is on each of them, where None counts as zero;
    a gradient that is None on all ranks stays None. Gradients travel during the backward pass, each as soon as it is
    complete, and all ranks end with the same bits. In a single process nothing is done at all.

    All ranks must build their optimizers in equal order over equal parameters in equal order, and call `step()`,
    `synchronize()` and `zero_grad()` equally often: they are collectives. Ranks whose parameters or options differ all
    get `MismatchError` in the first exchange.

    - Gradients must not be touched between `backward()` and `step()`. Call `synchronize()` before you clip or log them;
      `step()` then does not exchange them again, inside `skip_synchronize()` or not.
    - `torch.amp.GradScaler` needs nothing: unscaling synchronizes first, so all ranks step or all skip.
    - Drop a backward pass with `optimizer.zero_grad()`, not with `model.zero_grad()`, which does not reach the other
      ranks.
    - A parameter belongs to the newest DistributedOptimizer that was built on it; to use an older one is an error.
    - Parameters may be frozen and unfrozen at any time. Those of one group travel when the last of them is ready.
    - Under reentrant activation checkpointing a parameter shared between segments counts one pass for each.
    - It is not pickled or deep-copied; save `state_dict()`, which is that of the wrapped optimizer.

    Args:
        optimizer: any torch optimizer; parameters of floating-point or complex dtypes, on the CPU or on GPUs.
        named_parameters: pairs (name, parameter), as from `model.named_parameters()`, that cover all parameters of the
            optimizer. Names appear in error messages and are compared between ranks.
        compression: `Compression.none`, `.fp16`, `.bf16`, or an object with compress() and decompress().
        backward_passes_per_step: gradients accumulate on each rank over this many backward passes and travel in the
            last one; they are not divided by it. A `step()` after fewer passes exchanges what is there.
        op: Average, Sum, or Adasum.
        gradient_predivide_factor: with Average, divide by this before the sum and by size / this after it.
        num_groups: deprecated; a number for `groups`.
        groups: gradients that travel together: a number of groups, or a list of lists of parameters.
        sparse_as_dense: make sparse gradients dense; otherwise they travel sparse.
        process_set: the ranks that take part; this one must be a member.
        fused: update the parameters inside the reduction: each rank its part, with its part of the optimizer's state,
            for all ranks of its node. For SGD, Adam and AdamW of torch, float32 and float64, without compression.
            Gradients stay this rank's own; parameters move into the shared arena. `state_dict()` is a collective then.
        keep_gradients: with fused, step() leaves the averages in the gradients.
        share_parameters: with fused, keep one copy of the parameters for all ranks of the node. They are read-only
            outside of step() and writable(): a stray write ends the process, after a text that names the parameter.
            Construction is a collective then; broadcast parameters before.
        overlap: "on" or "off": whether gradients travel during the backward pass or after it; "auto" measures both
            over the first 15 steps (RINGRED_OVERLAP, where set, is the default).
        bucket_bytes: gradients are gathered in buckets of this size; 0 leaves each where autograd put it.
        channel: how to reach the other ranks, in place of `process_set`; for tests.

    Raises:
        UsageError: also a ValueError; names are missing or not distinct, an argument is out of range, or ringred is not
            initialised.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[NamedTensor] | None = None,
        compression: Any = Compression.none,
        backward_passes_per_step: int = 1,
        op: Op = Op.Average,
        gradient_predivide_factor: float = 1.0,
        num_groups: int = 0,
        groups: Any = None,
        sparse_as_dense: bool = False,
        process_set: ProcessSet = global_process_set,
        *,
        fused: bool = False,
        keep_gradients: bool = False,
        share_parameters: bool = False,
        overlap: str | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        channel: Channel | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, DistributedOptimizer):
            raise UsageError(
                f"DistributedOptimizer wraps a plain torch optimizer, once; got {type(optimizer).__name__}."
            )
        op = checked_op(op, "DistributedOptimizer", OPS)
        gradient_predivide_factor = checked_factor(gradient_predivide_factor, "gradient_predivide_factor")
        checked_compression(compression)
        if gradient_predivide_factor != 1.0 and op != Op.Average:
            raise UsageError(f"gradient_predivide_factor goes with op=Average; op is {op!r}.")
        if gradient_predivide_factor <= 0:
            raise UsageError(f"gradient_predivide_factor must be positive, got {gradient_predivide_factor}.")
        _check_passes(backward_passes_per_step)
        named = name_parameters(optimizer.param_groups, named_parameters)
        _check_devices(named)
        if num_groups:
            warnings.warn("num_groups is deprecated: pass groups.", DeprecationWarning, stacklevel=2)
            groups = num_groups if groups is None else groups
        form_groups(named, groups)
        super().__init__(optimizer)
        self._names = {id(parameter): name for name, parameter in named}
        self._op = op
        self._groups = groups
        self._compression = compression
        self._passes = int(backward_passes_per_step)
        self._predivide_factor = gradient_predivide_factor
        self._sparse_as_dense = sparse_as_dense
        self._overlap = Overlap(os.environ.get("RINGRED_OVERLAP", "auto") if overlap is None else overlap)
        if not is_whole(bucket_bytes) or bucket_bytes < 0:
            raise UsageError(f"bucket_bytes must be a whole number, at least 0: it is {bucket_bytes!r}.")
        self._bucket_bytes = int(bucket_bytes)
        self._fused = bool(fused)
        self._keep_gradients = bool(keep_gradients)
        self._share_parameters = bool(share_parameters)
        if (keep_gradients or share_parameters) and not fused:
            raise UsageError("keep_gradients and share_parameters go with fused=True.")
        self._channel: Channel = EngineChannel(process_set) if channel is None else channel
        if self._fused:
            self._check_fused()
        self._skips_synchronize = False
        self._closed = False
        self._earlier_seconds = 0.0  # communication before add_param_group() rebuilt the exchange
        self._exchange, self._deltas = self._build(named)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of the wrapped optimizer."""
        # A GradScaler reads and writes gradients while they may be on their way, and asks for nothing but this list
        # before. It is the one reader that must find finished averages: else it would scale a gradient that is being
        # written, and each rank would decide by itself whether to skip the step.
        if sys._getframe(1).f_code is _UNSCALE:
            self._prepare_unscaling()
        return self._inner.param_groups

    def step(self, closure: Callable[[], Any] | None = None, *, weight: float | None = None) -> Any:
        """Exchange what is left to exchange, then step the wrapped optimizer.

        With a closure, gradients are exchanged after each of its calls, and the loss that it returns (a number or a
        one-element tensor) is reduced with the same op, so that line searches decide alike on all ranks.

        Args:
            closure: as in torch.
            weight: of this rank's gradients in the average, for batches of unequal length: the number of samples whose
                mean loss was differentiated; 0 for none, also without a backward pass. All ranks give one, or none
                does. Takes op=Average, and overlap="off" or fused=True.

        Returns:
            What the wrapped optimizer returns: None, or the loss of the first call of the closure.

        Raises:
            UsageError: gradients were changed while they travelled, or are no averages inside skip_synchronize().
            MismatchError: parameters or options differ between ranks, or another rank drops this backward pass.
            PeerLostError, TimeoutError: a rank died, left or did not come.
        """
        if self._closed:
            raise UsageError("A DistributedOptimizer does not step after close(); build a new one.")
        if weight is not None:
            _check_weight(weight)
            if self._op != Op.Average:
                raise UsageError(f"Weights go with op=Average: op is {self._op!r}.")
            if self._exchange is not None and self._exchange.synchronized:
                raise UsageError("Gradients are averages already: give the weight to clip_grad_norm_().")
        if self._deltas is not None:
            return self._deltas.step(lambda: self._inner_step(closure))
        if self._exchange is None:
            return self._inner_step(closure)
        if isinstance(self._exchange, FusedExchange):
            return self._fused_step(self._exchange, closure, weight)
        if self._skips_synchronize and (closure is not None or not self._exchange.synchronized):
            raise UsageError(
                "Inside skip_synchronize() a step uses gradients that synchronize() has averaged: call synchronize() "
                "before, and use no closure."
            )
        if closure is None:
            self._exchange.average(weight)
            try:
                result = self._inner_step(None)
            except BaseException:
                self._exchange.watch_all()  # gradients are averages, and may be used for another step
                raise
        else:
            losses = LossReduction(self._channel, self._op)
            result = self._inner_step(losses.wrap(closure, partial(self._exchange.synchronize, weight)))
        self._exchange.finish_step()
        return result

    def synchronize(self) -> None:
        """Exchange gradients now, as `step()` would; it then will not do so again. A collective. Not with Adasum."""
        if self._exchange is not None:
            self._exchange.synchronize()

    def clip_grad_norm_(self, max_norm: float, *, weight: float | None = None) -> torch.Tensor:
        """Clip the averaged gradients to a 2-norm of at most `max_norm`, for the next step(). A collective.

        The norm is taken while gradients are reduced (from the second call on; the first one makes a pass of its own).
        With fused=True the factor is applied inside step(), and gradients stay this rank's own.

        Args:
            max_norm: a positive number.
            weight: as for step(), which then takes none.

        Returns:
            The norm before clipping, as torch.nn.utils.clip_grad_norm_ does: a float64 tensor without dimensions, the
            same on all ranks.

        Raises:
            UsageError: max_norm is not positive, or op is Adasum.
        """
        if not isinstance(max_norm, (int, float)) or not max_norm > 0:
            raise UsageError(f"max_norm must be a positive number: it is {max_norm!r}.")
        if weight is not None:
            _check_weight(weight)
        if self._deltas is not None:
            raise UsageError("op=Adasum combines what step() does: there are no averaged gradients to clip.")
        if self._exchange is None:
            parameters = [parameter for group in self._inner.param_groups for parameter in group["params"]]
            return torch.nn.utils.clip_grad_norm_(parameters, max_norm).double()
        return torch.tensor(self._exchange.clip(max_norm, weight), dtype=torch.float64, device="cpu")

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Return a context in which this rank may write to parameters that are shared (share_parameters=True).

        What one rank writes is there for all: let one write, or all the same, and put a barrier before the next use.
        """
        groups = self._exchange.fused.groups if isinstance(self._exchange, FusedExchange) else []
        with ExitStack() as stack:
            for group in groups:
                stack.enter_context(group.memory.writable())
            yield

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Return a context in which `step()` uses gradients as synchronize() left them; an error if it was not called.

        Raises:
            UsageError: with op=Adasum, which combines what step() does, or with fused=True.
        """
        if self._deltas is not None:
            raise UsageError("With op=Adasum there is nothing to skip: step() combines what the optimizer does.")
        if self._fused:
            raise UsageError("With fused=True there is nothing to skip: gradients are averaged inside step().")
        before, self._skips_synchronize = self._skips_synchronize, True
        try:
            yield
        finally:
            self._skips_synchronize = before

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes accumulate on this rank only; the next one outside exchanges."""
        return nullcontext() if self._exchange is None else self._exchange.no_sync()

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Accumulate over another number of backward passes from now on; passes that were made count anew.

        Raises:
            UsageError: it is not positive, or gradients are on their way.
        """
        _check_passes(passes)
        if self._exchange is not None:
            self._exchange.reset()
            self._exchange.passes = int(passes)
        self._passes = int(passes)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, and finish with the other ranks an exchange that a backward pass has begun."""
        if self._exchange is not None:
            self._exchange.discard()
        self._inner.zero_grad(set_to_none)

    @property
    def state_is_spread(self) -> bool:
        """Whether each rank has a part of the state, so that state_dict() is a collective."""
        return isinstance(self._exchange, FusedExchange)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer, which a run with any number of ranks can load.

        With fused=True a collective: all ranks gather the parts of the state. Where gradients are reduced on GPUs
        (RINGRED_GPU=direct) it waits until the last step is over there, and raises what went wrong in it.

        Raises:
            UsageError: with fused=True, ranks have loaded different states; raised on all of them.
        """
        if isinstance(self._exchange, FusedExchange):
            return self._exchange.fused.state_dict()
        if isinstance(self._exchange, GradientExchange):
            self._exchange.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state into the wrapped optimizer, the same one on all ranks, and count passes anew. Not a collective.

        Raises:
            UsageError: gradients are on their way.
        """
        if self._exchange is not None:
            self._exchange.reset()
        if isinstance(self._exchange, FusedExchange):
            self._exchange.fused.load_state_dict(state_dict)
        else:
            super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer and to the exchange; its parameters get the name `added.<n>`.

        Raises:
            UsageError: between a backward pass and the step that uses it.
        """
        if self._exchange is not None:
            self._exchange.reset()
        if self._fused:
            raise UsageError(
                "With fused=True parameters are given at construction: save state_dict(), add the group to the plain "
                "optimizer, and wrap that one."
            )
        self._inner.add_param_group(param_group)
        parameters = [parameter for group in self._inner.param_groups for parameter in group["params"]]
        for parameter in parameters:
            self._names.setdefault(id(parameter), f"added.{len(self._names)}")
        named = [(self._names[id(parameter)], parameter) for parameter in parameters]
        _check_devices(named)
        self._earlier_seconds = self.communication_seconds
        if self._exchange is not None:
            self._exchange.close()
        self._exchange, self._deltas = self._build(named)

    @property
    def communication_seconds(self) -> float:
        """Wall time in seconds that this rank has spent in exchanges so far, waiting for other ranks included."""
        exchange = self._exchange or self._deltas
        return self._earlier_seconds + (0.0 if exchange is None else exchange.stopwatch.seconds)

    def close(self) -> None:
        """Remove all hooks; the wrapped optimizer stays usable. Collecting the object does the same."""
        if self._exchange is not None:
            self._exchange.close()
        self._closed = True

    def _check_fused(self) -> None:
        wrong = [
            text
            for text, given in (
                ("op=Adasum", self._op == Op.Adasum),
                ("compression", self._compression is not Compression.none),
                ("gradient_predivide_factor", self._predivide_factor != 1.0),
                ("groups", bool(self._groups)),
                ("a channel", not isinstance(self._channel, EngineChannel)),
            )
            if given
        ]
        if wrong:
            raise UsageError(f"fused=True does not go with {', '.join(wrong)}. Leave it out, or use fused=False.")
        check_optimizer(self._inner)

    def _inner_step(self, closure: Callable[[], Any] | None) -> Any:
        return self._inner.step() if closure is None else self._inner.step(closure)

    def _fused_step(self, exchange: FusedExchange, closure: Callable[[], Any] | None, weight: float | None) -> Any:
        for hook in list(self._inner._optimizer_step_pre_hooks.values()):
            hook(self._inner, (closure,), {})
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = LossReduction(self._channel, self._op).wrap(closure, lambda: None)()
        exchange.step(weight)
        for hook in list(self._inner._optimizer_step_post_hooks.values()):
            hook(self._inner, (closure,), {})
        return loss

    def _prepare_unscaling(self) -> None:
        overflowing = self._deltas or self._exchange
        if isinstance(overflowing, (DeltaExchange, FusedExchange)):
            overflowing.agree_on_overflow()
        else:
            self.synchronize()

    def _build(self, named: list[NamedTensor]) -> tuple[GradientExchange | None, DeltaExchange | None]:
        if self._channel.size == 1:
            return None, None
        if self._op == Op.Adasum:
            return None, DeltaExchange(named, self._channel, self._compression)
        carrier = Carrier(self._channel, self._op, self._predivide_factor, self._compression)
        if self._fused:
            assert isinstance(self._channel, EngineChannel)
            step = FusedStep(self._inner, named, self._channel, self._op, self._keep_gradients, self._share_parameters)
            return FusedExchange(named, carrier, self._passes, step), None
        groups = form_groups(named, self._groups)
        exchange = GradientExchange(
            named, groups, carrier, self._passes, self._sparse_as_dense, self._overlap, self._bucket_bytes
        )
        return exchange, None


_UNSCALE = torch.amp.GradScaler._unscale_grads_.__code__


def _check_weight(weight: Any) -> None:
    if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise UsageError(
            f"weight must be a number that is not negative, such as a number of samples: it is {weight!r}."
        )


def _check_passes(passes: int) -> None:
    if not is_whole(passes) or passes < 1:
        raise UsageError(f"backward_passes_per_step must be a whole number, at least 1: it is {passes!r}.")


def _check_devices(named: list[NamedTensor]) -> None:
    for name, parameter in named:
        check_device(parameter.device, f"parameter {name!r}")
