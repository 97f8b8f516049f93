"""A causal language model as the scoring engine runs it: its head only where asked, beginnings and trees read once."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transfuse.evaluate.kept_keys import GrowingCache, RowStates, StemCache
from transfuse.evaluate.prefix_sharing import Stem, Tree, plan_trees, visible_tokens
from transfuse.train.chunked_head import OutputHead, find_head, rows_per_chunk

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

_TOLERANCE_NATS = {torch.float32: 2e-4, torch.bfloat16: 0.05}
"""Greatest mean difference of a token's log-probability that rounding explains."""

_PROBE_TOKENS = 14
_PROBE_BRANCH = 5


class TokenScores(NamedTuple):
    """Of tokens given what stands before them."""

    log_probs: Float[Tensor, " targets"]
    are_best: Bool[Tensor, " targets"]
    """Whether the token is the likeliest of all."""


@final
class ScoringModel:
    """What a model makes of tokens, in the ways that were found to give its own numbers.

    Every shortcut is tried on the model itself before it is used (`try_out`); where it is refused or the numbers differ
    beyond rounding, the model is run plainly, and `notes` says so.
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        """Look at a model.

        Args:
            model: its `forward` is that of a causal language model of transformers, perhaps wrapped by PEFT: token ids
                in, an output with `logits` out. It is put into evaluation mode.
            compute_dtype: bfloat16 for autocast where weights have another type, float32 for none.
        """
        self.model = model.eval()
        self.compute_dtype = compute_dtype
        self.device = next(model.parameters()).device
        self.notes: list[str] = []
        """What is run plainly, and why."""
        base: Any = getattr(model, "get_base_model", lambda: model)()
        config = getattr(base, "config", None)
        self.window = _window_tokens(config)
        """Tokens that a layer with a sliding window looks back; None without such a layer."""
        self._is_eager = getattr(config, "_attn_implementation", None) == "eager"
        names = inspect.signature(base.forward).parameters
        self._says_no_cache = "use_cache" in names
        self._is_autocast = compute_dtype == torch.bfloat16 and any(
            each.dtype != torch.bfloat16 for each in model.parameters() if each.is_floating_point()
        )
        self._head: OutputHead | None = None
        self.keeps_stems = self.reads_trees = self.grows = False
        self._is_tried = False

    def try_out(self, token_ids: Sequence[int], longest: int) -> None:
        """Find out, once, which shortcuts the model bears.

        Args:
            token_ids: some that occur in what is to be read; at least one.
            longest: tokens of the longest row to come; a window that it exceeds is exceeded in the trial too.
        """
        if self._is_tried:
            return
        self._is_tried = True
        window, length = self.window, _PROBE_TOKENS
        if window is not None and window < longest:
            length = max(length, window + 3)
        rows = _trial_rows(token_ids, length)
        self._use_head(rows[0])
        expected = self._probe_plainly(rows)
        self.keeps_stems = self._bears(
            "common beginnings are read with every row", expected, lambda: self._probe_stem(rows, length)
        )
        self.grows = self.keeps_stems and self._bears(
            "every new token of an answer reads its row anew",
            expected,
            lambda: self._probe_growth(rows, length),
        )
        # A tree's mask knows no window, so that its rows must fit it.
        short = rows if window is None else _trial_rows(token_ids, min(length, window - 2 * _PROBE_BRANCH))
        if short:
            self.reads_trees = self._bears(
                "endings of one context are read one by one",
                self._probe_plainly(short),
                lambda: self._probe_tree(short),
            )

    @torch.no_grad()
    def states(
        self,
        input_ids: Int[Tensor, "batch pos"],
        *,
        cache: StemCache | GrowingCache | None = None,
        visible: Bool[Tensor, "batch 1 pos key"] | Int[Tensor, "batch key"] | None = None,
        positions: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos size"]:
        """What the head is to be given at every position; logits where the head cannot be run by itself.

        Args:
            input_ids: rows that end early are filled up at the end, which no earlier position sees.
            cache: what stands before every row.
            visible: which tokens are seen, or, as 0 and 1 for every place, which places hold any; None for all earlier
                ones.
            positions: None counts from the cache's end.

        Returns:
            Hidden states, or logits.
        """
        settings: dict[str, Any] = {}
        if cache is not None:
            settings |= {"past_key_values": cache, "use_cache": True}
        elif self._says_no_cache:
            settings["use_cache"] = False
        if visible is not None:
            settings["attention_mask"] = self._understood(visible.to(self.device))
        if positions is not None:
            settings["position_ids"] = positions.to(self.device)
        module = self.model if self._head is None else self._head.decoder
        with self.autocast():
            output = module(input_ids=input_ids.to(self.device), **settings)
        return output.logits if self._head is None else output.last_hidden_state

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "chosen size"]) -> Float[Tensor, "chosen vocab"]:
        """Logits in float32 of chosen states."""
        if self._head is None:
            return states.float()
        with self.autocast():
            dtype = states.dtype if self._is_autocast else self._head.linear.weight.dtype
            return self._head.finished(self._head.linear(states.to(dtype)))

    @torch.no_grad()
    def scores(
        self,
        states: Float[Tensor, "chosen size"],
        state_of: Int[Tensor, " targets"],
        target_ids: Int[Tensor, " targets"],
    ) -> TokenScores:
        """Log-probabilities of tokens, a few states at a time.

        Args:
            states: as `states` gives them; each is passed through the head once.
            state_of: the state that predicts each target, in ascending order.
            target_ids: the tokens.

        Returns:
            One log-probability, in nats, for each target, and whether it is the likeliest token.
        """
        n_vocab = states.shape[1] if self._head is None else self._head.n_vocab
        size = rows_per_chunk(n_vocab)
        log_probs, best = [], []
        for start in range(0, len(states), size):
            logits = self.logits(states[start : start + size])
            every = logits.log_softmax(dim=1)
            first, end = torch.searchsorted(state_of, torch.tensor([start, start + size])).tolist()
            own = state_of[first:end].to(self.device) - start
            targets = target_ids[first:end].to(self.device)
            log_probs.append(every[own, targets].cpu())
            best.append((logits.argmax(dim=1)[own] == targets).cpu())
        return TokenScores(torch.cat(log_probs), torch.cat(best))

    def stem_cache(self, token_ids: Sequence[int]) -> StemCache:
        """A common beginning, read once."""
        cache = StemCache(remembers=True)
        self.states(torch.tensor([list(token_ids)]), cache=cache)
        return StemCache(cache.written, len(token_ids))

    def tree_states(
        self, trees: Sequence[Tree], stem: StemCache | None, pad_id: int = 0
    ) -> Float[Tensor, "batch pos size"]:
        """The states of every token of some trees, all behind one stem or none."""
        length = max(len(tree.token_ids) for tree in trees)
        input_ids = torch.full((len(trees), length), pad_id)
        for row, tree in enumerate(trees):
            input_ids[row, : len(tree.token_ids)] = torch.tensor(tree.token_ids)
        if all(tree.is_single for tree in trees):
            return self.states(input_ids, cache=stem)
        n_stem = 0 if stem is None else stem.n_stem
        positions = torch.zeros_like(input_ids)
        for row, tree in enumerate(trees):
            positions[row, : len(tree.token_ids)] = torch.tensor(tree.depths)
        return self.states(
            input_ids, cache=stem, visible=visible_tokens(trees, n_stem), positions=positions + n_stem
        )

    def grown_logits(self, token_ids: Sequence[int], cache: GrowingCache) -> Float[Tensor, "batch vocab"]:
        """Read one more token of every row of a cache; the logits of the next."""
        n_places = cache.get_seq_length() + 1
        visible = None
        if len(set(cache.lengths)) > 1:
            lengths = torch.tensor(cache.lengths)
            n_grown = cache.get_seq_length() - cache.n_filled
            empty = n_places - 1 - n_grown - lengths
            visible = (torch.arange(n_places)[None, :] >= empty[:, None]).long()
        positions = torch.tensor(cache.lengths)[:, None] + (cache.get_seq_length() - cache.n_filled)
        states = self.states(
            torch.tensor(token_ids)[:, None], cache=cache, visible=visible, positions=positions
        )
        return self.logits(states[:, -1])

    def autocast(self) -> torch.autocast:
        """The precision in which the model computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_autocast)

    def _understood(self, visible: Tensor) -> Tensor:
        """A mask as the model's attention takes it: `eager` adds it to its scores."""
        if visible.dtype != torch.bool or not self._is_eager:
            return visible
        scores = torch.zeros_like(visible, dtype=torch.float32)
        return scores.masked_fill_(~visible, torch.finfo(torch.bfloat16).min)

    def _use_head(self, row: Sequence[int]) -> None:
        """Run the head by itself from now on, where that gives the model's logits."""
        try:
            head = find_head(self.model)
        except MODEL_ERRORS as err:
            head = _first_line(err)
        if isinstance(head, str):
            self.notes.append(f"the output head runs at every position: {head}")
            return
        expected = self._probed(self.states(torch.tensor([list(row)]))[0], row)
        self._head = head
        if not self._bears(
            "the output head runs at every position",
            expected,
            lambda: self._probed(self.states(torch.tensor([list(row)]))[0], row),
        ):
            self._head = None

    def _bears(self, otherwise: str, expected: Tensor, trial: Any) -> bool:
        try:
            found = trial()
        except MODEL_ERRORS as err:
            self.notes.append(f"{otherwise}: the model refuses the trial ({_first_line(err)})")
            return False
        difference = float((found - expected).abs().mean())
        if difference <= _TOLERANCE_NATS.get(self.compute_dtype, _TOLERANCE_NATS[torch.bfloat16]):
            return True
        self.notes.append(
            f"{otherwise}: in a trial log-probabilities differ by {difference:.3g} nats a token"
        )
        return False

    def _probed(self, states: Tensor, row: Sequence[int]) -> Tensor:
        """Log-probabilities of a trial row's last tokens, of the states of its end."""
        n = _PROBE_BRANCH - 1
        return self.scores(states[-n - 1 : -1], torch.arange(n), torch.tensor(list(row[-n:]))).log_probs

    def _probe_plainly(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.cat([self._probed(self.states(torch.tensor([list(row)]))[0], row) for row in rows])

    def _probe_stem(self, rows: Sequence[Sequence[int]], n_stem: int) -> Tensor:
        stem = self.stem_cache(rows[0][:n_stem])
        states = self.states(torch.tensor([list(row[n_stem:]) for row in rows]), cache=stem)
        return torch.cat([self._probed(states[n], row) for n, row in enumerate(rows)])

    def _probe_tree(self, rows: Sequence[Sequence[int]]) -> Tensor:
        order = sorted(range(len(rows)), key=lambda n: list(rows[n]))
        found: dict[int, Tensor] = {}
        for n_stem in (0, 1) if self.keeps_stems else (0,):
            stem = self.stem_cache(rows[0][:n_stem]) if n_stem else None
            for tree in plan_trees(rows, Stem(n_stem, order)):
                states = self.tree_states([tree], stem)[0]
                for n, path in zip(tree.rows, tree.paths, strict=True):
                    found[n] = self._probed(states[path], rows[n])
        return torch.cat([found[n] for n in range(len(rows))])

    def _probe_growth(self, rows: Sequence[Sequence[int]], n_stem: int) -> Tensor:
        stem = self.stem_cache(rows[0][:n_stem])
        first = StemCache(stem.stem, stem.n_stem, remembers=True)
        own = [row[n_stem:] for row in rows]
        self.states(torch.tensor([list(row[:1]) for row in own]), cache=first)
        states = [RowStates(first.written, n, 1, 1) for n in range(len(rows))]
        cache = GrowingCache(states, _PROBE_BRANCH, stem.stem, stem.n_stem)
        found = []
        for place in range(1, _PROBE_BRANCH):
            if place > 1:
                logits = self.grown_logits([row[place - 1] for row in own], cache)
            else:
                logits = self.logits(
                    self.states(torch.tensor([list(row[:1]) for row in own]), cache=first)[:, 0]
                )
            targets = torch.tensor([row[place] for row in own], device=self.device)
            found.append(logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0].cpu())
        return torch.stack(found, dim=1).flatten()


def _trial_rows(token_ids: Sequence[int], n_stem: int) -> list[list[int]]:
    """Two rows that part after `n_stem` tokens, where there are two tokens at all; none where a stem is impossible."""
    if n_stem < 1:
        return []
    known = list(dict.fromkeys(token_ids))
    stem = [token_ids[n % len(token_ids)] for n in range(n_stem)]
    places = range(_PROBE_BRANCH)
    branches = [[known[(step * n + shift) % len(known)] for n in places] for step, shift in ((1, 0), (2, 1))]
    return [[*stem, *branch] for branch in branches]


def _window_tokens(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(text, "sliding_window", None)
    return window if isinstance(window, int) and getattr(text, "use_sliding_window", True) else None


def _first_line(err: Exception) -> str:
    """Of an error's message, its type where it has none."""
    return str(err).splitlines()[0] if str(err) else type(err).__name__
