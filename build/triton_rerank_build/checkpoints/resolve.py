"""Find a checkpoint, and refuse an unsupported one before its weights are loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

from triton_rerank_build.checkpoints.configuration import (
    MIN_MAX_LENGTH,
    activation,
    attention_heads,
    check_network,
    intermediate_size,
    is_causal,
    limit,
    read_json,
    relevant_label,
)
from triton_rerank_build.checkpoints.families import ENCODERS, FAMILIES, MODERN, family_of
from triton_rerank_build.checkpoints.hub import download, looks_like_hub_id
from triton_rerank_build.checkpoints.modules import Module, read_modules
from triton_rerank_build.errors import UnsupportedModelError
from triton_rerank_build.support.files import sha256_file, sha256_texts

DEMO = "demo"
DEMO_LATE = "demo-late"
COLBERT_FILE = "artifact.metadata"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that passed every check that needs no weights.

    Attributes:
        name: A hub id, `demo`, or the name of a local folder.
        folder: The folder with its files.
        revision: The hub's commit, or a digest of the folder's files.
        family: One of `families.FAMILIES`.
        limit: Longest pair in tokens, or longest text in late interaction, that the checkpoint supports.
        late_interaction: Whether to export the encoder of texts rather than the cross-encoder.
        colbert: Whether it is a ColBERT checkpoint, with a projection and `COLBERT_FILE`.
        activation: Name of the function of logits that the configuration names for sentence-transformers, such as
            "Identity"; None if it names none.
        intermediate_size: Width of a layer's widest state, that of the feed-forward network.
        relevant: Of a head with two labels, the one that stands for relevance; None if it has one.
        causal: Whether the head is that of a language model, over the vocabulary.
        pad_token_id: Fills a row.
        answers: Tokens of a language model's two answers, as modules of sentence-transformers name them: relevant, not.
        num_heads: Attention heads of a layer.
        head: Modules of sentence-transformers in place of a classifier.
    """

    name: str
    folder: Path
    revision: str
    family: str
    limit: int
    late_interaction: bool = False
    colbert: bool = False
    activation: str | None = None
    intermediate_size: int = 3072
    relevant: int | None = None
    causal: bool = False
    pad_token_id: int = 0
    answers: tuple[int, int] | None = None
    num_heads: int = 12
    head: tuple[Module, ...] = ()

    @property
    def padded_heads(self) -> int | None:
        """Attention heads, of a network without a packed graph for GPUs; None if it has one."""
        return None if self.family in ENCODERS else self.num_heads

    @property
    def others_network(self) -> bool:
        """Whether transformers' own forward is exported, for want of a network of this project's."""
        return self.family not in FAMILIES

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


def resolve_checkpoint(
    name: str, revision: str | None = None, *, late_interaction: bool = False, label: int | None = None
) -> Checkpoint:
    """Find `name`, download it if needed, and check its configuration, tokenizer and list of weight files.

    Args:
        name: A local folder, an id on the Hugging Face hub, `demo` or `demo-late`.
        revision: Branch, tag or commit on the hub; the result holds its commit.
        late_interaction: Export the encoder of any checkpoint; of a ColBERT checkpoint it is always exported.
        label: Of a head with two labels, the one that stands for relevance; 1 if None.

    Raises:
        UnsupportedModelError: It does not exist, or is not a supported cross-encoder.
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
        return inspect_folder(folder, name=called, late_interaction=late_interaction, label=label)
    # Refused before the weights are downloaded.
    folder, commit = download(name, revision, weights=False)
    look(folder, name, late_interaction=late_interaction, label=label)
    folder, commit = download(name, commit)
    return inspect_folder(folder, name=name, revision=commit, late_interaction=late_interaction, label=label)


def inspect_folder(
    folder: Path,
    *,
    name: str,
    revision: str | None = None,
    late_interaction: bool = False,
    label: int | None = None,
) -> Checkpoint:
    """Check a folder's configuration, tokenizer and weight files, without reading the weights.

    Args:
        folder: Of the checkpoint.
        name: Name of the checkpoint in messages and in the manifest.
        revision: The hub's commit; a digest of the files if None.
        late_interaction: See `resolve_checkpoint`.
        label: Likewise.

    Raises:
        UnsupportedModelError: The checkpoint cannot be exported; the message says why.
    """
    seen = look(folder, name, late_interaction=late_interaction, label=label)
    weights = _weight_files(seen.folder, name)
    if revision is None:
        small = [seen.folder / name for name in ("config.json", "tokenizer.json")]
        small += [folder / COLBERT_FILE] if seen.colbert else []
        revision = _digest([*small, *weights, *(path for module in seen.head for path in module.files)])
    return replace(seen, revision=revision)


def look_up(name: str, revision: str | None = None) -> Checkpoint:
    """Find `name` and check its configuration and tokenizer; of the hub's files only small ones are downloaded.

    Args:
        name: A local folder, or an id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        UnsupportedModelError: It does not exist, or cannot be exported.
        BuildError: A download failed.
    """
    folder = Path(name).expanduser()
    if not folder.exists() and looks_like_hub_id(name):
        folder, _ = download(name, revision, weights=False)
        return look(folder, name)
    _require_folder(folder)
    return look(folder, name)


def look(folder: Path, name: str, *, late_interaction: bool = False, label: int | None = None) -> Checkpoint:
    """Check a folder's configuration and tokenizer; it needs no weights.

    Args:
        folder: Of the checkpoint.
        name: Likewise.
        late_interaction: See `resolve_checkpoint`.
        label: Likewise.

    Returns:
        The checkpoint, without a revision.

    Raises:
        UnsupportedModelError: The checkpoint cannot be exported; the message says why.
    """
    _check_kind(folder, name)
    colbert = (folder / COLBERT_FILE).is_file()
    late_interaction = late_interaction or colbert
    modules = read_modules(folder, name, late_interaction=late_interaction)
    folder = modules.transformer
    config = read_json(folder / "config.json", name)
    family = check_network(config, name, late_interaction=late_interaction)
    if modules.head and family not in MODERN:
        raise UnsupportedModelError(f"{name} is of type {family!r}; modules are supported for {', '.join(MODERN)}")
    headless = late_interaction or bool(modules.head)
    relevant = None if headless else relevant_label(config, name, label)
    _check_tokenizer(folder, name)
    return Checkpoint(
        name=name,
        folder=folder,
        revision="",
        family=family,
        limit=limit(folder, config, family, name),
        late_interaction=late_interaction,
        colbert=colbert,
        activation=activation(folder, config, name),
        intermediate_size=intermediate_size(config, family, name),
        relevant=relevant,
        causal=is_causal(config),
        pad_token_id=family_of(family).padding(config),
        answers=modules.answers,
        num_heads=attention_heads(config),
        head=modules.head,
    )


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


def _digest(files: list[Path]) -> str:
    return sha256_texts([text for path in files for text in (path.name, sha256_file(path))])
