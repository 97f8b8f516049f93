"""The document route: documents, facts and questions in, an adapter and its proof out.

Source: Mecklenburg et al. 2024, arXiv:2404.00213. Differs: grading is by string metrics instead of a model; a
share of the facts is kept out of training, and bits per byte on generic text is measured, so that a gain from
answer style and a loss from forgetting both show.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfuse import __version__
from transfuse.errors import DataError
from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.evaluate.questions import answer_estimates, ask_questions, estimate_json
from transfuse.generate.local import LocalGenerator
from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.inject.records import training_rows
from transfuse.inject.sections import screen_sections, split_sections
from transfuse.inject.selection import Selection, select_pairs
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.documents import read_documents
from transfuse.io.files import atomic_folder, file_sha256, write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.hardware import hardware_text, manifest
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.models import LoadedModel, load_model, load_tokenizer
from transfuse.io.run_folder import RunFolder, Stage, open_run
from transfuse.recipes.progress import Display, time_text
from transfuse.recipes.schema import InjectRecipe, resolved
from transfuse.recipes.team import Team
from transfuse.train.adapters import attach_lora, load_adapter, save_adapter
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import Progress, TrainingSummary, train
from transfuse.types import AnswerRecord, Dropped, Fact, QAPair, Section

DOCUMENTS_VERSION, QUESTIONS_VERSION, MEASURE_VERSION, TRAINING_VERSION = 1, 1, 1, 1

Texts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Knowledge:
    """What is to be learned, and what of it is kept out."""

    title: str
    sections: list[Section]
    facts: list[Fact]
    selection: Selection
    dropped: list[Dropped]


@dataclass(frozen=True)
class Measurement:
    """A model's answers and its bits per byte."""

    answers: dict[str, list[AnswerRecord]]
    """By the end of the row's name: ``, `/kept-out`, or `oracle`."""
    texts: Texts
    """Bits per byte by the text's name, as estimates."""


def run_inject(recipe: InjectRecipe, out: Path, *, overwrite: bool, command: str) -> Path:
    """Run the document route, or continue it where an earlier process stopped.

    Args:
        recipe: what to do.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over.
        command: for the manifest and the report.

    Returns:
        The run folder, with `report.json` and the adapter (or model) in it.

    Raises:
        TransfuseError: any fault of the input, the model or the machine, with what to do.
    """
    team = Team()
    if not team.is_main:
        _join_training(recipe, team)
        return out
    display = Display()
    started = _now()
    with open_run(out, resolved(recipe), overwrite=overwrite) as run:
        write_json(run.path / "manifest.json", manifest(command, started, None))
        knowledge, knowledge_key = _read_knowledge(recipe, run, display)
        for warning in knowledge.selection.warnings:
            display.say(f"Note: {warning}")
        weights = {
            "model": recipe.model,
            "weights": model_fingerprint(recipe.model),
            "precision": recipe.precision,
        }
        before = _measure_base(recipe, run, display, knowledge, {**knowledge_key, **weights})
        training, key = _train(recipe, run, display, team, knowledge, {**knowledge_key, **weights})
        after = _measure_trained(recipe, run, display, knowledge, key)
        report = _report(recipe, run, knowledge, before, after, training, command)
        write_json(run.path / "report.json", report)
        write_json(run.path / "manifest.json", manifest(command, started, _now()))
    return out


def _read_knowledge(
    recipe: InjectRecipe, run: RunFolder, display: Display
) -> tuple[Knowledge, dict[str, Any]]:
    """Documents to sections; facts and questions checked and selected. Cheap, so done in every run."""
    with run.stage("documents", {"time": _now()}, version=DOCUMENTS_VERSION) as stage:
        knowledge, key = prepare_knowledge(recipe)
        write_jsonl(stage.folder / "sections.jsonl", [asdict(section) for section in knowledge.sections])
        write_jsonl(stage.folder / "dropped.jsonl", [asdict(dropped) for dropped in knowledge.dropped])
    with run.stage("questions", {"time": _now()}, version=QUESTIONS_VERSION) as stage:
        selection = knowledge.selection
        for name, pairs in (
            ("train", selection.train),
            ("eval", selection.evaluate),
            ("eval_kept_out", selection.evaluate_kept_out),
        ):
            write_jsonl(stage.folder / f"{name}.jsonl", [asdict(pair) for pair in pairs])
    display.say(
        f"{knowledge.title}: {len(knowledge.sections)} sections, {len(knowledge.facts)} facts; "
        f"{len(selection.train)} training questions, {len(selection.evaluate)} eval questions, and "
        f"{len(selection.evaluate_kept_out)} of {len(selection.kept_out)} "
        f"{'facts' if recipe.basis == 'fact' else 'sections'} kept out of training."
    )
    return knowledge, key


