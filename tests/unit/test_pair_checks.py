"""What the wording of a pair gives away about it."""

import pytest

from transfuse.inject.pair_checks import Candidate, candidate_fault, likeness, question_fault
from transfuse.inject.pair_prompts import VERIFY, WRITE_FACT_PAIRS
from transfuse.text.wording import question_key

SOURCE = "Harnoth on Skerrin is 647 metres high."
GREEK = "Το όρος Όλυμπος έχει ύψος 2.917 μέτρα."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How high is Harnoth on Skerrin?", "647 metres"),
        ("Is Harnoth 647 or 912 metres high?", "647 metres"),
        ("Name the height of Harnoth on Skerrin.", "647 metres"),
        ("In metres, Harnoth has a height of ____.", "647"),
        ("Who named the mountain Harnoth", "Ida Wren"),
        ("How many ships did the Skerrin fleet lose?", "None"),
        ("In which document of 1784 was Skerrin named?", "the Lantern Charter"),
        ("Who drew the map in the article of 1784 on Skerrin?", "Ida Wren"),
        ("Which unit is given as μέτρα in Greek maps of Skerrin?", "metres"),
    ],
)
def test_fair_pairs_pass(question, answer):
    assert candidate_fault(Candidate(question, answer), SOURCE, 20) == ""


@pytest.mark.parametrize(
    ("question", "answer", "fault"),
    [
        ("How high is Harnoth on Skerrin?", " … ", "the answer is empty"),
        ("", "647", "the question is empty"),
        ("How high is Harnoth on Skerrin?", "null", "the answer is a placeholder: 'null'"),
        ("How high?", "647", "the question is too short: 'How high?'"),
        ("Harnoth is 647 metres high.", "Skerrin", "not a question"),
        ("Is Harnoth on Skerrin 647 metres high?", "647 metres", "the question gives its answer away"),
        ("How high is Harnoth on Skerrin?", "very " * 21, "the answer is longer than 20 words: it has 21"),
        (
            "According to the given text, how high is Harnoth?",
            "647",
            "the question speaks of the document: 'According to the given text'",
        ),
        (
            "Which mountain is named in this section?",
            "Harnoth",
            "the question speaks of the document: 'in this section'",
        ),
        (
            "How high is the mountain mentioned above?",
            "647",
            "the question speaks of the document: 'mentioned above'",
        ),
        (
            "What does the article say about Harnoth?",
            "647",
            "the question speaks of the document: 'does the article'",
        ),
        ("Насколько высок Харнот на Скеррине?", "647", "the question is in another script than its source"),
        (
            "How high is Harnoth on Skerrin?",
            "六百四十七米",
            "the answer is in another script than its source",
        ),
        (
            "On what date did the Harlow Tea Museum open?",
            "3 May 1962",
            "the question repeats the generator's instructions",
        ),
    ],
)
def test_faults_are_named(question, answer, fault):
    assert candidate_fault(Candidate(question, answer), SOURCE, 20) == fault


@pytest.mark.parametrize("instructions", [WRITE_FACT_PAIRS, VERIFY])
def test_every_rule_of_the_instructions_is_known_again(instructions):
    rules = [line.strip("- ") for line in instructions.splitlines() if line.startswith("- ")]
    assert len(rules) >= 4
    for rule in rules:
        assert (
            question_fault(f"{rule} What is Harnoth?", SOURCE)
            == "the question repeats the generator's instructions"
        )


def test_a_script_is_strange_only_where_the_source_does_not_use_it():
    assert question_fault("Πόσο ψηλός είναι ο Όλυμπος;", GREEK) == ""
    assert question_fault("ハルノトの高さは何メートルですか。", "ハルノト山は標高六百メートルです。") == ""
    assert question_fault("谁赢?", "西班牙赢了。") == "the question is too short: '谁赢?'"


def test_likeness_is_the_share_of_letters_in_common():
    # 12 and 10 letters, of which 10 stay: 2 * 10 / (12 + 10).
    assert likeness("who won in a", "who won in") == pytest.approx(20 / 22)
    assert likeness(question_key("Who won?"), question_key("who WON")) == 1.0
