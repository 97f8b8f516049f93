"""A model's logits for a few positions at a time, so that those of a whole batch never exist."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

_PROBE_IDS = (0, 1, 1, 0)
_TOLERANCE = 0.01
"""Of the probe's greatest logit: what rounding in bfloat16 explains, where sums are taken in another order."""


@final
class PositionLogits:
    """The two halves of a causal language model: what it makes of tokens, and its head.

    The head is the model's own code around its body, so that a family's scaling and capping of logits are kept: the
    body is exchanged for one that gives out states which are already known. Whether that gives the same logits is
    tried on the model itself; where it does not, `states` are the logits of all positions.
    """

    def __init__(self, model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
        """Try the model out.

        Args:
            model: in evaluation mode.
            compute_dtype: bfloat16 for autocast, any other for none.
        """
        self._model, self._compute_dtype = model, compute_dtype
        self._device = next(model.parameters()).device
        self._body_name = model.base_model_prefix
        self.n_logits = n_logits(model)
        self.is_split = self._splits_well()
        """Whether the head runs on chosen positions only."""

    @torch.no_grad()
    def states(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos size"]:
        """What the head is to be given, for every position.

        Args:
            input_ids: rows that end early are filled up at the end with any token: no position reads a later one.

        Returns:
            Hidden states, or logits where the model cannot be taken apart.
        """
        body = getattr(self._model, self._body_name) if self.is_split else self._model
        with self._autocast():
            output = body(input_ids=input_ids.to(self._device), use_cache=False)
        return output.last_hidden_state if self.is_split else output.logits

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "chosen size"]) -> Float[Tensor, "chosen vocab"]:
        """The logits of chosen positions, in the model's precision."""
        if not self.is_split:
            return states
        body = getattr(self._model, self._body_name)
        setattr(self._model, self._body_name, _Known(states[None]))
        try:
            with self._autocast():
                ids = torch.zeros(1, len(states), dtype=torch.long, device=self._device)
                return self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            setattr(self._model, self._body_name, body)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._compute_dtype == torch.bfloat16
        )

    @torch.no_grad()
    def _splits_well(self) -> bool:
        if not isinstance(getattr(self._model, self._body_name, None), nn.Module):
            return False
        self.is_split = True
        probe = torch.tensor([_PROBE_IDS])
        try:
            found = self.logits(self.states(probe)[0]).float()
            with self._autocast():
                expected = self._model(input_ids=probe.to(self._device), use_cache=False).logits[0].float()
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
            return False
        if found.shape != expected.shape:
            return False
        # NaN is the business of whoever reads the logits, and names the text.
        scale = float(expected.nan_to_num().abs().amax())
        return float((found - expected).nan_to_num().abs().amax()) <= _TOLERANCE * max(1.0, scale)


def n_logits(model: PreTrainedModel) -> int:
    """Outputs of a model's head."""
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[0])


@final
class _Known(nn.Module):
    """A body that has done its work already."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The states, as bodies give them out."""
        return MoeModelOutputWithPast(last_hidden_state=self._states)
