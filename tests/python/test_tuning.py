"""The tuning file: what init() accepts, and what it says of what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ringred as rr
from ringred import _core, tuning
from ringred.topology import Topology

COSTS = _core.usual_costs()


def write(folder: Path, **changes: Any) -> str:
    """A file with some entries changed; None leaves one out."""
    content = json.loads(tuning.document(COSTS, (2, 2))) | changes
    file = folder / "costs.json"
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return str(file)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = tuning.load(write(tmp_path, date="for people", samples=[]))
    assert found is not None
    assert (found.costs, found.layout) == (COSTS, (2, 2))
    found.check_fits(Topology((0, 0, 1, 1)))
    assert tuning.load("") is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "others"}, "must be a tuning file"),
        ({"version": 2}, "must be of version 1: it is of 2"),
        ({"layout": [0]}, r"the ranks of each node as its layout: it is \[0\]"),
        ({"costs": COSTS | {"gamma": -1.0}}, "numbers from 0 to 1 as costs: gamma is -1"),
        ({"costs": COSTS | {"gamma": float("nan")}}, "gamma is nan"),
        ({"costs": COSTS | {"gamma": "fast"}}, "gamma is 'fast'"),
        ({"costs": {"gamma": 0.0}}, "must have the costs far_beta, gamma"),
        ({"costs": None}, "it has None"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(rr.UsageError, match=text) as caught:
        tuning.load(write(tmp_path, **changes))
    assert "costs.json" in str(caught.value) and "ringred tune" in str(caught.value)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(rr.UsageError, match=r"must be a file that holds JSON: .*No such file"):
        tuning.load(str(tmp_path / "nowhere"))
    (tmp_path / "text").write_text("{")
    with pytest.raises(rr.UsageError, match=r"must be a file that holds JSON: Expecting"):
        tuning.load(str(tmp_path / "text"))


@pytest.mark.parametrize("nodes", [(0, 0), (0, 0, 0, 0), (0, 0, 1), (0, 1, 1, 1)])
def test_another_layout_is_refused(tmp_path: Path, nodes: tuple[int, ...]) -> None:
    found = tuning.load(write(tmp_path))
    assert found is not None
    with pytest.raises(rr.UsageError, match=r"was made with 2\+2 ranks, and this job has "):
        found.check_fits(Topology(nodes))
