"""Builds the objects that one LLMRouter owns: pure, typed values, applied elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.acknowledgement import ACKNOWLEDGEMENTS_SUFFIX, CONFIG_SUFFIX
from llmrouter.config import (
    CANDIDATE_MANIFEST_KEY,
    CANDIDATE_MODEL_KEY,
    CERTIFICATE_FOLDER,
    CONFIG_KEY,
    DIGEST_ANNOTATION,
    MANIFEST_KEY,
    MODEL_KEY,
    MODELS_FOLDER,
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
    TOKENIZERS_FOLDER,
    canonical_json,
    digest_of,
)
from llmrouter_operator.decision_log import decision_mounts, decision_volumes, store_credentials
from llmrouter_operator.models import (
    COMPONENT,
    COMPONENT_LABEL,
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_POOL,
    LLM_ROUTER,
    MANAGED_BY_LABEL,
    MANAGER,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    ROUTER_LABEL,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Object,
    ObjectKey,
    Ref,
    RouterDefaults,
)

if TYPE_CHECKING:
    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.models import ModelFiles

USER_ID = 65532
SECRET_MODE = 0o440
TERMINATION_GRACE_S = 60
RESTART_ANNOTATION = "llmrouter.dev/restart-digest"
"""On the pod template: digest of what routers read only when they start."""
EXT_PROC = "ext-proc"
"""Name of the endpoint picker's port."""
OPENAI = "openai"
"""Name of the OpenAI front's port."""

DEFAULT_REQUESTS = {"cpu": "100m", "memory": "256Mi"}


@dataclass(frozen=True, slots=True)
class Names:
    """Names of everything that an LLMRouter owns."""

    key: ObjectKey

    @property
    def workload(self) -> str:
        """Deployment, Service, ServiceAccount, Role, RoleBinding and PodDisruptionBudget."""
        return f"{self.key.name}-router"

    @property
    def config(self) -> str:
        """ConfigMap with the compiled configuration."""
        return f"{self.key.name}{CONFIG_SUFFIX}"

    @property
    def acknowledgements(self) -> str:
        """ConfigMap in which every router says what it runs."""
        return f"{self.key.name}{ACKNOWLEDGEMENTS_SUFFIX}"

    def refs(self) -> tuple[Ref, ...]:
        """Everything owned, in the order in which it is applied."""
        return (
            Ref(CONFIG_MAP, self.config),
            Ref(CONFIG_MAP, self.acknowledgements),
            Ref(SERVICE_ACCOUNT, self.workload),
            Ref(ROLE, self.workload),
            Ref(ROLE_BINDING, self.workload),
            Ref(SERVICE, self.workload),
            Ref(DEPLOYMENT, self.workload),
            Ref(POD_DISRUPTION_BUDGET, self.workload),
        )


@dataclass(frozen=True, slots=True)
class Owner:
    """The LLMRouter that everything built belongs to."""

    key: ObjectKey
    uid: str

    @property
    def names(self) -> Names:
        """Names of what it owns."""
        return Names(self.key)

    @property
    def pod_labels(self) -> dict[str, str]:
        """Labels by which its router pods are found."""
        return {ROUTER_LABEL: self.key.name, COMPONENT_LABEL: COMPONENT}

    def build(self, kind: Kind, name: str, **fields: object) -> Object:
        """An object of its own with labels and an owner reference, so that it goes when the LLMRouter goes."""
        labels = {
            "app.kubernetes.io/name": "llmrouter",
            "app.kubernetes.io/instance": self.key.name,
            MANAGED_BY_LABEL: MANAGER,
            **self.pod_labels,
        }
        reference = {
            "apiVersion": LLM_ROUTER.api_version,
            "kind": LLM_ROUTER.kind,
            "name": self.key.name,
            "uid": self.uid,
            "controller": True,
        }
        metadata = {
            "name": name,
            "namespace": self.key.namespace,
            "labels": labels,
            "ownerReferences": [reference],
        }
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **fields}


