"""The judge over real HTTP: both orders, ties, a judge with a habit, one out of form, one that is gone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from faulty_endpoint import FaultyEndpoint
from transfuse.errors import BudgetError, DataError, GenerationError
from transfuse.evaluate.instructions import instruction_requests, load_instructions
from transfuse.evaluate.judging_form import judge_request, read_winner
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.evaluate.scores import ItemScore
from transfuse.generate.protocol import Reply, Request
from transfuse.recipes.judging import Judged, answer_instructions, check_judge, judge, judge_key
from transfuse.recipes.progress import Display

_BLOCK = re.compile(r"--- (?P<name>[\w ]+) [0-9a-f]{8} begins ---\n(?P<text>.*?)\n--- (?P=name)", re.DOTALL)
KEY = "sk-a-key-that-nobody-may-read-0123456789"


def shown(body: dict[str, Any]) -> dict[str, str]:
    """What the judge is shown, by name."""
    said = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
    return {found["name"]: found["text"] for found in _BLOCK.finditer(said)}


def prefers(worth: Callable[[str], float]) -> Callable[[dict[str, Any]], str]:
    """A judge that names the reply of greater worth."""

    def answer(body: dict[str, Any]) -> str:
        blocks = shown(body)
        first, second = (worth(blocks[f"{place} reply"]) for place in ("first", "second"))
        return json.dumps({"winner": "first" if first > second else "second" if second > first else "tie"})

    return answer


def fair(body: dict[str, Any]) -> str:
    """Names the reply with more words `good`."""
    return prefers(lambda text: text.count("good"))(body)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Judged]:
    """`ask(server, ours, theirs, **settings)`: what its judge makes of two systems' replies."""

    def call(server: FaultyEndpoint, ours: list, theirs: list | None, **more: Any) -> Judged:
        rows = [{"instruction": f"Do {n}.", "output": f"given {n}"} for n in range(len(ours))]
        file = tmp_path / "tasks.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = settings_of(server, file, **more)
        replies = [
            [each if isinstance(each, Reply) else Reply(each) for each in system]
            if system is not None
            else None
            for system in (ours, theirs)
        ]
        assert replies[0] is not None
        return judge(settings, replies[0], replies[1], tmp_path / "out", Display(is_silent=True), seed=17)

    return call


def settings_of(server: FaultyEndpoint, file: Path, **more: Any) -> JudgeSettings:
    tree = {
        "reference": f"openai:tiny@{server.url}",
        "instructions": file,
        "max_retries": 1,
        "timeout_s": 5.0,
    }
    return JudgeSettings.model_validate(tree | more)


def test_both_orders_are_asked_and_won_lost_and_tied_are_told(ask: Callable, tmp_path: Path):
    with FaultyEndpoint(fair) as server:
        found = ask(
            server, ["good good", "good", "bad", "good x"], ["good", "good good", "bad bad", "good x"]
        )
        assert len(server.requests) == 6  # the fourth pair says the same: nobody is asked
    metric = "win_rate/tasks"
    scores = [1.0, 0.0, 0.5, 0.5]
    assert found.scores == [
        ItemScore(metric, f"line {n}", f"line {n}", score, 1.0) for n, score in enumerate(scores, start=1)
    ]
    assert found.estimates[metric].value == 0.5
    assert found.estimates[metric].n == 4
    told = found.summary
    assert (told["n_won"], told["n_tied"], told["n_lost"], told["n_identical"]) == (1, 2, 1, 1)
    assert told["agreement"]["value"] == 1
    assert told["first_share"]["value"] == 0.5
    assert told["warnings"] == []
    assert told["asked"]["n_sent"] == 6
    rows = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert rows[0]["winners"] == ["ours", "ours"]
    assert rows[0]["said"] == ['{"winner": "first"}', '{"winner": "second"}']


def test_the_judge_is_asked_at_temperature_0_by_a_schema_and_sees_each_reply_first_once(ask: Callable):
    with FaultyEndpoint(fair) as server:
        ask(server, ["good"], ["bad"])
        bodies = [seen.body for seen in server.requests]
    assert {body["temperature"] for body in bodies} == {0}
    assert all(
        body["response_format"]["json_schema"]["schema"]["properties"]["winner"]["enum"]
        == ["first", "second", "tie"]
        for body in bodies
    )
    assert sorted(shown(body)["first reply"] for body in bodies) == ["bad", "good"]
    assert {shown(body)["instruction"] for body in bodies} == {"Do 0."}


def test_a_judge_who_always_names_the_first_gives_a_draw_and_is_told_of(ask: Callable):
    with FaultyEndpoint(lambda body: '{"winner": "first"}') as server:
        found = ask(server, [f"ours {n}" for n in range(12)], [f"theirs {n}" for n in range(12)])
    assert found.estimates["win_rate/tasks"].value == 0.5
    assert found.summary["agreement"]["value"] == 0
    assert found.summary["first_share"]["value"] == 1
    assert found.summary["first_share"]["n"] == 12
    no_agreement, leaning = found.summary["warnings"]
    assert no_agreement.startswith("the judge names the same winner in both orders for 0% of 12 items only")
    assert "leans to the reply shown first (it names the first in 100% of its verdicts)" in leaning
    estimate = found.estimates["win_rate/tasks"]
    assert estimate.low < 0.4 < 0.6 < estimate.high  # twelve draws do not prove that two systems are alike


