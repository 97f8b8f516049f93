"""What an evaluation will ask, told before it starts; and which benchmarks there are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from transfuse.evaluate.benchmark_table import BENCHMARKS
from transfuse.evaluate.instructions import load_instructions
from transfuse.recipes.eval_inputs import Inputs, read_inputs
from transfuse.recipes.eval_schema import UNANSWERABLE, EvalRecipe, RetrievalSettings
from transfuse.recipes.eval_system import open_systems
from transfuse.recipes.inject_knowledge import token_counter

N_SAMPLED = 32
"""Items whose tokens are counted; the others are taken to be like them."""

CountTokens = Callable[[str], int]


class PlannedSet(NamedTuple):
    """One set of items, for one system."""

    group: str
    name: str
    n_items: int
    n_requests: int
    """Passages through the model: of a choice among options, one an option."""
    n_read: int
    """Tokens, about; what several requests have in common is counted each time."""
    n_written: int
    """Tokens, at most."""


def plan_eval(recipe: EvalRecipe) -> Table:
    """What a recipe asks; files and models are checked, and no weights are loaded.

    Args:
        recipe: any eval recipe.

    Returns:
        A table for a rich console.

    Raises:
        TransfuseError: what the run itself would refuse.
    """
    systems = open_systems(recipe)
    inputs = read_inputs(recipe)
    planned = planned_sets(recipe, inputs, token_counter(systems[0]))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold")
    for name in ("items", "requests", "tokens read", "written, at most"):
        table.add_column(name, justify="right")
    for each in planned:
        table.add_row(
            Text(f"{each.name} ({each.group})" if each.name != each.group else each.name),
            f"{each.n_items:,}",
            f"{each.n_requests:,}",
            f"{each.n_read:,}",
            f"{each.n_written:,}" if each.n_written else "",
        )
    if len(planned) > 1:
        totals = [sum(column) for column in zip(*(each[2:] for each in planned), strict=True)]
        table.add_section()
        table.add_row("together", *(f"{total:,}" for total in totals))
    twice = "Each of the two systems is asked all of it. " if len(systems) > 1 else ""
    table.caption = (
        f"{twice}Tokens are estimates (first {N_SAMPLED} items of each set); passages before questions are not counted "
        f"exactly. What was asked before of the same model is not asked again."
    )
    table.caption_justify = "left"
    return table


def planned_sets(recipe: EvalRecipe, inputs: Inputs, count: CountTokens) -> list[PlannedSet]:
    """What each set of a recipe asks of one system.

    Args:
        recipe: names the limits.
        inputs: the sets.
        count: tokens of a text.

    Returns:
        One a set, in the order in which they are asked.
    """
    found: list[PlannedSet] = []
    passages = _passage_tokens(recipe.retrieval) if recipe.retrieval is not None else 0
    sets = {name: (pairs, recipe.questions[name].max_new_tokens) for name, pairs in inputs.questions.items()}
    if recipe.unanswerable is not None:
        sets[UNANSWERABLE] = (inputs.unanswerable, recipe.unanswerable.max_new_tokens)
    for name, (pairs, limit) in sets.items():
        group = name if name == UNANSWERABLE else "questions"
        n = len(pairs)
        read = _estimated([pair.question for pair in pairs], count) + n * passages
        found.append(PlannedSet(group, name, n, n, read, n * limit))
    for name, samples in inputs.samples.items():
        settings, n = recipe.samples[name], len(samples.items)
        read = _estimated(
            ["\n".join([*(t.content for t in i.messages), i.answer]) for i in samples.items], count
        )
        asks = settings.generate and samples.kind != "choice"
        written = n * settings.max_new_tokens if asks else 0
        found.append(PlannedSet("samples", name, n, n * (1 + asks), read * (1 + asks), written))
    if recipe.judge is not None:
        instructions = load_instructions(recipe.judge)
        n = len(instructions)
        read = _estimated([each.text for each in instructions], count)
        found.append(PlannedSet("judge", recipe.judge.set_name, n, n, read, n * recipe.judge.max_new_tokens))
    for name, texts in inputs.texts.items():
        found.append(PlannedSet("texts", name, len(texts), len(texts), _estimated(texts, count), 0))
    return [*found, *_benchmarks(recipe, count)]


def _benchmarks(recipe: EvalRecipe, count: CountTokens) -> list[PlannedSet]:
    found: list[PlannedSet] = []
    if recipe.benchmarks:
        from transfuse.evaluate.benchmark_plan import sampled_requests

        for name, settings in recipe.benchmarks.items():
            sampled = sampled_requests(name, settings, N_SAMPLED)
            share = sampled.n_items / max(1, sampled.n_sampled)
            read = round(share * sum(map(count, sampled.texts)))
            requests = round(share * len(sampled.texts))
            found.append(
                PlannedSet(
                    "benchmarks", name, sampled.n_items, requests, read, round(share * sampled.n_written)
                )
            )
    return found


def _estimated(texts: Sequence[str], count: CountTokens) -> int:
    """Tokens of all texts, from those of the first, by characters."""
    sample = texts[:N_SAMPLED]
    n_characters = sum(map(len, sample))
    return round(sum(map(count, sample)) * sum(map(len, texts)) / n_characters) if n_characters else 0


def _passage_tokens(settings: RetrievalSettings) -> int:
    """Of the passages before one question, at most."""
    return (settings.n_passages or max(settings.candidates)) * settings.passages.max_tokens


def benchmarks_table() -> Table:
    """The benchmarks whose form is known, and where their data is to be had; lm-eval's other tasks run as well."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("--tasks", "what it is", "shots", "data"):
        table.add_column(name, overflow="fold", justify="right" if name == "shots" else "left")
    for name, each in BENCHMARKS.items():
        table.add_row(Text(name, style="bold"), Text(each.title), str(each.n_shot), Text(each.hub))
    table.caption = (
        "Any other task of lm-evaluation-harness runs as well. NAME-5shot sets the examples, --data NAME=PATH takes "
        "items from local files."
    )
    table.caption_justify = "left"
    return table