def prepare_knowledge(recipe: InjectRecipe) -> tuple[Knowledge, dict[str, Any]]:
    """Everything the recipe's files say, checked.

    Args:
        recipe: names the files.

    Returns:
        The knowledge, and a key that changes with anything it depends on.

    Raises:
        DocumentError: a document cannot be read.
        DataError: facts or questions are malformed, or do not fit one another.
    """
    documents, dropped = read_documents(recipe.documents)
    sections: list[Section] = []
    for document in documents:
        found, lost = split_sections(document)
        sections += found
        dropped = [*dropped, *lost]
    sections, excluded = screen_sections(sections, include=recipe.include, exclude=recipe.exclude)
    if not sections:
        raise DataError(f"{recipe.documents}: no section with text is left; check include and exclude.")
    facts = load_facts(recipe.facts)
    facts, strays = _facts_of_sections(facts, sections, recipe)
    pairs = [
        p for p in load_pairs(recipe.qa, facts + strays) if p.basis == "token" or p.source not in _ids(strays)
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
        section_tokens={section.title: count_tokens(section.text) for section in sections}
        if recipe.basis == "token"
        else {},
        count_tokens=count_tokens,
        where=str(recipe.qa),
    )
    lost_facts = [Dropped("fact", f"{fact.id}: {fact.fact}", "its section is excluded") for fact in strays]
    knowledge = Knowledge(
        title=_title(sections),
        sections=sections,
        facts=facts,
        selection=selection,
        dropped=[*dropped, *excluded, *lost_facts, *selection.dropped],
    )
    key = {
        "train": [asdict(pair) for pair in selection.train],
        "eval": [asdict(pair) for pair in [*selection.evaluate, *selection.evaluate_kept_out]],
        "facts": [asdict(fact) for fact in facts],
        "sections": [asdict(section) for section in sections],
        "seed": recipe.seed,
    }
    return knowledge, key


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


def _measure_base(
    recipe: InjectRecipe, run: RunFolder, display: Display, knowledge: Knowledge, key: Mapping[str, Any]
) -> Measurement:
    """The untouched model: its answers alone and with the right section before it, and its bits per byte."""
    settings = {"evaluate": resolved(recipe)["evaluate"], "texts": _text_hashes(recipe)}
    with run.stage("base", {**key, **settings}, version=MEASURE_VERSION) as stage:
        if stage.is_done:
            return _load_measurement(stage)
        loaded = _load(recipe)
        measured = _measure(
            recipe, display, knowledge, loaded, loaded.model, "before", oracle=recipe.evaluate.oracle
        )
        _save_measurement(stage, measured)
    return measured


