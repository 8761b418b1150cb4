"""Local copies of artifacts, from which runners load them. Several gateway processes share one folder."""

import asyncio
import hashlib
import os
import tempfile
import time
from pathlib import Path

from app.catalogue.store import Store, on_local_disk
from app.catalogue.variants import Variants
from app.domain.errors import StoreUnavailable
from app.domain.serving import Servable
from app.domain.variants import Variant

_KEPT, _FRESH = ".onnx", ".part"
_LOADED_AFTER_SECONDS = 600  # whoever asked for a copy so long ago has loaded it, and needs the file no more
_DEAD_AFTER_SECONDS = 600  # nothing has been written for so long: whoever wrote it is gone


class ArtifactCache:
    """Copies named by their SHA-256, which is checked whenever one is asked for.

    Args:
        most_bytes: the copies that were asked for longest ago give way beyond it.
    """

    def __init__(self, store: Store, variants: Variants, *, folder: Path, most_bytes: int) -> None:
        self._store = store
        self._variants = variants
        self._folder = folder
        self._most_bytes = most_bytes

    def sweep(self) -> None:
        """Remove what processes that were killed have left half written."""
        for file in self._folder.glob(f"*{_FRESH}"):
            if (found := _stat(file)) is not None and time.time() - found.st_mtime > _DEAD_AFTER_SECONDS:
                file.unlink(missing_ok=True)

    async def fetch(self, variant: Variant | Servable) -> Path:
        """Return a local file with the variant's artifact.

        Raises:
            StoreUnavailable: the store's copy is not what was published.
            StoreFull: this machine's disk is full.
        """
        kept = self._folder / f"{variant.artifact.sha256}{_KEPT}"
        if await asyncio.to_thread(_found, kept, sha256=variant.artifact.sha256):
            return kept
        await self._bring(variant, kept)
        self._make_room(for_=kept)
        return kept

    async def _bring(self, variant: Variant | Servable, kept: Path) -> None:
        with on_local_disk(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh = _new_file(self._folder)
        try:
            written = await self._store.fetch(self._variants.artifact_path(variant), fresh)
            if written.sha256 != variant.artifact.sha256:
                raise StoreUnavailable(
                    f"The artifact of {variant.model}:{variant.version}@{variant.name} is damaged in the store, its "
                    "SHA-256 is not the published one: restore it from a backup, or quantize the model again."
                )
            fresh.replace(kept)
        finally:
            fresh.unlink(missing_ok=True)

    def _make_room(self, *, for_: Path) -> None:
        copies = [(file, found) for file in self._folder.glob(f"*{_KEPT}") if (found := _stat(file)) is not None]
        total = sum(found.st_size for _, found in copies)
        for file, found in sorted(copies, key=lambda copy: copy[1].st_mtime):
            if total <= self._most_bytes:
                return
            if file != for_ and time.time() - found.st_mtime > _LOADED_AFTER_SECONDS:
                file.unlink(missing_ok=True)
                total -= found.st_size


def _new_file(folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=_FRESH, delete=False) as file:
        return Path(file.name)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:  # another process was faster
        return None


def _found(file: Path, *, sha256: str) -> bool:
    """Return whether the file is there and whole; then it counts as asked for now."""
    try:
        with file.open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == sha256
            os.utime(stream.fileno())
    except OSError:  # missing, or not ours to read: then it is brought anew
        return False
    return whole
