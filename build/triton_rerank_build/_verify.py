"""`verify`: hold an installed model repository against its manifest."""

from pathlib import Path

from triton_rerank_build._errors import RepositoryError
from triton_rerank_build._export import INPUT_NAMES, MODEL_FILE, OUTPUT_NAME, WEIGHTS_FILE
from triton_rerank_build._extras import require_build_extra
from triton_rerank_build._late_repository import ENCODER, LATE, LateManifest, read_late_manifest
from triton_rerank_build._manifest import Manifest
from triton_rerank_build._repository import CROSS_ENCODER, RERANKER, Layout, differences, read_manifest

_LOGITS = (OUTPUT_NAME, (None, 1))
_VECTORS = ("vectors", (None, None))


def verify(repository: str | Path = "model_repository") -> Manifest:
    """Check that what is installed is what was proved.

    Returns:
        The manifest, when every file, its size, its hash and the graph's signature are as it says.

    Raises:
        RepositoryError: Nothing is installed, or something changed; the message lists every difference.
    """
    require_build_extra()
    repository = Path(repository)
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is no folder")
    manifest = read_manifest(repository)
    if manifest is None:
        raise RepositoryError(
            f"{repository} holds no complete installation; run: triton-rerank-build export CHECKPOINT"
        )
    _check(repository, manifest, RERANKER, repository / CROSS_ENCODER / MODEL_FILE, _LOGITS)
    return manifest


def verify_late(repository: str | Path = "model_repository") -> LateManifest | None:
    """As `verify`, of what is installed for late interaction; None if nothing is.

    Raises:
        RepositoryError: Something changed; the message lists every difference.
    """
    require_build_extra()
    repository = Path(repository)
    if (manifest := read_late_manifest(repository)) is not None:
        _check(repository, manifest, LATE, repository / ENCODER / MODEL_FILE, _VECTORS)
    return manifest


def _check(
    repository: Path, manifest: Manifest, layout: Layout, graph: Path, output: tuple[str, tuple[int | None, ...]]
) -> None:
    problems = [f"{path} differs from the one beside the graph" for path in _other_manifests(repository, layout)]
    problems += differences(repository, manifest.artefacts)
    # A file that changed need not be an ONNX file any more.
    problems = problems or graph_differences(graph, manifest, output)
    if problems:
        raise RepositoryError(f"{repository} is not as its manifest says:\n  " + "\n  ".join(problems))


def graph_differences(
    path: Path, manifest: Manifest, output: tuple[str, tuple[int | None, ...]] = _LOGITS
) -> list[str]:
    """What in the graph's signature is not as the product needs it, or not as the manifest says."""
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
