"""Where the API has what a reference or an id names; names are checked before anything is sent."""

from urllib.parse import quote

from app.domain.errors import NameInvalid
from app.domain.names import Reference


def plain(reference: str) -> str:
    """Return a reference without its variant."""
    parsed = Reference.parse(reference)
    return str(Reference(name=parsed.name, version=parsed.version))


def with_variant(reference: str) -> Reference:
    """Return a reference that names a variant.

    Raises:
        NameInvalid: it names none.
    """
    parsed = Reference.parse(reference)
    if parsed.variant is None:
        raise NameInvalid(f"{reference!r} names no variant: write it behind an @, such as {reference}@int8.")
    return parsed


def model_path(reference: str) -> str:
    """Return the address of a model's version."""
    return f"/v1/models/{plain(reference)}"


def variant_path(reference: str) -> str:
    """Return the address of a variant."""
    return f"{model_path(reference)}/variants/{with_variant(reference).variant}"


def job_path(job_id: str) -> str:
    """Return the address of a job."""
    return f"/v1/jobs/{quote(job_id, safe='')}"
