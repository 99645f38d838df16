"""Names of the Flower records that carry the payloads, the same at server and site.

::

    request   ArrayRecord  CONTEXT  {GLOBAL_CONTEXT}
              ConfigRecord REQUEST  {protocol_version, experiment, round} and, to train, {evaluate}
    reply     ArrayRecord  CONTEXT  {UPDATE}                      only from training
              MetricRecord METRICS  {accuracies by name}
              ConfigRecord REPLY    {protocol_version, site, round, seconds, signature,
                                   status, code, rule, advice}
    refusal   ConfigRecord REPLY    the same keys, status REFUSED
"""

from collections.abc import Mapping
from typing import TypeVar

from dpfpl_common.errors import PayloadError

__all__ = [
    "CONTEXT",
    "EVALUATE_KEYS",
    "GLOBAL_CONTEXT",
    "METRICS",
    "OK",
    "REFUSED",
    "REPLY",
    "REPLY_KEYS",
    "REQUEST",
    "TRAIN_KEYS",
    "UPDATE",
    "exact_keys",
    "typed",
]

CONTEXT = "context"
GLOBAL_CONTEXT = "global_context"
UPDATE = "update"
METRICS = "metrics"
REQUEST = "request"
REPLY = "reply"

EVALUATE_KEYS = ("protocol_version", "experiment", "round")
TRAIN_KEYS = (*EVALUATE_KEYS, "evaluate")
REPLY_KEYS = ("protocol_version", "site", "round", "seconds", "signature", "status", "code", "rule", "advice")

OK = "ok"
REFUSED = "refused"

T = TypeVar("T")


def exact_keys(record: Mapping[str, object], keys: tuple[str, ...], what: str) -> None:
    """Refuse a record with a key too many or too few.

    Raises:
        PayloadError: UNKNOWN_FIELD or MISSING_FIELD, naming the key.
    """
    for key in record:
        if key not in keys:
            raise PayloadError(code="UNKNOWN_FIELD", message=f"{what} holds the unknown {str(key)[:40]!r}.")
    for key in keys:
        if key not in record:
            raise PayloadError(code="MISSING_FIELD", message=f"{what} lacks {key!r}.")


def typed(value: object, kind: type[T], what: str) -> T:
    """The value, if it is of exactly this type (True is no whole number here).

    Raises:
        PayloadError: WRONG_TYPE, naming what was expected.
    """
    if type(value) is not kind:
        raise PayloadError(code="WRONG_TYPE", message=f"{what} must be of type {kind.__name__}.")
    return value
