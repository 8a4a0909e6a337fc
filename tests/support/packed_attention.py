"""PackedMultiHeadAttention as a function of standard operators alone, to compare the product's own definition with."""

from onnx import AttributeProto, FunctionProto, TensorProto, helper

from triton_rerank_build.contract import ATTENTION_OPERATOR, REFERENCE_DOMAIN
from triton_rerank_build.graphs.reference import INPUTS

_INFO = helper.make_tensor_value_info


def standard_attention() -> FunctionProto:
    """A loop over rows: products, softmax, products, for all heads of a row at once."""
    node = helper.make_node
    heads = node("Constant", [], ["num_heads_0d"])
    heads.attribute.append(AttributeProto(name="value_int", ref_attr_name="num_heads", type=AttributeProto.INT))
    nodes = [
        heads,
        *(node("Constant", [], [name], value_ints=values) for name, values in _CONSTANTS.items()),
        node("Reshape", ["num_heads_0d", "one"], ["num_heads_1d"]),
        node("Concat", ["zero", "num_heads_1d", "minus_one"], ["by_head"], axis=0),
        *(node("Cast", [name], [f"{name}_fp32"], to=TensorProto.FLOAT) for name in INPUTS[:3]),
        *(node("Reshape", [f"{name}_fp32", "by_head"], [f"{name}_heads"]) for name in INPUTS[:3]),
        node("Shape", ["query_heads"], ["head_size"], start=2, end=3),
        node("Cast", ["head_size"], ["head_size_fp32"], to=TensorProto.FLOAT),
        node("Sqrt", ["head_size_fp32"], ["scale"]),
        node("Div", ["query_heads", "scale"], ["query_scaled"]),
        node("Cast", ["cumulative_sequence_length"], ["borders"], to=TensorProto.INT64),
        node("Slice", ["borders", "zero", "minus_one"], ["starts"]),
        node("Slice", ["borders", "one", "last"], ["ends"]),
        node("Size", ["starts"], ["num_rows"]),
        node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        node("SequenceEmpty", [], ["none"], dtype=TensorProto.FLOAT),
        node("Loop", ["num_rows", "yes", "none"], ["rows"], body=_row_body()),
        node("ConcatFromSequence", ["rows"], ["attended_heads"], axis=0),
        node("Concat", ["zero", "minus_one"], ["joined"], axis=0),
        node("Reshape", ["attended_heads", "joined"], ["attended"]),
        node("CastLike", ["attended", "query"], ["output"]),
    ]
    return helper.make_function(
        REFERENCE_DOMAIN,
        ATTENTION_OPERATOR,
        list(INPUTS),
        ["output"],
        nodes,
        [helper.make_opsetid("", 18)],
        ["num_heads"],
    )


_CONSTANTS = {"zero": [0], "one": [1], "minus_one": [-1], "last": [2**62]}


def _row_body():
    node = helper.make_node
    parts = {"q": ("query_scaled", [1, 0, 2]), "k": ("key_heads", [1, 2, 0]), "v": ("value_heads", [1, 0, 2])}
    nodes = [
        node("Reshape", ["index", "one"], ["index_1d"]),
        node("Gather", ["starts", "index_1d"], ["start"]),
        node("Gather", ["ends", "index_1d"], ["end"]),
        *(node("Slice", [source, "start", "end", "zero"], [f"{name}_row"]) for name, (source, _) in parts.items()),
        *(node("Transpose", [f"{name}_row"], [name], perm=order) for name, (_, order) in parts.items()),
        node("MatMul", ["q", "k"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v"], ["by_heads"]),
        node("Transpose", ["by_heads"], ["row"], perm=[1, 0, 2]),
        node("SequenceInsert", ["rows_before", "row"], ["rows_after"]),
        node("Identity", ["go_on"], ["go_on_after"]),
    ]
    sequence = helper.make_tensor_sequence_value_info
    return helper.make_graph(
        nodes,
        "row",
        [_INFO("index", TensorProto.INT64, []), _INFO("go_on", TensorProto.BOOL, []), sequence("rows_before", 1, None)],
        [_INFO("go_on_after", TensorProto.BOOL, []), sequence("rows_after", 1, None)],
    )
