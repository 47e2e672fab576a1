"""What `make test-gpu` and `make bench-gpu` share: is there a GPU, and the build for it in build/gpu.

Standard library only, and no network: what is needed is CMake, nvcc and a C++ compiler. Kernels are built for compute
capability 9.0 alone; CMAKE_FLAGS may ask for another (-DRINGRED_CUDA_FAST=OFF -DCMAKE_CUDA_ARCHITECTURES=80-real).
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
ASK_SECONDS = 60.0
NO_GPU = "ringred: there is no GPU here (no /dev/nvidia0, and nvidia-smi lists none); "


def has_gpu() -> bool:
    """Whether the driver shows a GPU."""
    if Path("/dev/nvidia0").exists():
        return True
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and asked.stdout.startswith(b"GPU ")


def missing_tool() -> str | None:
    """What is missing to build for a GPU, in a sentence."""
    if shutil.which("cmake") is None:
        return "there is no cmake. Install CMake 3.25 or newer"
    if nvcc() is None:
        return "there is no nvcc on PATH, in CUDACXX or in /usr/local/cuda/bin. Install CUDA's toolkit, 12.8 or newer"
    return None


def nvcc() -> str | None:
    """The compiler for CUDA, where CMake would not find it by itself as well."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def reason_against_module() -> str | None:
    """Why this interpreter cannot build and test the Python module on a GPU."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"Python.h of {sys.executable} is missing"
    # That it has pybind11, its own or torch's, CMake finds out.
    return None


def configure_command(build: Path, with_module: bool) -> list[str]:
    """The command that configures `build`, with Ninja where there is one."""
    words = ["cmake", "-S", str(ROOT), "-B", str(build), "-DRINGRED_TESTS=ON", "-DRINGRED_CUDA=ON"]
    words.append("-DRINGRED_CUDA_FAST=ON")
    if shutil.which("ninja") and not (build / "CMakeCache.txt").exists():
        words += ["-G", "Ninja"]
    words.append(f"-DRINGRED_PYTHON={'ON' if with_module else 'OFF'}")
    if with_module:
        words.append(f"-DPython_EXECUTABLE={sys.executable}")
    return [*words, *shlex.split(os.environ.get("CMAKE_FLAGS", ""))]


def build_command(build: Path, *targets: str) -> list[str]:
    """The command that builds `targets` on all cores."""
    return ["cmake", "--build", str(build), "-j", str(os.cpu_count() or 1), "--target", *targets]


def install_command(build: Path) -> list[str]:
    """The command that installs the built modules into site_of(build)."""
    return ["cmake", "--install", str(build), "--prefix", str(site_of(build))]


def site_of(build: Path) -> Path:
    """The folder from which ringred is imported."""
    return build / "site"


def link_package(build: Path) -> bool:
    """Put links to the rest of the package beside the installed modules; False: there are none."""
    package = site_of(build) / "ringred"
    if not list(package.glob("_core*.so")):
        return False
    for source in (ROOT / "ringred").iterdir():
        if source.suffix != ".so" and source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    return True


def module_variables(build: Path) -> dict[str, str]:
    """What lets Python import it."""
    return {"PYTHONPATH": os.pathsep.join([str(site_of(build)), str(ROOT / "tools")]), "PYTHONSAFEPATH": "1"}


def environment() -> dict[str, str]:
    """This process's variables, and where nvcc is."""
    found = nvcc()
    return {**os.environ, **({"CUDACXX": found} if found else {})}
