"""What a caller asks of a job."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.api.schemas.recipes import RecipeField
from app.api.schemas.strict import StrictModel
from app.domain.jobs import Job
from app.domain.recipes import PtqStatic


class QuantizeRequest(StrictModel):
    """Make a variant of a model."""

    kind: Literal["quantize"]
    model: str = Field(description="`name` or `name:version`.")
    calibration: str | None = Field(None, description="Dataset whose rows set the ranges.")
    evaluation: str | None = Field(None, description="Dataset whose rows score; else rows that calibration left over.")
    training: str | None = Field(
        None, description="Dataset whose rows train, for a recipe that does; else those of the calibration dataset."
    )
    recipe: RecipeField = PtqStatic()
    variant: str | None = Field(None, description="Name to publish under; else the recipe's.")


class EvaluateRequest(StrictModel):
    """Measure a published variant again, on other rows."""

    kind: Literal["evaluate"]
    model: str = Field(description="`name` or `name:version`.")
    variant: str
    evaluation: str


JobRequest = Annotated[QuantizeRequest | EvaluateRequest, Field(discriminator="kind")]


class JobList(BaseModel):
    """The newest jobs first."""

    jobs: list[Job]
