"""The hardware that ``ringred simulate`` models, read from words: ``ethernet-10g``, ``alpha=5us,bandwidth=12.5GB/s``.

The presets' bandwidths are the line rates of their standards less framing: Ethernet carries 1448 bytes of data in 1538
on the wire (MTU 1500, TCP), InfiniBand about 98 % (MTU 4096). Their latencies are assumptions, of the order that MPI
messages of a few bytes take between two processes; measure your own.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

PRESETS = {
    # name: microseconds, GB/s
    "ethernet-1g": (30.0, 0.118),
    "ethernet-10g": (20.0, 1.18),
    "ethernet-25g": (15.0, 2.94),
    "ethernet-100g": (10.0, 11.8),
    "infiniband-edr": (1.5, 12.2),
    "infiniband-hdr": (1.5, 24.5),
    "infiniband-ndr": (1.5, 49.0),
}

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
BYTES_PER_SECOND = {
    **{f"{prefix}B/s": factor for prefix, factor in {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.items()},
    **{f"{prefix}bit/s": factor / 8 for prefix, factor in {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.items()},
}

LINK_RULE = "a link is alpha=TIME,bandwidth=RATE, such as alpha=5us,bandwidth=12.5GB/s"


@dataclass(frozen=True)
class Link:
    """Latency of a message in seconds, and bandwidth in bytes per second."""

    alpha: float
    bandwidth: float

    @property
    def costs(self) -> tuple[float, float]:
        """Seconds, and seconds per byte."""
        return self.alpha, 1 / self.bandwidth

    def __str__(self) -> str:
        return f"alpha={self.alpha * 1e6:.4g}us,bandwidth={self.bandwidth / 1e9:.4g}GB/s"


def quantity(text: str, units: dict[str, float], example: str) -> float:
    """A number with one of these units behind it; an error that lists them otherwise."""
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([A-Za-z/]+)", text.strip())
    try:
        value = float(match[1]) * units[match[2]] if match else math.nan
    except (ValueError, KeyError):
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"write a number and one of {', '.join(units)}, such as {example}: {text!r}")
    return value


def duration(text: str) -> float:
    """Seconds: "5us", "1.5ms"."""
    return quantity(text, SECONDS, "5us")


def rate(text: str) -> float:
    """Bytes per second, above 0: "12.5GB/s", "100Gbit/s" (1000s)."""
    value = quantity(text, BYTES_PER_SECOND, "12.5GB/s")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a bandwidth is above 0: {text!r}")
    return value


def described_link(text: str) -> Link:
    """A link in the form of LINK_RULE."""
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"alpha", "bandwidth"}:
        raise argparse.ArgumentTypeError(f"{LINK_RULE}: {text!r}")
    return Link(duration(parts["alpha"]), rate(parts["bandwidth"]))


def link(text: str) -> Link:
    """A preset by name, or a described link."""
    if text in PRESETS:
        microseconds, gigabytes = PRESETS[text]
        return Link(microseconds * 1e-6, gigabytes * 1e9)
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{LINK_RULE}, or one of {', '.join(PRESETS)}: {text!r}")
    return described_link(text)
