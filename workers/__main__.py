"""`python -m workers`: one worker."""

import os
import sys

from app.settings import SettingsInvalid, read_settings
from workers.bootstrap import work


def main() -> int:
    """Run a worker; return the exit status."""
    os.umask(0o077)  # as the launcher's: what a worker writes is nobody else's business
    try:
        settings = read_settings()
        settings.require_redis()
    except SettingsInvalid as error:
        sys.stderr.write(f"octet: {error}\n")
        return 2
    work(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
