"""Real servers for the tests: the demo reranker, built once, served by the real tritonserver."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT
from support.tiny_late import tiny_colbert
from support.tiny_models import tiny_checkpoint
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.checkpoints.demo import demo_revision
from triton_rerank_build.contract import EXPORTER_VERSION
from triton_rerank_build.late_interaction.settings import LateOptions
from triton_rerank_build.support.files import cache_folder

# A shell that runs the suite in the background ignores SIGINT for it, and every process would inherit that: the tests
# of Ctrl-C need the usual start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMITTED = ROOT / "model_repository"


def lay_out(target: Path, artefacts: Path, *edits: tuple[str, str, str]) -> Path:
    """A repository of the committed files as they are now and of links to `artefacts`.

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


@pytest.fixture(scope="session")
def demo_artefacts() -> Path:
    """A repository that holds the demo reranker's artefacts, kept between runs."""
    folder = cache_folder() / f"test-repository-{demo_revision()[:12]}-{EXPORTER_VERSION}"
    if not folder.is_dir():
        for other in cache_folder().glob("test-repository-*"):
            # Another checkout may be using a younger one.
            if other.stat().st_mtime < time.time() - 86_400:
                shutil.rmtree(other, ignore_errors=True)
    export("demo", repository=folder)
    return folder


@pytest.fixture(scope="session")
def demo_repository(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository with the demo reranker in it."""
    return lay_out(tmp_path_factory.mktemp("demo") / "repository", demo_artefacts)


@pytest.fixture(scope="session")
def server(demo_repository: Path) -> Iterator[EmbeddedServer]:
    """The demo reranker as a user serves it: OpenVINO, bf16 where the processor has it."""
    with EmbeddedServer(demo_repository) as running:
        yield running


@pytest.fixture(scope="session")
def fp32_server(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The same in full precision."""
    edit = ("cross_encoder/configs/cpu.pbtxt", 'string_value: "auto"', 'string_value: "f32"')
    repository = lay_out(tmp_path_factory.mktemp("fp32") / "repository", demo_artefacts, edit)
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def onnxruntime_server(demo_repository: Path) -> Iterator[EmbeddedServer]:
    """The GPU's config.pbtxt, through the stand-in of NVIDIA's backend."""
    with EmbeddedServer(demo_repository, runtime="onnxruntime") as running:
        yield running


@pytest.fixture(scope="session")
def colbert_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ColBERT checkpoint, exported; no reranker beside it."""
    folder = tmp_path_factory.mktemp("colbert")
    export(str(tiny_colbert(folder / "tiny")), repository=folder / "repository")
    return folder / "repository"


@pytest.fixture(scope="session")
def colbert_server(colbert_repository: Path) -> Iterator[EmbeddedServer]:
    """It, as a GPU server would serve it, in full precision."""
    with EmbeddedServer(colbert_repository, runtime="onnxruntime") as running:
        yield running


@pytest.fixture(scope="session")
def encoder_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of a tiny XLM-R classifier for late interaction, fp16."""
    folder = tmp_path_factory.mktemp("encoder")
    source = tiny_checkpoint(folder / "tiny", "xlm-roberta")
    options = LateOptions("query: ", "passage: ", query_length=40)
    export(str(source), repository=folder / "repository", precision="fp16", late_interaction=options)
    return folder / "repository"
