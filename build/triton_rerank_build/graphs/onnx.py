"""Write the ONNX files of a checkpoint, with dynamic batch size and length, and one file of weights beside them."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank_build.contract import (
    INPUT_NAMES,
    IR_VERSION,
    MODEL_FILE,
    OPSET,
    OUTPUT_NAME,
    PACKED_INPUT_NAMES,
    PADDED_FILE,
    REFERENCE_FILE,
    WEIGHTS_FILE,
)
from triton_rerank_build.errors import BuildError
from triton_rerank_build.graphs.reference import write_reference

if TYPE_CHECKING:
    import onnx_ir
    import torch
    from torch.nn import Module


# Of a tensor that the packed graph has for itself: a vector of 8,192 numbers in fp16.
_MOST_OWN_BYTES = 2**14


def export_onnx(graph: "Module", folder: Path, *, precision: str, max_length: int) -> Path:
    """Write the graphs of a network, and `WEIGHTS_FILE`, into `folder`.

    At fp16 `MODEL_FILE` takes rows of any lengths end to end: the packed graph, with `REFERENCE_FILE` beside it, where
    the network has one, otherwise the padded graph behind an index. `PADDED_FILE` is beside it. At other precisions
    `MODEL_FILE` is the padded graph.

    Args:
        graph: The network of padded rows, with weights of the precision's type.
        folder: An empty folder.
        precision: Of the weights and matrix products, one of `PRECISIONS`; inputs and outputs never change.
        max_length: Longest row that the padded graph accepts.

    Returns:
        The path of `MODEL_FILE`.
    """
    from triton_rerank_build.graphs.cross_encoder import RerankGraph
    from triton_rerank_build.graphs.packed import PackedGraph
    from triton_rerank_build.graphs.padded_rows import PaddedRows

    padded = folder / (PADDED_FILE if precision == "fp16" else MODEL_FILE)
    write_graph(graph, padded, max_length=max_length, output_name=OUTPUT_NAME, int8=precision == "int8")
    if precision == "fp16" and isinstance(graph, RerankGraph):
        write_packed(PackedGraph(graph), folder / MODEL_FILE, weights_of=padded)
        write_reference(folder / MODEL_FILE, folder / REFERENCE_FILE)
    elif precision == "fp16":
        write_packed(PaddedRows(graph), folder / MODEL_FILE, weights_of=padded)
    return folder / MODEL_FILE


def write_graph(graph: "Module", path: Path, *, max_length: int, output_name: str, int8: bool = False) -> None:
    """Write a network that takes `INPUT_NAMES`, padded rows, and its file of weights, `WEIGHTS_FILE`.

    Args:
        graph: One output from [num_rows, length] int32, twice.
        path: The graph's file, in a folder without weights.
        max_length: Longest row that the graph accepts.
        output_name: Name of the graph's output.
        int8: Quantize the weights (see `quantize`).
    """
    import onnx_ir
    import torch

    from triton_rerank_build.graphs.quantize import quantize_weights

    axes = {0: torch.export.Dim("num_pairs"), 1: torch.export.Dim("length", max=max_length)}
    # Not 1 x 1: torch treats sizes of 0 and 1 as constants.
    example = torch.ones(2, 8, dtype=torch.int32)
    model = _trace(graph, (example, example.clone()), INPUT_NAMES, output_name, (axes, axes))
    if int8:
        quantize_weights(model)
    onnx_ir.save(model, path, external_data=WEIGHTS_FILE)
    _drop_weights(model)


def write_packed(graph: "Module", path: Path, *, weights_of: Path) -> None:
    """Write a graph of rows end to end beside a padded one, over the same file of weights.

    Args:
        graph: `PackedGraph`, or `PaddedRows`.
        path: The graph's file.
        weights_of: The padded graph's file, in the same folder.

    Raises:
        BuildError: The packed graph has a large tensor that the file of weights lacks.
    """
    import onnx_ir
    import torch

    from triton_rerank_build.graphs.padded_rows import INNER

    elements, num_pairs = {0: torch.export.Dim("num_elements")}, {0: torch.export.Dim("num_pairs")}
    row_length = torch.tensor([[5], [3], [8]], dtype=torch.int32)
    example = torch.ones(int(row_length.sum()), dtype=torch.int32)
    model = _trace(
        graph.eval(),
        (example, example.clone(), row_length),
        PACKED_INPUT_NAMES,
        OUTPUT_NAME,
        (elements, elements, num_pairs),
    )
    written = onnx_ir.load(weights_of).graph.initializers
    parameters = dict(graph.named_parameters())
    for name, value in model.graph.initializers.items():
        # The same parameter has the same name, which says nothing of the exporter's own constants. What is small, and
        # LayerNorm's vectors in fp16, which the packed graph alone has, `save` writes into the graph itself.
        inner = name.removeprefix(INNER)
        shared = written[inner].const_value if inner in written and name in parameters else None
        if isinstance(shared, onnx_ir.ExternalTensor):
            value.const_value = shared
        elif value.const_value is not None and value.const_value.nbytes > _MOST_OWN_BYTES:
            raise BuildError(f"the padded graph has no weights {name}, which the packed graph needs")
    onnx_ir.save(model, path)
    _drop_weights(model)


def _drop_weights(model: "onnx_ir.Model") -> None:
    """Let go of the weights: the exporter's global rewrite rules keep a reference to the last graph."""
    for value in model.graph.initializers.values():
        value.const_value = None


def _trace(
    graph: "Module",
    example: tuple["torch.Tensor", ...],
    input_names: Sequence[str],
    output_name: str,
    dynamic_shapes: tuple[Mapping[int, Any], ...],
) -> "onnx_ir.Model":
    import torch

    # It warns once per process that torchvision, which is not used, is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter uses deprecated functions of its own, and warns that inputs share their axes.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            input_names=list(input_names),
            output_names=[output_name],
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise BuildError("torch.onnx.export returned no program")
    _strip_traces(program.model)
    program.model.ir_version = IR_VERSION
    return program.model


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
