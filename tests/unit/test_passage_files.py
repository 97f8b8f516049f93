from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.knowledge.passage_files import PassageFile, save_passages
from transfuse.knowledge.records import Passage

TEXTS = st.text(max_size=20)
FIELDS = st.fixed_dictionaries(
    {
        "id": TEXTS,
        "document": TEXTS,
        "heading_path": st.lists(TEXTS, max_size=2).map(tuple),
        "text": TEXTS,
        "span": st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
        "page": st.none() | st.integers(1, 999),
    }
)


@settings(max_examples=30, deadline=None)
@given(st.lists(FIELDS, max_size=4))
def test_what_is_saved_is_read(
    tmp_path_factory: pytest.TempPathFactory, fields: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("passages")
    passages = [Passage(**each) for each in fields]
    save_passages(folder, passages)
    file = PassageFile.load(folder)
    assert [file[row] for row in range(len(file))] == passages
    for row in (-1, len(passages)):
        with pytest.raises(IndexError):
            file[row]


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_passages(tmp_path, [Passage("a", "d", (), "words", (0, 5))])
    with (tmp_path / "passages.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"offsets\.npy does not fit passages\.jsonl"):
        PassageFile.load(tmp_path)