def build_config_map(
    owner: Owner,
    config: bytes,
    policy: ModelFiles | None,
    *,
    predictor: ModelFiles | None = None,
    candidate: ModelFiles | None = None,
) -> Object:
    """The one ConfigMap that routers watch: configuration and models change together."""
    data = {CONFIG_KEY: config.decode()}
    binary: dict[str, str] = {}
    if policy is not None:
        data[MANIFEST_KEY] = policy.manifest
        binary[MODEL_KEY] = policy.onnx_base64
    if candidate is not None:
        data[CANDIDATE_MANIFEST_KEY] = candidate.manifest
        binary[CANDIDATE_MODEL_KEY] = candidate.onnx_base64
    if predictor is not None:
        data[PREDICTOR_MANIFEST_KEY] = predictor.manifest
        binary[PREDICTOR_MODEL_KEY] = predictor.onnx_base64
    result = owner.build(CONFIG_MAP, owner.names.config, data=data, **({"binaryData": binary} if binary else {}))
    result["metadata"]["annotations"] = {DIGEST_ANNOTATION: digest_of(config)}
    return result


def build_objects(
    owner: Owner, spec: LLMRouterSpec, config_map: Object, defaults: RouterDefaults
) -> tuple[Object, ...]:
    """Everything that an LLMRouter owns, in the order in which it is applied."""
    names = owner.names
    return (
        config_map,
        owner.build(CONFIG_MAP, names.acknowledgements),
        owner.build(SERVICE_ACCOUNT, names.workload),
        build_role(owner, spec),
        _role_binding(owner),
        _service(owner, spec),
        build_deployment(owner, spec, defaults),
        _disruption_budget(owner),
    )


def build_role(owner: Owner, spec: LLMRouterSpec) -> Object:
    """What a router may do: read its configuration, say what it runs, see pods and InferencePools where pools do."""
    names = owner.names
    rules: list[Object] = [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [names.config],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [names.acknowledgements], "verbs": ["patch"]},
    ]
    referenced = sorted({pool.inference_pool_ref.name for pool in spec.pools if pool.inference_pool_ref is not None})
    if referenced:
        rules.append(
            {
                "apiGroups": [INFERENCE_POOL.group],
                "resources": [INFERENCE_POOL.plural],
                "resourceNames": referenced,
                "verbs": ["get", "list", "watch"],
            }
        )
    if any(pool.endpoints is None for pool in spec.pools):
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]})
    return owner.build(ROLE, names.workload, rules=rules)


def _role_binding(owner: Owner) -> Object:
    name = owner.names.workload
    subject = {"kind": SERVICE_ACCOUNT.kind, "name": name, "namespace": owner.key.namespace}
    role = {"apiGroup": ROLE.group, "kind": ROLE.kind, "name": name}
    return owner.build(ROLE_BINDING, name, subjects=[subject], roleRef=role)


def _service(owner: Owner, spec: LLMRouterSpec) -> Object:
    ports = [
        {
            "name": "grpc",
            "port": spec.listeners.grpc_port,
            "targetPort": "grpc",
            "protocol": "TCP",
            "appProtocol": "grpc",
        },
        {"name": "metrics", "port": spec.listeners.metrics_port, "targetPort": "metrics", "protocol": "TCP"},
    ]
    picker = spec.listeners.ext_proc
    if picker is not None:
        ports.append(
            {"name": EXT_PROC, "port": picker.port, "targetPort": EXT_PROC, "protocol": "TCP", "appProtocol": "http2"}
        )
    ports += [
        {"name": name, "port": port, "targetPort": name, "protocol": "TCP", "appProtocol": "http2"}
        for name, port in _process_ports(spec).items()
    ]
    front = spec.listeners.openai
    if front is not None:
        ports.append(
            {"name": OPENAI, "port": front.port, "targetPort": OPENAI, "protocol": "TCP", "appProtocol": "http"}
        )
    return owner.build(SERVICE, owner.names.workload, spec={"selector": owner.pod_labels, "ports": ports})


