"""What is kept of decisions, and what is tried so that they can be replayed: as fields of resources."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from llmrouter.resource_types import NameRef, ObjectName, Resource

DECISIONS_FOLDER = "/var/lib/llmrouter/decisions"
"""Where router pods mount what their decision logs are kept on."""

Url = Annotated[str, StringConstraints(pattern=r"^(s3|gs|az|https?|file)://[^\s?#]+$", max_length=1024)]


class DecisionLogSpec(Resource):
    """Which decisions are written down, and where; none by default."""

    fraction: float = Field(default=0.0, ge=0, le=1)
    sink: Literal["Stdout", "File", "ObjectStore"] = "Stdout"
    claim_name: ObjectName | None = None
    url: Url | None = None
    secret_ref: NameRef | None = None
    max_bytes: int = Field(default=67_108_864, ge=65_536, le=1_099_511_627_776)
    max_candidates: int = Field(default=8, ge=1, le=64)

    @model_validator(mode="after")
    def _place_of_its_sink(self) -> Self:
        if (self.sink == "ObjectStore") != (self.url is not None):
            raise ValueError("url must be set for the sink ObjectStore, and only for it")
        if self.secret_ref is not None and self.sink != "ObjectStore":
            raise ValueError("secretRef may be set for the sink ObjectStore alone")
        if self.claim_name is not None and self.sink != "File":
            raise ValueError("claimName may be set for the sink File alone")
        return self


class ExplorationSpec(Resource):
    """How often a policy takes any candidate that has room, so that its log says what others would have brought."""

    fraction: float = Field(default=0.0, ge=0, le=0.2)
