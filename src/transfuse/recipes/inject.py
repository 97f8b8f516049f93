"""The document route: documents, facts and questions in, an adapter and its proof out.

Source: Mecklenburg et al. 2024, arXiv:2404.00213. Differs: grading is by string metrics instead of a model; a
share of the facts is kept out of training, and bits per byte on generic text is measured, so that a gain from
answer style and a loss from forgetting both show; retrieval is hybrid, and its number of passages chosen on training
questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfuse.errors import TrainingError
from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.evaluate.questions import ask_questions
from transfuse.generate.local import context_tokens
from transfuse.generate.references import check_generator
from transfuse.inject.knowledge import load_facts
from transfuse.inject.records import load_chats, training_rows
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.files import file_sha256, write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.hardware import manifest
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.models import LoadedModel, load_tokenizer, save_model
from transfuse.io.references import check_model_folder, resolve_model
from transfuse.io.run_folder import RunFolder, Stage, open_run
from transfuse.recipes.inject_card import write_inject_card
from transfuse.recipes.inject_coverage import measure_coverage
from transfuse.recipes.inject_knowledge import Knowledge, oracle_contexts, read_sections, select_knowledge
from transfuse.recipes.inject_model import (
    generator_of,
    load_student,
    load_trained,
    result_name,
    without_note,
)
from transfuse.recipes.inject_probe import known_facts
from transfuse.recipes.inject_rag import measure_rag, measure_trained_rag
from transfuse.recipes.inject_report import Measurement, Texts, report_json
from transfuse.recipes.inject_retrieval import check_retrieval
from transfuse.recipes.inject_teacher import Taught, teach
from transfuse.recipes.inject_writing import StopAfter, Written, write_knowledge
from transfuse.recipes.progress import Display
from transfuse.recipes.schema import WITHOUT_EFFECT, InjectRecipe, resolved
from transfuse.recipes.team import Team
from transfuse.recipes.training_steps import show_steps
from transfuse.recipes.writing_report import add_to_facts, writing_report
from transfuse.train.adapters import attach_lora, save_adapter
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import train
from transfuse.train.summary import TrainingSummary
from transfuse.train.trackers import check_trackers
from transfuse.types import AnswerRecord, Document, Dropped, Section

ANSWER_FILES = {"": "answers.jsonl", "/kept-out": "answers_kept_out.jsonl", "oracle": "answers_oracle.jsonl"}
"""File of a measurement's answers, by the end of the row's name."""

DOCUMENTS_VERSION, QUESTIONS_VERSION, BASE_VERSION, TRAINING_VERSION, EVALUATION_VERSION = 1, 2, 3, 1, 2


def run_inject(
    recipe: InjectRecipe,
    out: Path,
    *,
    overwrite: bool,
    command: str,
    stop_after: StopAfter | None = None,
) -> Path:
    """Run the document route, or continue it where an earlier process stopped.

    Args:
        recipe: what to do.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over.
        command: for the manifest and the report.
        stop_after: what to write before the run stops, for people to read and edit, or `training` to leave out all
            measuring; None goes to the end.

    Returns:
        The run folder, with `report.json` and the adapter (or model) in it where it went to the end.

    Raises:
        TransfuseError: any fault of the input, the model or the machine, with what to do.
    """
    team = Team()
    if not team.is_main:
        _join_training(recipe, team)
        return out
    display = Display()
    started = _now()
    inputs = check_inputs(recipe)
    with open_run(out, resolved(recipe), overwrite=overwrite, free=_free_keys(out)) as run:
        write_json(run.path / "manifest.json", manifest(command, started, None))
        files_key = _save_sections(recipe, run, inputs)
        weights = {
            "model": recipe.model,
            "weights": model_fingerprint(recipe.model),
            "precision": recipe.precision,
        }

        def known_of(facts: Path, qa: Path) -> list[str]:
            probed, _ = select_knowledge(recipe, inputs.sections, inputs.dropped, facts, qa)
            return known_facts(recipe, run, display, probed, weights)

        written = write_knowledge(
            recipe,
            run,
            display,
            inputs.documents,
            inputs.sections,
            files_key,
            known_of=known_of,
            stop_after=stop_after,
        )
        if stop_after in ("facts", "questions"):
            return out
        knowledge, knowledge_key = _select(recipe, run, display, inputs, written, weights)
        _save_questions(recipe, run, display, knowledge, knowledge_key)
        if stop_after == "training":
            _train_alone(recipe, run, display, team, knowledge, {**knowledge_key, **weights})
            write_json(run.path / "manifest.json", manifest(command, started, _now()))
            return out
        covered = measure_coverage(recipe, run, knowledge)
        before = _measure_base(recipe, run, display, knowledge, {**knowledge_key, **weights})
        retrieved = measure_rag(recipe, run, display, inputs.documents, knowledge, weights)
        taught = teach(recipe, run, display, knowledge, weights)
        training, key = _train(recipe, run, display, team, knowledge, taught, {**knowledge_key, **weights})
        after = _measure_trained(recipe, run, display, knowledge, key)
        with_passages = measure_trained_rag(recipe, run, display, knowledge, retrieved, key)
        report = report_json(
            recipe, run.stages, knowledge, before, after, training, command, retrieved, with_passages
        )
        report |= writing_report(recipe, written, covered)
        add_to_facts(report["facts"], written, covered, knowledge.known)
        write_json(run.path / "report.json", report)
        write_inject_card(recipe, run.path / result_name(recipe), report)
        write_json(run.path / "manifest.json", manifest(command, started, _now()))
    return out


def _train_alone(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    team: Team,
    knowledge: Knowledge,
    key: Mapping[str, Any],
) -> None:
    """The result alone, for whoever measures it otherwise; a run without the stop takes it from here."""
    model_key = {name: key[name] for name in ("model", "weights", "precision")}
    taught = teach(recipe, run, display, knowledge, model_key)
    _train(recipe, run, display, team, knowledge, taught, key)
    display.say(f"Trained into {run.path / result_name(recipe)}; nothing is measured.")


def _free_keys(out: Path) -> frozenset[str]:
    """Settings that may differ from an earlier run's there; a generator that has written nothing is one."""
    has_written = any((out / stage / "done.json").is_file() for stage in ("facts", "paraphrases", "pairs"))
    return WITHOUT_EFFECT if has_written else WITHOUT_EFFECT | {"generator.reference"}


