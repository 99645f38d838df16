"""``dpfpl-client serve``: an HTTP application that classifies images or answers questions, and where it listens."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, Field

from dpfpl_client.data.decode import DEFAULT_RULES, PixelRules, UnreadableImageError, decode_image
from dpfpl_client.use.prompt import Classifier, Prediction
from dpfpl_common.errors import ModelError
from dpfpl_common.ops.http import PAGE_LIMITS, HttpGuard, address_shown, open_listener

__all__ = ["STATIC", "RequestProblem", "classifier_app", "decode_body", "read_body", "serve_app"]


# The body of a request as an image: bounded in bytes, in pixels and in time.


BODY_SECONDS = 60.0
TYPES = ("image/", "application/dicom", "application/octet-stream")
"""Types that a page of another origin cannot send unasked: a browser asks first, and is not allowed to."""


class RequestProblem(Exception):  # noqa: N818  (an answer to the caller, not a fault of the program)
    """What is wrong with a request: HTTP status, stable code, message and advice."""

    def __init__(self, status: int, code: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.advice = status, code, message, advice


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        RequestProblem: it is of another type, empty, larger than ``max_bytes`` or too slow; nothing more is read then.
    """
    kind = request.headers.get("content-type", "").lower()
    if not kind.startswith(TYPES):
        raise RequestProblem(
            415,
            "WRONG_TYPE",
            f"The content type is {kind[:100] or 'missing'!r}.",
            "Send the image file's bytes as the body, with Content-Type: image/png, image/jpeg or the like.",
        )
    too_large = RequestProblem(
        413, "IMAGE_TOO_LARGE", f"The file is larger than {max_bytes:,} bytes.", "Send a smaller version of the image."
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise RequestProblem(
            408, "TOO_SLOW", f"The image did not arrive within {BODY_SECONDS:.0f} seconds.", "Try again."
        ) from None
    if not body:
        raise RequestProblem(400, "NO_IMAGE", "The request has no body.", "Send the image file's bytes as the body.")
    return bytes(body)


def decode_body(body: bytes, rules: PixelRules = DEFAULT_RULES) -> Image.Image:
    """The image as RGB; its size in pixels is checked before they are unpacked.

    Raises:
        RequestProblem: it is no image, damaged, or has too many pixels.
    """
    try:
        return decode_image(body, rules, SERVED_PIXELS)
    except UnreadableImageError as error:
        raise RequestProblem(
            422,
            "CORRUPT_IMAGE",
            f"The image cannot be used: {error}.",
            f"Send a PNG, JPEG, BMP, WebP, TIFF or GIF file of at most {SERVED_PIXELS:,} pixels.",
        ) from None


MAX_WAITING = 8
SERVED_PIXELS = 32_000_000
"""Of one image. One at a time is decoded, in at most 11 bytes a pixel, while the others wait as files. However many
calls come, ``serve`` takes at most 0.4 GB plus eight files of the largest size beside the model."""
STATIC = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path, file and type of what makes up the page; none of it is secret."""


class ClassProbability(BaseModel):
    """One class, or the answer in words, with the model's probability for it."""

    name: str
    probability: float = Field(ge=0, le=1)


class PredictionAnswer(BaseModel):
    """The most probable classes, best first; or one answer, where the prompt answers in words."""

    predictions: list[ClassProbability]


class Problem(BaseModel):
    """Why there is no answer."""

    code: str = Field(description="stable, for programs")
    message: str
    advice: str = Field(description="what to do about it")


class ReleasedScore(BaseModel):
    """A share of right answers on the site's held-back examples, estimated from the noised counts that left it."""

    candidate: str
    value: float | None = Field(description="none where the noise hides it")
    interval: list[float] = Field(description="95 %, of the noise")


class About(BaseModel):
    """Whose prompt it is, of which experiment, for which model."""

    site: str
    model: str
    experiment: str
    version: str = Field(description="changes with every training")
    learned: str = Field(description="when, UTC")
    finished: bool = Field(description="whether the experiment came to its end")
    usual_mix: float | None = Field(
        description="share of images expected from the site's usual mix of classes; none without class vectors"
    )


class PromptAnswer(BaseModel):
    """What is served."""

    classes: list[str] = Field(description="none where it answers in words")
    task: str = Field(description="classify, vqa: every request brings a question, or caption: it may")
    question: str = Field(description="what is asked where a request brings no question")
    max_bytes: int = Field(description="largest image file that is accepted")
    scores: list[ReleasedScore] = Field(description="with noise; none where none left the site")
    about: About | None = Field(None, description="names; none where none were given")


class Health(BaseModel):
    """That it works."""

    status: str


IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/png", "image/jpeg", "image/*", "application/octet-stream")
        },
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in (
        (400, "no image in the request"),
        (408, "the image arrived too slowly"),
        (413, "the file is too large"),
        (415, "the content type is no image's"),
        (
            422,
            "an image that cannot be read or has too many pixels, a missing or unwanted question, or a wrong parameter",
        ),
        (503, "too many requests at once"),
    )
}
QUESTION = Query(description="about the image; only for a prompt that answers in words, which needs it")


class _OneAtATime:
    """Decodes and classifies one image at a time, in one thread; few may wait. Bounds memory and keeps answers prompt.

    A caller who goes away does not end what the thread does for it, so it is the thread that there is one of.
    """

    def __init__(self, classify: Callable[[bytes, int, str], Prediction]) -> None:
        self._classify = classify
        self._thread = ThreadPoolExecutor(1, "classify")
        self._waiting = 0

    def check_room(self) -> None:
        """Refuse before a body is read when there is no room for it."""
        if self._waiting >= MAX_WAITING:
            raise RequestProblem(503, "BUSY", f"{MAX_WAITING} images are being classified.", "Try again in a moment.")

    async def __call__(self, request: Request, max_bytes: int, top: int, question: str) -> Prediction:
        self.check_room()
        self._waiting += 1
        try:
            body = await read_body(request, max_bytes)
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._classify, body, top, question)
        finally:
            self._waiting -= 1


def classifier_app(
    classifier: Classifier,
    max_bytes: int,
    rules: PixelRules = DEFAULT_RULES,
    scores: Sequence[dict[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The application: ``/``, ``/v1/predict``, ``/v1/prompt``, ``/health`` and ``/openapi.json``.

    Images and questions are neither stored nor logged. ``scores``: what ``released_scores`` gives;
    ``about``: of ``About``.
    """
    app = FastAPI(
        title="DP-FPL classifier",
        summary="Classifies images with a site's personalised prompt.",
        version="1",
        docs_url=None,  # FastAPI's own documentation page loads scripts from another server
        redoc_url=None,
    )

    def classify(body: bytes, top: int, question: str) -> Prediction:
        (prediction,) = classifier.classify([decode_body(body, rules)], top, question)
        return prediction

    worker = _OneAtATime(classify)

    @app.exception_handler(RequestProblem)
    async def problem(request: Request, error: RequestProblem) -> JSONResponse:
        return _refusal(error.status, error.code, error.message, error.advice)

    @app.exception_handler(ModelError)
    async def question_problem(request: Request, error: ModelError) -> JSONResponse:
        return _refusal(422, error.code, error.message, error.advice)

    @app.exception_handler(RequestValidationError)
    async def parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return _refusal(422, "WRONG_PARAMETER", f"{wrong}.", "See /openapi.json.")

    @app.post("/v1/predict", responses=PROBLEMS, openapi_extra=IMAGE_BODY)
    async def predict(
        request: Request, top: Annotated[int, Query(ge=1, le=1000)] = 3, question: Annotated[str, QUESTION] = ""
    ) -> PredictionAnswer:
        """Classify the image that is the request's body, or answer the question about it."""
        found = await worker(request, max_bytes, top, classifier.asked(question))
        pairs = zip(found.classes, found.probabilities, strict=True)
        return PredictionAnswer(predictions=[ClassProbability(name=n, probability=min(p, 1.0)) for n, p in pairs])

    @app.get("/v1/prompt")
    async def prompt() -> PromptAnswer:
        """What is served."""
        task = classifier.task
        return PromptAnswer(
            classes=list(classifier.classes),
            task=task.kind,
            question=task.question if task.kind == "caption" else "",
            max_bytes=max_bytes,
            scores=[ReleasedScore(**score) for score in scores],
            about=None if about is None else About(**about),
        )

    @app.get("/health")
    async def health() -> Health:
        """That the server works."""
        return Health(status="ok")

    for path, (name, kind) in STATIC.items():
        content = resources.files("dpfpl_client.use.serving").joinpath(name).read_bytes()
        app.add_api_route(path, _static(content, kind), include_in_schema=False)
    return app


def _refusal(status: int, code: str, message: str, advice: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message, "advice": advice}, status, headers={"connection": "close"})


def _static(content: bytes, kind: str) -> Callable[[], Response]:
    def answer() -> Response:
        return Response(content, media_type=kind)

    return answer


def serve_app(app: FastAPI, host: str, port: int, token: str | None, say: Callable[[str], None]) -> None:
    """Serve the application until interrupted.

    Args:
        app: of ``classifier_app``.
        host, port: where to listen.
        token: what callers must show; None: be on this machine. See ``read_http_token``.
        say: told the address.

    Raises:
        DeploymentError: the address cannot be listened on.
    """
    listener = open_listener(host, port)
    say(f"Open {address_shown(host, listener)}  (API: /openapi.json). Ctrl-C stops it.")
    config = uvicorn.Config(HttpGuard(app, token, STATIC), timeout_graceful_shutdown=5, **PAGE_LIMITS)
    uvicorn.Server(config).run(sockets=[listener])
