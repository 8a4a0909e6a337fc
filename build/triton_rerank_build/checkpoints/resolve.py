"""Find a checkpoint, and refuse an unsupported one before its weights are loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank_build.checkpoints.hub import download, looks_like_hub_id
from triton_rerank_build.errors import UnsupportedModelError
from triton_rerank_build.support.files import sha256_file, sha256_texts

DEMO = "demo"
DEMO_LATE = "demo-late"
COLBERT_FILE = "artifact.metadata"
FAMILIES = ("bert", "roberta", "xlm-roberta")
# The special tokens of a pair, a short query and a few tokens of the document.
MIN_MAX_LENGTH = 16
# What transformers takes for a BERT, RoBERTa or XLM-R whose config.json does not say it.
_INTERMEDIATE_SIZE = 3072

# Ends of the class names of models that score a pair by the probability of a generated token.
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that passed every check that needs no weights.

    Attributes:
        name: A hub id, `demo`, or the name of a local folder.
        folder: The folder with its files.
        revision: The hub's commit, or a digest of the folder's files.
        family: One of `FAMILIES`.
        limit: Longest pair in tokens, or longest text in late interaction, that the checkpoint supports.
        late_interaction: Whether to export the encoder of texts rather than the cross-encoder.
        colbert: Whether it is a ColBERT checkpoint, with a projection and `COLBERT_FILE`.
        activation: Name of the function of logits that the configuration names for sentence-transformers, such as
            "Identity"; None if it names none.
        intermediate_size: Width of a layer's widest state, that of the feed-forward network.
    """

    name: str
    folder: Path
    revision: str
    family: str
    limit: int
    late_interaction: bool = False
    colbert: bool = False
    activation: str | None = None
    intermediate_size: int = _INTERMEDIATE_SIZE

    def resolve_max_length(self, requested: int | None) -> int:
        """The length to export for.

        Raises:
            UnsupportedModelError: `requested` is beyond the checkpoint's limit, or too short to hold a pair.
        """
        if requested is None:
            return self.limit
        if not MIN_MAX_LENGTH <= requested <= self.limit:
            raise UnsupportedModelError(
                f"max_length {requested} is out of range: {self.name} takes {MIN_MAX_LENGTH} to {self.limit} tokens"
            )
        return requested


def resolve_checkpoint(name: str, revision: str | None = None, *, late_interaction: bool = False) -> Checkpoint:
    """Find `name`, download it if needed, and check its configuration, tokenizer and list of weight files.

    Args:
        name: A local folder, an id on the Hugging Face hub, `demo` or `demo-late`.
        revision: Branch, tag or commit on the hub; the result holds its commit.
        late_interaction: Export the encoder of any checkpoint; of a ColBERT checkpoint it is always exported.

    Raises:
        UnsupportedModelError: It does not exist, or is not a one-logit BERT / RoBERTa / XLM-R classifier.
        BuildError: A download failed.
    """
    if name == DEMO_LATE or (name == DEMO and late_interaction):
        from triton_rerank_build.checkpoints.demo import demo_late_checkpoint, demo_late_revision

        folder = demo_late_checkpoint()
        return inspect_folder(folder, name=DEMO_LATE, revision=demo_late_revision(), late_interaction=True)
    if name == DEMO:
        from triton_rerank_build.checkpoints.demo import demo_checkpoint, demo_revision

        return inspect_folder(demo_checkpoint(), name=name, revision=demo_revision())
    folder = Path(name).expanduser()
    if folder.exists() or not looks_like_hub_id(name):
        _require_folder(folder)
        own = folder.resolve().name
        # A name of our own would let `export` replace it without --force as the demo of an earlier release.
        called = f"./{own}" if own in (DEMO, DEMO_LATE) else own
        return inspect_folder(folder, name=called, late_interaction=late_interaction)
    folder, commit = download(name, revision)
    return inspect_folder(folder, name=name, revision=commit, late_interaction=late_interaction)


