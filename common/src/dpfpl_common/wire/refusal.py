"""A refusal as it crosses a wire: a stable code, what the request ran into, what to do about it."""

import re
from dataclasses import dataclass

from dpfpl_common.errors import DpfplError, PayloadError, PrivacyError, RefusedError

__all__ = ["MAX_TEXT", "Refusal", "internal_refusal", "plain", "refusal_of"]

MAX_TEXT = 500
"""Longest text of a refusal, in characters."""

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SPEAKS_OF_THE_REQUEST = (RefusedError, PayloadError, PrivacyError)


@dataclass(frozen=True)
class Refusal:
    """Why a site did not do what it was asked.

    Attributes:
        code: stable, upper case.
        rule: the broken rule's name in policy.toml or in the protocol, where there is one.
        message: what the request ran into; empty where words could tell something about the site.
        advice: what to do about it.
    """

    code: str
    rule: str = ""
    message: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.code, str) or not _CODE.fullmatch(self.code):
            raise PayloadError(code="BAD_REFUSAL", message="A refusal's code must be an upper-case word.")
        for name in ("rule", "message", "advice"):
            text = getattr(self, name)
            if not isinstance(text, str) or text != plain(text):
                raise PayloadError(
                    code="BAD_REFUSAL",
                    message=f"A refusal's {name} must be one printable line of {MAX_TEXT} characters.",
                )


def refusal_of(error: DpfplError) -> Refusal:
    """What of an error may leave the site.

    Errors that speak of the request are told whole. The others speak of the site's own files (their text may name an
    image or a path), so of them only the code is told.
    """
    code = error.code if _CODE.fullmatch(error.code) else "REFUSED"
    if isinstance(error, _SPEAKS_OF_THE_REQUEST):
        return Refusal(code, plain(getattr(error, "rule", "")), plain(error.message), plain(error.advice))
    return Refusal(code, advice="Ask the site's administrator: the log of its agent says what is wrong.")


def internal_refusal(incident: str) -> Refusal:
    """The refusal that stands for an unforeseen error; ``incident`` is the opaque id under which the site logged it."""
    return Refusal(
        "INTERNAL",
        "",
        f"An unforeseen error, incident {incident}.",
        "Ask the site's administrator: the log of its agent has the details under this id.",
    )


def plain(text: str) -> str:
    """The text as one line of at most MAX_TEXT printable characters, safe to print and to log."""
    kept = "".join(c if c.isprintable() else " " for c in text[: 2 * MAX_TEXT])
    return kept[:MAX_TEXT].strip()
