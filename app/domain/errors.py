"""Every failure Octet expects, as one tree. The domain knows no HTTP: `app.api.errors` maps families to status codes.

OctetError
├── InvalidInput            the caller sent something wrong
│   ├── NameInvalid             a model, dataset or variant name breaks the rules
│   ├── RecipeInvalid           a recipe contradicts itself or has an unknown field
│   ├── RequestInvalid          a body, header or parameter that cannot be read
│   ├── SignatureMismatch       tensors do not fit the model's signature
│   ├── ImageInvalid            an image that cannot be decoded or is too large
│   ├── UnsupportedFormat       a file of a kind Octet does not take
│   ├── RangeInvalid            a byte range outside the artifact
│   └── EmptyUpload             an upload of zero bytes
├── NotFound
│   ├── ModelNotFound
│   ├── DatasetNotFound
│   ├── VariantNotFound
│   ├── JobNotFound
│   └── ReportNotFound
├── Conflict
│   ├── NameTaken
│   ├── IllegalTransition       the job or model is not in a state that allows this
│   └── ModelNotReady           the model or dataset is still being imported, or failed to
├── TooLarge
│   ├── UploadTooLarge
│   ├── BatchTooLarge
│   └── AnswerTooLarge          a model made more output than a prediction may have
├── TooMany                     a client's quota
├── Unavailable                 try again later
│   ├── QueueUnavailable        Redis does not answer
│   ├── QueueFull
│   │   └── WaitTooLong         it would wait beyond its deadline
│   ├── VariantNotReady
│   ├── StoreUnavailable
│   │   └── RecordUnreadable    a record in the store is damaged
│   └── StoreFull
├── RunnerCrashed
├── DeadlineExceeded
└── JobFailure                  a job's outcome, never an HTTP status
    ├── UploadUnreadable        the upload is not what its name says, or is broken
    ├── UploadRefused           the upload asks for something Octet does not allow
    ├── DatasetUnfit            rows that do not fit the model, or cannot be used
    ├── ConversionMismatch      the float32 artifact does not answer like the original
    ├── ToolchainFailed
    ├── NoInt8Kernels           the engine runs no int8 kernel for the variant
    ├── SilentFallback          the engine runs in float what the variant's graph quantizes
    ├── BudgetMissed            no artifact keeps the budget, not even in float
    ├── DoesNotFit              the forecast says the job needs more than the worker has
    ├── LargerThanFloat         the variant is larger than its float32 parent
    ├── PrecisionUnavailable    this CPU cannot run what the recipe asks for
    ├── OutOfMemory
    ├── OutOfDisk
    ├── OutOfTime
    ├── SandboxUnavailable      the kernel lacks a part of the sandbox
    ├── StageCrashed            the job's child died
    ├── WorkerLost
    └── InternalFailure         a bug; the log has the details
"""

from functools import cache
from typing import ClassVar


class OctetError(Exception):
    """Base of the tree.

    Args:
        message: one sentence that names the thing, the limit it broke and what to do.
    """

    code: ClassVar[str] = "octet_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(OctetError):
    code = "invalid_input"


class NameInvalid(InvalidInput):
    code = "name_invalid"


class RecipeInvalid(InvalidInput):
    code = "recipe_invalid"


class RequestInvalid(InvalidInput):
    code = "request_invalid"


class SignatureMismatch(InvalidInput):
    code = "signature_mismatch"


class ImageInvalid(InvalidInput):
    code = "image_invalid"


class UnsupportedFormat(InvalidInput):
    code = "unsupported_format"


class RangeInvalid(InvalidInput):
    code = "range_invalid"


class EmptyUpload(InvalidInput):
    code = "empty_upload"


