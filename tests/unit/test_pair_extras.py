"""Further pairs: counted by their share, checked like the others, spread by the seed."""

import asyncio
import json

import pytest

from scripted_pairs import ScriptedGenerator, blocks, pairs_reply, verdict_reply
from transfuse.errors import BudgetError
from transfuse.generate.protocol import Reply
from transfuse.inject.ledger import PairSheet
from transfuse.inject.pair_extras import UNKNOWN_ANSWER, write_extra_pairs
from transfuse.inject.pair_prompts import (
    VERIFY,
    WRITE_REVERSE_PAIRS,
    WRITE_TWO_FACT_PAIRS,
    WRITE_UNKNOWN_QUESTIONS,
)
from transfuse.inject.pair_settings import PairSettings
from transfuse.types import Fact, QAPair, Section

NAMES = ["Anstice", "Corvenna", "Palomire", "Wexholm"]
FACTS = [
    Fact(f"f{n}", "Ferries", f"The ferry {name} is {n}0 metres long.") for n, name in enumerate(NAMES, 1)
]
SOURCES = {fact.id: f"{fact.fact} It sails on Sunday." for fact in FACTS}
SECTIONS = [Section("doc.md", ("Orvessa", "Ferries"), " ".join(fact.fact for fact in FACTS), (0, 99))]
DIRECT = [
    QAPair(f"q{2 * n + i}", "fact", fact.id, split, question, f"{n + 1}0 metres")
    for n, fact in enumerate(FACTS)
    for i, (split, question) in enumerate(
        [("train", f"How long is the {NAMES[n]}?"), ("eval", f"Which length has the {NAMES[n]}?")], 1
    )
]
SHEET = PairSheet(DIRECT, [], [])


def extended(ask, sheet=SHEET, seed=0, **options) -> PairSheet:
    settings = PairSettings(**options)
    return asyncio.run(
        write_extra_pairs(sheet, FACTS, SOURCES, SECTIONS, ask, settings, title="Orvessa", seed=seed)
    )


def reverse(request, n) -> str:
    number, name = blocks(request)["fact"].split()[4], blocks(request)["fact"].split()[2]
    return pairs_reply(
        (f"Which ferry is {number} metres long?", name), ("Which ferry is the longest?", "Tamberlin")
    )


async def never(request):
    raise AssertionError


REVERSE_TRUTH = {f"Which ferry is {n}0 metres long?": name for n, name in enumerate(NAMES, 1)}


def test_shares_of_zero_cost_nothing():
    assert extended(never) == SHEET


def test_reverse_pairs_answer_with_what_the_fact_is_about():
    generator = ScriptedGenerator(reverse, REVERSE_TRUTH)
    sheet = extended(generator.ask, reverse_share=0.5)
    extra = sheet.pairs[len(DIRECT) :]
    assert sheet.pairs[: len(DIRECT)] == DIRECT
    assert [pair.id for pair in extra] == ["q9", "q10"]
    assert {(pair.basis, pair.split, pair.kind, pair.also) for pair in extra} == {
        ("fact", "train", "reverse", ())
    }
    assert all(pair.answer == NAMES[int(pair.source[1]) - 1] for pair in extra)
    assert len(generator.of(WRITE_REVERSE_PAIRS)) == 2
    assert {drop.reason for drop in sheet.dropped} == {"its answer is not in the fact: 'Tamberlin'"}
    assert all(blocks(request)["source"] in SOURCES.values() for request in generator.of(VERIFY))


def test_other_facts_stand_in_for_those_that_gave_nothing():
    truth = dict(list(REVERSE_TRUTH.items())[2:])
    sheet = extended(ScriptedGenerator(reverse, truth).ask, reverse_share=0.5)
    assert sorted(pair.source for pair in sheet.pairs[len(DIRECT) :]) == ["f3", "f4"]
    sheet = extended(ScriptedGenerator(reverse, {}).ask, reverse_share=0.5)
    assert sheet.pairs == DIRECT
    assert (sheet.dropped[-1].what, sheet.dropped[-1].reason) == (
        "2 of 2 pairs of kind reverse",
        "never written: all 4 choices of facts were asked about",
    )


