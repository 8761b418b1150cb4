"""The servers that are compared: one line each. A new one is a file in `peers/`, its requirements, and a line here."""

from collections.abc import Mapping

from benchmarks.serving import calls
from benchmarks.serving.calls import BODIES, Body
from benchmarks.serving.home import REPOSITORY
from benchmarks.serving.octet import EmbeddedOctet
from benchmarks.serving.servers import Form, Peer, Server, plain

_PATH = "/v2/models/mobilenet/infer"
_PROTOCOL: Mapping[Body, Form] = {
    "float32": Form(path=_PATH, bodies=calls.protocol_base64, read=calls.protocol_base64_logits),
    "json": Form(path=_PATH, bodies=calls.protocol_json, read=calls.protocol_json_logits),
}
_ALL, _MOUNTED, _RAW = plain("/predict", *BODIES), plain("/raw/predict", *BODIES), plain("/raw", *BODIES)
_TYPED = plain("/typed", "float32")
_BENTOML = (
    *("-m", "bentoml", "serve", "benchmarks.serving.peers.bentoml:Mobilenet"),
    *("--host", "127.0.0.1", "--port", "{port}", "--working-dir", str(REPOSITORY)),
)
_WORKER = {"BENCH_WORKERS": "1"}

# fmt: off
SERVERS: dict[str, Server] = {
    "fastapi-threads": Peer(name="FastAPI, thread pool", module="fastapi_threads", environment="fastapi", forms=_ALL),
    "fastapi-queue": Peer(name="FastAPI, AsyncInferQueue", module="fastapi_queue", environment="fastapi", forms=_ALL),
    "litserve": Peer(name="LitServe, batch 8", module="litserve", environment="litserve", forms=_ALL),
    "bentoml": Peer(name="BentoML, typed", environment="bentoml", forms=_TYPED, command=_BENTOML),
    "bentoml-raw": Peer(name="BentoML, mounted app", environment="bentoml", forms=_MOUNTED, command=_BENTOML),
    "mlserver": Peer(name="MLServer, protocol", module="mlserver", environment="mlserver", forms=_PROTOCOL),
    "mlserver-worker": Peer(name="MLServer, protocol, worker process", module="mlserver", environment="mlserver", forms=_PROTOCOL, variables=_WORKER),  # noqa: E501
    "mlserver-raw": Peer(name="MLServer, raw handler", module="mlserver", environment="mlserver", forms=_RAW),
    "ray": Peer(name="Ray Serve, its proxy", module="ray", environment="ray", forms=_ALL),
    "octet": EmbeddedOctet(),
}
# fmt: on
