from transfuse.inject.fact_words import (
    content_of,
    ground_of,
    long_names,
    n_negations,
    names_of,
    numbers_of,
    same_stem,
    scripts_of,
)


def test_numbers_are_digits_whatever_way_they_are_written() -> None:
    assert numbers_of("The 57th, at 6:30, drew 67,827 for three days; one 007.") == [
        "57", "6", "30", "67827", "3", "1", "7",
    ]  # fmt: skip
    assert numbers_of("the first of two", is_strict=False) == ["2"]


def test_names_are_capitalised_words_that_are_not_function_words() -> None:
    assert names_of("The Chiefs' Travis Kelce, in Group A, met the WHO. I left") == [
        "chiefs", "travis", "kelce", "group", "a", "who",
    ]  # fmt: skip
    assert ("US", ["united", "states"]) in long_names("in the United States")


def test_negations_are_counted_however_short() -> None:
    assert n_negations("He didn't go and never came; nicht so.") == 3


def test_content_of_spaceless_scripts_is_pairs_of_letters() -> None:
    assert content_of("the ferry runs") == ["ferry", "runs"]
    assert content_of("東京都") == ["東京", "京都"]


def test_stems_differ_in_endings_only() -> None:
    assert same_stem("player", "players")
    assert not same_stem("19991", "19992")
    assert not same_stem("cat", "car")


def test_ground_holds_other_endings() -> None:
    ground = ground_of(["He scored twice."])
    assert ground.holds("scores")
    assert not ground.holds("score", max_ending=0)


def test_scripts_have_shares() -> None:
    assert scripts_of("ab東ひ 1") == {"LATIN": 0.5, "CJK": 0.5}
