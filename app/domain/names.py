"""Names of models, datasets and variants, and references such as `resnet18:3@int8`."""

import re
from dataclasses import dataclass
from typing import Self

from app.domain.errors import NameInvalid

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_REFERENCE = re.compile(r"(?P<name>[^:@]+)(?::(?P<version>[0-9]{1,9}))?(?:@(?P<variant>[^:@]+))?")


def check_name(name: str, *, of: str = "name") -> str:
    """Return `name` unchanged if it is 1 to 64 of a-z, 0-9, '.', '_', '-', with a letter or digit at both ends.

    Raises:
        NameInvalid: it is not, or it holds '..'.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise NameInvalid(
            f"The {of} {name[:80]!r} is not usable: take 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning and ending with a letter or a digit, without '..'."
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One version of a model or dataset, or one variant of it.

    Attributes:
        name: the model's or dataset's name.
        version: 1, 2, …; None means the newest that is ready.
        variant: None means the one that the model's routing names.
    """

    name: str
    version: int | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.version is not None and self.version < 1:
            raise NameInvalid(f"Version {self.version} of {self.name!r} does not exist: versions begin at 1.")
        if self.variant is not None:
            check_name(self.variant, of="variant")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name`, `name:version`, `name@variant` or `name:version@variant`.

        Raises:
            NameInvalid: the text has another form.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise NameInvalid(f"{text[:80]!r} is not a reference: write name, name:version or name:version@variant.")
        version = match["version"]
        return cls(name=match["name"], version=int(version) if version else None, variant=match["variant"])

    def __str__(self) -> str:
        version = f":{self.version}" if self.version is not None else ""
        variant = f"@{self.variant}" if self.variant is not None else ""
        return f"{self.name}{version}{variant}"
