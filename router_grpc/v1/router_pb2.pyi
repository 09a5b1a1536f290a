from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt_tokens", "application", "max_output_tokens", "excluded_instance_ids", "prompt", "temperature", "tools", "stop", "turn", "thinking", "priority", "tenant", "deadline_ms", "batch", "prefix_hashes", "prefix_block_tokens", "cache_salt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_INSTANCE_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASHES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_tokens: int
    application: str
    max_output_tokens: int
    excluded_instance_ids: _containers.RepeatedScalarFieldContainer[str]
    prompt: bytes
    temperature: float
    tools: int
    stop: int
    turn: int
    thinking: bool
    priority: int
    tenant: str
    deadline_ms: int
    batch: bool
    prefix_hashes: _containers.RepeatedScalarFieldContainer[int]
    prefix_block_tokens: int
    cache_salt: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., application: _Optional[str] = ..., max_output_tokens: _Optional[int] = ..., excluded_instance_ids: _Optional[_Iterable[str]] = ..., prompt: _Optional[bytes] = ..., temperature: _Optional[float] = ..., tools: _Optional[int] = ..., stop: _Optional[int] = ..., turn: _Optional[int] = ..., thinking: _Optional[bool] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., batch: _Optional[bool] = ..., prefix_hashes: _Optional[_Iterable[int]] = ..., prefix_block_tokens: _Optional[int] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("request_id", "instance_id", "endpoint", "fallbacks", "reservation_id", "predicted_output_tokens", "policy", "policy_digest", "reason", "held_seconds", "degraded", "prompt_tokens", "predicted_output_quantiles", "predictor", "predictor_digest", "prefill")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HELD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_OUTPUT_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    instance_id: str
    endpoint: str
    fallbacks: _containers.RepeatedCompositeFieldContainer[Endpoint]
    reservation_id: str
    predicted_output_tokens: float
    policy: str
    policy_digest: str
    reason: str
    held_seconds: float
    degraded: bool
    prompt_tokens: int
    predicted_output_quantiles: _containers.RepeatedScalarFieldContainer[float]
    predictor: str
    predictor_digest: str
    prefill: Endpoint
    def __init__(self, request_id: _Optional[str] = ..., instance_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., fallbacks: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., reservation_id: _Optional[str] = ..., predicted_output_tokens: _Optional[float] = ..., policy: _Optional[str] = ..., policy_digest: _Optional[str] = ..., reason: _Optional[str] = ..., held_seconds: _Optional[float] = ..., degraded: _Optional[bool] = ..., prompt_tokens: _Optional[int] = ..., predicted_output_quantiles: _Optional[_Iterable[float]] = ..., predictor: _Optional[str] = ..., predictor_digest: _Optional[str] = ..., prefill: _Optional[_Union[Endpoint, _Mapping]] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("instance_id", "endpoint")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    endpoint: str
    def __init__(self, instance_id: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class ReportEvent(_message.Message):
    __slots__ = ("request_id", "started", "first_token", "progress", "finished", "failed", "cancelled")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    started: Started
    first_token: FirstToken
    progress: Progress
    finished: Finished
    failed: Failed
    cancelled: Cancelled
    def __init__(self, request_id: _Optional[str] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., cancelled: _Optional[_Union[Cancelled, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Progress(_message.Message):
    __slots__ = ("output_tokens",)
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    output_tokens: int
    def __init__(self, output_tokens: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "cached_prompt_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    cached_prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Cancelled(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportAcknowledgement(_message.Message):
    __slots__ = ("request_id", "known", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    known: bool
    error: str
    def __init__(self, request_id: _Optional[str] = ..., known: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class GetSnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSnapshotResponse(_message.Message):
    __slots__ = ("router_id", "config_digest", "policy", "policy_digest", "deciding", "provider", "degraded", "held_requests", "load_age_seconds", "instances")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DECIDING_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    HELD_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    config_digest: str
    policy: str
    policy_digest: str
    deciding: str
    provider: str
    degraded: bool
    held_requests: int
    load_age_seconds: float
    instances: _containers.RepeatedCompositeFieldContainer[InstanceState]
    def __init__(self, router_id: _Optional[str] = ..., config_digest: _Optional[str] = ..., policy: _Optional[str] = ..., policy_digest: _Optional[str] = ..., deciding: _Optional[str] = ..., provider: _Optional[str] = ..., degraded: _Optional[bool] = ..., held_requests: _Optional[int] = ..., load_age_seconds: _Optional[float] = ..., instances: _Optional[_Iterable[_Union[InstanceState, _Mapping]]] = ...) -> None: ...

class InstanceState(_message.Message):
    __slots__ = ("instance_id", "endpoint", "pool", "profile", "in_flight_requests", "in_flight_context_tokens", "queued_prefill_tokens", "remaining_decode_tokens", "running", "waiting", "kv_usage_fraction", "scrape_age_seconds", "role", "locality")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SCRAPE_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    endpoint: str
    pool: str
    profile: str
    in_flight_requests: int
    in_flight_context_tokens: int
    queued_prefill_tokens: int
    remaining_decode_tokens: float
    running: int
    waiting: int
    kv_usage_fraction: float
    scrape_age_seconds: float
    role: str
    locality: str
    def __init__(self, instance_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., pool: _Optional[str] = ..., profile: _Optional[str] = ..., in_flight_requests: _Optional[int] = ..., in_flight_context_tokens: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., remaining_decode_tokens: _Optional[float] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_usage_fraction: _Optional[float] = ..., scrape_age_seconds: _Optional[float] = ..., role: _Optional[str] = ..., locality: _Optional[str] = ...) -> None: ...

class GetReservationRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Reservation(_message.Message):
    __slots__ = ("request_id", "router_id", "instance_id", "prompt_tokens", "predicted_output_tokens", "prefilled", "generated_tokens", "prefill_instance_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    router_id: str
    instance_id: str
    prompt_tokens: int
    predicted_output_tokens: float
    prefilled: bool
    generated_tokens: int
    prefill_instance_id: str
    def __init__(self, request_id: _Optional[str] = ..., router_id: _Optional[str] = ..., instance_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., predicted_output_tokens: _Optional[float] = ..., prefilled: _Optional[bool] = ..., generated_tokens: _Optional[int] = ..., prefill_instance_id: _Optional[str] = ...) -> None: ...
