"""A model repository with another limit of calls that wait to begin; its artefacts are links."""

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def with_queue_limit(limit: int, source: Path, target: Path) -> Path:
    """Lay out `source` in `target`, `max_queue_size` of the CPU's cross_encoder being `limit`."""
    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
    path = target / "cross_encoder/configs/cpu.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.dynamic_batching.default_queue_policy.max_queue_size = limit
    path.unlink()
    path.write_text(text_format.MessageToString(config))
    return target


def link(here: str, there: str) -> None:
    """Make `there` a link to the file `here`."""
    Path(there).symlink_to(Path(here).resolve())
