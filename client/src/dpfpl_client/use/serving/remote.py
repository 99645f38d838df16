"""A running ``serve`` classifies, so that no model is loaded here and an answer takes as long as an image."""

import contextlib
import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dpfpl_client.use.predict import FileResult, Prediction, readable
from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.text import printable_lines

__all__ = ["classify_served"]

ANSWER_SECONDS = 120.0
"""For one image; eight others may be before it."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds after which a ``serve`` that has too much to do is asked again."""
LONGEST_ANSWER = 1 << 20
MOST_CLASSES = 1000
"""``serve`` tells no more of an image."""
OF_THE_IMAGE = ("IMAGE_TOO_LARGE", "CORRUPT_IMAGE", "NO_IMAGE")
"""What does not stop the others."""


def classify_served(
    address: str, paths: Iterable[Path], top: int, question: str = "", token: str | None = None
) -> Iterator[FileResult]:
    """One result a path, in order, as ``classify_files`` gives with the same prompt.

    Args:
        address: of a ``serve``: http://HOST:PORT.
        paths: the files; each is sent as it is, to that address and no other.
        top: how many classes of each, at most MOST_CLASSES.
        question: asked of every image, by a prompt that answers in words.
        token: what the ``serve`` asks its callers for.

    Raises:
        ConfigError: BAD_ADDRESS.
        DeploymentError: NOT_SERVED, nobody answers there or not as ``serve`` does; or with the code of its answer.
    """
    there = _Served(address, token)
    largest = there.ask("GET", "/v1/prompt").get("max_bytes")
    if type(largest) is not int:
        raise there.strange("it does not say how large an image may be")
    asked = {"top": min(top, MOST_CLASSES)} | ({"question": question} if question else {})
    query = urllib.parse.urlencode(asked, errors="replace")
    for path in paths:
        image, reason = _content(path, largest)
        if reason:
            yield FileResult(path, error=reason)
            continue
        answer = there.ask("POST", f"/v1/predict?{query}", image)
        if answer.get("code") in OF_THE_IMAGE:
            yield FileResult(path, error=str(answer["message"]).rstrip("."))
        else:
            yield FileResult(path, there.prediction(answer))


def _content(path: Path, largest: int) -> tuple[bytes, str]:
    """The file's bytes, or why it is not sent."""
    if reason := readable(path):
        return b"", reason
    try:
        if path.stat().st_size > largest:
            return b"", f"the file is larger than {largest:,} bytes, which the serve allows"
        return path.read_bytes(), ""
    except OSError as error:
        return b"", str(error.strerror or error)


class _Served:
    """The ``serve`` at an address."""

    def __init__(self, address: str, token: str | None) -> None:
        try:
            parts = urllib.parse.urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urllib.parse.urlsplit("")
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or not host.isprintable():
            raise ConfigError(
                code="BAD_ADDRESS",
                message=f"The address is {address[:200]!r}, expected http://HOST:PORT.",
                advice="Take the address that dpfpl-client serve prints.",
            )
        kind: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connect: Callable[[], Any] = lambda: kind(host, port, timeout=ANSWER_SECONDS)
        self._place, self._prefix = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/octet-stream"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Its answer; asked again for a while where it has too much to do.

        Raises:
            DeploymentError: NOT_SERVED; or the answer is an error, but none of the image.
        """
        for pause in (*PAUSES, None):
            status, answer = self._sent(method, path, body)
            if status != 503 or pause is None:
                break
            time.sleep(pause)
        if not isinstance(answer, dict):
            raise self.strange(f"it answers with status {status}, and not as serve does")
        code, message = answer.get("code"), answer.get("message")
        if isinstance(code, str) and isinstance(message, str):
            if code in OF_THE_IMAGE:
                return answer
            advice = answer.get("advice") or "See dpfpl-client predict --help."
            raise DeploymentError(code=code[:64], message=printable_lines(message), advice=printable_lines(str(advice)))
        if status != 200:
            raise self.strange(f"it answers with status {status}, and not as serve does")
        return answer

    def prediction(self, answer: dict[str, Any]) -> Prediction:
        """What an answer predicts.

        Raises:
            DeploymentError: NOT_SERVED, it is none.
        """
        found = answer.get("predictions")
        if isinstance(found, list) and all(isinstance(each, dict) for each in found):
            names, values = [each.get("name") for each in found], [each.get("probability") for each in found]
            right = all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
            if right and all(isinstance(name, str) for name in names):
                return Prediction(tuple(map(str, names)), tuple(map(float, values)))  # type: ignore[arg-type]
        raise self.strange("its answer holds no predictions")

    def strange(self, reason: str) -> DeploymentError:
        """That nobody is there who answers as ``serve`` does."""
        return DeploymentError(
            code="NOT_SERVED",
            message=f"No dpfpl-client serve answers at {self._place}: {reason}.",
            advice="Start it: dpfpl-client serve --site site.toml. Or leave --served out.",
        )

    def _sent(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        """Status and content of one answer; None for what is no JSON.

        ``serve`` may answer before it has read the body, and close: the answer counts although not all could be sent.
        """
        connection = self._connect()
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._prefix + path, body, self._headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read(LONGEST_ANSWER))
        except (ConnectionResetError, http.client.RemoteDisconnected):
            return 503, None  # its early answer was lost with the connection: too much to do, most likely
        except (OSError, http.client.HTTPException) as error:
            raise self.strange(str(error) or type(error).__name__) from None
        except (ValueError, RecursionError):
            return 502, None
        finally:
            connection.close()
