"""Documents to facts and questions by a generator: two stages, the ledger of both, and files that people edit."""

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from transfuse.errors import DataError, GenerationError
from transfuse.generate.asking import Asker, AskerCounts, run_asking
from transfuse.generate.opening import open_generator
from transfuse.generate.protocol import Ask
from transfuse.generate.references import generator_key
from transfuse.generate.reply_cache import ReplyCache, default_cache_path
from transfuse.generate.settings import WITHOUT_EFFECT
from transfuse.inject.fact_sources import fact_sources
from transfuse.inject.fact_writing import FactSheet, write_facts
from transfuse.inject.knowledge import fact_row, load_facts, pair_row
from transfuse.inject.ledger import PairSheet, counted_reasons, ledger_rows
from transfuse.inject.pair_extras import write_extra_pairs
from transfuse.inject.pair_writing import write_fact_pairs
from transfuse.inject.paraphrases import write_paraphrases
from transfuse.inject.section_pair_writing import write_section_pairs
from transfuse.io.files import file_sha256, write_json, write_text
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.run_folder import RunFolder, Stage
from transfuse.recipes.embedding import cached_embedder
from transfuse.recipes.inject_knowledge import titles_of_sections, token_counter
from transfuse.recipes.progress import Advance, Display
from transfuse.recipes.schema import InjectRecipe
from transfuse.types import Document, Dropped, Fact, Section

FACTS_VERSION, PARAPHRASES_VERSION, PAIRS_VERSION = 1, 1, 1
PROBE_PAIRS = "probe_pairs"
"""The stage of the questions that the model is probed with."""
FACTS_FILE, PAIRS_FILE, LEDGER_FILE = "facts.jsonl", "qa.jsonl", "ledger.jsonl"

SHOW_EVERY_S = 0.2
"""Telling of every reply would take longer than reading it."""
T = TypeVar("T")
StopAfter = Literal["facts", "questions", "training"]
"""The file after which a run stops, for people to read and edit it; `training` leaves out all measuring."""


