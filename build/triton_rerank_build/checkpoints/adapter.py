"""What of a network is trained, a LoRA by peft or its own weights, and the checkpoint that comes of it."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import BuildError
from triton_rerank_build.support.files import let_all_read

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def trainable(network: Any, lora_rank: int, freeze_layers: int, dropout: float, bf16: bool) -> Any:  # noqa: ANN401
    """The network with gradients for what is to be trained alone.

    Args:
        network: A classifier of transformers.
        lora_rank: Rank of an update of every matrix of the layers, beside the whole classifier; 0 trains all weights.
        freeze_layers: The lowest layers, and with them the embeddings, that stay as they are.
        dropout: Share of the activations that is dropped.
        bf16: Hold the weights that are not trained in bf16. The trained ones stay fp32: bf16 loses small updates.

    Raises:
        BuildError: The network has no more layers than are to be frozen.
    """
    from torch.nn import Dropout

    if freeze_layers >= (layers := network.config.num_hidden_layers):
        raise BuildError(f"freeze_layers is {freeze_layers}; the checkpoint has {layers} layers")
    for module in network.modules():
        if isinstance(module, Dropout):
            module.p = dropout
    if lora_rank:
        network = _with_lora(network, lora_rank, range(freeze_layers, layers))
    elif freeze_layers:
        encoder = network.base_model
        for part in (encoder.embeddings, *encoder.encoder.layer[:freeze_layers]):
            part.requires_grad_(False)
    for parameter in network.parameters():
        if bf16 and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return network


def merged(network: Any, adapter: Path) -> Any:  # noqa: ANN401
    """The network with an adapter's update in its weights."""
    from peft import PeftModel

    with _renamed_property():
        return PeftModel.from_pretrained(network, adapter).merge_and_unload()


def write_checkpoint(network: Any, source: Checkpoint, folder: Path) -> None:  # noqa: ANN401
    """Write a network as a checkpoint that `export` takes, with the tokenizer of the one it was made of.

    Args:
        network: Of transformers, or with a LoRA: the update goes into the weights, and beside them into `adapter`.
        source: The checkpoint that the network was made of.
        folder: Made if it is not there.
    """
    if hasattr(network, "merge_and_unload"):
        network.peft_config["default"].base_model_name_or_path = source.name
        # No look at the hub for what the vocabulary was: it is never changed here.
        network.save_pretrained(folder / "adapter", save_embedding_layers=False)
        network = network.merge_and_unload()
    network.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    let_all_read([*folder.glob("model*.safetensors"), *folder.glob("adapter/*.safetensors")])


def _with_lora(network: Any, rank: int, layers: range) -> Any:  # noqa: ANN401
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["query", "key", "value", "dense"],
        layers_to_transform=list(layers) if layers.start else None,
        layers_pattern="layer" if layers.start else None,
        exclude_modules=["classifier.*"],
        modules_to_save=["classifier"],  # the head is small and the first to change: it is trained whole
        task_type="SEQ_CLS",
    )
    with _renamed_property():
        return get_peft_model(network, config)


@contextmanager
def _renamed_property() -> Iterator[None]:
    """Silence that peft asks transformers for a property under its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield
