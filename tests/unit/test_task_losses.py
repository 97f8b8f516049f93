"""Losses and choices equal those of transformers, one item at a time."""

import re

import pytest
import torch
from transformers import LlamaForCausalLM

from transfuse.evaluate import task_losses
from transfuse.evaluate.task_losses import ItemLoss, answer_choices, answer_losses, answer_losses_and_choices
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.types import TaskItem, Turn

OPTIONS = "{}\nI. one\nA. Spain\nB. Sydney\nC. the cup\nAnswer:"
ITEMS = [
    TaskItem("a", (Turn("user", "Which country won the cup?"),), "Spain"),
    TaskItem("b", (Turn("system", "Be brief."), Turn("user", "When?")), "in 2023, on 20 August – Größe"),
    TaskItem(
        "c", (Turn("user", "Where was the final played, and who scored?"),), " In Sydney.\nThe captain "
    ),
]
CHOICES = [
    TaskItem(f"{form}{question}", (Turn("user", OPTIONS.format(question)),), form.format(gold))
    for form in ("{}", "The answer is ({})", "{}. The team")
    for question, gold in (("Who won?", "A"), ("Where was the final?", "B"), ("What was won?", "C"))
]


@pytest.fixture(scope="module", params=["chat", "base"])
def kind(request) -> dict[str, None]:
    return {} if request.param == "chat" else {"chat_template": None}


@pytest.fixture(scope="module")
def model(kind, make_model_folder):
    folder = make_model_folder(
        f"wide-{len(kind)}", **kind, initializer_range=0.3, max_position_embeddings=300
    )
    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def prompts(kind, make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer(**kind))


def chat_ids(prompts: PromptFormat, item: TaskItem, answer: str) -> tuple[list[int], list[int]]:
    turns = [turn._asdict() for turn in item.messages]
    return prompts.encode_chat([*turns, {"role": "assistant", "content": answer}])


@torch.no_grad()
def nats_of(model, read: list[int], learned: list[int]) -> float:
    log_probs = model(torch.tensor([read + learned])).logits[0].log_softmax(1)
    return -sum(float(log_probs[len(read) + n - 1, token]) for n, token in enumerate(learned))


@pytest.mark.parametrize("max_tokens", [1, 200, 4096])
def test_the_bits_of_an_answer_are_those_of_transformers_without_its_end(
    model, prompts, monkeypatch, max_tokens
):
    monkeypatch.setattr(task_losses, "MAX_TOKENS_PER_PASS", max_tokens)
    seen: list[tuple[int, int]] = []
    losses = answer_losses(model, prompts, ITEMS, torch.float32, lambda *done: seen.append(done))
    assert seen[-1] == (3, 3)
    assert [loss.n_bytes for loss in losses] == [5, 33, 22]
    for item, loss in zip(ITEMS, losses, strict=True):
        read, learned = chat_ids(prompts, item, item.answer)
        assert (loss.item, loss.n_tokens, loss.reason) == (item.id, len(learned) - 1, "")
        assert loss.nll_nats == pytest.approx(nats_of(model, read, learned[:-1]), rel=1e-4)


def test_a_plain_text_costs_what_its_predicted_tokens_cost(model, prompts):
    text = "The captain lifted the trophy."
    (loss,) = answer_losses(model, prompts, [TaskItem("t", (), text)], torch.float32)
    ids = prompts.encode_text(text)
    first = "" if prompts.bos_ids else prompts.tokenizer.decode(ids[:1])
    assert loss.nll_nats == pytest.approx(nats_of(model, ids[:1], ids[1:]), rel=1e-4)
    assert (loss.n_bytes, loss.n_tokens) == (len(text) - len(first), len(ids) - 1)


def test_an_item_that_the_context_does_not_hold_says_so(model, prompts):
    long = TaskItem("long", (Turn("user", "cup " * 400),), "A")
    losses = answer_losses(model, prompts, [ITEMS[0], long], torch.float32)
    assert losses[0].n_bytes == 5
    assert losses[1]._replace(reason="") == ItemLoss("long")
    assert re.fullmatch(r"\d+ tokens, more than 300", losses[1].reason)


def test_a_choice_is_the_likeliest_letter_where_the_gold_answer_names_its_own(model, prompts, monkeypatch):
    monkeypatch.setattr(task_losses, "MAX_TOKENS_PER_PASS", 300)
    seen: list[tuple[int, int]] = []
    records = answer_choices(model, prompts, CHOICES, torch.float32, lambda *done: seen.append(done))
    assert seen[-1] == (9, 9)
    for item, record in zip(CHOICES, records, strict=True):
        gold = re.search(r"\b[ABC]\b", item.answer)
        assert gold is not None
        nats: dict[str, float] = {}
        for letter in "ABC":
            read, learned = chat_ids(prompts, item, item.answer[: gold.start()] + letter)
            nats[letter] = nats_of(model, read, learned[:-1])  # the tokens before the letter are the same
        best = min(nats, key=lambda letter: nats[letter])
        assert (record.item, record.answer, record.reason) == (item.id, best, "")
        assert record.scores == {"accuracy": float(best == gold[0])}
    assert len({record.answer for record in records}) > 1


def test_one_reading_gives_both(model, prompts):
    items = [*CHOICES[:4], *ITEMS]
    losses, choices = answer_losses_and_choices(model, prompts, items, torch.float32)
    assert losses == answer_losses(model, prompts, items, torch.float32)
    assert choices == answer_choices(model, prompts, items, torch.float32)
    assert [bool(record.scores) for record in choices] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Who won?", "A", "the prompt holds no options"),
        (OPTIONS.format("Who won?"), "D", "the gold answer 'D' names none of the options A, B, C"),
        (OPTIONS.format("Who won?"), "Spain", "'Spain' names none of the options"),
        (
            OPTIONS.format("Who won?"),
            "It is A",
            "letters with several tokens",
        ),  # " A" is one token here, " B" two
        (OPTIONS.format("cup " * 400), "A", r"\d+ tokens, more than 300"),
    ],
)
def test_an_item_without_a_choice_says_why(model, prompts, question, answer, reason):
    item = TaskItem("x", (Turn("user", question),), answer)
    record, fine = answer_choices(model, prompts, [item, CHOICES[0]], torch.float32)
    assert record.scores == {}
    assert re.search(reason, record.reason)
    assert set(fine.scores) == {"accuracy"}
    (text,) = answer_choices(model, prompts, [TaskItem("t", (), "A text")], torch.float32)
    assert "no options" in text.reason
