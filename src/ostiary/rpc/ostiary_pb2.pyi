from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuthorizationRefusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTHORIZATION_REFUSAL_UNSPECIFIED: _ClassVar[AuthorizationRefusal]
    AUTHORIZATION_REFUSAL_UNKNOWN: _ClassVar[AuthorizationRefusal]
    AUTHORIZATION_REFUSAL_EXPIRED: _ClassVar[AuthorizationRefusal]
    AUTHORIZATION_REFUSAL_REVOKED: _ClassVar[AuthorizationRefusal]
    AUTHORIZATION_REFUSAL_SUSPENDED: _ClassVar[AuthorizationRefusal]
    AUTHORIZATION_REFUSAL_DELETED: _ClassVar[AuthorizationRefusal]
AUTHORIZATION_REFUSAL_UNSPECIFIED: AuthorizationRefusal
AUTHORIZATION_REFUSAL_UNKNOWN: AuthorizationRefusal
AUTHORIZATION_REFUSAL_EXPIRED: AuthorizationRefusal
AUTHORIZATION_REFUSAL_REVOKED: AuthorizationRefusal
AUTHORIZATION_REFUSAL_SUSPENDED: AuthorizationRefusal
AUTHORIZATION_REFUSAL_DELETED: AuthorizationRefusal

class RecordBatch(_message.Message):
    __slots__ = ("journal_id", "first_seq", "records")
    JOURNAL_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    journal_id: str
    first_seq: int
    records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, journal_id: _Optional[str] = ..., first_seq: _Optional[int] = ..., records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RecordAck(_message.Message):
    __slots__ = ("acked_seq", "rejected")
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    acked_seq: int
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedRecord]
    def __init__(self, acked_seq: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[RejectedRecord, _Mapping]]] = ...) -> None: ...

class RejectedRecord(_message.Message):
    __slots__ = ("seq", "reason")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seq: int
    reason: str
    def __init__(self, seq: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class WatchRevocationsRequest(_message.Message):
    __slots__ = ("after_seq",)
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    def __init__(self, after_seq: _Optional[int] = ...) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("seq", "reset", "api_key_id", "owner_id")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    seq: int
    reset: bool
    api_key_id: str
    owner_id: str
    def __init__(self, seq: _Optional[int] = ..., reset: _Optional[bool] = ..., api_key_id: _Optional[str] = ..., owner_id: _Optional[str] = ...) -> None: ...

class IsAuthorizedRequest(_message.Message):
    __slots__ = ("token_sha256", "key_id")
    TOKEN_SHA256_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    token_sha256: bytes
    key_id: str
    def __init__(self, token_sha256: _Optional[bytes] = ..., key_id: _Optional[str] = ...) -> None: ...

class IsAuthorizedResponse(_message.Message):
    __slots__ = ("refusal", "owner_id", "api_key_id", "username", "email", "role", "expires_at", "ttl", "seq")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    refusal: AuthorizationRefusal
    owner_id: str
    api_key_id: str
    username: str
    email: str
    role: str
    expires_at: int
    ttl: float
    seq: int
    def __init__(self, refusal: _Optional[_Union[AuthorizationRefusal, str]] = ..., owner_id: _Optional[str] = ..., api_key_id: _Optional[str] = ..., username: _Optional[str] = ..., email: _Optional[str] = ..., role: _Optional[str] = ..., expires_at: _Optional[int] = ..., ttl: _Optional[float] = ..., seq: _Optional[int] = ...) -> None: ...

class WatchAIProvidersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchAIProvidersResponse(_message.Message):
    __slots__ = ("kind", "revision")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[WatchAIProvidersResponse.Kind]
        KIND_CHANGED: _ClassVar[WatchAIProvidersResponse.Kind]
        KIND_BEAT: _ClassVar[WatchAIProvidersResponse.Kind]
    KIND_UNSPECIFIED: WatchAIProvidersResponse.Kind
    KIND_CHANGED: WatchAIProvidersResponse.Kind
    KIND_BEAT: WatchAIProvidersResponse.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    kind: WatchAIProvidersResponse.Kind
    revision: int
    def __init__(self, kind: _Optional[_Union[WatchAIProvidersResponse.Kind, str]] = ..., revision: _Optional[int] = ...) -> None: ...

class GetAIProvidersRequest(_message.Message):
    __slots__ = ("known_revision",)
    KNOWN_REVISION_FIELD_NUMBER: _ClassVar[int]
    known_revision: int
    def __init__(self, known_revision: _Optional[int] = ...) -> None: ...

class GetAIProvidersResponse(_message.Message):
    __slots__ = ("revision", "unchanged", "providers")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    unchanged: bool
    providers: _containers.RepeatedCompositeFieldContainer[AIProvider]
    def __init__(self, revision: _Optional[int] = ..., unchanged: _Optional[bool] = ..., providers: _Optional[_Iterable[_Union[AIProvider, _Mapping]]] = ...) -> None: ...

class AIProvider(_message.Message):
    __slots__ = ("id", "name", "type", "enabled", "base_url", "keys", "error", "openai", "anthropic", "bedrock")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OPENAI_FIELD_NUMBER: _ClassVar[int]
    ANTHROPIC_FIELD_NUMBER: _ClassVar[int]
    BEDROCK_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    type: str
    enabled: bool
    base_url: str
    keys: _containers.RepeatedCompositeFieldContainer[AIProviderKey]
    error: str
    openai: AIProviderKindOpenAI
    anthropic: AIProviderKindAnthropic
    bedrock: AIProviderKindBedrock
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., type: _Optional[str] = ..., enabled: _Optional[bool] = ..., base_url: _Optional[str] = ..., keys: _Optional[_Iterable[_Union[AIProviderKey, _Mapping]]] = ..., error: _Optional[str] = ..., openai: _Optional[_Union[AIProviderKindOpenAI, _Mapping]] = ..., anthropic: _Optional[_Union[AIProviderKindAnthropic, _Mapping]] = ..., bedrock: _Optional[_Union[AIProviderKindBedrock, _Mapping]] = ...) -> None: ...