def _disruption_budget(owner: Owner) -> Object:
    budget = {"maxUnavailable": 1, "selector": {"matchLabels": owner.pod_labels}}
    return owner.build(POD_DISRUPTION_BUDGET, owner.names.workload, spec=budget)


def build_deployment(owner: Owner, spec: LLMRouterSpec, defaults: RouterDefaults) -> Object:
    """The router pods. The configuration is no part of the template: a new one restarts nothing."""
    deployment = {
        "replicas": spec.router.replicas,
        "selector": {"matchLabels": owner.pod_labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {
                "labels": {
                    "app.kubernetes.io/name": "llmrouter",
                    "app.kubernetes.io/instance": owner.key.name,
                    **owner.pod_labels,
                },
                "annotations": {
                    RESTART_ANNOTATION: restart_digest(spec),
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": str(spec.listeners.metrics_port),
                },
            },
            "spec": _pod(owner, spec, defaults),
        },
    }
    return owner.build(DEPLOYMENT, owner.names.workload, spec=deployment)


def restart_digest(spec: LLMRouterSpec) -> str:
    """Changes when something does that routers read only at their start: listeners and the shared state."""
    return digest_of(canonical_json(spec.listeners) + canonical_json(spec.state))[:16]


def _pod(owner: Owner, spec: LLMRouterSpec, defaults: RouterDefaults) -> Object:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": owner.pod_labels},
    }
    pod: Object = {
        "serviceAccountName": owner.names.workload,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [spread],
        "containers": [_container(owner, spec, defaults)],
        "volumes": _volumes(spec),
    }
    if spec.router.node_selector:
        pod["nodeSelector"] = dict(spec.router.node_selector)
    if defaults.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in defaults.pull_secrets]
    return pod


