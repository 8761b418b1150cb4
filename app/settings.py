"""Every environment variable Octet reads, once, in one class. Only composition roots import this."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """Where an S3-compatible store is and how to enter it."""

    endpoint_url: str | None
    region: str
    access_key_id: str | None
    secret_access_key: str | None


class Settings(BaseSettings):
    """Set by `OCTET_…` variables, such as `OCTET_STORE_URL`."""

    model_config = SettingsConfigDict(env_prefix="OCTET_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("octet-data"), description="Folder for the local store, Redis' file, cache and scratch."
    )
    store_url: str | None = Field(
        None, description="`s3://bucket/prefix` or a folder; default: `store` in the data_dir."
    )
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible store; default: AWS.")
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    redis_url: str | None = Field(None, description="`redis://…`; `octet serve` starts one of its own without it.")

    host: str = Field("127.0.0.1", description="Address the gateway binds to.")
    port: int = Field(8000, ge=0, le=65535)
    gateway_processes: int = Field(1, ge=1, le=64)
    max_upload_bytes: int = Field(4 * 2**30, ge=1)
    max_predict_bytes: int = Field(64 * 2**20, ge=1, description="Largest body of a prediction.")
    max_batch_size: int = Field(256, ge=1, description="Most rows in one prediction.")
    max_queued_jobs: int = Field(1000, ge=1)

    max_loaded_variants: int = Field(8, ge=1, description="Runners per gateway process; the least used gives way.")
    max_queued_predictions: int = Field(256, ge=1, description="Most predictions waiting for one runner.")
    runner_threads: int = Field(0, ge=0, description="Engine threads of a runner; 0: all cores.")
    runner_start_timeout_seconds: float = Field(60, gt=0)
    predict_timeout_seconds: float = Field(60, gt=0)

    job_timeout_seconds: int = Field(3600, ge=1)
    job_memory_bytes: int = Field(8 * 2**30, ge=2**28, description="Memory one stage of a job may take.")
    job_scratch_bytes: int = Field(16 * 2**30, ge=2**20, description="Disk one job may take.")
    job_attempts: int = Field(3, ge=1, description="How often a job is started when its worker is lost.")
    job_lost_after_seconds: int = Field(15, ge=5, description="A worker silent for so long has lost its job.")
    allow_unsandboxed: bool = Field(
        default=False, description="Take `.pt2` files although the kernel cannot confine what they execute."
    )

    metrics_dir: Path | None = Field(None, description="Folder where the processes of one machine share their metrics.")
    worker_metrics_port: int | None = Field(None, ge=0, le=65535)
    log_level: str = "info"

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
