"""The session NNCF runs graphs in while it collects statistics."""

import os

import nncf.onnx.engine
import onnx
import onnxruntime
from nncf.onnx.graph.model_metadata import MetadataKey, get_metadata


class Engine(nncf.onnx.engine.ONNXEngine):  # type: ignore[misc]
    """As NNCF's, with threads said, memory given back after each row, and no fusion that loses outputs.

    At its highest level ONNX Runtime 1.31 fuses a convolution with the Add behind it although the convolution's own
    output is asked for, and then does not find it: statistics ask for just these.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        folder = get_metadata(model, MetadataKey.EXTERNAL_DATA_DIR)
        if folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        self.sess = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.input_names = {each.name for each in self.sess.get_inputs()}


def install() -> None:
    """Have NNCF use it, in this whole process: NNCF looks its engine up by name for every graph."""
    nncf.onnx.engine.ONNXEngine = Engine
