"""The tuning file: what algorithms cost on one cluster, as ``ringred tune`` measured it.

A file is JSON with the format's name and version, the ranks of each node that it was made with, and the costs, in
seconds (csrc/select/costs.h). RINGRED_TUNING names the file that init() reads.

Invariant: what load() returns is complete, in range and of this version, and fits() says whether it is of this layout.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringred import _core
from ringred.errors import UsageError
from ringred.topology import Topology

FORMAT = "ringred tuning"
VERSION = 1
NEAR = "near_bytes"
MOST_SECONDS = 1.0
MOST_BYTES = 2.0**50
REMEDY = "Write it anew with 'ringred tune --output FILE' under the launcher and on the ranks of the job, or unset it."


@dataclass(frozen=True)
class Tuning:
    """A file's content.

    Attributes:
        path: where it was read.
        layout: the ranks of each node that it was made with.
        costs: by name; seconds, but for near_bytes.
        digest: of the file, by which ranks compare.
    """

    path: str
    layout: tuple[int, ...]
    costs: dict[str, float]
    digest: str

    def check_fits(self, topology: Topology) -> None:
        """Raise where the ranks of this job are laid out otherwise.

        Raises:
            UsageError: the layout and the file's, and what to do.
        """
        if self.layout != layout_of(topology):
            raise UsageError(
                f"RINGRED_TUNING must name a file of this layout: {self.path} was made with {in_words(self.layout)}, "
                f"and this job has {in_words(layout_of(topology))}. {REMEDY}"
            )


def layout_of(topology: Topology) -> tuple[int, ...]:
    """The ranks of each node."""
    return tuple(len(topology.ranks_of(node)) for node in range(topology.count))


def in_words(layout: tuple[int, ...]) -> str:
    """A layout as 2+2 or 4."""
    return "+".join(map(str, layout)) + " ranks"


def document(costs: dict[str, float], layout: tuple[int, ...], **more: Any) -> str:
    """A file's text. `more` is for people: load() does not read it."""
    return json.dumps({"format": FORMAT, "version": VERSION, "layout": layout, "costs": costs, **more}, indent=1) + "\n"


def load(path: str) -> Tuning | None:
    """Read and check a file; None where `path` is empty.

    Raises:
        UsageError: it cannot be read, is no tuning file of this version, or a cost is missing or out of range.
    """
    if not path:
        return None
    try:
        text = Path(path).read_bytes()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise _wrong(path, f"must be a file that holds JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _wrong(path, f'must be a tuning file, with "format": "{FORMAT}".')
    if content.get("version") != VERSION:
        raise _wrong(path, f"must be of version {VERSION}: it is of {content.get('version')!r}.")
    layout = content.get("layout")
    if not (isinstance(layout, list) and layout and all(type(ranks) is int and ranks > 0 for ranks in layout)):
        raise _wrong(path, f"must have the ranks of each node as its layout: it is {layout!r}.")
    return Tuning(path, tuple(layout), _costs(path, content.get("costs")), hashlib.sha256(text).hexdigest())


def _costs(path: str, found: Any) -> dict[str, float]:
    names = set(_core.usual_costs())
    if not isinstance(found, dict) or set(found) != names:
        said = sorted(found) if isinstance(found, dict) else found
        raise _wrong(path, f"must have the costs {', '.join(sorted(names))}: it has {said!r}.")
    for name, value in found.items():
        most = MOST_BYTES if name == NEAR else MOST_SECONDS
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and 0 <= value <= most):
            raise _wrong(path, f"must have numbers from 0 to {most:g} as costs: {name} is {value!r}.")
    return {name: float(value) for name, value in found.items()}


def _wrong(path: str, rule: str) -> UsageError:
    return UsageError(f"RINGRED_TUNING: {path} {rule} {REMEDY}")
