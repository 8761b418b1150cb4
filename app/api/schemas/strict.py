"""What every request schema inherits: an unknown field is an error."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Also forbids unknown fields in the domain records inside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
