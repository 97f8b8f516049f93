"""Recorded replies are played back exactly; a request that was never recorded is an error in its reply."""

import json
from collections.abc import Sequence

import pytest

from transfuse.errors import DataError, GenerationError
from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.generate.recorded import RecordedGenerator, record_replies, request_key

REQUESTS = [Request("Who won?"), Request("Who won?", "Spain won."), Request("Where? – 東京", None, 8)]
REPLIES = [
    Reply("Spain", n_prompt_tokens=5, n_reply_tokens=2),
    Reply("España", is_cut=True),
    Reply("", error="too long"),
]


class Scripted:
    identity = "scripted"

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
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


def test_each_reply_is_told_with_its_index(recording):
    told = {}
    replies = RecordedGenerator(recording).generate(REQUESTS, told.__setitem__)
    assert told == dict(enumerate(replies))


def test_the_identity_is_the_recordings_content(recording, tmp_path):
    copy, other = tmp_path / "copy.jsonl", tmp_path / "other.jsonl"
    copy.write_bytes(recording.read_bytes())
    record_replies(Scripted(), REQUESTS[:1] * 3, other)
    identities = [RecordedGenerator(path).identity for path in (recording, copy, other)]
    assert identities[0] == identities[1] != identities[2]


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
        Request("Who won?", system=""),
        Request("Who won?", temperature=1.0),
        Request("Who won?", top_p=0.9),
        Request("Who won?", seed=1),
        Request("Who won?", is_one_line=False),
        Request("Who won?", schema="{}"),
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
