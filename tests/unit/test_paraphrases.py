"""Paraphrases keep every number and name of their fact, and add none."""

import asyncio
import json

import pytest

from transfuse.errors import BudgetError
from transfuse.generate.protocol import Reply
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.paraphrases import paraphrase_fault, write_paraphrases
from transfuse.types import Fact

FACT = "Mount Gorrand on Marrowen is 912 metres high."


@pytest.mark.parametrize(
    "statement",
    [
        "Marrowen's Mount Gorrand has a height of 912 metres.",
        "At 912 metres, Mount Gorrand rises on Marrowen.",
        "Located on Marrowen, Mount Gorrand measures 912 m.",
    ],
)
def test_the_same_in_other_words(statement):
    assert paraphrase_fault(statement, FACT) == ""


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("Mount Gorrand on Marrowen is 921 metres high.", "leaves out numbers or negations: 912"),
        ("Mount Gorrand on Marrowen is 912 metres and 3 feet high.", "adds numbers or negations: 3"),
        ("Mount Gorrand on Marrowen is not 912 metres high.", "adds numbers or negations: not"),
        ("Gorrand on Marrowen is 912 metres high.", "leaves out names: mount"),
        ("Mount Gorrand on Marrowen near Ulmport is 912 metres high.", "adds names: ulmport"),
        ("Skerrin and Marrowen share Mount Gorrand of 912 metres.", "adds names: skerrin"),
        ("MOUNT Gorrand on Marrowen is 912 metres high!", "is the fact itself"),
        ("Is Mount Gorrand on Marrowen 912 metres high?", "is a question"),
        ("…", "is empty"),
        (f"{FACT[:-1]} " + "and so on " * 10, "is too long: 38 words for 8"),
    ],
)
def test_faults_are_named(statement, fault):
    assert paraphrase_fault(statement, FACT) == f"the paraphrase {fault}"


def reply(*statements: str) -> Reply:
    return Reply(json.dumps({"statements": [{"statement": each} for each in statements]}))


def test_what_passes_stands_in_the_fact_and_the_rest_is_told():
    good = [
        f"{opening} Mount Gorrand on Marrowen rises 912 metres."
        for opening in ("From here", "For all", "With")
    ]
    facts = [
        Fact("f1", "Peaks", FACT),
        Fact("f2", "Peaks", "Skerrin has a peak."),
        Fact("f3", "Peaks", "It rains."),
    ]

    async def ask(request):
        if "Skerrin" in request.question:
            return Reply("", error="time-out")
        if "rains" in request.question:
            raise BudgetError("spent")
        return reply(good[0], "Mount Gorrand is high.", good[0].replace("here", "here,"), *good[1:])

    sheet = asyncio.run(write_paraphrases(facts, ask, PairSettings(paraphrases=2), title="Isles"))
    assert [fact.paraphrases for fact in sheet.facts] == [tuple(good[:2]), (), ()]
    assert [(drop.kind, drop.reason) for drop in sheet.dropped[1:]] == [
        ("paraphrase", "repeats an earlier paraphrase"),
        ("paraphrase", "more than were asked for"),
        ("reply", "the request failed: time-out"),
        ("reply", "the request failed: spent"),
    ]
    assert sheet.dropped[0].reason == "the paraphrase leaves out numbers or negations: 912"
    assert str(sheet.stopped) == "spent"


def test_none_asked_for_costs_nothing():
    facts = [Fact("f1", "Peaks", FACT)]

    async def ask(request):
        raise AssertionError

    assert asyncio.run(write_paraphrases(facts, ask, PairSettings(), title="Isles")).facts == facts
