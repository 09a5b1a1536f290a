"""What the InferencePools of an LLMRouter ask for, and the Services by which gateways find its pickers: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidConfigError
from llmrouter.inference_pool import read_inference_pool
from llmrouter_operator.builders import EXT_PROC
from llmrouter_operator.models import SERVICE, Problem, Ref, belongs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.inference_pool import PickerRef
    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.builders import Owner
    from llmrouter_operator.models import Object


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """One InferencePool that a pool refers to. ``problem`` says why it has no instances.

    ``said`` is what gateways are told to ask, and ``picker_problem`` why that is not these routers. ``service_port``
    is the port of the Service that is to be made for it, ``None`` where none is.
    """

    name: str
    problem: Problem | None = None
    said: str = ""
    picker_problem: Problem | None = None
    service: str = ""
    service_port: int | None = None


def referenced_pools(spec: Object) -> list[str]:
    """Names of the InferencePools that the spec of an LLMRouter refers to, as it was read and not yet checked."""
    pools = spec.get("pools") or []
    names = [(pool.get("inferencePoolRef") or {}).get("name") for pool in pools if isinstance(pool, dict)]
    return sorted({name for name in names if isinstance(name, str)})


def picker_services(pools: Iterable[Object | None]) -> list[str]:
    """Names of the Services that InferencePools refer to, as they were read; what is no Service is left out."""
    found = []
    for value in pools:
        picker = _picker(value)
        if picker is not None and picker.is_service:
            found.append(picker.name)
    return sorted(set(found))


def choose_pools(
    owner: Owner,
    spec: LLMRouterSpec,
    pools: Mapping[str, Object | None],
    owned: Mapping[Ref, Object | None],
) -> tuple[PoolChoice, ...]:
    """What is to be said and made of every InferencePool that the spec refers to, by name."""
    names = sorted({pool.inference_pool_ref.name for pool in spec.pools if pool.inference_pool_ref is not None})
    return tuple(_choose(name, pools.get(name), owner=owner, spec=spec, owned=owned) for name in names)


def build_picker_services(owner: Owner, choices: Iterable[PoolChoice]) -> tuple[Object, ...]:
    """The Services that InferencePools refer to, each with every port that one of them names."""
    ports: dict[str, set[int]] = {}
    for choice in choices:
        if choice.service_port is not None:
            ports.setdefault(choice.service, set()).add(choice.service_port)
    return tuple(
        owner.build(
            SERVICE, name, spec={"selector": owner.pod_labels, "ports": [_port(number) for number in sorted(numbers)]}
        )
        for name, numbers in sorted(ports.items())
    )


def _port(number: int) -> Object:
    return {
        "name": f"{EXT_PROC}-{number}",
        "port": number,
        "targetPort": EXT_PROC,
        "protocol": "TCP",
        "appProtocol": "http2",
    }


def _picker(value: Object | None) -> PickerRef | None:
    try:
        return None if value is None else read_inference_pool(value, "").endpoint_picker_ref
    except InvalidConfigError:
        return None  # what is wrong with it is said where it is chosen


def _choose(
    name: str, value: Object | None, *, owner: Owner, spec: LLMRouterSpec, owned: Mapping[Ref, Object | None]
) -> PoolChoice:
    if value is None:
        return PoolChoice(name, Problem("InferencePoolNotFound", f"there is no InferencePool {name!r}"))
    try:
        found = read_inference_pool(value, name)
    except InvalidConfigError as error:
        return PoolChoice(name, Problem(error.reason, str(error)))
    picker = found.endpoint_picker_ref
    if picker is None:
        return PoolChoice(name, said="asks no endpoint picker")
    said = f"{picker.kind} {picker.name} port {picker.port.number}, failureMode {picker.failure_mode}"
    service = owned.get(Ref(SERVICE, picker.name))
    problem = _picker_problem(owner, spec, picker, service)
    if problem is not None or picker.name == owner.names.workload or not _is_ours(owner, service):
        return PoolChoice(name, said=said, picker_problem=problem)
    return PoolChoice(name, said=said, service=picker.name, service_port=picker.port.number)


def _is_ours(owner: Owner, service: Object | None) -> bool:
    return service is None or belongs(service, owner.uid, owner.key)


def _picker_problem(owner: Owner, spec: LLMRouterSpec, picker: PickerRef, service: Object | None) -> Problem | None:
    listener = spec.listeners.ext_proc
    if listener is None:
        return Problem("NoEndpointPicker", "listeners.extProc is not set: gateways that ask find nobody")
    if not picker.is_service:
        return Problem("AnotherPicker", f"{picker.kind} {picker.name} is no Service of these routers")
    if picker.name == owner.names.workload and picker.port.number != listener.port:
        return Problem(
            "AnotherPort", f"Service {picker.name} has its picker on port {listener.port}, not {picker.port.number}"
        )
    if _is_ours(owner, service) or _selects(service, owner.pod_labels):
        return None
    return Problem("AnotherPicker", f"Service {picker.name} belongs to something else and selects other pods")


def _selects(service: Object | None, labels: Mapping[str, str]) -> bool:
    """Whether somebody's Service leads to pods with these labels."""
    selector = ((service or {}).get("spec") or {}).get("selector") or {}
    return bool(selector) and all(labels.get(name) == value for name, value in selector.items())
