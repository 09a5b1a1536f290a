"""The CRDs and ``llmrouter.resources`` say the same: fields, bounds, enums, defaults; every field is described."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError
from support.crd_cases import BAD_ROUTERS, GOOD_ROUTERS, Case
from support.policy_cases import BAD_POLICIES, GOOD_POLICIES
from support.rebalance_cases import BAD_REBALANCES, GOOD_REBALANCES

from llmrouter.resources import LLMRouterSpec, RoutingPolicySpec

if TYPE_CHECKING:
    from collections.abc import Iterator

CRDS = Path(__file__).resolve().parents[2] / "crds"
CHART_CRDS = Path(__file__).resolve().parents[2] / "charts" / "llmrouter" / "crds"
Schema = dict[str, Any]
BOUNDS = ("pattern", "enum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def crd_schema(plural: str) -> Schema:
    crd = yaml.safe_load((CRDS / f"llmrouter.dev_{plural}.yaml").read_text())
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field of a CRD schema by its path; items and values are ``[]`` and ``{}``."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def walk_model(schema: Schema, root: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """The same of a pydantic schema: references followed, ``None`` left out of unions."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]] | {k: v for k, v in schema.items() if k != "$ref"}
    if "allOf" in schema:
        yield from walk_model(schema["allOf"][0] | {k: v for k, v in schema.items() if k != "allOf"}, root, path)
        return
    options = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    if options:
        merged: Schema = {k: v for k, v in schema.items() if k != "anyOf"}
        for one in options:
            merged |= {k: v for k, v in one.items() if k != "type" or len(options) == 1}
        yield from walk_model(merged, root, path)
        return
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk_model(field, root, f"{path}.{name}")
    if "items" in schema:
        yield from walk_model(schema["items"], root, f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk_model(schema["additionalProperties"], root, f"{path}{{}}")
    for values in schema.get("patternProperties", {}).values():
        yield from walk_model(values, root, f"{path}{{}}")


def bounds(schema: Schema) -> Schema:
    """What is said of a field's values, in one spelling."""
    found = {name: schema[name] for name in BOUNDS if name in schema}
    found["required"] = sorted(schema.get("required", []))
    if "const" in schema:
        found["enum"] = [schema["const"]]
    if "exclusiveMinimum" in schema and not isinstance(schema["exclusiveMinimum"], bool):
        found["above"] = float(schema["exclusiveMinimum"])
    elif schema.get("exclusiveMinimum"):
        found["above"] = float(schema["minimum"])
    elif "minimum" in schema:
        found["from"] = float(schema["minimum"])
    if "maximum" in schema:
        found["to"] = float(schema["maximum"])
    if "enum" in found:
        found["enum"] = sorted(found["enum"])
    return found


PAIRS = [("llmrouters", LLMRouterSpec), ("routingpolicies", RoutingPolicySpec)]


def both(plural: str, model: type[LLMRouterSpec | RoutingPolicySpec]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    schema = model.model_json_schema(by_alias=True)
    return dict(walk(crd_schema(plural)["properties"]["spec"])), dict(walk_model(schema, schema))


@pytest.mark.parametrize(("plural", "model"), PAIRS)
def test_fields_are_the_same(plural: str, model: type[LLMRouterSpec]) -> None:
    crd, library = both(plural, model)

    assert sorted(crd) == sorted(library)


@pytest.mark.parametrize(("plural", "model"), PAIRS)
def test_bounds_and_enums_are_the_same(plural: str, model: type[LLMRouterSpec]) -> None:
    crd, library = both(plural, model)

    assert {path: bounds(field) for path, field in crd.items()} == {
        path: bounds(field) for path, field in library.items()
    }


@pytest.mark.parametrize(("plural", "model"), PAIRS)
def test_scalar_defaults_are_the_same(plural: str, model: type[LLMRouterSpec]) -> None:
    crd, library = both(plural, model)

    def defaults(fields: dict[str, Schema]) -> Schema:
        found = {path: field["default"] for path, field in fields.items() if field.get("default") is not None}
        return {path: value for path, value in found.items() if not isinstance(value, dict)}

    assert defaults(crd) == defaults(library)


@pytest.mark.parametrize(("plural", "model"), PAIRS)
def test_objects_with_defaults_inside_are_filled_in(plural: str, model: type[LLMRouterSpec]) -> None:
    """A default reaches a field only if every object above it has one."""
    crd, library = both(plural, model)
    optional = {path for path, field in library.items() if isinstance(field.get("default"), dict)}

    assert optional <= {path for path, field in crd.items() if field.get("default") == {}}


@pytest.mark.parametrize("plural", [plural for plural, _ in PAIRS])
def test_every_field_is_described(plural: str) -> None:
    silent = [
        path
        for path, field in walk(crd_schema(plural))
        if not field.get("description", "").endswith(".") and path != ".metadata"
    ]

    assert silent == []


@pytest.mark.parametrize("file", sorted(CRDS.glob("*.yaml")), ids=lambda file: file.name)
def test_the_chart_installs_the_same_crds(file: Path) -> None:
    assert (CHART_CRDS / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("case", [*BAD_ROUTERS, *BAD_REBALANCES], ids=lambda case: case.name)
def test_the_library_refuses_bad_llmrouters(case: Case) -> None:
    with pytest.raises(ValidationError):
        LLMRouterSpec.model_validate(case.spec)


@pytest.mark.parametrize("case", BAD_POLICIES, ids=lambda case: case.name)
def test_the_library_refuses_bad_policies(case: Case) -> None:
    with pytest.raises(ValidationError):
        RoutingPolicySpec.model_validate(case.spec)


def test_the_library_takes_good_ones() -> None:
    for spec in [*GOOD_ROUTERS, *GOOD_REBALANCES]:
        LLMRouterSpec.model_validate(spec)
    for spec in GOOD_POLICIES:
        RoutingPolicySpec.model_validate(spec)


@pytest.mark.parametrize("plural", [plural for plural, _ in PAIRS])
def test_every_field_is_in_the_documentation(plural: str) -> None:
    text = (CRDS.parent / "docs" / "resources.md").read_text()
    names = {
        path.rstrip("[]{}").rpartition(".")[2] for path, _ in walk(crd_schema(plural)["properties"]["spec"]) if path
    }

    assert [name for name in sorted(names) if name not in text] == []
