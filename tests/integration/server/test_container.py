"""The command line of `make test-container`, run by a stand-in for Docker that starts the local tritonserver.

It proves the command line and the tests' way to such a server. Docker, the image and a GPU are not here.
"""

import os
import re
import stat
import subprocess
import sys

import pytest

from support import ROOT, container
from triton_rerank import RerankClient

# Takes `docker run` as the real one does, refuses options that it does not know, and starts the local server with the
# stand-in for NVIDIA's backend on the published ports.
DOCKER = """#!{python}
import argparse, os, sys, tempfile
from pathlib import Path
from triton_rerank_build.serving import tritonserver
from triton_rerank_build.serving.listeners import Listener

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("run", choices=["run"])
for flag in ("--rm", "--init"):
    parser.add_argument(flag, action="store_true", required=True)
parser.add_argument("--shm-size", required=True)
parser.add_argument("--gpus")
parser.add_argument("--publish", action="append")
parser.add_argument("--volume", action="append")
parser.add_argument("image")
parser.add_argument("bash", choices=["bash"])
parser.add_argument("rest", nargs=argparse.REMAINDER)
taken = parser.parse_args()
Path({told!r}).write_text("\\n".join([taken.image, *taken.volume, *taken.rest]))
dash_c, script, packages, repository, *options = taken.rest
assert dash_c == "-c" and repository.startswith("--model-repository=")
names = {{"8000": "http", "8001": "grpc", "8002": "metrics"}}
published = [value.split(":") for value in taken.publish]
listeners = [Listener(names[inside], host, int(port)) for host, port, inside in published]
installation = tritonserver.find("onnxruntime")
folder = Path(tempfile.mkdtemp(dir={folder!r}))
command = installation.command(Path(repository.partition("=")[2]), folder, listeners, f"fake_docker_{{os.getpid()}}_")
own = [option for option in options if option not in command]
environment = installation.environment()
environment["PATH"] = os.pathsep.join([{binaries!r}, str(installation.root / "bin"), environment["PATH"]])
os.execvpe("bash", ["bash", "-c", script, packages, *command[1:], *own], environment)
"""


@pytest.fixture
def fake_docker(tmp_path, monkeypatch):
    """Puts the stand-in on PATH; the file in which it writes what it was told."""
    binaries, told = tmp_path / "bin", tmp_path / "told"
    binaries.mkdir()
    docker = binaries / "docker"
    names = {"python": sys.executable, "told": str(told), "folder": str(tmp_path), "binaries": str(binaries)}
    docker.write_text(DOCKER.format(**names))
    pip = binaries / "pip3"
    pip.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/installed\n')
    for program in (docker, pip):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(container, "IMAGE", "nvcr.io/nvidia/tritonserver:26.08-py3")
    return told


def test_the_suites_server_can_be_one_that_docker_starts(fake_docker, onnxruntime_repository):
    with container.ContainerServer(onnxruntime_repository, "--gpus=all") as server:
        with RerankClient(server.grpc_url) as client:
            response = client.rerank("flu", ["Soup needs salt.", "Wash your hands often against the flu."])
            assert client.model_info().runtime == "onnxruntime"
        assert response[0].index == 1
        image, *told = fake_docker.read_text().splitlines()
    installed = fake_docker.with_name("installed").read_text().split()
    assert installed[:3] == ["install", "--quiet", "--no-deps"]
    assert re.fullmatch(r"tokenizers==\d+\.\d+\.\d+", installed[3])
    assert image == "nvcr.io/nvidia/tritonserver:26.08-py3"
    volumes = [line.split(":") for line in told if line.endswith(":ro")]
    assert all(outside == inside for outside, inside, _ in volumes)
    # Every file that the repository links to is in a volume.
    targets = {str(path.resolve().parent) for path in onnxruntime_repository.rglob("*") if path.is_symlink()}
    assert targets | {str(onnxruntime_repository)} == {outside for outside, _, _ in volumes}


def test_make_test_container_needs_an_image():
    done = subprocess.run(
        ["make", "--dry-run", "test-container"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "IMAGE=nvcr.io/nvidia/tritonserver:26.08-py3" in done.stderr