class NotFound(OctetError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class DatasetNotFound(NotFound):
    code = "dataset_not_found"


class VariantNotFound(NotFound):
    code = "variant_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class ReportNotFound(NotFound):
    code = "report_not_found"


class Conflict(OctetError):
    code = "conflict"


class NameTaken(Conflict):
    code = "name_taken"


class IllegalTransition(Conflict):
    code = "illegal_transition"


class ModelNotReady(Conflict):
    code = "model_not_ready"


class TooLarge(OctetError):
    code = "too_large"


class UploadTooLarge(TooLarge):
    code = "upload_too_large"


class BatchTooLarge(TooLarge):
    code = "batch_too_large"


class AnswerTooLarge(TooLarge):
    code = "answer_too_large"


class TooMany(OctetError):
    code = "too_many"


class Unavailable(OctetError):
    """
    Args:
        retry_after_seconds: when to try again, where that is known.
    """

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueUnavailable(Unavailable):
    code = "queue_unavailable"


class QueueFull(Unavailable):
    code = "queue_full"


class WaitTooLong(QueueFull):
    code = "wait_too_long"


class VariantNotReady(Unavailable):
    code = "variant_not_ready"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class RecordUnreadable(StoreUnavailable):
    code = "record_unreadable"


class StoreFull(Unavailable):
    code = "store_full"


class RunnerCrashed(OctetError):
    code = "runner_crashed"


class DeadlineExceeded(OctetError):
    code = "deadline_exceeded"


class JobFailure(OctetError):
    code = "job_failure"


class UploadUnreadable(JobFailure):
    code = "upload_unreadable"


class UploadRefused(JobFailure):
    code = "upload_refused"


class DatasetUnfit(JobFailure):
    code = "dataset_unfit"


class ConversionMismatch(JobFailure):
    code = "conversion_mismatch"


class ToolchainFailed(JobFailure):
    code = "toolchain_failed"


class NoInt8Kernels(JobFailure):
    code = "no_int8_kernels"


class SilentFallback(JobFailure):
    code = "silent_fallback"


class BudgetMissed(JobFailure):
    code = "budget_missed"


class DoesNotFit(JobFailure):
    code = "does_not_fit"


class LargerThanFloat(JobFailure):
    code = "larger_than_float"


class PrecisionUnavailable(JobFailure):
    code = "precision_unavailable"


class OutOfMemory(JobFailure):
    code = "out_of_memory"


class OutOfDisk(JobFailure):
    code = "out_of_disk"


class OutOfTime(JobFailure):
    code = "out_of_time"


class SandboxUnavailable(JobFailure):
    code = "sandbox_unavailable"


class StageCrashed(JobFailure):
    code = "stage_crashed"


class WorkerLost(JobFailure):
    code = "worker_lost"


class InternalFailure(JobFailure):
    code = "internal_failure"


def tree(root: type[OctetError] = OctetError) -> list[type[OctetError]]:
    """Return `root` and every class below it, parents before children."""
    return [root, *(error for child in root.__subclasses__() for error in tree(child))]


def failure_of(code: str, message: str, *, otherwise: type[OctetError] = JobFailure) -> OctetError:
    """Rebuild any failure from its code, as read from a record that Octet wrote itself.

    A code that is none of the tree's, such as `cancelled`, becomes `otherwise`.
    """
    by_code = {error.code: error for error in tree()}
    return by_code.get(code, otherwise)(message)


def refusal_of(code: str, message: str, *, otherwise: type[OctetError]) -> OctetError:
    """Rebuild what a runner or its host refused with; a code that is none of theirs becomes `otherwise`."""
    return _refusals().get(code, otherwise)(message)


@cache
def _refusals() -> dict[str, type[OctetError]]:
    """Every failure but a job's, by its code; kept, for under overload there are many refusals."""
    return {error.code: error for error in tree() if not issubclass(error, JobFailure)}


def job_failure(code: str, message: str) -> JobFailure:
    """Rebuild a job's failure from its code, as read from a process that cannot be trusted.

    A code that is not a `JobFailure`'s becomes `StageCrashed`.
    """
    by_code = {error.code: error for error in tree(JobFailure)}
    return by_code.get(code, StageCrashed)(message)  # type: ignore[return-value]
