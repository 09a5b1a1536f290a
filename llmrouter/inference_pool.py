"""An InferencePool of the Gateway API's inference extension, as far as routers and the operator read it.

It belongs to whoever made it: it is read and watched, never written. Fields as in ``inference.networking.k8s.io/v1``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llmrouter.config import explain
from llmrouter.errors import InvalidConfigError
from llmrouter.resource_types import Port  # noqa: TC001 - a field of a pydantic model

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP, VERSION, PLURAL, KIND = "inference.networking.k8s.io", "v1", "inferencepools", "InferencePool"
DEFAULT_PICKER_PORT = 9002
"""Where a reference to a Service names no port."""


class _Foreign(BaseModel):
    """Fields that this project does not know are somebody else's business."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="ignore")


class _Number(_Foreign):
    number: Port


class _Selector(_Foreign):
    match_labels: dict[str, str] = Field(min_length=1)


class PickerRef(_Foreign):
    """The endpoint picker that gateways are to ask."""

    group: str = ""
    kind: str = "Service"
    name: str
    port: _Number = _Number(number=DEFAULT_PICKER_PORT)
    failure_mode: Literal["FailOpen", "FailClose"] = "FailClose"

    @property
    def is_service(self) -> bool:
        """Whether it is a Service of the same namespace."""
        return self.group in ("", "core") and self.kind == "Service"


class InferencePool(_Foreign):
    """Which pods, which of their ports, and who picks among them; ``endpoint_picker_ref`` may be none."""

    selector: _Selector
    target_ports: tuple[_Number, ...] = Field(min_length=1, max_length=64)
    endpoint_picker_ref: PickerRef | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """Ports of every pod, each an instance of its own, in ascending order."""
        return tuple(sorted({port.number for port in self.target_ports}))

    @property
    def match_labels(self) -> dict[str, str]:
        """Labels that a pod has, all of them."""
        return dict(self.selector.match_labels)


def read_inference_pool(value: Mapping[str, object], name: str) -> InferencePool:
    """Reads the object as the API server gave it; raises InvalidConfigError naming the field."""
    try:
        return InferencePool.model_validate(value.get("spec"))
    except ValidationError as error:
        raise InvalidConfigError(
            f"InferencePool {name}: spec.{explain(error)}", reason="InferencePoolInvalid"
        ) from error
