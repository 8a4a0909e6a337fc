"""Folders of sentence-transformers: modules.json lists a network and what follows it."""

import json
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.checkpoints.configuration import read_json
from triton_rerank_build.errors import UnsupportedModelError

MODULES_FILE = "modules.json"


@dataclass(frozen=True)
class Module:
    """One entry of modules.json.

    Attributes:
        kind: The last name of its class: "Transformer".
        folder: Its files.
    """

    kind: str
    folder: Path

    @property
    def files(self) -> list[Path]:
        """Its configuration and weights."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


def _list_modules(folder: Path, name: str) -> list[Module]:
    """The modules of a checkpoint, in order; none if it has no modules.json.

    Raises:
        UnsupportedModelError: The file is not a list of modules, or names a folder outside the checkpoint.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [Module(entry["type"].rpartition(".")[2], folder / entry["path"]) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(f"{MODULES_FILE} of {name} cannot be read: {error!r}") from error
    root = folder.resolve()
    for module in modules:
        # A snapshot of the hub's cache links to files outside, but not to folders.
        if not module.folder.resolve().is_relative_to(root):
            raise UnsupportedModelError(f"{MODULES_FILE} of {name} names the folder {module.folder} outside {folder}")
    return modules


@dataclass(frozen=True)
class Modules:
    """What a checkpoint consists of.

    Attributes:
        transformer: The folder with config.json, weights and tokenizer.
        answers: Tokens of a language model's two answers, relevant and not; None if no module names them.
        head: Dense and LayerNorm modules that follow on the state of the first token, and end in one logit.
    """

    transformer: Path
    answers: tuple[int, int] | None = None
    head: tuple[Module, ...] = ()


def read_modules(folder: Path, name: str, *, late_interaction: bool) -> Modules:
    """The parts of a checkpoint; the folder itself if it has no modules.

    Args:
        folder: Of the checkpoint.
        name: Of the checkpoint.
        late_interaction: Whether the encoder alone is wanted, so that the modules after it do not matter.

    Raises:
        UnsupportedModelError: A module follows that cannot be exported.
    """
    modules = _list_modules(folder, name)
    if not modules:
        return Modules(folder)
    kinds = [module.kind for module in modules]
    if kinds[0] == "Transformer" and (late_interaction or len(kinds) == 1):
        return Modules(modules[0].folder)
    if kinds == ["Transformer", "LogitScore"]:
        return Modules(modules[0].folder, answers=_answers(modules[1].folder, name))
    if kinds[:2] == ["Transformer", "Pooling"] and kinds[-1] == "Dense" and {*kinds[2:]} <= {"Dense", "LayerNorm"}:
        _check_pooling(modules[1].folder, name)
        return Modules(modules[0].folder, head=tuple(modules[2:]))
    raise UnsupportedModelError(
        f"{name} has the modules {', '.join(kinds)}; supported is a Transformer with a classifier, with "
        "LogitScore, or with Pooling of the first token, Dense and LayerNorm, the last of them Dense"
    )


def _check_pooling(folder: Path, name: str) -> None:
    config = read_json(folder / "config.json", name)
    # Releases before 5.4 wrote a flag for each mode.
    flags = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key != "pooling_mode" and value is True
    ]
    mode = config.get("pooling_mode", next((flag for flag in flags if flag.endswith("_token") or "_" in flag), None))
    if mode not in ("cls", "cls_token"):
        raise UnsupportedModelError(f"{name} pools by {mode!r}; supported is the state of the first token (cls)")


def _answers(folder: Path, name: str) -> tuple[int, int]:
    config = read_json(folder / "config.json", name)
    relevant, irrelevant = config.get("true_token_id"), config.get("false_token_id")
    if not isinstance(relevant, int) or not isinstance(irrelevant, int):
        raise UnsupportedModelError(f"{name} scores one answer alone; supported are two, such as yes and no")
    return relevant, irrelevant
