"""The Python client and the `octet` command line: what a user of the HTTP API needs, and nothing of the service."""

from app.client.client import Octet
from app.client.records import DatasetVersion, ModelVersion, Prediction, Readiness, Routing

__all__ = ["DatasetVersion", "ModelVersion", "Octet", "Prediction", "Readiness", "Routing"]
