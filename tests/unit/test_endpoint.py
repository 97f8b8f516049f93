"""An endpoint that misbehaves in every way, over real HTTP: what can succeed does, what cannot says why."""

import asyncio
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate

import pytest

from faulty_endpoint import FaultyEndpoint
from transfuse.errors import GenerationError, MissingExtraError
from transfuse.generate.endpoint import EndpointGenerator
from transfuse.generate.protocol import Generator, Reply, Request
from transfuse.io.chat import CONTEXT

ONE = Request("Who won the cup?", max_new_tokens=9)
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSFUSE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def generator(endpoint: FaultyEndpoint, model: str = "tiny", **options) -> EndpointGenerator:
    settings = {"timeout_s": 5.0, "max_retries": 2, "backoff_s": 0.001, **options}
    return EndpointGenerator(f"openai:{model}@{endpoint.url}", **settings)


def at_first(*faults: str) -> Callable[[int, dict], str | None]:
    return lambda number, body: faults[number] if number < len(faults) else None


def numbered(n: int) -> list[Request]:
    return [Request(f"Question {i}?") for i in range(n)]


def test_replies_come_in_order_many_at_once_and_none_is_mixed_up():
    def echo(body: dict) -> str:
        time.sleep(0.02)
        return body["messages"][-1]["content"].upper()

    seen: dict[int, Reply] = {}
    with FaultyEndpoint(echo) as endpoint:
        asked = generator(endpoint, n_at_once=4)
        assert isinstance(asked, Generator)
        replies = asked.generate(numbered(12), seen.__setitem__)
        assert endpoint.most_open == 4
        assert endpoint.n_connections == 4
    assert [reply.text for reply in replies] == [f"QUESTION {i}?" for i in range(12)]
    assert seen == dict(enumerate(replies))


def test_every_part_of_a_request_is_sent_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-another-host")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-for-another-host")
    request = Request(
        "Who won?", "Spain won.", 33, system="Be brief.", temperature=0.7, top_p=0.9, seed=5, schema=SCHEMA
    )
    with FaultyEndpoint() as endpoint:
        generator(endpoint, "org/tiny:free@v2").generate([request, ONE])
        first, second = sorted(endpoint.requests, key=lambda seen: -len(seen.body))
    assert first.body == {
        "model": "org/tiny:free@v2",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": CONTEXT.format(context="Spain won.") + "Who won?",
            },
        ],
        "max_tokens": 33,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": json.loads(SCHEMA), "strict": True},
        },
    }
    assert second.body == {
        "model": "org/tiny:free@v2",
        "messages": [{"role": "user", "content": "Who won the cup?"}],
        "max_tokens": 9,
        "temperature": 0.0,
    }
    assert "authorization" not in first.headers
    assert not any("another-host" in value for value in first.headers.values())


@pytest.mark.parametrize(
    "fault", ["408", "409", "425", "429", "500", "503", "cut", "malformed", "no-choice", "empty", "hang"]
)
def test_what_may_pass_is_sent_again(fault: str):
    with FaultyEndpoint(faults=at_first(fault)) as endpoint:
        (reply,) = generator(endpoint, timeout_s=0.2 if fault == "hang" else 5.0).generate([ONE])
        assert len(endpoint.requests) == 2
        assert endpoint.requests[0].body == endpoint.requests[1].body
    assert (reply.text, reply.error) == ("yes", "")
    # An empty reply was charged its prompt of four words.
    assert reply.n_prompt_tokens == (8 if fault in ("empty", "no-choice") else 4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "status 500: scripted 500"),
        ("cut", "the connection was cut"),
        ("malformed", "no JSON"),
        ("no-choice", "a reply without a choice"),
        ("empty", "an empty reply"),
        ("hang", "no reply within 0.1 s"),
    ],
)
def test_what_does_not_pass_is_given_up_with_its_reason_and_the_others_go_on(fault: str, reason: str):
    def faults(number: int, body: dict) -> str | None:
        return fault if "Question 1?" in body["messages"][-1]["content"] else None

    with FaultyEndpoint(faults=faults) as endpoint:
        replies = generator(endpoint, timeout_s=0.1 if fault == "hang" else 5.0).generate(numbered(3))
        assert len(endpoint.requests) == 5
    assert [reply.text for reply in replies] == ["yes", "", "yes"]
    assert reason in replies[1].error
    assert "(3 attempts)" in replies[1].error


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch):
    with FaultyEndpoint(faults=lambda number, body: "500") as endpoint:
        generator(endpoint, max_retries=3, backoff_s=0.04).generate([ONE])
        times = [request.at_s for request in endpoint.requests]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    for pause, longest in zip(pauses, (0.04, 0.08, 0.16), strict=True):
        assert longest / 2 - 0.005 < pause < longest + 0.15


