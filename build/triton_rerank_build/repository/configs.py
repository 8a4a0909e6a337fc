"""Read the config.pbtxt files of a model repository."""

from pathlib import Path
from typing import Any

from triton_rerank_build.contract import PACKED_INPUT_NAMES
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.repository.layout import template_repository

# A model_config_pb2.ModelConfig; protobuf builds its class at run time.
ModelConfig = Any


def read_config(repository: Path, model: str, name: str) -> ModelConfig:
    """The config of a model, as `tritonserver --model-config-name=NAME` reads it.

    Raises:
        RepositoryError: It is missing or cannot be parsed.
    """
    named = repository / model / "configs" / f"{name}.pbtxt"
    path = named if named.is_file() else repository / model / "config.pbtxt"
    if not path.is_file():
        raise RepositoryError(
            f"{path} is missing; run: triton-rerank-build export CHECKPOINT --repository {repository}"
        )
    return parse_config(path)


def parse_config(path: Path) -> ModelConfig:
    """Parse one file.

    Raises:
        RepositoryError: It cannot be parsed.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{path} cannot be parsed: {error}") from error


def gpu_config(repository: Path) -> ModelConfig:
    """The config of the cross-encoder for GPUs: the repository's, or the one that an export will write there.

    Raises:
        RepositoryError: It cannot be parsed, or does not give the packed graph its inputs: an earlier release, whose
            graphs took padded rows, wrote it.
    """
    path = repository / "cross_encoder" / "config.pbtxt"
    config = parse_config(path if path.is_file() else template_repository() / "cross_encoder" / "config.pbtxt")
    targets = [name for item in config.batch_input for name in item.target_name]
    given = {*targets, *(item.name for item in config.input if item.allow_ragged_batch)}
    if missing := [name for name in PACKED_INPUT_NAMES if name not in given]:
        raise RepositoryError(
            f"{path} is for the padded graphs of earlier releases: it has no ragged {', '.join(missing)}. Rename the "
            "file and run this command again, which writes the file of this release; then carry your changes over"
        )
    return config
