"""What trains and what measures: sets nest, kept-out facts stay out, and nothing leaves silently."""

import pytest

from transfuse.errors import DataError
from transfuse.inject.selection import Selection, select_pairs
from transfuse.text.wording import question_key
from transfuse.types import Dropped, QAPair

N_FACTS, N_QUESTIONS = 20, 6


def pair(source: str, split, question: str, basis="fact", answer: str = "Spain") -> QAPair:
    return QAPair(f"{source}/{question}", basis, source, split, question, answer)


PAIRS = [
    pair(f"f{fact}", split, f"{split} {n} of {fact}?")
    for n in range(N_QUESTIONS)  # facts take turns in the file
    for fact in range(N_FACTS)
    for split in (("train", "eval") if n < 2 else ("train",))
]


def n_words(text: str) -> int:
    return len(text.split())


def select(pairs=PAIRS, **changes) -> Selection:
    settings = {
        "basis": "fact",
        "scale": 3,
        "kept_out_share": 0.25,
        "seed": 1,
        "section_tokens": {},
        "count_tokens": n_words,
        "where": "qa.jsonl",
    }
    settings |= changes
    return select_pairs(pairs, **{**settings, "kept_out_share": float(settings["kept_out_share"])})


def sources(pairs: list[QAPair]) -> set[str]:
    return {each.source for each in pairs}


def test_every_pair_goes_where_it_belongs():
    got = select()
    assert len(got.kept_out) == 5  # a quarter of 20
    assert sources(got.evaluate_kept_out) == got.kept_out
    assert sources(got.train) == sources(got.evaluate) == {f"f{n}" for n in range(N_FACTS)} - got.kept_out
    assert {each.split for each in got.train} == {"train"}
    assert {each.split for each in got.evaluate + got.evaluate_kept_out} == {"eval"}
    assert len(got.train) == 15 * 3
    assert len(got.evaluate) == 15 * 2
    assert (got.dropped, got.warnings) == ([], [])


def test_the_first_n_questions_of_each_fact_are_taken():
    got = select()
    for source in sources(got.train):
        taken = [each for each in got.train if each.source == source]
        assert taken == [each for each in PAIRS if each.source == source and each.split == "train"][:3]


def test_scales_nest_and_the_rest_does_not_depend_on_them():
    smaller, larger = select(scale=2), select(scale=5)
    assert set(smaller.train) < set(larger.train)
    assert smaller.kept_out == larger.kept_out
    assert smaller.evaluate == larger.evaluate
    assert smaller.evaluate_kept_out == larger.evaluate_kept_out


def test_token_scales_nest_too():
    one, two = (select(SECTION_PAIRS, **TOKENS, scale=scale, kept_out_share=0) for scale in (1, 2))
    assert set(one.train) < set(two.train)


def test_kept_out_facts_depend_on_the_seed_alone():
    assert select().kept_out == select(PAIRS[::-1]).kept_out
    assert len({select(seed=seed).kept_out for seed in range(6)}) > 1


@pytest.mark.parametrize(("share", "n_kept_out"), [(0, 0), (0.001, 1), (0.5, 10), (0.99, 19)])
def test_at_least_one_fact_is_kept_out_and_one_trained(share, n_kept_out):
    got = select(kept_out_share=share)
    assert len(got.kept_out) == n_kept_out
    assert got.train


def test_one_fact_alone_is_trained():
    only = [each for each in PAIRS if each.source == "f3"]
    assert select(only, kept_out_share=0.5).kept_out == frozenset()


def kept_out_and_other() -> tuple[str, str]:
    got = select()
    return sorted(got.kept_out)[0], sorted(sources(got.train))[0]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_kept_out_facts_wording_never_trains_another_fact(split):
    kept_out, other = kept_out_and_other()
    secret = pair(kept_out, split, "Who lifted the cup?")
    same = pair(other, "train", "who lifted the CUP")
    if split == "eval":  # then the wording is in both splits
        with pytest.raises(DataError, match="1 eval questions are training questions"):
            select([secret, same, *PAIRS])
        return
    got = select([secret, same, *PAIRS])
    assert got.kept_out == select().kept_out
    assert question_key(same.question) not in {question_key(each.question) for each in got.train}
    assert got.dropped == [Dropped("pair", same.question, "is also a question of a kept-out source")]
    assert len([each for each in got.train if each.source == other]) == 3  # the next one takes its place


