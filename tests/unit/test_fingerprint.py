from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.errors import ModelError
from transfuse.io.fingerprint import adapter_fingerprint, tokenizer_fingerprint


def test_equal_tokenizers_have_one_fingerprint_and_others_another(make_tokenizer: Callable):
    one, same, other = (
        make_tokenizer(vocab_size=300),
        make_tokenizer(vocab_size=300),
        make_tokenizer(vocab_size=310),
    )
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(same) != tokenizer_fingerprint(other)


def test_what_changes_ids_changes_it_and_padding_does_not(make_tokenizer: Callable):
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    padded = make_tokenizer()
    padded.pad_token = padded.eos_token
    padded(["a", "a b c"], padding=True)
    plain = make_tokenizer()
    plain.pad_token = plain.eos_token
    assert tokenizer_fingerprint(padded) == tokenizer_fingerprint(plain) != before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_fingerprint(tokenizer) != before


def test_an_adapter_is_told_by_what_its_files_hold(tmp_path: Path):
    def adapter(name: str, weights: bytes, card: str = "") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (folder / "adapter_model.safetensors").write_bytes(weights)
        (folder / "README.md").write_text(card)
        return adapter_fingerprint(folder)

    assert adapter("one", b"1") == adapter("same", b"1", card="of another place") != adapter("other", b"2")


def test_a_folder_without_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"expected an adapter folder.*found none"):
        adapter_fingerprint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="found no weights"):
        adapter_fingerprint(tmp_path)
