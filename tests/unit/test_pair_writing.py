"""Facts to pairs: rounds, skips, failures, nesting, and a fate for every fact whatever the replies."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_pairs import ScriptedGenerator, blocks, delayed, pairs_reply, verdict_reply
from transfuse.errors import BudgetError
from transfuse.generate.protocol import Reply
from transfuse.inject.ledger import PairSheet
from transfuse.inject.pair_prompts import VERIFY, WRITE_FACT_PAIRS, drawn
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.pair_writing import write_fact_pairs
from transfuse.text.wording import question_key
from transfuse.types import Fact

COLOURS = ["amber", "blue", "coral", "denim", "ebony", "fawn", "green", "hazel", "ivory", "jade", "lilac"]
FACTS = [Fact(f"f{n}", "Ferries", f"Ferry {name} is of wood.") for n, name in enumerate("ABC", start=1)]
SOURCES = {fact.id: f"{fact.fact} It was built in Ulmport." for fact in FACTS}


def unlike(*colours: str, fact: str = "it") -> str:
    """A reply with questions that are not near each other; the answer is the second word, backwards."""
    return pairs_reply(*((question_of(colour, fact), colour[::-1]) for colour in colours))


def question_of(colour: str, fact: str = "it") -> str:
    return f"Which {colour} {colour}ness has {fact}?"


def letter_of(request) -> str:
    return blocks(request)["fact"].split()[1]


def written(
    generator: ScriptedGenerator | None, facts=FACTS[:1], scale=2, seed=0, ask=None, **options
) -> PairSheet:
    ask = ask or generator.ask  # one of them is given
    return asyncio.run(
        write_fact_pairs(
            facts, SOURCES, ask, PairSettings(**options), scale=scale, title="Orvessa ferries", seed=seed
        )
    )


def by_split(sheet: PairSheet, source: str = "f1") -> dict[str, list[str]]:
    found = {"train": [], "eval": []}
    for pair in sheet.pairs:
        if pair.source == source:
            found[pair.split].append(pair.question)
    return found


def test_rounds_go_on_until_the_scale_is_reached():
    script = [unlike(*COLOURS[:3]), unlike(*COLOURS[2:6]), unlike("never asked for")]
    generator = ScriptedGenerator(lambda request, n: script[n])
    sheet = written(generator, scale=4)
    first, second = generator.of(WRITE_FACT_PAIRS)
    assert "questions" not in blocks(first)
    assert blocks(second)["questions"].count("\n") == 2  # three questions
    assert len(generator.of(VERIFY)) == 6  # the repeated one is not paid for
    assert [pair.id for pair in sheet.pairs] == ["q1", "q2", "q3", "q4", "q5"]
    assert Counter(pair.split for pair in sheet.pairs) == {"train": 4, "eval": 1}
    assert by_split(sheet)["eval"][0] in [question_of(colour) for colour in COLOURS[:3]]
    assert [(fate.fate, fate.reason) for fate in sheet.fates] == [("covered", "")]
    reasons = [drop.reason for drop in sheet.dropped]
    assert reasons == ["repeats an earlier question", "more than the scale asks for"]


def test_a_fact_that_is_skipped_is_put_again_with_its_source():
    skip = '{"skip": "too broad", "pairs": []}'
    generator = ScriptedGenerator(lambda request, n: [skip, unlike(*COLOURS[:3])][n])
    sheet = written(generator)
    assert ["source" in blocks(request) for request in generator.of(WRITE_FACT_PAIRS)] == [False, True]
    assert blocks(generator.of(WRITE_FACT_PAIRS)[1])["source"] == SOURCES["f1"]
    assert sheet.fates[0].fate == "covered"


def test_a_fact_that_is_skipped_again_keeps_the_generators_reason():
    generator = ScriptedGenerator(lambda request, n: f'{{"skip": "too broad {n}", "pairs": []}}')
    sheet = written(generator)
    assert (sheet.fates[0].fate, sheet.fates[0].reason) == ("skipped", "too broad 1")
    assert len(generator.requests) == 2


def test_a_skip_after_pairs_leaves_the_fact_short():
    script = [unlike(*COLOURS[:2]), '{"skip": "no more", "pairs": []}', '{"skip": "really", "pairs": []}']
    sheet = written(ScriptedGenerator(lambda request, n: script[n]), scale=5)
    assert sheet.fates[0].fate == "short"
    assert sheet.fates[0].reason == (
        "1 of 5 training questions and 1 of 1 eval questions; the generator declined to write more: really"
    )


def test_the_only_pair_measures():
    sheet = written(ScriptedGenerator(lambda request, n: unlike("amber")), max_rounds=2)
    assert by_split(sheet) == {"train": [], "eval": ["Which amber amberness has it?"]}
    assert sheet.fates[0].reason == (
        "0 of 2 training questions and 1 of 1 eval questions; asked 2 times; 1 x repeats an earlier question"
    )


def test_training_questions_keep_away_from_the_eval_question():
    near = pairs_reply(
        ("Which colour has the ferry Anstice?", "jade"), ("Which colour has the ferry Anstices?", "jade")
    )
    truth = {"Which colour has the ferry Anstice?": "jade", "Which colour has the ferry Anstices?": "jade"}
    sheet = written(ScriptedGenerator(lambda request, n: near, truth), max_rounds=1)
    assert len(sheet.pairs) == 1
    assert sheet.dropped[0].reason == "too near to an eval question"
    far = written(ScriptedGenerator(lambda request, n: near, truth), max_rounds=1, eval_distance=0.99)
    assert len(far.pairs) == 2


def test_a_question_of_two_facts_goes_to_one_of_them():
    def write(request, n):
        fact = letter_of(request) * 9
        return unlike("amber", "blue") if n == 0 else unlike("coral", "denim", fact=fact)

    sheet = written(ScriptedGenerator(write), FACTS[:2], scale=2, max_rounds=2)
    keys = Counter(question_key(pair.question) for pair in sheet.pairs)
    assert set(keys.values()) == {1}
    # Each fact keeps an eval question though both gave the same first two.
    assert [fate.n_eval for fate in sheet.fates] == [1, 1]
    assert {drop.reason for drop in sheet.dropped if drop.kind == "pair"} >= {
        "is another source's question: an eval question of f1",
        "is another source's question: an eval question of f2",
    }


def test_failed_requests_are_told():
    generator = ScriptedGenerator(lambda request, n: Reply("", error="time-out") if n < 2 else "hm")
    sheet = written(generator, max_rounds=3)
    fate = sheet.fates[0]
    assert fate.fate == "failed"
    assert fate.reason.startswith("no pair; asked 3 times; 2 x the request failed, 1 x ")
    assert [(drop.kind, drop.what) for drop in sheet.dropped] == [
        ("reply", f"f1: round {n}") for n in (1, 2, 3)
    ]


def test_without_verification_nothing_is_asked_twice():
    generator = ScriptedGenerator(lambda request, n: unlike(*COLOURS[:3]))
    assert written(generator, verify=False).fates[0].fate == "covered"
    assert len(generator.requests) == 1


def test_an_empty_purse_leaves_every_fact_with_a_fate():
    generator = ScriptedGenerator(lambda request, n: unlike(*COLOURS[:5], fact=letter_of(request)))
    sent = 0

    async def ask(request):
        nonlocal sent
        sent += 1
        if sent > 6:
            raise BudgetError("6 requests are spent; raise max_requests")
        return await generator.ask(request)

    sheet = asyncio.run(
        write_fact_pairs(FACTS, SOURCES, ask, PairSettings(verify=False), scale=9, title="Orvessa ferries")
    )
    assert isinstance(sheet.stopped, BudgetError)
    assert [fate.id for fate in sheet.fates] == ["f1", "f2", "f3"]
    assert all(fate.fate == "short" and "raise max_requests" in fate.reason for fate in sheet.fates)
    assert [fate.n_train for fate in sheet.fates] == [4, 4, 4]


def test_progress_counts_facts():
    seen = []
    generator = ScriptedGenerator(lambda request, n: unlike(*COLOURS[:3], fact=letter_of(request)))
    options = PairSettings(verify=False)
    asyncio.run(
        write_fact_pairs(
            FACTS,
            SOURCES,
            generator.ask,
            options,
            scale={"f1": 1, "f2": 2, "f3": 0},
            title="T",
            on_progress=lambda *n: seen.append(n),
        )
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def mixed(seed: int, kinds: str):
    """An ask whose replies, drawn from `kinds`, depend on the request and the seed alone."""

    async def ask(request):
        draw = drawn(seed, request.system or "", request.question, request.seed)
        kind = kinds[draw % len(kinds)]
        if kind == "!":
            raise BudgetError("spent")
        if kind == "e":
            return Reply("", error="time-out")
        if kind == "g":
            return Reply("]{ <think> question? 7:")
        if request.system == VERIFY:
            colour = blocks(request)["question"].split()[1]
            rewrite = question_of(colour, "she") if kind == "r" else None
            return Reply(
                verdict_reply(colour[::-1], answerable=kind != "n", standalone=kind != "r", rewrite=rewrite)
            )
        if kind == "s":
            return Reply('{"skip": "too broad"}')
        text = unlike(
            *(COLOURS[(draw >> shift) % len(COLOURS)] for shift in (4, 8, 12, 16, 20)),
            fact="x" * (draw % 3 + 1),
        )
        return Reply(text[: len(text) // 2], is_cut=True) if kind == "c" else Reply(text)

    return ask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.text("oooegscnr!", min_size=1, max_size=8), st.integers(0, 4))
def test_whatever_the_replies_every_fact_has_one_fate_and_every_question_one_place(seed, kinds, scale):
    sheet = written(None, FACTS, scale, seed, ask=mixed(seed, kinds), max_rounds=3)
    assert [fate.id for fate in sheet.fates] == [fact.id for fact in FACTS]
    keys = [question_key(pair.question) for pair in sheet.pairs]
    assert len(keys) == len(set(keys))
    assert [pair.id for pair in sheet.pairs] == [f"q{n}" for n in range(1, len(keys) + 1)]
    assert [pair.source for pair in sheet.pairs] == sorted(pair.source for pair in sheet.pairs)
    for fate in sheet.fates:
        split = by_split(sheet, fate.id)
        assert (fate.n_train, fate.n_eval) == (len(split["train"]), len(split["eval"]))
        assert fate.n_train <= scale
        assert (fate.fate == "covered") == (fate.n_train == scale and fate.n_eval == 1)
        assert (fate.fate == "covered") == (fate.reason == "")
        assert fate.fate not in ("failed", "skipped") or fate.n_train + fate.n_eval == 0
    assert (sheet.stopped is not None) <= ("!" in kinds)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.text("oooesgcnr", min_size=1, max_size=8))
def test_smaller_scales_are_contained_in_larger_ones(seed, kinds):
    sheets = [written(None, FACTS[:2], n, seed, ask=mixed(seed, kinds), max_rounds=3) for n in (1, 3, 6)]
    for fact in FACTS[:2]:
        small, middle, large = (by_split(sheet, fact.id) for sheet in sheets)
        assert small["eval"] == middle["eval"] == large["eval"]
        assert middle["train"][: len(small["train"])] == small["train"]
        assert large["train"][: len(middle["train"])] == middle["train"]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.text("oooesgcnr", min_size=1, max_size=8), st.integers(1, 9))
def test_the_order_of_arrival_changes_nothing(seed, kinds, pace):
    late = delayed(mixed(seed, kinds), lambda request: drawn(pace, request.question) % 7)
    swift, slow = (
        written(None, FACTS[:2], 3, seed, ask=ask, max_rounds=2) for ask in (mixed(seed, kinds), late)
    )
    assert swift == slow


def test_another_seed_measures_with_another_question():
    def evals(seed: int) -> str:
        generator = ScriptedGenerator(lambda request, n: unlike(*COLOURS[:5]))
        return by_split(written(generator, seed=seed))["eval"][0]

    assert len({evals(seed) for seed in range(12)}) > 1
    assert evals(3) == evals(3)


@pytest.mark.parametrize("n_eval", [0, 2])
def test_as_many_eval_questions_as_asked_for(n_eval):
    generator = ScriptedGenerator(lambda request, n: unlike(COLOURS[2 * n], COLOURS[2 * n + 1]))
    fate = written(generator, scale=3, n_eval=n_eval).fates[0]
    assert (fate.fate, fate.n_train, fate.n_eval) == ("covered", 3, n_eval)
