"""An API server with etcd and the controllers as plain processes of one user: no root, no container."""

import csv
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmrouter.testbed.cluster.api import Api, kubeconfig
from llmrouter.testbed.cluster.binaries import kubectl
from llmrouter.testbed.cluster.certificates import Authority, Pair
from llmrouter.testbed.cluster.processes import Process, free_port, poll, start

READY_WITHIN_S = 90.0
USERS: Mapping[str, tuple[str, str]] = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "dns": ("testbed-dns", ""),
    "node": ("system:node:llmrouter", "system:nodes"),
}


@dataclass(frozen=True)
class Settings:
    """What a control plane is to be like.

    `address` is where the API server listens and what pods are told; `tied` programs die with the caller's thread;
    `api_server_flags` are added to those of the API server.
    """

    directory: Path
    address: str = "127.0.0.1"
    service_cidr: str = "10.96.0.0/16"
    service_ip: str = "10.96.0.1"
    controllers: bool = True
    scheduler: bool = False
    tied: bool = True
    crds: tuple[dict[str, Any], ...] = ()
    api_server_flags: tuple[str, ...] = ()
    etcd_port: int = field(default_factory=free_port)
    etcd_peer_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)


@dataclass(frozen=True)
class Credentials:
    """Everything secret of one control plane: made new for each, kept in its private directory."""

    authority: Authority
    serving: Pair
    calling: Pair
    service_accounts: Pair
    tokens: Mapping[str, str]
    tokens_file: Path


def make_credentials(settings: Settings) -> Credentials:
    """Makes certificates, the service account key and one token for each user of `USERS`."""
    folder = settings.directory / "pki"
    authority = Authority(folder)
    names = (
        "localhost",
        *(f"kubernetes{rest}" for rest in ("", ".default", ".default.svc", ".default.svc.cluster.local")),
    )
    ips = tuple(dict.fromkeys(("127.0.0.1", settings.address, settings.service_ip)))
    tokens = {user: secrets.token_urlsafe(24) for user in USERS}
    tokens_file = folder / "tokens.csv"
    with tokens_file.open("w", newline="") as file:
        csv.writer(file).writerows((tokens[user], name, name, groups) for user, (name, groups) in USERS.items())
    tokens_file.chmod(0o600)
    return Credentials(
        authority=authority,
        serving=authority.sign("apiserver", subject="/CN=kube-apiserver", ips=ips, names=names),
        calling=authority.sign("apiserver-client", subject="/O=system:masters/CN=kube-apiserver"),
        service_accounts=authority.signing_key("service-accounts"),
        tokens=tokens,
        tokens_file=tokens_file,
    )


