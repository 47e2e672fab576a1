"""Which mpirun ``ringred run`` chooses and how it calls it, for all three flavours, with made-up machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ringred import cores
from ringred.cli import leftovers, mpi_launcher, rank_records
from ringred.cli.mpi_launcher import INTEL_MPI, MPICH, OPEN_MPI, LauncherError, Machine, MpiLibrary

LAUNCHER = Path("/prefix/bin/mpirun")
COMMAND = ["python", "train.py"]
VERSIONS = {
    OPEN_MPI: "mpirun (Open MPI) 5.0.11",
    MPICH: "HYDRA build details:\n    Version:  5.0.2",
    INTEL_MPI: "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626",
}


def machine(is_root: bool = False, cores: int = 8, has_fabric: bool = False, **environment: str) -> Machine:
    return Machine(is_root, cores, has_fabric, environment)


def fake_launcher(directory: Path, name: str, flavour: str) -> Path:
    """A program that answers ``--version`` as that flavour's does."""
    path = directory / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{VERSIONS[flavour]}\nEND\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        *((text, flavour) for flavour, text in VERSIONS.items()),
        ("Open MPI v5.0.11, package: Open MPI, ident: 5.0.11", OPEN_MPI),
        ("MPICH Version:      5.0.2\nMPICH Device:  ch4:ucx ofi", MPICH),
        ("Intel(R) MPI Library 2021.18.1 for Linux* OS", INTEL_MPI),
        ("Microsoft MPI", None),
    ],
)
def test_flavour_of_version_text(text: str, flavour: str | None) -> None:
    assert mpi_launcher.flavour_of(text) == flavour


@pytest.mark.parametrize("flavour", [OPEN_MPI, MPICH, INTEL_MPI])
def test_launcher_beside_the_library_comes_first(tmp_path: Path, flavour: str) -> None:
    name = mpi_launcher.LAUNCHER_NAMES[flavour][0]
    beside = fake_launcher(tmp_path / "mpi", name, flavour)
    fake_launcher(tmp_path / "other", name, flavour)
    library = tmp_path / "mpi" / "lib" / "libmpi.so"
    found = mpi_launcher.find_launcher(MpiLibrary(flavour, "1.0", library), str(tmp_path / "other" / "bin"))
    assert found == beside


def test_launcher_of_another_flavour_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name in ("mpirun", "mpiexec"):
        fake_launcher(tmp_path / "mpi", name, MPICH)
    right = fake_launcher(tmp_path / "path", "mpiexec", OPEN_MPI)
    library = MpiLibrary(OPEN_MPI, "Open MPI v5", tmp_path / "mpi" / "lib" / "libmpi.so")
    assert mpi_launcher.find_launcher(library, str(tmp_path / "path" / "bin")) == right


def test_no_launcher_is_an_error_with_values_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    wrong = fake_launcher(tmp_path, "mpirun", MPICH)
    library = MpiLibrary(OPEN_MPI, "Open MPI v5", tmp_path / "lib" / "libmpi.so")
    with pytest.raises(LauncherError, match=r"must be the same: .*Open MPI v5.*pip install") as caught:
        mpi_launcher.find_launcher(library, str(tmp_path / "empty"))
    assert f"{wrong} is MPICH" in str(caught.value)


def words(flavour: str, facts: Machine, *extra: str) -> list[str]:
    return mpi_launcher.command_line(flavour, LAUNCHER, 4, facts, extra, COMMAND)


def test_open_mpi_command_line() -> None:
    base = ["/prefix/bin/mpirun", "-np", "4"]
    rest = ["--oversubscribe", "--bind-to", "none", *COMMAND]
    assert words(OPEN_MPI, machine()) == [*base, *rest]
    assert words(OPEN_MPI, machine(is_root=True)) == [*base, "--allow-run-as-root", *rest]


def test_open_mpi_leaves_placement_to_who_asks_for_it() -> None:
    given = ["--map-by", "ppr:2:node", "--bind-to", "core"]
    assert words(OPEN_MPI, machine(), *given) == ["/prefix/bin/mpirun", "-np", "4", *given, *COMMAND]


@pytest.mark.parametrize("flavour", [MPICH, INTEL_MPI])
def test_hydra_gets_no_option_that_it_rejects(flavour: str) -> None:
    assert words(flavour, machine(is_root=True), "-l") == ["/prefix/bin/mpirun", "-n", "4", "-l", *COMMAND]


def launch_environment(flavour: str, facts: Machine, threads: int | None = None) -> dict[str, str]:
    return mpi_launcher.launch_environment(flavour, LAUNCHER, 4, facts, threads)


