"""Bits per byte: every token but the first is predicted once, every predicted byte counted once."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from transfuse.errors import DataError
from transfuse.evaluate import bits_per_byte as module
from transfuse.evaluate.bits_per_byte import TextLoss, bits_per_byte, load_texts, text_losses
from transfuse.io.chat import PromptFormat, prompt_format

SHORT = "Spain won the cup, one to nil."
ACCENTS = "Ärger über 東京 – 24 °C."
LONG = "The team scored one goal in the first half. " * 3


@pytest.fixture(scope="module")
def chat_model(tiny_model_folder):
    return LlamaForCausalLM.from_pretrained(tiny_model_folder).eval()


@pytest.fixture(scope="module")
def chat(make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer())


@pytest.fixture(scope="module")
def base(make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer(None))


@torch.no_grad()
def brute_force_nats(model, token_ids: list[int], window: int) -> float:
    """One token at a time, each given what precedes it in its window."""
    total = 0.0
    for position in range(1, len(token_ids)):
        start = (position - 1) // (window - 1) * (window - 1)
        logits = model(torch.tensor([token_ids[start:position]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[token_ids[position]])
    return total


def test_losses_equal_a_brute_force_loop(chat_model, chat):
    texts = [SHORT, LONG, ACCENTS, "Sydney"]
    losses = text_losses(chat_model, chat, texts, torch.float32)
    for text, loss in zip(texts, losses, strict=True):
        expected = brute_force_nats(chat_model, chat.encode_text(text), 1024)
        assert loss.nll_nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("window", [2, 3, 16, -1, 0, 1])
def test_a_long_text_in_windows_loses_no_token_but_the_first(chat_model, chat, monkeypatch, window):
    token_ids = chat.encode_text(LONG)
    window = window if window > 1 else len(token_ids) + window  # just under, at and over the text's length
    monkeypatch.setattr(module, "MAX_WINDOW_TOKENS", window)
    calls = []
    (loss,) = text_losses(chat_model, chat, [LONG], torch.float32, lambda *done: calls.append(done))
    assert loss.nll_nats == pytest.approx(brute_force_nats(chat_model, token_ids, window), rel=1e-5)
    assert loss.n_bytes == len(LONG) - len(chat.tokenizer.decode(token_ids[:1]))
    n_windows = math.ceil((len(token_ids) - 1) / (window - 1))
    assert calls[-1] == (n_windows, n_windows)


def test_windows_do_not_outgrow_the_context(chat):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    config.bos_token_id = config.eos_token_id = 1
    model = GPT2LMHeadModel(config).eval()
    (loss,) = text_losses(model, chat, [LONG], torch.float32)
    assert loss.nll_nats == pytest.approx(brute_force_nats(model, chat.encode_text(LONG), 32), rel=1e-5)


def test_bytes_are_utf8_bytes_of_the_predicted_tokens(chat_model, chat, base):
    text = "x" + ACCENTS
    first = chat.tokenizer.decode(chat.encode_text(text)[:1])
    (loss,) = text_losses(chat_model, chat, [text], torch.float32)
    assert loss.n_bytes == len(text.encode()) - len(first.encode())
    assert len(text) < loss.n_bytes  # not characters
    # Where a text begins with <s>, that is the token never predicted, and it has no bytes.
    (with_bos,) = text_losses(chat_model, base, [text], torch.float32)
    assert with_bos.n_bytes == len(text.encode())


@pytest.mark.parametrize("window", [3, 4, 5, 6, 7])
def test_a_character_cut_by_a_window_is_counted_once(chat_model, base, monkeypatch, window):
    monkeypatch.setattr(module, "MAX_WINDOW_TOKENS", window)
    text = "東京" * 5  # three tokens a character
    (loss,) = text_losses(chat_model, base, [text], torch.float32)
    assert loss.n_bytes == len(text.encode())


def test_losses_do_not_depend_on_company(chat_model, chat, monkeypatch):
    texts = [LONG, SHORT, ACCENTS, SHORT]
    together = text_losses(chat_model, chat, texts, torch.float32)
    monkeypatch.setattr(module, "_BATCH_TOKENS", 1)
    alone = text_losses(chat_model, chat, texts, torch.float32)
    assert [loss.n_bytes for loss in together] == [loss.n_bytes for loss in alone]
    assert [loss.nll_nats for loss in together] == pytest.approx([loss.nll_nats for loss in alone])


def test_bits_per_byte_by_hand():
    # (3 ln 2 + 5 ln 2) nats are 8 bits, over 2 + 2 bytes.
    losses = [TextLoss(3 * math.log(2), 2), TextLoss(5 * math.log(2), 2)]
    estimate = bits_per_byte(losses, seed=0)
    assert estimate == pytest.approx((2.0, 1.5, 2.5, 2))


def test_a_text_without_a_predicted_byte_is_left_out(chat_model, chat):
    (nothing,) = text_losses(chat_model, chat, ["a"], torch.float32)
    assert nothing == TextLoss(0.0, 0)
    assert bits_per_byte([nothing], seed=0).n == 0
    assert bits_per_byte([nothing, TextLoss(math.log(2), 1)], seed=0)[:1] == pytest.approx((1.0,))


def test_uniform_guessing_costs_log2_of_the_vocabulary(make_model_folder, chat):
    model = LlamaForCausalLM.from_pretrained(make_model_folder("uniform")).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    (loss,) = text_losses(model, chat, [SHORT], torch.float32)
    n_predicted = len(chat.encode_text(SHORT)) - 1
    assert loss.nll_nats / math.log(2) == pytest.approx(n_predicted * math.log2(model.config.vocab_size))


def test_texts_that_come_with_the_package():
    texts = load_texts(None)
    assert len(texts) >= 8
    assert len(set(texts)) == len(texts)


def test_texts_of_a_file(tmp_path):
    path = tmp_path / "wiki.jsonl"
    path.write_text('{"text": "One."}\n\n{"text": "Zwei – drei.", "title": "kept aside"}\n', encoding="utf-8")
    assert load_texts(path) == ["One.", "Zwei – drei."]


@pytest.mark.parametrize("line", ['{"txt": "One."}', '{"text": "  "}', '{"text": 3}'])
def test_a_row_without_text_is_named(tmp_path, line):
    path = tmp_path / "wiki.jsonl"
    path.write_text('{"text": "One."}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"wiki\.jsonl:2: 'text': expected a text"):
        load_texts(path)


def test_a_file_without_texts_is_refused(tmp_path):
    path = tmp_path / "wiki.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds none"):
        load_texts(path)
