"""The operator with many LLMRouters and instances, against a real API server.

Pods of engines exist in the API alone, with the status that a kubelet would give them; the Deployments of routers are
real, their pods nobody starts, and this program says in their place every five seconds what routers say. Who asks the
API server for what is counted by its audit log.

Phases: everything is made; it rests; the operator is killed, specs change, it is started again; the API server is
killed and started again, and specs change. Each phase ends when every change is where routers read it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import ssl
import sys
import tempfile
import time
from collections import Counter
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.operator_process import chart_rights, grant, llm_router, routing_policy, start_operator  # noqa: E402
from support.played_routers import acknowledgement  # noqa: E402

from llmrouter.config import digest_of, parse_router_config  # noqa: E402
from llmrouter.testbed.cluster.binaries import CONTROL_PLANE, Binaries  # noqa: E402
from llmrouter.testbed.cluster.control_plane import ControlPlane, Settings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from support.operator_process import OperatorProcess

Object = dict[str, Any]
ACKNOWLEDGE_S = 5.0
AT_ONCE = 16
OPERATOR = "system:serviceaccount:llmrouter-system:llmrouter-operator"
ROUTER_FIELDS = "/apis/llmrouter.dev/v1alpha1/namespaces/{}/llmrouters"


class Fleet:
    """LLMRouters by namespace, and the instances that they route over."""

    def __init__(self, session: aiohttp.ClientSession, server: str, options: argparse.Namespace) -> None:
        self._session, self._server = session, server
        self.console = Console(stderr=True)
        self.spaces = [f"scale-{number}" for number in range(options.namespaces)]
        self.routers = [(self.spaces[n % len(self.spaces)], f"fleet-{n}") for n in range(options.routers)]
        per_router, more = divmod(options.instances, options.routers)
        self.instances = [per_router + (n < more) for n in range(options.routers)]
        self.generation = 0

    async def call(self, verb: str, path: str, body: Object | None = None, kind: str = "json") -> Object:
        types = {"json": "application/json", "merge": "application/merge-patch+json"}
        headers = {"Content-Type": types.get(kind, "application/apply-patch+yaml")}
        text = None if body is None else json.dumps(body)
        async with self._session.request(verb, self._server + path, data=text, headers=headers) as answer:
            content = await answer.json()
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise RuntimeError(f"{verb} {path}: {answer.status} {content.get('message')}")
            return content

    async def apply(self, path: str, value: Object) -> None:
        name = value["metadata"]["name"]
        await self.call("PATCH", f"{path}/{name}?fieldManager=bench&force=true", value, "apply")

    async def each(self, what: str, calls: Iterable[Callable[[], Awaitable[object]]]) -> float:
        """Does all, some at a time; returns the seconds it took."""
        began_s, slots = time.monotonic(), asyncio.Semaphore(AT_ONCE)

        async def one(call: Callable[[], Awaitable[object]]) -> None:
            async with slots:
                await call()

        await asyncio.gather(*(one(call) for call in calls))
        took_s = time.monotonic() - began_s
        self.console.print(f"{what}: {took_s:.1f} s")
        return took_s

    async def make_spaces(self) -> None:
        namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in self.spaces]
        await self.each("namespaces", (lambda one=one: self.apply("/api/v1/namespaces", one) for one in namespaces))
        policies = "/apis/llmrouter.dev/v1alpha1/namespaces/{}/routingpolicies"
        plain = routing_policy("plain", type="LeastInFlight")
        await self.each("policies", (lambda one=one: self.apply(policies.format(one), plain) for one in self.spaces))

    async def make_instances(self) -> None:
        wanted = [(space, name, n) for (space, name), count in zip(self.routers, self.instances, strict=True)
                  for n in range(count)]  # fmt: skip
        await self.each(f"{len(wanted)} instances", (lambda one=one: self._make_instance(*one) for one in wanted))

    async def _make_instance(self, space: str, router: str, number: int) -> None:
        name, path = f"{router}-engine-{number}", f"/api/v1/namespaces/{space}/pods"
        container = {"name": "engine", "image": "example.test/engine:1"}
        metadata = {"name": name, "labels": {"app": router}}
        spec = {"containers": [container], "nodeName": "nowhere", "automountServiceAccountToken": False}
        await self.call("POST", path, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": f"10.1.{number // 250}.{number % 250 + 1}", "conditions": conditions}
        await self.call("PATCH", f"{path}/{name}/status", {"status": status}, "merge")

    def router(self, name: str) -> Object:
        pool = {
            "name": "engines",
            "selector": {"matchLabels": {"app": name}},
            "profile": {"name": "llama-3.1-8b-rtx4090"},
        }
        return llm_router(name, pools=[pool], limits={"maxPromptTokens": 1000 + self.generation})

    async def change(self, which: Sequence[tuple[str, str]]) -> None:
        """Gives LLMRouters another spec."""
        self.generation += 1
        await self.each(
            f"{len(which)} LLMRouters applied",
            (lambda s=space, n=name: self.apply(ROUTER_FIELDS.format(s), self.router(n)) for space, name in which),
        )

    async def settled(self, which: Sequence[tuple[str, str]], within_s: float = 900.0) -> float:
        """Seconds until what routers read is the last spec, for all."""
        began_s, waiting, wanted = time.monotonic(), set(which), f'"maxPromptTokens":{1000 + self.generation}'
        while waiting:
            for space in self.spaces:
                if not any(one[0] == space for one in waiting):
                    continue
                path = f"/api/v1/namespaces/{space}/configmaps?labelSelector=app.kubernetes.io/managed-by"
                for item in (await self.call("GET", path))["items"]:
                    if wanted in item.get("data", {}).get("router.json", ""):
                        waiting.discard((space, item["metadata"]["name"].removesuffix("-router-config")))
            if time.monotonic() - began_s > within_s:
                raise TimeoutError(f"{len(waiting)} LLMRouters are not as declared, {min(waiting)} for one")
            await asyncio.sleep(0.2)
        return time.monotonic() - began_s

    async def acknowledge_for_ever(self, told: Counter[str]) -> None:
        """Says for every router pod what a router would, each once in five seconds."""
        pods: dict[tuple[str, str], list[str]] = {}
        while True:
            began_s = time.monotonic()
            try:
                for space in self.spaces:
                    path = f"/api/v1/namespaces/{space}/pods?labelSelector=llmrouter.dev/router"
                    for pod in (await self.call("GET", path))["items"]:
                        labels = pod["metadata"]["labels"]
                        names = pods.setdefault((space, labels["llmrouter.dev/router"]), [])
                        if pod["metadata"]["name"] not in names:
                            names.append(pod["metadata"]["name"])
                for place, one in enumerate(self.routers):
                    await self._acknowledge(*one, pods.get(one, []), self.instances[place])
                    told["written"] += len(pods.get(one, []))
                    due_s = began_s + ACKNOWLEDGE_S * (place + 1) / len(self.routers)
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            except (aiohttp.ClientError, RuntimeError, OSError):  # the API server is away: routers try again too
                told["failed"] += 1
                await asyncio.sleep(0.5)

    async def _acknowledge(self, space: str, name: str, pods: Sequence[str], instances: int) -> None:
        base = f"/api/v1/namespaces/{space}/configmaps/{name}"
        content = (await self.call("GET", f"{base}-router-config"))["data"]["router.json"]
        config = parse_router_config(content.encode())
        digest = digest_of(content.encode())
        for pod in pods:
            said = acknowledgement(
                pod, digest, config, instances_ready=instances, instances_total=instances, at_s=time.time()
            )
            await self.call("PATCH", f"{base}-routers", {"data": {pod: said}}, "merge")


class Calls:
    """What the API server was asked, by its audit log."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def mark(self) -> int:
        return self._file.stat().st_size

    def since(self, mark: int) -> Counter[tuple[str, str, str]]:
        """Calls by client, verb and kind of object."""
        found: Counter[tuple[str, str, str]] = Counter()
        with self._file.open("rb") as opened:
            opened.seek(mark)
            for line in opened:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # the last line is being written
                if event["stage"] == "ResponseComplete" or event["verb"] == "watch":
                    user = event["user"]["username"]
                    kind = event.get("objectRef", {}).get("resource", "other")
                    if event["stage"] == "ResponseComplete" or event["verb"] != "watch":
                        found[client_of(user), event["verb"], kind] += 1
        return found


