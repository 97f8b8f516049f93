"""A cache is written from a file of texts, and shown to a person."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from transfuse.errors import CacheError, DataError, ModelError
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.distribution_cache import DistributionCache
from transfuse.recipes.fuse_distributions import run_distributions
from transfuse.recipes.fuse_inspect import inspect_cache, inspection_tables, refuse_damaged
from transfuse.recipes.progress import Display

TEXTS = [
    "Spain won the cup [again].\nThe final was played in Sydney.",
    "a " * 40,
    "The team scored one goal.",
]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def run(
    model: Path, texts: Path, out: Path, rebuild: bool = False, also: tuple[str, ...] = (), **settings: object
) -> str:
    return run_distributions(
        str(model),
        [texts],
        out,
        DistributionSettings.model_validate({"shard_tokens": 60, **settings}),
        max_length_tokens=30,
        also=also,
        precision="float32",
        rebuild=rebuild,
        display=Display(is_silent=True),
    )


def shown(found: dict[str, object]) -> str:
    console = Console(width=160, record=True, file=StringIO())
    for table in inspection_tables(found):
        console.print(table)
    return console.export_text()


def test_texts_of_a_file_are_cut_and_cached(tiny_base_folder, text_file, tmp_path):
    said = run(tiny_base_folder, text_file, tmp_path / "cache", keep_texts=True)
    cache = DistributionCache.open(tmp_path / "cache")
    pieces = cache.texts()
    assert pieces is not None
    assert "".join(pieces) == "".join(TEXTS)
    assert len(pieces) > len(TEXTS)
    assert f"{cache.header.n_tokens:,} tokens of {len(pieces)} pieces of 3 texts" in said
    assert "Texts were cut" not in said
    assert max(len(cache.text(n).token_ids) for n in range(len(cache))) <= 30
    assert "Texts were cut. Other caches fit" in run(tiny_base_folder, text_file, tmp_path / "other")


def test_models_named_together_read_the_same_pieces(tiny_base_folder, tiny_model_folder, text_file, tmp_path):
    run(tiny_base_folder, text_file, tmp_path / "one", also=(str(tiny_model_folder),))
    run(tiny_model_folder, text_file, tmp_path / "two", also=(str(tiny_base_folder),))
    one, two = (DistributionCache.open(tmp_path / name) for name in ("one", "two"))
    assert one.text_digests == two.text_digests


def test_bad_texts_are_named_by_file_and_line(tiny_base_folder, make_model_folder, text_file, tmp_path):
    text_file.write_bytes(b'{"text": "a"}\n{"text": "Gr\xf6\xdfe"}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:2: expected UTF-8 text, got byte 0xf6"):
        run(tiny_base_folder, text_file, tmp_path / "cache")
    text_file.write_text('{"text": "a"}\n{"text": " "}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:2: 'text': expected a text that is not empty"):
        run(tiny_base_folder, text_file, tmp_path / "cache")
    text_file.write_text('{"text": "a"}\n')
    tiny = make_model_folder("tiny-context", chat_template=None, max_position_embeddings=4)
    with pytest.raises(
        ModelError, match=r"expected room for at least 8 tokens, got 4 \(the context of .*tiny-context"
    ):
        run(tiny, text_file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_is_shown_with_its_tokens(tiny_base_folder, text_file, tmp_path):
    run(tiny_base_folder, text_file, tmp_path / "cache", k=3)
    found = inspect_cache(tmp_path / "cache", verify=True, n_examples=4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["k"], found["n_vocab"], found["tokenizer_found"], found["damaged"]) == (3, 300, True, [])
    assert {shard["state"] for shard in found["shards"]} == {"whole"}
    files = list((tmp_path / "cache").iterdir())
    assert found["bytes_per_token"] == round(
        sum(path.stat().st_size for path in files) / found["n_tokens"], 3
    )
    cache = DistributionCache.open(tmp_path / "cache")
    assert len(found["examples"]) == 4
    for each in found["examples"]:
        text = cache.text(each["text"])
        assert each["end"] == text.ends[each["state"]]
        assert sum(prob for _, prob in each["likeliest"]) + each["tail"] == pytest.approx(1, abs=1e-5)
        assert isinstance(each["token"], str)
    said = shown(found)
    assert "3 likeliest tokens" in said
    assert "shard-00000.bin" in said
    assert "whole" in said
    refuse_damaged(found)


def test_without_its_tokenizer_ids_are_shown(make_model_folder, text_file, tmp_path):
    model = make_model_folder("gone", chat_template=None, seed=9)
    run(model, text_file, tmp_path / "cache", selection="sampled")
    shutil.rmtree(model)
    found = inspect_cache(tmp_path / "cache")
    assert not found["tokenizer_found"]
    assert all(isinstance(each["token"], int) for each in found["examples"])
    said = shown(found)
    assert "10 draws, seed 17" in said
    assert "Tokens are ids: the tokenizer could not be loaded" in said


def test_a_damaged_cache_is_shown_and_refused(tiny_base_folder, text_file, tmp_path):
    run(tiny_base_folder, text_file, tmp_path / "cache")
    path = tmp_path / "cache" / "shard-00001.bin"
    data = path.read_bytes()
    path.write_bytes(data[:9] + bytes([data[9] ^ 255]) + data[10:])
    assert inspect_cache(tmp_path / "cache")["damaged"] == []
    found = inspect_cache(tmp_path / "cache", verify=True)
    assert found["damaged"] == ["shard-00001.bin is altered"]
    assert "altered" in shown(found)
    with pytest.raises(CacheError, match=r"shard-00001\.bin is altered; copy it again, or give --rebuild"):
        refuse_damaged(found)
    path.write_bytes(data[:9])
    assert inspect_cache(tmp_path / "cache")["damaged"] == ["shard-00001.bin is truncated"]
    run(tiny_base_folder, text_file, tmp_path / "cache", rebuild=True)
    assert inspect_cache(tmp_path / "cache", verify=True)["damaged"] == []
    assert path.read_bytes() == data


def test_what_came_alone_is_shown_too(tiny_base_folder, text_file, tmp_path):
    run(tiny_base_folder, text_file, tmp_path / "cache", k=0)
    found = inspect_cache(tmp_path / "cache", n_examples=1)
    assert found["examples"][0]["likeliest"] == []
    assert "nothing but what came" in shown(found)
    assert len(inspection_tables(inspect_cache(tmp_path / "cache", n_examples=0))) == 2
