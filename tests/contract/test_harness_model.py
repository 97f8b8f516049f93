"""Our engine under lm-evaluation-harness gives the scores of the harness's own `hf` model."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tiny_families import random_model, tiny_config
from transfuse.evaluate.harness_model import TransfuseLM
from transfuse.evaluate.request_store import RequestStore
from transfuse.io.bundled import is_fetched
from transfuse.io.models import load_model
from transfuse.train.adapters import attach_lora
from transfuse.train.settings import LoraSettings

pytest.importorskip("lm_eval")

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "olmo2", "granite"]
WINDOWED = {"mistral": 24, "gemma2": 24, "gemma3_text": 24}

SHOTS = (
    "Question: Which country won the cup? Answer: Spain won the cup.\n\n"
    "Question: Where was the final played? Answer: The final was played in Sydney.\n\n"
)
QUESTIONS = ["Which team scored one goal?", "Who lifted the trophy?", "When was the final played?", "Why?"]
ENDINGS = [" Spain", " The captain lifted the trophy.", " The captain", " in August, the first half"]


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair_of(make_tokenizer) -> Callable:
    """`pair_of(family)`: the harness's model and ours around one random model."""
    made: dict[str, Any] = {}

    def make(family: str, **settings: Any) -> tuple[Any, Any]:
        key = f"{family} {settings}"
        if key not in made:
            logging.getLogger("lm_eval").setLevel(logging.ERROR)
            tokenizer = make_tokenizer(chat_template=None) if "gemma" in family else make_tokenizer()
            window = {"sliding_window": WINDOWED[family]} if family in WINDOWED else {}
            sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "eos_token_id": 1}
            config = tiny_config(family, **{**sizes, **window, **settings})
            model = random_model(config)
            theirs = harness_own(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=96)
            ours = TransfuseLM(
                model, tokenizer, compute_dtype=torch.float32, identity=key, max_batch_rows=5, max_length=96
            )
            made[key] = theirs, ours
        return made[key]

    return make


def harness_own(**settings: Any) -> Any:
    from lm_eval.models import huggingface

    made: Any = huggingface.HFLM
    return made(**settings)


def contexts() -> list[str]:
    return [f"{SHOTS}Question: {question} Answer:" for question in QUESTIONS]


