"""Build hook: adds the committed files of model_repository/ to the distributions of triton-rerank-build."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Everything else in model_repository/ is generated: graphs, weights, tokenizers, manifests.
COMMITTED = {".pbtxt", ".py", ".gitkeep"}


class ModelRepositoryHook(BuildHookInterface):
    """The wheel gets the files inside its package, the sdist at its root, where a build from the sdist finds them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to what is built."""
        root = Path(self.root)
        folder = next(path for path in (root / "model_repository", root.parent / "model_repository") if path.is_dir())
        target = "" if self.target_name == "sdist" else "triton_rerank_build/"
        for model in ("cross_encoder", "reranker", "tokenizer"):
            for file in sorted((folder / model).rglob("*")):
                if file.is_file() and (file.suffix in COMMITTED or file.name in COMMITTED):
                    inside = file.relative_to(folder).as_posix()
                    build_data["force_include"][str(file)] = f"{target}model_repository/{inside}"
