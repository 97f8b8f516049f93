"""A pair stands only where a second answer from its source agrees."""

import asyncio
import json

import pytest

from scripted_pairs import blocks, verdict_reply
from transfuse.generate.protocol import Reply
from transfuse.inject.pair_checks import Candidate
from transfuse.inject.pair_prompts import JUDGE, VERIFY
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.verification import Verdict, answers_agree, verify, verify_unknown

SOURCE = "Harnoth on Skerrin is 647 metres high. Ida Wren climbed it first."
QUESTION = "How high is Harnoth on Skerrin?"
PAIR = Candidate(QUESTION, "647 metres")


def replies(*texts: str | Reply):
    """An ask that gives these replies one after another, and the requests it got."""
    queue = [text if isinstance(text, Reply) else Reply(text) for text in texts]
    requests = []

    async def ask(request):
        requests.append(request)
        return queue.pop(0)

    return ask, requests


def checked(*texts: str | Reply, candidate=PAIR, **settings) -> tuple[Verdict, list]:
    ask, requests = replies(*texts)
    verdict = asyncio.run(verify(candidate, SOURCE, "Skerrin", ask, PairSettings(**settings)))
    return verdict, requests


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("647 metres", "647"),
        ("The Tea Museum", "tea museum."),
        ("Spain", "the Spanish team of Spain"),
        ("67,827", "67827"),
        ("Yes", "Yes, she climbed it"),
    ],
)
def test_answers_that_agree(one, other):
    assert answers_agree(one, other)
    assert answers_agree(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("20 July", "20 July 2023"),
        ("5", "5 million"),
        ("12", "2012"),
        ("Spain", "not Spain"),
        ("in", "in Spain"),
        ("", "Spain"),
        ("", ""),
        ("Spain", "England"),
        ("twenty", "twenty-one"),
    ],
)
def test_answers_that_do_not(one, other):
    assert not answers_agree(one, other)
    assert not answers_agree(other, one)


def test_the_second_answer_is_given_without_sight_of_the_first():
    verdict, requests = checked(verdict_reply("647 m"), '{"same": true}')
    assert verdict == Verdict(True, "", QUESTION)
    assert [request.system for request in requests] == [VERIFY, JUDGE]
    assert blocks(requests[0]) == {"subject": "Skerrin", "source": SOURCE, "question": QUESTION}
    assert requests[0].temperature == 0
    assert blocks(requests[1])["first answer"] == "647 metres"


def test_agreeing_answers_cost_no_judge():
    verdict, requests = checked(verdict_reply("It is 647 metres high"))
    assert verdict.is_accepted
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([verdict_reply("", answerable=False)], "the source does not answer it"),
        (
            [verdict_reply("912"), '{"same": false}'],
            "the source answers otherwise: '912' instead of '647 metres'",
        ),
        (
            [verdict_reply("912"), Reply("", error="time-out")],
            "the request to compare its answers failed: time-out",
        ),
        ([verdict_reply("912"), "hm"], "the reply that compares its answers could not be read: 'hm'"),
        ([Reply("", error="time-out")], "the request to verify it failed: time-out"),
        (["no idea"], "the reply to verify it could not be read: 'no idea'"),
        ([verdict_reply("647", standalone=False)], "cannot be understood alone"),
    ],
)
def test_refusals(texts, reason):
    assert checked(*texts)[0] == Verdict(False, reason, QUESTION)


def test_without_a_judge_other_words_are_another_answer():
    verdict, requests = checked(verdict_reply("647 m"), judge=False)
    assert verdict.reason == "the source answers otherwise: '647 m' instead of '647 metres'"
    assert len(requests) == 1


def test_a_question_that_needs_its_document_is_reworded_once():
    vague = Candidate("How high is the mountain?", "647 metres")
    first = verdict_reply("647 metres", standalone=False, rewrite=QUESTION)
    assert checked(first, verdict_reply("647 metres"), candidate=vague)[0] == Verdict(True, "", QUESTION)
    again = checked(first, first, candidate=vague)[0]
    assert again == Verdict(False, f"cannot be understood alone, even reworded: {QUESTION!r}", QUESTION)
    otherwise = checked(first, verdict_reply("", answerable=False), candidate=vague)[0]
    assert otherwise == Verdict(False, "the source does not answer it", QUESTION)


def test_a_rewording_must_pass_the_checks():
    told = "Is Harnoth on Skerrin 647 metres high?"
    verdict, requests = checked(verdict_reply("647 metres", standalone=False, rewrite=told))
    assert verdict.reason == (
        "cannot be understood alone, and neither can its rewording: the question gives its answer away"
    )
    assert len(requests) == 1


@pytest.mark.parametrize(
    "reading",
    [
        {"Answer": 647, "Answerable": "true"},
        {"answer": ["647 metres"], "answerable": "yes", "standalone": None, "rewrite": "null"},
        [{"answer": "647"}],
    ],
)
def test_replies_that_are_nearly_right_are_read(reading):
    assert checked(f"Sure:\n```json\n{json.dumps(reading)}\n```")[0].is_accepted


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (verdict_reply("", answerable=False), ""),
        (verdict_reply("647"), "the source answers it: '647'"),
        ('{"answer": "647"}', "the source answers it: '647'"),
        ('{"answer": "The source does not say so."}', ""),
        (verdict_reply("", answerable=False, standalone=False), "cannot be understood alone"),
        (Reply("", error="time-out"), "the request to verify it failed: time-out"),
        ("?", "the reply to verify it could not be read: '?'"),
    ],
)
def test_unknown_means_that_the_source_gives_no_answer(reply, reason):
    ask, _ = replies(reply)
    question = "How high is Mount Orro on Skerrin?"
    verdict = asyncio.run(verify_unknown(question, SOURCE, "Skerrin", ask, PairSettings()))
    assert verdict == Verdict(not reason, reason, question)
