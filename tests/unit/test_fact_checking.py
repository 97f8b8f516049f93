import pytest

from transfuse.inject.fact_checking import FactSource, fact_fault, leading_pronoun
from transfuse.inject.fact_words import ground_of

SECTION = (
    "Hurts ran 36 yards and scored three touchdowns in the US. The attendance was 67,827. "
    "The National Football League was pleased."
)
TITLE = "Super Bowl LVII"
SOURCE = FactSource(ground_of([SECTION, TITLE]), ground_of([SECTION, TITLE, "Jalen Hurts"]), (TITLE,))


@pytest.mark.parametrize(
    "fact",
    [
        "Hurts scored 3 touchdowns in Super Bowl LVII.",
        "Jalen Hurts ran 36 yards.",
        "Attendance at Super Bowl LVII was 67827.",
        "Hurts scored in the United States.",
        "The NFL was pleased.",
        "The two Hurts scored touchdowns.",
    ],
)
def test_what_the_source_says_may_stand(fact: str) -> None:
    assert fact_fault(fact, SOURCE) == ""


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ("38.", "holds no word"),
        ("Who scored three touchdowns?", "is a question, not a statement"),
        ("Hurts ran 36 yards (in the", "breaks off: a bracket or quotation is not closed"),
        ("Hurts ran 63 yards.", "holds numbers that the section does not: 63"),
        ("Hurts scored four touchdowns.", "holds numbers that the section does not: 4"),
        ("Tom Brady scored three touchdowns.", "holds names that the document does not: tom, brady"),
        ("Hurts enjoys classical music concerts.", "only 1 of its 5 content words occur in the section"),
        ("The Orta Ferry opened in 1911.", "repeats the instructions of the prompt"),
        ("Add nothing that the sentences do not say", "repeats the instructions of the prompt"),
        ("Хёртс набрал очки.", "is written in another script than the source (cyrillic)"),
        ("Hurts ran " * 31, "is too long: 62 words, 310 characters; at most 60 and 600"),
    ],
)
def test_what_it_does_not_say_is_refused_with_the_reason(fact: str, reason: str) -> None:
    assert fact_fault(fact, SOURCE) == reason


@pytest.mark.parametrize(
    ("fact", "pronoun"),
    [
        ("He scored.", "He"),
        ("“Their” win came late.", "Their"),
        ("In 2023, he scored.", "he"),
        ("I was born in Lyon.", "I"),
        ("I giocatori del Milan vinsero.", ""),
        ("IT firms grew.", ""),
        ("After Hurts fell, he scored.", ""),
        ("Hurts hurt his ankle.", ""),
    ],
)
def test_leading_pronouns_are_found(fact: str, pronoun: str) -> None:
    assert leading_pronoun(fact) == pronoun


def test_a_title_is_no_pronoun() -> None:
    assert leading_pronoun("It Happened One Night won five Oscars.", ("It Happened One Night",)) == ""
