"""Names that several modules share: files of a model repository, tensors of the graph, precisions."""

from pathlib import Path

PRECISIONS = ("fp32", "fp16", "int8")
# At fp16, which is for GPUs, three graphs over one file of weights: packed rows (`graphs.packed`), the same with
# attention for CPUs (`graphs.reference`), and padded rows for OpenVINO and TensorRT (`graphs.cross_encoder`). At other
# precisions, and in late interaction, MODEL_FILE has padded rows and is alone.
MODEL_FILE = "model.onnx"
REFERENCE_FILE = "model.reference.onnx"
PADDED_FILE = "model.padded.onnx"
WEIGHTS_FILE = "model.onnx.data"
# attention_mask: 0 = padding, 1 = token of type 0, 2 = token of type 1 (only where the manifest says `token_types`).
INPUT_NAMES = ("input_ids", "attention_mask")
PACKED_INPUT_NAMES = (*INPUT_NAMES, "row_length")
OUTPUT_NAME = "logits"
# ONNX Runtime from 1.14 and TensorRT from 8.6 load opset 18 and IR 8; ONNX Runtime 1.19, of the local server,
# stops at opset 21 and IR 10. The graph needs no later operator.
OPSET = 18
IR_VERSION = 8
# Part of the manifest. Raise it when the same checkpoint gives another graph, so that `export` replaces older ones.
EXPORTER_VERSION = 4
# The operator that computes the packed graph's attention on a GPU, and the domain of its definition for CPUs.
ATTENTION_OPERATOR = "PackedMultiHeadAttention"
ATTENTION_DOMAIN = "com.microsoft"
REFERENCE_DOMAIN = "triton_rerank.reference"

CROSS_ENCODER = Path("cross_encoder") / "1"
TOKENIZER = Path("tokenizer") / "1"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"
BACKENDS = Path(__file__).parent / "serving" / "backends"
"""This project's Triton backends, one folder each."""
PLAN = CROSS_ENCODER / "model.plan"
