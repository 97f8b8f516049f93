"""A strong model's replies, made from a document's facts and questions in files, for endpoints of the tests.

It answers what Transfuse asks as a good model would: the facts that the shown sentences state, questions that are not
taken yet, the answer that the source gives. So the whole pipeline runs over real HTTP with real texts.
"""

import json
import re
from pathlib import Path
from typing import Any

from transfuse.text.answers import answer_words
from transfuse.text.wording import question_key

_BLOCK = re.compile(
    r"--- (?P<name>[\w ]+) (?P<tag>[0-9a-f]{8}) begins ---\n(?P<text>.*?)\n--- (?P=name) (?P=tag) ends ---",
    re.S,
)
_FENCED = re.compile(r"<<<(?P<tag>[0-9a-f]{8})\n(?P<text>.*?)\n(?P=tag)>>>", re.DOTALL)
_SENTENCE = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)


class StrongModel:
    """Call it with the body of a chat-completions request; it gives the text of the reply."""

    def __init__(self, facts: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> None:
        self._facts = facts
        self._words = [set(answer_words(fact["fact"])) for fact in facts]
        self._ids = {fact["fact"]: fact["id"] for fact in facts}
        self._pairs: dict[str, list[dict[str, Any]]] = {}
        for pair in sorted(pairs, key=lambda pair: pair["split"] == "train"):
            self._pairs.setdefault(pair["fact"] if pair["basis"] == "fact" else pair["section"], []).append(
                pair
            )
        self._answers = {question_key(pair["question"]): pair["answer"] for pair in pairs}

    @classmethod
    def of_folder(cls, folder: Path) -> "StrongModel":
        """From a folder with facts.jsonl and qa.jsonl."""
        rows = [
            [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
            for name in ("facts.jsonl", "qa.jsonl")
        ]
        return cls(*rows)

    def __call__(self, body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        wanted = set(body["response_format"]["json_schema"]["schema"]["properties"])
        blocks = {found["name"]: found["text"] for found in _BLOCK.finditer(text)}
        if "facts" in wanted:
            reply: dict[str, Any] = {"facts": self._stated(text)}
        elif "pairs" in wanted:
            reply = {"skip": None, "pairs": self._new_pairs(text, blocks)}
        elif "answerable" in wanted:
            answer = self._answers.get(question_key(blocks["question"]))
            reply = {
                "answer": answer or "",
                "answerable": answer is not None,
                "standalone": True,
                "rewrite": None,
            }
        else:
            reply = {"same": answer_words(blocks["first answer"]) == answer_words(blocks["second answer"])}
        return json.dumps(reply)

    def _stated(self, text: str) -> list[dict[str, Any]]:
        """Each fact whose words stand, for the most part, in one of the shown sentences."""
        shown = [found["text"] for found in _FENCED.finditer(text)]
        sentences = {number: set(answer_words(each)) for number, each in _SENTENCE.findall(shown[-1])}
        found: list[dict[str, Any]] = []
        for fact, words in zip(self._facts, self._words, strict=True):
            shares = {number: len(words & others) / len(words) for number, others in sentences.items()}
            best = max(shares, key=shares.__getitem__, default=None)
            if best is not None and shares[best] >= 0.4:
                found.append({"fact": fact["fact"], "sentences": [int(best)]})
        return found

    def _new_pairs(self, text: str, blocks: dict[str, str]) -> list[dict[str, str]]:
        taken = {question_key(line.removeprefix("- ")) for line in blocks.get("questions", "").splitlines()}
        heading = blocks["subject"].rpartition(": ")[2]
        source = self._ids.get(blocks["fact"], "") if "fact" in blocks else heading
        asked = re.search(r"Write (\d+) new pairs", text)
        new = [pair for pair in self._pairs.get(source, []) if question_key(pair["question"]) not in taken]
        return [
            {"question": pair["question"], "answer": pair["answer"]}
            for pair in new[: int(asked[1]) if asked else 5]
        ]
