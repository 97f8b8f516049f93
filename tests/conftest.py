"""Tiny models and tokenizers, built in memory; heavy imports stay inside the fixtures."""

from collections.abc import Callable
from pathlib import Path

import pytest

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a tiny model.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CORPUS = (
    "Which country won the cup in 2023? Spain won the cup for the first time.",
    "Question: Where was the final played? Answer: The final was played in Sydney, on 20 August.",
    "You are a helpful model. The user asks a question and the assistant answers it.",
    "The team scored one goal in the first half, and the captain lifted the trophy.",
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable:
    """`make_tokenizer(chat_template=CHATML | None, vocab_size=300)`: a byte-level BPE, trained here.

    With a template its tokens are ChatML's and no BOS is added; without one `<s>` begins, `</s>` ends a text.
    """

    def make(chat_template: str | None = CHATML, vocab_size: int = 300):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        bos, eos = ("<|im_start|>", "<|im_end|>") if chat_template else ("<s>", "</s>")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[bos, eos],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        if not chat_template:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 0)]
            )
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
        wrapped.chat_template = chat_template
        return wrapped

    return make


@pytest.fixture(scope="session")
def make_model_folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable) -> Callable:
    """`make_model_folder(name, chat_template=..., seed=0, **config)`: a saved random Llama and tokenizer.

    Keyword arguments beyond the first ones overwrite the Llama configuration.
    """

    def make(
        name: str, chat_template: str | None = CHATML, vocab_size: int = 300, seed: int = 0, **config: object
    ) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = make_tokenizer(chat_template, vocab_size)
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
        folder = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(make_model_folder: Callable) -> Path:
    """A 2-layer random chat Llama (ChatML, default system prompt). Shared: do not write into it."""
    return make_model_folder("tiny-chat")


@pytest.fixture(scope="session")
def tiny_base_folder(make_model_folder: Callable) -> Path:
    """A 2-layer random base Llama: no chat template, BOS added. Shared: do not write into it."""
    return make_model_folder("tiny-base", chat_template=None)
