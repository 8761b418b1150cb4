"""References in paths and bodies that name a version, never a variant."""

from app.domain.errors import NameInvalid
from app.domain.names import Reference


def plain_reference(text: str) -> Reference:
    """Read `name` or `name:version`.

    Raises:
        NameInvalid: it is neither.
    """
    reference = Reference.parse(text)
    if reference.variant is not None:
        raise NameInvalid(f"{text[:80]!r} names a variant, but a name or name:version is wanted here.")
    return reference
