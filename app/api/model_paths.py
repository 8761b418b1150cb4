"""References in the Open Inference Protocol's paths: `{model}` may be more than a name, and a version may follow."""

from app.domain.errors import RequestInvalid
from app.domain.names import Reference

_LONGEST_VERSION = 9  # digits


def reference_in(model: str, version: str | None = None) -> Reference:
    """Read `name`, `name:version`, `name@variant` or `name:version@variant`, and the version beside it.

    Raises:
        NameInvalid: it has another form.
        RequestInvalid: the version is none, or another than the model's own.
    """
    reference = Reference.parse(model)
    if version is None:
        return reference
    number = int(version) if version.isascii() and version.isdecimal() and len(version) <= _LONGEST_VERSION else None
    if number is None or reference.version not in (None, number):
        raise RequestInvalid(f"Version {version[:40]!r} of {model[:80]!r} cannot be: write a whole number, once.")
    return Reference(name=reference.name, version=number, variant=reference.variant)