def test_while_one_is_told_to_wait_all_wait():
    with FaultyEndpoint(faults=at_first("429:0.15")) as endpoint:
        asked = generator(endpoint)

        async def ask() -> list[Reply]:
            first = asyncio.create_task(asked.answer(ONE))
            while not endpoint.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.03)
            try:
                return [await asked.answer(Request("Later?")), await first]
            finally:
                await asked.close()

        assert [reply.text for reply in asyncio.run(ask())] == ["yes", "yes"]
        told, *later = [request.at_s for request in endpoint.requests]
    assert len(later) == 2
    assert min(later) - told > 0.14


def test_a_date_to_wait_for_is_honoured_over_our_own_pause():
    with FaultyEndpoint(faults=at_first(f"503:{formatdate(time.time() - 5, usegmt=True)}")) as endpoint:
        started = time.monotonic()
        (reply,) = generator(endpoint, backoff_s=60.0).generate([ONE])
    assert reply.text == "yes"
    assert time.monotonic() - started < 2


def test_a_wait_of_an_hour_is_not_waited_for():
    with (
        FaultyEndpoint(faults=at_first("429:3600")) as endpoint,
        pytest.raises(GenerationError, match=r"asks to wait 3600 s.*run again then"),
    ):
        generator(endpoint).generate([ONE])