def _container(owner: Owner, spec: LLMRouterSpec, defaults: RouterDefaults) -> Object:
    port = spec.listeners.grpc_port
    return {
        "name": COMPONENT,
        "image": spec.router.image or defaults.image,
        "imagePullPolicy": defaults.pull_policy,
        "command": ["python", "-m", "router_grpc"],
        "env": _environment(owner, spec),
        "envFrom": store_credentials(spec),
        "ports": _container_ports(spec),
        "startupProbe": _probe(port, "liveness", period_s=2, failures=60),
        "readinessProbe": _probe(port, "readiness", period_s=2, failures=2),
        "livenessProbe": _probe(port, "liveness", period_s=10, failures=3),
        "resources": _resources(spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(spec),
    }


def _container_ports(spec: LLMRouterSpec) -> list[Object]:
    listeners = spec.listeners
    ports = {"grpc": listeners.grpc_port, "metrics": listeners.metrics_port}
    if listeners.ext_proc is not None:
        ports[EXT_PROC] = listeners.ext_proc.port
        ports |= _process_ports(spec)
    if listeners.openai is not None:
        ports[OPENAI] = listeners.openai.port
    return [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports.items()]


def _process_ports(spec: LLMRouterSpec) -> dict[str, int]:
    """Of an endpoint picker with several processes: the port of each one's own, by name."""
    picker, processes = spec.listeners.ext_proc, spec.router.processes
    if picker is None or processes == 1:
        return {}
    return {f"{EXT_PROC}-{number}": picker.port + 1 + number for number in range(processes)}


def _certificate_secret(spec: LLMRouterSpec) -> str | None:
    picker = spec.listeners.ext_proc
    reference = None if picker is None else picker.certificate_secret_ref
    return None if reference is None else reference.name


def _volumes(spec: LLMRouterSpec) -> list[Object]:
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}]
    tokenizers = spec.router.tokenizers
    if tokenizers is not None and tokenizers.persistent_volume_claim is not None:
        claim = {"claimName": tokenizers.persistent_volume_claim.claim_name, "readOnly": True}
        volumes.append({"name": "tokenizers", "persistentVolumeClaim": claim})
    elif tokenizers is not None and tokenizers.config_map is not None:
        volumes.append({"name": "tokenizers", "configMap": {"name": tokenizers.config_map.name, "optional": True}})
    if spec.router.models_claim is not None:
        models = {"claimName": spec.router.models_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": models})
    volumes += decision_volumes(spec)
    secret = _certificate_secret(spec)
    if secret is not None:  # optional: a router says itself that it is missing, and serves
        volumes.append(
            {"name": "certificate", "secret": {"secretName": secret, "optional": True, "defaultMode": SECRET_MODE}}
        )
    return volumes


def _mounts(spec: LLMRouterSpec) -> list[Object]:
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - a volume of the pod's own
    if spec.router.tokenizers is not None:
        mounts.append({"name": "tokenizers", "mountPath": TOKENIZERS_FOLDER, "readOnly": True})
    if spec.router.models_claim is not None:
        mounts.append({"name": "models", "mountPath": MODELS_FOLDER, "readOnly": True})
    mounts += decision_mounts(spec)
    if _certificate_secret(spec) is not None:
        mounts.append({"name": "certificate", "mountPath": CERTIFICATE_FOLDER, "readOnly": True})
    return mounts


def _environment(owner: Owner, spec: LLMRouterSpec) -> list[Object]:
    key, names = owner.key, owner.names
    values = {
        "LLMROUTER_NAME": key.name,
        "LLMROUTER_NAMESPACE": key.namespace,
        "LLMROUTER_CONFIG_MAP": names.config,
        "LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP": names.acknowledgements,
        "LLMROUTER_LEDGER_NAMESPACE": f"{key.namespace}/{key.name}/{owner.uid}",
        "LLMROUTER_GRPC_PORT": str(spec.listeners.grpc_port),
        "LLMROUTER_METRICS_PORT": str(spec.listeners.metrics_port),
    }
    if spec.router.processes > 1:
        values["LLMROUTER_PROCESSES"] = str(spec.router.processes)
    values |= _listener_environment(owner, spec)
    environment: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    pod_name = {"apiVersion": "v1", "fieldPath": "metadata.name"}
    environment.append({"name": "POD_NAME", "valueFrom": {"fieldRef": pod_name}})
    redis = spec.state.redis
    if redis is not None and redis.password_secret_ref is not None:
        secret = {"name": redis.password_secret_ref.name, "key": redis.password_secret_ref.key}
        environment.append({"name": "LLMROUTER_REDIS_PASSWORD", "valueFrom": {"secretKeyRef": secret}})
    return environment


def _listener_environment(owner: Owner, spec: LLMRouterSpec) -> dict[str, str]:
    """Ports that are not always there, and how the endpoint picker's serves."""
    picker, front = spec.listeners.ext_proc, spec.listeners.openai
    values = {} if front is None else {"LLMROUTER_OPENAI_PORT": str(front.port)}
    if picker is not None:
        values |= {"LLMROUTER_EXT_PROC_PORT": str(picker.port), "LLMROUTER_EXT_PROC_TRANSPORT": picker.transport}
        if picker.secure_serving:
            values["LLMROUTER_TLS_SERVICE"] = owner.names.workload
            values["LLMROUTER_TLS_MOUNTED"] = "false" if picker.certificate_secret_ref is None else "true"
    return values


def _probe(port: int, service: str, *, period_s: int, failures: int) -> Object:
    return {
        "grpc": {"port": port, "service": service},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _resources(spec: LLMRouterSpec) -> Object:
    declared = spec.router.resources
    requests = DEFAULT_REQUESTS if declared.requests is None and declared.limits is None else declared.requests
    parts = {"requests": requests, "limits": declared.limits}
    return {part: {name: str(value) for name, value in sizes.items()} for part, sizes in parts.items() if sizes}