def assert_equal_scores(theirs: Any, ours: Any, requests: list[Any]) -> None:
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4)
    assert [best for _, best in found] == [best for _, best in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_are_the_harness_ones(pair_of, family):
    theirs, ours = pair_of(family)
    contexts = [f"{SHOTS}Question: {question} Answer:" for question in QUESTIONS]
    requests = [instance("loglikelihood", context, end) for context in contexts for end in ENDINGS]
    requests += [
        instance("loglikelihood", context, f" {letter}") for context in contexts for letter in "ABCD"
    ]
    requests += [instance("loglikelihood", QUESTIONS[0], end) for end in ENDINGS]
    requests += [instance("loglikelihood", "", "The final"), instance("loglikelihood", "Sydney ", "won")]
    assert_equal_scores(theirs, ours, requests)
    assert ours.notes == []
    assert ours.tried.keeps_stems([1], 96)
    assert ours.tried.reads_trees([1], 20)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_whole_texts_cost_what_they_cost_the_harness(pair_of, family):
    theirs, ours = pair_of(family)
    texts = [*QUESTIONS, SHOTS * 3, "The final"]
    requests = [instance("loglikelihood_rolling", text) for text in texts]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_the_harness_ones(pair_of, family):
    theirs, ours = pair_of(family)
    prompts = [*contexts(), *QUESTIONS, "The", SHOTS * 2]
    for settings in (
        {"until": ["\n", "e"], "max_gen_toks": 12},
        {"until": [" the", "qx"], "max_gen_toks": 7, "temperature": 0.0},
        {"max_gen_toks": 20, "do_sample": False},
    ):
        requests = [instance("generate_until", prompt, settings) for prompt in prompts]
        expected = [theirs.generate_until([request], disable_tqdm=True)[0] for request in requests]
        assert ours.generate_until(requests) == expected
        assert len(set(expected)) > 3
    assert ours.notes == []


def test_settings_beyond_greedy_search_go_through_transformers(pair_of):
    theirs, ours = pair_of("llama", initializer_range=0.5)
    for settings in (
        {"until": ["e"], "max_gen_toks": 12, "no_repeat_ngram_size": 2},
        {"until": ["e"], "max_gen_toks": 6, "num_beams": 2},
    ):
        requests = [instance("generate_until", prompt, settings) for prompt in contexts()]
        expected = [theirs.generate_until([request], disable_tqdm=True)[0] for request in requests]
        assert ours.generate_until(requests) == expected
    drawn = {"until": ["e"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    assert len(ours.generate_until([instance("generate_until", "The", drawn)] * 2)) == 2
    assert [note.split(": ")[1] for note in ours.notes] == [
        "it is asked for no_repeat_ngram_size",
        "it is asked for num_beams",
        "the task draws its answers",
    ]


def test_a_models_own_repetition_penalty_counts(pair_of):
    theirs, ours = pair_of("qwen3")
    requests = [
        instance("generate_until", prompt, {"until": ["\n"], "max_gen_toks": 16}) for prompt in contexts()
    ]
    plain = ours.generate_until(requests)
    theirs.model.generation_config.repetition_penalty = 1.7
    try:
        expected = [theirs.generate_until([request], disable_tqdm=True)[0] for request in requests]
        assert ours.generate_until(requests) == expected != plain
    finally:
        theirs.model.generation_config.repetition_penalty = None


def test_prompts_with_bos_and_chat_templates_are_those_of_the_harness(pair_of):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[0]}]
    theirs, ours = pair_of("llama")
    for is_prompt in (True, False):
        own = turns if is_prompt else [*turns, {"role": "assistant", "content": "Spain"}]
        expected = theirs.apply_chat_template(own, add_generation_prompt=is_prompt)
        assert ours.apply_chat_template(own, add_generation_prompt=is_prompt) == expected
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.tokenizer_name == theirs.tokenizer_name
    theirs, ours = pair_of("gemma3_text")  # its tokenizer begins texts with BOS
    for text in ("The final", "<s>The final", " the"):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.prompt_ids(text) == theirs.tok_batch_encode([text])[0][0].tolist()
    assert ours.tok_encode("The final")[0] == ours.prefix_token_id == theirs.prefix_token_id


def test_an_adapter_counts(make_tokenizer):
    tokenizer = make_tokenizer()
    model = attach_lora(random_model(tiny_config("llama", vocab_size=len(tokenizer))), LoraSettings())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.1)
    requests = [instance("loglikelihood", question, end) for question in QUESTIONS for end in ENDINGS]
    bare = TransfuseLM(random_model(tiny_config("llama", vocab_size=len(tokenizer))), tokenizer, **ANY)
    adapted: Any = TransfuseLM(model, tokenizer, **ANY)
    assert_equal_scores(harness_own(pretrained=model, tokenizer=tokenizer, batch_size=4), adapted, requests)
    assert adapted.loglikelihood(requests, disable_tqdm=True) != bare.loglikelihood(
        requests, disable_tqdm=True
    )
    assert adapted.notes == []


ANY: dict[str, Any] = {"compute_dtype": torch.float32, "identity": "any"}


