"""What a document run is to teach: sections, facts and questions, read and checked together."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfuse.errors import DataError
from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.inject.sections import screen_sections, split_sections
from transfuse.inject.selection import Selection, select_pairs
from transfuse.io.documents import read_documents
from transfuse.io.models import load_tokenizer
from transfuse.recipes.schema import InjectRecipe
from transfuse.types import Dropped, Fact, QAPair, Section


@dataclass(frozen=True)
class Knowledge:
    """What is to be learned, and what of it is kept out."""

    title: str
    sections: list[Section]
    facts: list[Fact]
    selection: Selection
    dropped: list[Dropped]

    @property
    def warnings(self) -> list[str]:
        """What deserves a look before work starts."""
        titles = {section.title for section in self.sections}
        strangers = [fact for fact in self.facts if fact.section not in titles]
        if not strangers:
            return self.selection.warnings
        named = ", ".join(repr(title) for title in list(dict.fromkeys(f.section for f in strangers))[:5])
        missing = f"{len(strangers)} facts name sections that are not in the documents: {named}."
        return [*self.selection.warnings, missing]


def read_sections(recipe: InjectRecipe) -> tuple[list[Section], list[Dropped]]:
    """Sections of the recipe's documents, and what was left out.

    Args:
        recipe: names the documents and the patterns.

    Returns:
        At least one section; what was dropped, with reasons.

    Raises:
        DocumentError: a document cannot be read.
        DataError: no section is left.
    """
    documents, dropped = read_documents(recipe.documents)
    sections: list[Section] = []
    for document in documents:
        found, lost = split_sections(document)
        sections += found
        dropped = [*dropped, *lost]
    sections, excluded = screen_sections(sections, include=recipe.include, exclude=recipe.exclude)
    if not sections:
        raise DataError(
            f"{recipe.documents}: expected sections with text, found none ({len(dropped)} things left out, such as "
            f"{_first_reason(dropped)}); check the document."
        )
    return sections, [*dropped, *excluded]


def select_knowledge(
    recipe: InjectRecipe, sections: list[Section], dropped: list[Dropped]
) -> tuple[Knowledge, dict[str, Any]]:
    """The recipe's facts and questions, checked against one another and the sections.

    Args:
        recipe: names the files and what to select.
        sections: of the documents.
        dropped: what was left out so far.

    Returns:
        The knowledge, and a key that changes with anything that training or measuring it depends on.

    Raises:
        DataError: facts or questions are malformed, or do not fit one another.
    """
    facts, strays = _facts_of_sections(load_facts(recipe.facts), sections, recipe)
    stray_ids = {fact.id for fact in strays}
    pairs = [
        p for p in load_pairs(recipe.qa, facts + strays) if p.basis == "token" or p.source not in stray_ids
    ]
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]

    selection = select_pairs(
        pairs,
        basis=recipe.basis,
        scale=recipe.scale,
        kept_out_share=recipe.kept_out_share,
        seed=recipe.seed,
        section_tokens=_section_tokens(sections, count_tokens) if recipe.basis == "token" else {},
        count_tokens=count_tokens,
        where=str(recipe.qa),
    )
    lost_facts = [Dropped("fact", f"{fact.id}: {fact.fact}", "its section is left out") for fact in strays]
    knowledge = Knowledge(
        title=_title(sections),
        sections=sections,
        facts=facts,
        selection=selection,
        dropped=[*dropped, *lost_facts, *selection.dropped],
    )
    key = {
        "train": [asdict(pair) for pair in selection.train],
        "eval": [asdict(pair) for pair in [*selection.evaluate, *selection.evaluate_kept_out]],
        "facts": [asdict(fact) for fact in facts],
        "sections": [asdict(section) for section in sections],
        "seed": recipe.seed,
    }
    return knowledge, key


def _section_tokens(sections: Sequence[Section], count_tokens: Callable[[str], int]) -> dict[str, int]:
    """Tokens of each section's text, by title; sections of one title are counted together."""
    counts: dict[str, int] = {}
    for section in sections:
        counts[section.title] = counts.get(section.title, 0) + count_tokens(section.text)
    return counts


def _first_reason(dropped: Sequence[Dropped]) -> str:
    return f"{dropped[0].what!r}: {dropped[0].reason}" if dropped else "nothing"


def _facts_of_sections(
    facts: list[Fact], sections: Sequence[Section], recipe: InjectRecipe
) -> tuple[list[Fact], list[Fact]]:
    """Facts of the sections in use, and those of sections that patterns left out."""
    if not recipe.include and not recipe.exclude:
        return facts, []
    titles = {section.title for section in sections}
    used = [fact for fact in facts if fact.section in titles]
    if not used:
        raise DataError(
            f"{recipe.facts}: no fact is of a section that include and exclude leave: {sorted(titles)[:8]}."
        )
    return used, [fact for fact in facts if fact.section not in titles]


def _title(sections: Sequence[Section]) -> str:
    first = sections[0]
    return first.heading_path[0] if first.heading_path else Path(first.document).stem


def oracle_contexts(knowledge: Knowledge, pairs: Sequence[QAPair]) -> dict[str, str]:
    """What the oracle row reads before each question: the text of the right section.

    Args:
        knowledge: sections and facts.
        pairs: the questions to be asked.

    Returns:
        Context by `QAPair.source`; sources whose section is not in the documents are left out.
    """
    texts: dict[str, str] = {}
    for section in knowledge.sections:
        earlier = f"{texts[section.title]}\n\n" if section.title in texts else ""
        texts[section.title] = earlier + section.text
    titles = {fact.id: fact.section for fact in knowledge.facts}
    found = {pair.source: texts.get(titles.get(pair.source, pair.source)) for pair in pairs}
    return {source: text for source, text in found.items() if text is not None}
