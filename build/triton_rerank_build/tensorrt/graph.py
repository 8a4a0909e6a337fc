"""Rewrite the installed graph of padded rows where TensorRT's ONNX parser cannot read it.

Two kinds of nodes are replaced, neither changes a logit:

- CumSum over INT32, with which the exporter counts positions. The parser documents CumSum for floats alone
  (docs/operators.md of onnx-tensorrt, 8.5 to 10.x), and where it has no layer for it, before 10.8, it unrolls a loop of
  `length` dependent steps. The same count is one fp32 product with a triangle of ones: `count[i] = sum(x[j], j <= i)`.
  Ones and zeros are exact in any float type, and their sums, 8,192 at most, in fp32.
- Shape with `start` and `end` (opset 15). Parsers of TensorRT 10 ignore both and give the whole shape. Every version
  reads Shape followed by Slice.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton_rerank_build.errors import BuildError
from triton_rerank_build.repository.layout import padded_graph

# An onnx.ModelProto or onnx.NodeProto; protobuf builds these classes at run time.
Proto = Any

GRAPH_FILE = "engine.onnx"


def prepare_graph(folder: Path) -> Path:
    """Write `engine.onnx` beside the padded graph; both refer to the same file of weights.

    It must lie beside it: onnx and ONNX Runtime read weights only from the graph's own folder, and follow no links.

    Returns:
        Its path.
    """
    import onnx

    model = onnx.load(str(padded_graph(folder)), load_external_data=False)
    rewrite_for_tensorrt(model)
    onnx.save(model, str(folder / GRAPH_FILE))
    return folder / GRAPH_FILE


def rewrite_for_tensorrt(model: Proto) -> dict[str, int]:
    """Replace, in place, every node that the parser cannot read.

    Returns:
        Number of replaced nodes by operator.

    Raises:
        BuildError: A CumSum does not run along the rows of a [num_pairs, length] tensor, or is exclusive or reverse.
    """
    return {"CumSum": _replace(model, "CumSum", _running_sum), "Shape": _replace(model, "Shape", _part_of_shape)}


def _replace(model: Proto, op_type: str, make: Callable[[Proto, Proto], list[Proto]]) -> int:
    """Replace every node of this type with the nodes that `make` returns; an empty list keeps the node."""
    replaced = 0
    for node in [node for node in model.graph.node if node.op_type == op_type]:
        if not (nodes := make(model, node)):
            continue
        index = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for offset, new in enumerate(nodes):
            model.graph.node.insert(index + offset, new)
        replaced += 1
    return replaced


def _running_sum(model: Proto, node: Proto) -> list[Proto]:
    """CumSum of INT32 [num_pairs, length] along its rows, as a product in fp32."""
    from onnx import TensorProto, helper

    attributes, axis = _attributes(node), _constant(model, node.input[1])
    if attributes.get("exclusive") or attributes.get("reverse") or axis not in (1, -1):
        raise BuildError(
            f"{node.name or 'CumSum'} sums along axis {axis} with {attributes}; expected axis 1, neither exclusive nor "
            "reverse: export the checkpoint again with this version"
        )
    summand, total = node.input[0], node.output[0]
    name = _names(model, total, zero=0, one=1, first=[0], second=[1])
    return [
        helper.make_node("Cast", [summand], [name("summand")], name("to_fp32"), to=TensorProto.FLOAT),
        helper.make_node("Shape", [summand], [name("shape")], name("get_shape")),
        helper.make_node("Gather", [name("shape"), name("one")], [name("length")], name("get_length"), axis=0),
        helper.make_node("Range", [name("zero"), name("length"), name("one")], [name("indices")], name("count")),
        helper.make_node("Unsqueeze", [name("indices"), name("second")], [name("rows")], name("as_rows")),
        helper.make_node("Unsqueeze", [name("indices"), name("first")], [name("columns")], name("as_columns")),
        helper.make_node("LessOrEqual", [name("rows"), name("columns")], [name("not_after")], name("compare")),
        helper.make_node("Cast", [name("not_after")], [name("triangle")], name("as_ones"), to=TensorProto.FLOAT),
        helper.make_node("MatMul", [name("summand"), name("triangle")], [name("sum")], name("multiply")),
        helper.make_node("Cast", [name("sum")], [total], name("to_int32"), to=TensorProto.INT32),
    ]


def _part_of_shape(model: Proto, node: Proto) -> list[Proto]:
    """Shape with `start` or `end` as Shape and Slice."""
    from onnx import helper

    attributes = _attributes(node)
    start, end = attributes.get("start", 0), attributes.get("end")
    if start == 0 and end is None:
        return []
    part = node.output[0]
    # Slice cuts an end beyond the rank, as Shape does.
    name = _names(model, part, start=[start], end=[2**31 - 1 if end is None else end], axis=[0])
    return [
        helper.make_node("Shape", list(node.input), [name("shape")], name("get_shape")),
        helper.make_node("Slice", [name(w) for w in ("shape", "start", "end", "axis")], [part], name("cut")),
    ]


def _attributes(node: Proto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(model: Proto, name: str) -> int | None:
    """The number that a constant holds; None where the value is computed."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == name:
            return int(numpy_helper.to_array(tensor).item())
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            return int(numpy_helper.to_array(_attributes(node)["value"]).item())
    return None


def _names(model: Proto, prefix: str, **constants: int | list[int]) -> Callable[[str], str]:
    """Add the constants to the graph, and return a function that puts a name below `prefix`."""
    import numpy as np
    from onnx import numpy_helper

    for what, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"{prefix}/{what}"))
    return lambda what: f"{prefix}/{what}"
