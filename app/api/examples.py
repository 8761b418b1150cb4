"""Examples for the API's documentation. A test reads each of them with the schema it illustrates."""

from typing import Any

Example = Any

_TIME = "2026-03-01T12:00:00Z"
_JOB_ID = "5f1d7e0c3b2a49d8a1c4e6f708192a3b"
_SHA256 = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809"
_INPUT = {"name": "x", "dtype": "float32", "shape": [None, 3, 32, 32], "batch_axis": 0}
_OUTPUT = {"name": "logits", "dtype": "float32", "shape": [None, 10], "batch_axis": 0}
_SIGNATURE = {"inputs": [_INPUT], "outputs": [_OUTPUT]}

PREPROCESSING: Example = {"resize": 32, "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}

_UPLOADED = {
    "version": 1,
    "state": "ready",
    "error": None,
    "size_bytes": 1123456,
    "sha256": _SHA256,
    "created_at": _TIME,
    "import_job": _JOB_ID,
}

MODEL: Example = {
    **_UPLOADED,
    "label_count": None,
    "labels": None,
    "name": "resnet20",
    "file": "resnet20.pt2",
    "manifest": {
        "format": "pt2",
        "signature": _SIGNATURE,
        "preprocessing": None,
        "original_batch": None,
        "parameters": 269722,
        "imported_at": _TIME,
        "imported_with": {"torch": "2.13.0", "onnx": "1.23.2"},
    },
}

DATASET: Example = {
    **_UPLOADED,
    "name": "cifar",
    "file": "cifar.npz",
    "manifest": {
        "format": "npz",
        "rows": 500,
        "arrays": [{"name": "x", "dtype": "float32", "row_shape": [3, 32, 32]}],
        "labelled": True,
        "classes": [],
    },
}

UPLOADED_MODEL: Example = {**MODEL, "state": "importing", "manifest": None}
UPLOADED_DATASET: Example = {**DATASET, "state": "importing", "manifest": None}

RECIPE: Example = {"technique": "ptq_static", "calibration_rows": 300}

RECIPES: dict[str, tuple[str, Example]] = {
    "auto": (
        "search for the fastest variant that keeps a budget",
        {
            "technique": "auto",
            "budget": {"metric": "top1", "max_drop": 0.005, "max_latency_ms": None, "max_size_bytes": None},
            "time_limit_seconds": 900,
        },
    ),
    "mixed": (
        "8 bits, two layers in bfloat16",
        {
            "technique": "ptq_static",
            "activations": "asymmetric",
            "observer": "mse",
            "bias_correction": "full",
            "float_layers": ["/conv1/Conv", "/linear/Gemm"],
            "float_precision": "bfloat16",
        },
    ),
    "learned": (
        "4-bit weights with learned rounding",
        {"technique": "ptq_static", "weight_bits": 4, "rounding": "adaround"},
    ),
    "weight_only": (
        "weights in 4 bits, groups of 64, AWQ",
        {"technique": "weight_only", "bits": 4, "group_size": 64, "awq": True},
    ),
    "qat": (
        "4-bit weights, trained on rows without labels to answer as the float model does",
        {"technique": "qat", "weight_bits": 4, "epochs": 20, "batch_size": 64, "int8_layers": ["/conv1/Conv"]},
    ),
    "ptq_dynamic": ("transformers and recurrent nets, without rows", {"technique": "ptq_dynamic"}),
    "cast": ("weights in half the bits", {"technique": "cast", "precision": "bfloat16"}),
}
"""By name: what it does, and the recipe."""

VARIANT: Example = {
    "model": "resnet20",
    "version": 1,
    "name": "int8",
    "artifact": {
        "file": f"{_SHA256}.onnx",
        "size_bytes": 345678,
        "sha256": _SHA256,
        "media_type": "application/onnx",
    },
    "execution": {"engine": "openvino", "float_precision": "float32", "dynamic_group_size": 0},
    "signature": _SIGNATURE,
    "recipe": RECIPE,
    "job": _JOB_ID,
    "created_at": _TIME,
    "max_batch_size": None,
}

ROUTE: Example = {
    "number": 1,
    "model": "resnet20",
    "version": 1,
    "variant": "int8",
    "weights": None,
    "created_at": _TIME,
    "by": "ann",
    "note": "the report keeps the budget",
}
ROUTE_REQUEST: Example = {"variant": "int8", "version": 1}
WEIGHTS_REQUEST: Example = {"version": 1, "weights": {"float32": 0.9, "int8": 0.1}, "by": "ann", "note": "a canary"}
ROUTING: Example = {"current": ROUTE, "history": [ROUTE]}

JOB: Example = {
    "id": _JOB_ID,
    "kind": "quantize",
    "created_at": _TIME,
    "subject": None,
    "model": "resnet20:1",
    "dataset": None,
    "calibration": "cifar:1",
    "evaluation": "cifar-test:1",
    "training": None,
    "recipe": RECIPE,
    "variant": "int8",
    "state": "running",
    "attempt": 1,
    "percent": 42.0,
    "step": "measuring accuracy",
    "steps": [{"step": "quantizing", "seconds": 3.2}],
    "training_progress": None,
    "started_at": _TIME,
    "finished_at": None,
    "error": None,
}

QUANTIZE: Example = {
    "kind": "quantize",
    "model": "resnet20",
    "calibration": "cifar:1",
    "evaluation": "cifar-test:1",
    "recipe": RECIPE,
    "variant": "int8",
}
TRAIN: Example = {
    "kind": "quantize",
    "model": "resnet20",
    "training": "cifar-train:1",
    "evaluation": "cifar-test:1",
    "recipe": {"technique": "qat", "loss": "distillation", "teacher": "resnet56", "steps": 2000, "flip": True},
    "variant": "int8-trained",
}
EVALUATE: Example = {"kind": "evaluate", "model": "resnet20", "variant": "int8", "evaluation": "cifar-test:1"}

_PROPORTION = {"value": 0.92, "low": 0.914, "high": 0.925, "count": 9200, "rows": 10000}
_INTERVAL = {"value": 0.92, "low": 0.914, "high": 0.925}
_DROP = {"value": 0.0012, "low": -0.001, "high": 0.0034}
_LATENCY = {
    "p50_ms": 0.4,
    "p95_ms": 0.5,
    "p99_ms": 0.6,
    "speedup": 2.6,
    "runs": 200,
    "rows_per_second": 4100.0,
    "batch_size": 16,
}

REPORT: Example = {
    "model": "resnet20",
    "version": 1,
    "variant": "int8",
    "artifact_sha256": _SHA256,
    "recipe": RECIPE,
    "size": {"bytes": 345678, "float32_bytes": 1092345, "ratio": 0.316},
    "calibration": {"dataset": "cifar:1", "rows": 300, "source": "given", "seed": 0, "sha256": _SHA256},
    "evaluation": {"dataset": "cifar-test:1", "rows": 10000, "source": "given", "seed": None, "sha256": _SHA256},
    "accuracy": {
        "metric": "top1",
        "measured": {"float32": _PROPORTION, "int8": _PROPORTION},
        "difference": {"value": -0.001, "low": -0.003, "high": 0.001, "method": "Newcombe 1998, method 10"},
        "flips": {"gained": [17], "lost": [4, 230], "moved": []},
        "classes": [{"name": "cat", "rows": 1000, "float32": 0.84, "variant": 0.838}],
    },
    "fidelity": {"int8": {"agreement": _PROPORTION, "sqnr_db": 27.4, "cosine": 0.998, "kl": 0.002}},
    "latency": {
        "float32": {**_LATENCY, "p50_ms": 1.04, "p95_ms": 1.1, "p99_ms": 1.2, "speedup": 1.0},
        "int8": _LATENCY,
    },
    "memory": {"int8": {"pss_bytes": 90000000, "peak_bytes": 120000000, "added_bytes": 4000000}},
    "kernels": {
        "int8": {
            "layers": [
                {
                    "name": "conv1",
                    "kind": "Convolution",
                    "precision": "u8",
                    "implementation": "brgconv_avx512_i8",
                    "microseconds": 21.0,
                }
            ],
            "int8_layers": 21,
            "float_layers": 2,
            "int8_share": 0.93,
        }
    },
    "conversion": None,
    "environment": {
        "cpu": "Xeon",
        "instructions": ["avx512_vnni"],
        "cores": 2,
        "memory_bytes": 8589934592,
        "kernel": "6.1",
        "libraries": {"openvino": "2026.4.1"},
    },
    "notes": [],
    "created_at": _TIME,
    "execution": {"engine": "openvino", "float_precision": "float32", "dynamic_group_size": 0},
    "metrics": [
        {
            "name": "top1",
            "rows": 10000,
            "measured": {"float32": _INTERVAL, "int8": _INTERVAL},
            "drop": _DROP,
            "p_value": 0.37,
            "method": "Newcombe 1998, method 10",
            "changed": [82, 70],
            "classes": [],
        }
    ],
    "verdict": {
        "budget": {"metric": "top1", "max_drop": 0.005, "max_latency_ms": None, "max_size_bytes": None},
        "outcome": "kept",
        "drop": _DROP,
        "rows": 10000,
        "rows_needed": None,
        "reason": "The drop is at most 0.34 points on 10,000 rows, within the budget of 0.5.",
    },
    "receipt": {
        "layers": [
            {
                "name": "/conv1/Conv",
                "kind": "Convolution",
                "quantized": True,
                "float32": {"precision": "f32", "implementation": "brgconv_avx512", "microseconds": 63.0},
                "variant": {"precision": "u8", "implementation": "brgconv_avx512_i8", "microseconds": 21.0},
            }
        ],
        "fallbacks": [],
        "conversion_share": 0.09,
        "conversions": ["Reorder_17"],
    },
    "findings": [
        {"code": "duplicates", "severity": "note", "message": "3 evaluation rows appear twice.", "rows": [4, 90, 91]}
    ],
    "diagnosis": [
        {
            "question": "Why is it not faster?",
            "answer": ["9 % of the time goes into conversions."],
            "next": ["Quantize the layers between them too."],
        }
    ],
    "invariance": {"invariant": True, "largest_difference": 0.0, "rows": 16, "batch_size": 8},
    "schema_version": 2,
}

LOG = "12:00:01 convert: reading resnet20.pt2\n"
EVENT = f'id: 1772366400000-0\nevent: job\ndata: {{"id": "{_JOB_ID}", "state": "running"}}\n\n'

PREDICT: Example = {"inputs": {"x": [[0.1, 0.2, 0.3, 0.4]]}}
PREDICTION: Example = {
    "model": "resnet20",
    "version": 1,
    "variant": "int8",
    "outputs": {"logits": {"dtype": "float32", "shape": [1, 2], "data": [[-0.4, 3.1]]}},
    "queue_ms": 0.1,
    "compute_ms": 0.4,
}

INFER: Example = {
    "id": "42",
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}],
}
INFERENCE: Example = {
    "model_name": "resnet20",
    "model_version": "1",
    "id": "42",
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [-0.4, 3.1]}],
    "parameters": {"octet_variant": "int8", "octet_queue_ms": 0.1, "octet_compute_ms": 0.4},
}
LOAD: Example = {"parameters": {"instances": 2, "mode": "auto", "max_queue_delay_ms": 1.0}}
INDEXED: Example = {
    "name": "resnet20",
    "version": "1",
    "state": "READY",
    "reason": "",
    "octet_variants": [{"name": "float32", "state": "UNAVAILABLE"}, {"name": "int8", "state": "READY"}],
}
_ONCE = {"count": 1, "ns": 400000}
STATISTICS: Example = {
    "model_stats": [
        {
            "name": "resnet20",
            "version": "1",
            "last_inference": 1772366400000,
            "inference_count": 2,
            "execution_count": 1,
            "inference_stats": {
                "success": {"count": 1, "ns": 520000},
                "fail": {"count": 0, "ns": 0},
                "queue": {"count": 1, "ns": 100000},
                "compute_input": {"count": 1, "ns": 10000},
                "compute_infer": _ONCE,
                "compute_output": {"count": 1, "ns": 10000},
            },
            "batch_stats": [{"batch_size": 2, "compute_infer": _ONCE}],
            "octet": [{"variant": "int8", "instance": 0, "mode": "latency"}],
        }
    ]
}
MODEL_METADATA: Example = {
    "name": "resnet20",
    "versions": ["1"],
    "platform": "openvino_onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    "properties": {},
}
SERVER_METADATA: Example = {"name": "octet", "version": "0.1.0", "extensions": ["binary_tensor_data", "statistics"]}

READINESS: Example = {"status": "ready", "checks": {"store": "ok", "queue": "ok"}}
METRICS = "# HELP octet_requests_in_flight Predictions now.\noctet_requests_in_flight 0.0\n"

MODEL_FORM: Example = {"name": "resnet20", "file": "(the bytes of resnet20.pt2)"}
DATASET_FORM: Example = {"name": "cifar", "file": "(the bytes of cifar.npz)"}
QUANTIZE_FORM: Example = {
    "name": "resnet20",
    "recipe": '{"technique": "ptq_static"}',
    "model": "(the bytes of resnet20.pt2)",
    "calibration": "(the bytes of cifar.npz)",
}
