"""What a report looks like, for programs."""

from fastapi import APIRouter, Response

from app.api.documentation import answers
from app.api.strictness import StrictRoute
from app.report_schema import DIALECT, MEDIA_TYPE, page

router = APIRouter(prefix="/v1", tags=["catalogue"], route_class=StrictRoute)


@router.get(
    "/report.schema.json",
    summary="Read the schema of reports",
    response_class=Response,
    responses=answers({"$schema": DIALECT, "title": "Report"}, media=MEDIA_TYPE),
)
async def get_report_schema() -> Response:
    """Return the JSON schema that every `report.json` validates against."""
    return Response(page(), media_type=MEDIA_TYPE)
