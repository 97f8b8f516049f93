"""Which source keeps a question that several have, and what each source is told."""

from transfuse.inject.pair_drafts import Accepted, Draft
from transfuse.inject.pair_settling import is_full, settled
from transfuse.text.wording import question_key
from transfuse.types import Dropped


def accepted(question: str, round_: int = 1, size: int = 1) -> Accepted:
    return Accepted(question, "yes", question_key(question), round_, size)


def draft(name: str, scale: int, *questions: tuple[str, int], n_eval: int = 1) -> Draft:
    """A fact whose first question measures."""
    made = Draft("fact", name, scale, 1, n_eval, [accepted(*each) for each in questions])
    made.eval_choices = made.accepted[:n_eval]
    return made


def kept(sheet, source: str) -> list[str]:
    return [pair.question for pair in sheet.pairs if pair.source == source and pair.split == "train"]


def test_a_shared_question_goes_to_the_source_that_takes_it_at_the_smaller_scale():
    """Fact a has it third, fact b first: at scale 1 it was b's, so it stays b's at scale 3."""
    a = [("alpha one", 1), ("beta two", 1), ("gamma three", 1), ("shared thing", 1)]
    b = [("delta four", 1), ("shared thing", 1), ("epsilon five", 1), ("zeta six", 1)]
    for scale in (1, 3):
        sheet = settled([draft("a", scale, *a), draft("b", scale, *b)], 0.9, None)
        assert kept(sheet, "b")[0] == "shared thing"
    assert kept(sheet, "a") == ["beta two", "gamma three"]
    assert [(fate.fate, fate.reason) for fate in sheet.fates] == [
        (
            "short",
            "2 of 3 training questions and 1 of 1 eval questions; 1 x is another source's question",
        ),
        ("covered", ""),
    ]
    assert sheet.dropped == [
        Dropped("pair", "a: shared thing", "is another source's question: a question of b")
    ]


def test_a_lost_question_is_replaced_from_the_rounds_that_the_scale_has_asked_for():
    a = [("alpha one", 1), ("shared thing", 1)]
    b = [("delta four", 1), ("shared thing", 1), ("epsilon five", 1), ("zeta six", 2)]
    c = [("eta seven", 1), ("shared thing", 1), ("theta eight", 2)]
    sheet = settled([draft("a", 1, *a), draft("b", 1, *b), draft("c", 1, *c)], 0.9, None)
    assert [kept(sheet, source) for source in "abc"] == [["shared thing"], ["epsilon five"], []]


def test_an_eval_question_comes_before_any_training_question():
    a = [("alpha one", 1), ("shared thing", 1)]
    b = [("shared thing", 1), ("delta four", 1)]
    sheet = settled([draft("a", 1, *a), draft("b", 1, *b)], 0.9, None)
    assert kept(sheet, "a") == []
    assert [pair.source for pair in sheet.pairs if pair.question == "shared thing"] == ["b"]
    assert [pair.id for pair in sheet.pairs] == ["q1", "q2", "q3"]


def test_full_means_both_splits():
    full = draft("a", 1, ("alpha one", 1), ("beta two", 1))
    assert is_full(full, 0.9)
    full.eval_target = 2
    assert not is_full(full, 0.9)
    assert not is_full(draft("a", 2, ("alpha one", 1), ("beta two", 1)), 0.9)
