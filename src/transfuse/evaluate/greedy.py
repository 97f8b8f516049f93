"""Greedy answers until a stop string: common beginnings are read once, and rows that are done make room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from transfuse.evaluate.kept_keys import GrowingCache, RowStates, StemCache
from transfuse.evaluate.likelihoods import DEFAULT_LIMITS, BatchLimits
from transfuse.evaluate.prefix_sharing import Stem, plan_stems
from transfuse.evaluate.scoring_model import ScoringModel
from transfuse.evaluate.tried_model import TriedModel

_PREFILL_TOKENS = 2048
"""Prompts are read in batches of about so many tokens, filling counted."""


_REFILL_SHARE = 0.7
"""Rows that are done keep their place until at most this share is at work; then others are laid into it."""


class GreedyRequest(NamedTuple):
    """What is to be continued."""

    prompt_ids: list[int]
    stop: tuple[str, ...]
    """The answer ends with the token that completes one of these."""
    max_new_tokens: int


class Greedy(NamedTuple):
    """How the next token is chosen, and which end an answer."""

    end_ids: frozenset[int]
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that occurred, prompt counted, and multiplies their negative ones."""


OnAnswers = Callable[[dict[int, list[int]]], None]
"""Called with the tokens of finished answers, by the number of their request."""


@final
@dataclass(slots=True)
class _Active:
    """A row at work."""

    request: int
    ends: "StopStrings"
    new_ids: list[int] = field(default_factory=list)


