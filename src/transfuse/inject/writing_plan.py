"""What the writing of facts and questions will ask, at least and at most, before anything is asked."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from transfuse.generate.protocol import Request
from transfuse.inject.fact_prompts import PromptSource, facts_request
from transfuse.inject.fact_writing import FactSettings
from transfuse.inject.pair_prompts import (
    fact_pairs_request,
    judge_request,
    section_pairs_request,
    verify_request,
)
from transfuse.inject.pair_settings import PairSettings
from transfuse.text.sentences import split_sentences
from transfuse.types import Section

TOKENS_PER_FACT, TOKENS_PER_PAIR, TOKENS_PER_VERDICT, TOKENS_PER_JUDGEMENT = 40, 45, 40, 8
"""Typical length of what a generator writes as JSON for each."""
PAIR_TOKENS = 22
"""Typical question and answer, without their JSON."""
FACTS_PER_SENTENCE = (0.6, 1.5)
"""Least and most, of informative prose."""


class Work(NamedTuple):
    """Requests and their tokens."""

    n_requests: int = 0
    n_prompt_tokens: int = 0
    n_reply_tokens: int = 0

    def times(self, n: int) -> "Work":
        """The same work n times over."""
        return Work(*(n * part for part in self))

    def plus(self, *others: "Work") -> "Work":
        """This work and others together."""
        return Work(*(sum(parts) for parts in zip(self, *others, strict=True)))

    def cost(self, price_in: float, price_out: float) -> float:
        """At prices per million tokens."""
        return (self.n_prompt_tokens * price_in + self.n_reply_tokens * price_out) / 1e6


class PlannedStep(NamedTuple):
    """One step of writing."""

    name: str
    least: Work
    """Everything accepted at the first attempt."""
    most: Work
    """Every limit reached."""


CountTokens = Callable[[str], int]


def plan_facts(
    sections: Sequence[Section], title: str, settings: FactSettings, count_tokens: CountTokens
) -> tuple[PlannedStep, tuple[int, int]]:
    """The breaking of sections into facts.

    Args:
        sections: to be broken up.
        title: of the document.
        settings: how long a window is.
        count_tokens: tokens of a text.

    Returns:
        The step, and how many facts to expect, least and most.
    """
    asked: list[Work] = []
    n_sentences = 0
    for section in sections:
        sentences = [section.text[start:end] for start, end in split_sentences(section.text)]
        n_sentences += len(sentences)
        for first in range(0, len(sentences), settings.window_sentences):
            window = sentences[first : first + settings.window_sentences]
            request = facts_request(
                PromptSource([title, section.title], (), window), temperature=0.0, max_new_tokens=1
            )
            asked.append(_work(request, len(window) * TOKENS_PER_FACT, count_tokens))
    once = Work().plus(*asked)
    n_facts = (round(FACTS_PER_SENTENCE[0] * n_sentences), round(FACTS_PER_SENTENCE[1] * n_sentences))
    # A window is asked at most three times: for its facts, for those of silent sentences, and for repairs.
    return PlannedStep("facts", once, once.times(3)), n_facts


def plan_fact_pairs(
    n_facts: tuple[int, int],
    typical_fact: str,
    typical_source: str,
    title: str,
    settings: PairSettings,
    scale: int,
    count_tokens: CountTokens,
) -> PlannedStep:
    """The writing of questions fact by fact.

    Args:
        n_facts: how many to expect, least and most.
        typical_fact: one of like length.
        typical_source: the text that one was taken from.
        title: of the document.
        settings: rounds, pairs a request, checks.
        scale: training questions a fact.
        count_tokens: tokens of a text.

    Returns:
        The step.
    """
    write = fact_pairs_request(typical_fact, None, (), settings, title=title, seed=0)
    writing = _work(write, settings.pairs_per_request * TOKENS_PER_PAIR, count_tokens)
    wanted = scale + settings.n_eval
    least = writing.times(math.ceil(wanted / settings.pairs_per_request))
    least = least.plus(_checks(typical_source, title, settings, count_tokens)[0].times(wanted))
    n_candidates = settings.max_rounds * settings.pairs_per_request
    most = writing.times(settings.max_rounds + settings.max_retries_skip)
    most = most.plus(_checks(typical_source, title, settings, count_tokens)[1].times(n_candidates))
    return PlannedStep("questions", least.times(n_facts[0]), most.times(n_facts[1]))


def plan_section_pairs(
    sections: Sequence[Section],
    title: str,
    settings: PairSettings,
    scale: int,
    count_tokens: CountTokens,
) -> PlannedStep:
    """The writing of questions section by section.

    Args:
        sections: to be asked about.
        title: of the document.
        settings: pairs a request, checks.
        scale: training tokens per token of a section; as many again as at scale 1 measure.
        count_tokens: tokens of a text.

    Returns:
        The step; at most, as many candidates are dropped as are kept.
    """
    per_request = settings.section_pairs_per_request
    least, most = Work(), Work()
    for section in sections:
        wanted = math.ceil((scale + 1) * count_tokens(section.text) / PAIR_TOKENS)
        write = section_pairs_request(section.text, (), settings, title=title, heading=section.title, seed=0)
        writing = _work(write, per_request * TOKENS_PER_PAIR, count_tokens)
        once, thrice = _checks(section.text, title, settings, count_tokens)
        least = least.plus(writing.times(math.ceil(wanted / per_request)), once.times(wanted))
        most = most.plus(writing.times(math.ceil(2 * wanted / per_request)), thrice.times(2 * wanted))
    return PlannedStep("questions", least, most)


def _checks(source: str, title: str, settings: PairSettings, count_tokens: CountTokens) -> tuple[Work, Work]:
    """Checks of one candidate: the verification alone; verified anew after a repair, and judged."""
    if not settings.verify:
        return Work(), Work()
    verify = verify_request(
        "Which of them was it, and in what year did it happen?", source, settings, title=title
    )
    verifying = _work(verify, TOKENS_PER_VERDICT, count_tokens)
    judge = judge_request("Which of them was it?", "the first", "the second", settings)
    judging = _work(judge, TOKENS_PER_JUDGEMENT, count_tokens) if settings.judge else Work()
    return verifying, verifying.times(2).plus(judging)


def _work(request: Request, n_reply_tokens: int, count_tokens: CountTokens) -> Work:
    n_prompt = count_tokens((request.system or "") + "\n" + request.question)
    return Work(1, n_prompt, n_reply_tokens)
