"""``ringred bench``, ``draw`` and ``env`` as a user starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ringred import Op, _core
from ringred.cli import bench_data, bench_table


def ringred(*words: str) -> subprocess.CompletedProcess[str]:
    """The command's outcome."""
    command = [str(Path(sys.executable).with_name("ringred")), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def rows_of(text: str) -> list[list[str]]:
    """The fields of the lines that are no comments."""
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(("dtype", "op"), [("half", "avg"), ("uint64", "max")])
def test_rows_are_those_of_nccl_tests_and_checked(tmp_path: Path, dtype: str, op: str) -> None:
    file = tmp_path / "figures.json"
    options = ["-b", "8", "-e", "32K", "-f", "64", "-n", "3", "-w", "1", "-N", "2", "-d", dtype, "-o", op]
    done = ringred("bench", "allreduce", "-np", "2", *options, "--json", str(file))
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert [row[0] for row in rows] == ["8", "512", "32768"]
    for row in rows:
        assert row[2:5] == [dtype, op, "-1"]
        assert len(row) == 13
        assert row[8] == row[12] == "0"
    assert "# Out of bounds values : 0 OK" in done.stdout
    figures = json.loads(file.read_text())
    assert figures["ranks"] == 2
    assert figures["out_of_bounds"] == 0
    for row in figures["results"]:
        one = row["in_place"]
        assert one["alg_bw"] == pytest.approx(row["size"] / one["time"] / 1e3)
        assert one["bus_bw"] == pytest.approx(one["alg_bw"])  # 2 (n - 1) / n is 1 for two ranks


def test_mpi_and_the_memory_bound_stand_beside_it() -> None:
    options = ["-b", "4K", "-e", "4K", "-n", "3", "--compare", "mpi", "--roofline", "--memory", "private"]
    done = ringred("bench", "allreduce", "-np", "3", *options)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(done.stdout)
    assert len(row) == 17
    assert all(float(value) > 0 for value in row[13:])


def test_every_algorithm_stands_beside_its_prediction(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["-b", "8", "-e", "512K", "-f", "256", "-n", "2", "-N", "2", "--memory", "private", "--json", str(file)]
    done = ringred("bench", "allreduce", "-np", "2", "--algorithms", *options)
    assert done.returncode == 0, done.stderr
    assert "# Out of bounds values : 0 OK" in done.stdout
    assert [row[0] for row in rows_of(done.stdout)] == ["8", "2048", "524288"]
    rows = json.loads(file.read_text())["results"]
    names = {"one_shot", "two_shot", *(row[0] for row in _core.algorithm_table())}
    assert [set(row["algorithms"]) for row in rows] == [names, names, names - {"one_shot"}]
    assert rows[0]["chosen"] == "one_shot" and rows[2]["chosen"] == "two_shot"
    for row in rows:
        times = {name: one["time"] for name, one in row["algorithms"].items()}
        assert row["chosen_over_best"] == pytest.approx(times[row["chosen"]] / min(times.values()))
        assert all(one["predicted"] > 0 and one["nwrong"] == 0 for one in row["algorithms"].values())


def test_what_tune_writes_is_what_init_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "costs.json"
    done = ringred("tune", "-np", "2", "--seconds", "0.3", "--output", str(file))
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert written["layout"] == [2]
    monkeypatch.setenv("RINGRED_TUNING", str(file))
    show = "import ringred; ringred.init(); print(ringred.world.communicator().selection.costs)"
    words = [str(Path(sys.executable).with_name("ringred")), "run", "-np", "2", "--", sys.executable, "-c", show]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count(str(written["costs"])) == 2, done.stderr


def test_alone_and_with_wrong_options() -> None:
    assert ringred("bench", "allreduce", "-e", "8", "-n", "2").returncode == 0
    for words, text in ((("-b", "none"), "whole number"), (("-d", "int7"), "invalid choice"), (("-f", "1"), "-f")):
        done = ringred("bench", "allreduce", *words, "-e", "16")
        assert done.returncode == 2
        assert text in done.stderr


@pytest.mark.parametrize("name", list(bench_data.OPS))
def test_expected_values_are_what_the_definition_says(name: str) -> None:
    op = Op[bench_data.OPS[name]]
    sources = [bench_data.source(20, rank, np.dtype("int32")).tolist() for rank in range(3)]
    combine = {"sum": sum, "avg": lambda values: sum(values) // 3, "min": min, "max": max, "prod": np.prod}[name]
    expected = [combine(values) for values in zip(*sources, strict=True)]
    assert bench_data.expected(20, 3, np.dtype("int32"), op).tolist() == expected
    assert len({tuple(source) for source in sources}) == 3, "ranks must differ, or a missing one is not seen"


def test_sizes_and_numbers() -> None:
    assert [bench_table.size_in_bytes(text) for text in ("8", "64K", "2M", "1g")] == [8, 65536, 2 << 20, 1 << 30]
    assert [bench_table.number(value) for value in (0.126, 999.0, 12345.6, 1234567.0)] == [
        "0.13",
        "999.00",
        "12345.6",
        "1234567",
    ]


def test_draw_shows_a_schedule_or_the_table() -> None:
    done = ringred("draw", "ring", "-n", "3")
    assert done.returncode == 0
    assert "rounds 4" in done.stdout and "0>1" in done.stdout
    assert "circulant" in ringred("draw").stdout
    assert ringred("draw", "circle").returncode == 2


def test_env_lists_every_setting() -> None:
    done = ringred("env")
    assert done.returncode == 0
    for word in ("kernels for", "RINGRED_TIMEOUT_SECONDS", "MPI library", "usable cores"):
        assert word in done.stdout
