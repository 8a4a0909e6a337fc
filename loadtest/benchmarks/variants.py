"""Model repositories with changed configs; their artefacts are links."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

TOKENIZER, CROSS_ENCODER = "tokenizer/config.pbtxt", "cross_encoder/configs/cpu.pbtxt"


def variant(
    source: Path, target: Path, changes: Mapping[str, Callable[[model_config_pb2.ModelConfig], object]]
) -> Path:
    """Copy the repository `source` to `target` with changed configs.

    Args:
        source: A model repository.
        target: A folder; if it exists, it is empty.
        changes: Path of a config in the repository -> function that changes its ModelConfig.
    """
    shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    for name, change in changes.items():
        path = target / name
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        change(config)
        path.unlink()
        path.write_text(text_format.MessageToString(config))
    return target


def with_max_wait(seconds: float, source: Path, target: Path) -> Path:
    """Copy with another max_wait_s of cross_encoder on a CPU."""

    def change(config: model_config_pb2.ModelConfig) -> None:
        config.parameters["max_wait_s"].string_value = str(seconds)

    return variant(source, target, {CROSS_ENCODER: change})


def _link(here: str, there: str) -> None:
    """Create the link `there` to the file `here`."""
    Path(there).symlink_to(Path(here).resolve())