@dataclass(frozen=True)
class Written:
    """The files of facts and questions that a run goes on with, and how they came to be."""

    facts: Path
    qa: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each writing stage: requests asked, from the cache, sent, failed; tokens read and written."""
    ledger: list[dict[str, Any]] = field(default_factory=list)
    """What became of every sentence, fact and pair; empty where both files were given."""
    known: list[str] | None = None
    """Ids of the facts that the model knows, where that was asked before their questions were written."""


@final
class Writer:
    """The generator behind all writing stages, opened when it is first needed; they share its budget."""

    def __init__(self, recipe: InjectRecipe, display: Display) -> None:
        self.display = display
        self._recipe = recipe
        self._asker: Asker | None = None
        self._cache: ReplyCache | None = None
        self._note: Callable[[], None] = lambda: None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._cache is not None:
            self._cache.close()

    def run(self, title: str, main: Callable[[Ask, Advance], Awaitable[T]]) -> tuple[T, AskerCounts]:
        """Run a writing stage; every reply is kept as it arrives.

        Args:
            title: what is being written, for the display.
            main: the stage; given who to ask, and where to report progress.

        Returns:
            What the stage returns, and what it asked.
        """
        asker = self._opened()
        before = asker.counts
        done, total, shown_at = 0, 0, 0.0
        with self.display.bar(title) as advance:

            def show() -> None:
                advance(done, total, _asked(_since(before, asker.counts)))

            def note() -> None:
                nonlocal shown_at
                if time.monotonic() - shown_at > SHOW_EVERY_S:
                    shown_at = time.monotonic()
                    show()

            def on_progress(n_done: int, n_total: int, _: str = "") -> None:
                nonlocal done, total
                done, total = n_done, n_total
                show() if done == total else note()

            self._note = note
            result = run_asking(lambda ask: main(ask, on_progress), asker)
        return result, _since(before, asker.counts)

    def _opened(self) -> Asker:
        recipe, settings = self._recipe, self._recipe.generator
        if settings is None:
            raise GenerationError("no generator is given; name one with --generator.")
        if self._asker is None:
            generator = open_generator(
                settings, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code
            )
            self._cache = ReplyCache(default_cache_path())
            self._asker = Asker(
                generator,
                self._cache,
                n_at_once=settings.n_at_once,
                max_requests=settings.max_requests,
                max_tokens=settings.max_tokens,
                on_reply=lambda counts: self._note(),
            )
        return self._asker


def _since(before: AskerCounts, now: AskerCounts) -> AskerCounts:
    earlier = asdict(before)
    return AskerCounts(**{name: number - earlier[name] for name, number in asdict(now).items()})


def write_knowledge(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    documents: Sequence[Document],
    sections: Sequence[Section],
    files_key: Mapping[str, Any],
    *,
    known_of: Callable[[Path, Path], list[str]],
    stop_after: StopAfter | None = None,
) -> Written:
    """The facts and questions of a run: the given files, or what the generator writes into the run folder.

    Args:
        recipe: names the files or the generator.
        run: the run folder; finished stages are reused, and edits of what they wrote are honoured.
        display: progress.
        documents: as read.
        sections: of the documents, screened.
        files_key: changes with the documents.
        known_of: gives the facts that the model knows, from the files of facts and of a few questions about each;
            called where the recipe probes, so that no more is written about them than is trained.
        stop_after: where to stop; the questions are not written after "facts".

    Returns:
        Where the facts and questions are, and the ledger.

    Raises:
        GenerationError: the generator cannot go on; the ledger says what is undone, and a second run continues.
        DataError: no fact was found.
    """
    if recipe.facts is not None and recipe.qa is not None:
        return Written(recipe.facts, recipe.qa)
    stages: list[Stage] = []
    facts_path = recipe.facts
    with Writer(recipe, display) as writer:
        if facts_path is None:
            facts_path, stage = _write_facts(recipe, run, writer, documents, sections, files_key)
            stages.append(stage)
        if stop_after == "facts":
            display.say(
                f"Facts are in {facts_path}; read and edit them, then run the same command without the stop."
            )
            return Written(facts_path, facts_path)
        if recipe.writing.pairs.paraphrases:
            facts_path, stage = _write_paraphrases(recipe, run, writer, sections, facts_path)
            stages.append(stage)
        known: list[str] | None = None
        if recipe.probe.n_questions and recipe.basis == "fact":
            probed = recipe.model_copy(update={"scale": recipe.probe.n_questions})
            probe_path, stage = _write_pairs(probed, run, writer, documents, sections, facts_path, files_key)
            stages.append(stage)
            known = known_of(facts_path, probe_path)
        qa_path, stage = _write_pairs(
            recipe, run, writer, documents, sections, facts_path, files_key, known=known
        )
        stages.append(stage)
    if stop_after == "questions":
        display.say(
            f"Questions are in {qa_path}; read and edit them, then run the same command without the stop."
        )
    # What was written for the probe is written once more, and further, with the rest.
    told = [each for each in stages if each.folder.name != PROBE_PAIRS]
    ledger = [line.value for each in told for line in read_jsonl(each.folder / LEDGER_FILE)]
    write_jsonl(run.path / LEDGER_FILE, ledger)
    counts = {each.folder.name: _read(each.folder / "counts.json") for each in stages}
    return Written(facts_path, qa_path, counts, ledger, known)


def _write_facts(
    recipe: InjectRecipe,
    run: RunFolder,
    writer: Writer,
    documents: Sequence[Document],
    sections: Sequence[Section],
    files_key: Mapping[str, Any],
) -> tuple[Path, Stage]:
    settings = recipe.writing.facts
    key = {**files_key, **_generator_key(recipe), "facts": settings.model_dump(mode="json")}
    texts = {document.name: document.text for document in documents}
    with run.stage("facts", key, version=FACTS_VERSION) as stage:
        if not stage.is_done:
            sheet, counts = writer.run(
                "facts",
                lambda ask, advance: write_facts(
                    sections, texts, ask, settings, on_progress=lambda done, total: advance(done, total, "")
                ),
            )
            ledger = _fact_ledger(sheet)
            _save(stage, counts, ledger, FACTS_FILE, [fact_row(fact) for fact in sheet.facts])
            _stop_if_asked(run, sheet.stopped, ledger)
            if not sheet.facts:
                write_jsonl(run.path / LEDGER_FILE, ledger)
                raise DataError(_no_facts(recipe, sheet, run.path / LEDGER_FILE))
    return _published(run, stage, FACTS_FILE, writer.display), stage


def _write_paraphrases(
    recipe: InjectRecipe, run: RunFolder, writer: Writer, sections: Sequence[Section], facts_path: Path
) -> tuple[Path, Stage]:
    """The facts with their paraphrases, in the stage's own folder."""
    settings, facts = recipe.writing.pairs, load_facts(facts_path)
    titles = _titles_of_facts(facts, titles_of_sections(sections))
    key = {**_generator_key(recipe), "facts": file_sha256(facts_path), "n": settings.paraphrases}
    key |= {"seed": recipe.seed, "temperature": settings.temperature, "top_p": settings.top_p}
    with run.stage("paraphrases", key, version=PARAPHRASES_VERSION) as stage:
        if not stage.is_done:
            sheet, counts = writer.run(
                "paraphrases",
                lambda ask, advance: write_paraphrases(
                    facts,
                    ask,
                    settings,
                    title=titles,
                    seed=recipe.seed,
                    on_progress=lambda done, total: advance(done, total, ""),
                ),
            )
            ledger = [_dropped_row(each) for each in sheet.dropped]
            _save(stage, counts, ledger, FACTS_FILE, [fact_row(fact) for fact in sheet.facts])
            _stop_if_asked(run, sheet.stopped, ledger)
    return stage.folder / FACTS_FILE, stage


