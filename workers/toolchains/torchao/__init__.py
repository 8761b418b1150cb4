"""Toolchain `torchao`: PT2E quantization of the uploaded program, exported to QDQ ONNX."""
