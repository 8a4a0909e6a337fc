"""The head of a checkpoint that is saved as modules of sentence-transformers: Dense and LayerNorm."""

from pathlib import Path

import torch
from torch import nn

from triton_rerank_build.checkpoints.configuration import read_json
from triton_rerank_build.checkpoints.modules import Module
from triton_rerank_build.errors import UnsupportedModelError

# By the last name of the class that a Dense module names. Nothing that a checkpoint names is ever executed.
_ACTIVATIONS = {kind.__name__: kind for kind in (nn.Identity, nn.GELU, nn.Tanh, nn.ReLU, nn.SiLU)}


def load_head(modules: tuple[Module, ...], name: str) -> list[nn.Module]:
    """The modules as layers of PyTorch, fp32.

    Raises:
        UnsupportedModelError: A module cannot be read or exported, or the last one gives more than one logit.
    """
    layers = [layer for module in modules for layer in _layers(module, name)]
    last = next(layer for layer in reversed(layers) if isinstance(layer, nn.Linear))
    if last.out_features != 1:
        raise UnsupportedModelError(f"{name} gives {last.out_features} logits per pair; a reranker gives exactly 1")
    return layers


def _layers(module: Module, name: str) -> list[nn.Module]:
    config = read_json(module.folder / "config.json", name)
    weights = _weights(module.folder, name)
    try:
        if module.kind == "LayerNorm":
            norm = nn.LayerNorm(config["dimension"])
            norm.load_state_dict({key.removeprefix("norm."): value for key, value in weights.items()})
            return [norm.requires_grad_(requires_grad=False)]
        activation = _activation(config, name)
        linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise UnsupportedModelError(f"{module.folder.name} of {name} cannot be read: {error}") from error
    linear.requires_grad_(requires_grad=False)
    return [linear] if isinstance(activation, nn.Identity) else [linear, activation]


def _activation(config: dict[str, object], name: str) -> nn.Module:
    said = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if said not in _ACTIVATIONS or config.get("use_residual"):
        found = "a residual" if config.get("use_residual") else f"the activation {said}"
        raise UnsupportedModelError(f"a Dense module of {name} has {found}; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[said]()


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    whole, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if whole.is_file():
            return {key: value.float() for key, value in load_file(whole).items()}
        loaded = torch.load(pickled, map_location="cpu", weights_only=True)
        return {key: value.float() for key, value in loaded.items()}
    except Exception as error:  # of safetensors, torch and pickle
        raise UnsupportedModelError(f"the weights in {folder.name} of {name} cannot be loaded: {error}") from error