def _write_pairs(
    recipe: InjectRecipe,
    run: RunFolder,
    writer: Writer,
    documents: Sequence[Document],
    sections: Sequence[Section],
    facts_path: Path,
    files_key: Mapping[str, Any],
    *,
    known: Sequence[str] | None = None,
) -> tuple[Path, Stage]:
    """The questions; for a probe (`known` is not known yet, though it is asked for) in the stage's own folder."""
    settings = recipe.writing.pairs
    facts = load_facts(facts_path)
    is_probe = recipe.probe.n_questions > 0 and known is None and recipe.basis == "fact"
    scales = {
        fact.id: recipe.probe.known_scale if fact.id in (known or ()) else recipe.scale for fact in facts
    }
    key = {**files_key, **_generator_key(recipe), "pairs": settings.model_dump(mode="json")}
    key |= {"facts": file_sha256(facts_path), "basis": recipe.basis, "scale": recipe.scale}
    key |= {"seed": recipe.seed, "near_duplicate": recipe.coverage.near_duplicate}
    if recipe.coverage.near_duplicate is not None:
        key["embedder"] = recipe.coverage.embedder
    if recipe.basis == "token":
        key["tokenizer"] = recipe.model
    if known is not None:
        key["known"] = sorted(known)
    with run.stage(PROBE_PAIRS if is_probe else "pairs", key, version=PAIRS_VERSION) as stage:
        if not stage.is_done:
            story = _pair_story(recipe, documents, sections, facts, scales, has_extras=not is_probe)
            sheet, counts = writer.run("questions", story)
            ledger = ledger_rows(sheet)
            _save(stage, counts, ledger, PAIRS_FILE, [pair_row(pair) for pair in sheet.pairs])
            earlier = run.path / "facts" / LEDGER_FILE
            before = [line.value for line in read_jsonl(earlier)] if earlier.is_file() else []
            _stop_if_asked(run, sheet.stopped, [*before, *ledger])
            if not sheet.pairs:
                write_jsonl(run.path / LEDGER_FILE, [*before, *ledger])
                raise DataError(_no_pairs(recipe, sheet, run.path / LEDGER_FILE))
    if is_probe:
        return stage.folder / PAIRS_FILE, stage
    return _published(run, stage, PAIRS_FILE, writer.display), stage


def _pair_story(
    recipe: InjectRecipe,
    documents: Sequence[Document],
    sections: Sequence[Section],
    facts: Sequence[Fact],
    scales: Mapping[str, int],
    *,
    has_extras: bool,
) -> Callable[[Ask, Advance], Awaitable[PairSheet]]:
    """The writing of pairs, fact by fact or section by section; further kinds of pairs after the direct ones."""
    settings, titles = recipe.writing.pairs, titles_of_sections(sections)
    is_near = _near_questions(recipe)
    sources = fact_sources(facts, sections, documents)

    async def write(ask: Ask, advance: Advance) -> PairSheet:
        def on_progress(done: int, total: int) -> None:
            advance(done, total, "")

        if recipe.basis == "token":
            return await write_section_pairs(
                sections,
                ask,
                settings,
                scale=recipe.scale,
                count_tokens=token_counter(recipe),
                title=titles,
                seed=recipe.seed,
                is_near=is_near,
                on_progress=on_progress,
            )
        sheet = await write_fact_pairs(
            facts,
            sources,
            ask,
            settings,
            scale=scales,
            title=_titles_of_facts(facts, titles),
            seed=recipe.seed,
            is_near=is_near,
            on_progress=on_progress,
        )
        if not has_extras:
            return sheet
        return await write_extra_pairs(
            sheet,
            facts,
            sources,
            sections,
            ask,
            settings,
            title=_titles_of_facts(facts, titles),
            seed=recipe.seed,
            on_progress=on_progress,
        )

    return write