def etcd_arguments(settings: Settings, credentials: Credentials) -> list[str]:
    """Etcd's flags: loopback only, callers known by certificate, no fsync because nothing outlives the run."""
    client, peer = (f"127.0.0.1:{port}" for port in (settings.etcd_port, settings.etcd_peer_port))
    return [
        f"--data-dir={settings.directory / 'etcd'}",
        f"--listen-client-urls=https://{client}",
        f"--advertise-client-urls=https://{client}",
        f"--listen-peer-urls=http://{peer}",
        f"--initial-advertise-peer-urls=http://{peer}",
        f"--initial-cluster=default=http://{peer}",
        f"--cert-file={credentials.serving.certificate}",
        f"--key-file={credentials.serving.key}",
        "--client-cert-auth",
        f"--trusted-ca-file={credentials.authority.pair.certificate}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server_arguments(settings: Settings, credentials: Credentials) -> list[str]:
    """kube-apiserver's flags: RBAC and node authorization on, anonymous callers off."""
    authority = credentials.authority.pair.certificate
    return [
        f"--etcd-servers=https://127.0.0.1:{settings.etcd_port}",
        f"--etcd-cafile={authority}",
        f"--etcd-certfile={credentials.calling.certificate}",
        f"--etcd-keyfile={credentials.calling.key}",
        f"--secure-port={settings.port}",
        f"--bind-address={settings.address}",
        f"--advertise-address={settings.address}",
        f"--tls-cert-file={credentials.serving.certificate}",
        f"--tls-private-key-file={credentials.serving.key}",
        f"--client-ca-file={authority}",
        f"--kubelet-certificate-authority={authority}",
        f"--kubelet-client-certificate={credentials.calling.certificate}",
        f"--kubelet-client-key={credentials.calling.key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={settings.service_cidr}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={credentials.service_accounts.key}",
        f"--service-account-key-file={credentials.service_accounts.certificate}",
        f"--token-auth-file={credentials.tokens_file}",
        "--authorization-mode=Node,RBAC",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--endpoint-reconciler-type=none" if settings.address == "127.0.0.1" else "--endpoint-reconciler-type=lease",
        "--profiling=false",
        "--shutdown-delay-duration=0s",
        *settings.api_server_flags,
    ]


def controller_manager_arguments(settings: Settings, credentials: Credentials, config: Path) -> list[str]:
    """kube-controller-manager's flags: one replica, quick to notice, its own metrics port closed."""
    return [
        f"--kubeconfig={config}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={credentials.authority.pair.certificate}",
        f"--service-account-private-key-file={credentials.service_accounts.key}",
        f"--service-cluster-ip-range={settings.service_cidr}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--secure-port=0",
        "--profiling=false",
    ]


class ControlPlane:
    """A running API server with its etcd and controllers, and ways to talk to it as different users."""

    def __init__(self, settings: Settings, binaries: Mapping[str, Path]) -> None:
        self._settings = settings
        self._binaries = binaries
        self._processes: dict[str, Process] = {}
        settings.directory.mkdir(parents=True, exist_ok=True)
        settings.directory.chmod(0o700)
        self.credentials = make_credentials(settings)
        self.server = f"https://{settings.address}:{settings.port}"
        self.ca_file = self.credentials.authority.pair.certificate
        self.admin_token = self.credentials.tokens["admin"]
        self.api = Api(self.server, self.ca_file, self.admin_token)
        self.kubeconfig = self.user_kubeconfig("admin")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything and returns when the API server is ready and the CRDs are served."""
        try:
            self._launch("etcd", etcd_arguments(self._settings, self.credentials))
            self.start_api_server()
            self.install_crds(self._settings.crds)
            if self._settings.controllers:
                config = self.user_kubeconfig("controller-manager")
                self._launch(
                    "kube-controller-manager",
                    controller_manager_arguments(self._settings, self.credentials, config),
                )
                service_account = "/api/v1/namespaces/default/serviceaccounts/default"
                controllers = self._processes["kube-controller-manager"]
                controllers.ready(lambda: self.api.exists(service_account), within_s=READY_WITHIN_S)
            if self._settings.scheduler:
                config = self.user_kubeconfig("scheduler")
                self._launch("kube-scheduler", [f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every program, the last started first. Data and credentials stay until the directory is removed."""
        for name in reversed(self._processes):
            self._processes[name].stop(grace_s=0.5)
        self._processes.clear()

    def start_api_server(self) -> None:
        """Starts the API server (again) and waits until it is ready; its port, data and credentials stay the same."""
        process = self._launch("kube-apiserver", api_server_arguments(self._settings, self.credentials))
        process.ready(self.api.ready, within_s=READY_WITHIN_S)

    def stop_api_server(self) -> None:
        """Takes the API server away at once, as a crash would; `start_api_server` brings it back."""
        self._processes.pop("kube-apiserver").stop(grace_s=0)

    def install_crds(self, crds: Iterable[dict[str, Any]]) -> None:
        """Applies custom resource definitions and waits until each is established.

        The garbage collector looks for new kinds every 30 s, but knows at once those that are there when it starts.
        """
        base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
        names = [crd["metadata"]["name"] for crd in crds]
        for crd in crds:
            self.api.apply(base + crd["metadata"]["name"], crd)
        for name in names:
            poll(lambda name=name: is_established(self.api.get(base + name)), within_s=30, what=f"{name} established")  # type: ignore[misc]

    def user_kubeconfig(self, user: str) -> Path:
        """The kubeconfig file of one of `USERS`."""
        return self._write_kubeconfig(user, self.credentials.tokens[user])

    def service_account_kubeconfig(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A kubeconfig that calls as a service account, which must exist, with exactly its rights."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        answer = self.api.call("POST", path, request)
        return self._write_kubeconfig(f"{namespace}-{name}", answer["status"]["token"])

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Runs kubectl as admin and returns what it printed."""
        return kubectl(self._binaries["kubectl"], self.kubeconfig, *words, stdin=stdin)

    @property
    def logs(self) -> Path:
        """The folder with one log for each program."""
        return self._settings.directory / "logs"

    def _write_kubeconfig(self, name: str, token: str) -> Path:
        path = self._settings.directory / f"{name}.kubeconfig"
        content = kubeconfig(server=self.server, authority=self.ca_file, token=token)
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
        return path

    def _launch(self, name: str, arguments: list[str]) -> Process:
        process = start(
            name,
            [self._binaries[name], *arguments],
            log=self.logs / f"{name}.log",
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(self._settings.directory)},
            tied=self._settings.tied,
            pid_file=self._settings.directory / f"{name}.pid",
        )
        self._processes[name] = process
        return process


def is_established(crd: Mapping[str, Any]) -> bool:
    """Whether the API server serves the kind; its status, and the conditions in it, are null at first."""
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)
