"""A report as an answer: as a page for a reader, rendered when it is asked for."""

import asyncio

from fastapi import Response

from app.domain.reports import Report
from app.web.page import MEDIA_TYPE, content_security_policy, render


async def report_page(report: Report) -> Response:
    """Answer with `report.html`. Nothing in it is trusted, so the browser is told to load and run nothing."""
    page = await asyncio.to_thread(render, report)  # a long one takes many milliseconds
    headers = {
        "Content-Security-Policy": content_security_policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(page, media_type=MEDIA_TYPE, headers=headers)