@pytest.mark.parametrize("flavour", [OPEN_MPI, MPICH])
def test_environment_has_a_thread_count(flavour: str) -> None:
    assert launch_environment(flavour, machine()) == {"OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    assert launch_environment(flavour, machine(cores=2))["OMP_NUM_THREADS"] == "1"
    assert launch_environment(flavour, machine(OMP_NUM_THREADS="6"))["OMP_NUM_THREADS"] == "6"
    assert launch_environment(flavour, machine(OMP_NUM_THREADS="6"), 3)["OMP_NUM_THREADS"] == "3"


def test_environment_of_intel_mpi() -> None:
    environment = launch_environment(INTEL_MPI, machine(LD_LIBRARY_PATH="/before"))
    assert environment["I_MPI_ROOT"] == "/prefix"
    assert environment["I_MPI_PIN"] == "off"
    assert environment["FI_PROVIDER"] == "tcp"
    assert environment["LD_LIBRARY_PATH"] == "/prefix/lib:/before"
    assert "FI_PROVIDER" not in launch_environment(INTEL_MPI, machine(has_fabric=True))
    assert launch_environment(INTEL_MPI, machine(I_MPI_PIN="on"))["I_MPI_PIN"] == "on"


def test_cgroup_quota_limits_the_cores(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "job" / "step"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert cores.cgroup_quota(tmp_path, tmp_path / "fs") is None
    (group.parent / "cpu.max").write_text("150000 100000\n")
    assert cores.cgroup_quota(tmp_path, tmp_path / "fs") == 1.5
    assert cores.usable_cores(tmp_path, tmp_path / "fs") == 1
    (tmp_path / "cgroup").write_text("0::/../outside/of/the/mount\n")
    (tmp_path / "fs" / "cpu.max").write_text("50000 100000\n")
    assert cores.usable_cores(tmp_path, tmp_path / "fs") == 1


def test_old_cgroup_quota(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "cpu,cpuacct" / "job"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    (group / "cpu.cfs_quota_us").write_text("300000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.cgroup_quota(tmp_path, tmp_path / "fs") == 3.0


def record(rank: int, time: float, tail: str = "", exit_code: int = 1, **more: str) -> rank_records.Record:
    facts = {"signal": "", "stopped_by": "", **more}
    return rank_records.Record(rank, 1000 + rank, time, exit_code, facts["signal"], facts["stopped_by"], tail)


LOST = "Traceback (most recent call last):\n  File x\nringred.PeerLostError: rank 2 is gone\nmore words\n"
VALUE = "noise\nTraceback (most recent call last):\n  File y\nValueError: no\n"


def test_first_failure_is_the_cause_not_the_consequence() -> None:
    cause = record(2, 5.0, VALUE)
    others = [record(0, 1.0, LOST), record(1, 2.0, stopped_by="SIGTERM"), record(3, 0.5, exit_code=0)]
    assert rank_records.first_failure([*others, cause]) == cause
    assert rank_records.first_failure(others) == others[0]
    assert rank_records.first_failure(others[2:]) is None
    chain = "\nThe above exception was the direct cause of the following exception:\n\n"
    assert record(0, 1.0, LOST + chain + VALUE).is_consequence


def test_earliest_of_two_causes_is_the_first() -> None:
    earlier = record(3, 1.0, "", 0, signal="SIGKILL")
    assert rank_records.first_failure([record(0, 2.0, VALUE), earlier]) == earlier
    assert earlier.signal_number == 9
    assert record(0, 0.0, "", 0, signal="SIG40").signal_number == 40


def test_last_traceback_keeps_its_chain_and_drops_what_is_before() -> None:
    chain = "\nDuring handling of the above exception, another exception occurred:\n\n"
    text = VALUE + "more noise\n" + LOST + chain + VALUE.removeprefix("noise\n")
    shown = rank_records.last_traceback(text)
    assert shown.startswith(LOST.rstrip())
    assert shown.endswith("ValueError: no")
    assert rank_records.last_traceback("no\ntraceback\n") == "no\ntraceback"


def test_fatal_signal_is_shown_from_its_first_line() -> None:
    stacks = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File x"
    assert rank_records.last_traceback(VALUE + stacks) == stacks


def test_only_unmapped_young_segments_are_removed(tmp_path: Path) -> None:
    shared, processes = tmp_path / "shm", tmp_path / "proc"
    (processes / "17").mkdir(parents=True)
    shared.mkdir()
    for name in ("mpich_shm_left", "mpich_shm_used", "mpich_shm_old", "somebody"):
        (shared / name).touch()
    os.utime(shared / "mpich_shm_old", (1.0, 1.0))
    (processes / "17" / "maps").write_text(f"7f00-7f10 rw-s 00000000 00:19 4 {shared / 'mpich_shm_used'}\n")
    assert leftovers.remove_left_behind(1000.0, shared, processes) == [shared / "mpich_shm_left"]
    assert {path.name for path in shared.iterdir()} == {"mpich_shm_used", "mpich_shm_old", "somebody"}
