"""An open-ended win rate by a judge: who is asked, what is kept, and what comes of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfuse.evaluate.instructions import instruction_requests, load_instructions, reference_replies
from transfuse.evaluate.judging import judge_replies
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.evaluate.scores import ItemScore
from transfuse.evaluate.win_estimates import judging_summary, win_estimates, win_scores
from transfuse.generate.asking import Asker, run_asking
from transfuse.generate.opening import open_generator
from transfuse.generate.protocol import Generator, Reply
from transfuse.generate.references import check_generator, generator_key
from transfuse.generate.reply_cache import ReplyCache, default_cache_path
from transfuse.generate.settings import WITHOUT_EFFECT
from transfuse.io.files import file_sha256
from transfuse.io.jsonl import write_jsonl
from transfuse.io.precision import Precision
from transfuse.recipes.progress import Display
from transfuse.types import Estimate

JUDGE_VERSION = 1
JUDGEMENTS = "judgements.jsonl"


@dataclass(frozen=True)
class Judged:
    """What a judge found."""

    scores: list[ItemScore]
    """`win_rate/NAME` of every scorable item."""
    estimates: dict[str, Estimate]
    """`win_rate/NAME` and `win_rate_length_controlled/NAME`, for the report's row."""
    summary: dict[str, Any]
    """The part `judge` of `report.json`: agreement, position, length, what could not be scored, what was asked."""


def check_judge(settings: JudgeSettings, *, has_second: bool) -> None:
    """Refuse what cannot be judged, before any weights are loaded; endpoints are met when they are asked.

    Args:
        settings: name the judge and the instructions.
        has_second: whether a second system replies; else the file's own replies are compared with.

    Raises:
        TransfuseError: the judge or the file is not there, or a reply to compare with is missing.
    """
    check_generator(settings)
    instructions = load_instructions(settings)
    if not has_second:
        reference_replies(instructions, settings)


def judge_key(settings: JudgeSettings) -> dict[str, Any]:
    """Everything of the settings that a judgement depends on, for a stage's key; replies of the systems aside."""
    told = settings.model_dump(mode="json", exclude={*WITHOUT_EFFECT, "instructions"})
    return told | {
        "judge": generator_key(settings),
        "instructions": file_sha256(settings.instructions),
        "judge_version": JUDGE_VERSION,
    }


def answer_instructions(
    settings: JudgeSettings, generator: Generator, display: Display, title: str
) -> list[Reply]:
    """A system's replies to the instructions, greedily.

    Args:
        settings: name the instructions.
        generator: the system.
        display: progress.
        title: of the bar.

    Returns:
        One each, in order; a failed one carries its error.
    """
    requests = instruction_requests(load_instructions(settings), settings)
    n_done = 0
    with display.bar(title) as advance:

        def count(_index: int, _reply: Reply) -> None:
            nonlocal n_done
            n_done += 1
            advance(n_done, len(requests), "")

        return generator.generate(requests, count)


def judge(
    settings: JudgeSettings,
    ours: Sequence[Reply],
    theirs: Sequence[Reply] | None,
    folder: Path,
    display: Display,
    *,
    seed: int,
    precision: Precision = "auto",
    trust_remote_code: bool = False,
) -> Judged:
    """Have a judge compare two systems, and write its judgements into a folder.

    Replies of the judge are kept as they arrive (`generate/reply_cache.py`): what was answered is not paid for again,
    and a run that was killed goes on.

    Args:
        settings: name judge and instructions.
        ours: replies of the system that the win rate is about, as `answer_instructions` gives them.
        theirs: of the other system; None compares with the replies in the instructions' file.
        folder: for `judgements.jsonl`.
        display: progress.
        seed: of the bootstraps.
        precision: compute type of a judge that is a local model.
        trust_remote_code: whether Python code that comes with such a model may run.

    Returns:
        Scores, estimates and how they came about.

    Raises:
        TransfuseError: the judge cannot be asked, answers in another form, or its budget is spent.
    """
    instructions = load_instructions(settings)
    others = reference_replies(instructions, settings) if theirs is None else theirs
    generator = open_generator(settings, precision=precision, trust_remote_code=trust_remote_code)
    with ReplyCache(default_cache_path()) as cache, display.bar("judge") as advance:
        asker = Asker(
            generator,
            cache,
            n_at_once=settings.n_at_once,
            max_requests=settings.max_requests,
            max_tokens=settings.max_tokens,
        )
        judgements = run_asking(
            lambda ask: judge_replies(
                instructions, ours, others, ask, settings, lambda done, n: advance(done, n, "")
            ),
            asker,
        )
    write_jsonl(folder / JUDGEMENTS, [asdict(each) for each in judgements])
    summary = {
        "judge": generator.identity if generator.identity.startswith("openai:") else settings.reference,
        "instructions": settings.set_name,
        "against": "the replies of the file" if theirs is None else "the second system",
        **judging_summary(judgements, seed),
        "asked": asdict(asker.counts),
    }
    for warning in summary["warnings"]:
        display.say(f"Note: {warning}")
    return Judged(win_scores(judgements, settings), win_estimates(judgements, settings, seed), summary)
