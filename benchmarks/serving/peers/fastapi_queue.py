"""FastAPI with OpenVINO's AsyncInferQueue: what somebody writes who knows the engine."""

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.serving.peers.engine import QueueEngine, Settings, array_of

settings = Settings()
engine = QueueEngine(settings)
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Answer one row."""
    body = await request.body()
    logits = await engine.infer(array_of(request.headers["content-type"], body))
    return Response(logits, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=settings.port, log_level="warning", access_log=False)
