import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import BudgetError
from transfuse.generate.protocol import Reply, Request
from transfuse.inject.fact_writing import FactSettings, FactSheet, write_facts
from transfuse.io.documents import read_documents
from transfuse.text.sections import split_sections
from transfuse.types import Document, Dropped

TEXT = """\
# Orta Cup

## Final

Ann Lee **won** the cup in 2019. She beat Eve Roy by 3 points.

## Later

Bob Fox runs the cup now. What a day.
"""
SUPER_BOWL = Path(__file__).parents[3] / "shared/data/injection/super-bowl-2023"


def is_again(request: Request) -> bool:
    return "No fact has been written down for" in request.question


def is_repair(request: Request) -> bool:
    return "Statements, as written" in request.question


def numbered(request: Request) -> list[str]:
    return re.findall(r"^\[\d+\] (.*)$", request.question.split("<<<")[1], re.MULTILINE)


def written(
    answer: Callable[[Request], str | Reply], *, text: str = TEXT, **changes
) -> tuple[FactSheet, list[Request]]:
    requests: list[Request] = []

    async def ask(request: Request) -> Reply:
        requests.append(request)
        await asyncio.sleep(0)
        reply = answer(request)
        return reply if isinstance(reply, Reply) else Reply(reply)

    sections, _ = split_sections(Document("a.md", text, "md"))
    sheet = asyncio.run(write_facts(sections, {"a.md": text}, ask, FactSettings(**changes)))
    refuse_gaps(sheet, text)
    return sheet, requests


def refuse_gaps(sheet: FactSheet, text: str) -> None:
    """What holds of every sheet."""
    sections, _ = split_sections(Document("a.md", text, "md"))
    told = "".join("".join(fate.text.split()) for fate in sheet.sentences)
    assert told == "".join("".join(section.text.split()) for section in sections)
    ids = [fact.id for fact in sheet.facts]
    assert ids == [f"f{number:03d}" for number in range(1, len(ids) + 1)]
    assert {name for fate in sheet.sentences for name in fate.fact_ids} == set(ids)
    for fate in sheet.sentences:
        assert (fate.fate == "facts") == bool(fate.fact_ids) == (not fate.reason)
    for fact in sheet.facts:
        stating = [fate for fate in sheet.sentences if fact.id in fate.fact_ids]
        assert fact.span in [(one.span[0], other.span[1]) for one in stating for other in stating]


def reply(*facts: tuple[str, list[int]], **without: str) -> str:
    return json.dumps(
        {
            "facts": [{"fact": fact, "sentences": numbers} for fact, numbers in facts],
            "without": [{"sentence": int(name[1:]), "reason": reason} for name, reason in without.items()],
        }
    )


def fates(sheet: FactSheet) -> list[tuple[str, str]]:
    return [(fate.fate, " ".join(fate.fact_ids) or fate.reason) for fate in sheet.sentences]


def by_section(final: str, later: str, again: str = '{"facts": []}') -> Callable[[Request], str]:
    return lambda request: again if is_again(request) else final if "Ann Lee" in request.question else later


FINAL = reply(("Ann Lee won the Orta Cup in 2019.", [1]), ("Ann Lee beat Eve Roy by 3 points.", [2]))
LATER = reply(("Bob Fox runs the Orta Cup.", [1]))


def test_facts_point_at_the_sentences_that_state_them() -> None:
    sheet, requests = written(by_section(FINAL, LATER, reply(s2="It states nothing.")))
    assert [(fact.id, fact.section, TEXT[slice(*fact.span or (0, 0))]) for fact in sheet.facts] == [
        ("f001", "Final", "Ann Lee **won** the cup in 2019."),
        ("f002", "Final", "She beat Eve Roy by 3 points."),
        ("f003", "Later", "Bob Fox runs the cup now."),
    ]
    assert fates(sheet) == [
        ("facts", "f001"), ("facts", "f002"), ("facts", "f003"), ("no fact", "It states nothing."),
    ]  # fmt: skip
    assert sheet.dropped == []
    assert len(requests) == 3


