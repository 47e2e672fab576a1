"""tools/test_gpu.py and tools/bench_gpu.py, without a GPU: how stages end, what is run, and what is said."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


def load(name: str) -> Any:
    """A tool as a module, under a name that pytest does not take for a file of tests."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(TOOLS)
    yield load("test_gpu")
    for name in ("gpu_build", "store_ranks", "tool_test_gpu"):
        sys.modules.pop(name, None)


def make_run(tool: Any, build: Path, seconds: float = 60, path: str = "/usr/bin:/bin") -> Any:
    return tool.Run(build, time.monotonic() + seconds, {"PATH": path})


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_a_gpu_a_sentence_says_so(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool.gpu_build, "has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", ["tool"])
    assert tool.main() == 0
    assert load("bench_gpu").main() == 0
    tested, measured = capsys.readouterr().out.splitlines()
    assert tested.startswith("ringred: there is no GPU here") and tested.endswith("; nothing was tested.")
    assert measured.endswith("; nothing was measured.")


def test_benchmarks_that_fail_are_told_from_those_that_cannot_run(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cmake that makes programs which write down how they were called."""
    bench, build = load("bench_gpu"), tmp_path / "build"
    program, core = build / "benchmarks/gpu/gpu_bench", build / "site/ringred/_core.so"
    script(program, f'echo kernels "$@" >> {tmp_path}/calls')
    install = f"case $* in *--install*) mkdir -p {core.parent}; touch {core};; esac"
    script(tmp_path / "bin" / "cmake", f"echo cmake >> {tmp_path}/calls; {install}; test ! -e {tmp_path}/broken")
    training = tmp_path / "training.py"
    note = f"open('{tmp_path}/calls', 'a').write('rank ' + ' '.join(sys.argv[1:]) + chr(10))"
    training.write_text(f"import sys\n{note}\n")
    monkeypatch.setattr(bench, "TRAINING", training)
    for name, value in {
        "BUILD": build,
        "has_gpu": lambda: True,
        "missing_tool": lambda: None,
        "reason_against_module": lambda: None,
        "environment": lambda: {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
    }.items():
        monkeypatch.setattr(bench.gpu_build, name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    def calls(*words: str) -> tuple[int, list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["tool", "--output", str(tmp_path), *words])
        status = bench.main()
        lines = (tmp_path / "calls").read_text().splitlines()
        return status, [line.split("-gpu-")[-1] for line in lines if line != "cmake"]

    kernels = f"kernels --output {tmp_path}"
    assert calls() == (0, [kernels, "training.json", "training.json"])
    assert calls("--only", "leaves") == (0, [f"{kernels} --only leaves"])
    assert calls("--only", "training") == (0, ["training.json"] * 2)
    training.write_text("raise SystemExit(3)")
    assert calls("--only", "training") == (1, [])
    assert "rank" in capfd.readouterr().err
    monkeypatch.setattr(bench.gpu_build, "reason_against_module", lambda: "there is no torch")
    assert calls() == (0, [kernels])
    assert "no training steps were measured: there is no torch." in capfd.readouterr().out
    (tmp_path / "broken").touch()
    assert calls() == (1, [])
    assert "this failed (exit code 1): cmake" in capfd.readouterr().err


def test_exit_code_is_honest(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(run: Any, limit: float) -> str:
        raise tool.Failure("3 programs passed, the others are named above")

    def skips(run: Any, limit: float) -> str:
        raise tool.Skip("there is no compute-sanitizer")

    tool.STAGES = {"build": lambda run, limit: "kernels", "device": fails, "memcheck": skips}
    assert tool.run_stages(make_run(tool, tmp_path), ["build", "memcheck"]) == 0
    assert tool.run_stages(make_run(tool, tmp_path), ["device", "build", "memcheck"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "  device: FAILED: 3 programs passed, the others are named above (0 s)",
        "  build: passed: kernels (0 s)",
        "  memcheck: skipped: there is no compute-sanitizer (0 s)",
    ]
    tool.STAGES["device"] = lambda run, limit: [][1]
    assert tool.run_stages(make_run(tool, tmp_path), ["device", "build"]) == 1
    assert "device: FAILED: IndexError: list index" in capsys.readouterr().out
    assert tool.run_stages(make_run(tool, tmp_path, seconds=0), ["build"]) == 1
    assert "build: FAILED: no time left of 470 s" in capsys.readouterr().out


def test_build_takes_what_the_machine_has(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cmake that fails where its words have what the file `broken` says."""
    script(tmp_path / "bin" / "cmake", f'echo "$@" >> {tmp_path}/calls\n! echo "$@" | grep -qf {tmp_path}/broken')
    run = make_run(tool, tmp_path / "build", path=f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(tool.gpu_build, "missing_tool", lambda: None)
    monkeypatch.setattr(tool.gpu_build, "reason_against_module", lambda: None)

    def calls(broken: str = "nothing") -> list[str]:
        """What cmake is called for: the words that tell the calls apart."""
        (tmp_path / "calls").unlink(missing_ok=True)
        (tmp_path / "broken").write_text(broken)
        try:
            said = tool.build(run, 30)
        except tool.Failure as failure:
            said = f"failed: {failure}"
        lines = (tmp_path / "calls").read_text().splitlines()
        return [" ".join(re.findall(r"PYTHON=ON|PYTHON=OFF|gpu_tests|python_modules", line)) for line in lines] + [said]

    both = "kernels and their tests, the Python module"
    module_failed = "failed: the Python module; the tests of kernels are built"
    assert calls() == ["PYTHON=ON", "gpu_tests", "python_modules", both]
    assert calls("PYTHON=ON") == ["PYTHON=ON", "PYTHON=OFF", "gpu_tests", module_failed]
    assert calls("python_modules") == ["PYTHON=ON", "gpu_tests", "python_modules", module_failed]
    assert calls("gpu_tests") == ["PYTHON=ON", "gpu_tests", "failed: the tests of kernels"]
    assert calls("-S") == ["PYTHON=ON", "PYTHON=OFF", "failed: cmake could not configure the build"]
    monkeypatch.setattr(tool.gpu_build, "reason_against_module", lambda: "there is no torch")
    assert calls() == ["PYTHON=OFF", "gpu_tests", "kernels and their tests"]
    monkeypatch.setattr(tool.gpu_build, "missing_tool", lambda: "there is no cmake. Install it")
    with pytest.raises(tool.Failure, match="there is no cmake"):
        tool.build(run, 30)


def test_limit_ends_a_command_and_what_it_started(tool: Any, tmp_path: Path) -> None:
    script(tmp_path / "hangs", f"sleep 50 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(tool.Failure, match=r"not finished after 1 s: .*hangs"):
        make_run(tool, tmp_path).command([str(tmp_path / "hangs")], 1)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_programs_that_skip_themselves_are_told_from_those_that_pass(tool: Any, tmp_path: Path) -> None:
    ctest = shutil.which("ctest")
    if ctest is None:
        pytest.skip("needs ctest")
    run = make_run(tool, tmp_path, path=f"{Path(ctest).parent}:/usr/bin:/bin")

    def with_programs(**codes: int) -> None:
        lines = [
            f'add_test({name} "sh" "-c" "exit {code}")\n'
            f"set_tests_properties({name} PROPERTIES LABELS gpu SKIP_RETURN_CODE 77)\n"
            for name, code in codes.items()
        ]
        (tmp_path / "CTestTestfile.cmake").write_text("".join(lines))

    with_programs(one=0, two=0, three=77)
    assert tool.device(run, 30) == "2 programs, 1 skipped"
    with_programs(one=77, two=77)
    with pytest.raises(tool.Skip, match="CUDA can use no GPU here"):
        tool.device(run, 30)
    with_programs(one=0, two=1)
    with pytest.raises(tool.Failure, match="1 programs passed"):
        tool.device(run, 30)
    with_programs()
    with pytest.raises(tool.Failure):
        tool.device(run, 30)


def test_sanitizer_runs_what_there_is(tool: Any, tmp_path: Path) -> None:
    """The short tests are in the sources, and a filter chooses at least one."""
    for program, argument in tool.SHORT_TESTS:
        name = Path(program).name
        if name == "gpu_bench":
            assert f'"{argument}"' in (ROOT / "benchmarks/gpu/main.cpp").read_text()
            continue
        (source,) = (ROOT / "tests/cuda").glob(f"{name.removeprefix('cuda_')}.c*")
        names = re.findall(r'^TEST\("(.*)"\) \{$', source.read_text(), re.MULTILINE)
        assert sum(argument in name for name in names) == 1, argument


@pytest.mark.parametrize(
    ("text", "outcome", "said"),
    [
        ("exit 0", None, "7 programs"),
        ("echo '========= Error: Device not supported. Use another'; exit 1", "Skip", "refused the device: Error: Dev"),
        (
            "case $*: in *leaf*) exit 86;; esac",
            "Failure",
            "cuda_leaf_test 'vectors so long .*': racecheck found errors",
        ),
        ("case $*: in *leaf*) exit 2;; esac", "Failure", "cuda_leaf_test 'vectors so long .*': exit code 2"),
    ],
)
def test_sanitizer_refused_or_with_errors(tool: Any, tmp_path: Path, text: str, outcome: str | None, said: str) -> None:
    script(tmp_path / "bin" / "compute-sanitizer", f'echo "$@" >> {tmp_path}/calls\n{text}')
    run = make_run(tool, tmp_path, path=f"{tmp_path}/bin:/usr/bin:/bin")
    stage = tool.sanitized("racecheck")
    if outcome is None:
        assert stage(run, 30) == said
    else:
        with pytest.raises(getattr(tool, outcome), match=said):
            stage(run, 30)
    first = (tmp_path / "calls").read_text().splitlines()[0]
    assert first.startswith("--tool racecheck --error-exitcode 86 ")
    assert first.endswith(f"{tmp_path}/tests/cuda/cuda_launch_test threads of a block meet in shared memory")


def test_ranks_meet_without_a_launcher(tool: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tool, tmp_path)
    program = "import os; open(os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'] + os.environ['MASTER_PORT'])"
    tool.together(run, ["-c", f"import os; os.chdir({str(tmp_path)!r}); {program}"], {})
    first, second = ((tmp_path / name).read_text() for name in "01")
    assert first == second and first.startswith("2")
    fails = "import os, sys; print('here is', os.environ['RANK']); sys.exit(5 * int(os.environ['RANK']))"
    with pytest.raises(tool.Failure, match="rank 1 of 2: exit code 5: python -c"):
        tool.together(run, ["-c", fails], {})
    assert capfd.readouterr().out == "here is 0\n-- rank 1\nhere is 1\n"
    fails_alone = "import os, sys, time; time.sleep(50 * (1 - int(os.environ['RANK']))); sys.exit(5)"
    with pytest.raises(tool.Failure, match="rank 1 of 2: exit code 5"):  # while rank 0 would wait for it
        tool.together(run, ["-c", fails_alone], {})
    with pytest.raises(tool.Failure, match="rank 0 of 2: not finished in time"):
        tool.together(run, ["-c", "import time; time.sleep(50)"], {}, 2, 0.2)


def test_python_stage_runs_what_there_is(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: list[tuple[int, str, str]] = []

    def together(run: Any, words: list[str], variables: dict[str, str], count: int = 2, limit: float = 1) -> None:
        ranks.append((count, variables.get(tool.DEVICE_VARIABLE, "cpu"), variables.get("RINGRED_GPU", "staged")))

    run = make_run(tool, tmp_path)
    monkeypatch.setattr(tool, "together", together)
    monkeypatch.setattr(tool, "install_module", lambda run: tmp_path)
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)  # no cupy
    monkeypatch.setattr(tool.gpu_build, "reason_against_module", lambda: None)
    monkeypatch.setattr(run, "command", lambda words, limit, variables=None: 0)
    monkeypatch.setattr(tool, "DEVICE_VARIABLE", "RINGRED_TEST_NODES")  # which the suite reads
    assert tool.python(run, 30) == "the pytest suite on 2, 1, 4 ranks"
    jobs = [(2, "cpu"), (2, "cuda"), (1, "cuda"), (4, "cuda")]
    assert ranks == [*((*job, "staged") for job in jobs), (2, "cuda", "direct")]
    monkeypatch.setattr(tool, "DEVICE_VARIABLE", "RINGRED_TEST_NOTHING")
    with pytest.raises(tool.Skip, match="two processes met"):
        tool.python(run, 30)
    monkeypatch.setattr(run, "command", lambda words, limit, variables=None: 3)
    with pytest.raises(tool.Skip, match="can use no GPU here"):
        tool.python(run, 30)
    for files in (*tool.SUITE.values(), tool.DIRECT):
        assert all((ROOT / file).exists() for file in files)


def test_build_is_for_one_architecture_and_with_what_the_user_asks(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_FLAGS", "-DRINGRED_WERROR=ON '-DA=b c'")
    words = tool.gpu_build.configure_command(Path("there"), True)
    assert {"-DRINGRED_CUDA=ON", "-DRINGRED_CUDA_FAST=ON", "-DRINGRED_PYTHON=ON"} <= set(words)
    assert words[-2:] == ["-DRINGRED_WERROR=ON", "-DA=b c"]
    assert "-DRINGRED_PYTHON=OFF" in tool.gpu_build.configure_command(Path("there"), False)
    declared = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "csrc/cuda/cuda.cmake").read_text()
    for word in words:
        if word.startswith("-DRINGRED_"):
            assert re.search(rf"\({word[2:].partition('=')[0]} ", declared), word
