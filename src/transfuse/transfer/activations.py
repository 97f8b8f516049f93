"""What two models with different tokenizers compute at the same places of the same texts."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from transfuse.errors import ModelError
from transfuse.types import Dropped


class Tap(NamedTuple):
    """A place in a model where activations are read."""

    module: str
    """Full name."""
    side: Literal["input", "output"]


class PairedText(NamedTuple):
    """One text as both models read it."""

    teacher_ids: list[int]
    student_ids: list[int]
    teacher_positions: list[int]
    """Indices into `teacher_ids` at which the same text has been read as at the student's, one by one."""
    student_positions: list[int]


class Calibration(NamedTuple):
    """Texts on which two models are compared."""

    texts: list[PairedText]
    n_cut: int
    """Texts of which only the beginning is read."""
    dropped: list[Dropped]
    """Texts without a single pair."""

    @property
    def n_positions(self) -> int:
        """Paired positions of all texts."""
        return sum(len(text.teacher_positions) for text in self.texts)


class _Encoded(NamedTuple):
    ids: list[int]
    n_own: int
    """Tokens of the text itself."""
    ends: dict[int, int]
    """Characters read to index among the text's own tokens."""
    is_cut: bool


class _Encoder:
    """A tokenizer without what is put around a text, and with offsets that are not trimmed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, who: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"tokenizer of the {who} ({tokenizer.name_or_path!r}): expected a fast one, which says where each "
                f"token stands in the text, got {type(tokenizer).__name__}; load it with `use_fast=True`."
            )
        # Post-processors may trim spaces off the offsets: then a token that reads a space seems to end before it.
        state = json.loads(backend.to_str()) | {"post_processor": None, "truncation": None, "padding": None}
        self.pieces = json.dumps(state, sort_keys=True)
        self._tokenizer = Tokenizer.from_str(self.pieces)
        first = list(tokenizer("a")["input_ids"])[:1]
        self.bos_ids = first if first and first[0] == tokenizer.bos_token_id else []

    def encode(self, text: str, max_tokens: int) -> _Encoded:
        """The text's first tokens, as many as fit."""
        encoding: Any = self._tokenizer.encode(text, add_special_tokens=False)
        room = max(0, max_tokens - len(self.bos_ids))
        ends = {end: n for end, n in clean_ends(encoding.offsets).items() if n < room}
        kept = list(encoding.ids[:room])
        return _Encoded(self.bos_ids + kept, len(kept), ends, len(encoding.ids) > room)


def clean_ends(offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The tokens after which a model has read whole characters only.

    A token that ends within a character has that character's end as its own (its offsets are those of characters),
    and so has the next one; the overlap gives it away.

    Args:
        offsets: first character of each token, and the one after its last; not trimmed.

    Returns:
        Number of characters read to the token's index. Tokens that stand for no text are left out.
    """
    shown = [(n, start, end) for n, (start, end) in enumerate(offsets) if end > start]
    next_starts = [*(start for _, start, _ in shown[1:]), math.inf]
    return {end: n for (n, _, end), after in zip(shown, next_starts, strict=False) if after >= end}


def pair_texts(
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_tokens: int,
) -> Calibration:
    """The positions of each text at which teacher and student have read exactly the same.

    A causal model's state at a token depends on what it has read so far. Where tokens of both tokenizers end at the
    same character, and not within one, that is the same text, however it was cut. The very first token that a model
    reads is never paired: there decoders park attention that they have no use for, in states of far greater norm than
    any other, which would decide every fit.

    Args:
        teacher_tokenizer: a fast one.
        student_tokenizer: a fast one; where both are the same, every position is paired.
        texts: plain texts, rendered by no template.
        max_tokens: of each text and model, beginning-of-sequence token included; what follows is not read.

    Returns:
        Token ids and pairs of each text. Special tokens before the text are read, and never paired.

    Raises:
        ModelError: a tokenizer is not a fast one.
    """
    teacher, student = _Encoder(teacher_tokenizer, "teacher"), _Encoder(student_tokenizer, "student")
    is_same = teacher.pieces == student.pieces
    paired: list[PairedText] = []
    dropped: list[Dropped] = []
    n_cut = 0
    for text in texts:
        ours, theirs = teacher.encode(text, max_tokens), student.encode(text, max_tokens)
        n_cut += ours.is_cut or theirs.is_cut
        if is_same:
            pairs = [(n, n) for n in range(min(ours.n_own, theirs.n_own))]
        else:
            pairs = [
                (ours.ends[end], theirs.ends[end]) for end in sorted(ours.ends.keys() & theirs.ends.keys())
            ]
        places = [(len(teacher.bos_ids) + n, len(student.bos_ids) + m) for n, m in pairs]
        places = [place for place in places if min(place)]
        if not places:
            dropped.append(
                Dropped(
                    "text",
                    text[:60],
                    "after its first token, no tokens of both models end at the same character",
                )
            )
            continue
        paired.append(PairedText(ours.ids, theirs.ids, [n for n, _ in places], [m for _, m in places]))
    return Calibration(paired, n_cut, dropped)


def read_activations(
    model: PreTrainedModel, token_ids: Sequence[int], positions: Sequence[int], taps: Sequence[Tap]
) -> dict[Tap, Float[Tensor, "pos width"]]:
    """Inputs and outputs of named modules at some positions of one text.

    The head is not run. Activations of a half-precision model come in float32.

    Args:
        model: in evaluation mode.
        token_ids: what it reads.
        positions: indices into `token_ids`.
        taps: where to read.

    Returns:
        One row a position, for each tap, on the model's device.

    Raises:
        ModelError: the model has no such module, or a module was not run.
    """
    device = next(model.parameters()).device
    at = torch.tensor(list(positions), dtype=torch.long, device=device)
    with _tapped(model, taps, at) as read, torch.no_grad():
        model.base_model(input_ids=torch.tensor([list(token_ids)], device=device), use_cache=False)
    missing = [tap.module for tap in taps if tap not in read]
    if missing:
        raise ModelError(f"module {missing[0]!r}: expected the model to run it on a text, but it did not.")
    return read


@contextmanager
def _tapped(model: PreTrainedModel, taps: Sequence[Tap], positions: Tensor) -> Iterator[dict[Tap, Tensor]]:
    read: dict[Tap, Tensor] = {}

    def keep(tap: Tap, value: Any) -> None:
        states: Tensor = value[0] if isinstance(value, tuple) else value
        rows = states[0, positions]
        read[tap] = rows if rows.dtype == torch.float64 else rows.float()

    def keep_input(tap: Tap, _: nn.Module, given: Any) -> None:
        keep(tap, given)

    def keep_output(tap: Tap, _: nn.Module, __: Any, result: Any) -> None:
        keep(tap, result)

    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            try:
                module = model.get_submodule(tap.module)
            except AttributeError as err:
                raise ModelError(
                    f"expected a module {tap.module!r} in {type(model).__name__}: {err}."
                ) from err
            if tap.side == "input":
                handles.append(module.register_forward_pre_hook(partial(keep_input, tap)))
            else:
                handles.append(module.register_forward_hook(partial(keep_output, tap)))
        yield read
    finally:
        for handle in handles:
            handle.remove()
