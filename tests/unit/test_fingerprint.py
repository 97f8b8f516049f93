from collections.abc import Callable

from transfuse.io.fingerprint import tokenizer_fingerprint


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
