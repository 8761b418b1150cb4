"""References in paths and bodies that name less than they might: no variant, or nothing but the model."""

from app.domain.errors import NameInvalid
from app.domain.names import Reference, check_name


def plain_reference(text: str) -> Reference:
    """Read `name` or `name:version`.

    Raises:
        NameInvalid: it is neither.
    """
    reference = Reference.parse(text)
    if reference.variant is not None:
        raise NameInvalid(f"{text[:80]!r} names a variant, but a name or name:version is wanted here.")
    return reference


def bare_name(text: str) -> str:
    """Read a model's name that must stand alone.

    Raises:
        NameInvalid: it is none, or a version or variant comes with it.
    """
    if ":" in text or "@" in text:
        name = Reference.parse(text).name
        raise NameInvalid(f"{text[:80]!r} names more than a model, but routing is the whole model's: write {name!r}.")
    return check_name(text)
