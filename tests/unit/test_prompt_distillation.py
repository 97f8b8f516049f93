"""Teacher's rows: what the student reads, what the teacher's targets are taken from, and what is left out."""

import pytest
import torch
from pydantic import ValidationError

from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.inject.prompt_distillation import DistillationSettings, teacher_answers, teacher_rows
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.train.batches import TrainingRow
from transfuse.types import Dropped, QAPair

SECTIONS = {"cup": "Spain won the cup.", "final": "The final was in Sydney."}
PAIRS = [
    QAPair("q1", "token", "cup", "train", "Who won?", "Spain"),
    QAPair("q2", "token", "final", "train", "Where was the final?", "In Sydney"),
    QAPair("q3", "token", "cup", "train", "What did Spain win?", "The cup"),
]
CONTEXTS = {pair.id: SECTIONS[pair.source] for pair in PAIRS}
GOLD = {pair.id: pair.answer for pair in PAIRS}


class Scripted:
    """Answers from a table, and remembers what it was asked."""

    identity = "scripted"

    def __init__(self, **replies: Reply) -> None:
        self.replies, self.asked = replies, list[Request]()

    def generate(self, requests, on_reply: OnReply | None = None) -> list[Reply]:
        self.asked += requests
        replies = [self.replies.get(each.question.split()[0], Reply("yes ")) for each in requests]
        for n, reply in enumerate(replies):
            if on_reply:
                on_reply(n, reply)
        return replies


def test_a_teacher_is_asked_with_the_section_before_it():
    generator, seen = Scripted(), []
    answers, dropped = teacher_answers(
        PAIRS,
        CONTEXTS,
        DistillationSettings(),
        generator,
        max_new_tokens=9,
        seed=4,
        on_answers=lambda *done: seen.append(done),
    )
    assert (answers, dropped) == ({"q1": "yes", "q2": "yes", "q3": "yes"}, [])
    assert [(each.question, each.context) for each in generator.asked] == [
        (pair.question, CONTEXTS[pair.id]) for pair in PAIRS
    ]
    assert {(each.max_new_tokens, each.temperature, each.seed) for each in generator.asked} == {(9, 0.0, 0)}
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_drawn_answers_have_seeds_of_their_own():
    generator = Scripted()
    drawn = DistillationSettings(answer_temperature=0.7)
    teacher_answers(PAIRS, CONTEXTS, drawn, generator, max_new_tokens=9, seed=4)
    assert [(each.temperature, each.seed) for each in generator.asked] == [(0.7, 4), (0.7, 5), (0.7, 6)]


def test_answers_of_the_file_need_no_teacher():
    generator = Scripted()
    of_file = DistillationSettings(answers="file")
    got = teacher_answers(PAIRS, CONTEXTS, of_file, generator, max_new_tokens=9, seed=4)
    assert got == (GOLD, [])
    assert generator.asked == []


def test_questions_that_the_teacher_cannot_answer_are_dropped():
    generator = Scripted(
        Who=Reply("It was Sp", is_cut=True), Where=Reply(" "), What=Reply("", error="no room")
    )
    answers, dropped = teacher_answers(
        PAIRS, CONTEXTS, DistillationSettings(), generator, max_new_tokens=9, seed=4
    )
    assert answers == {}
    assert [(each.what, each.reason) for each in dropped] == [
        ("Who won?", "the teacher's answer did not end within 9 tokens"),
        ("Where was the final?", "the teacher's answer is empty"),
        ("What did Spain win?", "no room"),
    ]


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"temperature": 0}, {"hard_weight": 1.1}, {"answers": "me"}, {"topk": 3}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DistillationSettings(**wrong)


@pytest.fixture(scope="module", params=["chat", "base"])
def prompts(request, make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer() if request.param == "chat" else make_tokenizer(None))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).eval()


def rows_of(
    model, prompts, pairs=PAIRS, answers=GOLD, max_length_tokens=None, on_rows=lambda *_: None, **settings
):
    return teacher_rows(
        model,
        prompts,
        pairs,
        CONTEXTS,
        answers,
        DistillationSettings(**settings),
        compute_dtype=torch.float32,
        max_length_tokens=max_length_tokens,
        on_rows=on_rows,
    )


def test_a_row_reads_the_question_alone_and_has_a_target_at_each_token_of_the_answer(model, prompts):
    seen: list[tuple[int, int]] = []
    model.train()
    rows, dropped = rows_of(
        model,
        prompts,
        answers={**GOLD, "q2": "Sydney"},
        on_rows=lambda *done: seen.append(done),
        top_k=5,
        temperature=2.0,
        hard_weight=0.25,
    )
    assert model.training
    model.eval()
    assert dropped == []
    assert seen == [(2, 3), (3, 3)]  # both questions on the cup at once
    for row, pair, answer in zip(rows, PAIRS, ["Spain", "Sydney", "The cup"], strict=True):
        prompt_ids, answer_ids = prompts.encode_pair(pair.question, answer)
        assert row[:4] == (prompt_ids + answer_ids, len(prompt_ids), 0, 1.0)
        assert row.token_ids[-1] == prompts.end_id
        assert row.soft is not None
        assert row.soft.token_ids.shape == row.soft.log_probs.shape == (len(answer_ids), 5)
        assert row.soft[2:] == (2.0, 0.25, "forward-kl", None, 0.5)


def test_more_kept_tokens_than_there_are_keeps_them_all(model, prompts):
    (row, *_), _ = rows_of(model, prompts, top_k=1000)
    assert row.soft is not None
    assert row.soft.token_ids.shape[1] == 300
    torch.testing.assert_close(row.soft.log_probs.exp().sum(1), torch.ones(row.n_learned))


def test_pairs_without_a_row_say_why(model, prompts, monkeypatch):
    real = PromptFormat.encode_pair

    def merges(self, question, answer, *, context=None):
        prompt_ids, answer_ids = real(self, question, answer, context=context)
        return prompt_ids, [7, *answer_ids] if context and answer == "The cup" else answer_ids

    monkeypatch.setattr(PromptFormat, "encode_pair", merges)
    stranger = QAPair("q4", "token", "moon", "train", "Who went?", "Nobody")
    n_tokens = sum(map(len, real(prompts, PAIRS[1].question, "In Sydney", context=SECTIONS["final"])))
    rows, dropped = rows_of(
        model, prompts, [*PAIRS, stranger], {**GOLD, "q4": "Nobody"}, max_length_tokens=n_tokens - 1
    )
    assert len(rows) == 1
    assert dropped == [
        Dropped(
            "pair", "Where was the final?", f"{n_tokens} tokens with its section, more than {n_tokens - 1}"
        ),
        Dropped(
            "pair", "What did Spain win?", "the answer has other tokens behind the section than without it"
        ),
        Dropped("pair", "Who went?", "there is no section of 'moon'"),
    ]
    assert rows_of(model, prompts, [stranger], {"q4": "Nobody"})[0] == []


def test_a_row_does_not_depend_on_the_others(model, prompts):
    together, _ = rows_of(model, prompts, top_k=300)
    for row, pair in zip(together, PAIRS, strict=True):
        (alone,), _ = rows_of(model, prompts, [pair], top_k=300)
        torch.testing.assert_close(by_token(row), by_token(alone), rtol=1e-5, atol=1e-5)


def by_token(row: TrainingRow) -> torch.Tensor:
    """Log-probabilities of all tokens in the vocabulary's order."""
    assert row.soft is not None
    return torch.empty(row.soft.log_probs.shape).scatter(1, row.soft.token_ids.long(), row.soft.log_probs)
