"""A running ``serve`` classifies, so that no model is loaded here and an answer takes as long as an image."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dpfpl_client.use.predict import FileResult, Prediction, readable
from dpfpl_common.errors import ConfigError, DeploymentError

__all__ = ["classify_served"]

ANSWER_SECONDS = 120.0
"""For one image; eight others may be before it."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds after which a ``serve`` that has too much to do is asked again."""
OF_THE_IMAGE = ("IMAGE_TOO_LARGE", "CORRUPT_IMAGE", "NO_IMAGE")
"""What does not stop the others."""


def classify_served(
    address: str, paths: Iterable[Path], top: int, question: str = "", token: str | None = None
) -> Iterator[FileResult]:
    """One result a path, in order, as ``classify_files`` gives with the same prompt.

    Args:
        address: of a ``serve``: http://HOST:PORT.
        paths: the files; each is sent as it is.
        top: how many classes of each.
        question: asked of every image, by a prompt that answers in words.
        token: what the ``serve`` asks its callers for.

    Raises:
        ConfigError: BAD_ADDRESS.
        DeploymentError: NOT_SERVED, nobody answers there or not as ``serve`` does; or with the code of its answer.
    """
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise ConfigError(
            code="BAD_ADDRESS",
            message=f"The address is {address[:200]!r}, expected http://HOST:PORT.",
            advice="Take the address that dpfpl-client serve prints.",
        )
    query = urllib.parse.urlencode({"top": top} | ({"question": question} if question else {}))
    for path in paths:
        if reason := readable(path):
            yield FileResult(path, error=reason)
            continue
        answer = _asked(f"{address.rstrip('/')}/v1/predict?{query}", path.read_bytes(), token)
        if answer.get("code") in OF_THE_IMAGE:
            yield FileResult(path, error=str(answer["message"]).rstrip("."))
        elif "code" in answer:
            raise DeploymentError(code=answer["code"], message=answer["message"], advice=answer.get("advice", ""))
        else:
            found = answer["predictions"]
            classes, values = tuple(each["name"] for each in found), tuple(each["probability"] for each in found)
            yield FileResult(path, Prediction(classes, values))


def _asked(url: str, body: bytes, token: str | None) -> dict[str, Any]:
    """What it says: ``predictions``, or ``code`` and ``message``, mostly with ``advice``."""
    for pause in (*PAUSES, None):
        status, answer = _sent(url, body, token)
        if status != 503 or pause is None:
            break
        time.sleep(pause)
    if not isinstance(answer, dict) or not ("predictions" in answer or {"code", "message"} <= set(answer)):
        raise _nobody(url, f"it answers with status {status}, and not as serve does")
    return answer


def _sent(url: str, body: bytes, token: str | None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/octet-stream"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, body, headers)  # noqa: S310  http or https, see above
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # images go to that address and no other
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.loads(error.read())
        except ValueError:
            return error.code, None
    except (OSError, ValueError) as error:
        raise _nobody(url, str(getattr(error, "reason", error))) from None


def _nobody(url: str, reason: str) -> DeploymentError:
    place = urllib.parse.urlsplit(url)
    return DeploymentError(
        code="NOT_SERVED",
        message=f"No dpfpl-client serve answers at {place.scheme}://{place.netloc}: {reason}.",
        advice="Start it: dpfpl-client serve --site site.toml. Or leave --served out.",
    )
