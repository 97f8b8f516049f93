import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.inject.fact_merging import merge_facts, near_identical
from transfuse.types import Fact

LONG = "in the last game of the long season that was played at the stadium"


def merged(*texts: str, similarity: float = 0.92, similar=None) -> list[tuple[int, int]]:
    return [merge[:2] for merge in near_identical(texts, similarity=similarity, similar=similar)]


ALIKE_BUT_FOR_NAMES_AND_NUMBERS = [
    ("The Chiefs won 38-35.", "The Chiefs won 38-34."),
    ("It is -5 °C on the hill.", "It is 5 °C on the hill."),
    ("The share was 5%.", "The share was 5."),
    ("Three of them won.", "Third of them won."),
    ("C++ was made by Bjarne.", "C# was made by Bjarne."),
    ("Group A won the cup.", "Group B won the cup."),
    ("The Chiefs beat the Eagles.", "The Eagles beat the Chiefs."),
    ("Tom Ford scored", "Tom Lord scored"),
    ("Paris hosted the cup", "Lyon hosted the cup"),
    ("Butker played", "Butker never played"),
    ("Butker scored before halftime", "Butker scored after halftime"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE_BUT_FOR_NAMES_AND_NUMBERS)
def test_likeness_in_meaning_does_not_outweigh_them(one: str, other: str) -> None:
    assert merged(one, other, similar=lambda texts: np.ones((len(texts), len(texts)))) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *ALIKE_BUT_FOR_NAMES_AND_NUMBERS,
        ("Butker kicked the goal", "Butker missed the goal"),
        ("Ann is an employer of Ford", "Ann is an employee of Ford"),
        ("Dogs chased cats", "Cats chased dogs"),
        ("北京是首都。", "东京是首都。"),
    ],
)
def test_what_differs_in_a_number_a_name_or_a_telling_word_is_never_merged(one: str, other: str) -> None:
    assert merged(one, other, similarity=0.5) == []
    assert merged(f"{one} {LONG}", f"{other} {LONG}") == []


def test_the_longer_statement_is_kept_and_the_earlier_of_equals() -> None:
    short, long = f"Tom won a cup {LONG}", f"Tom has won the cups {LONG}"
    assert merged(short, long) == [(0, 1)]
    assert merged("Tom won.", "Tom won!") == [(1, 0)]
    assert merged("The Chiefs won 67,827.", "Chiefs won 67827") == [(1, 0)]


def test_likeness_in_meaning_merges_other_wordings() -> None:
    texts = ["The final took place in Sydney in 2023.", "The final was played in Sydney in 2023."]
    alike = np.array([[1.0, 0.95], [0.95, 1.0]])
    assert merged(*texts) == []
    assert merged(*texts, similar=lambda _: alike) == [(1, 0)]  # both of one length: the earlier stays
    assert merged(*texts, similar=lambda _: alike * 0.9) == []


def test_merged_facts_say_into_what() -> None:
    facts = [Fact("f1", "S", "Tom won.", (0, 8)), Fact("f2", "S", "Eve lost."), Fact("f3", "T", "Tom won!")]
    kept, dropped, kept_ids = merge_facts(facts, similarity=0.92)
    assert kept == facts[:2]
    assert kept_ids == {"f3": "f1"}
    assert [(drop.what, drop.reason) for drop in dropped] == [
        ("f3: Tom won!", "merged into f1, same wording: Tom won.")
    ]


WORDS = st.sampled_from(
    ["Tom", "Eve", "won", "lost", "the", "a", "cup", "cups", "3", "4", "not", "in", "2023"]
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=12))
def test_everything_goes_to_something_kept(texts: list[str]) -> None:
    merges = near_identical(texts, similarity=0.6)
    gone = {merge.gone for merge in merges}
    assert len(gone) == len(merges)
    assert all(merge.kept not in gone for merge in merges)
    for merge in merges:
        digits = [[word for word in texts[index].split() if word.isdigit()] for index in merge[:2]]
        assert digits[0] == digits[1]
        assert texts[merge.gone].split().count("not") == texts[merge.kept].split().count("not")
