"""Sections to pairs: tokens counted, windows, dry generators, nesting."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_pairs import ScriptedGenerator, blocks, pairs_reply
from transfuse.errors import GenerationError
from transfuse.generate.protocol import Reply
from transfuse.inject.pair_prompts import WRITE_SECTION_PAIRS, drawn
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.section_pair_writing import windows_of, write_section_pairs
from transfuse.types import Section

WORDS = [
    "amber",
    "blue",
    "coral",
    "denim",
    "ebony",
    "fawn",
    "green",
    "hazel",
    "ivory",
    "jade",
    "lilac",
    "mauve",
]


def section(text: str, heading: str = "Ferries") -> Section:
    return Section("doc.md", ("Orvessa", heading), text, (0, len(text)))


def count_words(text: str) -> int:
    return len(text.split())


def questions(*words: str) -> str:
    """Pairs of 6 words each, question and answer together."""
    return pairs_reply(*((f"Which {word} {word}ness has it?", word[::-1]) for word in words))


def written(generator, sections, scale=1, ask=None, **options):
    return asyncio.run(
        write_section_pairs(
            sections,
            ask or generator.ask,
            PairSettings(**options),
            scale=scale,
            count_tokens=count_words,
            title="Orvessa",
        )
    )


TWELVE = section("A ferry sails every day. Another one sails only on Sunday morning.")


def test_pairs_go_to_training_and_evaluation_in_turn_until_their_tokens_suffice():
    script = [questions(*WORDS[:3]), questions(*WORDS[3:6]), questions(*WORDS[6:])]
    generator = ScriptedGenerator(lambda request, n: script[n])
    sheet = written(generator, [TWELVE])
    # 12 words: two pairs of 6 words each for either split; the second reply has two pairs too many.
    assert [(pair.split, pair.answer[::-1]) for pair in sheet.pairs] == [
        ("train", "amber"),
        ("eval", "blue"),
        ("train", "coral"),
        ("eval", "denim"),
    ]
    assert {(pair.basis, pair.source, pair.kind) for pair in sheet.pairs} == {("token", "Ferries", "direct")}
    assert [drop.reason for drop in sheet.dropped] == ["more than the scale asks for"] * 2
    assert (sheet.fates[0].kind, sheet.fates[0].fate) == ("section", "covered")
    assert len(generator.of(WRITE_SECTION_PAIRS)) == 2


def test_a_generator_that_runs_dry_is_told_by_how_far_it_came():
    script = [questions(*WORDS[:3]), questions(*WORDS[:3])]
    generator = ScriptedGenerator(lambda request, n: script[min(n, 1)])
    fate = written(generator, [TWELVE], scale=3).fates[0]
    assert (fate.fate, fate.n_train, fate.n_eval, fate.n_dropped) == ("short", 2, 1, 6)
    assert fate.reason == (
        "training pairs of 1.0 x its tokens instead of 3 x, eval pairs of 0.5 x instead of 1 x; "
        "the generator has run dry at 1.0 x; 6 x repeats an earlier question"
    )
    assert len(generator.of(WRITE_SECTION_PAIRS)) == 3


def test_sections_of_one_title_are_one():
    generator = ScriptedGenerator(lambda request, n: questions(*WORDS))
    sheet = written(
        generator, [section("A ferry sails."), section("One sails."), section("It is late.", "End")]
    )
    assert [fate.id for fate in sheet.fates] == ["Ferries", "End"]
    texts = [blocks(request)["text"] for request in generator.of(WRITE_SECTION_PAIRS)]
    assert Counter(texts) == {"A ferry sails.": 1, "One sails.": 1, "It is late.": 1}
    # Both titles were given the same questions; each stands once.
    assert len({pair.question for pair in sheet.pairs}) == len(sheet.pairs)


def test_wordings_that_are_near_stay_in_one_split():
    near = pairs_reply(*((f"Which amber thing has the ferry number {n}?", "rebma") for n in range(1, 7)))
    truth = {f"Which amber thing has the ferry number {n}?": "rebma" for n in range(1, 7)}
    sheet = written(ScriptedGenerator(lambda request, n: near, truth), [TWELVE], scale=2)
    assert {pair.split for pair in sheet.pairs} == {"train"}


def test_windows_are_whole_sentences_of_about_the_same_length():
    sentences = [f"Ferry number {n} sails." for n in range(10)]  # 4 words each
    windows = windows_of(" ".join(sentences), 15, count_words)
    assert " ".join(windows) == " ".join(sentences)
    assert [count_words(window) for window in windows] == [16 - 4, 12, 12, 4]
    assert windows_of("Short.", 15, count_words) == ["Short."]
    assert windows_of(" \n ", 15, count_words) == []
    assert windows_of("one two three four.", 2, count_words) == ["one two three four."]


def test_each_window_is_checked_against_itself_and_knows_its_own_questions():
    text = "A ferry sails today. Another ferry sails tomorrow."

    def write(request, n):
        return (
            questions("amber", "blue") if "today" in blocks(request)["text"] else questions("coral", "denim")
        )

    generator = ScriptedGenerator(write)
    sheet = written(generator, [section(text)], scale=2, window_tokens=4)
    by_text = {}
    for request in generator.of(WRITE_SECTION_PAIRS):
        by_text.setdefault(blocks(request)["text"], []).append(blocks(request).get("questions"))
    assert by_text["A ferry sails today."][:2] == [
        None,
        "- Which amber amberness has it?\n- Which blue blueness has it?",
    ]
    checked = [blocks(request) for request in generator.requests if "question" in blocks(request)]
    assert {each["source"] for each in checked if "coral" in each["question"]} == {
        "Another ferry sails tomorrow."
    }
    assert sheet.fates[0].n_train + sheet.fates[0].n_eval == 4


def test_a_stop_keeps_what_is_there():
    async def ask(request):
        if request.seed == first_seed:
            return Reply(questions(*WORDS[:3]))
        raise GenerationError("endpoint gone")

    first_seed = drawn(0, "Ferries", 0, 1)
    sheet = written(None, [TWELVE, section("Gone.", "End")], scale=5, ask=ask, verify=False)
    assert str(sheet.stopped) == "endpoint gone"
    assert [(fate.fate, fate.n_train, fate.n_eval) for fate in sheet.fates][1:] == [("failed", 0, 0)]
    assert all("endpoint gone" in fate.reason for fate in sheet.fates)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_smaller_scales_are_contained_in_larger_ones(seed):
    def write(request, n):
        picks = [drawn(seed, request.question, k) % len(WORDS) for k in range(4)]
        return questions(*(WORDS[pick] for pick in picks))

    sections = [TWELVE, section("It sails in every month of the year. Nobody knows why.", "End")]
    sheets = [
        written(ScriptedGenerator(write), sections, scale=scale, verify=False, window_tokens=8)
        for scale in (1, 2)
    ]
    for heading in ("Ferries", "End"):
        small, large = (
            {
                split: [p.question for p in sheet.pairs if (p.source, p.split) == (heading, split)]
                for split in ("train", "eval")
            }
            for sheet in sheets
        )
        assert small["eval"] == large["eval"]
        assert large["train"][: len(small["train"])] == small["train"]
