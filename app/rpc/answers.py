"""A prediction as a protocol message: outputs as raw bytes, or as the names of the best classes."""

from collections.abc import Sequence

from app.api.binary_tensors import BYTES, strings_section, to_section
from app.api.classification import classification_strings, wanted_classification
from app.api.predictions import Prediction
from app.domain.tensors import PROTOCOL_NAMES
from app.rpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from app.rpc.parameters import values_of

Wanted = ModelInferRequest.InferRequestedOutputTensor


def answer_of(asked: ModelInferRequest, made: Prediction) -> ModelInferResponse:
    """Write the outputs that were asked for, all of them if none was.

    Raises:
        RequestInvalid: an output that is asked for as classes has none.
    """
    response = ModelInferResponse(model_name=made.variant.model, model_version=str(made.variant.version), id=asked.id)
    response.parameters["octet_variant"].string_param = made.variant.name
    response.parameters["octet_queue_ms"].double_param = 1000 * made.queue_seconds
    response.parameters["octet_compute_ms"].double_param = 1000 * made.compute_seconds
    for wanted in asked.outputs or [Wanted(name=name) for name in made.outputs]:
        count = wanted_classification(values_of(wanted.parameters))
        if count is None:
            _add_numbers(response, wanted.name, made)
        else:
            _add_classes(
                response, wanted.name, classification_strings(made.outputs[wanted.name], k=count, labels=made.labels)
            )
    return response


def _add_numbers(response: ModelInferResponse, name: str, made: Prediction) -> None:
    array = made.outputs[name]
    dtype = next(spec.dtype for spec in made.variant.signature.outputs if spec.name == name)
    response.outputs.add(name=name, datatype=PROTOCOL_NAMES[dtype], shape=array.shape)
    response.raw_output_contents.append(bytes(to_section(array, dtype)))


def _add_classes(response: ModelInferResponse, name: str, rows: Sequence[Sequence[str]]) -> None:
    response.outputs.add(name=name, datatype=BYTES, shape=(len(rows), len(rows[0]) if rows else 0))
    response.raw_output_contents.append(strings_section(rows))