@dataclass(frozen=True)
class _Inputs:
    """What is read anew in every run, before anything is written."""

    documents: list[Document]
    sections: list[Section]
    dropped: list[Dropped]


def check_inputs(recipe: InjectRecipe) -> _Inputs:
    """Documents to sections; facts and questions checked where they are given.

    Cheap, so read anew in every run, and before anything is written: a fault of the input leaves no run folder
    behind that would refuse the mended input as a different run.
    """
    source = resolve_model(recipe.model)
    if source.kind == "folder" and source.path is not None:
        check_model_folder(source.path)
    load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    for path in (recipe.records.replay_texts, *recipe.evaluate.texts.values()):
        if path is not None:
            load_texts(path)
    if recipe.records.chats is not None:
        load_chats(recipe.records.chats)
    check_trackers(recipe.train.report_to)
    if recipe.generator is not None:
        check_generator(recipe.generator)
    if recipe.rag is not None:
        check_retrieval(recipe.rag)
    documents, sections, dropped = read_sections(recipe)
    if recipe.facts is not None and recipe.qa is not None:
        select_knowledge(recipe, sections, dropped, recipe.facts, recipe.qa)
    elif recipe.facts is not None:
        load_facts(recipe.facts)
    return _Inputs(documents, sections, dropped)


def _save_sections(recipe: InjectRecipe, run: RunFolder, inputs: _Inputs) -> dict[str, Any]:
    """The stage of the documents, and a key that changes with them."""
    files = {
        "documents": _content_hashes(recipe.documents),
        "include": recipe.include,
        "exclude": recipe.exclude,
    }
    with run.stage("documents", files, version=DOCUMENTS_VERSION) as stage:
        if not stage.is_done:
            write_jsonl(stage.folder / "sections.jsonl", [asdict(section) for section in inputs.sections])
            write_jsonl(stage.folder / "dropped.jsonl", [asdict(each) for each in inputs.dropped])
    return files


