"""The matrices of one model: their names, roles and shapes, and how a physical matrix holds its logical ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from transfuse.errors import ModelError

Role = Literal["query", "key", "value", "output", "gate", "up", "down", "embedding", "head"]
"""What a logical matrix does; its rows are outputs and its columns inputs, as in `nn.Linear.weight`."""

ROLES: tuple[Role, ...] = get_args(Role)

Axis = Literal["residual", "heads", "kv", "neurons", "vocab", "head_dim"]

AXES: dict[Role, tuple[Axis, Axis]] = {
    "query": ("heads", "residual"),
    "key": ("kv", "residual"),
    "value": ("kv", "residual"),
    "output": ("residual", "heads"),
    "gate": ("neurons", "residual"),
    "up": ("neurons", "residual"),
    "down": ("residual", "neurons"),
    "embedding": ("vocab", "residual"),
    "head": ("vocab", "residual"),
}
"""What the rows and the columns of each role's matrix count."""


@dataclass(frozen=True, slots=True)
class Module:
    """A physical matrix of a model."""

    name: str
    """Within a layer (`self_attn.q_proj`); embedding and head: the full name."""
    roles: tuple[Role, ...]
    """Its logical matrices, in the order in which they lie in it."""
    bias: bool = False
    is_interleaved: bool = False
    """True where the rows of each head lie together (q of head 0, k of head 0, v of head 0, q of head 1, ...)."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A vector of a normalisation: its weight, or its bias."""

    name: str
    """Of the parameter: within a layer (`input_layernorm.weight`); those after the last layer: the full name."""
    axis: Axis
    """What it counts: `residual`; `head_dim` for one shared by all heads; `heads`, `kv` for one over all heads."""
    beside: Role
    """The matrix that reads what the norm gives, or whose result or heads it normalises."""
    side: Literal["rows", "columns"]
    """The side of that matrix which counts the same axis."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The matrices of one model."""

    family: str
    """The `model_type` of the (text) configuration."""
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dim: int
    """The first so many dimensions of a head are rotated, i together with i + rotary_dim / 2; the others pass."""
    n_neurons: int
    vocab: int
    """Rows of the embedding, padded ones included."""
    is_tied: bool
    """True where the head's matrix is the embedding's: then there is one matrix, and its role is `embedding`."""
    layers: str
    """Name of the list of layers (`model.layers`)."""
    modules: tuple[Module, ...]
    """Of every layer."""
    embedding: Module
    head: Module
    """The output projection; where `is_tied`, a module without a matrix of its own."""
    norms: tuple[Norm, ...]
    """Of every layer."""
    final_norms: tuple[Norm, ...]
    """After the last layer."""
    aliases: tuple[tuple[str, str], ...] = field(default=())
    """Prefixes of parameter names in memory, and what stands in checkpoint files in their place."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that have a matrix of their own; `head` is not among them where it is tied."""
        ends: tuple[Role, ...] = ("embedding",) if self.is_tied else ("embedding", "head")
        present = {role for module in self.modules for role in module.roles} | set(ends)
        return tuple(role for role in ROLES if role in present)

    @property
    def has_head_norms(self) -> bool:
        """Whether one norm vector serves all heads, so that these must keep the same dimensions."""
        return any(norm.axis == "head_dim" for norm in self.norms)

    def size(self, axis: Axis) -> int:
        """How many there are along an axis."""
        sizes: dict[Axis, int] = {
            "residual": self.hidden,
            "heads": self.n_heads * self.head_dim,
            "kv": self.n_kv_heads * self.head_dim,
            "neurons": self.n_neurons,
            "vocab": self.vocab,
            "head_dim": self.head_dim,
        }
        return sizes[axis]

    def shape(self, role: Role) -> tuple[int, int]:
        """Rows and columns of a role's matrix."""
        rows, columns = AXES[role]
        return self.size(rows), self.size(columns)

    def module_shape(self, module: Module) -> tuple[int, int]:
        """Rows and columns of a physical matrix."""
        shapes = [self.shape(role) for role in module.roles]
        return sum(rows for rows, _ in shapes), shapes[0][1]

    def module_name(self, layer: int, module: Module) -> str:
        """The full name of a module of a layer, without `.weight`."""
        return f"{self.layers}.{layer}.{module.name}"

    def module_of(self, role: Role) -> Module:
        """The physical module in which a role's matrix lies."""
        for module in (*self.modules, self.embedding, self.head):
            if role in module.roles:
                return module
        raise ModelError(f"expected one of the roles {', '.join(self.roles)}; {self.family} has no {role!r}.")

    def named_shapes(self) -> dict[str, tuple[int, int]]:
        """Full name and shape of every linear layer and of the embedding; a tied head is among them."""
        of_layers = {
            self.module_name(layer, module): self.module_shape(module)
            for layer in range(self.n_layers)
            for module in self.modules
        }
        return of_layers | {module.name: self.module_shape(module) for module in (self.embedding, self.head)}

    def stored_names(self, parameter: str) -> tuple[str, ...]:
        """The names under which checkpoint files may hold a parameter, the name in memory first."""
        others = (
            stored + parameter.removeprefix(prefix)
            for prefix, stored in self.aliases
            if parameter.startswith(prefix)
        )
        return (parameter, *others)

    def split(self, module: Module, weight: Shaped[Tensor, "rows ..."]) -> dict[Role, Tensor]:
        """The logical matrices of a physical one, or of anything that has its rows: scores, a bias, row numbers.

        Args:
            module: which one.
            weight: its rows in their physical order.

        Returns:
            One tensor a role; views of `weight` unless its rows are interleaved.

        Raises:
            ModelError: the number of rows is not what the configuration says.
        """
        sizes = [self.shape(role)[0] for role in module.roles]
        if weight.shape[0] != sum(sizes):
            raise ModelError(
                f"{module.name}: expected {sum(sizes)} rows by the configuration ({self.family}), "
                f"got shape {tuple(weight.shape)}; check that weights and configuration are of one model."
            )
        if not module.is_interleaved:
            return dict(zip(module.roles, weight.split(sizes), strict=True))
        heads = weight.reshape(self.n_heads, len(sizes), self.head_dim, *weight.shape[1:])
        return {role: heads[:, i].flatten(0, 1) for i, role in enumerate(module.roles)}

    def join(self, module: Module, parts: Mapping[Role, Tensor]) -> Tensor:
        """The physical matrix of its logical ones: the inverse of `split`.

        Args:
            module: which one.
            parts: at least one of its roles; those that are missing become zeros.

        Returns:
            The rows in their physical order.

        Raises:
            ModelError: none of the roles is there, or a part has not the configuration's number of rows.
        """
        known = [parts[role] for role in module.roles if role in parts]
        if not known:
            raise ModelError(
                f"{module.name}: expected at least one of {', '.join(module.roles)}, got {', '.join(parts)}."
            )
        for role in module.roles:
            if role in parts and parts[role].shape[0] != self.shape(role)[0]:
                raise ModelError(
                    f"{module.name}: expected {self.shape(role)[0]} rows of {role} ({self.family}), "
                    f"got shape {tuple(parts[role].shape)}."
                )
        others = known[0].shape[1:]
        rows = [
            parts[role] if role in parts else known[0].new_zeros(self.shape(role)[0], *others)
            for role in module.roles
        ]
        if not module.is_interleaved:
            return rows[0] if len(rows) == 1 else torch.cat(rows)
        heads = [part.reshape(self.n_heads, self.head_dim, *others) for part in rows]
        return torch.stack(heads, dim=1).flatten(0, 2)

    def physical_rows(self, role: Role) -> Int[Tensor, " rows"]:
        """Where each row of a role's matrix lies in its physical module."""
        module = self.module_of(role)
        return self.split(module, torch.arange(self.module_shape(module)[0]))[role]