def _train(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    team: Team,
    knowledge: Knowledge,
    key: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and save the result; what `report.json` says of the training, and the key of the result."""
    settings = resolved(recipe)
    replay = {"replay": file_sha256(recipe.records.replay_texts)} if recipe.records.replay_texts else {}
    full_key = {
        **key,
        **replay,
        "train": settings["train"],
        "records": settings["records"],
        "n_processes": team.size,
    }
    full_key["train"] = {k: v for k, v in settings["train"].items() if k not in ("checkpoint_s", "report_to")}
    full_key["pairs"] = key["train"]
    result = run.path / ("adapter" if recipe.train.method == "lora" else "model")
    with run.stage("training", full_key, version=TRAINING_VERSION, outputs=[result]) as stage:
        if stage.is_done:
            team.share(None)
            return json.loads((stage.folder / "training.json").read_text(encoding="utf-8")), {
                "trained": stage.key
            }
        loaded = _load(recipe, trainable=True, device=team.device)
        prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
        rows, dropped = training_rows(
            knowledge.selection.train,
            knowledge.facts,
            recipe.records,
            prompts,
            max_length_tokens=recipe.train.max_length_tokens or _context_tokens(loaded),
            seed=recipe.seed,
        )
        team.share((rows, stage.folder))
        summary, model = _train_rows(recipe, display, loaded, rows, prompts, stage.folder)
        _save_result(recipe, loaded, model, result)
        training = _training_json(recipe, summary, dropped)
        write_json(stage.folder / "training.json", training)
    return training, {"trained": stage.key}


def _join_training(recipe: InjectRecipe, team: Team) -> None:
    """What every process but the first does: wait for the rows, train its share of each step."""
    shared = team.share(None)
    if shared is None:
        return
    rows, folder = shared
    loaded = _load(recipe, trainable=True, device=team.device)
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    _train_rows(recipe, Display(is_silent=True), loaded, rows, prompts, folder)


def _train_rows(
    recipe: InjectRecipe,
    display: Display,
    loaded: LoadedModel,
    rows: Sequence[TrainingRow],
    prompts: PromptFormat,
    folder: Path,
) -> tuple[TrainingSummary, nn.Module]:
    torch.manual_seed(recipe.seed)  # LoRA's factors are drawn here
    model = attach_lora(loaded.model, recipe.train.lora) if recipe.train.method == "lora" else loaded.model
    with display.bar("training") as advance:

        def on_step(progress: Progress) -> None:
            rate = f"loss {progress.log.loss:.3f}, {progress.tokens_per_s:.0f} tokens/s"
            advance(progress.log.step, progress.n_steps, f"{rate}, {time_text(progress.seconds_left)} left")

        summary = train(
            model,
            rows,
            recipe.train,
            seed=recipe.seed,
            compute_dtype=loaded.precision,
            pad_id=prompts.pad_id,
            folder=folder,
            run_name=f"transfuse-inject-{recipe.seed}",
            on_step=on_step,
        )
    for warning in summary.warnings:
        display.say(f"Note: {warning}")
    return summary, model


def _save_result(recipe: InjectRecipe, loaded: LoadedModel, model: nn.Module, result: Path) -> None:
    if recipe.train.method == "lora":
        save_adapter(model, result, loaded.source.hub_id or str(loaded.source.path))  # type: ignore[arg-type]
        return
    loaded.model.to(loaded.precision)  # type: ignore[arg-type] - decorated in transformers
    with atomic_folder(result) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)


def _measure_trained(
    recipe: InjectRecipe, run: RunFolder, display: Display, knowledge: Knowledge, key: Mapping[str, Any]
) -> Measurement:
    """The result as its user loads it: from the saved files, onto the untouched base."""
    full_key = {
        **key,
        "evaluate": resolved(recipe)["evaluate"],
        "texts": _text_hashes(recipe),
        "eval": [asdict(p) for p in [*knowledge.selection.evaluate, *knowledge.selection.evaluate_kept_out]],
    }
    with run.stage("evaluation", full_key, version=MEASURE_VERSION) as stage:
        if stage.is_done:
            return _load_measurement(stage)
        if recipe.train.method == "lora":
            loaded = _load(recipe)
            model: nn.Module = load_adapter(loaded.model, run.path / "adapter")
        else:
            loaded = load_model(str(run.path / "model"), precision=recipe.precision)
            model = loaded.model
        measured = _measure(recipe, display, knowledge, loaded, model, "after", oracle=False)
        _save_measurement(stage, measured)
    return measured


def _measure(
    recipe: InjectRecipe,
    display: Display,
    knowledge: Knowledge,
    loaded: LoadedModel,
    model: nn.Module,
    when: str,
    *,
    oracle: bool,
) -> Measurement:
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    generator = LocalGenerator(model, prompts, loaded.precision)
    selection, limit = knowledge.selection, recipe.evaluate.max_new_tokens
    everything = [*selection.evaluate, *selection.evaluate_kept_out]
    with display.bar(f"questions {when}") as advance:
        records = ask_questions(
            everything, generator, max_new_tokens=limit, on_replies=_without_note(advance)
        )
    answers = {
        "": records[: len(selection.evaluate)],
        "/kept-out": records[len(selection.evaluate) :],
    }
    if oracle:
        contexts = _contexts(knowledge, selection.evaluate)
        asked = [pair for pair in selection.evaluate if pair.source in contexts]
        with display.bar("questions with section") as advance:
            answers["oracle"] = ask_questions(
                asked, generator, contexts=contexts, max_new_tokens=limit, on_replies=_without_note(advance)
            )
    texts: Texts = {}
    for name, path in recipe.evaluate.texts.items():
        with display.bar(f"text '{name}' {when}") as advance:
            losses = text_losses(model, prompts, load_texts(path), loaded.precision, _without_note(advance))
        texts[name] = bits_per_byte(losses, recipe.seed)._asdict()
    return Measurement(answers, texts)


def _without_note(advance: Any) -> Any:
    """A bar's advance function without the note."""
    return lambda done, total: advance(done, total, "")


def _contexts(knowledge: Knowledge, pairs: Sequence[QAPair]) -> dict[str, str]:
    """The text of the right section, by fact id or section title; sources whose section is missing are left out."""
    texts: dict[str, str] = {}
    for section in knowledge.sections:
        texts[section.title] = (
            f"{texts[section.title]}\n\n{section.text}" if section.title in texts else section.text
        )
    titles = {fact.id: fact.section for fact in knowledge.facts}
    found = {pair.source: texts.get(titles.get(pair.source, pair.source)) for pair in pairs}
    return {source: text for source, text in found.items() if text is not None}


def _report(
    recipe: InjectRecipe,
    run: RunFolder,
    knowledge: Knowledge,
    before: Measurement,
    after: Measurement,
    training: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    name = "adapter" if recipe.train.method == "lora" else "model"
    rows = [_row("base", before.answers[""], before.texts, recipe.seed)]
    if "oracle" in before.answers:
        rows.append(_row("oracle", before.answers["oracle"], {}, recipe.seed))
    rows.append(_row(name, after.answers[""], after.texts, recipe.seed))
    if knowledge.selection.evaluate_kept_out:
        rows.append(_row("base/kept-out", before.answers["/kept-out"], {}, recipe.seed))
        rows.append(_row(f"{name}/kept-out", after.answers["/kept-out"], {}, recipe.seed))
    return {
        "kind": "inject",
        "model": recipe.model,
        "seed": recipe.seed,
        "title": knowledge.title,
        "created": _now(),
        "version": __version__,
        "rows": rows,
        "stages": [asdict(stage) for stage in run.stages],
        "hardware": hardware_text(),
        "command": command,
        "training": training,
        "facts": _fact_outcomes(recipe, knowledge, before, after, name),
        "sections": _section_rows(knowledge),
        "dropped": [asdict(dropped) for dropped in knowledge.dropped]
        + training["dropped"]
        + _without_section(knowledge, before),
        "warnings": [*knowledge.selection.warnings, *training["warnings"]],
        "result": _result(recipe, name),
    }


def _row(name: str, records: Sequence[AnswerRecord], texts: Texts, seed: int) -> dict[str, Any]:
    metrics = estimate_json(answer_estimates(records, seed))
    return {
        "name": name,
        "metrics": metrics | {f"bits_per_byte/{text}": value for text, value in texts.items()},
    }


def _fact_outcomes(
    recipe: InjectRecipe, knowledge: Knowledge, before: Measurement, after: Measurement, name: str
) -> list[dict[str, Any]]:
    """Each fact (basis `token`: each section) with its questions and every answer given."""
    selection = knowledge.selection
    given = {
        "base": [*before.answers[""], *before.answers["/kept-out"]],
        "oracle": before.answers.get("oracle", []),
        name: [*after.answers[""], *after.answers["/kept-out"]],
    }
    by_item = {row: {record.item: record for record in records} for row, records in given.items()}
    sources = (
        [(fact.id, fact.section, fact.fact) for fact in knowledge.facts]
        if recipe.basis == "fact"
        else [
            (title, title, title) for title in dict.fromkeys(section.title for section in knowledge.sections)
        ]
    )
    outcomes: list[dict[str, Any]] = []
    for source, section, text in sources:
        asked = [p for p in [*selection.evaluate, *selection.evaluate_kept_out] if p.source == source]
        outcomes.append(
            {
                "id": source,
                "section": section,
                "fact": text,
                "kept_out": source in selection.kept_out,
                "n_train_questions": sum(pair.source == source for pair in selection.train),
                "items": [_item(pair, by_item) for pair in asked],
            }
        )
    return outcomes


def _item(pair: QAPair, by_item: Mapping[str, Mapping[str, AnswerRecord]]) -> dict[str, Any]:
    records = {row: found[pair.id] for row, found in by_item.items() if pair.id in found}
    return {
        "question": pair.question,
        "gold": pair.answer,
        "aliases": list(pair.aliases),
        "answers": {row: record.answer for row, record in records.items()},
        "scores": {row: record.scores for row, record in records.items()},
        "reason": {row: record.reason for row, record in records.items()},
    }


def _section_rows(knowledge: Knowledge) -> list[dict[str, Any]]:
    return [
        {
            "document": section.document,
            "title": section.title,
            "page": section.page,
            "n_facts": sum(fact.section == section.title for fact in knowledge.facts),
            "n_characters": len(section.text),
        }
        for section in knowledge.sections
    ]


def _without_section(knowledge: Knowledge, before: Measurement) -> list[dict[str, Any]]:
    """Questions that the oracle row could not ask."""
    if "oracle" not in before.answers:
        return []
    asked = {record.item for record in before.answers["oracle"]}
    lost = [pair for pair in knowledge.selection.evaluate if pair.id not in asked]
    reason = "not in the oracle row: the section its fact names is not in the documents"
    return [asdict(Dropped("pair", pair.question, reason)) for pair in lost]


def _training_json(
    recipe: InjectRecipe, summary: TrainingSummary, dropped: Sequence[Dropped]
) -> dict[str, Any]:
    settings = resolved(recipe)
    train_settings = settings["train"] | {"learning_rate": recipe.train.peak_learning_rate}
    lora = train_settings.pop("lora")
    shown = {**(lora if recipe.train.method == "lora" else {}), **train_settings, **settings["records"]}
    return {
        "method": recipe.train.method,
        "n_records": summary.n_rows,
        "n_tokens": summary.n_tokens,
        "seconds": round(summary.seconds, 2),
        "tokens_per_s": round(summary.tokens_per_s, 1),
        "is_packed": summary.is_packed,
        "settings": shown,
        "curve": [asdict(log) for log in summary.curve],
        "warnings": summary.warnings,
        "dropped": [asdict(each) for each in dropped],
    }


def _result(recipe: InjectRecipe, name: str) -> dict[str, Any]:
    return {"path": name, "kind": name, "base_model": recipe.model, "load": _loading_code(recipe, name)}


def _loading_code(recipe: InjectRecipe, name: str) -> str:
    """Python that loads the result without Transfuse."""
    from transfuse.io.references import resolve_model

    if name == "model":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("model")\n'
            'tokenizer = AutoTokenizer.from_pretrained("model")\n'
        )
    source = resolve_model(recipe.model)
    where = f'"{source.path or source.hub_id}"'
    if source.kind in ("gguf", "bundled") and source.path is not None:
        where = f'"{source.path.parent}", gguf_file="{source.path.name}"'
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({where})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
        'model = PeftModel.from_pretrained(base, "adapter")\n'
    )


