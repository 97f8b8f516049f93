"""What a source's cached distributions say at a target's states: aligned by bytes, mapped to its vocabulary."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from transfuse.fuse.vocabulary_map import VocabularyMap
from transfuse.io.distribution_cache import TextDistributions
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import TokenSpans
from transfuse.tensors.fusion_rules import MappedStates
from transfuse.tensors.mapped_distributions import Duplicates, map_distributions
from transfuse.tensors.min_edit_alignment import min_edit_alignment
from transfuse.tensors.token_alignment import align_states

AlignKind = Literal["exact", "min-edit"]


class Aligned(NamedTuple):
    """Which state of a source stands for each state of the target."""

    source_state: Int[np.ndarray, " states"]
    """Some state of the source where `is_taught` is false."""
    is_taught: Bool[np.ndarray, " states"]


def plain_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A vocabulary as text without blanks and their marks, by id; control tokens by their names."""
    names = {index: name for name, index in tokenizer.get_vocab().items()}
    pieces = token_bytes(tokenizer)
    return [
        names.get(index, "") if piece is None else piece.decode(errors="surrogateescape").replace(" ", "")
        for index, piece in enumerate(pieces)
    ]


def align_exactly(source: TextDistributions, target: TokenSpans, *, needs_one_to_one: bool) -> Aligned:
    """States that have read the same bytes.

    Args:
        source: of the same text.
        target: the target's tokens.
        needs_one_to_one: whether the next tokens of both have to cover the same bytes as well. A map of whole tokens
            needs it: where the source would say `123` and the target `1`, `2`, `3`, its token has no counterpart.

    Returns:
        The alignment; the last state, which predicts nothing, is not taught.
    """
    found = align_states(source.ends, target.ends)
    is_taught = found.is_one_to_one if needs_one_to_one else found.source_state >= 0
    is_taught = is_taught & (found.source_state < len(source.ends) - 1)
    is_taught[-1:] = False
    return Aligned(np.where(is_taught, found.source_state, 0), is_taught)


def align_by_edits(
    source: TextDistributions | TokenSpans,
    target: TokenSpans,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    vocabulary: VocabularyMap,
) -> Aligned:
    """The paper's alignment: of least edit distance, and only where two tokens stand for one another.

    Args:
        source: of the same text.
        target: the target's tokens.
        source_tokens: the source's vocabulary as text without marks of white space, by id.
        target_tokens: the target's.
        vocabulary: which target token stands for a source token.

    Returns:
        The alignment. A state is taught where its own token (not the next one) has exactly one source token, and that
        one is mapped to it.

    Source:
        Wan et al. 2024, arXiv:2401.10491, section 3.3.
    """
    found = min_edit_alignment(
        [source_tokens[int(token)] for token in source.token_ids],
        [target_tokens[int(token)] for token in target.token_ids],
    )
    first = found.source_start
    is_taught = found.is_single & (vocabulary.target_ids[source.token_ids[first]] == target.token_ids)
    is_taught = is_taught & (first < len(source.token_ids) - 1)
    is_taught[-1:] = False
    return Aligned(np.where(is_taught, first, 0), is_taught)


def source_states(
    source: TextDistributions,
    aligned: Aligned,
    vocabulary: VocabularyMap,
    *,
    renormalises: bool,
    duplicates: Duplicates = "add",
) -> MappedStates:
    """The source's distributions at the target's states, in the target's vocabulary.

    Args:
        source: with kept tokens.
        aligned: which of its states stands for which of the target's.
        vocabulary: from its tokens to the target's.
        renormalises: whether what is kept shall sum to 1, as in the published code; else the rest stays a tail.
        duplicates: what becomes of source tokens with one image.

    Returns:
        The states; those of which no kept token has a counterpart are not taught.
    """
    if not len(source.token_ids):  # it keeps nothing of the text
        shape = (len(aligned.is_taught), source.top_ids.shape[1])
        nothing = np.full(shape, -np.inf, dtype=np.float32)
        return MappedStates(np.zeros(shape, dtype=np.int32), nothing, np.zeros(shape[0], dtype=bool))
    mapped = map_distributions(
        source.top_ids[aligned.source_state],
        source.top_log_probs[aligned.source_state],
        vocabulary.target_ids,
        duplicates,
    )
    log_probs = np.where(aligned.is_taught[:, None], mapped.log_probs, -np.inf)
    is_taught = aligned.is_taught & (log_probs.max(axis=1, initial=-np.inf) > -np.inf)
    if renormalises:
        with np.errstate(divide="ignore"):
            total = np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
        log_probs = np.where(is_taught[:, None], log_probs - np.where(is_taught[:, None], total, 0), -np.inf)
    return MappedStates(mapped.ids, log_probs.astype(np.float32), is_taught)