def _select(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    inputs: _Inputs,
    written: Written,
    weights: Mapping[str, Any],
) -> tuple[Knowledge, dict[str, Any]]:
    """What trains and what measures; facts that the model knows already train on fewer questions."""
    sections, dropped = inputs.sections, inputs.dropped
    knowledge, key = select_knowledge(recipe, sections, dropped, written.facts, written.qa)
    if recipe.probe.n_questions:
        known = written.known
        if known is None:
            known = known_facts(recipe, run, display, knowledge, weights)
        knowledge, key = select_knowledge(recipe, sections, dropped, written.facts, written.qa, known=known)
        key |= {"known": sorted(known)}
    for warning in knowledge.warnings:
        display.say(f"Note: {warning}")
    return knowledge, key


def _save_questions(
    recipe: InjectRecipe,
    run: RunFolder,
    display: Display,
    knowledge: Knowledge,
    knowledge_key: Mapping[str, Any],
) -> None:
    sections, selection = knowledge.sections, knowledge.selection
    with run.stage("questions", dict(knowledge_key), version=QUESTIONS_VERSION) as stage:
        if not stage.is_done:
            for name, pairs in (
                ("train", [*selection.train, *selection.extra]),
                ("eval", selection.evaluate),
                ("eval_kept_out", selection.evaluate_kept_out),
            ):
                write_jsonl(stage.folder / f"{name}.jsonl", [asdict(pair) for pair in pairs])
    kept_out = f"{len(selection.kept_out)} {'facts' if recipe.basis == 'fact' else 'sections'}"
    extra = f" and {len(selection.extra)} of other kinds" if selection.extra else ""
    display.say(
        f"{knowledge.title}: {len(sections)} sections, {len(knowledge.facts)} facts; "
        f"{len(selection.train)} training questions{extra}, {len(selection.evaluate)} eval questions; {kept_out} "
        f"kept out of training, with {len(selection.evaluate_kept_out)} eval questions."
    )


def _content_hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file): file_sha256(file) for file in files}


