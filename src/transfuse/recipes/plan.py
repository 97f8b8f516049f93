"""What a run will ask and train, told before it starts."""

from rich import box
from rich.table import Table

from transfuse.baselines.rag_settings import RagSettings
from transfuse.inject.knowledge import load_facts
from transfuse.inject.writing_plan import (
    PlannedStep,
    Work,
    plan_fact_pairs,
    plan_facts,
    plan_section_pairs,
)
from transfuse.recipes.inject_knowledge import document_title, read_sections, select_knowledge, token_counter
from transfuse.recipes.schema import InjectRecipe

TYPICAL_FACT = "The final of the tournament was played on 19 August 2023 in the stadium of the capital."
CHARACTERS_AROUND_A_FACT = 900
"""Of the source text that a question is verified against."""


def plan_table(recipe: InjectRecipe) -> Table:
    """Requests, tokens and, with prices given, cost of every step, least and most; and what will be trained.

    Args:
        recipe: any inject recipe; nothing is asked of its generator.

    Returns:
        A table for a rich console.

    Raises:
        TransfuseError: the documents or files cannot be read.
    """
    _, sections, dropped = read_sections(recipe)
    count_tokens, title = token_counter(recipe), document_title(sections)
    steps: list[PlannedStep] = []
    n_facts: tuple[int, int] = (0, 0)
    if recipe.facts is not None:
        n_given = len(load_facts(recipe.facts))
        n_facts = (n_given, n_given)
    else:
        step, n_facts = plan_facts(sections, title, recipe.writing.facts, count_tokens)
        steps.append(step)
    n_pairs: str
    if recipe.qa is not None and recipe.facts is not None:
        knowledge, _ = select_knowledge(recipe, sections, dropped, recipe.facts, recipe.qa)
        n_pairs = str(len(knowledge.selection.train))
    elif recipe.basis == "fact":
        source = max((section.text for section in sections), key=len)[:CHARACTERS_AROUND_A_FACT]
        steps.append(
            plan_fact_pairs(
                n_facts, TYPICAL_FACT, source, title, recipe.writing.pairs, recipe.scale, count_tokens
            )
        )
        n_pairs = _range(*(round((1 - recipe.kept_out_share) * recipe.scale * n) for n in n_facts))
    else:
        steps.append(plan_section_pairs(sections, title, recipe.writing.pairs, recipe.scale, count_tokens))
        n_tokens = sum(count_tokens(section.text) for section in sections)
        n_pairs = f"those of {recipe.scale * n_tokens:,} tokens"
    return _table(recipe, steps, n_facts, n_pairs)


def _table(recipe: InjectRecipe, steps: list[PlannedStep], n_facts: tuple[int, int], n_pairs: str) -> Table:
    settings = recipe.generator
    prices = (settings.price_in, settings.price_out) if settings is not None else (None, None)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
    for name in ("", "Requests", "Tokens read", "Tokens written", "Cost"):
        table.add_column(name, justify="left" if not name else "right")
    total = PlannedStep(
        "together", Work().plus(*(s.least for s in steps)), Work().plus(*(s.most for s in steps))
    )
    for step in [*steps, total] if steps else []:
        cells = [_range(low, high) for low, high in zip(step.least, step.most, strict=True)]
        cost = "no price given"
        if prices[0] is not None and prices[1] is not None:
            cost = f"{step.least.cost(*prices):.4f} – {step.most.cost(*prices):.4f}"  # type: ignore[arg-type]
        table.add_row(step.name, *cells, cost)
    budget = recipe.train.n_tokens
    how_long = (
        f"{recipe.train.n_epochs} times over" if budget is None else f"{budget:,} tokens of them in all"
    )
    told = [f"Facts: {_range(*n_facts)}. Training questions: {n_pairs}, {how_long}."]
    if steps:
        told.append(
            "From: everything accepted at once; to: every limit reached. Tokens as the model that is taught counts "
            "them. Replies in the cache cost nothing."
        )
    else:
        told.append("Facts and questions are given: nothing will be asked of a generator.")
    if recipe.rag is not None:
        told.append(_retrieval_text(recipe.rag))
    table.caption = "\n".join(told)
    return table


def _retrieval_text(settings: RagSettings) -> str:
    """What the model that is taught will be asked besides; costs time, no money."""
    numbers = sorted(set(settings.candidates))
    tries = (
        ""
        if settings.k
        else f"up to {len(numbers) * settings.n_tuning_questions:,} times a training question, "
    )
    return (
        f"With retrieved passages: {tries}and every eval question twice, are put to the model itself (--no-rag leaves "
        "that out)."
    )


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"
