"""Write the ONNX file of a checkpoint, with dynamic batch size and length, and one file of weights beside it."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.contract import INPUT_NAMES, IR_VERSION, MODEL_FILE, OPSET, OUTPUT_NAME, WEIGHTS_FILE
from triton_rerank_build.errors import BuildError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx_ir
    from torch.nn import Module
    from torch.onnx import ONNXProgram

    from triton_rerank_build.graphs.cross_encoder import HfModule


def load_model(checkpoint: Checkpoint) -> "HfModule":
    """The checkpoint in PyTorch, fp32, ready for inference.

    Raises:
        UnsupportedModelError: The weights cannot be read, or some are missing.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(checkpoint.folder), dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    except Exception as error:  # of many libraries: json, safetensors, torch, transformers
        raise UnsupportedModelError(f"the weights of {checkpoint.name} cannot be loaded: {error}") from error
    # transformers fills missing weights with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise UnsupportedModelError(f"{checkpoint.name} lacks {len(missing)} weights, among them {missing[0]}")
    return model.eval()


def export_onnx(model: "HfModule", folder: Path, *, precision: str, max_length: int, token_types: bool) -> Path:
    """Write `model.onnx` and `model.onnx.data` into `folder`.

    Args:
        model: From `load_model`; unusable afterwards, since its weights are moved into the graph.
        folder: An empty folder.
        precision: Of the weights and matrix products, one of `PRECISIONS`; inputs and outputs never change.
        max_length: Longest row that the graph accepts.
        token_types: Whether `attention_mask` carries token types (see `RerankGraph`).

    Returns:
        The path of `model.onnx`.
    """
    import torch

    from triton_rerank_build.graphs.cross_encoder import RerankGraph

    graph = RerankGraph(
        model,
        dtype=torch.float16 if precision == "fp16" else torch.float32,
        token_types=token_types,
    ).eval()
    return write_graph(graph, folder, max_length=max_length, output_name=OUTPUT_NAME, int8=precision == "int8")


def write_graph(graph: "Module", folder: Path, *, max_length: int, output_name: str, int8: bool = False) -> Path:
    """Write a network that takes `INPUT_NAMES` as `model.onnx` and `model.onnx.data` into `folder`.

    Args:
        graph: One output from [num_rows, length] int32, twice.
        folder: An empty folder.
        max_length: Longest row that the graph accepts.
        output_name: Name of the graph's output.
        int8: Quantize the weights (see `quantize`).

    Returns:
        The path of `model.onnx`.
    """
    import onnx_ir

    from triton_rerank_build.graphs.quantize import quantize_weights

    program = _trace(graph, max_length, output_name)
    _strip_traces(program.model)
    program.model.ir_version = IR_VERSION
    if int8:
        quantize_weights(program.model)
    path = folder / MODEL_FILE
    onnx_ir.save(program.model, path, external_data=WEIGHTS_FILE)
    # The exporter's global rewrite rules keep a reference to the last graph; drop its weights.
    for value in program.model.graph.initializers.values():
        value.const_value = None
    return path


def _trace(graph: "Module", max_length: int, output_name: str) -> "ONNXProgram":
    import torch

    num_pairs, length = torch.export.Dim("num_pairs"), torch.export.Dim("length", max=max_length)
    # Not 1 x 1: torch treats sizes of 0 and 1 as constants.
    example = torch.ones(2, 8, dtype=torch.int32)
    # It warns once per process that torchvision, which is not used, is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter uses deprecated functions of its own, and warns that both inputs share their axes.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        program = torch.onnx.export(
            graph,
            (example, example.clone()),
            dynamo=True,
            input_names=list(INPUT_NAMES),
            output_names=[output_name],
            dynamic_shapes=({0: num_pairs, 1: length}, {0: num_pairs, 1: length}),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise BuildError("torch.onnx.export returned no program")
    return program


def _strip_traces(model: "onnx_ir.Model") -> None:
    """Drop the exporter's metadata: half a megabyte of stack traces with paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