def client_of(user: str) -> str:
    if user == OPERATOR:
        return "operator"
    if user == "admin":
        return "this program, routers"
    return "cluster"


class Operator:
    """The running operator, measured from outside."""

    def __init__(self, started: OperatorProcess) -> None:
        self.process = started

    def memory_mib(self) -> dict[str, float]:
        text = Path(f"/proc/{self.process.process.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return {name: int(lines[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def reconciles(self) -> tuple[float, dict[float, float]]:
        """Number, and cumulative counts by upper bound in seconds."""
        url = f"http://127.0.0.1:{self.process.http_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            text = await answer.text()
        buckets = {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "llmrouter_operator_reconcile_seconds_bucket"
        }
        return buckets.get(float("inf"), 0.0), buckets


def quantile_s(before: dict[float, float], after: dict[float, float], share: float) -> float | None:
    """The bound below which a share of the reconciles between two looks stayed, linear within a bucket."""
    counts = [(bound, after[bound] - before.get(bound, 0.0)) for bound in sorted(after)]
    total = counts[-1][1]
    if total <= 0:
        return None
    low_s, below = 0.0, 0.0
    for bound_s, count in counts:
        if count >= share * total:
            if bound_s == float("inf"):
                return low_s
            return low_s + (bound_s - low_s) * (share * total - below) / max(count - below, 1e-9)
        low_s, below = bound_s, count
    return low_s


@asynccontextmanager
async def measured(operator: Operator, calls: Calls, found: Object) -> AsyncIterator[None]:
    mark, began_s, cpu_s = calls.mark(), time.monotonic(), operator.cpu_s()
    reconciles, before = await operator.reconciles()
    yield
    seconds = time.monotonic() - began_s
    total, after = await operator.reconciles()
    counted = calls.since(mark)
    found |= {
        "seconds": seconds,
        "reconciles": total - reconciles,
        "reconcile_p50_s": quantile_s(before, after, 0.5),
        "reconcile_p99_s": quantile_s(before, after, 0.99),
        "operator_cpu_fraction": (operator.cpu_s() - cpu_s) / seconds,
        "operator_memory_mib": operator.memory_mib(),
        "calls_per_minute": {
            " ".join(key): round(count * 60 / seconds, 1)
            for key, count in sorted(counted.items())
            if key[0] != "cluster"
        },
        "operator_calls_per_minute": sum(n for key, n in counted.items() if key[0] == "operator") * 60 / seconds,
    }


async def play(options: argparse.Namespace, control_plane: ControlPlane, calls: Calls, folder: Path) -> Object:
    kubeconfig = grant(control_plane, chart_rights())
    result: Object = {}

    def begin(name: str) -> Operator:
        return Operator(start_operator(kubeconfig, folder / f"{name}.log", ["--all-namespaces", "--lease-seconds=15"]))

    trusted = ssl.create_default_context(cafile=str(control_plane.ca_file))
    connector = aiohttp.TCPConnector(ssl=trusted, limit=AT_ONCE)
    headers = {"Authorization": f"Bearer {control_plane.admin_token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        fleet = Fleet(session, control_plane.server, options)
        await fleet.make_spaces()
        await fleet.make_instances()
        told: Counter[str] = Counter()
        operator = begin("first")
        try:
            await operator_is_up(operator)
            async with measured(operator, calls, result.setdefault("made", {})):
                await fleet.change(fleet.routers)
                result["made"]["settled_s"] = await fleet.settled(fleet.routers)
            playing = asyncio.create_task(fleet.acknowledge_for_ever(told))
            await asyncio.sleep(options.calm)
            async with measured(operator, calls, result.setdefault("at_rest", {})):
                fleet.console.print(f"at rest for {options.seconds:g} s")
                await asyncio.sleep(options.seconds)
            async with measured(operator, calls, result.setdefault("changed", {})):
                await fleet.change(fleet.routers)
                result["changed"]["settled_s"] = await fleet.settled(fleet.routers)
            some = fleet.routers[:: max(1, len(fleet.routers) // 20)]
            operator.process.kill()
            await fleet.change(some)
            began_s = time.monotonic()
            operator = begin("second")
            await fleet.settled(some)
            result["operator_restart"] = {"changed": len(some), "settled_s": time.monotonic() - began_s}
            fleet.console.print("the API server goes")
            control_plane.stop_api_server()
            await asyncio.sleep(options.outage)
            await asyncio.to_thread(control_plane.start_api_server)
            began_s, first = time.monotonic(), operator
            await fleet.change(some)
            settling = asyncio.create_task(fleet.settled(some))
            while (
                not settling.done()
            ):  # an operator that cannot renew its Lease ends: as a kubelet does, start it again
                if operator.process.process.poll() is not None:
                    operator = begin("third")
                await asyncio.wait({settling}, timeout=0.2)
            await settling
            result["api_server_restart"] = {
                "outage_s": options.outage,
                "changed": len(some),
                "settled_s": time.monotonic() - began_s,
                "operator_is_the_same": operator is first,
            }
            result["acknowledgements"] = dict(told)
            playing.cancel()
        finally:
            operator.process.kill()
    return result


async def operator_is_up(operator: Operator) -> None:
    for _ in range(300):
        try:
            await operator.reconciles()
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
        else:
            return
    raise TimeoutError(f"the operator does not start, see {operator.process.log}")


def show(result: Object, command: str) -> None:
    console = Console()
    table = Table("phase", "reconciles", "p50", "p99", "calls/min", "CPU", "memory", "as declared after", title=command)
    for phase in ("made", "at_rest", "changed"):
        one = result[phase]
        table.add_row(
            phase,
            f"{one['reconciles']:.0f}",
            *(
                "–" if one[key] is None else f"{one[key] * 1000:.0f} ms"
                for key in ("reconcile_p50_s", "reconcile_p99_s")
            ),
            f"{one['operator_calls_per_minute']:.0f}",
            f"{one['operator_cpu_fraction']:.0%}",
            f"{one['operator_memory_mib']['now']:.0f} MiB",
            f"{one['settled_s']:.1f} s" if "settled_s" in one else "",
        )
    for phase in ("operator_restart", "api_server_restart"):
        table.add_row(phase, "", "", "", "", "", "", f"{result[phase]['settled_s']:.1f} s")
    console.print(table)
    console.print({name: n for name, n in result["at_rest"]["calls_per_minute"].items() if name.startswith("operator")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routers", type=int, default=200, help="LLMRouters (default: %(default)s)")
    parser.add_argument("--instances", type=int, default=5000, help="pods of engines (default: %(default)s)")
    parser.add_argument("--namespaces", type=int, default=10, help="that they are spread over (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of rest that are measured (default: %(default)s)")
    parser.add_argument("--calm", type=float, default=40.0, help="seconds before that (default: %(default)s)")
    parser.add_argument("--outage", type=float, default=10.0, help="seconds without API server (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/bench/scale.json"))
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "bench.scale", *sys.argv[1:]])
    binaries = Binaries().provide(CONTROL_PLANE)
    crds = tuple(yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml")))
    with tempfile.TemporaryDirectory(prefix="llmrouter-scale-") as directory:
        folder = Path(directory)
        audit, policy = folder / "audit.log", folder / "audit.yaml"
        rule = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
        policy.write_text(yaml.safe_dump(rule | {"omitStages": ["RequestReceived"], "omitManagedFields": True}))
        flags = (f"--audit-policy-file={policy}", f"--audit-log-path={audit}", "--audit-log-mode=blocking")
        settings = Settings(directory=folder / "cluster", crds=crds, api_server_flags=flags)
        with ControlPlane(settings, binaries) as control_plane:
            result = asyncio.run(play(options, control_plane, Calls(audit), folder))
    result |= {"command": command, "routers": options.routers, "instances": options.instances}
    result |= {"load_average": os.getloadavg(), "cores": os.cpu_count()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result, command)


if __name__ == "__main__":
    main()
