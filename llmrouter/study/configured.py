"""A router's own file as a simulated setup: engines from its pools, the policy and the router side as declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.config import compile_policy, compile_router
from llmrouter.config_file import parse, read_text
from llmrouter.errors import InvalidConfigError
from llmrouter.routing import catalogue
from llmrouter.routing.batch import batch_rules_of
from llmrouter.routing.orders import ORDERS
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import CompiledPolicy, RouterSide
from llmrouter.study.contenders import Contender, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmrouter.config import PolicyConfig, PoolConfig, RouterConfig
    from llmrouter.config_file import Declared
    from llmrouter.resources import RoutingPolicySpec

SHED_AT_ONCE_S = 1e-9
"""The longest hold where requests may not be held."""

RULES = {"Onnx": Rule.MARGINAL_COST, **catalogue.RULES}
"""The rule of each type of RoutingPolicy; Onnx is the one model that can be simulated, the shipped marginal cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """What a file says of a setup.

    Attributes:
        engines: one per instance, pool by pool.
        serves: the models of each.
        models: all that any pool serves, in the file's order.
        contender: the file's policy, by its own name.
        routers: replicas, their state and how long they hold.
        constant_tokens: what every answer is expected to have, where the file says so.
        policy: the RoutingPolicy as it is declared …
        config: … and compiled, with all the rest.
    """

    engines: tuple[EngineModel, ...]
    serves: tuple[frozenset[str], ...]
    models: tuple[str, ...]
    contender: Contender
    routers: RouterSide
    constant_tokens: float | None
    policy: RoutingPolicySpec
    config: RouterConfig


def read_configured(path: Path, instances: Mapping[str, int]) -> Configured:
    """The setup of a file that holds an LLMRouter and its RoutingPolicy.

    Args:
        path: of the YAML file.
        instances: how many engines a pool has, by its name, where that is not the number of its endpoints.

    Raises:
        InvalidConfigError: the file cannot be read, or what it says is not valid or not known here.
    """
    text = read_text(path)
    try:
        return _configured(*_compiled(text), instances)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{path}: {error}", reason=error.reason) from error


def policy_of(config: RouterConfig) -> CompiledPolicy:
    """The policy of a configuration as a rule: what a router that runs it decides, compiled."""
    policy = config.policy
    if policy.type not in RULES:
        raise InvalidConfigError(
            f"policy {policy.name}: type {policy.type} is simulated by python -m bench.learned alone"
        )
    return CompiledPolicy(
        rule=RULES[policy.type],
        weights=policy.weights.in_order,
        max_requests=None if policy.room_is_kv else config.limits.max_in_flight_per_instance,
        kv_fraction=policy.hold.kv_fraction if policy.room_is_kv else None,
        decode_reserve_fraction=policy.hold.decode_reserve_fraction,
        batch_hold=policy.batch_hold,
    )


def router_side_of(policy: PolicyConfig, replicas: int) -> RouterSide:
    """The router side of a policy: how long and in which order it holds, by so many routers."""
    holds = policy.hold.enabled and policy.hold.max_wait_seconds > 0
    return RouterSide(
        routers=max(1, replicas),
        max_wait_s=policy.hold.max_wait_seconds if holds else SHED_AT_ONCE_S,
        max_held=policy.queue.max_depth,
        order=ORDERS[policy.queue.order],
        aging_s=policy.queue.aging_seconds,
        fair=policy.queue.fairness.enabled,
        tenant_weights=tuple((one.tenant, one.weight) for one in policy.queue.fairness.weights),
        batch=batch_rules_of(policy.queue.batch),
        batch_max_wait_s=max(policy.queue.batch.max_wait_seconds, SHED_AT_ONCE_S) if holds else SHED_AT_ONCE_S,
        batch_max_held=int(policy.queue.batch.depth_fraction * policy.queue.max_depth),
    )


def _configured(declared: Declared, config: RouterConfig, instances: Mapping[str, int]) -> Configured:
    unknown = sorted(set(instances) - {pool.name for pool in config.pools})
    if unknown:
        raise InvalidConfigError(f"--instances names the pool {unknown[0]!r}, which the file does not have")
    engines: list[EngineModel] = []
    serves: list[frozenset[str]] = []
    for pool in config.pools:
        count = _count(pool, instances)
        engines += [EngineModel(pool.engine_profile())] * count
        serves += [frozenset(pool.models)] * count
    rule = policy_of(config)
    constant = config.predictor.constant_tokens if config.predictor.type == "Constant" else None
    description = f"{config.policy.type}, of the file"
    return Configured(
        engines=tuple(engines),
        serves=tuple(serves),
        models=tuple(model.name for model in declared.router.models),
        contender=Contender(config.policy.name, Kind.OURS, description, lambda: rule),
        routers=router_side_of(config.policy, declared.router.router.replicas),
        constant_tokens=constant,
        policy=declared.policy,
        config=config,
    )


def _count(pool: PoolConfig, instances: Mapping[str, int]) -> int:
    count = instances.get(pool.name, len(pool.endpoints or ()))
    if count < 1:
        raise InvalidConfigError(
            f"pool {pool.name} finds its instances by labels: say how many with --instances {pool.name}=N"
        )
    return count


def _compiled(text: str) -> tuple[Declared, RouterConfig]:
    declared = parse(text)
    model = declared.policy.model
    if model is not None and model.builtin is None:
        raise InvalidConfigError(
            f"RoutingPolicy {declared.policy_name}: only the builtin model can be simulated, not one's own"
        )
    section = compile_policy(declared.policy_name, declared.policy, model_sha256=None)
    config = compile_router(declared.router, name=declared.name, namespace="", generation=0, policy=section)
    return declared, config
