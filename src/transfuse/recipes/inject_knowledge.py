"""What a document run is to teach: sections, facts and questions, read and checked together."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from transfuse.errors import DataError
from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.inject.near_questions import screen_near_questions
from transfuse.inject.selection import Selection, select_pairs
from transfuse.io.documents import read_documents
from transfuse.io.models import load_tokenizer
from transfuse.recipes.embedding import cached_embedder
from transfuse.recipes.schema import InjectRecipe
from transfuse.text.sections import screen_sections, split_sections
from transfuse.types import Document, Dropped, Fact, QAPair, Section


@dataclass(frozen=True)
class Knowledge:
    """What is to be learned, and what of it is kept out."""

    title: str
    sections: list[Section]
    facts: list[Fact]
    selection: Selection
    dropped: list[Dropped]
    known: frozenset[str] | None = None
    """Ids of the facts that the untouched model knows; None where it was not asked."""

    def train_by_source(self) -> dict[str, list[QAPair]]:
        """Training pairs of each fact (basis `token`: each section)."""
        grouped: dict[str, list[QAPair]] = {}
        for pair in self.selection.train:
            grouped.setdefault(pair.source, []).append(pair)
        return grouped

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


def read_sections(recipe: InjectRecipe) -> tuple[list[Document], list[Section], list[Dropped]]:
    """The recipe's documents, their sections, and what was left out.

    Args:
        recipe: names the documents and the patterns.

    Returns:
        Documents; at least one section; what was dropped, with reasons.

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
    return documents, sections, [*dropped, *excluded]


def select_knowledge(
    recipe: InjectRecipe,
    sections: list[Section],
    dropped: list[Dropped],
    facts_path: Path,
    qa_path: Path,
    *,
    known: Collection[str] = (),
) -> tuple[Knowledge, dict[str, Any]]:
    """Facts and questions, checked against one another and the sections.

    Args:
        recipe: names what to select.
        sections: of the documents.
        dropped: what was left out so far.
        facts_path: JSONL of facts, given or written.
        qa_path: JSONL of questions and answers, given or written.
        known: ids of facts that the model knows already.

    Returns:
        The knowledge, and a key that changes with anything that training or measuring it depends on.

    Raises:
        DataError: facts or questions are malformed, or do not fit one another.
    """
    facts, strays = _facts_of_sections(load_facts(facts_path), sections, recipe)
    stray_ids = {fact.id for fact in strays}
    pairs = [
        p for p in load_pairs(qa_path, facts + strays) if p.basis == "token" or p.source not in stray_ids
    ]
    pairs, near = _screened(recipe, pairs)
    count_tokens = token_counter(recipe)
    selection = select_pairs(
        pairs,
        basis=recipe.basis,
        scale=recipe.scale,
        scale_of=dict.fromkeys(known, recipe.probe.known_scale),
        extra_shares=recipe.writing.pairs.shares,
        kept_out_share=recipe.kept_out_share,
        seed=recipe.seed if recipe.kept_out_seed is None else recipe.kept_out_seed,
        section_tokens=section_tokens(sections, count_tokens) if recipe.basis == "token" else {},
        count_tokens=count_tokens,
        where=str(qa_path),
    )
    lost_facts = [Dropped("fact", f"{fact.id}: {fact.fact}", "its section is left out") for fact in strays]
    knowledge = Knowledge(
        title=document_title(sections),
        sections=sections,
        facts=facts,
        selection=selection,
        dropped=[*dropped, *lost_facts, *near, *selection.dropped],
        known=frozenset(known) if recipe.probe.n_questions else None,
    )
    key = {
        "train": [asdict(pair) for pair in [*selection.train, *selection.extra]],
        "eval": [asdict(pair) for pair in [*selection.evaluate, *selection.evaluate_kept_out]],
        "facts": [asdict(fact) for fact in facts],
        "sections": [asdict(section) for section in sections],
        "seed": recipe.seed,
    }
    return knowledge, key


def _screened(recipe: InjectRecipe, pairs: list[QAPair]) -> tuple[list[QAPair], list[Dropped]]:
    """Without near-duplicates, where the recipe names a threshold."""
    threshold = recipe.coverage.near_duplicate
    if threshold is None or recipe.coverage.embedder is None:
        return pairs, []
    model = cached_embedder(recipe.coverage.embedder, trust_remote_code=recipe.trust_remote_code)
    return screen_near_questions(pairs, model.embed, threshold)


@runtime_checkable  # for the checks of the test suite
class AskedModel(Protocol):
    """A recipe, or what names a model in its place."""

    @property
    def model(self) -> str:
        """Model reference."""
        ...

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with the model may run."""
        ...


def token_counter(recipe: AskedModel) -> Callable[[str], int]:
    """How many tokens a text has for the model that is taught; its tokenizer is loaded at the first call."""
    tokenizer: list[PreTrainedTokenizerBase] = []

    def count_tokens(text: str) -> int:
        if not tokenizer:
            tokenizer.append(load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code))
        return len(tokenizer[0](text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]

    return count_tokens


def section_tokens(sections: Sequence[Section], count_tokens: Callable[[str], int]) -> dict[str, int]:
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
            f"{recipe.facts or 'facts'}: no fact is of a section that include and exclude leave: {sorted(titles)[:8]}."
        )
    return used, [fact for fact in facts if fact.section not in titles]


def titles_of_sections(sections: Sequence[Section]) -> dict[str, str]:
    """By section title, what its document is about; of sections that share a title, the first one's."""
    titles: dict[str, str] = {}
    for section in sections:
        titles.setdefault(section.title, document_title([section]))
    return titles


def document_title(sections: Sequence[Section]) -> str:
    """What the documents are about: the first heading, or the first file's name."""
    first = sections[0]
    return first.heading_path[0] if first.heading_path else Path(first.document).stem


def oracle_contexts(knowledge: Knowledge, pairs: Sequence[QAPair]) -> dict[str, str]:
    """What the oracle row reads before each question: the text of the right section.

    Args:
        knowledge: sections and facts.
        pairs: the questions to be asked.

    Returns:
        Context by `QAPair.id`; pairs whose section is not in the documents are left out.
    """
    return section_contexts(knowledge.sections, knowledge.facts, pairs)


def section_contexts(
    sections: Sequence[Section], facts: Sequence[Fact], pairs: Sequence[QAPair]
) -> dict[str, str]:
    """The text of the section that each question's fact stands in.

    Args:
        sections: of the documents; those of one title are read together.
        facts: name their sections. Pairs of basis `token` name theirs themselves.
        pairs: the questions.

    Returns:
        Text by `QAPair.id`; pairs whose section is not there are left out.
    """
    texts: dict[str, str] = {}
    for section in sections:
        earlier = f"{texts[section.title]}\n\n" if section.title in texts else ""
        texts[section.title] = earlier + section.text
    titles = {fact.id: fact.section for fact in facts}
    found = {pair.id: texts.get(titles.get(pair.source, pair.source)) for pair in pairs}
    return {pair_id: text for pair_id, text in found.items() if text is not None}
