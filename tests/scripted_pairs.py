"""A generator for tests of pair writing: facts and questions with known answers, replies by script."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping

from transfuse.generate.protocol import Ask, Reply, Request
from transfuse.inject import pair_prompts
from transfuse.text.wording import question_key

_BLOCK = re.compile(
    r"^--- (?P<name>[\w ]+) (?P<tag>[0-9a-f]{8}) begins ---\n(.*?)\n--- (?P=name) (?P=tag) ends ---$",
    re.DOTALL | re.MULTILINE,
)


def blocks(request: Request) -> dict[str, str]:
    """What stands between the delimiters of a request, by name."""
    return {found["name"]: found[3] for found in _BLOCK.finditer(request.question)}


def pairs_reply(*pairs: tuple[str, str]) -> str:
    return json.dumps({"skip": None, "pairs": [{"question": q, "answer": a} for q, a in pairs]})


def verdict_reply(
    answer: str, answerable: bool = True, standalone: bool = True, rewrite: str | None = None
) -> str:
    return json.dumps(
        {"answer": answer, "answerable": answerable, "standalone": standalone, "rewrite": rewrite}
    )


class ScriptedGenerator:
    """Writes by script, and verifies by a table of right answers; counts what it is asked."""

    def __init__(
        self, write: Callable[[Request, int], str | Reply], truth: Mapping[str, str] | None = None
    ) -> None:
        """`write` gets a request for pairs and how many for the same text came before it.

        Without a table a question's right answer is its second word, read backwards.
        """
        self.write = write
        self.truth = None if truth is None else {question_key(q): answer for q, answer in truth.items()}
        self.requests: list[Request] = []
        self._counts: dict[str, int] = {}

    def of(self, system: str) -> list[Request]:
        return [request for request in self.requests if request.system == system]

    async def ask(self, request: Request) -> Reply:
        self.requests.append(request)
        await asyncio.sleep(0)
        shown = blocks(request)
        if request.system == pair_prompts.JUDGE:
            return Reply('{"same": false}')
        if request.system == pair_prompts.VERIFY:
            if self.truth is None:
                return Reply(verdict_reply(shown["question"].split()[1][::-1]))
            answer = self.truth.get(question_key(shown["question"]))
            return Reply(verdict_reply(answer or "", answerable=answer is not None))
        key = shown.get("fact") or shown.get("text") or shown["fact 1"]
        number = self._counts.get(key, 0)
        self._counts[key] = number + 1
        reply = self.write(request, number)
        return reply if isinstance(reply, Reply) else Reply(reply)


def delayed(ask: Ask, delay: Callable[[Request], int]) -> Ask:
    """The same replies, each after so many turns of the event loop."""

    async def ask_late(request: Request) -> Reply:
        for _ in range(delay(request)):
            await asyncio.sleep(0)
        return await ask(request)

    return ask_late
