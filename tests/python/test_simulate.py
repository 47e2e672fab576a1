"""``ringred simulate``: its tables, its plots, and what it refuses."""

from __future__ import annotations

import builtins
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from ringred.cli import hardware, main, plot

ALGORITHMS = ("ring", "double_tree", "halving_doubling", "recursive_doubling", "circulant", "hierarchical")
LINK = ["--link", "alpha=5us,bandwidth=12.5GB/s"]


def output(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of a run that must succeed."""
    assert main.main(["simulate", *words]) == 0
    return capsys.readouterr().out.splitlines()


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of a run that must fail as a wrong use does."""
    try:
        code: object = main.main(["simulate", *words])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2
    return capsys.readouterr().err


def test_one_row_for_each_algorithm_with_its_loads(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "--nodes", "4", "--local", "2", "--bytes", "1M")
    assert "allreduce of 1048576 bytes on 4 nodes of 2 ranks" in lines[0]
    header, *rows = [line for line in lines if not line.startswith("#")]
    assert re.split(r"  +", header.strip()) == ["algorithm", "time", "busbw", "memory", "card out", "card in"]
    assert [row.split()[0] for row in rows] == list(ALGORITHMS)
    assert all(row.count("%") == 3 for row in rows)
    assert "hierarchical (" in rows[-1]


def test_a_ring_costs_its_closed_form_and_its_bus_bandwidth_is_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "4", "--local", "1", "--bytes", "100M", "--algorithm", "ring", *LINK]
    row = output(capsys, *words, "--reduce", "1000TB/s", "--step", "0us")[-1]
    seconds = 2 * 3 * (5e-6 + 100 * 2**20 / 4 / 12.5e9)
    assert row.split()[:3] == ["ring", f"{seconds * 1e3:.4g}", "ms"]
    assert float(row.split()[3]) == pytest.approx(12.5, rel=0.01)


def test_core_links_are_listed_where_there_is_a_core(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "8", "--local", "1", "--algorithm", "recursive_doubling", "--switch", "4"]
    words += [*LINK, "--reduce", "1000TB/s", "--step", "0us"]
    times = {}
    for factor in ("1", "4"):
        lines = output(capsys, *words, "--oversubscription", factor)
        assert "core up" in lines[-2] and "core down" in lines[-2]
        times[factor] = float(lines[-1].split()[1])
    # Three rounds, of which the last is between switches: its four messages share one uplink in place of four.
    assert times["4"] / times["1"] == pytest.approx((2 + 4) / 3, rel=0.01)


def test_scaling_goes_from_2_to_16384_ranks_and_marks_the_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scaling", "--algorithm", "ring", "recursive_doubling", "--bytes", "64", "--local", "8"]
    lines = output(capsys, *words)
    rows = [
        line.split() for line in lines[lines.index(next(line for line in lines if "by number of ranks" in line)) + 2 :]
    ]
    assert [int(row[0]) for row in rows] == [2**power for power in range(1, 15)]
    assert all(sum(word.endswith("*") for word in row) == 1 for row in rows[1:])
    assert rows[-1][-1].endswith("*")  # 14 rounds against 32766


def test_nodes_with_a_number_of_ranks_that_is_no_power_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "--scaling", "--algorithm", "ring", "--local", "6", "--nodes", "3", "--bytes", "1K")
    ranks = [int(line.split()[0]) for line in lines if line[:1].isdigit()]
    assert ranks == [2, 4, *(6 * 2**power for power in range(12))]


def test_an_svg_has_a_curve_and_a_name_for_each_algorithm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "curves.svg"
    output(capsys, "--plot", str(file), "--algorithm", "ring", "circulant", "--bytes", "64", "--local", "1")
    root = ElementTree.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    lines = [element.attrib["points"].split() for element in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [14, 14]
    heights = [float(line[-1].split(",")[1]) for line in lines]
    assert heights[0] < heights[1]  # the ring's cost is above that of circulant
    words = [element.text for element in root.iter(f"{space}text")]
    assert {"ring", "circulant", "ranks", "seconds", "16384"} <= set(words)


def test_names_at_the_ends_of_curves_do_not_overlap() -> None:
    heights = plot.spread({"a": 100.0, "b": 101.0, "c": 99.0, "d": 300.0})
    assert heights == {"c": 99.0, "a": 113.0, "b": 127.0, "d": 300.0}


def test_names_are_escaped() -> None:
    ElementTree.fromstring(plot.svg("a < b & c", "x", "y", {"<ring>": [(2, 1.0), (4, 2.0)]}))


def test_a_png_without_matplotlib_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install matplotlib" in refusal(capsys, "--plot", str(tmp_path / "a.png"))


def test_a_png_with_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "a.png"
    output(capsys, "--plot", str(file), "--algorithm", "ring", "--bytes", "64")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_units() -> None:
    assert hardware.duration("5us") == pytest.approx(5e-6)
    assert hardware.duration("1.5e-3 s") == pytest.approx(1.5e-3)
    assert hardware.rate("100Gbit/s") == pytest.approx(12.5e9)
    assert hardware.link("infiniband-hdr") == hardware.Link(1.5e-6, 24.5e9)
    assert hardware.link("bandwidth=1MB/s,alpha=1ns") == hardware.Link(1e-9, 1e6)
    assert hardware.Link(5e-6, 12.5e9).costs == (5e-6, 8e-11)


@pytest.mark.parametrize("name", hardware.PRESETS)
def test_presets_stay_below_the_line_rate_in_their_name(name: str) -> None:
    gigabits = {"edr": 100, "hdr": 200, "ndr": 400}.get(name[-3:]) or int(re.findall(r"\d+", name)[0])
    assert 0.9 < hardware.link(name).bandwidth * 8 / 1e9 / gigabits < 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--nodes", "0"], ["1 to 16384 ranks", "got 0 nodes of 8"]),
        (["--nodes", "4096", "--local", "8"], ["1 to 16384 ranks", "got 4096 nodes of 8"]),
        (["--local", "65", "--nodes", "1"], ["at most 64 of them on a node", "got 1 nodes of 65"]),
        (["--bytes", "0"], ["a size is a whole number above 0", "'0'"]),
        (["--link", "token-ring"], ["alpha=TIME,bandwidth=RATE", "ethernet-10g", "'token-ring'"]),
        (["--link", "alpha=5us"], ["alpha=TIME,bandwidth=RATE", "'alpha=5us'"]),
        (["--link", "alpha=5,bandwidth=1GB/s"], ["one of s, ms, us, ns", "'5'"]),
        (["--link", "alpha=5us,bandwidth=0GB/s"], ["a bandwidth is above 0", "'0GB/s'"]),
        (["--link", "alpha=5us,bandwidth=1.2.3GB/s"], ["such as 12.5GB/s", "'1.2.3GB/s'"]),
        (["--oversubscription", "2"], ["needs --switch", "--switch 0"]),
        (["--switch", "-1"], ["1 or more nodes, or 0", "got -1"]),
        (["--switch", "2", "--oversubscription", "0"], ["above 0", "--oversubscription is 0"]),
        (["--algorithm", "rings"], ["invalid choice", "rings"]),
        (["--chunks", "-3"], ["1 to 1024 chunks", "got -3"]),
        (["--plot", "curves.jpg"], ["a .svg or a .png file", "'curves.jpg'"]),
        (["--plot", "/nowhere/curves.svg"], ["a folder that exists", "'/nowhere'"]),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, *words)
    assert all(part in text for part in parts), text
