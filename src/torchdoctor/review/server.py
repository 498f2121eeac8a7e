"""The addresses that the page asks: the questions, images by their number, and the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from torchdoctor.review.security import Refused, refusal
from torchdoctor.review.session import Json, Session
from torchdoctor.types import InputError, ModelDoctorError

PAGE = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("main", "server", "labels", "masks", "canvas", "marking")
    },
}
REFUSED, FAILED = 422, 500


def application(session: Session) -> Starlette:
    """Return the application behind the guard.

    Args:
        session: The review.

    Returns:
        The application; images are known by their number alone, and only those that are asked about.
    """

    def image(request: Request) -> Response:
        number = _number(request, session)
        content, kind = session.viewer.picture(number, small="small" in request.query_params)
        return Response(content, media_type=kind)

    def evidence(request: Request) -> Response:
        return Response(session.viewer.evidence_picture(_number(request, session)), media_type="image/png")

    def says(request: Request) -> Response:
        pairs = session.viewer.says(_number(request, session))
        return JSONResponse([{"category": name, "probability": chance} for name, chance in pairs])

    async def page(request: Request) -> Response:
        name, kind = PAGE[request.url.path.removeprefix("/")]
        content = files("torchdoctor.review").joinpath("page", name).read_bytes()
        return Response(content, media_type=kind)

    def asked(of_session: Callable[[int], Json]) -> Callable[[Request], Response]:
        return lambda request: JSONResponse(of_session(_number(request, session)))

    def answered(of_session: Callable[[int, Any], Json]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                body = json.loads(await request.body())
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict):
                raise InputError("expected a JSON object")
            return JSONResponse(await run_in_threadpool(of_session, _number(request, session), body))

        return endpoint

    return Starlette(
        routes=[
            *(Route(f"/{name}", page) for name in PAGE),
            Route("/state", lambda _request: JSONResponse(session.state())),
            Route("/image/{id:int}", image),
            Route("/evidence/{id:int}", evidence),
            Route("/says/{id:int}", says),
            Route("/mask/{id:int}", asked(session.mask)),
            Route("/proposal/{id:int}", asked(session.proposal)),
            Route("/cut-out/{id:int}", answered(session.cut_out), methods=["POST"]),
            Route("/answer/label/{id:int}", answered(session.answer_label), methods=["POST"]),
            Route("/answer/mask/{id:int}", answered(session.answer_mask), methods=["POST"]),
        ],
        exception_handlers={Refused: refusal, InputError: _refused, ModelDoctorError: _failed},
    )


def _number(request: Request, session: Session) -> int:
    """Return the number of the image that a request is about; InputError where nobody asks about it."""
    number = int(request.path_params["id"])
    if number not in session.queue.images:
        raise InputError(f"image {number} has no part in this review")
    return number


def _refused(_request: Request, error: Exception) -> Response:
    """Answer what cannot be used, or an image that is gone, by a sentence."""
    return PlainTextResponse(str(error), REFUSED)


def _failed(_request: Request, error: Exception) -> Response:
    """Answer that something could not be written."""
    return PlainTextResponse(str(error), FAILED)
