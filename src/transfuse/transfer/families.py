"""Which matrices a model of each known family has, from its configuration alone.

A physical module (`self_attn.qkv_proj`) holds one or more logical matrices, its roles. Everything else in this room
works on roles; only here is it known how a family names and fuses them.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedConfig

from transfuse.errors import ModelError
from transfuse.transfer.architecture import AXES, ROLES, Architecture, Module, Norm, Role
from transfuse.types import Dropped

N_NAMES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class _Linear:
    name: str
    roles: tuple[Role, ...]
    bias: bool | str = False
    """A string names the configuration's switch."""
    is_interleaved: bool = False


@dataclass(frozen=True, slots=True)
class _Family:
    linears: tuple[_Linear, ...]
    norms: tuple[Norm, ...]
    root: str = "model"
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
    norm_parameters: tuple[str, ...] = ("weight",)
    is_partly_rotary: bool = False
    has_free_head_dim: bool = True
    """False where a head is always hidden / n_heads wide and every query head has keys and values of its own."""
    aliases: tuple[tuple[str, str], ...] = ()


def _separate(qkv_bias: bool | str, output_bias: bool | str, mlp_bias: bool | str) -> tuple[_Linear, ...]:
    return (
        _Linear("self_attn.q_proj", ("query",), qkv_bias),
        _Linear("self_attn.k_proj", ("key",), qkv_bias),
        _Linear("self_attn.v_proj", ("value",), qkv_bias),
        _Linear("self_attn.o_proj", ("output",), output_bias),
        _Linear("mlp.gate_proj", ("gate",), mlp_bias),
        _Linear("mlp.up_proj", ("up",), mlp_bias),
        _Linear("mlp.down_proj", ("down",), mlp_bias),
    )


_PHI3 = (
    _Linear("self_attn.qkv_proj", ("query", "key", "value")),
    _Linear("self_attn.o_proj", ("output",)),
    _Linear("mlp.gate_up_proj", ("gate", "up")),
    _Linear("mlp.down_proj", ("down",)),
)
_NEOX = (
    _Linear("attention.query_key_value", ("query", "key", "value"), "attention_bias", is_interleaved=True),
    _Linear("attention.dense", ("output",), "attention_bias"),
    _Linear("mlp.dense_h_to_4h", ("up",), True),
    _Linear("mlp.dense_4h_to_h", ("down",), True),
)

_BEFORE = (
    Norm("input_layernorm", "residual", "query", "columns"),
    Norm("post_attention_layernorm", "residual", "up", "columns"),
)
_AFTER = (
    Norm("post_attention_layernorm", "residual", "output", "rows"),
    Norm("post_feedforward_layernorm", "residual", "down", "rows"),
)
_AROUND = (
    Norm("input_layernorm", "residual", "query", "columns"),
    Norm("pre_feedforward_layernorm", "residual", "up", "columns"),
    *_AFTER,
)
_EACH_HEAD = (
    Norm("self_attn.q_norm", "head_dim", "query", "rows"),
    Norm("self_attn.k_norm", "head_dim", "key", "rows"),
)
_ALL_HEADS = (
    Norm("self_attn.q_norm", "heads", "query", "rows"),
    Norm("self_attn.k_norm", "kv", "key", "rows"),
)

_PLAIN = _separate(False, False, False)
_SWITCHED = _separate("attention_bias", "attention_bias", False)
_ALL_SWITCHED = _separate("attention_bias", "attention_bias", "mlp_bias")

FAMILIES: dict[str, _Family] = {
    "llama": _Family(_ALL_SWITCHED, _BEFORE),
    "mistral": _Family(_PLAIN, _BEFORE),
    "qwen2": _Family(_separate(True, False, False), _BEFORE),
    "qwen3": _Family(_SWITCHED, (*_BEFORE, *_EACH_HEAD)),
    "gemma": _Family(_SWITCHED, _BEFORE),
    "gemma2": _Family(_SWITCHED, _AROUND),
    "gemma3_text": _Family(_SWITCHED, (*_AROUND, *_EACH_HEAD)),
    "phi3": _Family(_PHI3, _BEFORE, is_partly_rotary=True),
    "olmo2": _Family(_SWITCHED, (*_AFTER, *_ALL_HEADS)),
    "smollm3": _Family(_ALL_SWITCHED, _BEFORE),
    "granite": _Family(_ALL_SWITCHED, _BEFORE),
    "gpt_neox": _Family(
        _NEOX,
        _BEFORE,
        root="gpt_neox",
        embedding="embed_in",
        final_norm="final_layer_norm",
        norm_parameters=("weight", "bias"),
        is_partly_rotary=True,
        has_free_head_dim=False,
        aliases=(("lm_head.", "embed_out."),),
    ),
}
"""By `model_type` of the (text) configuration."""

_COMPOSITES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "gemma3": (
        "model.language_model",
        (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
    ),
}
"""Models of text and pictures: where the text decoder lies in them, and its aliases."""


