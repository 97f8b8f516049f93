"""The ledger: a row for every source and for everything left out."""

from transfuse.errors import BudgetError
from transfuse.inject.ledger import PairSheet, SourceFate, counted_reasons, ledger_rows, summary
from transfuse.types import Dropped

SHEET = PairSheet(
    [],
    [SourceFate("fact", "a", "covered", "", 2, 1, 0), SourceFate("fact", "b", "skipped", "unclear", 0, 0, 1)],
    [Dropped("pair", "b: Why?", "not a question")],
    BudgetError("spent"),
)


def test_the_ledger_names_every_fate_and_everything_dropped():
    assert ledger_rows(SHEET)[1:] == [
        {
            "kind": "fact",
            "id": "b",
            "fate": "skipped",
            "reason": "unclear",
            "n_train": 0,
            "n_eval": 0,
            "n_dropped": 1,
        },
        {"kind": "pair", "what": "b: Why?", "fate": "dropped", "reason": "not a question"},
    ]


def test_the_summary_names_fates_that_nothing_met():
    assert summary(SHEET) == {"covered": 1, "short": 0, "skipped": 1, "failed": 0}


def test_reasons_are_counted_without_their_particulars():
    assert counted_reasons(["b", "a: 1", "a: 2"]) == "2 x a, 1 x b"
