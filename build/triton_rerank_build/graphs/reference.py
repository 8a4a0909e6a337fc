"""The packed graph for CPUs, which have no kernel for PackedMultiHeadAttention: the same graph over the same weights.

Two things differ: the domain of the attention nodes, and one function, which defines the operator in that domain. It
computes row by row in ONNX Runtime's MultiHeadAttention, which has a kernel for CPUs. (A function in the operator's own
domain is ignored: ONNX Runtime finds the operator first and misses its kernel.)

`export` proves this graph against PyTorch, and so all of the packed graph but the kernel. The laptop's stand-in for
NVIDIA's ONNX Runtime backend serves it.
"""

from pathlib import Path
from typing import Any

from triton_rerank_build.contract import ATTENTION_DOMAIN, ATTENTION_OPERATOR, OPSET, REFERENCE_DOMAIN

# An onnx.ModelProto, NodeProto or FunctionProto; protobuf builds these classes at run time.
Proto = Any

# The operator's inputs. There is no bias: see `packed`.
INPUTS = ("query", "key", "value", "bias", "token_offset", "cumulative_sequence_length")


def write_reference(packed: Path, path: Path) -> None:
    """Write the reference of a packed graph into the same folder."""
    import onnx

    model = onnx.load(str(packed), load_external_data=False)
    to_reference(model)
    onnx.save(model, str(path))


def to_reference(model: Proto, function: Proto | None = None) -> None:
    """Turn a packed graph into its reference, in place.

    Args:
        model: The packed graph, with or without its weights.
        function: Computes the operator; row by row in MultiHeadAttention by default.
    """
    from onnx import helper

    for node in model.graph.node:
        if (node.domain, node.op_type) == (ATTENTION_DOMAIN, ATTENTION_OPERATOR):
            node.domain = REFERENCE_DOMAIN
    model.functions.append(function or attention_by_rows())
    model.opset_import.append(helper.make_opsetid(REFERENCE_DOMAIN, 1))


def attention_by_rows() -> Proto:
    """PackedMultiHeadAttention as a function: a loop over the rows, each in MultiHeadAttention in fp32."""
    from onnx import TensorProto, helper

    node = helper.make_node
    nodes = [
        *(node("Constant", [], [name], value_ints=values) for name, values in _CONSTANTS.items()),
        *(node("Cast", [name], [f"{name}_fp32"], to=TensorProto.FLOAT) for name in INPUTS[:3]),
        node("Cast", ["cumulative_sequence_length"], ["borders"], to=TensorProto.INT64),
        node("Slice", ["borders", "zero", "minus_one"], ["starts"]),
        node("Slice", ["borders", "one", "last"], ["ends"]),
        node("Size", ["starts"], ["num_rows"]),
        node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        node("SequenceEmpty", [], ["none"], dtype=TensorProto.FLOAT),
        node("Loop", ["num_rows", "yes", "none"], ["rows"], body=_row_body()),
        node("ConcatFromSequence", ["rows"], ["attended"], axis=0),
        node("CastLike", ["attended", "query"], ["output"]),
    ]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ATTENTION_DOMAIN, 1)]
    return helper.make_function(
        REFERENCE_DOMAIN, ATTENTION_OPERATOR, list(INPUTS), ["output"], nodes, opsets, ["num_heads"]
    )


_CONSTANTS = {"zero": [0], "one": [1], "minus_one": [-1], "last": [2**62]}


def _row_body() -> Proto:
    """One turn of the loop: cut a row from query, key and value, attend, append the result to the sequence."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node
    attention = node("MultiHeadAttention", [f"{name}_batch" for name in INPUTS[:3]], ["batch"], domain=ATTENTION_DOMAIN)
    attention.attribute.append(
        onnx.AttributeProto(name="num_heads", ref_attr_name="num_heads", type=onnx.AttributeProto.INT)
    )
    cuts = [
        cut
        for name in INPUTS[:3]
        for cut in (
            node("Slice", [f"{name}_fp32", "start", "end", "zero"], [f"{name}_row"]),
            node("Unsqueeze", [f"{name}_row", "zero"], [f"{name}_batch"]),
        )
    ]
    nodes = [
        node("Reshape", ["index", "one"], ["index_1d"]),
        node("Gather", ["starts", "index_1d"], ["start"]),
        node("Gather", ["ends", "index_1d"], ["end"]),
        *cuts,
        attention,
        node("Squeeze", ["batch", "zero"], ["row"]),
        node("SequenceInsert", ["rows_before", "row"], ["rows_after"]),
        node("Identity", ["go_on"], ["go_on_after"]),
    ]
    return helper.make_graph(
        nodes,
        "row",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("rows_before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on_after", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("rows_after", TensorProto.FLOAT, None),
        ],
    )
