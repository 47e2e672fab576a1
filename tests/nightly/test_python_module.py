"""A Python module is built with pybind11's package, or with the headers that torch carries."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """
cmake_minimum_required(VERSION 3.18...4.0)
project(example LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
set(pybind11_FOUND OFF)
include("{root}/csrc/python/python.cmake")
ringred_python_module(example example.cpp)
"""
SOURCE = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(example, module) { module.def("twice", [](int value) { return 2 * value; }); }
"""

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure the example in `directory`."""
    (directory / "CMakeLists.txt").write_text(PROJECT.format(root=ROOT))
    (directory / "example.cpp").write_text(SOURCE)
    words = ["cmake", "-S", ".", "-B", "build", f"-DPython_EXECUTABLE={sys.executable}", *options]
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_headers_of_torch_suffice(tmp_path: Path) -> None:
    configured = configure(tmp_path, "-DRINGRED_PYBIND11=torch")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(["cmake", "--build", "build"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout
    program = "import example; print(example.twice(21))"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "build", capture_output=True, text=True)
    assert result.stdout == "42\n", result.stderr


def test_neither_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *pybind11*|*torch*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    configured = configure(tmp_path, f"-DPython_EXECUTABLE={python}", "-DCMAKE_FIND_USE_CMAKE_ENVIRONMENT_PATH=OFF")
    assert configured.returncode != 0
    text = " ".join(configured.stderr.split())
    assert "has neither that nor a torch that carries it (RINGRED_PYBIND11 is auto). Install it: pip install" in text
