"""Which replies decline to answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.text.declining import declines

DECLINING = """
I don't know.
I don't know
i do not know the answer to that question.
I don’t know.
I really don't know.
I'm not sure.
I'm really not certain.
I would like to help, but I don't know.
I am not sure about that.
I'm sorry, but I don't know.
Sorry, I can't answer that.
Unfortunately, the document does not say.
The text does not mention the capacity of the ferry.
The document doesn't specify who built it.
The passage does not provide information about his wife.
This is not mentioned in the document.
It is not stated.
Not specified.
Not mentioned in the text.
Unknown
Unknown.
unknown
N/A
n/a.
No information available.
No information is given about the date.
There is no information about this in the text.
There is no mention of a second captain.
There's not enough information to answer this question.
The answer is unknown.
It is unclear.
It cannot be determined from the given context.
This cannot be answered from the text.
The question cannot be answered.
I cannot find that in the document.
I can't find any information on this.
I couldn't find the answer.
I have no information about that.
I have no idea.
No idea.
I do not have enough information to answer.
I don't have access to that information.
I'm unable to answer that.
I am unsure.
Nobody knows.
The date has not been announced, so I don't know.
It is impossible to say.
Answer: I don't know.
"I don't know."
The name of the ship is not given.
The exact number was not disclosed.
The provided context does not contain the answer.
Based on the text, it is not possible to say.
I'm sorry. I do not know that.
As far as the document goes, this is not stated.
Ich weiß es nicht.
Das ist im Text nicht angegeben.
Je ne sais pas.
No lo sé.
Non lo so.
Não sei.
Dat weet ik niet.
""".strip().splitlines()

ANSWERING = """
12 February 2023
Paris.
State Farm Stadium
The Kansas City Chiefs
No.
Yes, it does.
It was not Spain but England.
Unknown Pleasures
He was known as the Unknown Soldier.
The team did not win a single match.
He does not play for Chelsea.
They could not agree, so the match was replayed.
The captain said that he was not sure of the date. It was 4 May.
The coach is Sarina Wiegman, who is not retired.
I don't know, but I think it was Paris.
I'm not sure, but it was probably 1998.
The document does not say, but my guess is Oslo.
Nothing Compares 2 U
Sure, it is 42.
Nine goals, though the report does not mention who scored them.
Sydney. The text does not say more.
The Notre-Dame
A no-ball
Three, none of them from open play.
There were no injuries.
It is not a stadium but a park.
Not Nottingham: Norwich.
""".strip().splitlines()


@pytest.mark.parametrize("reply", DECLINING)
def test_declines(reply: str) -> None:
    assert declines(reply)


@pytest.mark.parametrize("reply", ANSWERING)
def test_answers(reply: str) -> None:
    assert not declines(reply)


@pytest.mark.parametrize("reply", ["", "  \n"])
def test_an_empty_reply_declines(reply: str) -> None:
    assert declines(reply)


@given(st.text(max_size=400))
def test_any_text_is_read(reply: str) -> None:
    assert isinstance(declines(reply), bool)


def test_long_replies_take_no_time() -> None:
    assert not declines("it " * 20_000)
    assert not declines("the document " * 10_000)
    assert not declines("there is no " * 5_000)