def test_missing_and_wrong_numbers_give_way_to_the_words() -> None:
    said = '{"facts": ["Ann Lee won the Orta Cup in 2019.", {"fact": "Eve Roy lost by 3 points.", "sentences": [7]}]}'
    sheet, _ = written(by_section(said, "1. Bob Fox runs the Orta Cup. [1]"))
    assert [fact.fact for fact in sheet.facts][2] == "Bob Fox runs the Orta Cup."
    assert fates(sheet)[:3] == [("facts", "f001"), ("facts", "f002"), ("facts", "f003")]
    assert fates(sheet)[3] == ("no fact", "the generator gave no fact for it, twice")


def test_refused_facts_leave_a_reason_and_are_asked_for_again() -> None:
    bad = reply(("Ann Lee won the Orta Cup in 2020.", [1]), ("Ann Lee beat Eve Roy by 3 points.", [2]))
    sheet, requests = written(by_section(bad, LATER))
    reason = "holds numbers that the section does not: 2020"
    assert sheet.dropped == [Dropped("fact", "Ann Lee won the Orta Cup in 2020.", reason)]
    assert fates(sheet)[0] == (
        "no fact",
        f"its fact 'Ann Lee won the Orta Cup in 2020.' was dropped: {reason}",
    )
    assert [re.findall(r"for: (.*)\.", request.question) for request in requests if is_again(request)] == [
        ["[1]"],
        ["[2]"],
    ]


def test_pronouns_are_repaired_in_one_request_or_dropped() -> None:
    said = reply(("She won the cup in 2019.", [1]), ("She beat Eve Roy by 3 points.", [2]))
    good = '{"number": 2, "fact": "Ann Lee beat Eve Roy by 3 points."}'
    repaired = f'{{"facts": [{good}, {{"number": 1, "fact": "She won"}}]}}'
    answer = by_section(said, LATER)
    sheet, requests = written(lambda request: repaired if is_repair(request) else answer(request))
    assert sum(map(is_repair, requests)) == 1
    assert sheet.facts[0].fact == "Ann Lee beat Eve Roy by 3 points."
    (drop,) = sheet.dropped
    assert drop.what == "She won the cup in 2019."
    assert drop.reason == (
        "begins with 'She', which nobody understands alone; the repaired 'She won' begins with 'She' again"
    )
    assert fates(sheet)[0][0] == "no fact"


def test_a_failed_request_fails_its_own_sentences_only() -> None:
    sheet, _ = written(lambda r: Reply("", error="no reply in 60 s") if "Bob Fox" in r.question else FINAL)
    assert fates(sheet)[2:] == [("failed", "no reply in 60 s")] * 2
    assert sheet.stopped is None


def test_a_stopped_generator_leaves_a_complete_sheet() -> None:
    def answer(request: Request) -> str:
        if "Ann Lee" in request.question and not is_again(request):
            return reply(("Ann Lee won the Orta Cup in 2019.", [1]))
        raise BudgetError("budget of 3 requests is spent")

    sheet, _ = written(answer)
    assert isinstance(sheet.stopped, BudgetError)
    assert fates(sheet) == [("facts", "f001"), *[("failed", "budget of 3 requests is spent")] * 3]


def test_a_stop_is_neither_halved_nor_asked_again() -> None:
    def answer(request: Request) -> str:
        raise BudgetError("the context of the budget is spent")

    sheet, requests = written(answer)
    assert len(requests) == 2  # one for each window that was under way
    assert {fate for fate, _ in fates(sheet)} == {"failed"}


def test_windows_too_long_for_the_context_are_halved() -> None:
    def answer(request: Request) -> str | Reply:
        if len(numbered(request)) > 1:
            return Reply("", error="the prompt of 99 tokens leaves no room for a reply")
        return reply((numbered(request)[0].replace("She", "Ann Lee"), [1]))

    sheet, requests = written(answer)
    assert [fate for fate, _ in fates(sheet)] == ["facts"] * 4
    assert len(requests) == 6
    sheet, _ = written(lambda _: Reply("", error="context length exceeded"))
    assert fates(sheet) == [("failed", "context length exceeded")] * 4


