"""What the fields of resources are made of: names, addresses and quantities with their bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=253)]
HostPort = Annotated[
    str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$", max_length=259)
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ConfigMapKey = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-][-A-Za-z0-9._]*(/[A-Za-z0-9_-][-A-Za-z0-9._]*)*$", max_length=253)
]
"""Below a folder: no part of it begins with a dot."""
LabelMap = dict[
    Annotated[
        str,
        StringConstraints(
            pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317
        ),
    ],
    Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)],
]
Quantity = (
    Annotated[int, Field(ge=0)]
    | Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=32)]
)
QuantityMap = dict[str, Quantity]
Port = Annotated[int, Field(ge=1, le=65535)]


def unique(field: str, names: list[str]) -> None:
    """Raises ValueError where a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field} names {name!r} twice")
        seen.add(name)


class Resource(BaseModel):
    """Base of all specs: camelCase outside, unknown fields refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class NameRef(Resource):
    """A reference by name, in the same namespace."""

    name: ObjectName
