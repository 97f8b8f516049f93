"""What a transfer will take: parameter counts are exact, the rest follows from them by hand."""

import dataclasses

import pytest

from transfuse.errors import ModelError
from transfuse.recipes.transfer_figures import (
    BYTES_A_WEIGHT,
    RUNTIME_BYTES,
    Rates,
    activation_bytes,
    auto_engine,
    parameter_counts,
    transfer_plan,
)
from transfuse.transfer.families import architecture_of

RATES = Rates(flops_per_s=1e9, memory_bytes_per_s=1e9, disk_bytes_per_s=1e9)
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(**{**SMALL, "tie_word_embeddings": False, "dtype": "bfloat16", **changes})


def tiny_models():
    from transformers import (
        Gemma3TextConfig,
        GPTNeoXConfig,
        LlamaConfig,
        Phi3Config,
        Qwen2Config,
    )

    neox = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
    return {
        "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
        "llama tied, biases": LlamaConfig(
            **SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
        ),
        "qwen2, biases": Qwen2Config(**SMALL, tie_word_embeddings=False),
        "gemma3, head norms": Gemma3TextConfig(**SMALL, head_dim=8),
        "phi3, fused": Phi3Config(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        "neox, fused": GPTNeoXConfig(**neox),
    }


NAMES = (
    "llama",
    "llama tied, biases",
    "qwen2, biases",
    "gemma3, head norms",
    "phi3, fused",
    "neox, fused",
)


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_model_itself(name: str) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_models()[name]
    model = AutoModelForCausalLM.from_config(config)
    architecture = architecture_of(config)
    counts = parameter_counts(architecture)
    assert counts.total == model.num_parameters()
    one = [p.numel() for n, p in model.named_parameters() if n.startswith(f"{architecture.layers}.0.")]
    assert counts.layer == sum(one)
    assert counts.outside == model.num_parameters() - 3 * sum(one)


def llama3(hidden: int, neurons: int, layers: int, heads: int):
    return llama(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
    )


def test_figures_of_a_70b_teacher_and_an_8b_student_worked_by_hand() -> None:
    figures = transfer_plan(
        llama3(8192, 28672, 80, 64), llama3(4096, 14336, 32, 32), RATES, free_bytes=24 * 2**30
    )
    assert (figures.teacher.total, figures.student.total) == (70_553_706_496, 8_030_261_248)
    # A layer: q and o 8192 x 8192, k and v 1024 x 8192, three of 28672 x 8192, two norms.
    assert figures.teacher.layer == 2 * 8192**2 + 2 * 1024 * 8192 + 3 * 28672 * 8192 + 2 * 8192
    assert figures.teacher.multiplied == 70_553_706_496 - 128256 * 8192 - 161 * 8192
    assert figures.teacher_bytes == 141_107_412_992
    assert figures.engine == "stream"
    # Layers and head twice; of the embedding all once, and before only the rows of the samples' tokens.
    assert figures.weights_read_bytes == 2 * (
        2 * (80 * figures.teacher.layer + 128256 * 8192) + 128256 * 8192
    )
    assert figures.weights_read_bytes < 2 * figures.teacher_bytes
    group = 32 * 256 * 8192 * 4
    assert figures.spill_bytes == group * 83
    assert figures.disk_bytes == figures.weights_read_bytes + 5 * 81 * group
    # Rank 16: rows + columns of q and o, k and v, gate, up and down; of embedding and head.
    in_layer = 16 * (2 * (4096 + 4096) + 2 * (1024 + 4096) + 3 * (14336 + 4096))
    outside = 16 * 2 * (128256 + 4096)
    assert figures.adapter_bytes == 4 * (32 * in_layer + outside)
    assert figures.kept_bytes == 4 * (80 * in_layer + outside)
    student_matrices = 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    svd = 80 * 2 * 6 * student_matrices * 26
    assert figures.extraction_flops == 2 * 8192 * figures.teacher.multiplied * 4 + svd
    assert figures.extraction_s == pytest.approx(
        (figures.extraction_flops + 4 * 70_553_706_496 * (32 + 8) + figures.disk_bytes) / 1e9
    )
    layer = 8 * (figures.teacher.layer + 28672 * 8192) + 4096 * 4 * (8 * 8192 + 3 * 9216 + 4 * 28672)
    ends = 128256 * 8192 * (2 * 2 + 8) + 3 * 2**28
    assert figures.stream_peak_bytes == RUNTIME_BYTES + max(layer, ends)


def test_a_7b_teacher_of_short_samples_streams_within_8_gib_and_reads_weights_twice() -> None:
    wide = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    teacher = llama(vocab_size=32000, num_hidden_layers=32, num_key_value_heads=32, **wide)
    student = llama(
        vocab_size=32000,
        num_hidden_layers=26,
        hidden_size=3200,
        intermediate_size=8640,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    figures = transfer_plan(teacher, student, RATES, sample_tokens=64, free_bytes=23 * 2**30)
    assert figures.teacher.total == 6_738_415_616
    assert figures.engine == "stream"
    assert 2 * 2**30 < figures.stream_peak_bytes < 8 * 2**30 < figures.memory_peak_bytes
    in_memory = transfer_plan(teacher, student, RATES, sample_tokens=64, engine="memory")
    assert (in_memory.spill_bytes, in_memory.disk_bytes) == (0, in_memory.teacher_bytes)
    assert in_memory.extraction_flops < figures.extraction_flops


def test_training_counts_each_arms_sweep_and_seeds() -> None:
    config, smaller = llama(), llama(num_hidden_layers=2, hidden_size=8, intermediate_size=12)
    figures = transfer_plan(
        config, smaller, RATES, rank=2, n_train_tokens=1000, n_arms=5, n_learning_rates=3, n_seeds=3
    )
    assert figures.n_runs == 5 * 5  # the best of three rates is the first seed's run, and two seeds more
    # Head dimension 2: q and o 8 x 8, k and v 4 x 8, gate, up and down of 12 x 8; embedding and head 40 x 8.
    adapter = 2 * 2 * (2 * 16 + 2 * 12 + 3 * 20) + 2 * 2 * 48
    multiplied = 2 * (2 * 64 + 2 * 32 + 3 * 96) + 320
    assert figures.student.multiplied == multiplied
    assert figures.adapter_bytes == 4 * adapter
    assert figures.run_flops == 1000 * (4 * multiplied + 6 * adapter)
    assert figures.training_s == pytest.approx(25 * figures.run_flops / 1e9)
    untrained = transfer_plan(config, smaller, RATES, rank=2)
    assert (untrained.n_runs, untrained.training_s) == (0, 0)


def test_a_tied_student_takes_no_embedding_and_ranks_stop_at_the_smaller_side() -> None:
    student = llama(tie_word_embeddings=True, num_hidden_layers=1)
    figures = transfer_plan(llama(), student, RATES, rank=1000)
    assert figures.adapter_bytes == 4 * (16 * 2 * 32 + 8 * 2 * 24 + 16 * 3 * 40)


def test_auto_takes_memory_while_a_fifth_stays_free() -> None:
    n = 1_000_000
    needed = n * BYTES_A_WEIGHT + 5_000
    assert auto_engine(n, int(needed / 0.79), 5_000) == "memory"
    assert auto_engine(n, int(needed / 0.81), 5_000) == "stream"
    assert auto_engine(n, int(needed / 0.79)) == "stream"  # unknown activations are reckoned with
    assert auto_engine(n, None) == "memory"


def test_activations_grow_with_tokens_and_layers_and_decide_the_engine() -> None:
    architecture = architecture_of(llama())
    # A token, a layer: 8 of hidden 16, 3 of heads 16 and kv 8, 4 of 24 neurons; and logits twice.
    assert activation_bytes(architecture, 10) == 10 * (3 * 4 * (128 + 72 + 96) + 2 * 4 * 40)
    free = 10 * parameter_counts(architecture).total + 400_000
    few, many = (transfer_plan(llama(), llama(), RATES, sample_tokens=n, free_bytes=free) for n in (1, 4))
    assert (few.engine, many.engine) == ("memory", "stream")


def test_only_the_roles_asked_for_are_counted() -> None:
    figures = transfer_plan(llama(), llama(), RATES, rank=2, roles=["query", "output"])
    assert figures.adapter_bytes == 4 * 3 * 2 * 2 * 32


def test_more_samples_take_more_and_a_faster_machine_less() -> None:
    one = transfer_plan(llama(), llama(), RATES, engine="stream")
    two = transfer_plan(llama(), llama(), RATES, engine="stream", n_samples=64)
    assert two.spill_bytes == 2 * one.spill_bytes
    assert two.weights_read_bytes == one.weights_read_bytes
    fast = transfer_plan(llama(), llama(), Rates(2e9, 2e9, 2e9), engine="stream")
    assert fast.extraction_s == pytest.approx(one.extraction_s / 2)
    assert dataclasses.replace(fast, extraction_s=one.extraction_s) == one


def test_a_teacher_smaller_than_the_student_is_refused_with_both_shapes() -> None:
    with pytest.raises(ModelError, match=r"down .*\(16, 24\), the student's is \(16, 48\)"):
        transfer_plan(llama(), llama(intermediate_size=48), RATES)
