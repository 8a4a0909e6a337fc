"""Load a checkpoint's weights into transformers' own network, in fp32."""

from typing import TYPE_CHECKING, Any

from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import UnsupportedModelError

if TYPE_CHECKING:
    from triton_rerank_build.graphs.encoder_parts import HfModule

# What training frameworks leave before every name: DistributedDataParallel, a wrapper that holds the network.
_WRAPPERS = ("module.", "model.")


def load_model(checkpoint: Checkpoint, attention: str = "sdpa") -> "HfModule":
    """The checkpoint in PyTorch, fp32, ready for inference.

    Args:
        checkpoint: Whose weights are read.
        attention: transformers' implementation of attention.

    Raises:
        UnsupportedModelError: The weights cannot be read, or some are missing.
    """
    from transformers import AutoModelForSequenceClassification

    return _checked(checkpoint, AutoModelForSequenceClassification, attention)


def load_base(checkpoint: Checkpoint) -> "HfModule":
    """A network without a head in PyTorch, fp32.

    Raises:
        UnsupportedModelError: The weights cannot be read, or some are missing.
    """
    from transformers import AutoModel

    return _checked(checkpoint, AutoModel)


def load_language_model(checkpoint: Checkpoint) -> "HfModule":
    """A language model in PyTorch, fp32, with its head over the vocabulary.

    Raises:
        UnsupportedModelError: The weights cannot be read, or some are missing.
    """
    from transformers import AutoModelForCausalLM

    return _checked(checkpoint, AutoModelForCausalLM)


def _checked(checkpoint: Checkpoint, auto_class: Any, attention: str = "sdpa") -> "HfModule":  # noqa: ANN401
    model, report = _load(checkpoint, auto_class, attn_implementation=attention)
    if report["missing_keys"] and (wrapper := _wrapper(report["unexpected_keys"])):
        model, report = _load(checkpoint, auto_class, attn_implementation=attention, key_mapping={f"^{wrapper}": ""})
    # transformers fills missing weights with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise UnsupportedModelError(f"{checkpoint.name} lacks {len(missing)} weights, among them {missing[0]}")
    return model.eval()


def _load(checkpoint: Checkpoint, auto_class: Any, **options: Any) -> "tuple[HfModule, dict[str, Any]]":  # noqa: ANN401
    import torch

    try:
        loaded: tuple[HfModule, dict[str, Any]] = auto_class.from_pretrained(
            str(checkpoint.folder),
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # of many libraries: json, safetensors, torch, transformers
        raise UnsupportedModelError(f"the weights of {checkpoint.name} cannot be loaded: {error}") from error
    return loaded


def _wrapper(names: list[str]) -> str | None:
    """What stands before every name of weights that the network does not know."""
    return next((wrapper for wrapper in _WRAPPERS if names and all(name.startswith(wrapper) for name in names)), None)
