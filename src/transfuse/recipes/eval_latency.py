"""How long a single answer takes: one greedy reply at a time, as a user asks."""

import time
from collections.abc import Mapping
from statistics import median

from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.evaluate.instructions import instruction_requests, load_instructions
from transfuse.generate.protocol import Request
from transfuse.generate.task_requests import task_requests
from transfuse.recipes.eval_inputs import Inputs
from transfuse.recipes.eval_outcome import Outcome
from transfuse.recipes.eval_schema import UNANSWERABLE, EvalRecipe
from transfuse.recipes.eval_system import System
from transfuse.recipes.progress import Display

N_TEXT_CHARACTERS, N_TEXT_TOKENS = 400, 64
"""What is asked where nothing else is: to go on with a text that begins so, for so many tokens."""


def measure_latency(
    recipe: EvalRecipe,
    system: System,
    inputs: Inputs,
    asked: Mapping[str, Outcome],
    display: Display,
) -> Outcome:
    """Time single answers.

    Args:
        recipe: says how many.
        system: that is asked; with what stood before its questions when they were asked.
        inputs: questions come first, then samples, instructions, and texts to go on with.
        asked: outcomes of the questions, by the name of their set.
        display: progress.

    Returns:
        `more`: `latency_s` (median, the search for passages included), `latencies_s`, `search_s`, `n_reply_tokens`.
    """
    requests = _requests(recipe, inputs, asked)
    generator = system.plain_generator()
    generator.generate([requests[0]])  # what is done once only is no part of it
    taken: list[float] = []
    n_tokens: list[int] = []
    with display.bar(f"single answers, {system.row}") as advance:
        for request in requests:
            started = time.monotonic()
            (reply,) = generator.generate([request])
            taken.append(time.monotonic() - started)
            n_tokens.append(reply.n_reply_tokens)
            advance(len(taken), len(requests), "")
    search_s = next((s for each in asked.values() if (s := each.more.get("search_s")) is not None), None)
    more = {
        "latency_s": round(median(taken) + (search_s or 0.0), 4),
        "latencies_s": [round(each, 4) for each in taken],
        "search_s": None if search_s is None else round(search_s, 4),
        "n_reply_tokens": n_tokens,
    }
    return Outcome([], more=more)


def _requests(recipe: EvalRecipe, inputs: Inputs, asked_before: Mapping[str, Outcome]) -> list[Request]:
    """Requests of the first sort that there is, evenly spread over its sets."""
    n = recipe.latency_n
    asked: list[Request] = []
    sets = {name: (pairs, recipe.questions[name].max_new_tokens) for name, pairs in inputs.questions.items()}
    if recipe.unanswerable is not None:
        sets[UNANSWERABLE] = (inputs.unanswerable, recipe.unanswerable.max_new_tokens)
    for name, (pairs, limit) in sets.items():
        contexts = {item.item: item.context for item in asked_before[name].items}
        asked += [Request(pair.question, contexts.get(pair.id) or None, limit) for pair in pairs[:n]]
    if not asked:
        for name, samples in inputs.samples.items():
            items = [item for item in samples.items if item.messages][:n]
            if items:
                asked += task_requests(items, max_new_tokens=recipe.samples[name].max_new_tokens)
    if not asked and recipe.judge is not None:
        asked += instruction_requests(load_instructions(recipe.judge)[:n], recipe.judge)
    if asked:
        return [asked[place] for place in _spread(len(asked), n)]
    texts = next(iter(inputs.texts.values()), None) or load_texts(None)
    return [
        Request(text[:N_TEXT_CHARACTERS], max_new_tokens=N_TEXT_TOKENS, is_one_line=False)
        for text in texts[:n]
    ]


def _spread(n_all: int, n: int) -> list[int]:
    """Places of at most n of so many things, evenly spread."""
    return sorted({round(k * (n_all - 1) / max(1, n - 1)) for k in range(min(n, n_all))})
