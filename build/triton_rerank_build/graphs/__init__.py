"""The exported networks, and the ONNX files written from them."""
