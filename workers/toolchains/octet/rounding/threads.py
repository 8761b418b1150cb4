"""How many threads learning takes, and how ONNX Runtime and torch share them."""

import os

import onnxruntime
import torch

WORTH_SHARING = 2**26
"""Multiplications of a step from which a second thread saves more than the threads lose in waiting for each other."""


def share_threads(multiplications: int) -> None:
    """Let torch use as many cores as steps of so many multiplications are worth."""
    torch.set_num_threads(cores() if multiplications >= WORTH_SHARING else 1)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def session_options() -> onnxruntime.SessionOptions:
    """Return options under which quantizers compute what they say: none is fused into an integer kernel."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # what one piece of a graph took is free for the next
    # threads that wait busily would take the cores from torch, which runs in between
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    return options
