"""Messages written by hand are what the generated classes write."""

from __future__ import annotations

import pytest

from router_grpc.picker.rewrap import REQUEST, RESPONSE, piece_message
from router_grpc.v1 import ext_proc_pb2 as pb

SIZES = (0, 1, 119, 120, 127, 128, 200, 16_383, 16_384, 62_000)


def written(body: bytes, *, ends: bool, of: int) -> bytes:
    piece = pb.StreamedBodyResponse(body=body, end_of_stream=ends)
    response = pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=piece)))
    of_request = of == REQUEST
    message = (
        pb.ProcessingResponse(request_body=response) if of_request else pb.ProcessingResponse(response_body=response)
    )
    return message.SerializeToString()


@pytest.mark.parametrize("of", [REQUEST, RESPONSE])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_piece_is_written_as_the_generated_classes_write_it(size: int, *, ends: bool, of: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    assert piece_message(body[:size], ends=ends, of=of) == written(body[:size], ends=ends, of=of)
