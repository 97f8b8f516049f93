"""Two rows held against each other, as reports of every kind tell it."""

from typing import Any

from transfuse.types import Estimate


def comparison(
    metric: str, method: str, against: str, difference: Estimate, *, is_better_lower: bool
) -> dict[str, Any]:
    """One comparison of a report.

    Args:
        metric: what was measured.
        method: the row that the run is about.
        against: the other row.
        difference: the method's value minus the other's.
        is_better_lower: whether less is better.

    Returns:
        JSON values; `verdict` is `better` or `worse` only where the interval leaves no room for the other.
    """
    verdict = "no difference shown"
    if difference.low is not None and difference.high is not None:
        if difference.low > 0:
            verdict = "worse" if is_better_lower else "better"
        elif difference.high < 0:
            verdict = "better" if is_better_lower else "worse"
    return {
        "metric": metric,
        "method": method,
        "against": against,
        "difference": difference._asdict(),
        "is_better_lower": is_better_lower,
        "verdict": verdict,
    }
