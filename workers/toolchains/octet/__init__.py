"""Toolchain `octet`: what no library here has, done on the ONNX graph itself."""