def test_the_seed_chooses_the_facts():
    def sources(seed: int) -> tuple[str, ...]:
        sheet = extended(ScriptedGenerator(reverse, REVERSE_TRUTH).ask, seed=seed, reverse_share=0.5)
        return tuple(pair.source for pair in sheet.pairs[len(DIRECT) :])

    assert len({sources(seed) for seed in range(8)}) > 1
    assert sources(5) == sources(5)


def test_questions_across_two_facts_are_checked_against_both_sources():
    def write(request, n):
        shown = blocks(request)
        one, other = (shown[f"fact {k}"].split()[2] for k in (1, 2))
        return pairs_reply((f"Which ferry is longer, {one} or {other}?", other))

    truth = {f"Which ferry is longer, {a} or {b}?": b for a in NAMES for b in NAMES}
    generator = ScriptedGenerator(write, truth)
    sheet = extended(generator.ask, two_facts_share=0.25)
    (pair,) = sheet.pairs[len(DIRECT) :]
    assert (pair.kind, len(pair.also)) == ("two-facts", 1)
    assert pair.source < pair.also[0]
    assert blocks(generator.of(VERIFY)[0])["source"] == f"{SOURCES[pair.source]}\n\n{SOURCES[pair.also[0]]}"
    assert len(generator.of(WRITE_TWO_FACT_PAIRS)) == 1


def test_unknown_questions_are_those_that_the_whole_section_leaves_open():
    asked = []

    async def ask(request):
        asked.append(request)
        if request.system == WRITE_UNKNOWN_QUESTIONS:
            questions = ["How wide is the Anstice?", "How long is the Wexholm?", "Who owns the Palomire?"]
            return Reply(json.dumps({"questions": [{"question": each} for each in questions]}))
        return Reply(verdict_reply("", answerable="wide" in blocks(request)["question"]))

    sheet = extended(ask, unknown_share=0.25)
    (pair,) = sheet.pairs[len(DIRECT) :]
    assert (pair.question, pair.answer, pair.kind) == ("Who owns the Palomire?", UNKNOWN_ANSWER, "unknown")
    assert [drop.reason for drop in sheet.dropped] == [
        "repeats an earlier question",
        "the source answers it: ''",
    ]
    checked = [request for request in asked if request.system == VERIFY]
    assert {blocks(request)["source"] for request in checked} == {SECTIONS[0].text}


def test_a_further_question_keeps_away_from_the_eval_questions_of_its_fact():
    def write(request, n):
        name = blocks(request)["fact"].split()[2]
        return pairs_reply((f"Which length has the ferry {name}?", blocks(request)["fact"].split()[4]))

    truth = {f"Which length has the ferry {name}?": f"{n}0" for n, name in enumerate(NAMES, 1)}
    sheet = extended(ScriptedGenerator(write, truth).ask, reverse_share=0.25, eval_distance=0.8)
    assert sheet.pairs == DIRECT
    assert [drop.reason for drop in sheet.dropped[:-1]] == ["too near to an eval question"] * 4


@pytest.mark.parametrize("n_answered", [0, 1, 2])
def test_a_stop_keeps_the_direct_pairs_and_says_why(n_answered):
    generator = ScriptedGenerator(reverse, REVERSE_TRUTH)
    sent = 0

    async def ask(request):
        nonlocal sent
        sent += 1
        if sent > n_answered:
            raise BudgetError("spent")
        return await generator.ask(request)

    sheet = extended(ask, reverse_share=0.5, unknown_share=0.5)
    assert sheet.pairs == DIRECT
    assert isinstance(sheet.stopped, BudgetError)
    assert "never written: spent" in [drop.reason for drop in sheet.dropped]
    assert extended(never, sheet, reverse_share=0.5) is sheet
