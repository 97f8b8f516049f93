"""Raised and lowered digits, so that 10<sup>6</sup> does not become 106 in plain text."""

RAISED = str.maketrans("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ")
LOWERED = str.maketrans("0123456789+-=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎")


def shift_digits(text: str, table: dict[int, int]) -> str:
    """Digits and signs raised or lowered, so that 10<sup>6</sup> does not become 106; other text as it is."""
    return text.translate(table) if all(ord(char) in table for char in text) else text
