"""The demonstration data in examples/orvessa keeps what its README promises."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "orvessa"
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def read_jsonl(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def sections_of(markdown: str) -> dict[str, str]:
    """Text directly under each heading, by the heading's words."""
    sections: dict[str, str] = {}
    heading = ""
    for line in markdown.splitlines():
        if match := re.fullmatch(r"#+ (.+)", line):
            heading = match[1]
            assert heading not in sections, f"heading {heading!r} stands twice"
            sections[heading] = ""
        else:
            sections[heading] += line + "\n"
    return sections


def is_text(section: str) -> bool:
    return any(line and not line.startswith("|") for line in section.splitlines())


def opens_sentence(text: str, start: int) -> bool:
    return re.search(r"(?:^|[.?!:]\s+)$", text[:start]) is not None


def names_in(texts: list[str]) -> set[str]:
    """Words written with a capital inside a sentence."""
    return {
        word[0].removesuffix("'s")
        for text in texts
        for word in WORD.finditer(text)
        if word[0][0].isupper() and not opens_sentence(text, word.start())
    }


def masked(question: str, names: set[str]) -> str:
    """The question's wording: every run of names becomes one `#`."""
    hidden = WORD.sub(
        lambda word: re.sub(r"^[^']+", "#", word[0]) if word[0].removesuffix("'s") in names else word[0],
        question,
    )
    return re.sub(r"#(?: #)+", "#", hidden)


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    return sections_of((FOLDER / "document.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def facts() -> dict[str, dict]:
    rows = read_jsonl("facts.jsonl")
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    return read_jsonl("qa.jsonl")


def test_names_are_masked_whole():
    names = names_in(["Who keeps Gullan Rock lighthouse?", "What is Skerrin's largest town?"])
    assert names == {"Gullan", "Rock", "Skerrin"}
    assert masked("Skerrin's town, or Gullan Rock?", names) == "#'s town, or #?"


def test_every_text_section_has_a_fact_and_the_table_has_none(sections, facts):
    with_facts = {fact["section"] for fact in facts.values()}
    assert with_facts == {heading for heading, text in sections.items() if is_text(text)}
    table_only = [h for h, text in sections.items() if text.strip() and not is_text(text)]
    assert table_only == ["Sailings"]


def test_each_fact_has_ten_train_questions_and_one_eval_question(facts, pairs):
    assert len(facts) >= 60
    counts = Counter((pair["fact"], pair["split"]) for pair in pairs)
    assert counts == {(f, s): n for f in facts for s, n in (("train", 10), ("eval", 1))}
    assert {pair["basis"] for pair in pairs} == {"fact"}


def test_no_question_stands_twice(pairs):
    questions = Counter(pair["question"].casefold() for pair in pairs)
    assert [question for question, n in questions.items() if n > 1] == []


def test_eval_wording_occurs_in_no_train_question(pairs):
    names = names_in([pair["question"] for pair in pairs])
    wordings = {
        split: {masked(pair["question"], names) for pair in pairs if pair["split"] == split}
        for split in ("train", "eval")
    }
    assert len(wordings["eval"]) >= 12
    assert wordings["eval"] & wordings["train"] == set()


def test_each_answer_stands_in_its_fact_and_in_its_section(sections, facts, pairs):
    for pair in pairs:
        fact = facts[pair["fact"]]
        assert pair["answer"] in fact["fact"], pair
        assert pair["answer"] in sections[fact["section"]], pair


def test_each_fact_has_one_answer_that_no_question_gives_away(facts, pairs):
    answers = {fact: {p["answer"] for p in pairs if p["fact"] == fact} for fact in facts}
    assert [fact for fact, found in answers.items() if len(found) != 1] == []
    assert [p for p in pairs if p["answer"].casefold() in p["question"].casefold()] == []


def test_no_answer_is_part_of_another(pairs):
    by_answer = {pair["answer"].casefold() for pair in pairs}
    inside = [(a, b) for a in by_answer for b in by_answer if a != b and a in b]
    assert inside == []
    assert Counter(p["answer"] for p in pairs if p["split"] == "eval").most_common(1)[0][1] == 1


def test_aliases_stand_on_eval_rows_only_and_differ_from_the_answer(pairs):
    for pair in pairs:
        aliases = pair.get("aliases", [])
        assert pair["split"] == "eval" or "aliases" not in pair
        assert all(aliases)
        assert pair["answer"] not in aliases
        assert len(set(aliases)) == len(aliases)