class AIProviderKey(_message.Message):
    __slots__ = ("id", "value")
    ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    id: str
    value: str
    def __init__(self, id: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class AIProviderKindOpenAI(_message.Message):
    __slots__ = ("stream_usage", "selection", "api_version")
    STREAM_USAGE_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    stream_usage: str
    selection: str
    api_version: str
    def __init__(self, stream_usage: _Optional[str] = ..., selection: _Optional[str] = ..., api_version: _Optional[str] = ...) -> None: ...

class AIProviderKindAnthropic(_message.Message):
    __slots__ = ("selection",)
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    selection: str
    def __init__(self, selection: _Optional[str] = ...) -> None: ...

class AIProviderKindBedrock(_message.Message):
    __slots__ = ("region", "access_key", "access_key_secret", "model", "small_fast_model", "role_arn", "external_id", "protocol")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ACCESS_KEY_FIELD_NUMBER: _ClassVar[int]
    ACCESS_KEY_SECRET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SMALL_FAST_MODEL_FIELD_NUMBER: _ClassVar[int]
    ROLE_ARN_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    region: str
    access_key: str
    access_key_secret: str
    model: str
    small_fast_model: str
    role_arn: str
    external_id: str
    protocol: str
    def __init__(self, region: _Optional[str] = ..., access_key: _Optional[str] = ..., access_key_secret: _Optional[str] = ..., model: _Optional[str] = ..., small_fast_model: _Optional[str] = ..., role_arn: _Optional[str] = ..., external_id: _Optional[str] = ..., protocol: _Optional[str] = ...) -> None: ...

class ReportStatusRequest(_message.Message):
    __slots__ = ("replica_id", "hostname", "build", "mode", "revision", "workers", "keys", "breakers", "journals", "provider_errors", "clock_ahead_us")
    class ProviderErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BREAKERS_FIELD_NUMBER: _ClassVar[int]
    JOURNALS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_ERRORS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_AHEAD_US_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    hostname: str
    build: str
    mode: str
    revision: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    keys: _containers.RepeatedCompositeFieldContainer[KeyStatus]
    breakers: _containers.RepeatedCompositeFieldContainer[BreakerStatus]
    journals: _containers.RepeatedCompositeFieldContainer[JournalStatus]
    provider_errors: _containers.ScalarMap[str, str]
    clock_ahead_us: int
    def __init__(self, replica_id: _Optional[str] = ..., hostname: _Optional[str] = ..., build: _Optional[str] = ..., mode: _Optional[str] = ..., revision: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., keys: _Optional[_Iterable[_Union[KeyStatus, _Mapping]]] = ..., breakers: _Optional[_Iterable[_Union[BreakerStatus, _Mapping]]] = ..., journals: _Optional[_Iterable[_Union[JournalStatus, _Mapping]]] = ..., provider_errors: _Optional[_Mapping[str, str]] = ..., clock_ahead_us: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker", "pid", "journal_id", "revision")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    worker: int
    pid: int
    journal_id: str
    revision: int
    def __init__(self, worker: _Optional[int] = ..., pid: _Optional[int] = ..., journal_id: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class KeyStatus(_message.Message):
    __slots__ = ("provider", "key_id", "hint", "state", "reason", "until", "model", "since", "strikes", "cooling", "timeline")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    STRIKES_FIELD_NUMBER: _ClassVar[int]
    COOLING_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    provider: str
    key_id: str
    hint: str
    state: str
    reason: str
    until: int
    model: str
    since: int
    strikes: int
    cooling: _containers.RepeatedCompositeFieldContainer[KeyCooling]
    timeline: _containers.RepeatedCompositeFieldContainer[KeyTransition]
    def __init__(self, provider: _Optional[str] = ..., key_id: _Optional[str] = ..., hint: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., until: _Optional[int] = ..., model: _Optional[str] = ..., since: _Optional[int] = ..., strikes: _Optional[int] = ..., cooling: _Optional[_Iterable[_Union[KeyCooling, _Mapping]]] = ..., timeline: _Optional[_Iterable[_Union[KeyTransition, _Mapping]]] = ...) -> None: ...

class KeyCooling(_message.Message):
    __slots__ = ("model", "reason", "until")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    model: str
    reason: str
    until: int
    def __init__(self, model: _Optional[str] = ..., reason: _Optional[str] = ..., until: _Optional[int] = ...) -> None: ...

class KeyTransition(_message.Message):
    __slots__ = ("at", "state", "reason", "model", "until", "strikes")
    AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    STRIKES_FIELD_NUMBER: _ClassVar[int]
    at: int
    state: str
    reason: str
    model: str
    until: int
    strikes: int
    def __init__(self, at: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., model: _Optional[str] = ..., until: _Optional[int] = ..., strikes: _Optional[int] = ...) -> None: ...

class BreakerStatus(_message.Message):
    __slots__ = ("provider", "route", "model", "state", "until", "since")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    provider: str
    route: str
    model: str
    state: str
    until: int
    since: int
    def __init__(self, provider: _Optional[str] = ..., route: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[str] = ..., until: _Optional[int] = ..., since: _Optional[int] = ...) -> None: ...

class JournalStatus(_message.Message):
    __slots__ = ("journal_id", "appended_seq", "acked_seq", "bytes", "live")
    JOURNAL_ID_FIELD_NUMBER: _ClassVar[int]
    APPENDED_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    journal_id: str
    appended_seq: int
    acked_seq: int
    bytes: int
    live: bool
    def __init__(self, journal_id: _Optional[str] = ..., appended_seq: _Optional[int] = ..., acked_seq: _Optional[int] = ..., bytes: _Optional[int] = ..., live: _Optional[bool] = ...) -> None: ...

class ReportStatusResponse(_message.Message):
    __slots__ = ("now_us",)
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    now_us: int
    def __init__(self, now_us: _Optional[int] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMetricsResponse(_message.Message):
    __slots__ = ("families",)
    FAMILIES_FIELD_NUMBER: _ClassVar[int]
    families: bytes
    def __init__(self, families: _Optional[bytes] = ...) -> None: ...
