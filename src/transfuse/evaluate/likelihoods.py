"""Log-likelihoods of continuations: contexts, common beginnings and equal rows are read once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from transfuse.evaluate.kept_keys import StemCache
from transfuse.evaluate.prefix_sharing import Stem, Tree, plan_stems, plan_trees
from transfuse.evaluate.scoring_model import ScoringModel
from transfuse.evaluate.tried_model import TriedModel

_CPU_BATCH_TOKENS = 1024
"""A processor is busy with so many; then a batch ends where its rows would have to be filled up much."""

_MIN_LENGTH_SHARE = 0.9
"""Of a batch's longest row, where it may end."""


class Continuation(NamedTuple):
    """What is asked: the log-probability of `target_ids`, whose last token nothing needs to read."""

    input_ids: list[int]
    """Context and continuation without its last token."""
    target_ids: list[int]
    """The continuation: predicted by the last `len(target_ids)` tokens of the input."""


class Likelihood(NamedTuple):
    """The answer."""

    log_prob: float
    """In nats, summed over the continuation."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest one."""


class BatchLimits(NamedTuple):
    """How much is read at a time."""

    max_rows: int = 64
    max_tokens: int = 16384
    """Filling counted."""


DEFAULT_LIMITS = BatchLimits()


OnLikelihoods = Callable[[dict[int, Likelihood]], None]
"""Called with the answers of a batch, by the number of their request."""


class _Row(NamedTuple):
    input_ids: tuple[int, ...]
    requests: list[int]
    n_scored: int


def log_likelihoods(
    tried: TriedModel,
    requests: Sequence[Continuation],
    limits: BatchLimits = DEFAULT_LIMITS,
    on_batch: OnLikelihoods = lambda found: None,
) -> list[Likelihood]:
    """How likely a model finds continuations.

    Args:
        tried: a model; the shortcuts that the requests would gain from are tried out first.
        requests: each with at least one target, and an input at least as long.
        limits: of one batch.
        on_batch: called batch by batch.

    Returns:
        One answer a request, in order.
    """
    if not requests:
        return []
    model, rows = tried.model, _distinct_rows(requests)
    tried.splits_head(requests[0].input_ids)
    inputs = [row.input_ids for row in rows]
    answers: dict[int, Likelihood] = {}
    for stem, trees in _plan(tried, rows):
        cache = model.stem_cache(inputs[stem.rows[0]][: stem.n_shared]) if stem.n_shared else None
        for batch in _batches(trees, stem.n_shared, limits, is_cpu=model.device.type == "cpu"):
            found = _answers(model, batch, cache, rows, requests)
            answers |= found
            on_batch(found)
    return [answers[n] for n in range(len(requests))]


def _plan(tried: TriedModel, rows: Sequence[_Row]) -> list[tuple[Stem, list[Tree]]]:
    """Stems with their trees; what the rows would gain from is tried on the model first."""
    inputs, window = [row.input_ids for row in rows], tried.model.window
    longest = max(map(len, inputs))
    contexts = [row.input_ids[: len(row.input_ids) - row.n_scored + 1] for row in rows]
    numbers = {context: number for number, context in enumerate(contexts)}
    fitting = [n for n, ids in enumerate(inputs) if window is None or len(ids) <= window]
    has_kin = len({contexts[n] for n in fitting}) < len(fitting)
    may_branch = has_kin and tried.reads_trees(inputs[0], max(len(inputs[n]) for n in fitting))
    branching = set(fitting) if may_branch else set()
    families = [numbers[contexts[n]] if n in branching else n for n in range(len(rows))]
    stems = plan_stems(inputs, [len(row.input_ids) - row.n_scored for row in rows], families)
    if any(stem.n_shared for stem in stems) and not tried.keeps_stems(inputs[0], longest):
        stems = [Stem(0, sorted(range(len(rows)), key=lambda n: inputs[n]))]
    return [(stem, plan_trees(inputs, stem, may_branch=branching)) for stem in stems]


def _distinct_rows(requests: Sequence[Continuation]) -> list[_Row]:
    """Requests of equal input, such as the letters of one question, are one row."""
    rows: dict[tuple[int, ...], _Row] = {}
    for number, request in enumerate(requests):
        key = tuple(request.input_ids)
        row = rows.get(key, _Row(key, [], 0))
        rows[key] = _Row(key, [*row.requests, number], max(row.n_scored, len(request.target_ids)))
    return list(rows.values())


def _batches(trees: Sequence[Tree], n_stem: int, limits: BatchLimits, *, is_cpu: bool) -> list[list[Tree]]:
    """Trees of like length together; each batch holds at most `max_rows` rows, unless one tree alone has more."""
    batches: list[list[Tree]] = []
    n_rows = longest = 0
    for tree in trees:
        size = len(batches[-1]) if batches else 0
        n_tokens, is_like = (size + 1) * longest, len(tree.token_ids) >= _MIN_LENGTH_SHARE * longest
        if (
            not batches
            or n_rows + len(tree.rows) > limits.max_rows
            or n_tokens > limits.max_tokens
            or (size + 1) * (n_stem + longest) > 8 * limits.max_tokens
            or (is_cpu and not is_like and n_tokens > _CPU_BATCH_TOKENS)
        ):
            batches.append([])
            n_rows, longest = 0, len(tree.token_ids)
        batches[-1].append(tree)
        n_rows += len(tree.rows)
    return batches


def _answers(
    model: ScoringModel,
    batch: Sequence[Tree],
    stem: StemCache | None,
    rows: Sequence[_Row],
    requests: Sequence[Continuation],
) -> dict[int, Likelihood]:
    states = model.tree_states(batch, stem)
    places: list[tuple[int, int]] = []  # tree and token of each state that predicts something
    number_of: dict[tuple[int, int], int] = {}
    targets: list[tuple[int, int, int]] = []  # state, token, request
    for n_tree, tree in enumerate(batch):
        for row, path in zip(tree.rows, tree.paths, strict=True):
            for request in rows[row].requests:
                ids = requests[request].target_ids
                for place, token in zip(path[-len(ids) :], ids, strict=True):
                    where = (n_tree, place)
                    if where not in number_of:
                        number_of[where] = len(places)
                        places.append(where)
                    targets.append((number_of[where], token, request))
    targets.sort(key=lambda target: target[0])
    trees, tokens = torch.tensor(places).unbind(dim=1)
    state_of, target_ids, owners = torch.tensor(targets).T.contiguous()
    scores = model.scores(states[trees.to(states.device), tokens.to(states.device)], state_of, target_ids)
    found: dict[int, Likelihood] = {}
    for owner, log_prob, is_best in zip(
        owners.tolist(), scores.log_probs.double().tolist(), scores.are_best.tolist(), strict=True
    ):
        before = found.get(owner, Likelihood(0.0, True))
        found[owner] = Likelihood(before.log_prob + log_prob, before.is_greedy and is_best)
    return found
