"""`verify`: compare an installed model repository with its manifest."""

from collections.abc import Mapping
from pathlib import Path

from triton_rerank_build.contract import (
    CROSS_ENCODER,
    INPUT_NAMES,
    MODEL_FILE,
    OUTPUT_NAME,
    PACKED_INPUT_NAMES,
    REFERENCE_FILE,
    TOKENIZER,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.parity.published import CHECKPOINT, PublishedScore, compare_published
from triton_rerank_build.repository.layout import RERANKER, Layout, padded_graph
from triton_rerank_build.repository.manifest import Artefact, Manifest, read_manifest
from triton_rerank_build.support.extras import require_build_extra

Signature = tuple[str, int, tuple[int | None, ...]]
"""Name, type and dims of a graph's tensor."""

FLOAT, INT32 = 1, 6  # onnx.TensorProto's
_LOGITS: Signature = (OUTPUT_NAME, FLOAT, (None, 1))
PADDED_INPUTS: list[Signature] = [(name, INT32, (None, None)) for name in INPUT_NAMES]
PACKED_INPUTS: list[Signature] = [
    (name, INT32, (None, 1) if name == "row_length" else (None,)) for name in PACKED_INPUT_NAMES
]


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
    folder = repository / CROSS_ENCODER
    graphs = {padded_graph(folder): PADDED_INPUTS}
    if manifest.packed is not None:
        files = [folder / MODEL_FILE, folder / REFERENCE_FILE]
        graphs |= {path: PACKED_INPUTS for path in files if path.is_file()}
    check_installation(repository, manifest, RERANKER, graphs, _LOGITS)
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
    return compare_published(padded_graph(repository / CROSS_ENCODER), repository / TOKENIZER / TOKENIZER_FILE)


def check_installation(
    repository: Path,
    manifest: Manifest,
    layout: Layout,
    graphs: Mapping[Path, list[Signature]],
    output: Signature,
) -> None:
    """Raise RepositoryError with all differences between an installation and its manifest.

    Args:
        repository: Model repository folder.
        manifest: Of the installation.
        layout: Its layout.
        graphs: The inputs that the served models give to each graph.
        output: What they take from it.
    """
    problems = [f"{path} differs from the one beside the graph" for path in _other_manifests(repository, layout)]
    problems += differences(repository, manifest.artefacts)
    # A changed file may not be a readable ONNX file.
    if not problems:
        problems = [line for path in graphs for line in graph_differences(path, manifest, graphs[path], output)]
    if problems:
        raise RepositoryError(f"{repository} differs from its manifest:\n  " + "\n  ".join(problems))


def graph_differences(
    path: Path, manifest: Manifest, inputs: list[Signature] = PADDED_INPUTS, output: Signature = _LOGITS
) -> list[str]:
    """Differences between the graph's signature and what the served models and the manifest require."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    wanted = {
        "inputs": inputs,
        "outputs": [output],
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


def _signature(value: object) -> Signature:
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
