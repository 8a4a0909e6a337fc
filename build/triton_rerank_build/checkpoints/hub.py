"""Download a checkpoint from the Hugging Face hub and pin its commit."""

from pathlib import Path

from triton_rerank_build.errors import BuildError, UnsupportedModelError

_SMALL_FILES = [
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "artifact.metadata",
    "config_sentence_transformers.json",
    "modules.json",
    "*_*/*.json",  # folders of modules
]
_SAFETENSORS = ["*_*/model.safetensors", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]


def looks_like_hub_id(name: str) -> bool:
    """Whether `name` could be OWNER/NAME on the hub, rather than a mistyped path."""
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(name)  # type: ignore[attr-defined]  # public, but not listed in __all__
    except errors.HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith((".", "~"))


def download(name: str, revision: str | None, *, weights: bool = True) -> tuple[Path, str]:
    """Download the files that an export needs; an interrupted download resumes where it stopped.

    Args:
        name: OWNER/NAME.
        revision: Branch, tag or commit; the default branch if None.
        weights: Whether to download the weights too, not only the small files that describe them.

    Returns:
        The folder, and the commit of `revision`; from the cache of earlier downloads if the hub cannot be reached.

    Raises:
        UnsupportedModelError: The model or revision does not exist, or access is denied.
        BuildError: The hub cannot be reached, and the cache does not hold the model.
    """
    from huggingface_hub import errors

    try:
        folder = _snapshot(name, revision, _SMALL_FILES + (_SAFETENSORS if weights else []))
        # The name of a snapshot's folder is its commit.
        if weights and not list(folder.rglob("*.safetensors")):
            _snapshot(name, folder.name, _PICKLES)
    except errors.LocalEntryNotFoundError as error:
        raise BuildError(
            f"there is no folder {name}, and the Hugging Face hub cannot be reached (its cache lacks {name} too); "
            "name a local folder, or `demo`"
        ) from error
    except errors.GatedRepoError as error:
        raise UnsupportedModelError(f"{name} is gated: ask for access on the hub, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UnsupportedModelError(
            f"there is neither a folder {name} nor a model {name} on the hub, or it is private: `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnsupportedModelError(f"{name} has no revision {revision} on the hub") from error
    except Exception as error:  # whatever the hub's HTTP library raises when a connection breaks
        raise BuildError(
            f"the download of {name} was interrupted ({_first_line(error)}); run the command again to resume"
        ) from error
    return folder, folder.name


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
