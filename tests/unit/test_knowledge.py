"""Facts and Q&A files: what is read, and how each fault is named."""

import json

import pytest

from transfuse.errors import DataError
from transfuse.inject import knowledge
from transfuse.inject.knowledge import load_facts, load_pairs, refuse_leaks, repeated_questions
from transfuse.text.wording import question_key
from transfuse.types import Fact, QAPair

FACTS = [Fact("f1", "Final", "Spain won."), Fact("f2", "Hosts", "It was in Sydney.")]


@pytest.fixture
def write(tmp_path):
    def write(*rows: dict | str, name: str = "qa.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def fact_row(**changes: object) -> dict:
    return {"id": "f1", "section": "Final", "fact": "Spain won.", **changes}


def pair_row(**changes: object) -> dict:
    row = {
        "basis": "fact",
        "fact": "f1",
        "split": "train",
        "question": "Who won?",
        "answer": "Spain",
        **changes,
    }
    return {name: value for name, value in row.items() if value is not ...}


def pair(id_: str, question: str, source: str = "f1", split="train") -> QAPair:
    return QAPair(id_, "fact", source, split, question, "Spain")


def test_facts_in_file_order(write):
    path = write(fact_row(), "", fact_row(id=" f2 ", fact=" It was in Sydney.\n", span=[3, 9]))
    assert load_facts(path) == [
        Fact("f1", "Final", "Spain won."),
        Fact("f2", "Final", "It was in Sydney.", (3, 9)),
    ]


def test_pairs_in_file_order_named_by_their_lines(write):
    token_row = pair_row(basis="token", fact=..., section="Final", split="eval", aliases=["La Roja"])
    assert load_pairs(write(pair_row(), "", token_row), FACTS) == [
        QAPair("q1", "fact", "f1", "train", "Who won?", "Spain"),
        QAPair("q3", "token", "Final", "eval", "Who won?", "Spain", ("La Roja",)),
    ]


@pytest.mark.parametrize("name", ["id", "section", "fact"])
@pytest.mark.parametrize(("value", "came"), [("  ", "'  '"), (7, "7"), (None, "None")])
def test_a_fact_needs_its_texts(write, name, value, came):
    with pytest.raises(DataError, match=rf"qa\.jsonl:2: '{name}': expected a text .* got {came}"):
        load_facts(write(fact_row(id="f0"), fact_row(**{name: value})))


@pytest.mark.parametrize("span", [[1], [1, 2, 3], ["1", 2], "1-2", [1.0, 2], [True, 2]])
def test_a_span_is_two_integers(write, span):
    with pytest.raises(DataError, match=r"qa\.jsonl:1: 'span': expected \[start, end\]"):
        load_facts(write(fact_row(span=span)))


def test_an_id_used_twice_names_both_lines(write):
    with pytest.raises(DataError, match=r"qa\.jsonl:3: fact id 'f1' was already used in .*qa\.jsonl:1"):
        load_facts(write(fact_row(), fact_row(id="f2"), fact_row()))


@pytest.mark.parametrize("load", [load_facts, lambda path: load_pairs(path, FACTS)])
def test_an_empty_file_is_refused(write, load):
    with pytest.raises(DataError, match="the file holds none"):
        load(write(""))


def test_unknown_fields_are_named(write):
    with pytest.raises(DataError, match=r"qa\.jsonl:1: unknown fields \['facts', 'source'\]"):
        load_facts(write(fact_row(source="x", facts="y")))
    with pytest.raises(DataError, match=r"qa\.jsonl:1: unknown fields \['anwser'\]"):
        load_pairs(write(pair_row(anwser="Spain")), FACTS)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"basis": "facts"}, r"'basis': expected one of \['fact', 'token'\], got 'facts'"),
        ({"split": "test"}, r"'split': expected one of \['train', 'eval'\], got 'test'"),
        ({"split": ...}, "'split': expected a text that is not empty, got nothing"),
        ({"question": ""}, "'question': expected a text"),
        ({"answer": 2023}, "'answer': expected a text that is not empty, got 2023"),
        ({"basis": "token"}, "'section': expected a text that is not empty, got nothing"),
        ({"fact": ..., "section": "Final"}, "'fact': expected a text that is not empty, got nothing"),
        ({"aliases": "La Roja"}, "'aliases': expected a list of strings, got 'La Roja'"),
        ({"aliases": [""]}, "'aliases': expected a list of strings"),
    ],
)
def test_a_malformed_pair_is_named(write, changes, complaint):
    with pytest.raises(DataError, match=rf"qa\.jsonl:2: {complaint}"):
        load_pairs(write(pair_row(), pair_row(**changes)), FACTS)


