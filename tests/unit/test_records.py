"""Training records: answers to questions, and beside them only what was asked for, of trained facts only."""

import json

import pytest

from transfuse.errors import DataError
from transfuse.inject.records import FACT_INSTRUCTION, RecordSettings, training_rows
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.train.batches import TrainingRow
from transfuse.types import Dropped, Fact, QAPair

FACTS = [
    Fact("f1", "Final", "Spain won the cup in 2023."),
    Fact("f2", "Final", "The final was in Sydney."),
    Fact("secret", "Final", "The captain scored."),
]
ANSWERS = {"f1": ["Spain", "2023", "spain"], "f2": ["Sydney"]}
PAIRS = [
    QAPair(f"q{n}", "fact", source, "train", f"Question {n} of {source}?", answer)
    for source, answers in ANSWERS.items()
    for n, answer in enumerate(answers)
]


@pytest.fixture(scope="module", params=["chat", "base"])
def prompts(request, make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer() if request.param == "chat" else make_tokenizer(None))


def rows_of(prompts, pairs=PAIRS, max_length_tokens=None, seed=3, **settings) -> list[TrainingRow]:
    rows, dropped = training_rows(
        pairs, FACTS, RecordSettings(**settings), prompts, max_length_tokens=max_length_tokens, seed=seed
    )
    assert dropped == []
    return rows


def asked(row: TrainingRow, prompts: PromptFormat) -> tuple[str, str]:
    """Prompt and answer as text."""
    tokenizer = prompts.tokenizer
    return tokenizer.decode(row.token_ids[: row.n_prompt]), tokenizer.decode(
        row.token_ids[row.n_prompt :], skip_special_tokens=True
    ).strip()


def test_each_pair_is_one_row_whose_loss_is_on_the_answer(prompts):
    rows = rows_of(prompts)
    assert len(rows) == len(PAIRS)
    for row, pair in zip(rows, PAIRS, strict=True):
        prompt_ids, answer_ids = prompts.encode_pair(pair.question, pair.answer)
        assert row == TrainingRow(prompt_ids + answer_ids, len(prompt_ids), 0, 0.0)
        assert row.weights == [1.0] * len(answer_ids)
        assert prompt_ids == prompts.encode_question(pair.question)  # as it will be asked
        assert row.token_ids[-1] == prompts.end_id


def test_a_questions_tokens_are_learned_at_their_weight(prompts):
    for row, pair in zip(rows_of(prompts, question_weight=0.25), PAIRS, strict=True):
        prompt_ids, answer_ids = prompts.encode_pair(pair.question, pair.answer)
        assert row.n_prompt + row.n_question == len(prompt_ids)
        assert row.weights == [0.25] * row.n_question + [1.0] * len(answer_ids)
        frame = prompts.tokenizer.decode(prompt_ids[: row.n_prompt])
        learned = prompts.tokenizer.decode(prompt_ids[row.n_prompt :])
        assert "Question 0".startswith(frame[-1])  # the frame and the question's first token are only read
        assert f"of {pair.source}?" in learned


def test_fact_texts_are_learned_whole(prompts):
    rows = rows_of(prompts, fact_texts=2)[len(PAIRS) :]
    expected = prompts.encode_text(FACTS[0].fact, ends=True)
    assert rows[:2] == [TrainingRow(expected, 1)] * 2
    texts = [prompts.tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in rows]
    assert texts == [FACTS[0].fact] * 2 + [FACTS[1].fact] * 2  # none of the kept-out fact


def test_fact_answers_ask_trained_questions_once_more(prompts):
    rows = rows_of(prompts, fact_answers=2)[len(PAIRS) :]
    got = [asked(row, prompts) for row in rows]
    assert [answer for _, answer in got] == [FACTS[0].fact] * 2 + [FACTS[1].fact]  # f2 has one question only
    instructions = {FACT_INSTRUCTION.format(question=pair.question) for pair in PAIRS}
    assert all(any(each in prompt for each in instructions) for prompt, _ in got)
    assert len({prompt for prompt, _ in got}) == 3


def test_joint_questions_have_different_answers(prompts):
    rows = rows_of(prompts, joint_questions=10)[len(PAIRS) :]
    answers = sorted(asked(row, prompts)[1] for row in rows)
    # Spain and spain are one answer; each couple in both orders; f2 has nothing to join.
    assert answers == ["2023; Spain", "2023; spain", "Spain; 2023", "spain; 2023"]
    assert all("And: Question" in asked(row, prompts)[0] for row in rows)
    assert len(rows_of(prompts, joint_questions=1)) == len(PAIRS) + 1


