"""How often a search finds the passage that holds a fact: by words, by meaning, both, and scored again.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py DATA [--max-tokens 64 128] [--distractors FILE.jsonl ...]

DATA is a folder with one folder a document, each holding document.md, facts.jsonl and qa.jsonl. All documents go into
one index, together with the texts of the distractor files, if any. Asked are the fact-based eval questions. A passage
holds a fact when it contains the sentence of the fact's section that shares most of the fact's words, rare words
counting more. recall@k is the share of questions with such a passage among the first k; 95 % intervals by bootstrap
over the questions.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.io.bundled import cache_folder
from transfuse.io.documents import read_documents
from transfuse.io.hardware import hardware_text
from transfuse.io.jsonl import read_jsonl
from transfuse.knowledge.embedding_cache import CachedEmbedder
from transfuse.knowledge.embeddings import load_embedder
from transfuse.knowledge.index import KnowledgeIndex, open_index
from transfuse.knowledge.index_building import build_index
from transfuse.knowledge.records import Hit, IndexSettings, PassageSettings
from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.text.sections import split_sections
from transfuse.text.sentences import locate, split_sentences
from transfuse.text.wording import question_key
from transfuse.types import Document, Fact, Section

DEPTHS = (1, 5, 10)
HEADER = (
    "| passages | tokens at most | search | recall@1 | recall@5 | recall@10 | ms a question |\n"
    "|---|---|---|---|---|---|---|"
)
WAYS = {
    "lexical": {"mode": "lexical"},
    "dense": {"mode": "dense"},
    "hybrid": {"mode": "hybrid"},
    "hybrid, scored again": {"mode": "hybrid", "rerank": "exact"},
}


def words(text: str) -> set[str]:
    """Words without case and punctuation."""
    return set(question_key(text).split())


def fact_spans(document: Document, facts: Sequence[Fact]) -> dict[str, tuple[str, int, int]]:
    """By fact id, the document and the span of the sentence that says it."""
    sections, _ = split_sections(document)
    by_title: dict[str, list[Section]] = {}
    for section in sections:
        by_title.setdefault(section.title, []).append(section)
    rarity: Counter[str] = Counter()
    sentences: dict[str, list[tuple[tuple[int, int], set[str]]]] = {}
    for title, same in by_title.items():
        for section in same:
            spans = split_sentences(section.text)
            raw = document.text[slice(*section.span)]
            places = locate(spans, section.text, raw)
            for (start, end), (first, last) in zip(spans, places, strict=True):
                found = words(section.text[start:end])
                rarity.update(found)
                place = (section.span[0] + first, section.span[0] + last)
                sentences.setdefault(title, []).append((place, found))
    spoken: dict[str, tuple[str, int, int]] = {}
    for fact in facts:
        said = words(fact.fact)
        weight = {word: 1 / (1 + math.log(1 + rarity[word])) for word in said}
        place, _ = max(sentences[fact.section], key=lambda each: sum(weight[word] for word in said & each[1]))
        spoken[fact.id] = (document.name, *place)
    return spoken


def holds(hit: Hit, place: tuple[str, int, int]) -> bool:
    """Whether a passage contains the sentence."""
    document, start, end = place
    passage = hit.passage
    return passage.document == document and passage.span[0] <= start and end <= passage.span[1]


def main() -> None:
    """Build one index for each passage length, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[128])
    parser.add_argument("--distractors", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    embedder = CachedEmbedder(load_embedder("minilm-l6-v2"), cache_folder() / "embeddings.sqlite")
    documents: list[Document] = []
    asked: list[tuple[str, tuple[str, int, int]]] = []
    for folder in sorted(path.parent for path in arguments.data.glob("*/qa.jsonl")):
        (document,), _ = read_documents(folder / "document.md")
        document = Document(f"{folder.name}.md", document.text, "md")
        documents.append(document)
        facts = load_facts(folder / "facts.jsonl")
        spoken = fact_spans(document, facts)
        pairs = load_pairs(folder / "qa.jsonl", facts)
        asked += [(p.question, spoken[p.source]) for p in pairs if p.basis == "fact" and p.split == "eval"]
    for path in arguments.distractors:
        texts = [line.value["text"] for line in read_jsonl(path)]
        documents.append(Document(path.name, "\n\n".join(texts), "txt"))
    print(f"{len(asked)} questions, {len(documents)} documents; {hardware_text()}")
    print(HEADER)
    for max_tokens in arguments.max_tokens:
        settings = IndexSettings(
            passages=PassageSettings(max_tokens=max_tokens, overlap_tokens=max_tokens // 4)
        )
        with TemporaryDirectory() as folder:
            build_index(documents, Path(folder) / "index", settings, embedder)
            index = open_index(Path(folder) / "index")
            for name, way in WAYS.items():
                print(line_of(index, embedder, asked, name, way, max_tokens), flush=True)


def line_of(
    index: KnowledgeIndex, embedder: CachedEmbedder, asked: list, name: str, way: dict, max_tokens: int
) -> str:
    """One way of searching, as a line of the table."""
    queries = [question for question, _ in asked]
    index.search(queries[:1], embedder, top_n=10, **way)  # whatever is made at first use
    started = time.perf_counter()
    found = index.search(queries, embedder, top_n=10, **way)
    ms = 1e3 * (time.perf_counter() - started) / len(queries)
    cells = []
    for depth in DEPTHS:
        right = np.array(
            [
                float(any(holds(hit, place) for hit in hits[:depth]))
                for hits, (_, place) in zip(found, asked, strict=True)
            ]
        )
        estimate = cluster_bootstrap(right, np.ones(len(right)), np.arange(len(right)), 17)
        cells.append(f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]")
    return f"| {index.info.n_passages} | {max_tokens} | {name} | {' | '.join(cells)} | {ms:.2f} |"


if __name__ == "__main__":
    main()
