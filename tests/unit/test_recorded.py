"""Recorded replies are played back exactly; a request that was never recorded is an error in its reply."""

import json
from collections.abc import Sequence

import pytest

from transfuse.errors import DataError, GenerationError
from transfuse.generate.protocol import OnReplies, Reply, Request
from transfuse.generate.recorded import RecordedGenerator, record_replies, request_key

REQUESTS = [Request("Who won?"), Request("Who won?", "Spain won."), Request("Where? – 東京", None, 8)]
REPLIES = [Reply("Spain"), Reply("España", is_cut=True), Reply("", error="too long")]


class Scripted:
    def generate(self, requests: Sequence[Request], on_replies: OnReplies | None = None) -> list[Reply]:
        return REPLIES


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "replies.jsonl"
    assert record_replies(Scripted(), REQUESTS, path) == REPLIES
    return path


def test_replies_are_played_back_in_the_order_asked(recording):
    asked = [REQUESTS[1], REQUESTS[0], REQUESTS[1]]
    assert RecordedGenerator(recording).generate(asked) == [REPLIES[1], REPLIES[0], REPLIES[1]]


def test_failed_and_unknown_requests_carry_an_error(recording):
    unknown = [REQUESTS[2], Request("Who won?", max_new_tokens=65), Request("Who won?", "")]
    for reply in RecordedGenerator(recording).generate(unknown):
        assert reply == Reply("", error=f"{recording} holds no reply to this request")


def test_progress_is_told(recording):
    calls = []
    RecordedGenerator(recording).generate(REQUESTS, lambda *done: calls.append(done))
    assert calls == [(3, 3)]


def test_a_recording_can_be_read_by_a_person(recording):
    rows = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2  # the failed one is left out
    assert (rows[0]["question"], rows[0]["context"], rows[0]["text"]) == ("Who won?", None, "Spain")


def test_keys_tell_every_part_of_a_request():
    different = [
        *REQUESTS,
        Request("Who won?", max_new_tokens=65),
        Request("Who won"),
        Request("", "Who won?"),
    ]
    assert len({request_key(request) for request in different}) == len(different)
    assert request_key(Request("Who won?", None, 64)) == request_key(REQUESTS[0])


@pytest.mark.parametrize(
    "row", [{"key": "x"}, {"text": "x"}, {"key": 1, "text": "x"}, {"key": "x", "text": None}]
)
def test_a_row_without_key_or_text_is_named(tmp_path, row):
    path = tmp_path / "replies.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(GenerationError, match=r"replies\.jsonl:2: expected a recorded reply") as caught:
        RecordedGenerator(path)
    assert str(sorted(row)) in str(caught.value)


def test_a_missing_recording_is_an_error(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        RecordedGenerator(tmp_path / "none.jsonl")
