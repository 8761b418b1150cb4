"""What recipes have in common: bounds that every one keeps, and what those say that learn from rows."""

from typing import Protocol, runtime_checkable

from app.domain.errors import RecipeInvalid

MOST_CALIBRATION_ROWS = 100_000
MOST_NAMED_LAYERS = 1000
LONGEST_LAYER_NAME = 200
LARGEST_SEED = 2**32 - 1


@runtime_checkable
class LearnsFromRows(Protocol):
    """A recipe that may calibrate: how many rows it takes, and the seed that picks them."""

    @property
    def calibration_rows(self) -> int: ...
    @property
    def seed(self) -> int: ...


def check_rows(calibration_rows: int, seed: int) -> None:
    """Check how many rows are asked for, and the seed that picks them.

    Raises:
        RecipeInvalid: one of them is out of bounds.
    """
    if not 1 <= calibration_rows <= MOST_CALIBRATION_ROWS:
        raise RecipeInvalid(f"calibration_rows is {calibration_rows}: take 1 to {MOST_CALIBRATION_ROWS}.")
    if not 0 <= seed <= LARGEST_SEED:
        raise RecipeInvalid(f"seed is {seed}: take 0 to {LARGEST_SEED}.")


def check_layers(names: tuple[str, ...], *, field: str) -> None:
    """Check a list of layer names.

    Raises:
        RecipeInvalid: too many names, one too long, or one twice.
    """
    if len(names) > MOST_NAMED_LAYERS:
        raise RecipeInvalid(f"{field} has {len(names)} names: take at most {MOST_NAMED_LAYERS}.")
    if any(len(name) > LONGEST_LAYER_NAME for name in names):
        raise RecipeInvalid(f"{field} has a longer name than {LONGEST_LAYER_NAME} characters: take shorter ones.")
    if len(set(names)) != len(names):
        raise RecipeInvalid(f"{field} names a layer twice: name each once.")
