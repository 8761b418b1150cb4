"""Everything of Octet that needs a machine-learning library: jobs, toolchains, measurements, runners."""

import os
import sys

# What is imported below reports its use to its makers unless it is told not to, before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["NNCF_CI"] = "1"
# OpenVINO and NNCF send with this module. Where it cannot be imported, both put a stub in its place.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
