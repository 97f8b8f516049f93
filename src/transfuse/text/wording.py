"""When two wordings are the same."""

import unicodedata


def question_key(question: str) -> str:
    """A question without case, punctuation and spacing: two questions are the same where the keys are."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(
        "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in folded).split()
    )
