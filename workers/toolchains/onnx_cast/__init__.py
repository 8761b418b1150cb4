"""Techniques that only change how weights are stored, done on the ONNX graph itself."""