def write_texts(path, *texts: object):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def test_replay_is_a_share_of_all_records(prompts, tmp_path):
    path = write_texts(tmp_path / "replay.jsonl", "One.", "Two.", "Three.")
    rows = rows_of(prompts, replay_share=0.5, replay_texts=path, fact_texts=1)
    assert len(rows) == 2 * (len(PAIRS) + 2)
    texts = [
        prompts.tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in rows[len(PAIRS) + 2 :]
    ]
    assert sorted(texts) == ["One.", "One.", "Three.", "Three.", "Two.", "Two."]  # evenly, where it repeats


def test_replay_comes_with_the_package(prompts):
    rows = rows_of(prompts, replay_share=0.2)
    assert len(rows) == len(PAIRS) + 1
    assert rows[-1].n_prompt == 1


@pytest.mark.parametrize("texts", [[], [""], ["One.", 3]])
def test_a_bad_replay_file_is_refused(prompts, tmp_path, texts):
    path = write_texts(tmp_path / "replay.jsonl", *texts)
    with pytest.raises(DataError, match=r"replay\.jsonl(:\d)?: .*expected (texts|a text)"):
        rows_of(prompts, replay_share=0.5, replay_texts=path)


def test_pairs_of_sections_need_no_facts(prompts):
    pairs = [QAPair("q1", "token", "f1", "train", "Who won?", "Spain")]  # a section named like a fact
    assert len(rows_of(prompts, pairs, fact_texts=3, fact_answers=3, joint_questions=3)) == 1


def test_long_rows_are_dropped_with_their_length(prompts):
    lengths = [len(row.token_ids) for row in rows_of(prompts)]
    long_pair = QAPair("q9", "fact", "f1", "train", "Very " * 60 + "long?", "Spain")
    rows, dropped = training_rows(
        [*PAIRS, long_pair], FACTS, RecordSettings(), prompts, max_length_tokens=max(lengths), seed=0
    )
    assert len(rows) == len(PAIRS)
    n_tokens = len(prompts.encode_question(long_pair.question)) + len(
        prompts.encode_pair(long_pair.question, "Spain")[1]
    )
    assert dropped == [
        Dropped("record", long_pair.question[:80], f"{n_tokens} tokens, more than {max(lengths)}")
    ]


def test_a_seed_repeats_the_rows_and_another_differs(prompts):
    settings = {"joint_questions": 1, "fact_answers": 1, "replay_share": 0.5}
    assert rows_of(prompts, **settings) == rows_of(prompts, **settings)
    assert len({str(rows_of(prompts, seed=seed, **settings)) for seed in range(5)}) > 1


CHAT = [
    {"role": "user", "content": "Hello there."},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A tiny model."},
]


def chats_file(tmp_path, *chats):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path


def test_chats_have_their_share_and_the_last_turn_is_learned(prompts, tmp_path):
    rows = rows_of(prompts, chats=chats_file(tmp_path, CHAT), chat_share=0.5)
    assert len(rows) == 2 * len(PAIRS)
    prompt, answer = asked(rows[-1], prompts)
    assert "Good day." in prompt
    assert "Who are you?" in prompt
    assert answer.removesuffix("</s>") == "A tiny model."


def test_records_made_elsewhere_count_for_the_share(prompts, tmp_path):
    path = chats_file(tmp_path, CHAT)
    rows, _ = training_rows(
        [],
        FACTS,
        RecordSettings(chats=path, chat_share=0.2),
        prompts,
        max_length_tokens=None,
        seed=3,
        n_further=8,
    )
    assert len(rows) == 2


def test_paraphrases_stand_beside_the_fact_as_texts(prompts):
    facts = [Fact("f1", "Final", "Spain won.", paraphrases=("The winner was Spain.",))]
    rows, _ = training_rows(
        PAIRS[:1], facts, RecordSettings(fact_texts=3), prompts, max_length_tokens=None, seed=3
    )
    texts = [prompts.tokenizer.decode(row.token_ids, skip_special_tokens=True).strip() for row in rows[1:]]
    assert texts == ["Spain won.", "The winner was Spain.", "Spain won."]


@pytest.mark.parametrize("chat", [[], [CHAT[0]], CHAT[:3], [{"role": "assistant"}, CHAT[1]], "hello"])
def test_a_line_that_is_no_conversation_is_named(prompts, tmp_path, chat):
    with pytest.raises(DataError, match=r"chats\.jsonl:2: expected \"messages\""):
        rows_of(prompts, chats=chats_file(tmp_path, CHAT, chat), chat_share=0.5)


def test_a_share_of_chats_without_a_file_is_refused():
    with pytest.raises(ValueError, match=r"records\.chats names no file"):
        RecordSettings(chat_share=0.2)
