"""Session-wide servers and exports: the demo reranker and tiny checkpoints, served by the real tritonserver."""

import gc
import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support import ROOT, quick_server
from support.container import IMAGE, ContainerServer
from support.tiny_exports import TinyExports, tiny_export
from support.tiny_late import tiny_colbert
from support.tiny_models import tiny_checkpoint
from support.twins import TWINS
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.checkpoints.demo import demo_revision
from triton_rerank_build.contract import EXPORTER_VERSION
from triton_rerank_build.late_interaction.settings import LateOptions
from triton_rerank_build.support.files import cache_folder, locked

# A shell that runs the suite in the background makes it ignore SIGINT, and child processes inherit that. The tests of
# Ctrl-C need the default handler.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMITTED = ROOT / "model_repository"

PATIENT = (
    "cross_encoder/configs/cpu.pbtxt",
    '"max_wait_s"  value: { string_value: "3" }',
    '"max_wait_s"  value: { string_value: "60" }',
)
"""Edit of a laid-out repository: a slow machine refuses no calls of tests that are not about overload."""


def lay_out(target: Path, artefacts: Path, *edits: tuple[str, str, str]) -> Path:
    """Make a repository of the committed files as they are now and links to `artefacts`.

    Args:
        edits: (file, old, new): text to replace once in a committed file.
    """
    shutil.copytree(COMMITTED, target, ignore=shutil.ignore_patterns("*.onnx*", "*.json", "*.plan", "__pycache__"))
    for file in artefacts.glob("*/1/*"):
        if file.suffix in {".onnx", ".data", ".json"}:
            (target / file.relative_to(artefacts)).symlink_to(file)
    for name, old, new in edits:
        text = (target / name).read_text()
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        (target / name).write_text(text.replace(old, new))
    return target


@pytest.fixture(params=sorted(TWINS))
def client_class(request: pytest.FixtureRequest) -> type[Any]:
    """Both clients, behind the interface of the synchronous one."""
    return TWINS[request.param]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an export as slow."""
    for item in items:
        if {"tiny_exports", "colbert_repository"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


@pytest.fixture(scope="module", autouse=True)
def frozen_modules() -> None:
    """Take the modules imported so far out of garbage collection: each export would traverse them many times."""
    if len(gc.get_objects()) > 50_000:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that all worker processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def kept_export(precision: str) -> Path:
    """A repository that holds the demo reranker's artefacts, kept between runs."""
    version = f"{demo_revision()[:12]}-{EXPORTER_VERSION}"
    folder = cache_folder() / f"test-repository-{precision}-{version}"
    with locked(cache_folder() / "test-repository.lock", wait=True):
        if not folder.is_dir():
            for other in cache_folder().glob("test-repository-*"):
                # Another checkout may be using a younger one.
                if other.is_dir() and not other.name.endswith(version) and other.stat().st_mtime < time.time() - 86_400:
                    shutil.rmtree(other, ignore_errors=True)
        export("demo", repository=folder, precision=precision)
    return folder


@pytest.fixture(scope="session")
def demo_artefacts() -> Path:
    """The demo reranker's artefacts at fp32."""
    return kept_export("fp32")


@pytest.fixture(scope="session")
def fp16_artefacts() -> Path:
    """The demo reranker's artefacts at fp16, with the graph of packed rows for GPUs."""
    return kept_export("fp16")


@pytest.fixture(scope="session")
def demo_repository(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository with the demo reranker in it, and with patience."""
    return lay_out(tmp_path_factory.mktemp("demo") / "repository", demo_artefacts, PATIENT)


@pytest.fixture(scope="session")
def onnxruntime_repository(fp16_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository with the demo reranker at fp16, as ONNX Runtime serves it."""
    return lay_out(tmp_path_factory.mktemp("fp16") / "repository", fp16_artefacts)


@pytest.fixture(scope="session")
def tiny_repository(tiny_exports: TinyExports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository with a tiny BERT checkpoint, which starts several times as fast as the demo reranker."""
    artefacts = tiny_exports("bert", "fp32").repository
    return lay_out(tmp_path_factory.mktemp("bert") / "repository", artefacts, PATIENT)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer | ContainerServer]:
    """The demo reranker as users serve it: OpenVINO, bf16 where the processor has it; or in a container."""
    if IMAGE:
        yield request.getfixturevalue("onnxruntime_server")
        return
    with quick_server(request.getfixturevalue("demo_repository")) as running:
        yield running


@pytest.fixture(scope="session")
def fp32_server(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The demo reranker in OpenVINO at fp32."""
    if IMAGE:
        pytest.skip("a local server's runtime")
    edit = ("cross_encoder/configs/cpu.pbtxt", 'string_value: "auto"', 'string_value: "f32"')
    repository = lay_out(tmp_path_factory.mktemp("fp32") / "repository", demo_artefacts, edit, PATIENT)
    with quick_server(repository) as running:
        yield running


@pytest.fixture(scope="session")
def onnxruntime_server(onnxruntime_repository: Path) -> Iterator[EmbeddedServer | ContainerServer]:
    """The demo reranker with the GPU's config.pbtxt, in the stand-in for NVIDIA's ONNX Runtime backend or in that."""
    made = (
        ContainerServer(onnxruntime_repository)
        if IMAGE
        else quick_server(onnxruntime_repository, runtime="onnxruntime")
    )
    with made as running:
        yield running


@pytest.fixture(scope="session")
def tiny_exports(shared_folder: Path) -> TinyExports:
    """(family, precision) -> the tiny checkpoint of a family and its export, made once in a session."""
    return cache(lambda family, precision: tiny_export(shared_folder / f"{family}-{precision}", family, precision))


@pytest.fixture(scope="session")
def colbert_repository(shared_folder: Path) -> Path:
    """The tiny ColBERT checkpoint, exported; no reranker beside it."""
    folder = shared_folder / "colbert"
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock", wait=True):
        export(str(tiny_colbert(folder / "tiny")), repository=folder / "repository")
    return folder / "repository"


@pytest.fixture(scope="session")
def colbert_server(colbert_repository: Path) -> Iterator[EmbeddedServer]:
    """The tiny ColBERT model at fp32, in the stand-in for NVIDIA's ONNX Runtime backend."""
    with quick_server(colbert_repository, runtime="onnxruntime") as running:
        yield running


@pytest.fixture(scope="session")
def both_server(shared_folder: Path, colbert_repository: Path, tiny_exports: TinyExports) -> Iterator[EmbeddedServer]:
    """The cross-encoder of `tiny_repository` and the tiny ColBERT model beside it, computed in fp32 on the CPU."""
    folder = shared_folder / "both"
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock", wait=True):
        if not (folder / "repository").exists():
            for source in (colbert_repository, tiny_exports("bert", "fp32").repository):
                shutil.copytree(source, folder / "repository", dirs_exist_ok=True)
            for config in (folder / "repository").glob("*_encoder/configs/cpu.pbtxt"):
                config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "f32"'))
    with quick_server(folder / "repository") as running:
        yield running


@pytest.fixture(scope="session")
def encoder_repository(shared_folder: Path) -> Path:
    """The encoder of a tiny XLM-R classifier for late interaction, fp16."""
    folder = shared_folder / "encoder"
    folder.mkdir(exist_ok=True)
    options = LateOptions("query: ", "passage: ", query_length=40)
    with locked(folder / "lock", wait=True):
        if not (folder / "tiny").exists():
            tiny_checkpoint(folder / "tiny", "xlm-roberta")
        source, repository = str(folder / "tiny"), folder / "repository"
        export(source, repository=repository, precision="fp16", late_interaction=options)
    return folder / "repository"
