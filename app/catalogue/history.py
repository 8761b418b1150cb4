"""Finished jobs, kept in the store: the first final record of a job is the one that counts."""

from app.catalogue.records import from_json, to_json
from app.catalogue.store import Store
from app.domain.jobs import Job
from app.domain.reports import Report


class JobHistory:
    """What became of every job that is final."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def finish(self, job: Job, *, log: str = "") -> Job:
        """Keep a final job; return the record that counts, which is another one if it was there first."""
        await self._store.create(f"jobs/{job.id}.log", log.encode())
        if await self._store.create(f"jobs/{job.id}.json", to_json(job)):
            return job
        return await self.get(job.id) or job

    async def get(self, job: str) -> Job | None:
        """Return a finished job."""
        data = await self._store.read(path := f"jobs/{job}.json")
        return from_json(Job, data, path=path) if data is not None else None

    async def log(self, job: str) -> str | None:
        """Return what a finished job's processes printed."""
        data = await self._store.read(f"jobs/{job}.log")
        return data.decode(errors="replace") if data is not None else None

    async def keep_report(self, job: str, report: Report) -> None:
        """Keep the report of an evaluate job, or of a quantize job that failed."""
        await self._store.create(f"jobs/{job}.report.json", to_json(report))

    async def report(self, job: str) -> Report | None:
        """Return what `keep_report` kept of a job; None if nothing."""
        data = await self._store.read(path := f"jobs/{job}.report.json")
        return from_json(Report, data, path=path) if data is not None else None
