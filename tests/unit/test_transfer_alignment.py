"""A teacher of another vocabulary teaches wherever both have read the same bytes of the answer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenizer_families import byte_level, sentencepiece, wordpiece
from transfuse.baselines.distillation import online_rows
from transfuse.baselines.distillation_settings import DistillSettings
from transfuse.errors import ModelError
from transfuse.io.chat import prompt_format
from transfuse.io.models import LoadedModel
from transfuse.io.references import ModelSource
from transfuse.io.token_bytes import token_bytes
from transfuse.recipes.transfer_alignment import aligned_rows, answer_spans, taught_share
from transfuse.train.batches import TrainingRow
from transfuse.train.soft_targets import SoftTargets
from transfuse.train.task_rows import task_row, task_rows
from transfuse.types import Dropped, TaskItem, Turn

ITEMS = [
    TaskItem("who", (Turn("user", "Which country won the cup?"),), " Spain won the cup in 2023."),
    TaskItem("when", (Turn("system", "Be brief."), Turn("user", "When?")), "in 2023"),
    TaskItem("text", (), "The naïve café owner said “l’été”."),
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))


def loaded(tokenizer: PreTrainedTokenizerFast, n_positions: int = 256, n_more: int = 0) -> LoadedModel:
    """A random teacher, perhaps with more logits than its tokenizer has tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer) + n_more,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=n_positions,
                initializer_range=0.3,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ).eval()
    source = ModelSource("teacher", "folder", Path("teacher"))
    return LoadedModel(model, tokenizer, source, torch.float32, torch.device("cpu"))


def aligned(
    teacher: LoadedModel, student: PreTrainedTokenizerFast, **settings: object
) -> tuple[list[TrainingRow], list[Dropped]]:
    chosen = DistillSettings(**{"min_coverage": 0.0, **settings})  # type: ignore[arg-type]
    return aligned_rows(teacher, ITEMS, prompt_format(student), chosen, max_length_tokens=None)


def soft_of(row: TrainingRow) -> SoftTargets:
    assert isinstance(row.soft, SoftTargets)
    return row.soft


def test_an_answers_bytes_are_counted_from_the_prompts_end_and_its_end_is_one_more(make_tokenizer: Callable):
    tokenizer = make_tokenizer(vocab_size=258)  # bytes and two tokens of ChatML
    prompts = prompt_format(tokenizer)
    row = task_row(ITEMS[1], prompts)
    spans = answer_spans(row, ITEMS[1], token_bytes(tokenizer), prompts.end_id)
    assert spans is not None
    assert spans.token_ids.tolist() == row.token_ids[row.n_prompt - 1 :]
    assert spans.ends.tolist() == list(range(9))  # "in 2023" is seven bytes, then the end
    text = task_row(ITEMS[2], prompts)
    spans = answer_spans(text, ITEMS[2], token_bytes(tokenizer), prompts.end_id)
    assert spans is not None
    assert spans.ends.tolist() == list(
        range(1, len(ITEMS[2].answer.encode()) + 2)
    )  # no BOS: one byte is read


def test_with_one_tokenizer_it_is_online_distillation(make_tokenizer: Callable):
    teacher = loaded(make_tokenizer(), n_more=5)
    settings = DistillSettings(top_k=6, temperature=2.0, hard_weight=0.2, divergence="jsd", jsd_beta=0.3)
    prompts = prompt_format(make_tokenizer())
    own, _ = task_rows(ITEMS, prompts, None)
    # Logits that stand for no token have nothing to become in another vocabulary.
    expected, _ = online_rows(
        teacher.model, own, settings, pad_id=0, compute_dtype=torch.float32, n_vocab=10**6
    )
    found, dropped = aligned_rows(teacher, ITEMS, prompts, settings, max_length_tokens=None)
    assert dropped == []
    assert taught_share(found) == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:4] == theirs[:4]
        soft, other = soft_of(ours), soft_of(theirs)
        assert soft[2:5] == other[2:5] == (2.0, 0.2, "jsd")
        assert soft.jsd_beta == 0.3
        is_token = other.token_ids < len(teacher.tokenizer)
        for n in range(ours.n_learned):
            kept = dict(zip(other.token_ids[n].tolist(), other.log_probs[n].tolist(), strict=True))
            kept = {token: value for token, value in kept.items() if token < len(teacher.tokenizer)}
            n_kept = int(is_token[n].sum())
            assert dict(
                zip(soft.token_ids[n, :n_kept].tolist(), soft.log_probs[n, :n_kept].tolist(), strict=True)
            ) == pytest.approx(kept, abs=1e-5)


