"""What a picker says to a request: the destination, and the body that goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.epp.case import (
    BAD_REQUEST,
    NOBODY,
    QUIET_S,
    SATURATED,
    UNAVAILABLE,
    Case,
    chat,
    check,
    check_picked,
)
from llmrouter.testbed.epp.stream import (
    DESTINATION,
    DUPLEX,
    SERVED,
    SUBSET,
    Stream,
    Target,
    answer_headers,
    ask,
    body_message,
    headers_message,
)
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def _one_chunk(target: Target) -> None:
    body = chat(target)
    check_picked(await ask(target, chunks=[body]), body)


async def _three_chunks(target: Target) -> None:
    body = chat(target)
    check_picked(await ask(target, chunks=[body[:7], body[7:20], body[20:]]), body)


async def _nothing_before_the_end(target: Target) -> None:
    body = chat(target)
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/chat/completions"))
        await stream.send(body_message(body[:10], ends=False))
        await stream.silence(QUIET_S)


async def _long_body(target: Target) -> None:
    body = chat(target, text="word " * 60_000)
    check_picked(await ask(target, chunks=[body[at : at + 60_000] for at in range(0, len(body), 60_000)]), body)


async def _ends_twice(target: Target) -> None:
    body = chat(target, text="word " * 250_000)
    parts = [body[at : at + 60_000] for at in range(0, len(body), 60_000)]
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/chat/completions"))
        for place, part in enumerate(parts, start=1):
            await stream.send(body_message(part, ends=place == len(parts)))
        await stream.send(body_message(b"", ends=True))
        check_picked(await stream.picked(), body)
        await stream.send(answer_headers())
        await stream.expect("response_headers")


async def _empty_body(target: Target) -> None:
    found = await ask(target, path="/v1/unknown", chunks=[b""])
    check_picked(found, b"")
    check(found.chunks == [0], f"an empty body came back in {len(found.chunks)} pieces")


async def _without_body(target: Target) -> None:
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/models", method="GET", ends=True))
        check_picked(await stream.picked(has_body=False))


async def _header_is_metadata(target: Target) -> None:
    found = await ask(target, chunks=[chat(target)])
    check_picked(found)
    check(found.metadata == found.destination, f"header {found.destination!r}, metadata {found.metadata!r}")


async def _plain_values(target: Target) -> None:
    check_picked(await ask(target, chunks=[chat(target)], raw=False))


async def _same_key_twice(target: Target) -> None:
    check_picked(await ask(target, chunks=[chat(target)], headers=[("x-some", "a"), ("x-some", "b")]))


async def _upper_case_keys(target: Target) -> None:
    check_picked(await ask(target, chunks=[chat(target)], headers=[("X-Request-Id", "a"), ("Accept", "*/*")]))


async def _a_destination(target: Target) -> str:
    found = await ask(target, chunks=[chat(target)])
    check_picked(found)
    return found.destination.split(",", maxsplit=1)[0]


async def _subset_list(target: Target) -> None:
    await _subset(target, lambda endpoint: [endpoint, NOBODY])


async def _subset_text(target: Target) -> None:
    await _subset(target, lambda endpoint: f"{NOBODY},{endpoint}")


async def _subset_commas_in_list(target: Target) -> None:
    await _subset(target, lambda endpoint: [f"{NOBODY},{endpoint}"])


async def _subset_host(target: Target) -> None:
    await _subset(target, lambda endpoint: [endpoint.rpartition(":")[0]], whole=False)


async def _subset(target: Target, make: Callable[[str], object], *, whole: bool = True) -> None:
    endpoint = await _a_destination(target)
    for _ in range(5):
        found = await ask(target, chunks=[chat(target)], subset=make(endpoint))
        check_picked(found)
        first = found.destination.split(",", maxsplit=1)[0]
        alike = first == endpoint if whole else first.rpartition(":")[0] == endpoint.rpartition(":")[0]
        check(alike, f"{first} is not of the subset of {endpoint}")


async def _subset_empty(target: Target) -> None:
    await _refused(target, UNAVAILABLE, chat(target), subset=[])


async def _subset_of_nobody(target: Target) -> None:
    await _refused(target, UNAVAILABLE, chat(target), subset=[NOBODY])


async def _no_instance(target: Target) -> None:
    await _refused(target, UNAVAILABLE, chat(target))


async def _saturated(target: Target) -> None:
    await _refused(target, SATURATED, chat(target))


async def _not_json(target: Target) -> None:
    await _refused(target, BAD_REQUEST, b"{")


async def _no_model(target: Target) -> None:
    await _refused(target, BAD_REQUEST, b'{"messages": [{"role": "user", "content": "a"}]}')


async def _refused(target: Target, status: int, body: bytes, subset: object = None) -> None:
    found = await ask(target, chunks=[body], subset=subset)
    check(found.status == status, f"status {found.status or 'none: it was sent on'}, not {status}")


async def _unknown_path(target: Target) -> None:
    check_picked(await ask(target, path="/some/other/api", chunks=[b"\x00\x01 not JSON"]), b"\x00\x01 not JSON")


def _path(path: str, content: dict[str, Any]) -> Callable[[Target], Awaitable[None]]:
    async def run(target: Target) -> None:
        body = json.dumps({"model": target.model, **content}).encode()
        check_picked(await ask(target, path=path, chunks=[body]), body)

    return run


async def _any_configuration(target: Target) -> None:
    for flag in (False, True):
        config = pb.ProtocolConfiguration()
        config.CopyFrom(DUPLEX)
        config.send_body_without_waiting_for_header_response = flag
        check_picked(await ask(target, chunks=[chat(target)], config=config))
    check_picked(await ask(target, chunks=[chat(target)], config=None))


async def _forged_headers(target: Target) -> None:
    forged = ((DESTINATION, NOBODY), (SERVED, NOBODY), (SUBSET, NOBODY))
    found = await ask(target, chunks=[chat(target)], headers=forged)
    check_picked(found)
    check(NOBODY not in found.destination, "a client's header chose the endpoint")
    left = [name for name in (SERVED, SUBSET) if name not in found.removed and found.set_headers.get(name, "x") != ""]
    check(not left, f"the engine gets the client's {', '.join(left)}")


async def _prefiller_is_forged(target: Target) -> None:
    found = await ask(target, chunks=[chat(target)], headers=[(PREFILLER, NOBODY)])
    check_picked(found)
    said = found.set_headers.get(PREFILLER)
    check(PREFILLER in found.removed or said not in {None, NOBODY}, "the engine gets the client's")


def _bytes(path: str, body: bytes, content_type: str) -> Callable[[Target], Awaitable[None]]:
    async def run(target: Target) -> None:
        check_picked(await ask(target, path=path, chunks=[body], headers=[("content-type", content_type)]), body)

    return run


def _buffered(answer: pb.BodySendMode) -> Callable[[Target], Awaitable[None]]:
    """The gateway keeps a body until its headers are answered, and then sends it whole."""
    config = pb.ProtocolConfiguration(request_body_mode=pb.BUFFERED, response_body_mode=answer)

    async def run(target: Target) -> None:
        async with Stream(target) as stream:
            await stream.send(headers_message("/v1/chat/completions", config=config))
            await stream.expect("request_headers")
            await stream.send(body_message(chat(target), ends=True))
            said = (await stream.expect("request_body")).request_body.response
            names = {one.header.key.lower() for one in said.header_mutation.set_headers}
            check(DESTINATION in names, f"no header {DESTINATION}")
            check(not said.HasField("body_mutation"), "the body is changed")

    return run


MULTIPART = (
    b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\x00\xff\xfe\r\n--b--\r\n'
)
IMAGE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    }
]
PREFILLER = "x-prefiller-host-port"
TURN = [{"role": "user", "content": "a"}]

CASES = (
    Case("a body in one chunk", _one_chunk),
    Case("a body in three chunks", _three_chunks),
    Case("nothing is said before the body ends", _nothing_before_the_end),
    Case("a body of 300 kB comes back whole, in pieces of at most 64 KiB", _long_body),
    Case("a body of 1 MB that ends twice", _ends_twice),
    Case("an empty body", _empty_body),
    Case("a request without a body", _without_body),
    Case("the destination's header and metadata are equal", _header_is_metadata),
    Case("headers as text", _plain_values),
    Case("a header that comes twice", _same_key_twice),
    Case("header names in capitals", _upper_case_keys),
    Case("a subset as a list", _subset_list),
    Case("a subset as text", _subset_text),
    Case("a subset as a list of texts with commas", _subset_commas_in_list),
    Case("a subset of hosts without ports", _subset_host),
    Case("an empty subset is 503", _subset_empty),
    Case("a subset of nobody is 503", _subset_of_nobody),
    Case("no instance is 503", _no_instance, needs="empty"),
    Case("no room is 429", _saturated, needs="full"),
    Case("a body that is no JSON is 400", _not_json),
    Case("a body without a model is 400", _no_model),
    Case("an unknown path is sent on", _unknown_path),
    Case("/v1/completions", _path("/v1/completions", {"prompt": "a"})),
    Case("/v1/completions with token ids", _path("/v1/completions", {"prompt": [1, 2, 3]})),
    Case("/v1/responses", _path("/v1/responses", {"input": "a"})),
    Case("/v1/responses with a list", _path("/v1/responses", {"input": TURN})),
    Case("/v1/embeddings", _path("/v1/embeddings", {"input": ["a"]})),
    Case("/v1/rerank", _path("/v1/rerank", {"query": "a", "documents": ["a", "b"]})),
    Case("/v1/score", _path("/v1/score", {"text_1": "a", "text_2": ["b"]})),
    Case("/v1/messages", _path("/v1/messages", {"max_tokens": 8, "messages": TURN})),
    Case("/v1/messages/count_tokens", _path("/v1/messages/count_tokens", {"messages": TURN})),
    Case("/tokenize", _path("/tokenize", {"prompt": "a"})),
    Case("/detokenize", _path("/detokenize", {"tokens": [1, 2]})),
    Case("/v1/audio/speech", _path("/v1/audio/speech", {"input": "a", "voice": "b"})),
    Case(
        "/v1/audio/transcriptions, a form with bytes",
        _bytes("/v1/audio/transcriptions", MULTIPART, "multipart/form-data; boundary=b"),
    ),
    Case("a path with a query", _path("/v1/chat/completions?beta=true", {"messages": TURN})),
    Case("an image among the texts of a prompt", _path("/v1/chat/completions", {"messages": IMAGE})),
    Case("every configuration of full-duplex streaming", _any_configuration),
    Case("a buffered body, a streamed answer", _buffered(pb.STREAMED)),
    Case("a buffered body, an answer that is not shown", _buffered(pb.NONE)),
    Case("forged headers choose nothing and go no further", _forged_headers),
    Case("a forged prefill endpoint goes no further", _prefiller_is_forged),
)
"""Of requests that a gateway may send any day."""