@pytest.mark.parametrize("key", ["", "sk-wrong"])
def test_a_refused_key_stops_at_once_and_is_not_printed(key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-wrong") if key else None
    with FaultyEndpoint(key="sk-right") as endpoint, pytest.raises(GenerationError) as caught:
        generator(endpoint, key_env="MY_KEY" if key else None, n_at_once=1).generate(numbered(5))
    assert len(endpoint.requests) == 1
    assert ("the key in MY_KEY" if key else "TRANSFUSE_API_KEY is not set") in str(caught.value)
    assert "status 401: Incorrect API key provided" in str(caught.value)
    assert "sk-" not in str(caught.value)
    assert "sk-" not in "".join(traceback.format_exception(caught.value))


def test_the_right_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSFUSE_API_KEY", " sk-right\n")
    with FaultyEndpoint(key="sk-right") as endpoint:
        (reply,) = generator(endpoint).generate([ONE])
    assert reply.text == "yes"


@pytest.mark.parametrize(
    ("value", "says"), [(None, "MY_KEY, it is not set"), ("sk-ü", "MY_KEY: expected a key in")]
)
def test_a_named_key_must_be_there_and_be_a_key(
    value: str | None, says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_KEY", value) if value else monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(GenerationError, match=says) as caught:
        EndpointGenerator("openai:m@http://127.0.0.1:9", key_env="MY_KEY")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("fault", ["404", "400:Invalid model name passed in"])
def test_an_unknown_model_names_those_that_are_there(fault: str):
    with (
        FaultyEndpoint(faults=lambda number, body: fault, models=["one", "two"]) as endpoint,
        pytest.raises(GenerationError, match="offers no model 'tiny'; it offers: one, two"),
    ):
        generator(endpoint).generate([ONE])


def test_a_path_that_is_not_there_is_told_from_an_unknown_model():
    with FaultyEndpoint() as endpoint:
        asked = EndpointGenerator(f"openai:tiny@{endpoint.url}/wrong", max_retries=0)
        with pytest.raises(GenerationError, match=r"status 404 .*check the URL"):
            asked.generate([ONE])


def test_a_url_alone_means_its_only_model():
    with FaultyEndpoint(models=["org/only"]) as endpoint:
        asked = EndpointGenerator(endpoint.url.removesuffix("/v1"))
        assert asked.identity == f"openai:org/only@{endpoint.url}"
        assert asked.generate([ONE])[0].text == "yes"
        endpoint.models = ["one", "two"]
        with pytest.raises(GenerationError, match="expected one model, it offers one, two"):
            EndpointGenerator(endpoint.url)
    with pytest.raises(GenerationError, match="expected a list of models, got no connection"):
        EndpointGenerator(endpoint.url)


def test_nobody_there_is_said_at_once():
    with FaultyEndpoint() as endpoint:
        url = endpoint.url
    started = time.monotonic()
    with pytest.raises(GenerationError, match=rf"{url}: nobody answers there: .*; start the server"):
        EndpointGenerator(f"openai:tiny@{url}", backoff_s=60.0).generate(numbered(20))
    assert time.monotonic() - started < 2


def test_an_endpoint_that_goes_away_is_waited_for_and_then_reported():
    with FaultyEndpoint() as endpoint:
        asked = generator(endpoint, n_at_once=2, max_retries=3)
        assert asked.generate([ONE])[0].text == "yes"
    with pytest.raises(
        GenerationError, match=r"stopped answering \(\d+ attempts in a row.*run again when it is back"
    ):
        asked.generate(numbered(5))


def test_an_endpoint_that_comes_back_in_time_loses_nothing():
    with FaultyEndpoint() as endpoint:
        asked = generator(endpoint, max_retries=6, backoff_s=0.02)
        asked.generate([ONE])
        port = endpoint.port

    async def ask() -> list[Reply]:
        tasks = [asyncio.create_task(asked.answer(request)) for request in numbered(3)]
        await asyncio.sleep(0.08)
        with FaultyEndpoint(port=port):
            try:
                return await asyncio.gather(*tasks)
            finally:
                await asked.close()

    assert [reply.text for reply in asyncio.run(ask())] == ["yes"] * 3


def test_redirects_are_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSFUSE_API_KEY", "sk-right")
    with (
        FaultyEndpoint() as other,
        FaultyEndpoint(faults=lambda n, body: f"redirect:{other.url}/x") as endpoint,
    ):
        with pytest.raises(GenerationError, match=f"redirects to {other.url}/x"):
            generator(endpoint).generate([ONE])
        assert other.requests == []


def test_an_account_without_money_is_no_reason_to_wait():
    words = "You exceeded your current quota, please check your plan"
    with (
        FaultyEndpoint(faults=lambda number, body: f"402:{words}") as endpoint,
        pytest.raises(GenerationError, match=r"is used up .*what has been answered is kept"),
    ):
        generator(endpoint).generate([ONE])


def picky(*unknown: str) -> Callable[[int, dict], str | None]:
    """Refuses some parameters, one at a time, as servers do."""

    def faults(number: int, body: dict) -> str | None:
        kind = body.get("response_format", {}).get("type")
        if kind in unknown:
            return f"400:response_format of type {kind} is not supported"
        return next((f"400:Unrecognized request argument: {name}" for name in unknown if name in body), None)

    return faults


def test_a_format_that_is_not_known_is_left_out_for_good():
    request = Request("Who?", schema=SCHEMA)
    with FaultyEndpoint(faults=picky("json_schema", "json_object")) as endpoint:
        asked = generator(endpoint, max_retries=0)
        assert asked.generate([request])[0].text == "yes"
        assert asked.left_out == {"json_schema", "json_object"}
        kinds = [request.body.get("response_format", {}).get("type") for request in endpoint.requests]
        assert kinds == ["json_schema", "json_object", None]
        asked.generate([Request("When?", schema=SCHEMA)])
        assert len(endpoint.requests) == 4
    with FaultyEndpoint(faults=picky("json_schema")) as endpoint:
        asked = generator(endpoint, max_retries=0)
        replies = asked.generate([Request(f"{n}?", schema=SCHEMA) for n in range(8)])
        assert [reply.text for reply in replies] == ["yes"] * 8
        assert endpoint.requests[-1].body["response_format"] == {"type": "json_object"}
        assert asked.left_out == {"json_schema"}


def test_parameters_that_are_not_known_are_left_out_for_good():
    request = Request("Who?", temperature=1.0, top_p=0.5, seed=3)
    with FaultyEndpoint(faults=picky("seed", "top_p")) as endpoint:
        asked = generator(endpoint, max_retries=0)
        assert asked.generate([request])[0].text == "yes"
        assert asked.left_out == {"seed", "top_p"}
        assert set(endpoint.requests[-1].body) == {"model", "messages", "max_tokens", "temperature"}


def test_a_model_that_names_its_limit_otherwise():
    def faults(number: int, body: dict) -> str | None:
        says = "400:Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return says if "max_tokens" in body else None

    with FaultyEndpoint(faults=faults) as endpoint:
        assert generator(endpoint).generate([ONE])[0].text == "yes"
        assert endpoint.requests[-1].body["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (
            "400:This model's maximum context length is 4096 tokens; lower max_tokens",
            "prompt too long (status 400: ",
        ),
        ("413:Payload too large", "prompt too long (status 413: "),
        ("400:messages is odd", "refused (status 400: messages is odd)"),
        ("refusal", "the model refuses: I would rather not."),
        ("silent-length", "the limit of 9 reply tokens was used up before the first word"),
    ],
)
def test_what_would_fail_again_is_sent_once(fault: str, error: str):
    with FaultyEndpoint(faults=at_first(fault)) as endpoint:
        first, second = generator(endpoint, n_at_once=1).generate([ONE, Request("Next?")])
        assert len(endpoint.requests) == 2
    assert error in first.error
    assert second.text == "yes"


def test_a_reply_ends_at_the_first_line_break_only_where_one_line_is_asked_for():
    many = Request("Who?", is_one_line=False)
    with FaultyEndpoint(lambda body: "\nSpain \nand Sweden\n", lambda number, body: "length") as endpoint:
        one_line, lines = generator(endpoint).generate([Request("Who?"), many])
    assert one_line == Reply("Spain", is_cut=False, n_prompt_tokens=1, n_reply_tokens=3)
    assert lines == Reply("Spain \nand Sweden", is_cut=True, n_prompt_tokens=1, n_reply_tokens=3)


def test_half_a_character_is_made_whole():
    with FaultyEndpoint(lambda body: "24 \ud83d") as endpoint:
        (reply,) = generator(endpoint).generate([ONE])
    assert reply.text == "24 ?"


@pytest.mark.parametrize("reference", ["openai:tiny", "smollm2-135m"])
def test_what_is_no_endpoint_is_refused(reference: str):
    with pytest.raises(GenerationError, match="expected openai:MODEL@URL"):
        EndpointGenerator(reference)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'transfuse\[endpoint\]'"):
        EndpointGenerator("openai:tiny@http://127.0.0.1:9")
