"""Keys and values that are kept between passes: one beginning for many rows, and rows that grow token by token."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

KeysOrValues = Float[Tensor, "batch heads pos size"]


class LayerStates(NamedTuple):
    """What one layer's attention reads of tokens that were passed before."""

    keys: KeysOrValues
    values: KeysOrValues


@final
class _StemLayer(CacheLayerMixin):
    """Puts the stem before every row of a batch; forgets the rows, unless it is to remember them."""

    is_sliding = False  # every token is kept; a window is left to the model's mask

    def __init__(self, stem: LayerStates | None, n_stem: int, *, remembers: bool) -> None:
        super().__init__()
        self._stem, self._n_stem, self._remembers = stem, n_stem, remembers
        self.written: LayerStates | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stem and rows, one behind the other."""
        if self._remembers:
            self.written = LayerStates(key_states, value_states)
        if self._stem is None:
            return key_states, value_states
        n_rows = len(key_states)
        keys, values = (part.expand(n_rows, -1, -1, -1) for part in self._stem)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self) -> int:
        """Tokens of the stem."""
        return self._n_stem

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that are read, and where they begin."""
        return self._n_stem + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


@final
class StemCache(Cache):
    """The keys and values of a stem, before every row of whatever batch is passed."""

    def __init__(self, stem: Sequence[LayerStates] = (), n_stem: int = 0, *, remembers: bool = False) -> None:
        """Begin with a stem, or with none.

        Args:
            stem: of each layer, as `written` gives it after a pass of batch size 1.
            n_stem: its tokens.
            remembers: whether what a pass writes is kept for `written`.
        """
        if stem:
            super().__init__(layers=[_StemLayer(each, n_stem, remembers=remembers) for each in stem])
        else:
            super().__init__(layer_class_to_replicate=lambda: _StemLayer(None, 0, remembers=remembers))  # type: ignore[arg-type]
        self.stem, self.n_stem = list(stem), n_stem

    @property
    def written(self) -> list[LayerStates]:
        """What the last pass wrote, layer by layer, the stem left out."""
        layers: list[Any] = list(self.layers)
        if any(layer.written is None for layer in layers):
            raise NotImplementedError("a layer keeps nothing")
        return [layer.written for layer in layers]


@final
class _GrowingLayer(CacheLayerMixin):
    """Room for rows that end at the same place and grow together."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, n_filled: int) -> None:
        super().__init__()
        self.held, self._n = LayerStates(keys, values), n_filled

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write behind what is there, and give everything."""
        keys, values = self.held
        end = self._n + key_states.shape[2]
        keys[:, :, self._n : end] = key_states
        values[:, :, self._n : end] = value_states
        self._n = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self) -> int:
        """Places that are filled."""
        return self._n

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Places that are read, and where they begin."""
        return self._n + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RowStates(NamedTuple):
    """A row of a batch whose last `n_tokens` places before `end` hold what was read."""

    layers: Sequence[LayerStates]
    row: int
    end: int
    n_tokens: int
    has_stem: bool = False
    """Whether the stem's places are among them; otherwise it is put before them."""


@final
class GrowingCache(Cache):
    """Keys and values of rows of different lengths, all ending at the same place."""

    def __init__(
        self, rows: Sequence[RowStates], n_room: int, stem: Sequence[LayerStates] = (), n_stem: int = 0
    ) -> None:
        """Copy rows, from wherever they are, side by side.

        Args:
            rows: what was read of each.
            n_room: tokens by which they can grow.
            stem: put before every row that does not have it.
            n_stem: its tokens.
        """
        self.lengths = [row.n_tokens if row.has_stem else n_stem + row.n_tokens for row in rows]
        """Tokens of each row, the stem counted."""
        self.n_filled = max(self.lengths)
        layers: list[Any] = []
        for number in range(len(rows[0].layers)):
            kept = stem[number] if stem else None
            like = rows[0].layers[number]
            keys, values = (
                part.new_zeros(len(rows), part.shape[1], self.n_filled + n_room, part.shape[3])
                for part in like
            )
            for place, (row, length) in enumerate(zip(rows, self.lengths, strict=True)):
                middle = self.n_filled - row.n_tokens
                source = slice(row.end - row.n_tokens, row.end)
                for room, part, beginning in zip(
                    (keys, values), row.layers[number], kept or (None, None), strict=True
                ):
                    room[place, :, middle : self.n_filled] = part[row.row, :, source]
                    if beginning is not None and not row.has_stem:
                        room[place, :, self.n_filled - length : middle] = beginning[0]
            layers.append(_GrowingLayer(keys, values, self.n_filled))
        super().__init__(layers=layers)

    def states(self) -> list[LayerStates]:
        """Everything that is held, layer by layer, with the room behind it."""
        layers: list[Any] = list(self.layers)
        return [layer.held for layer in layers]
