"""The networks that are exported, and how they become ONNX files."""
