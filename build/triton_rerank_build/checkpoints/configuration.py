"""What config.json and the small files beside it say of a checkpoint, and what they rule out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_rerank_build.checkpoints.families import DECODERS, ENCODERS, FAMILIES, MODERN, family_of
from triton_rerank_build.errors import UnsupportedModelError

# The special tokens of a pair, a short query and a few tokens of the document.
MIN_MAX_LENGTH = 16

# Ends of the class names of models that score a pair by the probability of a generated token.
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


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


def intermediate_size(config: Mapping[str, Any], family: str, name: str) -> int:
    """Width of a layer's widest state.

    Raises:
        UnsupportedModelError: It is not a number above 0.
    """
    facts = family_of(family)
    size = config.get(facts.intermediate_size, facts.intermediate_default)
    if not isinstance(size, int) or size < 1:
        raise UnsupportedModelError(f"config.json of {name} has no usable {facts.intermediate_size}")
    return size * facts.widest


def attention_heads(config: Mapping[str, Any]) -> int:
    """Attention heads of a layer: transformers' default for BERT where config.json does not say it."""
    given = config.get("num_attention_heads", config.get("n_heads"))
    return given if isinstance(given, int) and given > 0 else 12


def activation(folder: Path, config: Mapping[str, Any], name: str) -> str | None:
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


def check_network(config: Mapping[str, Any], name: str, *, late_interaction: bool) -> str:
    """The family of a network.

    Args:
        config: config.json.
        name: Of the checkpoint.
        late_interaction: Whether the encoder alone is wanted.

    Raises:
        UnsupportedModelError: The network is of another kind.
    """
    family = config.get("model_type")
    known = ENCODERS if late_interaction else FAMILIES
    if family not in DECODERS and any(architecture.endswith(_GENERATIVE) for architecture in _architectures(config)):
        raise UnsupportedModelError(
            f"{name} is a generative model ({_architectures(config)[0]}), whose prompt is not known; of this kind "
            f"Qwen3-Reranker is supported, otherwise cross-encoders of type {', '.join(known)}"
        )
    if family not in known and late_interaction:
        raise UnsupportedModelError(f"{name} is of type {family!r}; supported are {', '.join(known)}")
    if family not in known:
        _check_other(config, name)
    if family in DECODERS:
        _check_decoder(config, name)
    elif family in MODERN:
        _check_positions(config, name)
    elif config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise UnsupportedModelError(f"{name} has relative positions or a decoder; supported are plain encoders")
    return str(family)


def _check_other(config: Mapping[str, Any], name: str) -> None:
    """Whether transformers has a sequence classifier of this type, without code of the checkpoint's own."""
    family = config.get("model_type")
    if own := config.get("auto_map"):
        files = sorted({str(entry).partition(".")[0].rpartition("--")[2] for entry in dict(own).values()})
        raise UnsupportedModelError(
            f"{name} is of type {family!r} and brings code of its own ({', '.join(files)}.py, by auto_map of "
            "config.json), which is never executed; supported are networks that transformers has"
        )
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if family not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES or config.get("is_encoder_decoder"):
        raise UnsupportedModelError(
            f"{name} is of type {family!r}, of which transformers has no sequence classifier with an encoder alone; "
            f"supported are {', '.join(FAMILIES)}, and at fp32 others that transformers has"
        )


def _check_decoder(config: Mapping[str, Any], name: str) -> None:
    if config.get("use_sliding_window"):
        raise UnsupportedModelError(f"{name} attends in a sliding window; supported is attention to all tokens")
    _check_positions(config, name)


def _check_positions(config: Mapping[str, Any], name: str) -> None:
    positions = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = positions.get("rope_type", positions.get("type", "default"))
    if kind != "default":
        raise UnsupportedModelError(f"{name} stretches its positions ({kind}); supported are plain rotary positions")


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a decoder has its head over the vocabulary, rather than one of labels."""
    return any(architecture.endswith(_GENERATIVE) for architecture in _architectures(config))


def _architectures(config: Mapping[str, Any]) -> list[str]:
    return [str(architecture) for architecture in config.get("architectures") or []]


def relevant_label(config: Mapping[str, Any], name: str, asked: int | None) -> int | None:
    """Of a head with two labels, the one that stands for relevance: `asked`, by default 1. None if there is one label.

    A checkpoint that names no architecture is taken for a classifier: `load_model` finds out.

    Raises:
        UnsupportedModelError: The head has more labels, or the network has none; or `asked` is not one of two labels.
    """
    if is_causal(config):
        if asked is not None:
            raise UnsupportedModelError(f"{name} answers yes or no, so it has no label to choose")
        return None
    found = _architectures(config)
    if found and not any(architecture.endswith("ForSequenceClassification") for architecture in found):
        raise UnsupportedModelError(
            f"{name} is not a cross-encoder: expected a ...ForSequenceClassification architecture, found "
            f"{', '.join(found)}; --late-interaction exports its encoder"
        )
    # The rule of transformers: id2label if present, otherwise num_labels, otherwise two.
    num_labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if num_labels not in (1, 2):
        raise UnsupportedModelError(f"{name} gives {num_labels} logits per pair; a reranker gives 1, or 2: no and yes")
    if num_labels == 1:
        if asked is not None:
            raise UnsupportedModelError(f"{name} gives one logit per pair, so it has no label to choose")
        return None
    label = 1 if asked is None else asked
    if label not in (0, 1):
        raise UnsupportedModelError(f"{name} has the labels 0 and 1, so label {label} cannot stand for relevance")
    return label


def limit(folder: Path, config: Mapping[str, Any], family: str, name: str) -> int:
    """Tokens of the longest pair.

    Raises:
        UnsupportedModelError: config.json does not say it, or no pair fits.
    """
    try:
        most = family_of(family).limit(config)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"config.json of {name} has no usable {error}") from error
    said = _tokenizer_limit(folder)
    # transformers writes 10**30 for a tokenizer without a limit.
    most = min(most, said) if said >= MIN_MAX_LENGTH else most
    if most < MIN_MAX_LENGTH:
        raise UnsupportedModelError(f"{name} takes {most} tokens; a pair needs at least {MIN_MAX_LENGTH}")
    return most


def _tokenizer_limit(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    said = read_json(path, folder.name).get("model_max_length") if path.is_file() else None
    return int(said) if isinstance(said, int | float) else 0
