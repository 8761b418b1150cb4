"""Toolchain `torchao`: PT2E quantization of the uploaded program, exported to QDQ ONNX."""

import logging

# On import it warns of every one of its GPU kernels that it cannot load; none is used here.
logging.getLogger("torchao").setLevel(logging.ERROR)
