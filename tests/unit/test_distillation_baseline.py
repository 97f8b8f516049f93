"""Online and offline distillation: a teacher's distributions at the same tokens, and answers that it writes."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from transfuse.baselines import distillation
from transfuse.baselines.distillation import offline_items, online_rows, refuse_other_vocabulary
from transfuse.baselines.distillation_settings import DistillSettings
from transfuse.errors import ModelError, TrainingError
from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import train
from transfuse.train.settings import TrainSettings
from transfuse.train.task_rows import task_rows
from transfuse.types import Dropped, TaskItem, Turn

ITEMS = [
    TaskItem("who", (Turn("user", "Which country won the cup?"),), "Spain won the cup", ("Spain",), "cup"),
    TaskItem("when", (Turn("system", "Be brief."), Turn("user", "When?")), "in 2023"),
    TaskItem("text", (), "The final was played in Sydney."),
]


@pytest.fixture(scope="module")
def prompts(make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer())


@pytest.fixture(scope="module")
def rows(prompts) -> list[TrainingRow]:
    return task_rows(ITEMS, prompts, None)[0]


@pytest.fixture(scope="module")
def load(make_model_folder) -> Callable[..., LlamaForCausalLM]:
    def make(name: str, **config: object) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(
            make_model_folder(name, initializer_range=0.2, **config)
        ).eval()

    return make


@pytest.fixture(scope="module")
def teacher(load) -> LlamaForCausalLM:
    return load("teacher", hidden_size=48, seed=1)


def taught(model, rows, **settings) -> tuple[list[TrainingRow], list[Dropped]]:
    n_vocab = settings.pop("n_vocab", None)
    return online_rows(
        model,
        rows,
        DistillSettings(**settings),
        pad_id=1,
        compute_dtype=torch.float32,
        n_vocab=n_vocab,
    )


@torch.no_grad()
def logits_of(model: torch.nn.Module, row: TrainingRow) -> torch.Tensor:
    return model(torch.tensor([row.token_ids])).logits[0, row.n_prompt - 1 : -1]


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_targets_are_the_teachers_likeliest_tokens_row_by_row(teacher, rows, packing, monkeypatch):
    monkeypatch.setattr(distillation, "_ROWS_PER_CHUNK", 2)
    if packing == "padded":
        monkeypatch.setattr(distillation, "why_not_packed", lambda *_: "padded for comparison")
    teacher.train()
    got, dropped = taught(teacher, rows, top_k=5, temperature=2.0, hard_weight=0.25)
    assert teacher.training
    teacher.eval()
    assert dropped == []
    for plain, row in zip(rows, got, strict=True):
        assert row._replace(soft=None) == plain
        assert row.soft is not None
        expected = (logits_of(teacher, plain) / 2).log_softmax(1).topk(5)
        assert torch.equal(row.soft.token_ids.long(), expected.indices)
        torch.testing.assert_close(row.soft.log_probs, expected.values, rtol=1e-4, atol=1e-4)
        assert (row.soft.temperature, row.soft.hard_weight) == (2.0, 0.25)


def test_training_on_the_rows_starts_at_the_dense_loss(tmp_path, load, teacher, rows, prompts):
    student = load("student")
    got, _ = taught(teacher, rows, top_k=10_000, hard_weight=0.25)
    losses = []
    for row in rows:
        theirs, own = logits_of(teacher, row).log_softmax(1), logits_of(student, row).log_softmax(1)
        kl = (theirs.exp() * (theirs - own)).sum(1)
        nll_nats = -own.gather(1, torch.tensor(row.token_ids[row.n_prompt :])[:, None]).squeeze(1)
        losses.append(0.25 * nll_nats + 0.75 * kl)
    settings = TrainSettings(method="full", n_epochs=8, learning_rate=3e-3, batch_rows=3)
    summary = train(
        student, got, settings, seed=0, compute_dtype=torch.float32, pad_id=prompts.pad_id, folder=tmp_path
    )
    assert summary.curve[0].loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert summary.curve[-1].loss < 0.8 * summary.curve[0].loss


def test_the_divergence_goes_with_the_rows_and_with_equal_weights_costs_nothing(
    tmp_path, load, rows, prompts
):
    for divergence in ("forward-kl", "reverse-kl", "jsd"):
        given, _ = taught(load("same"), rows, divergence=divergence, jsd_beta=0.2, top_k=300, hard_weight=0.0)
        assert {(row.soft.divergence, row.soft.jsd_beta) for row in given} == {(divergence, 0.2)}
        summary = train(
            load("same"),
            given,
            TrainSettings(method="full", n_epochs=1, learning_rate=1e-6, batch_rows=3),
            seed=0,
            compute_dtype=torch.float32,
            pad_id=prompts.pad_id,
            folder=tmp_path / divergence,
        )
        assert summary.curve[0].loss == pytest.approx(0, abs=1e-5)


def test_logits_that_only_fill_up_the_teachers_vocabulary_are_left_out(load, rows):
    padded = load("padded", vocab_size=300)
    own = logits_of(padded, rows[0])
    padded.resize_token_embeddings(310, mean_resizing=False)
    with torch.no_grad():
        padded.lm_head.weight[300:] = 5.0
    (row, *_), _ = taught(padded, rows, top_k=1000, n_vocab=300)
    assert row.soft is not None
    assert row.soft.token_ids.shape[1] == 300
    expected = own.log_softmax(1).topk(300).values
    torch.testing.assert_close(row.soft.log_probs, expected, rtol=1e-4, atol=1e-4)


def test_rows_that_the_teacher_cannot_read_are_dropped(load, rows):
    lengths = [len(row.token_ids) for row in rows]
    short = load("short", max_position_embeddings=max(lengths) - 1)
    seen: list[tuple[int, int]] = []
    got, dropped = online_rows(
        short,
        rows,
        DistillSettings(),
        pad_id=1,
        compute_dtype=torch.float32,
        on_rows=lambda *done: seen.append(done),
    )
    longest = lengths.index(max(lengths))
    assert [row.token_ids for row in got] == [row.token_ids for n, row in enumerate(rows) if n != longest]
    reason = f"{max(lengths)} tokens, more than the teacher's context of {max(lengths) - 1}"
    assert dropped == [Dropped("record", f"row {longest + 1}", reason)]
    assert seen == [(2, 2)]
    assert taught(short, [rows[longest]])[0] == []


def test_a_teacher_whose_logits_are_not_finite_is_refused(load, rows):
    broken = load("broken")
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    with pytest.raises(TrainingError, match="teacher: expected finite logits, got NaN"):
        taught(broken, rows)


def test_another_vocabulary_is_refused_with_the_ways_that_remain(make_tokenizer):
    own = make_tokenizer()
    refuse_other_vocabulary(make_tokenizer(), own)
    with pytest.raises(ModelError) as caught:
        refuse_other_vocabulary(make_tokenizer(vocab_size=290), own)
    said = str(caught.value)
    assert "got 290 tokens of the teacher and 300 of the student, 290 of them the same" in said
    assert "teacher not there, student 290" in said
    ways = ("other_vocabulary to align", "offline-distillation", "delta-transport", "transfuse fuse")
    assert all(way in said for way in ways)
    with pytest.raises(ModelError, match=r"\(id of '<s>': teacher 0, student not there\)"):
        refuse_other_vocabulary(make_tokenizer(None), own)


class Scripted:
    """Replies by the last turn, and what it was asked."""

    identity = "scripted"

    def __init__(self, **replies: Reply) -> None:
        self.replies, self.asked = replies, list[Request]()

    def generate(self, requests, on_reply: OnReply | None = None) -> list[Reply]:
        self.asked += requests
        replies = [self.replies[each.messages[-1].content.split()[0].strip("?")] for each in requests]
        for n, reply in enumerate(replies):
            if on_reply:
                on_reply(n, reply)
        return replies


def test_offline_the_teachers_answers_take_the_place_of_the_golds():
    generator, seen = Scripted(Which=Reply(" Spain did. "), When=Reply("2023")), []
    settings = DistillSettings(answer_temperature=0.7, max_new_tokens=9)
    answered, dropped = offline_items(
        ITEMS, generator, settings, seed=4, on_replies=lambda *done: seen.append(done)
    )
    assert answered == [
        TaskItem("who", ITEMS[0].messages, "Spain did.", (), "cup"),
        TaskItem("when", ITEMS[1].messages, "2023"),
    ]
    assert dropped == [Dropped("record", "text", "a plain text, to which a teacher has no answer to write")]
    assert [(each.temperature, each.seed, each.max_new_tokens) for each in generator.asked] == [
        (0.7, 4, 9),
        (0.7, 5, 9),
    ]
    assert seen == [(1, 2), (2, 2)]


def test_offline_answers_that_are_empty_or_cut_are_dropped():
    generator = Scripted(Which=Reply("Spain and", is_cut=True), When=Reply(" "))
    answered, dropped = offline_items(ITEMS[:2], generator, DistillSettings(max_new_tokens=9), seed=0)
    assert answered == []
    assert [(each.what, each.reason) for each in dropped] == [
        ("who", "the teacher's answer did not end within 9 tokens"),
        ("when", "the teacher's answer is empty"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 0},
        {"temperature": 0},
        {"hard_weight": 1.1},
        {"max_new_tokens": 0},
        {"answers": "x"},
        {"divergence": "kl"},
        {"jsd_beta": 1.0},
        {"other_vocabulary": "ignore"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DistillSettings(**wrong)
