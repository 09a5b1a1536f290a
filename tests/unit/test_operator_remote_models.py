"""Models that the operator fetches: beside its reconciles, once, with pauses after failures."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.artefacts import builtin_model
from llmrouter.errors import FetchError
from llmrouter.fetching.wanted import Fetched
from llmrouter.resources import PredictorSpec
from llmrouter_operator.choice import FALLBACK, choose_policy
from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.models import Delivery, ModelFiles, ObjectKey, Problem
from llmrouter_operator.predictor_choice import choose_predictor
from llmrouter_operator.remote_models import FORGOTTEN_AFTER_S, RemoteModels, credentials_of

if TYPE_CHECKING:
    from llmrouter.fetching.wanted import Wanted

MODEL, MANIFEST = builtin_model("policy", "marginal-cost")
SHA256 = hashlib.sha256(MODEL).hexdigest()
FLEET = ObjectKey("team", "fleet")
Object = dict[str, Any]


def policy(**model: object) -> Object:
    return {"type": "Onnx", "model": {"http": {"url": "https://models.test/m"}, "sha256": SHA256} | model}


class Source:
    """What fetching comes to, and how often it was tried."""

    def __init__(self) -> None:
        self.result: Fetched | FetchError = Fetched(MODEL, MANIFEST)
        self.asked: list[Wanted] = []

    async def fetch(self, wanted: Wanted) -> Fetched:
        self.asked.append(wanted)
        await asyncio.sleep(0)
        if isinstance(self.result, FetchError):
            raise self.result
        return self.result


class Secrets:
    """The part of a cluster that is asked for."""

    def __init__(self, secret: Object | ClusterError | None = None) -> None:
        self.secret = secret

    async def get(self, *_: object) -> Object | None:
        if isinstance(self.secret, ClusterError):
            raise self.secret
        return self.secret


class Bench:
    def __init__(self, secret: Object | ClusterError | None = None) -> None:
        self.source, self.now_s, self.nudged = Source(), 0.0, list[ObjectKey]()
        self.models = RemoteModels(
            Secrets(secret),  # type: ignore[arg-type]
            ("models.test",),
            fetch=self.source.fetch,
            clock_s=lambda: self.now_s,
        )
        self.models.listen(self.nudged.append)

    async def look(self, part: Object | None = None, in_force: Object | None = None) -> Delivery | None:
        found = await self.models.look(FLEET, part or policy(), in_force)
        for _ in range(5):
            await asyncio.sleep(0)
        return found

    async def reason(self, part: Object | None = None) -> str | None:
        found = await self.look(part)
        return None if found is None or found.problem is None else found.problem.reason


async def test_a_model_comes_beside_the_reconcile_and_is_fetched_once() -> None:
    bench = Bench()

    assert await bench.reason() == "Fetching"
    assert bench.nudged == [FLEET]
    found = await bench.look()

    assert found == Delivery(files=ModelFiles(base64.b64encode(MODEL).decode(), MANIFEST.decode()))
    assert len(bench.source.asked) == 1
    assert bench.source.asked[0].allowed_hosts == ("models.test",)


async def test_what_fails_is_tried_again_with_growing_pauses() -> None:
    bench = Bench()
    bench.source.result = FetchError("FetchTimeout", "too slow")
    await bench.look()
    tried = []
    for second in range(60):
        bench.now_s = float(second)
        before = len(bench.source.asked)
        assert await bench.reason() == "FetchTimeout"
        tried += [second] * (len(bench.source.asked) - before)

    assert tried == [5, 15, 35]
    bench.source.result = Fetched(MODEL, MANIFEST)
    bench.now_s = 100.0
    await bench.look()
    assert (await bench.look()) is not None
    assert await bench.reason() is None


async def test_a_model_in_force_is_never_fetched_again() -> None:
    bench = Bench()
    encoded = base64.b64encode(MODEL).decode()
    in_force = {
        "data": {"candidate.manifest.json": MANIFEST.decode(), "policy.manifest.json": "{}"},
        "binaryData": {"policy.onnx": "not base64", "candidate.onnx": encoded},
    }

    found = await bench.look(in_force=in_force)

    assert found == Delivery(files=ModelFiles(encoded, MANIFEST.decode()))
    assert bench.source.asked == []


async def test_what_nobody_asks_for_is_forgotten() -> None:
    bench = Bench()
    await bench.look()
    bench.now_s = FORGOTTEN_AFTER_S + 1
    await bench.look(policy(sha256="0" * 64))
    await bench.look()

    assert [wanted.sha256 for wanted in bench.source.asked] == [SHA256, "0" * 64, SHA256]


async def test_what_is_no_source_or_none_that_can_be_read_is_left_to_others() -> None:
    bench = Bench()

    for part in (None, {"type": "LeastInFlight"}, {"type": "Onnx", "model": {"http": {"url": "file:///x"}}}):
        assert await bench.models.look(FLEET, part, None) is None
    assert await bench.look(policy(sha256="short")) is None


def docker_config(**hosts: Object) -> Object:
    content = base64.b64encode(json.dumps({"auths": hosts}).encode()).decode()
    return {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": content}}


AUTH = base64.b64encode(b"me:pass:word").decode()
SECRET = {"http": {"url": "https://models.test/m", "secretRef": {"name": "s"}}}


async def test_credentials_travel_with_the_question() -> None:
    bench = Bench(docker_config(**{"models.test": {"auth": AUTH}}))
    await bench.look(policy(**SECRET))

    credentials = bench.source.asked[0].credentials
    assert credentials is not None
    assert (credentials.host, credentials.username, credentials.password) == ("models.test", "me", "pass:word")


@pytest.mark.parametrize(
    "secret",
    [
        None,
        ClusterError("no", 403),
        {"type": "Opaque", "data": {"token": "eA=="}},
        {"type": "kubernetes.io/service-account-token", "data": {"token": "eA=="}},
        docker_config(**{"other.test": {"auth": AUTH}}),
        {"type": "kubernetes.io/dockerconfigjson", "data": {}},
        {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "bm90IGpzb24="}},
    ],
)
async def test_a_secret_that_is_not_for_that_host_goes_nowhere(secret: Object | ClusterError | None) -> None:
    bench = Bench(secret)

    assert await bench.reason(policy(**SECRET)) == "CredentialsInvalid"
    assert bench.source.asked == []


def test_docker_hub_has_a_name_of_its_own() -> None:
    secret = docker_config(**{"https://index.docker.io/v1/": {"username": "me", "password": "pw"}})

    assert credentials_of(secret, "s", "docker.io").username == "me"


def named(**model: object) -> Object:
    return {"spec": policy(**model)}


def test_a_policy_of_a_fetched_model_runs_and_one_that_is_not_here_says_why() -> None:
    files = ModelFiles(base64.b64encode(MODEL).decode(), MANIFEST.decode())
    chosen = choose_policy("p", named(), Delivery(files=files), None)
    assert (chosen.problem, chosen.files, chosen.config.model_sha256) == (None, files, SHA256)

    waiting = choose_policy("p", named(), Delivery(problem=Problem("Fetching", "soon")), None)
    assert (waiting.config, waiting.problem) == (FALLBACK, Problem("Fetching", "soon"))

    wrong = choose_policy("p", named(sha256="0" * 64), Delivery(files=files), None)
    assert wrong.problem is not None
    assert wrong.problem.reason == "DigestMismatch"


def test_a_policy_on_a_volume_needs_that_volume() -> None:
    on_volume = {"type": "Onnx", "model": {"persistentVolumeClaim": {"claimName": "m", "path": "c"}, "sha256": SHA256}}

    chosen = choose_policy("p", {"spec": on_volume}, None, None, claim="m")
    assert (chosen.problem, chosen.files, chosen.config.model_path) == (None, None, "c")
    for claim in (None, "other"):
        refused = choose_policy("p", {"spec": on_volume}, None, None, claim=claim)
        assert refused.problem is not None
        assert refused.problem.reason == "ClaimNotMounted"


def test_a_predictor_of_a_fetched_model_or_on_a_volume() -> None:
    model, manifest = builtin_model("output_length", "text")
    sha256 = hashlib.sha256(model).hexdigest()
    oci = PredictorSpec.model_validate({"model": {"oci": {"reference": "r.test/m:1"}, "sha256": sha256}})
    files = ModelFiles(base64.b64encode(model).decode(), manifest.decode())
    assert choose_predictor(oci, Delivery(files=files), None).files == files

    claim = {"claimName": "m", "path": "text"}
    volume = PredictorSpec.model_validate({"model": {"persistentVolumeClaim": claim, "sha256": sha256}})
    assert choose_predictor(volume, None, None, claim="m").config.model_path == "text"