def architecture_of(config: PreTrainedConfig, module_names: Sequence[str] = ()) -> Architecture:
    """The matrices of a model, from its configuration alone.

    Args:
        config: of a causal language model, or of one that also reads pictures (its text decoder is meant).
        module_names: what the model or its files hold; only for the message about an unknown architecture.

    Returns:
        Names, roles and shapes.

    Raises:
        ModelError: the architecture is unknown.
    """
    text = config.get_text_config()
    family = FAMILIES.get(text.model_type)
    if family is None or (text is not config and config.model_type not in _COMPOSITES):
        raise ModelError(_unknown(config.model_type, module_names))
    root, aliases = family.root, family.aliases
    if text is not config:
        root, aliases = _COMPOSITES[config.model_type]
    n_heads = text.num_attention_heads
    head_dim = text.hidden_size // n_heads
    if family.has_free_head_dim:
        head_dim = getattr(text, "head_dim", None) or head_dim
    rope = getattr(text, "rope_parameters", None) or {}
    rotary_share = rope.get("partial_rotary_factor", 1.0) if family.is_partly_rotary else 1.0
    final = Norm(f"{root}.{family.final_norm}", "residual", "head", "columns")
    return Architecture(
        family=text.model_type,
        n_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        n_heads=n_heads,
        n_kv_heads=(getattr(text, "num_key_value_heads", None) if family.has_free_head_dim else None)
        or n_heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * rotary_share),
        n_neurons=text.intermediate_size,
        vocab=text.vocab_size,
        is_tied=bool(config.tie_word_embeddings),
        layers=f"{root}.layers",
        modules=tuple(_module(linear, text) for linear in family.linears),
        embedding=Module(f"{root}.{family.embedding}", ("embedding",)),
        head=Module("lm_head", ("head",)),
        norms=tuple(vector for norm in family.norms for vector in _vectors(norm, family)),
        final_norms=_vectors(final, family),
        aliases=aliases,
    )


def _module(linear: _Linear, config: PreTrainedConfig) -> Module:
    bias = bool(getattr(config, linear.bias)) if isinstance(linear.bias, str) else linear.bias
    return Module(linear.name, linear.roles, bias, linear.is_interleaved)


def _vectors(norm: Norm, family: _Family) -> tuple[Norm, ...]:
    return tuple(
        Norm(f"{norm.name}.{parameter}", norm.axis, norm.beside, norm.side)
        for parameter in family.norm_parameters
    )


def _unknown(model_type: str, module_names: Sequence[str]) -> str:
    patterns = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in module_names))
    found = ""
    if patterns:
        more = f", ... ({len(patterns)} in all)" if len(patterns) > N_NAMES_SHOWN else ""
        found = f" Its modules: {', '.join(patterns[:N_NAMES_SHOWN])}{more}."
    return (
        f"model type {model_type!r}: expected a known family ({', '.join(FAMILIES)}).{found} "
        "Choose a model of one of them."
    )


class Fit(NamedTuple):
    """Which roles can be carried from a teacher into a student."""

    roles: tuple[Role, ...]
    """Those that both have, in the order of `ROLES`."""
    left_out: list[Dropped]
    """Those that one of them lacks, and which."""


def refuse_misfits(teacher: Architecture, student: Architecture, roles: Collection[Role]) -> Fit:
    """Refuse a teacher with a smaller matrix than the student's; leave out what only one of them has.

    Rows of embedding and head are matched by token, so that only their columns must suffice.

    Args:
        teacher: gives the blocks.
        student: takes them.
        roles: those that are wanted.

    Returns:
        The roles that can be carried, and those left out.

    Raises:
        ModelError: some matrices of the teacher are too small (all are listed, with both shapes), or no role is left.
    """
    wanted: list[Role] = [role for role in ROLES if role in roles]
    left_out = [
        Dropped("role", role, reason)
        for role in wanted
        if (reason := _lack(teacher, student, role)) is not None
    ]
    lacking = {gone.what for gone in left_out}
    kept: tuple[Role, ...] = tuple(role for role in wanted if role not in lacking)
    misfits = []
    for role in kept:
        ours, theirs = teacher.shape(role), student.shape(role)
        is_matched = AXES[role][0] == "vocab"
        if ours[1] < theirs[1] or (ours[0] < theirs[0] and not is_matched):
            misfits.append(f"{role} ({teacher.module_of(role).name}) is {ours}, the student's is {theirs}")
    if misfits:
        raise ModelError(
            f"expected a teacher ({teacher.family}) no smaller than the student ({student.family}) in any dimension; "
            f"in the teacher {'; '.join(misfits)}. Choose other modules, or another pair of models."
        )
    if not kept:
        raise ModelError(
            f"none of the wanted matrices is in both models: {'; '.join(f'{d.what}: {d.reason}' for d in left_out)}. "
            "Choose other modules, or another pair of models."
        )
    return Fit(kept, left_out)


def _lack(teacher: Architecture, student: Architecture, role: Role) -> str | None:
    if role == "head" and student.is_tied:
        return "the student's head is its embedding (tied), which is carried as embedding"
    # A tied teacher's embedding is also its head, and can become the head of an untied student.
    if role not in teacher.roles and role != "head":
        return f"the teacher ({teacher.family}) has no such matrix"
    return None if role in student.roles else f"the student ({student.family}) has no such matrix"