class _Averaged(nn.Module):
    """Two models as one, which keeps nothing between passes and whose head cannot be reached."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.config = first, second, first.config

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = [model(input_ids=input_ids).logits.log_softmax(-1) for model in (self.first, self.second)]
        return type("Output", (), {"logits": torch.stack(logits).logsumexp(0)})


@torch.no_grad()
def test_a_module_without_keys_and_values_is_run_plainly(make_tokenizer):
    tokenizer = make_tokenizer()
    config = tiny_config("llama", vocab_size=len(tokenizer))
    models = [random_model(config, seed) for seed in (0, 1)]
    ours: Any = TransfuseLM(_Averaged(*models), tokenizer, **ANY)
    requests = [instance("loglikelihood", question, end) for question in QUESTIONS for end in ENDINGS]
    found = ours.loglikelihood(requests, disable_tqdm=True)
    for (log_prob, _), request in zip(found, requests, strict=True):
        context, own = ours._encode_pair(*request.args)
        probs = [model(torch.tensor([context + own])).logits[0].softmax(-1) for model in models]
        mean = torch.stack(probs).mean(0)[range(len(context) - 1, len(context + own) - 1), own]
        assert log_prob == pytest.approx(float(mean.log().sum()), abs=1e-4)
    (answer,) = ours.generate_until([instance("generate_until", "The", {"until": ["qx"], "max_gen_toks": 5})])
    ids = ours.tok_encode("The")
    for _ in range(5):
        ids.append(int(ours.tried.model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert answer == tokenizer.decode(ids[-5:], skip_special_tokens=True)
    assert [note.split(":")[0] for note in ours.notes] == [
        "the output head runs at every position",
        "common beginnings are read with every row",
        "endings of one context are read one by one",
    ]


def test_a_killed_evaluation_goes_on_with_the_next_item(pair_of, tmp_path):
    _, plain = pair_of("llama")
    requests = [instance("loglikelihood", context, end) for context in contexts() for end in ENDINGS]
    expected = plain.loglikelihood(requests, disable_tqdm=True)
    heard: list[tuple[int, int]] = []

    def kill_late(n_done: int, n_all: int) -> None:
        heard.append((n_done, n_all))
        if n_done >= n_all // 2:
            raise KeyboardInterrupt

    settings = {**ANY, "max_batch_rows": 4, "max_length": 96}
    with RequestStore(tmp_path / "answers.sqlite") as store:
        one = TransfuseLM(
            plain.tried.model.model, plain.tokenizer, store=store, on_requests=kill_late, **settings
        )
        with pytest.raises(KeyboardInterrupt):
            one.loglikelihood(requests, disable_tqdm=True)
        n_kept = len(store)
        assert len(requests) > n_kept >= len(requests) // 2
        heard.clear()
        two = TransfuseLM(
            plain.tried.model.model,
            plain.tokenizer,
            store=store,
            on_requests=lambda *n: heard.append(n),
            **settings,
        )
        found = two.loglikelihood(requests, disable_tqdm=True)
        assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4)
        assert heard[0] == (n_kept, len(requests))
        assert heard[-1] == (len(requests), len(requests))
        heard.clear()
        assert two.loglikelihood(requests, disable_tqdm=True) == found
        assert heard == [(len(requests), len(requests))]
        other = TransfuseLM(
            plain.tried.model.model,
            plain.tokenizer,
            store=store,
            on_requests=kill_late,
            **{**settings, "identity": "b"},
        )
        with pytest.raises(KeyboardInterrupt):
            other.loglikelihood(requests, disable_tqdm=True)


BUNDLED = "smollm2-135m"
SUMS = (
    "Question: A ferry takes 12 cars. How many cars do 3 ferries take? Answer: 3 ferries take 3 * 12 = 36 cars. "
    "#### 36\n\n"
    "Question: Ann had 9 pears and ate 2. How many are left? Answer: 9 - 2 = 7 pears are left. #### 7\n\n"
    "Question: A book costs 8 pounds and a pen 3. What do two books and a pen cost? Answer: Two books cost "
    "2 * 8 = 16 pounds. With the pen it is 16 + 3 = 19 pounds. #### 19\n\n"
)
ASKED = [
    "Tom reads 15 pages a day. How many pages does he read in 4 days?",
    "There are 20 eggs. A cook uses 6. How many eggs are left?",
    "A box holds 6 cups. How many cups do 7 boxes hold?",
]
CHOICES = (
    "The following are multiple choice questions (with answers) about geography.\n\n"
    "Which is the longest river in Africa?\nA. Congo\nB. Nile\nC. Niger\nD. Zambezi\nAnswer: B\n\n"
    "Which country has the city of Lyon?\nA. France\nB. Spain\nC. Italy\nD. Austria\nAnswer: A\n\n"
)


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    loaded = load_model(BUNDLED, device="cpu", precision="float32")
    theirs = harness_own(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=8)
    return theirs, TransfuseLM(
        loaded.model, loaded.tokenizer, compute_dtype=torch.float32, identity="bundled"
    )


needs_bundled = pytest.mark.skipif(
    not is_fetched(BUNDLED), reason=f"not fetched; run `transfuse models get {BUNDLED}`"
)


@pytest.mark.bundled
@needs_bundled
def test_choices_of_the_bundled_model(bundled):
    theirs, ours = bundled
    asked = (
        "Where is Oslo?\nA. Norway\nB. Chile\nC. Fiji\nD. Peru",
        "Which is wet?\nA. sand\nB. sea\nC. ash\nD. air",
    )
    contexts = [f"{CHOICES}{each}\nAnswer:" for each in asked]
    requests = [instance("loglikelihood", context, f" {letter}") for context in contexts for letter in "ABCD"]
    endings = (" fell asleep.", " a large red ball, and it was hers.", " ate the moon.", " fell")
    requests += [instance("loglikelihood", "The child was tired and", ending) for ending in endings]
    assert_equal_scores(theirs, ours, requests)


@pytest.mark.bundled
@needs_bundled
def test_few_shot_answers_of_the_bundled_model(bundled):
    theirs, ours = bundled
    settings = {"until": ["Question:", "</s>", "\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = [instance("generate_until", f"{SUMS}Question: {each} Answer:", settings) for each in ASKED]
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests) == expected
    assert any("####" in answer for answer in expected)
    rolling = [instance("loglikelihood_rolling", each) for each in ASKED]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-4
    )
    assert ours.notes == []
    assert ours.tried.grows([1], 9)