def test_unknown_facts_are_counted_and_listed(write):
    rows = [pair_row(fact=f"g{n}") for n in range(7)]
    with pytest.raises(DataError, match="7 fact ids are not in the facts file") as caught:
        load_pairs(write(pair_row(), *rows, rows[0]), FACTS)
    message = str(caught.value)
    assert all(f"'g{n}'" in message for n in range(5))
    assert "'g5'" not in message
    assert "qa.jsonl:2)" in message
    assert "known are 'f1' to 'f2'" in message


def test_a_token_pair_needs_no_fact(write):
    row = pair_row(basis="token", fact=..., section="Anywhere")
    assert load_pairs(write(row), FACTS)[0].source == "Anywhere"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who won?", " WHO  won"),
        ("Who’s in „Sydney“?", "who s in sydney"),
        ("Straße？", "strasse?"),
    ],
)
def test_questions_that_are_the_same(one, other):
    assert question_key(one) == question_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Who won in 2012?", "Who won in 2021?"), ("Whowon?", "Who won?"), ("दिन?", "दान?")]
)
def test_questions_that_are_not(one, other):
    assert question_key(one) != question_key(other)


def test_leaks_are_listed_with_both_lines():
    trained = [pair(f"q{n}", f"Who won match {n}?", source=f"f{n}") for n in range(7)]
    asked = [pair(f"q{n + 10}", f"who won match {n}", split="eval") for n in range(7)]
    with pytest.raises(DataError, match=r"^qa\.jsonl: 7 eval questions are training questions") as caught:
        refuse_leaks([*trained, *asked], "qa.jsonl")
    message = str(caught.value)
    assert "\n  q10 and q0: 'who won match 0'" in message
    assert "q15" not in message
    assert "and 2 more" in message


def test_questions_of_one_split_are_no_leak():
    refuse_leaks([pair("q1", "Who won?"), pair("q2", "Who won?"), pair("q3", "Where?", split="eval")], "qa")


def test_repeats_are_the_later_ones_of_the_same_source():
    pairs = [
        pair("q1", "Who won?"),
        pair("q2", "who won"),
        pair("q3", "Who won?", "f2"),
        pair("q4", "WHO WON"),
    ]
    assert [each.id for each in repeated_questions(pairs)] == ["q2", "q4"]


def test_written_facts_and_pairs_are_read_again(write):
    facts = [
        FACTS[0],
        Fact("f2", "Hosts", "It was in Sydney.", (3, 9), ("Sydney had it.", "It took place there.")),
    ]
    pairs = [
        pair("q1", "Who won?"),
        QAPair("q2", "token", "Final", "eval", "Who lost?", "England", ("the English",)),
        QAPair("q3", "fact", "f1", "train", "Where did Spain win?", "Sydney", (), "two-facts", ("f2",)),
    ]
    assert load_facts(write(*map(knowledge.fact_row, facts))) == facts
    assert load_pairs(write(*map(knowledge.pair_row, pairs)), facts) == pairs
    assert knowledge.fact_row(FACTS[0]) == fact_row()
    assert knowledge.pair_row(pairs[0]) == pair_row()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "inverse"}, r"'kind': expected one of \['direct', .*'unknown'\], got 'inverse'"),
        ({"also": "f2"}, "'also': expected a list of strings, got 'f2'"),
        ({"also": ["f2", "f9"]}, ""),
    ],
)
def test_malformed_kinds_and_further_facts_are_named(write, changes, complaint):
    where = (
        rf"qa\.jsonl:2: {complaint}" if complaint else r"1 fact ids are not in the facts file: 'f9' \(.*:2\)"
    )
    with pytest.raises(DataError, match=where):
        load_pairs(write(pair_row(), pair_row(**changes)), FACTS)


def test_paraphrases_are_texts(write):
    with pytest.raises(
        DataError, match=r"qa\.jsonl:1: 'paraphrases': expected a list of strings, got \[''\]"
    ):
        load_facts(write(fact_row(paraphrases=[""])))
