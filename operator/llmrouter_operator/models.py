"""What the operator speaks of: Kubernetes objects as plain mappings, and what was observed and decided about one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llmrouter import inference_pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.config import PolicyConfig, PredictorConfig
    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.candidate import CandidateChoice
    from llmrouter_operator.pickers import PoolChoice

Object = dict[str, Any]
"""A Kubernetes object as the API server spells it."""

MANAGER = "llmrouter-operator"
ROUTER_LABEL = "llmrouter.dev/router"
"""On everything owned: the name of the LLMRouter."""
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
COMPONENT = "router"


class ObjectKey(NamedTuple):
    """Names one LLMRouter."""

    namespace: str
    name: str


class Kind(NamedTuple):
    """A kind of object: where the API serves it."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """``group/version``, or the version alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version


LLM_ROUTER = Kind("llmrouter.dev", "v1alpha1", "llmrouters", "LLMRouter")
ROUTING_POLICY = Kind("llmrouter.dev", "v1alpha1", "routingpolicies", "RoutingPolicy")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
EVENT = Kind("", "v1", "events", "Event")
POD = Kind("", "v1", "pods", "Pod")
SECRET = Kind("", "v1", "secrets", "Secret")
SERVICE = Kind("", "v1", "services", "Service")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
POD_DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
ROLE = Kind("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
INFERENCE_POOL = Kind(inference_pool.GROUP, inference_pool.VERSION, inference_pool.PLURAL, inference_pool.KIND)
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")
ACCESS_REVIEW = Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")

OWNED_KINDS = (CONFIG_MAP, SERVICE_ACCOUNT, ROLE, ROLE_BINDING, SERVICE, DEPLOYMENT, POD_DISRUPTION_BUDGET)


class Ref(NamedTuple):
    """Names one owned object of an LLMRouter, in its namespace."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class RouterDefaults:
    """What the operator was installed with, for all LLMRouters."""

    image: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that one reconcile read. ``owned`` names every owned object, with ``None`` where there is none.

    ``owned`` has the Services that ``inference_pools`` name as pickers too, whoever they belong to.
    """

    router: Object
    policy: Object | None
    model: Seen
    predictor_model: Seen
    owned: Mapping[Ref, Object | None]
    pods: tuple[Object, ...]
    inference_pools: Mapping[str, Object | None] = field(default_factory=dict)
    candidate_policy: Object | None = None
    candidate_model: Seen = None
    at: str = "1970-01-01T00:00:00Z"
    """When it was read, an RFC 3339 instant."""

    @property
    def models(self) -> tuple[Seen, ...]:
        """What was seen of all models that specs name."""
        return (self.model, self.predictor_model, self.candidate_model)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not as declared: a CamelCase word and a line for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model as it is handed to routers: ONNX bytes in base64, and the manifest's text."""

    onnx_base64: str
    manifest: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A model that is fetched from elsewhere: here, or why not (yet)."""

    files: ModelFiles | None = None
    problem: Problem | None = None


Seen = Object | Delivery | None
"""What was seen of a model that a spec names: a ConfigMap, what was fetched, or nothing."""


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """The policy that routers are told to run. With a ``problem``, the referenced one cannot be run."""

    config: PolicyConfig
    files: ModelFiles | None = None
    problem: Problem | None = None
    last_known_good: bool = False


@dataclass(frozen=True, slots=True)
class PredictorChoice:
    """The length predictor that routers are told to run. With a ``problem``, it is not the declared one."""

    config: PredictorConfig
    files: ModelFiles | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reconcile decided. ``objects`` is empty where the spec itself is invalid: then nothing owned changes."""

    key: ObjectKey
    spec: LLMRouterSpec | None
    choice: PolicyChoice | None
    config_digest: str | None
    predictor: PredictorChoice | None = None
    objects: tuple[Object, ...] = ()
    problem: Problem | None = None
    inference_pools: tuple[PoolChoice, ...] = ()
    candidate: CandidateChoice | None = None

    @property
    def troubled(self) -> bool:
        """Whether anything is not as declared that a change elsewhere could mend."""
        parts = [self.problem, self.choice and self.choice.problem, self.predictor and self.predictor.problem]
        parts += [pool.problem for pool in self.inference_pools]
        refused = self.candidate is not None and self.candidate.declared.problem is not None
        return refused or any(part is not None for part in parts)


@dataclass(frozen=True, slots=True)
class Note:
    """An Event to post: ``warning`` or not, a CamelCase reason and a line for people."""

    reason: str
    message: str
    warning: bool = False


def metadata_of(value: Object) -> Object:
    """The object's metadata."""
    result: Object = value["metadata"]
    return result


def key_of(value: Object) -> ObjectKey:
    """Namespace and name of an object."""
    return ObjectKey(metadata_of(value)["namespace"], metadata_of(value)["name"])


def belongs(value: Object, uid: str, key: ObjectKey) -> bool:
    """Whether an object is that LLMRouter's: by its controller, or by its label where it has none."""
    controllers = [owner for owner in metadata_of(value).get("ownerReferences") or [] if owner.get("controller")]
    if controllers:
        return any(owner.get("uid") == uid and owner.get("kind") == LLM_ROUTER.kind for owner in controllers)
    return (metadata_of(value).get("labels") or {}).get(ROUTER_LABEL) == key.name
