"""Store the weights of an exported graph as int8: a quarter of the size, and int8 arithmetic on CPUs.

Symmetric, with one scale for each output channel of a matrix and for each row of the word table. A matrix is read
through DequantizeLinear, a pattern of int8 weights that OpenVINO and ONNX Runtime recognize; they quantize activations
at run time, group by group, without calibration. Rows of the word table are gathered as int8 and then scaled:
DequantizeLinear would convert the whole table to floats for every batch.

Not quantized: positions, LayerNorm, biases and the classifier (2 % of the file at most), and the attention, which has
no weights.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir

WORD_TABLE = "embeddings.word.weight"

_LAYERS = "layers."
_LARGEST = 127
# The word table of a large model has a gigabyte; blocks avoid a copy of it.
_BLOCK_ROWS = 4096


def quantize_weights(model: "onnx_ir.Model") -> None:
    """Replace the matrices of the layers and the word table by int8 ones, one by one, and free the float ones."""
    for node in list(model.graph):
        for position, weight in enumerate(node.inputs):
            if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
                continue
            if node.op_type == "MatMul" and str(weight.name).startswith(_LAYERS):
                node.replace_input_with(position, _dequantized(model.graph, node, weight))
            elif node.op_type == "Gather" and weight.name == WORD_TABLE:
                _gather_quantized(model.graph, node, weight)
            else:
                continue
            del model.graph.initializers[str(weight.name)]
            weight.const_value = None


def quantize(values: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A matrix as int8, and the scales that restore it.

    Args:
        values: [rows, columns].
        axis: Each index of this axis gets a scale.

    Returns:
        [rows, columns] int8 from -127 to 127, and the scales, [rows, 1] or [1, columns] float32.
    """
    across = 1 - axis
    # np.abs would allocate a copy of the matrix.
    largest = np.maximum(values.max(axis=across, keepdims=True), -values.min(axis=across, keepdims=True))
    scales = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    quantized = np.empty(values.shape, np.int8)
    for start in range(0, len(values), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        quantized[rows] = np.rint(values[rows] / (scales[rows] if axis == 0 else scales))
    return quantized, scales


def _dequantized(graph: "onnx_ir.Graph", node: "onnx_ir.Node", weight: "onnx_ir.Value") -> "onnx_ir.Value":
    """DequantizeLinear of the int8 matrix, before `node`."""
    import onnx_ir

    quantized, scales = quantize(_values(weight), axis=1)
    inputs = [
        _initializer(graph, f"{weight.name}.int8", quantized),
        _initializer(graph, f"{weight.name}.scales", scales[0]),
    ]
    dequantize = onnx_ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{weight.name}.dequantize")
    graph.insert_before(node, dequantize)
    return dequantize.outputs[0]


def _gather_quantized(graph: "onnx_ir.Graph", node: "onnx_ir.Node", table: "onnx_ir.Value") -> None:
    """Replace `node`, which gathers rows of the float table, by a gather of int8 rows and of their scales."""
    import onnx_ir

    quantized, scales = quantize(_values(table), axis=0)
    row_ids, picked = node.inputs[1], node.outputs[0]
    rows = onnx_ir.node("Gather", [_initializer(graph, f"{table.name}.int8", quantized), row_ids])
    row_scales = onnx_ir.node("Gather", [_initializer(graph, f"{table.name}.scales", scales), row_ids])
    floats = onnx_ir.node("Cast", rows.outputs, {"to": onnx_ir.DataType.FLOAT.value})
    scaled = onnx_ir.node("Mul", [floats.outputs[0], row_scales.outputs[0]])
    for number, new in enumerate((rows, row_scales, floats, scaled)):
        new.name = f"{table.name}.{number}"
        new.outputs[0].name = f"{table.name}.{number}"
    graph.insert_before(node, [rows, row_scales, floats, scaled])
    for user, position in list(picked.uses()):
        user.replace_input_with(position, scaled.outputs[0])
    graph.remove(node, safe=True)


def _values(weight: "onnx_ir.Value") -> npt.NDArray[np.float32]:
    if weight.const_value is None:
        raise ValueError(f"{weight.name} has no value")
    values: npt.NDArray[np.float32] = weight.const_value.numpy()
    return values


def _initializer(graph: "onnx_ir.Graph", name: str, values: npt.NDArray[np.generic]) -> "onnx_ir.Value":
    import onnx_ir

    tensor = onnx_ir.tensor(values, name=name)
    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(values.shape), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
