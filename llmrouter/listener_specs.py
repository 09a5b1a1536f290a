"""The ports of the routers as fields of a resource."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmrouter.resource_types import NameRef, Port, Resource


class ExtProcSpec(Resource):
    """The endpoint picker that gateways ask. Without a certificate of one's own it makes one, as gateways expect."""

    port: Port = 9002
    transport: Literal["Fast", "Grpc"] = "Fast"
    secure_serving: bool = True
    certificate_secret_ref: NameRef | None = None
    response_observation: Literal["Full", "Sampled", "None"] = "Full"
    observed_fraction: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _certificate_for_tls(self) -> Self:
        if self.certificate_secret_ref is not None and not self.secure_serving:
            raise ValueError("certificateSecretRef needs secureServing")
        return self


class OpenAISpec(Resource):
    """The OpenAI-compatible front, for what a gateway cannot do; 0 seconds are never, 0 tokens no slices."""

    port: Port = 8080
    resume: Literal["None", "BeforeFirstToken", "Tokens"] = "BeforeFirstToken"
    max_resumes: int = Field(default=2, ge=0, le=10)
    slice_tokens: int = Field(default=0, ge=0, le=1_000_000)
    redispatch_after_seconds: float = Field(default=0.0, ge=0, le=600)
    stall_seconds: float = Field(default=120.0, ge=0, le=3600)
    max_requests: int = Field(default=1024, ge=1, le=65536)

    @model_validator(mode="after")
    def _slices_continue(self) -> Self:
        if self.slice_tokens and self.resume != "Tokens":
            raise ValueError("sliceTokens needs resume: Tokens")
        return self


LAST_PORT = 65_535


class ListenersSpec(Resource):
    """Ports that the routers listen on."""

    grpc_port: Port = 9000
    metrics_port: Port = 9090
    ext_proc: ExtProcSpec | None = None
    openai: OpenAISpec | None = None

    @property
    def ports(self) -> dict[str, int]:
        """Every port that is listened on, by the field that names it."""
        given = {"grpcPort": self.grpc_port, "metricsPort": self.metrics_port}
        if self.ext_proc is not None:
            given["extProc.port"] = self.ext_proc.port
        if self.openai is not None:
            given["openai.port"] = self.openai.port
        return given

    def has_free_behind_picker(self, processes: int) -> bool:
        """Whether each of several processes may have a port of its own behind that of the endpoint picker."""
        if processes <= 1 or self.ext_proc is None:
            return True
        first, last = self.ext_proc.port + 1, self.ext_proc.port + processes
        return last <= LAST_PORT and not any(first <= port <= last for port in self.ports.values())

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.ports.values())) < len(self.ports):
            raise ValueError("grpcPort, metricsPort, extProc.port and openai.port must differ")
        return self
