"""Translates payloads to Flower's records and a site's records to its answer: the server's side of the exchange."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import Experiment
from dpfpl_common.wire.codec import check_reply, check_version, context_to_bytes, evidence_rows, write_experiment
from dpfpl_common.wire.payloads import (
    METRIC_NAMES,
    Context,
    EvaluateRequest,
    SiteReply,
    SumReply,
    SumRequest,
    TrainRequest,
)
from dpfpl_common.wire.records import (
    CONTEXT,
    EVIDENCE,
    GLOBAL_CONTEXT,
    METRICS,
    OK,
    POOL,
    REFUSED,
    REPLY,
    REPLY_KEYS,
    REQUEST,
    SUM,
    SUM_REPLY_KEYS,
    UPDATE,
    context_from_array,
    exact_keys,
    matrix_from_array,
    typed,
)
from dpfpl_common.wire.refusal import Refusal, plain

__all__ = [
    "SiteRefusal",
    "decode_reply",
    "decode_sum_reply",
    "encode_evaluate_request",
    "encode_sum_request",
    "encode_train_request",
]


@dataclass(frozen=True)
class SiteRefusal:
    """A site's refusal.

    Attributes:
        site: the name that the site's ClientApp goes by; not proven by anything.
        round: the round it was asked for, 0 where the site could not read the request.
        refusal: code, rule and advice.
    """

    site: str
    round: int
    refusal: Refusal


def encode_train_request(request: TrainRequest) -> RecordDict:
    """The records of a train message."""
    asked = {"evaluate": bool(request.evaluate), "collect": bool(request.collect)}
    return _encode_request(request.experiment, request.round, request.global_context, request.pool, asked)


def encode_evaluate_request(request: EvaluateRequest) -> RecordDict:
    """The records of an evaluate message."""
    chosen = {"chosen": request.chosen}
    return _encode_request(request.experiment, request.round, request.global_context, request.pool, chosen)


def encode_sum_request(request: SumRequest) -> RecordDict:
    """The records of a step of a secure sum."""
    arrays = {GLOBAL_CONTEXT: request.global_context, POOL: request.pool}
    settings = ConfigRecord(
        {
            "protocol_version": PROTOCOL_VERSION,
            "experiment": write_experiment(request.experiment),
            "sum": request.sum,
            "attempt": request.attempt,
            "step": request.step,
            "content": request.content,
        }
    )
    present = {name: Array(array) for name, array in arrays.items() if array is not None}
    return RecordDict({CONTEXT: ArrayRecord(present), SUM: settings})


def decode_sum_reply(records: RecordDict) -> SumReply | SiteRefusal:
    """What a site answered to a step of a secure sum; PayloadError if anything is wrong."""
    if REPLY in records:
        return _decode_refusal(records)
    head = records.get(SUM)
    if not isinstance(head, ConfigRecord):
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks the ConfigRecord {SUM!r}.")
    check_version(head.get("protocol_version"))
    exact_keys(records, (SUM,), "The message")
    exact_keys(head, SUM_REPLY_KEYS, f"The record {SUM!r}")
    site = typed(head["site"], str, "site")
    return SumReply(site, *(typed(head[name], bytes, name) for name in ("content", "signature")))


def _decode_refusal(records: RecordDict) -> SiteRefusal:
    """A refusal of a step of a secure sum."""
    head = records[REPLY]
    if not isinstance(head, ConfigRecord):
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks the ConfigRecord {REPLY!r}.")
    check_version(head.get("protocol_version"))
    exact_keys(head, REPLY_KEYS, f"The record {REPLY!r}")
    refusal = Refusal(*(typed(head[key], str, key) for key in ("code", "rule", "message", "advice")))
    return SiteRefusal(plain(typed(head["site"], str, "site"))[:63], 0, refusal)


def decode_reply(records: RecordDict, request: TrainRequest | EvaluateRequest) -> SiteReply | SiteRefusal:
    """What a site answered to ``request``; PayloadError with one of ``fields.CODES`` if anything is wrong."""
    head = records.get(REPLY)
    if not isinstance(head, ConfigRecord):
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks the ConfigRecord {REPLY!r}.")
    check_version(head.get("protocol_version"))
    exact_keys(head, REPLY_KEYS, f"The record {REPLY!r}")
    site = typed(head["site"], str, "site")
    round_number = typed(head["round"], int, "round")
    scores = tuple(typed(score, float, "scores") for score in typed(head["scores"], list, "scores"))
    signature = typed(head["signature"], bytes, "signature")
    refusal = Refusal(*(typed(head[key], str, key) for key in ("code", "rule", "message", "advice")))
    match head["status"]:
        case str() as status if status == REFUSED:
            exact_keys(records, (REPLY,), "The message")
            if round_number not in (0, request.round):
                raise PayloadError(code="WRONG_ROUND", message=f"The refusal is not of round {request.round}.")
            return SiteRefusal(plain(site)[:63], round_number, refusal)
        case str() as status if status == OK:
            update, evidence = _decode_arrays(records, request)
            reply = SiteReply(site, round_number, update, _decode_metrics(records), scores, signature, evidence)
            check_reply(reply, request)
            return reply
    raise PayloadError(code="WRONG_TYPE", message=f"The reply's status must be {OK!r} or {REFUSED!r}.")


def _encode_request(
    experiment: Experiment, round_number: int, context: Context, pool: Context | None, extra: Mapping[str, bool | str]
) -> RecordDict:
    context_to_bytes(context, experiment.context_shape, GLOBAL_CONTEXT)
    settings = ConfigRecord(
        {
            "protocol_version": PROTOCOL_VERSION,
            "experiment": write_experiment(experiment),
            "round": round_number,
            **extra,
        }
    )
    arrays = {GLOBAL_CONTEXT: Array(context)}
    if pool is not None:
        arrays[POOL] = Array(pool)
    return RecordDict({CONTEXT: ArrayRecord(arrays), REQUEST: settings})


def _decode_arrays(
    records: RecordDict, request: TrainRequest | EvaluateRequest
) -> tuple[Context | None, Context | None]:
    """The update and the evidence of a reply."""
    if isinstance(request, EvaluateRequest):
        exact_keys(records, (REPLY, METRICS), "The message")
        return None, None
    exact_keys(records, (REPLY, METRICS, CONTEXT), "The message")
    arrays = records[CONTEXT]
    if not isinstance(arrays, ArrayRecord):
        raise PayloadError(code="WRONG_TYPE", message=f"The record {CONTEXT!r} must be an ArrayRecord.")
    rows = evidence_rows(request)
    exact_keys(arrays, (UPDATE, EVIDENCE) if rows else (UPDATE,), f"The record {CONTEXT!r}")
    update = context_from_array(arrays[UPDATE], request.experiment.context_shape, UPDATE)
    return update, matrix_from_array(arrays[EVIDENCE], rows, EVIDENCE) if rows else None


def _decode_metrics(records: RecordDict) -> dict[str, float]:
    metrics = records[METRICS]
    if not isinstance(metrics, MetricRecord):
        raise PayloadError(code="WRONG_TYPE", message=f"The record {METRICS!r} must be a MetricRecord.")
    for name in metrics:
        if name not in METRIC_NAMES:
            raise PayloadError(code="UNKNOWN_METRIC", message=f"Unknown metric {name[:40]!r}.")
    return {name: typed(value, float, name) for name, value in metrics.items()}
