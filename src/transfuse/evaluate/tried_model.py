"""Which shortcuts a model bears: each is tried on the model itself before it is used for the first time."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from transfuse.evaluate.kept_keys import GrowingCache, RowStates, StemCache
from transfuse.evaluate.prefix_sharing import Stem, plan_trees
from transfuse.evaluate.scoring_model import ScoringModel
from transfuse.train.chunked_head import find_head

MODEL_ERRORS = (
    RuntimeError,  # NotImplementedError too
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)
"""What models raise that refuse something."""

TOLERANCE_NATS = {torch.float32: 2e-4, torch.bfloat16: 0.05}
"""Greatest mean difference of a token's log-probability that rounding explains."""

_STEM_TOKENS = 12
_BRANCH_TOKENS = 5
_N_SCORED = _BRANCH_TOKENS - 1

LogProbs = Float[Tensor, " tokens"]


@final
class TriedModel:
    """A model and what was found out about it.

    A trial compares log-probabilities of a few tokens with those of a plain pass. Where a model refuses a shortcut or
    its numbers differ beyond rounding, the model is run plainly, and `notes` says so.
    """

    def __init__(self, model: ScoringModel) -> None:
        self.model = model
        self.notes: list[str] = []
        """What is run plainly, and why."""
        self._found: dict[tuple[str, bool], bool] = {}
        self._is_head_tried = False

    def splits_head(self, token_ids: Sequence[int]) -> bool:
        """Whether the head can be run only where something is asked; from then on it is.

        Args:
            token_ids: some that occur in what is to be read; at least one.

        Returns:
            What was found in the first call.
        """
        if self._is_head_tried:
            return self.model.has_head
        self._is_head_tried = True
        otherwise = "the output head runs at every position"
        try:
            head = find_head(self.model.model)
        except MODEL_ERRORS as err:
            head = _first_line(err)
        if isinstance(head, str):
            self.notes.append(f"{otherwise}: {head}")
            return False
        rows = _trial_rows(token_ids, _STEM_TOKENS)
        expected = self._plainly(rows)
        self.model.use_head(head)
        if not self._bears(otherwise, expected, lambda: self._plainly(rows)):
            self.model.use_head(None)
        return self.model.has_head

    def keeps_stems(self, token_ids: Sequence[int], longest: int) -> bool:
        """Whether a common beginning can be read once, and kept.

        Args:
            token_ids: some that occur in what is to be read; at least one.
            longest: tokens of the longest row; a window that it exceeds is exceeded in the trial too.

        Returns:
            What was found in the first call.
        """
        return self._tried(
            "stems", "common beginnings are read with every row", self._trial_stem, token_ids, longest
        )

    def grows(self, token_ids: Sequence[int], longest: int) -> bool:
        """Whether rows can grow token by token, side by side; arguments as in `keeps_stems`."""
        return self.keeps_stems(token_ids, longest) and self._tried(
            "growth",
            "every new token of an answer reads its row anew",
            self._trial_growth,
            token_ids,
            longest,
        )

    def reads_trees(self, token_ids: Sequence[int], longest: int) -> bool:
        """Whether rows that part late can be read as one sequence; arguments as in `keeps_stems`.

        A tree's mask knows no window, so rows must fit the model's.
        """
        if self.model.window is not None and longest > self.model.window:
            return False
        return self._tried(
            "trees", "endings of one context are read one by one", self._trial_tree, token_ids, longest
        )

    def _tried(
        self,
        name: str,
        otherwise: str,
        trial: Callable[[Sequence[Sequence[int]], int], LogProbs],
        token_ids: Sequence[int],
        longest: int,
    ) -> bool:
        window = self.model.window
        is_beyond = window is not None and longest > window
        if (name, is_beyond) not in self._found:
            self.splits_head(token_ids)
            n_stem = _STEM_TOKENS
            if window is not None:
                n_stem = window + 3 if is_beyond else max(1, min(n_stem, window - 2 * _BRANCH_TOKENS))
            rows = _trial_rows(token_ids, n_stem)
            self._found[name, is_beyond] = self._bears(
                otherwise, self._plainly(rows), lambda: trial(rows, n_stem)
            )
        return self._found[name, is_beyond]

    def _bears(self, otherwise: str, expected: LogProbs, trial: Callable[[], LogProbs]) -> bool:
        try:
            found = trial()
        except MODEL_ERRORS as err:
            self.notes.append(f"{otherwise}: the model refuses the trial ({_first_line(err)})")
            return False
        difference = float((found - expected).abs().mean())
        if difference <= TOLERANCE_NATS.get(self.model.compute_dtype, TOLERANCE_NATS[torch.bfloat16]):
            return True
        self.notes.append(
            f"{otherwise}: in a trial log-probabilities differ by {difference:.3g} nats a token"
        )
        return False

    def _plainly(self, rows: Sequence[Sequence[int]]) -> LogProbs:
        states = self.model.states(torch.tensor([list(row) for row in rows]))
        return self._scored(list(states), rows)

    def _scored(self, states: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> LogProbs:
        """Log-probabilities of the rows' last tokens, of the states of their ends."""
        chosen = torch.cat([each[-_N_SCORED - 1 : -1] for each in states])
        targets = torch.tensor([list(row[-_N_SCORED:]) for row in rows]).flatten()
        return self.model.scores(chosen, torch.arange(len(targets)), targets).log_probs

    def _trial_stem(self, rows: Sequence[Sequence[int]], n_stem: int) -> LogProbs:
        stem = self.model.stem_cache(rows[0][:n_stem])
        states = self.model.states(torch.tensor([list(row[n_stem:]) for row in rows]), cache=stem)
        return self._scored(list(states), rows)

    def _trial_tree(self, rows: Sequence[Sequence[int]], n_stem: int) -> LogProbs:
        order = sorted(range(len(rows)), key=lambda n: list(rows[n]))
        found: dict[int, Tensor] = {}
        for n_kept in (0, n_stem // 2) if self.keeps_stems(rows[0], len(rows[0])) else (0,):
            stem = self.model.stem_cache(rows[0][:n_kept]) if n_kept else None
            for tree in plan_trees(rows, Stem(n_kept, order)):
                states = self.model.tree_states([tree], stem)[0]
                found |= {
                    n: self._scored([states[path]], [rows[n]])
                    for n, path in zip(tree.rows, tree.paths, strict=True)
                }
        return torch.cat([found[n] for n in range(len(rows))])

    def _trial_growth(self, rows: Sequence[Sequence[int]], n_stem: int) -> LogProbs:
        """Behind the stem, one row begins with one token and another with two."""
        model = self.model
        stem = model.stem_cache(rows[0][:n_stem])
        own = [list(row[n_stem:]) for row in rows]
        first = StemCache(stem.stem, stem.n_stem, remembers=True)
        states = model.states(torch.tensor([ids[:2] for ids in own]), cache=first)
        begun = [1, 2]
        held = [RowStates(first.written, n, n_read, n_read) for n, n_read in enumerate(begun)]
        cache = GrowingCache(held, _BRANCH_TOKENS, stem.stem, stem.n_stem)
        logits = [
            [model.logits(states[n, place][None])[0] for place in range(n_read)]
            for n, n_read in enumerate(begun)
        ]
        while min(map(len, logits)) < _N_SCORED:
            read = [ids[min(len(seen), len(ids) - 1)] for ids, seen in zip(own, logits, strict=True)]
            for seen, new in zip(logits, model.grown_logits(read, cache), strict=True):
                seen.append(new)
        return torch.cat(
            [
                torch.stack(seen[:_N_SCORED])
                .log_softmax(dim=1)
                .cpu()[torch.arange(_N_SCORED), torch.tensor(ids[1:])]
                for ids, seen in zip(own, logits, strict=True)
            ]
        )


def _trial_rows(token_ids: Sequence[int], n_stem: int) -> list[list[int]]:
    """Two rows that part after `n_stem` tokens, where there are two different tokens at all."""
    known = list(dict.fromkeys(token_ids))
    stem = [token_ids[n % len(token_ids)] for n in range(n_stem)]
    places = range(_BRANCH_TOKENS)
    branches = [[known[(step * n + shift) % len(known)] for n in places] for step, shift in ((1, 0), (2, 1))]
    return [[*stem, *branch] for branch in branches]


def _first_line(err: Exception) -> str:
    """Of an error's message, its type where it has none."""
    return str(err).splitlines()[0] if str(err) else type(err).__name__