@final
class StopStrings:
    """Tells when an answer holds a stop string, looking at its last tokens only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, [each for each in stop if each]
        # Another cut into tokens may take a few more than the tokenizer's own.
        self._n_tokens = 2 + max(
            (len(tokenizer.encode(each, add_special_tokens=False)) for each in self._stop), default=0
        )

    def is_met(self, new_ids: Sequence[int]) -> bool:
        """Whether the last tokens hold one."""
        if not self._stop:
            return False
        text = str(self._tokenizer.decode(list(new_ids[-self._n_tokens :])))
        return any(each in text for each in self._stop)


def generate_greedily(
    tried: TriedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[GreedyRequest],
    rule: Greedy,
    limits: BatchLimits = DEFAULT_LIMITS,
    on_answers: OnAnswers = lambda found: None,
) -> list[list[int]]:
    """The likeliest continuation of each prompt, token by token.

    Args:
        tried: a model; where it cannot keep keys and values between passes, every token reads its row anew.
        tokenizer: decodes answers to look for stop strings.
        requests: prompts of at least one token.
        rule: how a token is chosen and which tokens end an answer.
        limits: of rows at work at a time, and of their tokens, room for answers counted.
        on_answers: called as answers are finished.

    Returns:
        The new tokens of each request, the one that ends it among them.
    """
    if not requests:
        return []
    prompts = [request.prompt_ids for request in requests]
    grows = tried.grows(prompts[0], max(len(each.prompt_ids) + each.max_new_tokens for each in requests))
    stops = {request.stop: StopStrings(tokenizer, request.stop) for request in requests}
    if grows:
        stems = plan_stems(prompts, [len(prompt) - 1 for prompt in prompts])
    else:
        stems = [Stem(0, list(range(len(prompts))))]
    done: dict[int, list[int]] = {}

    def finish(found: dict[int, list[int]]) -> None:
        done.update(found)
        on_answers(found)

    for stem in stems:
        rows = _Rows(tried.model, requests, rule, stops)
        queue = sorted(stem.rows, key=lambda n: -len(prompts[n]))
        if grows:
            _continue_growing(rows, stem, queue, limits, finish)
        else:
            _continue_plainly(rows, queue, limits, finish)
    return [done[n] for n in range(len(requests))]


@final
class _Rows:
    """The rows at work: chooses their tokens and tells which are done."""

    def __init__(
        self,
        model: ScoringModel,
        requests: Sequence[GreedyRequest],
        rule: Greedy,
        stops: dict[tuple[str, ...], StopStrings],
    ) -> None:
        self.model, self.requests, self._rule, self._stops = model, requests, rule, stops
        self.active: list[_Active] = []

    def admit(self, queue: list[int], limits: BatchLimits) -> list[_Active]:
        """Take as many from the queue as may join those at work."""
        taken: list[_Active] = []
        while queue:
            request = self.requests[queue[0]]
            n_rows = len(self.active) + len(taken) + 1
            # Longest first, so that nobody at work is longer than the first of all.
            first = (self.active or taken or [None])[0]
            widest = self.requests[queue[0] if first is None else first.request]
            width = len(widest.prompt_ids) + max(widest.max_new_tokens, request.max_new_tokens)
            if n_rows > 1 and (n_rows > limits.max_rows or n_rows * width > limits.max_tokens):
                break
            taken.append(_Active(queue.pop(0), self._stops[request.stop]))
        return taken

    def choose(self, rows: Sequence[_Active], logits: Float[Tensor, "batch vocab"]) -> dict[int, list[int]]:
        """Give every row its next token; the answers that are finished by it."""
        if self._rule.repetition_penalty != 1:
            logits = self._penalised(rows, logits)
        done: dict[int, list[int]] = {}
        for row, token in zip(rows, logits.argmax(dim=1).tolist(), strict=True):
            row.new_ids.append(token)
            if (
                token in self._rule.end_ids
                or len(row.new_ids) >= self.requests[row.request].max_new_tokens
                or row.ends.is_met(row.new_ids)
            ):
                done[row.request] = row.new_ids
        return done

    def _penalised(self, rows: Sequence[_Active], logits: Tensor) -> Tensor:
        changed = logits.clone()
        for n, row in enumerate(rows):
            seen = torch.tensor(
                sorted({*self.requests[row.request].prompt_ids, *row.new_ids}), device=logits.device
            )
            own = logits[n, seen]
            penalty = self._rule.repetition_penalty
            changed[n, seen] = torch.where(own < 0, own * penalty, own / penalty)
        return changed


def _continue_growing(
    rows: _Rows, stem: Stem, queue: list[int], limits: BatchLimits, finish: OnAnswers
) -> None:
    """Read prompts behind their stem, then one token of every row at a time; rows that are done make room."""
    model, prompts = rows.model, [request.prompt_ids for request in rows.requests]
    kept = (
        model.stem_cache(prompts[stem.rows[0]][: stem.n_shared])
        if stem.n_shared
        else StemCache(remembers=True)
    )
    cache: GrowingCache | None = None
    held: list[_Active] = []  # the rows of the cache; some may be done
    while queue or rows.active:
        if len(rows.active) <= _REFILL_SHARE * len(held):
            new = rows.admit(queue, limits)
            states = _read_prompts(rows, new, kept, finish)
            going = [row for row in new if row.request in states]
            cache, held = _side_by_side(rows, cache, held, states, going, kept)
        if cache is None or not rows.active:
            continue
        logits = model.grown_logits([row.new_ids[-1] for row in held], cache)
        at_work = {row.request for row in rows.active}
        places = [n for n, row in enumerate(held) if row.request in at_work]
        chosen = logits if len(places) == len(held) else logits[torch.tensor(places, device=logits.device)]
        done = rows.choose([held[n] for n in places], chosen)
        if done:
            rows.active = [row for row in rows.active if row.request not in done]
            finish(done)


def _read_prompts(
    rows: _Rows, new: Sequence[_Active], stem: StemCache, finish: OnAnswers
) -> dict[int, RowStates]:
    """Read prompts in batches of like length and give each its first token; what was read, of rows that go on."""
    states: dict[int, RowStates] = {}
    start = 0
    prompts = [rows.requests[row.request].prompt_ids[stem.n_stem :] for row in new]  # longest first
    for end in range(1, len(new) + 1):
        if end < len(new) and (end + 1 - start) * len(prompts[start]) <= _PREFILL_TOKENS:
            continue
        batch, own = new[start:end], prompts[start:end]
        input_ids = torch.zeros(len(batch), len(own[0]), dtype=torch.long)
        for n, prompt in enumerate(own):
            input_ids[n, : len(prompt)] = torch.tensor(prompt)
        cache = StemCache(stem.stem, stem.n_stem, remembers=True)
        found = rows.model.states(input_ids, cache=cache)
        last = torch.tensor([len(prompt) - 1 for prompt in own], device=found.device)
        logits = rows.model.logits(found[torch.arange(len(batch), device=found.device), last])
        done = rows.choose(batch, logits)
        for n, (row, prompt) in enumerate(zip(batch, own, strict=True)):
            if row.request not in done:
                states[row.request] = RowStates(cache.written, n, len(prompt), len(prompt))
                rows.active.append(row)
        if done:
            finish(done)
        start = end
    return states


def _side_by_side(
    rows: _Rows,
    cache: GrowingCache | None,
    held: Sequence[_Active],
    new_states: dict[int, RowStates],
    new: Sequence[_Active],
    stem: StemCache,
) -> tuple[GrowingCache | None, list[_Active]]:
    """One cache of the rows that are still at work and of new ones, with room for what they may say."""
    at_work = {row.request for row in rows.active}
    going: list[_Active] = []
    states: list[RowStates] = []
    if cache is not None:
        layers, end = cache.states(), cache.get_seq_length()
        grown = end - cache.n_filled
        for n, row in enumerate(held):
            if row.request in at_work:
                going.append(row)
                states.append(RowStates(layers, n, end, cache.lengths[n] + grown, has_stem=True))
    going += new
    states += [new_states[row.request] for row in new]
    if not going:
        return None, []
    n_room = max(rows.requests[row.request].max_new_tokens - len(row.new_ids) for row in going)
    return GrowingCache(states, n_room, stem.stem, stem.n_stem), going


def _continue_plainly(rows: _Rows, queue: list[int], limits: BatchLimits, finish: OnAnswers) -> None:
    """Read every row anew for each of its tokens."""
    while queue or rows.active:
        rows.active += rows.admit(queue, limits)
        texts = [rows.requests[row.request].prompt_ids + row.new_ids for row in rows.active]
        input_ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for n, ids in enumerate(texts):
            input_ids[n, : len(ids)] = torch.tensor(ids)
        states = rows.model.states(input_ids)
        last = torch.tensor([len(ids) - 1 for ids in texts], device=states.device)
        logits = rows.model.logits(states[torch.arange(len(texts), device=states.device), last])
        done = rows.choose(rows.active, logits)
        rows.active = [row for row in rows.active if row.request not in done]
        if done:
            finish(done)
