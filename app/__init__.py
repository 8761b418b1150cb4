"""Octet's service side: HTTP gateway, catalogue, jobs and serving. Never imports a machine-learning library."""

__version__ = "0.1.0"
