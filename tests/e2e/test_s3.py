"""The main job with an S3-compatible store: moto's server, over HTTP."""

from pathlib import Path

from app.client import Octet
from tests.e2e.conftest import prepare
from tests.running import new_bucket, running_s3, running_service


def test_the_main_job_runs_on_s3_and_another_gateway_serves_from_it(tmp_path: Path) -> None:
    with running_s3() as s3:
        settings = {
            "OCTET_STORE_URL": f"s3://{new_bucket(s3)}/octet",
            "OCTET_S3_ENDPOINT_URL": str(s3.endpoint_url),
            "OCTET_S3_ACCESS_KEY_ID": str(s3.access_key_id),
            "OCTET_S3_SECRET_ACCESS_KEY": str(s3.secret_access_key),
        }
        (tmp_path / "first").mkdir()
        with running_service(tmp_path / "first", settings=settings) as first, Octet(first.url) as octet:
            prepared = prepare(octet, tmp_path)
            answers = octet.predict(f"{prepared.name}@int8", prepared.x[:8]).output
            assert not (first.data_dir / "store").exists()
        (tmp_path / "second").mkdir()
        with running_service(tmp_path / "second", settings=settings) as second, Octet(second.url) as octet:
            again = octet.predict(f"{prepared.name}@int8", prepared.x[:8]).output
            assert (again == answers).all()
            assert octet.download(f"{prepared.name}@int8", to=tmp_path).exists()