def test_a_fact_left_without_training_questions_is_not_measured_as_trained():
    kept_out, other = kept_out_and_other()
    pairs = [each for each in PAIRS if each.source != other or each.split == "eval"]
    pairs += [pair(kept_out, "train", "Who lifted the cup?"), pair(other, "train", "Who lifted the cup?")]
    got = select(pairs)
    assert other not in sources(got.train)
    assert other not in sources(got.evaluate) | sources(got.evaluate_kept_out)


def test_repeats_are_dropped_and_do_not_count():
    repeats = [pair("f1", "train", "TRAIN 0 of 1")] * 2
    got = select([PAIRS[2], *repeats, *PAIRS[3:], *PAIRS[:2]], kept_out_share=0)
    assert PAIRS[2] == pair("f1", "train", "train 0 of 1?")
    assert got.dropped == [Dropped("pair", "TRAIN 0 of 1", "repeats an earlier training question")] * 2
    assert len([each for each in got.train if each.source == "f1"]) == 3
    assert not set(repeats) & set(got.train)


def test_an_eval_question_of_an_untrained_fact_is_dropped_with_its_reason():
    stray = pair("f99", "eval", "Who is new?")
    got = select([*PAIRS, stray], kept_out_share=0)
    assert stray not in got.evaluate
    assert got.dropped == [
        Dropped("pair", "Who is new?", "eval question of a source that has no training question")
    ]


def test_a_fact_without_eval_questions_trains_and_is_never_kept_out():
    more = [pair("f77", "train", f"Only trained {n}?") for n in range(3)]
    for seed in range(8):
        got = select([*PAIRS, *more], kept_out_share=0.9, seed=seed)
        assert set(more) <= set(got.train)


def test_leaks_are_refused_with_the_file():
    leak = pair("f1", "eval", "Train 0 of 2")
    with pytest.raises(DataError, match=r"^qa\.jsonl: 1 eval questions are training questions"):
        select([*PAIRS, leak])


def test_pairs_of_the_other_basis_are_no_leak():
    other = pair("Final", "eval", "Train 0 of 2", basis="token")
    assert select([*PAIRS, other]) == select()


def test_too_few_questions_are_a_warning():
    pairs = [each for each in PAIRS if each.source != "f3"] + [
        pair("f3", "train", "Only one?"),
        pair("f3", "eval", "And measured?"),
    ]
    got = select(pairs, kept_out_share=0)
    assert got.warnings == ["1 of 20 facts have fewer than 3 training questions: f3"]
    assert len(got.train) == 19 * 3 + 1
    many = select(scale=99, kept_out_share=0).warnings
    assert many[0].endswith("f0, f1, f2, f3, f4 and 15 more")


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        ([], "no pairs of basis 'fact'; use --basis token"),
        ([pair("Final", "train", "Who?", basis="token")], "no pairs of basis 'fact'"),
        ([pair("f1", "train", "Who?")], "no rows with 'split': 'eval'"),
        ([pair("f1", "eval", "Who?")], "no rows with 'split': 'train'"),
    ],
)
def test_nothing_to_train_or_to_measure_is_refused(pairs, complaint):
    with pytest.raises(DataError, match=rf"^qa\.jsonl: {complaint}"):
        select(pairs)


def test_nothing_left_to_train_is_refused():
    pairs = [pair(f"f{n}", "eval", f"Measured {n}?") for n in range(2)]
    kept_out = next(iter(select([*pairs, *(pair(f"f{n}", "train", f"T {n}") for n in range(2))]).kept_out))
    with pytest.raises(DataError, match="no training question is left"):
        select([*pairs, pair(kept_out, "train", "Only the kept-out one?")])


