"""The NNCF toolchain. NNCF reports its use to its makers unless it is told not to, before it is imported."""

import os

os.environ["NNCF_CI"] = "1"
