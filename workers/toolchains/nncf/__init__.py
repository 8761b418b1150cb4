"""The NNCF toolchain."""