def test_a_reply_that_stays_cut_says_what_to_raise() -> None:
    cut = Reply(FINAL[:90], is_cut=True)
    sheet, _ = written(lambda request: cut if "Ann Lee" in request.question else LATER, max_new_tokens=30)
    assert fates(sheet)[:2] == [
        ("facts", "f001"), ("failed", "the reply broke off at 30 tokens before it; raise max_new_tokens"),
    ]  # fmt: skip
    where = "reply on 'Final', from 'Ann Lee won the cup in 2019.'"
    assert Dropped("reply", where, "the reply breaks off; its whole items are kept") in sheet.dropped


def test_the_same_fact_twice_is_one_fact_of_both_sentences() -> None:
    sheet, _ = written(by_section(reply(("Ann Lee won.", [1]), ("Ann Lee won!", [2])), LATER))
    assert fates(sheet)[:2] == [("facts", "f001"), ("no fact", "the generator gave no fact for it, twice")]
    assert sheet.dropped[-1].reason == "merged into f001, same wording: Ann Lee won."


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []

    async def ask(request: Request) -> Reply:
        return Reply(LATER)

    sections, _ = split_sections(Document("a.md", TEXT, "md"))
    one = FactSettings(window_sentences=1)
    asyncio.run(write_facts(sections, {"a.md": TEXT}, ask, one, on_progress=lambda *n: seen.append(n)))
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]


PIECES = st.sampled_from(
    ['{"facts": [', '{"fact": "', "Ann Lee won the cup.", "She beat Eve Roy", '", "sentences": [', "1", "2", "]}", "]}",
     ", ", "1. ", "\n", "?", '{"without": [{"sentence": 1, "reason": "x"}]}', "<think>", "Tom", "\ud800", "[" * 50]
)  # fmt: skip
REPLIES = st.one_of(
    st.lists(PIECES, max_size=9).map("".join),
    st.just(FINAL),
    st.just(reply(("She won the cup.", [1]), ("He runs the cup.", [9, 1]))),
).map(Reply)
FAILURES = st.sampled_from(
    [
        Reply("", error="refused"),
        Reply("", error="context"),
        Reply(FINAL[:70], is_cut=True),
        BudgetError("spent"),
    ]
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(REPLIES | FAILURES, min_size=1, max_size=8), st.integers(1, 4), st.randoms(use_true_random=False)
)
def test_every_sentence_has_one_fate_whatever_comes_back(
    answers: list[Reply | BudgetError], n_sentences: int, chance: random.Random
) -> None:
    def answer(_: Request) -> Reply:
        chosen = chance.choice(answers)
        if isinstance(chosen, BudgetError):
            raise chosen
        return chosen

    written(answer, window_sentences=n_sentences)  # checks the sheet


def test_reference_facts_of_a_real_document_all_stand() -> None:
    if not SUPER_BOWL.exists():
        pytest.skip(f"{SUPER_BOWL} is not here")
    (document,), _ = read_documents(SUPER_BOWL / "document.md")
    sections, _ = split_sections(document)
    known = [json.loads(line) for line in (SUPER_BOWL / "facts.jsonl").read_text().splitlines()]

    def ask(request: Request) -> Awaitable[Reply]:
        title = re.findall(r"^Section: (.*)$", request.question, re.MULTILINE)[0]
        mine = [row["fact"] for row in known if row["section"] == title and not is_again(request)]
        return asyncio.sleep(0, Reply(json.dumps({"facts": mine})))

    texts = {document.name: document.text}
    sheet = asyncio.run(write_facts(sections, texts, ask, FactSettings(window_sentences=20)))
    assert sheet.dropped == []
    assert sorted(fact.fact for fact in sheet.facts) == sorted(row["fact"] for row in known)
    assert {fate.fate for fate in sheet.sentences} == {"facts", "no fact"}
    attendance = next(fate for fate in sheet.sentences if "67,827" in fate.text)
    assert document.text[slice(*attendance.span)] == "The attendance was 67,827."
