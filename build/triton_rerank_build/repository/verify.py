"""`verify`: compare an installed model repository with its manifest."""

from collections.abc import Mapping
from pathlib import Path

from triton_rerank_build.contract import (
    CROSS_ENCODER,
    INPUT_NAMES,
    MODEL_FILE,
    OUTPUT_NAME,
    TOKENIZER,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.parity.published import CHECKPOINT, PublishedScore, compare_published
from triton_rerank_build.repository.layout import RERANKER, Layout
from triton_rerank_build.repository.manifest import Artefact, Manifest, read_manifest
from triton_rerank_build.support.extras import require_build_extra

_LOGITS = (OUTPUT_NAME, (None, 1))


def verify(repository: str | Path = "model_repository") -> Manifest:
    """Check that the installed files are those that `export` compared with PyTorch.

    Returns:
        The manifest, if size and hash of every file and the graph's signature match it.

    Raises:
        RepositoryError: Nothing is installed, or a file changed; the message lists every difference.
    """
    require_build_extra()
    repository = Path(repository)
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder")
    manifest = read_manifest(repository)
    if manifest is None:
        raise RepositoryError(
            f"{repository} holds no complete installation; run: triton-rerank-build export CHECKPOINT"
        )
    check_installation(repository, manifest, RERANKER, repository / CROSS_ENCODER / MODEL_FILE, _LOGITS)
    return manifest


def verify_published(repository: str | Path = "model_repository") -> list[PublishedScore]:
    """Verify the repository, then score the pairs whose logits the authors of bge-reranker-v2-m3 published.

    Raises:
        RepositoryError: The repository is not intact, or holds another checkpoint.
        ParityError: A logit is too far from the published one; the message says by how much.
    """
    repository = Path(repository)
    manifest = verify(repository)
    if not manifest.checkpoint.endswith(CHECKPOINT):
        raise RepositoryError(
            f"the published scores are those of BAAI/{CHECKPOINT}; {repository} holds {manifest.checkpoint}"
        )
    return compare_published(repository / CROSS_ENCODER / MODEL_FILE, repository / TOKENIZER / TOKENIZER_FILE)


def check_installation(
    repository: Path, manifest: Manifest, layout: Layout, graph: Path, output: tuple[str, tuple[int | None, ...]]
) -> None:
    """Raise RepositoryError with all differences between an installation and its manifest."""
    problems = [f"{path} differs from the one beside the graph" for path in _other_manifests(repository, layout)]
    problems += differences(repository, manifest.artefacts)
    # A changed file may not be a readable ONNX file.
    problems = problems or graph_differences(graph, manifest, output)
    if problems:
        raise RepositoryError(f"{repository} differs from its manifest:\n  " + "\n  ".join(problems))


def graph_differences(
    path: Path, manifest: Manifest, output: tuple[str, tuple[int | None, ...]] = _LOGITS
) -> list[str]:
    """Differences between the graph's signature and what the served models and the manifest require."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    wanted = {
        "inputs": [(name, onnx.TensorProto.INT32, (None, None)) for name in INPUT_NAMES],
        "outputs": [(output[0], onnx.TensorProto.FLOAT, output[1])],
        "opset": [manifest.opset],
        "ir_version": manifest.ir_version,
        "weight files": {WEIGHTS_FILE},
    }
    found = {
        "inputs": [_signature(value) for value in model.graph.input],
        "outputs": [_signature(value) for value in model.graph.output],
        "opset": [entry.version for entry in model.opset_import if entry.domain == ""],
        "ir_version": model.ir_version,
        "weight files": {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        },
    }
    return [f"{path.name}: {key} {found[key]}, expected {wanted[key]}" for key in wanted if found[key] != wanted[key]]


def _signature(value: object) -> tuple[str, int, tuple[int | None, ...]]:
    tensor = value.type.tensor_type  # type: ignore[attr-defined]
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return value.name, tensor.elem_type, dims  # type: ignore[attr-defined]


def _other_manifests(repository: Path, layout: Layout) -> list[Path]:
    paths = layout.manifests
    texts = {path: (repository / path).read_bytes() if (repository / path).is_file() else b"" for path in paths}
    return [path for path, text in texts.items() if text != texts[paths[-1]]]


def differences(repository: Path, artefacts: Mapping[str, Artefact], *, hashed_up_to: int | None = None) -> list[str]:
    """One sentence for each file that differs from the manifest.

    Args:
        repository: Model repository folder.
        artefacts: By path inside the repository.
        hashed_up_to: Bytes; of larger files only the size is compared. None hashes every file.
    """
    problems = []
    for name, wanted in artefacts.items():
        path = repository / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != wanted.bytes:
            problems.append(f"{name} has {size} bytes, the manifest says {wanted.bytes}")
        elif hashed_up_to is not None and size > hashed_up_to:
            continue
        elif (found := Artefact.of(path)).sha256 != wanted.sha256:
            problems.append(f"{name} has sha256 {found.sha256[:16]}..., the manifest says {wanted.sha256[:16]}...")
    return problems