def _load(recipe: InjectRecipe, *, trainable: bool = False, device: str | None = None) -> LoadedModel:
    return load_model(
        recipe.model,
        precision=recipe.precision,
        device=device,
        trust_remote_code=recipe.trust_remote_code,
        trainable=trainable and recipe.train.method == "full",
    )


def _context_tokens(loaded: LoadedModel) -> int | None:
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _text_hashes(recipe: InjectRecipe) -> dict[str, str | None]:
    hashes: dict[str, str | None] = {}
    for name, path in recipe.evaluate.texts.items():
        if path is not None:
            load_texts(path)  # a fault shows before hours of work, not after
        hashes[name] = file_sha256(path) if path is not None else None
    return hashes


def _save_measurement(stage: Stage, measured: Measurement) -> None:
    for row, records in measured.answers.items():
        write_jsonl(stage.folder / _answers_file(row), [asdict(record) for record in records])
    write_json(stage.folder / "texts.json", measured.texts)


def _load_measurement(stage: Stage) -> Measurement:
    answers = {
        row: [AnswerRecord(**line.value) for line in read_jsonl(stage.folder / _answers_file(row))]
        for row in ("", "/kept-out", "oracle")
        if (stage.folder / _answers_file(row)).is_file()
    }
    return Measurement(answers, json.loads((stage.folder / "texts.json").read_text(encoding="utf-8")))


def _answers_file(row: str) -> str:
    return f"answers{row.replace('/', '_').replace('-', '_') if row != 'oracle' else '_oracle'}.jsonl"


def _title(sections: Sequence[Section]) -> str:
    first = sections[0]
    return first.heading_path[0] if first.heading_path else Path(first.document).stem


def _ids(facts: Sequence[Fact]) -> set[str]:
    return {fact.id for fact in facts}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
