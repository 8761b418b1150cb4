"""Every environment variable Octet reads, once, in one class. Only composition roots import this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "OCTET_"
SOCKET_VARIABLE = "OCTET_RUNNER_SOCKET"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """Where an S3-compatible store is and how to enter it."""

    endpoint_url: str | None
    region: str
    access_key_id: str | None
    secret_access_key: str | None


class SettingsInvalid(Exception):
    """An environment variable is missing or unusable; the message has one sentence for each."""


class Settings(BaseSettings):
    """Set by `OCTET_…` variables, such as `OCTET_STORE_URL`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("octet-data"), description="Folder for the local store, Redis' file, cache and scratch."
    )
    store_url: str | None = Field(
        None, description="`s3://bucket/prefix` or a folder; without it, `store` in the data folder."
    )
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible store; without it, AWS.")
    s3_region: str = Field("us-east-1", description="Region of the bucket.")
    s3_access_key_id: SecretStr | None = Field(None, description="Key that enters the bucket.")
    s3_secret_access_key: SecretStr | None = Field(None, description="Its secret.")
    redis_url: str | None = Field(
        None, description="`redis://…`; `octet serve` starts one of its own without it, gateways and workers need it."
    )

    host: str = Field("127.0.0.1", description="Address the gateway and a worker's metrics bind to.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the gateway; 0 takes a free one.")
    gateway_processes: int = Field(1, ge=1, le=64, description="Gateway processes behind the one port.")
    max_upload_bytes: int = Field(4 * 2**30, ge=1, description="Largest file of an upload.")
    max_predict_bytes: int = Field(64 * 2**20, ge=1, description="Largest body of a prediction.")
    max_json_bytes: int = Field(
        8 * 2**20,
        ge=1,
        description="Largest prediction in JSON, and largest answer; arrays as `.npy` or `.npz` may be larger.",
    )
    max_predict_bytes_in_flight: int = Field(
        512 * 2**20,
        ge=1,
        description="Most bytes of predictions in a gateway process at once; JSON counts eightfold, as in memory.",
    )
    body_timeout_seconds: float = Field(60, gt=0, description="How long a body may take to come, uploads aside.")
    max_followers: int = Field(64, ge=1, description="Most clients of a gateway process that follow or wait for a job.")
    max_answer_bytes: int = Field(256 * 2**20, ge=1, description="Largest answer to a prediction, as arrays.")
    max_batch_size: int = Field(256, ge=1, description="Most rows in one prediction.")
    max_queued_jobs: int = Field(1000, ge=1, description="Most jobs waiting for a worker.")
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="Port for the Open Inference Protocol over gRPC; without it there is no gRPC."
    )
    grpc_max_calls: int = Field(
        512,
        ge=1,
        description="Most gRPC calls of a gateway process at once, streams included; health has places of its own.",
    )
    traces_endpoint: AnyHttpUrl | None = Field(
        None,
        description="OpenTelemetry collector that takes OTLP over HTTP, such as `http://collector:4318`; without it "
        "nothing is traced.",
    )
    traces_ratio: float = Field(
        1, ge=0, le=1, description="Share of predictions that are traced, unless their caller's `traceparent` says."
    )

    max_loaded_variants: int = Field(
        8, ge=1, description="Variants loaded on this machine; the least recently used gives way."
    )
    runners_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory of all runners together, beyond which variants give way; 0 for 80 % of the machine's.",
    )
    runner_instances: int = Field(1, ge=1, le=16, description="Runners of one variant, unless its load says otherwise.")
    runner_mode: Literal["auto", "latency", "throughput"] = Field(
        "auto", description="Whether runners follow the load, or keep to one request at a time or several side by side."
    )
    runner_max_queue_delay_ms: float = Field(
        0, ge=0, le=1000, description="How long a prediction may wait for others to run with."
    )
    runner_socket: Path | None = Field(
        None, description="Socket of the process that starts runners, set by the launcher of several gateway processes."
    )
    max_queued_predictions: int = Field(
        256, ge=1, description="Most predictions of a gateway process waiting for one variant."
    )
    runner_threads: int = Field(0, ge=0, description="Engine threads of a runner; 0 takes all cores.")
    runner_memory_bytes: int = Field(
        8 * 2**30, ge=2**28, description="Memory one runner may take; a prediction that needs more fails."
    )
    runner_start_timeout_seconds: float = Field(60, gt=0, description="How long a runner may take to start.")
    predict_timeout_seconds: float = Field(60, gt=0, description="How long a prediction may take.")
    cache_bytes: int = Field(
        10 * 2**30, ge=0, description="Disk for artifacts that runners load; what was used longest ago gives way."
    )

    job_timeout_seconds: int = Field(3600, ge=1, description="How long one attempt at a job may take.")
    job_memory_bytes: int = Field(8 * 2**30, ge=2**28, description="Memory one stage of a job may take.")
    job_scratch_bytes: int = Field(16 * 2**30, ge=2**20, description="Disk one job may take.")
    job_attempts: int = Field(3, ge=1, description="How often a job is started when its worker is lost.")
    training_nodes: int = Field(
        1,
        ge=1,
        le=64,
        description="Machines that training with several processes is shared out to, the worker's included; the "
        "network between them has to be private.",
    )
    training_rendezvous: str = Field(
        "127.0.0.1:29400",
        pattern=r"^[^\s:]+:[1-9][0-9]{0,4}$",
        description="Address of this worker where the other machines of a training meet, used when there are several.",
    )
    job_lost_after_seconds: int = Field(15, ge=5, description="A worker silent for so long has lost its job.")
    allow_unsandboxed: bool = Field(
        default=False,
        description="Take `.pt2` files although the kernel cannot confine what they execute, and train in several "
        "processes although they get no network of their own.",
    )

    metrics_dir: Path | None = Field(
        None,
        description="Folder where the processes of one machine share their metrics; emptied when Octet starts.",
    )
    worker_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port where a worker on a machine of its own shows its metrics."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    def require_redis(self) -> str:
        """Return the URL of Redis.

        Raises:
            SettingsInvalid: none was set.
        """
        if self.redis_url is None:
            raise SettingsInvalid(
                f"A gateway and a worker need {PREFIX}REDIS_URL: set it, or run `octet serve`, which brings a Redis."
            )
        return self.redis_url

    @property
    def store(self) -> str:
        """The store's URL, or an absolute folder."""
        return self.store_url or str((self.data_dir / "store").absolute())

    @property
    def s3(self) -> S3:
        """What an `s3://` store needs."""
        key, secret = self.s3_access_key_id, self.s3_secret_access_key
        return S3(
            endpoint_url=self.s3_endpoint_url,
            region=self.s3_region,
            access_key_id=key.get_secret_value() if key else None,
            secret_access_key=secret.get_secret_value() if secret else None,
        )

    @property
    def cache_dir(self) -> Path:
        """Where a gateway keeps the artifacts that its runners load."""
        return (self.data_dir / "cache").absolute()

    @property
    def scratch_dir(self) -> Path:
        """Where jobs work; each in a folder that goes with it."""
        return (self.data_dir / "scratch").absolute()


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsInvalid: with one sentence for each variable that cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = {str(one["loc"][0]): one["input"] for one in error.errors() if one["loc"]}
        raise SettingsInvalid("\n".join(_explained(name, given) for name, given in wrong.items())) from error


def allowed(field: FieldInfo) -> str:
    """Say in words what a variable may be set to."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return "one of " + ", ".join(kinds)
    if _limits(field, "pattern"):
        return "host:port"
    kind = kinds[0] if kinds else field.annotation
    return _KINDS.get(kind, "text") + _bounds(field)


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    AnyHttpUrl: "an http:// or https:// URL",
}


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most"}
    found = [f"{words[name]} {limit}" for name in words for limit in _limits(field, name)]
    return "".join(f", {bound}" for bound in found)


def _limits(field: FieldInfo, name: str) -> list[Any]:
    return [getattr(limit, name) for limit in field.metadata if hasattr(limit, name)]


def _explained(name: str, given: object) -> str:
    must_be = allowed(Settings.model_fields[name])
    return f"{PREFIX}{name.upper()} is {str(given)[:80]!r}, but must be {must_be}: set it so, or unset it."
