"""FastAPI with a pool of threads: what most people write first."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.serving.peers.engine import Settings, SyncEngine, array_of

settings = Settings()
engine = SyncEngine(settings)
pool = ThreadPoolExecutor(settings.streams)
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Answer one row."""
    body, media = await request.body(), request.headers["content-type"]
    loop = asyncio.get_running_loop()
    logits = await loop.run_in_executor(pool, lambda: engine.infer(array_of(media, body)))
    return Response(logits, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=settings.port, log_level="warning", access_log=False)
