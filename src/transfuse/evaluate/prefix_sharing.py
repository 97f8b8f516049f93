"""Which rows of tokens begin alike, and how each beginning is read once.

Two ways, since neither fits everything. A *stem* is a long beginning of many rows, such as the few-shot examples of a
subject: it is read once, and its keys and values are kept while its rows are read behind it. A *tree* holds rows that
part late, such as one question with its four endings: they are laid behind each other in one sequence in which each
token sees only what stands before it in its own row.
"""

from collections.abc import Container, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

MIN_STEM_TOKENS = 12
"""A shorter common beginning is not kept."""

STEM_COST_TOKENS = 96
"""What one more stem costs beside its own tokens: a pass of its own, and rows that cannot be read with others."""

MIN_TREE_SHARE = 0.3
"""Rows join a tree where they have at least this share of the shorter row in common with the row before."""

MAX_TREE_TOKENS = 1024
"""A tree does not grow beyond this, unless one row alone does: every token is compared with every other."""

_MAX_NESTING = 200


class Stem(NamedTuple):
    """Rows that begin with the same `n_shared` tokens; 0 where nothing is kept."""

    n_shared: int
    rows: list[int]
    """Indices, in lexicographic order of the rows."""


class Tree(NamedTuple):
    """Rows behind their stem, laid behind each other without their common beginnings."""

    token_ids: list[int]
    depths: list[int]
    """Tokens before each in its own row, those of the stem not counted."""
    last_descendants: list[int]
    """The last token that has this one before it, or itself; all between have it too."""
    rows: list[int]
    paths: list[list[int]]
    """Of each row, where its tokens lie."""

    @property
    def is_single(self) -> bool:
        """Whether it is one row, and needs no mask."""
        return len(self.token_ids) == len(self.paths[0])


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal tokens at the beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def plan_stems(
    rows: Sequence[Sequence[int]], limits: Sequence[int], families: Sequence[int] | None = None
) -> list[Stem]:
    """The stems that save most tokens; every row is in one, perhaps of length 0.

    Args:
        rows: tokens.
        limits: how many of each row's first tokens a stem may hold; the others have to be read with the row.
        families: a number for each row; rows of one number are read as one tree anyway, so that a stem for them
            alone saves nothing. Without it every row stands for itself.

    Returns:
        Stems in lexicographic order; the rows that share nothing worth its cost come last, in one of length 0.
    """
    order = sorted(range(len(rows)), key=lambda n: list(rows[n]))
    shared = [min(common_length(rows[a], rows[b]), limits[a], limits[b]) for a, b in pairwise(order)]
    kin = range(len(rows)) if families is None else families
    _, stems = _best_stems(order, shared, kin, 0, len(order), 0)
    taken = {row for stem in stems for row in stem.rows}
    rest = [row for row in order if row not in taken]
    return [*stems, Stem(0, rest)] if rest else stems


def _best_stems(
    order: Sequence[int], shared: Sequence[int], kin: Sequence[int], first: int, end: int, nesting: int
) -> tuple[int, list[Stem]]:
    """Tokens saved at most among neighbours, and the stems that do it: one for all of them, or those of their parts."""
    n_families = len({kin[row] for row in order[first:end]})
    if n_families < 2 or nesting > _MAX_NESTING:
        return 0, []
    depth = min(shared[first : end - 1])
    cuts = [first, *(n + 1 for n in range(first, end - 1) if shared[n] == depth), end]
    saved, stems = 0, []
    for start, stop in pairwise(cuts):
        part_saved, part_stems = _best_stems(order, shared, kin, start, stop, nesting + 1)
        saved += part_saved
        stems += part_stems
    as_one = (n_families - 1) * depth - STEM_COST_TOKENS
    if depth >= MIN_STEM_TOKENS and as_one > saved:
        return as_one, [Stem(depth, list(order[first:end]))]
    return saved, stems


def plan_trees(
    rows: Sequence[Sequence[int]],
    stem: Stem,
    max_tokens: int = MAX_TREE_TOKENS,
    *,
    may_branch: Container[int] | None = None,
) -> list[Tree]:
    """The rows of a stem as trees, longest first.

    Args:
        rows: tokens of all rows.
        stem: whose rows to take, in lexicographic order.
        max_tokens: of a tree; a longer row is one by itself.
        may_branch: rows that may share a tree with others; None for all.

    Returns:
        Trees that hold every row of the stem once.
    """
    bundles: list[list[int]] = []
    n_tokens = 0
    for before, row in pairwise([-1, *stem.rows]):
        own = len(rows[row]) - stem.n_shared
        shared = common_length(rows[before], rows[row]) - stem.n_shared if before >= 0 else 0
        is_akin = shared >= MIN_TREE_SHARE * min(own, len(rows[before]) - stem.n_shared)
        is_free = may_branch is None or (row in may_branch and before in may_branch)
        if is_free and is_akin and shared > 0 and n_tokens + own - shared <= max_tokens:
            bundles[-1].append(row)
            n_tokens += own - shared
        else:
            bundles.append([row])
            n_tokens = own
    trees = [_tree(rows, bundle, stem.n_shared) for bundle in bundles]
    return sorted(trees, key=lambda tree: -len(tree.token_ids))


def _tree(rows: Sequence[Sequence[int]], bundle: Sequence[int], n_shared: int) -> Tree:
    token_ids: list[int] = []
    depths: list[int] = []
    last: list[int] = []
    paths: list[list[int]] = []
    path: list[int] = []
    before: Sequence[int] = ()
    for row in bundle:
        own = rows[row][n_shared:]
        path = path[: common_length(before, own)]
        for token in own[len(path) :]:
            path.append(len(token_ids))
            depths.append(len(path) - 1)
            token_ids.append(token)
            last.append(0)
        for place in path:
            last[place] = len(token_ids) - 1
        paths.append(list(path))
        before = own
    return Tree(token_ids, depths, last, list(bundle), paths)


def visible_tokens(trees: Sequence[Tree], n_shared: int) -> Bool[Tensor, "batch 1 pos key"]:
    """Which tokens of stem and tree each token of a tree sees; filling at the end sees the stem and itself.

    Args:
        trees: rows of a batch; shorter ones are filled up at the end.
        n_shared: tokens of the stem, all of which are seen.

    Returns:
        True where a token (third axis) sees another (fourth axis).
    """
    length = max(len(tree.token_ids) for tree in trees)
    place = torch.arange(length)
    last = place.repeat(len(trees), 1)
    for row, tree in enumerate(trees):
        last[row, : len(tree.token_ids)] = torch.tensor(tree.last_descendants)
    own = (place[None, None, :] <= place[None, :, None]) & (place[None, :, None] <= last[:, None, :])
    stem = torch.ones(len(trees), length, n_shared, dtype=torch.bool)
    return torch.cat([stem, own], dim=2)[:, None]