def test_a_judge_who_likes_long_replies_is_told_by_the_controlled_rate(ask: Callable):
    ours = ["x" * (150 if n % 4 else 20) + str(n) for n in range(40)]
    theirs = ["y" * 80 + str(n) for n in range(40)]
    with FaultyEndpoint(prefers(len)) as server:
        found = ask(server, ours, theirs, n_at_once=8)
    raw, controlled = found.estimates.values()
    assert list(found.estimates) == ["win_rate/tasks", "win_rate_length_controlled/tasks"]
    assert raw.value == 0.75
    assert controlled.value is not None
    assert controlled.value < 0.65
    assert found.summary["length_slope"] > 2
    assert found.summary["mean_characters"]["ours"] > found.summary["mean_characters"]["theirs"]


def test_the_file_s_own_replies_are_compared_with_where_there_is_no_second_system(ask: Callable):
    with FaultyEndpoint(fair) as server:
        found = ask(server, ["good", "good", "bad"], None)
        assert {shown(seen.body)["first reply"] for seen in server.requests} >= {
            "given 0",
            "given 1",
            "given 2",
        }
    assert [score.numerator for score in found.scores] == [1, 1, 0.5]
    assert found.summary["against"] == "the replies of the file"


@pytest.mark.parametrize(
    "said",
    [
        "The first one explains more.\n\n**Winner: first**",
        "<think>the second? no</think>\nfirst",
        '```json\n{"Winner": "FIRST"}\n```',
        '{"reason": "it is right", "winner": "first"}',
        '{"winner": "first"} {"winner": "first"}',
    ],
)
def test_forms_that_can_be_read(said: str):
    assert read_winner(said) == "first"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "I like both.",
        "first or second",
        '{"winner": "both"}',
        '{"winner": "first"} or {"winner": "second"}',
        "A",
        "[1]",
    ],
)
def test_other_forms_are_not_guessed_at(said: str):
    assert read_winner(said) is None