def _measure_base(
    recipe: InjectRecipe, run: RunFolder, display: Display, knowledge: Knowledge, key: Mapping[str, Any]
) -> Measurement:
    """The untouched model: its answers alone and with the right section before it, and its bits per byte."""
    settings = {"evaluate": resolved(recipe)["evaluate"], "texts": _text_hashes(recipe)}
    measured_key = {name: value for name, value in key.items() if name not in ("train", "known")}
    files = _measured_files(run.path / "base", oracle=recipe.evaluate.oracle)
    with run.stage("base", {**measured_key, **settings}, version=BASE_VERSION, outputs=files) as stage:
        if stage.is_done:
            return _load_measurement(stage)
        loaded = load_student(recipe)
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
    taught: Taught | None,
    key: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and save the result; what `report.json` says of the training, and the key of the result."""
    settings = resolved(recipe)
    files = {"replay": recipe.records.replay_texts, "chats": recipe.records.chats}
    replay = {name: file_sha256(path) for name, path in files.items() if path}
    full_key = {
        **{name: value for name, value in key.items() if name not in ("train", "eval", "sections", "known")},
        **replay,
        "pairs": key["train"],
        "settings": {k: v for k, v in settings["train"].items() if k not in ("checkpoint_s", "report_to")},
        "records": settings["records"],
        "n_processes": team.size,
        **({"teacher": taught.key} if taught else {}),
    }
    result = run.path / result_name(recipe)
    outputs = [result, run.path / "training" / "training.json"]
    with run.stage("training", full_key, version=TRAINING_VERSION, outputs=outputs) as stage:
        if stage.is_done:
            team.share(None)
            return json.loads((stage.folder / "training.json").read_text(encoding="utf-8")), {
                "trained": stage.key
            }
        loaded = load_student(recipe, trainable=True, device=team.device)
        prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
        learned = [] if taught else knowledge.selection.train
        rows, dropped = training_rows(
            [*learned, *knowledge.selection.extra],
            knowledge.facts,
            recipe.records,
            prompts,
            max_length_tokens=recipe.train.max_length_tokens or context_tokens(loaded.model),
            seed=recipe.seed,
            n_further=len(taught.rows) if taught else 0,
        )
        if taught:
            rows, dropped = [*taught.rows, *rows], [*taught.dropped, *dropped]
        team.share((rows, stage.folder))
        summary, model = _train_rows(recipe, display, loaded, rows, prompts, stage.folder)
        _save_result(recipe, loaded, model, result)
        write_inject_card(recipe, result)
        training = _training_json(recipe, summary, dropped)
        write_json(stage.folder / "training.json", training)
    return training, {"trained": stage.key}


def _join_training(recipe: InjectRecipe, team: Team) -> None:
    """What every process but the first does: wait for the rows, train its share of each step."""
    try:
        shared = team.share(None)
    except RuntimeError as err:  # the connection is gone: the first process ended, and has said why
        raise TrainingError("the first process ended before training; its message says why.") from err
    if shared is None:
        return
    rows, folder = shared
    loaded = load_student(recipe, trainable=True, device=team.device)
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
        summary = train(
            model,
            rows,
            recipe.train,
            seed=recipe.seed,
            compute_dtype=loaded.precision,
            pad_id=prompts.pad_id,
            folder=folder,
            run_name=f"transfuse-inject-{recipe.seed}",
            on_step=show_steps(advance),
        )
    for warning in summary.warnings:
        display.say(f"Note: {warning}")
    return summary, model


def _save_result(recipe: InjectRecipe, loaded: LoadedModel, model: nn.Module, result: Path) -> None:
    if recipe.train.method == "lora":
        save_adapter(model, result, loaded.base_name)  # type: ignore[arg-type]
        return
    loaded.model.to(loaded.precision)  # type: ignore[arg-type] - decorated in transformers
    save_model(loaded.model, loaded.tokenizer, result)


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
    files = _measured_files(run.path / "evaluation")
    with run.stage("evaluation", full_key, version=EVALUATION_VERSION, outputs=files) as stage:
        if stage.is_done:
            return _load_measurement(stage)
        loaded, model = load_trained(recipe, run.path)
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
    generator = generator_of(loaded, model)
    selection, limit = knowledge.selection, recipe.evaluate.max_new_tokens
    everything = [*selection.evaluate, *selection.evaluate_kept_out]
    with display.bar(f"questions {when}") as advance:
        records = ask_questions(everything, generator, max_new_tokens=limit, on_replies=without_note(advance))
    answers = {
        "": records[: len(selection.evaluate)],
        "/kept-out": records[len(selection.evaluate) :],
    }
    if oracle:
        contexts = oracle_contexts(knowledge, selection.evaluate)
        asked = [pair for pair in selection.evaluate if pair.id in contexts]
        with display.bar("questions with section") as advance:
            answers["oracle"] = ask_questions(
                asked, generator, contexts=contexts, max_new_tokens=limit, on_replies=without_note(advance)
            )
    texts: Texts = {}
    for name, path in recipe.evaluate.texts.items():
        with display.bar(f"text '{name}' {when}") as advance:
            losses = text_losses(model, prompts, load_texts(path), loaded.precision, without_note(advance))
        texts[name] = bits_per_byte(losses, recipe.seed)._asdict()
    return Measurement(answers, texts)


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


def _text_hashes(recipe: InjectRecipe) -> dict[str, str | None]:
    return {name: file_sha256(path) if path else None for name, path in recipe.evaluate.texts.items()}


def _save_measurement(stage: Stage, measured: Measurement) -> None:
    for row, records in measured.answers.items():
        write_jsonl(stage.folder / ANSWER_FILES[row], [asdict(record) for record in records])
    write_json(stage.folder / "texts.json", measured.texts)


def _measured_files(folder: Path, *, oracle: bool = False) -> list[Path]:
    rows = ["", "/kept-out", *(["oracle"] if oracle else [])]
    return [*(folder / ANSWER_FILES[row] for row in rows), folder / "texts.json"]


def _load_measurement(stage: Stage) -> Measurement:
    answers = {
        row: [AnswerRecord(**line.value) for line in read_jsonl(stage.folder / file)]
        for row, file in ANSWER_FILES.items()
        if (stage.folder / file).is_file()
    }
    return Measurement(answers, json.loads((stage.folder / "texts.json").read_text(encoding="utf-8")))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
