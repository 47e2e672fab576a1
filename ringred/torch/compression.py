"""Compression: what gradients look like while they travel.

Invariant: `decompress(compress(tensor))` has the dtype, shape and device of `tensor`. The built-in compressors name a
wire type, and the engine casts in the pass that packs: sums are then in float32, whatever the wire type. A compressor
of the user's is any object with the same two calls; what it returns is reduced as it is.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ringred.errors import UsageError


class CompressorLike(Protocol):
    """A class or object with Horovod's two calls; both must do the same on all ranks."""

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return what travels instead of `tensor`, and anything that decompress() needs. May return `tensor` itself."""

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Undo compress() on the reduced tensor."""


class Compressor:
    """A base to derive own compressors from; the calls are static, as in Horovod."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return what travels instead of `tensor`, and anything that decompress() needs."""
        raise NotImplementedError("A compressor must define compress(tensor).")

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Undo compress() on the reduced tensor."""
        raise NotImplementedError("A compressor must define decompress(tensor, ctx).")


class NoneCompressor(Compressor):
    """Tensors travel as they are."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the tensor."""
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: None) -> torch.Tensor:
        """Return the tensor."""
        return tensor


class _Cast(Compressor):
    """float32 and float64 travel in a narrower type; others, halves and integers among them, as they are."""

    wire_dtype: torch.dtype

    @classmethod
    def compress(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """Cast float32 and float64; the second value is the dtype to return to."""
        wide = tensor.dtype in (torch.float32, torch.float64)
        return (tensor.to(cls.wire_dtype) if wide else tensor), tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: torch.dtype) -> torch.Tensor:
        """Cast back."""
        return tensor.to(ctx)


class FP16Compressor(_Cast):
    """Travel as float16: 11 bits, at most 65504."""

    wire_dtype = torch.float16


class BF16Compressor(_Cast):
    """Travel as bfloat16: 8 bits, the range of float32."""

    wire_dtype = torch.bfloat16


class Compression:
    """The built-in compressors, under Horovod's names."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


def checked_compression(compression: Any) -> Any:
    """The argument compression of any function.

    Raises:
        UsageError: it is no compressor.
    """
    if callable(getattr(compression, "compress", None)) and callable(getattr(compression, "decompress", None)):
        return compression
    raise UsageError(
        f"compression must have compress() and decompress(): it is {compression!r}. Use Compression.none, "
        "Compression.fp16 or Compression.bf16, or leave it out."
    )


def wire_of(compression: Any) -> str | None:
    """The engine's name of the type in which a built-in compressor lets floats travel; None for one of the user's."""
    if compression is NoneCompressor:
        return ""
    if compression is FP16Compressor or compression is BF16Compressor:
        return str(compression.wire_dtype).removeprefix("torch.")
    return None
