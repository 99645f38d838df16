"""Translates Flower's records to payloads and the agent's answer to records: the site's side of the exchange."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dpfpl_common import PROTOCOL_VERSION
from dpfpl_common.errors import PayloadError
from dpfpl_common.experiment import Experiment
from dpfpl_common.wire.codec import check_reply, check_version, read_experiment
from dpfpl_common.wire.payloads import Context, EvaluateRequest, SiteReply, SumReply, SumRequest, TrainRequest
from dpfpl_common.wire.records import (
    CONTEXT,
    EVALUATE_KEYS,
    EVIDENCE,
    GLOBAL_CONTEXT,
    METRICS,
    OK,
    POOL,
    REFUSED,
    REPLY,
    REQUEST,
    SUM,
    SUM_KEYS,
    SUM_REPLY_KEYS,
    TRAIN_KEYS,
    UPDATE,
    context_from_array,
    exact_keys,
    matrix_from_array,
    typed,
)
from dpfpl_common.wire.refusal import Refusal

__all__ = [
    "decode_evaluate_request",
    "decode_sum_request",
    "decode_train_request",
    "encode_refusal",
    "encode_reply",
    "encode_sum_reply",
]


def decode_train_request(records: RecordDict) -> TrainRequest:
    """The request in a train message; PayloadError with one of ``fields.CODES`` if anything is wrong."""
    experiment, round_number, context, pool, settings = _decode_request(records, TRAIN_KEYS)
    evaluate, collect = (typed(settings[key], bool, key) for key in ("evaluate", "collect"))
    return TrainRequest(experiment, round_number, context, evaluate, collect, pool)


def decode_evaluate_request(records: RecordDict) -> EvaluateRequest:
    """The request in an evaluate message; PayloadError with one of ``fields.CODES`` if anything is wrong."""
    experiment, round_number, context, pool, settings = _decode_request(records, EVALUATE_KEYS)
    return EvaluateRequest(experiment, round_number, context, pool, typed(settings["chosen"], str, "chosen"))


def decode_sum_request(records: RecordDict) -> SumRequest:
    """The request in a step of a secure sum; PayloadError if anything is wrong."""
    settings = records.get(SUM)
    if not isinstance(settings, ConfigRecord):
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks the ConfigRecord {SUM!r}.")
    check_version(settings.get("protocol_version"))
    exact_keys(records, (SUM, CONTEXT), "The message")
    exact_keys(settings, SUM_KEYS, f"The record {SUM!r}")
    arrays = records[CONTEXT]
    if not isinstance(arrays, ArrayRecord):
        raise PayloadError(code="WRONG_TYPE", message=f"The record {CONTEXT!r} must be an ArrayRecord.")
    exact_keys(arrays, tuple(name for name in (GLOBAL_CONTEXT, POOL) if name in arrays), f"The record {CONTEXT!r}")
    experiment = read_experiment(settings["experiment"])
    context = pool = None
    if GLOBAL_CONTEXT in arrays:
        context = context_from_array(arrays[GLOBAL_CONTEXT], experiment.context_shape, GLOBAL_CONTEXT)
    if POOL in arrays:
        pool = matrix_from_array(arrays[POOL], arrays[POOL].shape[0], POOL)
    name, step = (typed(settings[key], str, key) for key in ("sum", "step"))
    attempt, content = typed(settings["attempt"], int, "attempt"), typed(settings["content"], bytes, "content")
    return SumRequest(experiment, name, attempt, step, content, context, pool)


def encode_sum_reply(reply: SumReply) -> RecordDict:
    """The records of an answer to a step of a secure sum."""
    values = (PROTOCOL_VERSION, reply.site, reply.content, reply.signature)
    return RecordDict({SUM: ConfigRecord(dict(zip(SUM_REPLY_KEYS, values, strict=True)))})


def encode_reply(reply: SiteReply, request: TrainRequest | EvaluateRequest) -> RecordDict:
    """The records of a SiteReply, which must answer ``request``."""
    check_reply(reply, request)
    records = RecordDict(
        {
            METRICS: MetricRecord(dict(reply.metrics)),
            REPLY: _reply_record(OK, reply.site, reply.round, reply.scores, reply.signature, Refusal("OK")),
        }
    )
    if reply.update is not None:
        arrays = {UPDATE: Array(np.ascontiguousarray(reply.update, dtype="<f4"))}
        if reply.evidence is not None:
            arrays[EVIDENCE] = Array(np.ascontiguousarray(reply.evidence, dtype="<f4"))
        records[CONTEXT] = ArrayRecord(arrays)
    return records


def encode_refusal(refusal: Refusal, site: str, round_number: int) -> RecordDict:
    """The records of a refusal; ``round_number`` is 0 where the request could not be read."""
    return RecordDict({REPLY: _reply_record(REFUSED, site, round_number, (), b"", refusal)})


def _decode_request(
    records: RecordDict, keys: tuple[str, ...]
) -> tuple[Experiment, int, Context, Context | None, Mapping[str, object]]:
    settings = records.get(REQUEST)
    if not isinstance(settings, ConfigRecord):
        raise PayloadError(code="MISSING_FIELD", message=f"The message lacks the ConfigRecord {REQUEST!r}.")
    check_version(settings.get("protocol_version"))
    exact_keys(records, (REQUEST, CONTEXT), "The message")
    exact_keys(settings, keys, f"The record {REQUEST!r}")
    arrays = records[CONTEXT]
    if not isinstance(arrays, ArrayRecord):
        raise PayloadError(code="WRONG_TYPE", message=f"The record {CONTEXT!r} must be an ArrayRecord.")
    exact_keys(arrays, (GLOBAL_CONTEXT, POOL) if POOL in arrays else (GLOBAL_CONTEXT,), f"The record {CONTEXT!r}")
    experiment = read_experiment(settings["experiment"])
    round_number = typed(settings["round"], int, "round")
    context = context_from_array(arrays[GLOBAL_CONTEXT], experiment.context_shape, GLOBAL_CONTEXT)
    pool = matrix_from_array(arrays[POOL], arrays[POOL].shape[0], POOL) if POOL in arrays else None
    return experiment, round_number, context, pool, settings


def _reply_record(
    status: str, site: str, round_number: int, scores: tuple[float, ...], signature: bytes, refusal: Refusal
) -> ConfigRecord:
    return ConfigRecord(
        {
            "protocol_version": PROTOCOL_VERSION,
            "site": site,
            "round": round_number,
            "scores": list(scores),
            "signature": signature,
            "status": status,
            "code": refusal.code,
            "rule": refusal.rule,
            "message": refusal.message,
            "advice": refusal.advice,
        }
    )
