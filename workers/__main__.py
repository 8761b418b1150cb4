"""`python -m workers`: one worker."""

import sys

from app.settings import Settings
from workers.bootstrap import work


def main() -> int:
    """Run a worker; return the exit status."""
    settings = Settings()
    if settings.redis_url is None:
        sys.stderr.write("A worker needs OCTET_REDIS_URL: set it, or run `octet serve`, which brings a Redis.\n")
        return 2
    work(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