def _titles_of_facts(facts: Sequence[Fact], titles: Mapping[str, str]) -> dict[str, str]:
    """By fact id, what its document is about; facts of a section that is in none are of the first."""
    first = next(iter(titles.values()))
    return {fact.id: titles.get(fact.section, first) for fact in facts}


def _near_questions(recipe: InjectRecipe) -> Callable[[str, Sequence[str]], bool] | None:
    """Whether a question is near an earlier one by embedding; None where only wordings are compared."""
    threshold, reference = recipe.coverage.near_duplicate, recipe.coverage.embedder
    if threshold is None or reference is None:
        return None
    embed = cached_embedder(reference, trust_remote_code=recipe.trust_remote_code).embed

    def is_near(question: str, earlier: Sequence[str]) -> bool:
        vectors = embed([question, *earlier])
        return bool((vectors[1:] @ vectors[0] >= threshold).any())

    return is_near


def _fact_ledger(sheet: FactSheet) -> list[dict[str, Any]]:
    sentences = [{"kind": "sentence", **asdict(sentence)} for sentence in sheet.sentences]
    return [*sentences, *(_dropped_row(dropped) for dropped in sheet.dropped)]


def _dropped_row(dropped: Dropped) -> dict[str, Any]:
    return {"kind": f"dropped {dropped.kind}", "what": dropped.what, "reason": dropped.reason}


def _save(
    stage: Stage,
    counts: AskerCounts,
    ledger: Sequence[Mapping[str, Any]],
    name: str,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    write_jsonl(stage.folder / LEDGER_FILE, ledger)
    write_jsonl(stage.folder / name, rows)
    write_json(stage.folder / "counts.json", asdict(counts))


def _stop_if_asked(
    run: RunFolder, stopped: GenerationError | None, ledger: Sequence[Mapping[str, Any]]
) -> None:
    """End the run where the generator cannot go on, the ledger being complete."""
    if stopped is None:
        return
    write_jsonl(run.path / LEDGER_FILE, ledger)
    raise type(stopped)(f"{stopped} What is done and undone stands in {run.path / LEDGER_FILE}.") from stopped


def _published(run: RunFolder, stage: Stage, name: str, display: Display) -> Path:
    """The file that people read and edit, beside the stage's own copy; an edited one is never written over."""
    path, made = run.path / name, stage.folder / name
    if path.is_file() and (stage.is_done or path.read_bytes() == made.read_bytes()):
        return path
    if path.is_file():
        number = next(n for n in range(1, 10_000) if not run.path.joinpath(f"{path.stem}.{n}.jsonl").exists())
        aside = run.path / f"{path.stem}.{number}.jsonl"
        path.rename(aside)
        display.say(f"Note: {name} is written anew; what stood there is now {aside.name}.")
    write_text(path, made.read_text(encoding="utf-8"))
    return path


def _no_facts(recipe: InjectRecipe, sheet: FactSheet, ledger: Path) -> str:
    reasons = Counter(each.reason for each in [*sheet.sentences, *sheet.dropped] if each.reason)
    listed = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(3))
    return (
        f"{recipe.documents}: no fact was found in {len(sheet.sentences)} sentences: {listed}. {ledger} lists every "
        f"sentence; try a stronger generator, or give facts in a file (--facts)."
    )


def _no_pairs(recipe: InjectRecipe, sheet: PairSheet, ledger: Path) -> str:
    reasons = counted_reasons(
        [drop.reason for drop in sheet.dropped] or [fate.reason for fate in sheet.fates]
    )
    what = "facts" if recipe.basis == "fact" else "sections"
    return (
        f"{recipe.documents}: no question passed the checks, of {len(sheet.fates)} {what} ({reasons[:300]}). {ledger} "
        f"lists them all; try a stronger generator, or give questions in a file (--qa)."
    )


def _generator_key(recipe: InjectRecipe) -> dict[str, Any]:
    """What the replies depend on beside the requests."""
    settings = recipe.generator
    if settings is None:
        return {}
    kept = settings.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    return {"generator": kept | {"weights": generator_key(settings)}}


def _asked(counts: AskerCounts) -> str:
    text = f"{counts.n_sent} requests"
    text += f", {counts.n_cached} from the cache" if counts.n_cached else ""
    text += f", {counts.n_failed} failed" if counts.n_failed else ""
    return text


def _read(path: Path) -> dict[str, int]:
    return json.loads(path.read_text(encoding="utf-8"))
