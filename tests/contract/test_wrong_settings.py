"""Starting Octet with settings that cannot work: one sentence that names the setting, and an exit."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import clean_environment

CASES = [
    ({"OCTET_STORE_URL": "ftp://x/y"}, "OCTET_STORE_URL"),
    ({"OCTET_DATA_DIR": "/proc/nope"}, "take another --data-dir"),
    ({"OCTET_REDIS_URL": "redis://user:hidden@127.0.0.1:9/0"}, "127.0.0.1:9/0"),
    ({"OCTET_REDIS_URL": "nonsense"}, "OCTET_REDIS_URL"),
    ({"OCTET_PORT": "99999"}, "OCTET_PORT is '99999'"),
    ({"OCTET_LOG_LEVEL": "loud"}, "must be one of debug"),
    ({"OCTET_MAX_UPLOAD_BYTES": "4GB"}, "OCTET_MAX_UPLOAD_BYTES is '4GB'"),
]


@pytest.mark.parametrize(("settings", "says"), CASES, ids=lambda value: str(value)[:40])
def test_a_setting_that_cannot_work_ends_with_one_sentence(settings: dict[str, str], says: str, tmp_path: Path) -> None:
    environment = clean_environment() | {"OCTET_DATA_DIR": str(tmp_path / "data"), "OCTET_PORT": "0"} | settings
    done = subprocess.run(
        [sys.executable, "-m", "app.launcher", "serve"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr
