"""Words of lists, and when two wordings are the same."""

import unicodedata

_ASCII_SIGNS = {code: " " for code in range(128) if not chr(code).isalnum()}


def question_key(question: str) -> str:
    """A question without case, punctuation and spacing: two questions are the same where the keys are."""
    if question.isascii():  # the same, many times faster
        return " ".join(question.lower().translate(_ASCII_SIGNS).split())
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(
        "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in folded).split()
    )


def word_set(listed: str) -> frozenset[str]:
    """The words of a list that is written with spaces."""
    return frozenset(listed.split())
