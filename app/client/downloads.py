"""Download of an artifact: resumed where it broke off, checked against its SHA-256, and there whole or not at all."""

import hashlib
from pathlib import Path

import httpx

from app.client.transport import Transport
from app.domain.errors import Unavailable
from app.domain.variants import Artifact

ATTEMPTS = 5


def download(transport: Transport, path: str, artifact: Artifact, *, to: Path) -> Path:
    """Bring the artifact at `path` to the file `to`, going on from an earlier part if there is one.

    Raises:
        Unavailable: the connection broke too often, or what arrived is damaged.
    """
    # named by content: a part of another artifact is never taken for one of this
    part = to.with_name(f".{to.name}.{artifact.sha256[:16]}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(transport, path, artifact, part=part)
            break
        except httpx.TransportError as error:
            if attempt == ATTEMPTS:
                raise Unavailable(
                    f"The download of {artifact.file} broke off {ATTEMPTS} times ({error}): "
                    "start it again and it goes on where it stopped."
                ) from error
    _check(part, artifact)
    part.replace(to)
    return to


def _fetch_rest(transport: Transport, path: str, artifact: Artifact, *, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    if done >= artifact.size_bytes:
        return
    headers = {"Range": f"bytes={done}-", "If-Range": f'"{artifact.sha256}"'} if done else {}
    with transport.stream("GET", path, headers=headers) as response:
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)


def _check(part: Path, artifact: Artifact) -> None:
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 == artifact.sha256:
        return
    part.unlink()
    raise Unavailable(f"{artifact.file} arrived with SHA-256 {sha256[:16]}…, not {artifact.sha256[:16]}…: try again.")