def test_a_judge_who_speaks_first_is_asked_again_once(ask: Callable):
    def chatty(body: dict[str, Any]) -> str:
        return "Hard to say, really." if len(body["messages"]) == 2 else fair(body)

    with FaultyEndpoint(chatty) as server:
        found = ask(server, ["good"], ["bad"])
        turns = server.requests[-1].body["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[2]["content"] == "Hard to say, really."
    assert found.estimates["win_rate/tasks"].value == 1
    assert found.summary["n_asked_again"] == 2
    assert len(server.requests) == 4


def test_what_stays_in_another_form_is_unscorable_with_its_reason(ask: Callable):
    def moody(body: dict[str, Any]) -> str:
        return "No comment." if shown(body)["instruction"] == "Do 1." else fair(body)

    with FaultyEndpoint(moody) as server:
        found = ask(server, ["good"] * 4, ["bad"] * 4)
    assert [score.item for score in found.scores] == ["line 1", "line 3", "line 4"]
    assert found.estimates["win_rate/tasks"].n == 3
    assert found.summary["unscorable"] == [
        {"item": "line 2", "reason": "the judge answered in another form, asked twice: 'No comment.'"}
    ]


def test_a_judge_in_other_forms_altogether_is_one_error_with_a_sample(ask: Callable):
    with FaultyEndpoint(lambda body: "Reply A is nicer.") as server:
        with pytest.raises(GenerationError) as raised:
            ask(server, [f"good {n}" for n in range(100)], ["bad"] * 100, n_at_once=4)
        n_sent = len(server.requests)
    message = str(raised.value)
    assert "20 of 100 items are unscorable already" in message
    assert 'expected {"winner": "first"}' in message
    assert "'Reply A is nicer.'" in message
    assert "Choose a judge" in message
    assert n_sent <= 4 * 24  # of 400: twice in both orders, about twenty items and those in hand


def test_replies_that_are_cut_say_what_to_raise(ask: Callable):
    with (
        FaultyEndpoint(lambda body: "Let me think", lambda number, body: "length") as server,
        pytest.raises(
            GenerationError, match=r"'Let me think' \(cut after 9 tokens\).*raise judge.max_judge_tokens"
        ),
    ):
        ask(server, ["good"], ["bad"], max_judge_tokens=9)


def test_a_system_that_did_not_reply_is_no_fault_of_the_judge(ask: Callable):
    with FaultyEndpoint(fair) as server:
        found = ask(server, [Reply("", error="prompt too long"), "good"], ["bad", Reply("", error="gone")])
        assert not server.requests
    assert [each["reason"] for each in found.summary["unscorable"]] == [
        "our system gave no reply: prompt too long",
        "the other system gave no reply: gone",
    ]
    assert found.estimates["win_rate/tasks"].value is None
    assert found.summary["agreement"]["value"] is None


def test_nothing_is_paid_for_twice(ask: Callable):
    with FaultyEndpoint(fair) as server:
        first = ask(server, ["good", "bad"], ["bad", "good"])
        again = ask(server, ["good", "bad"], ["bad", "good"], max_requests=0)
        assert len(server.requests) == 4
    assert again.scores == first.scores
    assert again.estimates == first.estimates


def test_a_spent_budget_keeps_what_was_answered(ask: Callable):
    with FaultyEndpoint(fair) as server:
        with pytest.raises(BudgetError, match="raise max_requests"):
            ask(server, [f"good {n}" for n in range(6)], ["bad"] * 6, max_requests=5, n_at_once=1)
        ask(server, [f"good {n}" for n in range(6)], ["bad"] * 6)
        assert len(server.requests) == 12


def test_a_judge_that_is_gone_is_one_error(ask: Callable):
    with FaultyEndpoint(fair) as server:
        url = server.url
    with pytest.raises(GenerationError, match="nobody answers there") as raised:
        ask(server, ["good"], ["bad"])
    assert url in str(raised.value)


def test_the_key_stands_in_no_file_and_no_message(
    ask: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.setenv("MY_KEY", KEY)
    with FaultyEndpoint(fair, key=KEY) as server:
        ask(server, ["good"], ["bad"], key_env="MY_KEY")
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        server.key = "another"
        with pytest.raises(GenerationError) as raised:
            ask(server, ["good new"], ["bad"], key_env="MY_KEY")
    assert KEY not in str(raised.value)
    assert KEY not in "".join(capfd.readouterr())
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file


def test_a_prompt_of_one_s_own_is_filled_in_one_pass(tmp_path: Path):
    with FaultyEndpoint(fair) as server:
        settings = settings_of(
            server, tmp_path / "x.jsonl", prompt="Q {instruction} A {first} B {second} {x}"
        )
    request = judge_request("what is {first}?", "say {second}", "b", settings)
    assert request.question == "Q what is {first}? A say {second} B b {x}"
    with pytest.raises(ValidationError, match=r"once each, got 0 x \{second\}"):
        JudgeSettings(reference="m", instructions=Path("x"), prompt="{instruction} {first}")


def write(path: Path, *rows: dict[str, Any]) -> JudgeSettings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JudgeSettings(reference="openai:m@http://localhost:1/v1", instructions=path)


def test_instructions_with_inputs_ids_and_references(tmp_path: Path):
    settings = write(
        tmp_path / "a.jsonl",
        {"instruction": "Translate.", "input": "Haus", "output": "house", "id": 7},
        {"instruction": "Sing.", "input": "", "reference": "la"},
        {"instruction": "Third."},
    )
    found = load_instructions(settings)
    assert [tuple(each) for each in found] == [
        ("7", "Translate.\n\nHaus", "house"),
        ("line 2", "Sing.", "la"),
        ("line 3", "Third.", None),
    ]
    assert instruction_requests(found[:1], settings) == [
        Request("Translate.\n\nHaus", max_new_tokens=512, is_one_line=False)
    ]
    check_judge(settings, has_second=True)
    with pytest.raises(DataError, match=r"line 3 has no 'output' or 'reference'.*--against"):
        check_judge(settings, has_second=False)
    check_judge(settings.model_copy(update={"n_items": 2}), has_second=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the file holds none"),
        ([{"prompt": "x"}], r"a.jsonl:1: expected a text as 'instruction'.*got the keys \['prompt'\]"),
        ([{"instruction": "x", "output": 3}], r"a.jsonl:1: 'output': expected a text, got 3"),
        ([{"instruction": "x", "id": 1}, {"instruction": "y", "id": "1"}], "'id': '1' stands twice"),
    ],
)
def test_wrong_instructions_are_refused_by_line(rows: list[dict[str, Any]], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load_instructions(write(tmp_path / "a.jsonl", *rows))


def test_the_key_of_a_stage_changes_with_what_a_judgement_depends_on(tmp_path: Path):
    settings = write(tmp_path / "a.jsonl", {"instruction": "x"})
    key = judge_key(settings)
    same = settings.model_copy(update={"n_at_once": 3, "key_env": "X", "max_requests": 5})
    assert judge_key(same) == key
    assert judge_key(settings.model_copy(update={"prompt": "{instruction}{first}{second}"})) != key
    write(tmp_path / "a.jsonl", {"instruction": "y"})
    assert judge_key(settings) != key


def test_a_system_answers_every_instruction_in_order(tmp_path: Path):
    settings = write(tmp_path / "a.jsonl", *({"instruction": f"Say {n}."} for n in range(3)))

    class Echo:
        identity = "echo"

        def generate(self, requests: Any, on_reply: Any = None) -> list[Reply]:
            replies = [Reply(request.question) for request in requests]
            for index, reply in enumerate(replies):
                on_reply(index, reply)
            return replies

    replies = answer_instructions(settings, Echo(), Display(is_silent=True), "answers")
    assert [reply.text for reply in replies] == ["Say 0.", "Say 1.", "Say 2."]
