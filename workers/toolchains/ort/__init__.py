"""Toolchain `ort`: ONNX Runtime's quantizer."""
