"""`python -m workers`: one worker."""

import os
import sys

from redis.exceptions import RedisError

from app.settings import SettingsInvalid, read_settings
from app.telemetry.folder import FOLDER_VARIABLE


def main() -> int:
    """Run a worker; return the exit status."""
    os.umask(0o077)  # as the launcher's: what a worker writes is nobody else's business
    try:
        settings = read_settings()
        settings.require_redis()
    except SettingsInvalid as error:
        sys.stderr.write(f"octet: {error}\n")
        return 2
    if settings.metrics_dir is not None:
        os.environ[FOLDER_VARIABLE] = str(settings.metrics_dir)
    from workers.bootstrap import work  # noqa: PLC0415 - whatever it imports must see the variable above

    try:
        work(settings)
    except (RedisError, ValueError) as error:
        sys.stderr.write(f"octet: Redis does not answer ({error}): start it, or mend OCTET_REDIS_URL.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