def inspect_folder(
    folder: Path, *, name: str, revision: str | None = None, late_interaction: bool = False
) -> Checkpoint:
    """Check a folder's configuration, tokenizer and weight files, without reading the weights.

    Args:
        folder: Of the checkpoint.
        name: Name of the checkpoint in messages and in the manifest.
        revision: The hub's commit; a digest of the files if None.
        late_interaction: See `resolve_checkpoint`.

    Raises:
        UnsupportedModelError: The checkpoint cannot be exported; the message says why.
    """
    _check_kind(folder, name)
    config = read_json(folder / "config.json", name)
    family = _check_encoder(config, name)
    colbert = (folder / COLBERT_FILE).is_file()
    late_interaction = late_interaction or colbert
    if not late_interaction:
        _check_one_logit(config, name)
    _check_tokenizer(folder, name)
    weights = _weight_files(folder, name)
    if revision is None:
        small = [folder / name for name in ("config.json", "tokenizer.json", *([COLBERT_FILE] if colbert else []))]
        revision = _digest([*small, *weights])
    limit = _limit(folder, config, family, name)
    return Checkpoint(
        name,
        folder,
        revision,
        family,
        limit,
        late_interaction,
        colbert,
        _activation(folder, config, name),
        _intermediate_size(config, name),
    )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """One JSON object of a checkpoint.

    Raises:
        UnsupportedModelError: The file is missing, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(f"{name} has no {path.name}: it is not a Hugging Face checkpoint") from error
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path.name} of {name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path.name} of {name} is not a JSON object")
    return content


def _intermediate_size(config: Mapping[str, Any], name: str) -> int:
    size = config.get("intermediate_size", _INTERMEDIATE_SIZE)
    if not isinstance(size, int) or size < 1:
        raise UnsupportedModelError(f"config.json of {name} has no usable intermediate_size")
    return size


def _activation(folder: Path, config: Mapping[str, Any], name: str) -> str | None:
    """The last name of the activation's path, which sentence-transformers has kept in three places.

    `sentence_transformers.activation_fn` of config.json since release 4, `sbert_ce_default_activation_function` there
    before, and `activation_fn` of config_sentence_transformers.json since release 6.
    """
    beside = folder / "config_sentence_transformers.json"
    settings = config.get("sentence_transformers")
    paths = (
        (read_json(beside, name) if beside.is_file() else {}).get("activation_fn"),
        settings.get("activation_fn") if isinstance(settings, Mapping) else None,
        config.get("sbert_ce_default_activation_function"),
    )
    path = next((path for path in paths if isinstance(path, str) and path), None)
    return path.rpartition(".")[2] if path else None


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise UnsupportedModelError(f"{folder}: no such folder; a model on the Hugging Face hub is named OWNER/NAME")
    if not folder.is_dir():
        raise UnsupportedModelError(f"{folder} is a file; give the folder of the checkpoint that holds config.json")


def _check_kind(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{name} is a LoRA adapter without its base model; merge the two first: "
            "`AutoPeftModelForSequenceClassification.from_pretrained(ADAPTER, num_labels=1).merge_and_unload()"
            ".save_pretrained(FOLDER)` of peft, then copy the tokenizer files of the base model into FOLDER"
        )


def _check_encoder(config: Mapping[str, Any], name: str) -> str:
    family = config.get("model_type")
    architectures = [str(architecture) for architecture in config.get("architectures") or []]
    if any(architecture.endswith(_GENERATIVE) for architecture in architectures):
        raise UnsupportedModelError(
            f"{name} is a generative model ({architectures[0]}); rerankers of this kind, such as Qwen3-Reranker and "
            f"bge-reranker-v2-gemma, are not supported; supported are cross-encoders of type {', '.join(FAMILIES)}"
        )
    if family not in FAMILIES:
        raise UnsupportedModelError(f"{name} is of type {family!r}; supported are {', '.join(FAMILIES)}")
    if not isinstance(config.get("pad_token_id"), int):
        raise UnsupportedModelError(f"config.json of {name} has no pad_token_id")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise UnsupportedModelError(f"{name} has relative positions or a decoder; supported are plain encoders")
    return str(family)


def _check_one_logit(config: Mapping[str, Any], name: str) -> None:
    architectures = config.get("architectures") or []
    if not any(str(architecture).endswith("ForSequenceClassification") for architecture in architectures):
        found = ", ".join(map(str, architectures)) or "none"
        raise UnsupportedModelError(
            f"{name} is not a cross-encoder: expected a ...ForSequenceClassification architecture, found {found}; "
            "--late-interaction exports its encoder"
        )
    # The rule of transformers: id2label if present, otherwise num_labels, otherwise two.
    num_labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if num_labels != 1:
        raise UnsupportedModelError(f"{name} gives {num_labels} logits per pair; a reranker gives exactly 1")


def _check_tokenizer(folder: Path, name: str) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            f"{name} has no tokenizer.json; make one with "
            "`AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)` of transformers"
        )


def _weight_files(folder: Path, name: str) -> list[Path]:
    """All weight files: safetensors if there are any, otherwise PyTorch's own format."""
    for whole, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            shards = sorted({str(shard) for shard in read_json(folder / index, name).get("weight_map", {}).values()})
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing or not shards:
                raise UnsupportedModelError(f"{name} lacks {', '.join(missing) or 'the shards'} named in {index}")
            return [folder / shard for shard in shards]
    raise UnsupportedModelError(f"{name} has no weights: neither model.safetensors nor pytorch_model.bin")


def _limit(folder: Path, config: Mapping[str, Any], family: str, name: str) -> int:
    try:
        limit = int(config["max_position_embeddings"])
        if family != "bert":
            # Positions start at pad_token_id + 1; the rows below are never used.
            limit -= int(config["pad_token_id"]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"config.json of {name} has no usable {error}") from error
    said = _tokenizer_limit(folder)
    # transformers writes 10**30 for a tokenizer without a limit.
    limit = min(limit, said) if said >= MIN_MAX_LENGTH else limit
    if limit < MIN_MAX_LENGTH:
        raise UnsupportedModelError(f"{name} takes {limit} tokens; a pair needs at least {MIN_MAX_LENGTH}")
    return limit


def _tokenizer_limit(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    said = read_json(path, folder.name).get("model_max_length") if path.is_file() else None
    return int(said) if isinstance(said, int | float) else 0


def _digest(files: list[Path]) -> str:
    return sha256_texts([text for path in files for text in (path.name, sha256_file(path))])
