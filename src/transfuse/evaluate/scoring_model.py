"""A causal language model as the scoring engine runs it: its head only where asked, beginnings and trees read once."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transfuse.evaluate.kept_keys import GrowingCache, StemCache
from transfuse.evaluate.prefix_sharing import Tree, visible_tokens
from transfuse.train.chunked_head import OutputHead, rows_per_chunk


class TokenScores(NamedTuple):
    """Of tokens given what stands before them."""

    log_probs: Float[Tensor, " targets"]
    are_best: Bool[Tensor, " targets"]
    """Whether the token is the likeliest of all."""


@final
class ScoringModel:
    """What a model makes of tokens, plainly or by shortcuts; which of them it bears is for `TriedModel` to find out."""

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

    @property
    def has_head(self) -> bool:
        """Whether the head is run by itself."""
        return self._head is not None

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
        n_places, lengths = cache.get_seq_length(), torch.tensor(cache.lengths)[:, None]
        visible = None
        if len(set(cache.lengths)) > 1:
            visible = (torch.arange(n_places + 1) >= cache.n_filled - lengths).long()
        positions = lengths + (n_places - cache.n_filled)
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

    def use_head(self, head: OutputHead | None) -> None:
        """From now on run decoder and head one after the other, the head only where asked; None ends that."""
        self._head = head


def _window_tokens(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(text, "sliding_window", None)
    return window if isinstance(window, int) and getattr(text, "use_sliding_window", True) else None