def bytes_read(row: TrainingRow, item: TaskItem, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Of the answer, at each state that predicts a learned token."""
    sizes = [len(piece or b"") for piece in token_bytes(tokenizer)]
    first = row.n_prompt if item.messages else 0
    states = range(row.n_prompt - 1, len(row.token_ids) - 1)
    return [sum(sizes[token] for token in row.token_ids[first : state + 1]) for state in states]


@pytest.mark.parametrize("kind", ["exact", "retokenize"])
def test_each_state_learns_what_the_teacher_says_after_the_same_bytes(kind: str):
    """Against dense probabilities, state by state and token by token."""
    theirs, own = sentencepiece(), byte_level(300)
    teacher, prompts, theirs_format = loaded(theirs), prompt_format(own), prompt_format(theirs)
    rows, _ = aligned(teacher, own, map=kind, top_k=len(theirs))
    exact = {piece: token for token, piece in reversed(list(enumerate(token_bytes(own)))) if piece}
    n_silent = n_compared = 0
    for item, row in zip(ITEMS, rows, strict=True):
        teacher_row, soft = task_row(item, theirs_format), soft_of(row)
        with torch.no_grad():
            dense = teacher.model(torch.tensor([teacher_row.token_ids])).logits[0].softmax(-1)
        probs = dict(
            zip(bytes_read(teacher_row, item, theirs), dense[teacher_row.n_prompt - 1 :], strict=False)
        )
        assert soft.is_taught is not None
        for n, n_read in enumerate(bytes_read(row, item, own)):
            if kind == "retokenize":
                assert bool(soft.is_taught[n]) == (n_read in probs)
            if not soft.is_taught[n]:
                n_silent += 1
                continue
            found = dict(zip(soft.token_ids[n].tolist(), soft.log_probs[n].exp().tolist(), strict=True))
            # The token that closes the teacher's answers stands for the student's.
            assert found[prompts.end_id] == pytest.approx(
                float(probs[n_read][theirs_format.end_id]), rel=1e-4
            )
            expected: dict[int, float] = {}
            for token, piece in enumerate(token_bytes(theirs)):
                image = exact.get(piece or b"")
                if kind == "retokenize" and image is None and piece:
                    image = own.encode(piece.decode(), add_special_tokens=False)[0]
                if image is not None:
                    expected[image] = expected.get(image, 0.0) + float(probs[n_read][token])
            for token, value in expected.items():
                assert found[token] == pytest.approx(value, rel=1e-4)
            n_compared += 1
    assert n_compared > 10
    assert n_silent  # the two do cut apart


def test_the_student_learns_where_to_end():
    rows, _ = aligned(loaded(sentencepiece()), byte_level())
    for row in rows[:2]:
        taught = soft_of(row).is_taught
        assert taught is not None
        assert taught[-1]


def test_a_text_that_the_tokens_do_not_spell_is_learned_from_itself():
    rows, dropped = aligned(loaded(wordpiece()), byte_level())
    assert [row.soft is None for row in rows] == [True, False, True]  # lower case, no accents
    assert dropped == []
    assert taught_share(rows) < 0.3


def test_too_little_to_teach_is_refused():
    with pytest.raises(ModelError, match=r"alike at 10\.0% of the learned tokens, expected at least 30%"):
        aligned(loaded(wordpiece()), byte_level(), min_coverage=0.3)


def test_what_the_teacher_cannot_read_is_dropped():
    rows, dropped = aligned(loaded(sentencepiece(), n_positions=30), byte_level())
    assert len(rows) + len(dropped) == 3
    assert dropped
    assert all(
        "as the teacher reads it: " in each.reason and "more than 30" in each.reason for each in dropped
    )
