"""torch's tensors on GPUs.

Invariant: a tensor that autograd watches is read and written without autograd's knowledge, as the core does on CPUs;
its version tells of every write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringred.errors import UsageError


class TorchMark:
    """An event of torch's."""

    def __init__(self, module: Any, stream: Any) -> None:
        self._stream = stream
        self._module = module
        self._event = module.Event()
        self._event.record(stream)

    def passed(self) -> bool:
        """Ask the event."""
        return bool(self._event.query())

    def precede(self) -> None:
        """Let the current stream of the device wait for the event."""
        self.precede_on(self._module.current_stream(self._stream.device))

    def precede_on(self, stream: Any) -> None:
        """Let a stream wait for the event."""
        stream.wait_event(self._event)


class TorchLibrary:
    """Tensors on devices of one kind, such as "cuda", which is also what torch calls those of ROCm."""

    def __init__(self, kind: str) -> None:
        self.module: Any = torch.get_device_module(kind)

    def contiguous(self, array: torch.Tensor) -> torch.Tensor:
        """The tensor, or a copy, without lazy signs and apart from autograd."""
        return dense(array).detach().resolve_conj().resolve_neg().contiguous()

    def empty(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Memory of torch's allocator."""
        return like.detach().new_empty(tuple(shape))

    def check_writable(self, array: torch.Tensor) -> None:
        """The rules of CPU tensors."""
        dense(array)
        if array.is_conj() or array.is_neg():
            raise UsageError(
                "A tensor must not be a lazy conjugate or negative: this one is. Call resolve_conj() or resolve_neg()."
            )
        if not array.is_contiguous():
            raise UsageError(
                "An array must be contiguous (C order) to be reduced where it lies: this torch.Tensor of shape "
                f"{tuple(array.shape)} on {array.device} is not. Call the form without underscore, or copy it "
                "(tensor.contiguous())."
            )

    def host_memory(self, like: torch.Tensor) -> torch.Tensor:
        """Memory of torch's caching allocator, which knows of the copies that are under way."""
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)

    def copy_out(self, array: torch.Tensor, host: torch.Tensor) -> None:
        """On the current stream of the tensor's device."""
        host.copy_(array.detach(), non_blocking=True)

    def copy_in(self, host: torch.Tensor, array: torch.Tensor) -> None:
        """On the current stream of the tensor's device."""
        with torch.inference_mode(array.is_inference()), torch.no_grad():
            values = host if host.dtype == array.dtype else host.to(array.device, non_blocking=True)
            array.copy_(values.view(array.shape), non_blocking=True)  # which converts, if it must, on the device

    def fetch(self, host: Any, array: torch.Tensor) -> None:
        """Through torch's own staging."""
        values = torch.frombuffer(host, dtype=array.dtype).view(array.shape)
        array.copy_(values)

    def narrowed(self, array: torch.Tensor, dtype: str) -> torch.Tensor | None:
        """Cast."""
        wide = array.is_floating_point() and array.element_size() > 2
        return array.to(getattr(torch, dtype)) if wide else None

    def mark(self, array: torch.Tensor) -> TorchMark:
        """An event on the current stream."""
        return TorchMark(self.module, self.module.current_stream(array.device))


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, after a look at its layout."""
    if tensor.is_nested or tensor.layout != torch.strided:
        raise UsageError(f"A tensor must be dense: its layout is {tensor.layout}. Convert it with to_dense().")
    return tensor
