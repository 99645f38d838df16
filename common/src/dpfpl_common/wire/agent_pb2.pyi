from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Array(_message.Message):
    __slots__ = ("rows", "columns", "data")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    data: bytes
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("protocol_version", "experiment", "round", "global_context", "evaluate", "collect", "pool")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    experiment: str
    round: int
    global_context: Array
    evaluate: bool
    collect: bool
    pool: Array
    def __init__(self, protocol_version: _Optional[int] = ..., experiment: _Optional[str] = ..., round: _Optional[int] = ..., global_context: _Optional[_Union[Array, _Mapping]] = ..., evaluate: _Optional[bool] = ..., collect: _Optional[bool] = ..., pool: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("protocol_version", "experiment", "round", "global_context", "pool", "chosen")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    experiment: str
    round: int
    global_context: Array
    pool: Array
    chosen: str
    def __init__(self, protocol_version: _Optional[int] = ..., experiment: _Optional[str] = ..., round: _Optional[int] = ..., global_context: _Optional[_Union[Array, _Mapping]] = ..., pool: _Optional[_Union[Array, _Mapping]] = ..., chosen: _Optional[str] = ...) -> None: ...

class SumRequest(_message.Message):
    __slots__ = ("protocol_version", "experiment", "sum", "attempt", "step", "content", "global_context", "pool")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    experiment: str
    sum: str
    attempt: int
    step: str
    content: bytes
    global_context: Array
    pool: Array
    def __init__(self, protocol_version: _Optional[int] = ..., experiment: _Optional[str] = ..., sum: _Optional[str] = ..., attempt: _Optional[int] = ..., step: _Optional[str] = ..., content: _Optional[bytes] = ..., global_context: _Optional[_Union[Array, _Mapping]] = ..., pool: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class SumReply(_message.Message):
    __slots__ = ("site", "content", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    content: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., content: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("protocol_version", "reply", "refusal", "sum")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    reply: SiteReply
    refusal: Refusal
    sum: SumReply
    def __init__(self, protocol_version: _Optional[int] = ..., reply: _Optional[_Union[SiteReply, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., sum: _Optional[_Union[SumReply, _Mapping]] = ...) -> None: ...

class SiteReply(_message.Message):
    __slots__ = ("site", "round", "update", "metrics", "scores", "signature", "evidence")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SITE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    site: str
    round: int
    update: Array
    metrics: _containers.ScalarMap[str, float]
    scores: _containers.RepeatedScalarFieldContainer[float]
    signature: bytes
    evidence: Array
    def __init__(self, site: _Optional[str] = ..., round: _Optional[int] = ..., update: _Optional[_Union[Array, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., scores: _Optional[_Iterable[float]] = ..., signature: _Optional[bytes] = ..., evidence: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "rule", "message", "advice")
    CODE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    code: str
    rule: str
    message: str
    advice: str
    def __init__(self, code: _Optional[str] = ..., rule: _Optional[str] = ..., message: _Optional[str] = ..., advice: _Optional[str] = ...) -> None: ...
