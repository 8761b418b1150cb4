"""The folder in which the processes of one machine share their metrics. Imports nothing that reads its variable."""

import os
import re

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it when it is imported
METRICS_FILE = re.compile(r"(counter|gauge_[a-z]+|histogram|summary)_(?P<process>\d+)\.db")


def lives(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