# Ten words a pair: nine of the question, one of the answer.
SECTION_PAIRS = [
    pair(section, split, f"{split} question {n} of the section called {section} ?", basis="token")
    for section in ("Final", "Hosts")
    for n in range(8)
    for split in ("train", "eval")
]
TOKENS = {"basis": "token", "section_tokens": {"Final": 25, "Hosts": 40, "Unused": 5}}


def n_of_section(got: Selection) -> dict[str, int]:
    return {name: sum(each.source == name for each in got.train) for name in ("Final", "Hosts")}


def test_token_basis_takes_pairs_until_the_sections_tokens_are_reached():
    assert n_words(SECTION_PAIRS[0].question) + n_words(SECTION_PAIRS[0].answer) == 10
    assert n_of_section(select(SECTION_PAIRS, **TOKENS, scale=1, kept_out_share=0)) == {
        "Final": 3,
        "Hosts": 4,
    }
    two = select(SECTION_PAIRS, **TOKENS, scale=2, kept_out_share=0)
    assert n_of_section(two) == {"Final": 5, "Hosts": 8}
    assert two.warnings == []


def test_token_basis_warns_of_sections_that_fall_short():
    got = select(SECTION_PAIRS, **TOKENS, scale=3, kept_out_share=0)
    assert n_of_section(got) == {"Final": 8, "Hosts": 8}
    assert got.warnings == ["1 of 2 sections have fewer than 3 x their tokens: Hosts"]


def test_token_basis_keeps_sections_out():
    got = select(SECTION_PAIRS, **TOKENS, kept_out_share=0.5)
    assert len(got.kept_out) == 1
    assert sources(got.train) == sources(got.evaluate) == {"Final", "Hosts"} - got.kept_out


def test_an_unknown_section_is_refused():
    tokens = {**TOKENS, "section_tokens": {"Final": 25}}
    with pytest.raises(DataError, match=r"sections Hosts are not in the document; its sections are Final"):
        select(SECTION_PAIRS, **tokens, kept_out_share=0)


def test_a_fact_of_its_own_scale_takes_fewer_questions():
    got = select(kept_out_share=0, scale_of={"f3": 1})
    assert sum(each.source == "f3" for each in got.train) == 1
    assert len(got.train) == (N_FACTS - 1) * 3 + 1


def further(kind, source: str, n: int, also: tuple[str, ...] = ()) -> QAPair:
    return QAPair(
        f"{kind}{source}{n}", "fact", source, "train", f"{kind} {n} of {source}?", "x", (), kind, also
    )


def test_pairs_of_other_kinds_come_by_share_spread_over_facts_and_nested():
    extra = [further("reverse", f"f{fact}", n) for fact in range(N_FACTS) for n in range(3)]
    assert select([*PAIRS, *extra], kept_out_share=0).extra == []  # none asked for
    few, many = (
        select([*PAIRS, *extra], kept_out_share=0, extra_shares={"reverse": share}).extra
        for share in (0.2, 0.5)
    )
    assert (len(few), len(many)) == (12, 30)  # of 60 direct ones
    assert many[:12] == few
    assert len(sources(few)) == 12
    assert len(sources(many)) == N_FACTS


def test_pairs_of_other_kinds_touch_no_kept_out_fact():
    two = [further("two-facts", f"f{n}", 0, (f"f{(n + 1) % N_FACTS}",)) for n in range(N_FACTS)]
    got = select([*PAIRS, *two], extra_shares={"two-facts": 0.9})
    assert got.extra
    assert not {name for pair in got.extra for name in (pair.source, *pair.also)} & got.kept_out
    assert len(got.extra) < N_FACTS - len(got.kept_out)


def test_a_pair_of_another_kind_that_is_an_eval_question_is_refused():
    leak = further("reverse", "f1", 0)
    told = QAPair("e", "fact", "f2", "eval", leak.question, "x")
    with pytest.raises(DataError, match="1 eval questions are training questions as well"):
        select([*PAIRS, leak, told])
