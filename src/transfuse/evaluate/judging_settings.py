"""Settings of an open-ended win rate by a judge model."""

from pathlib import Path

from pydantic import PositiveInt, field_validator

from transfuse.generate.settings import GeneratorSettings

PLACES = ("{instruction}", "{first}", "{second}")
"""What a prompt of one's own holds, each once."""


class JudgeSettings(GeneratorSettings):
    """Who judges two systems' replies to instructions, and which; `reference` and what follows it name the judge."""

    instructions: Path
    """JSONL of `{"instruction"}`, each perhaps with an "input" (stands below it), an "id", and an "output" or
    "reference": the reply to compare with where there is no second system."""
    name: str | None = None
    """Of the instructions, in metrics such as `win_rate/NAME`; none takes the file's name."""
    n_items: PositiveInt | None = None
    """Instructions, the first; none means all."""
    max_new_tokens: PositiveInt = 512
    """A system's reply that has not ended by then is cut, and judged as far as it goes."""
    max_judge_tokens: PositiveInt = 256
    """The same of what the judge says; a judge that thinks aloud needs more."""
    prompt: str | None = None
    """What the judge is asked, with `{instruction}`, `{first}` and `{second}` where these go; none asks which reply is
    better. How it is to answer is said beside it."""

    @property
    def set_name(self) -> str:
        """What metrics call the instructions."""
        return self.name or self.instructions.stem

    @field_validator("prompt")
    @classmethod
    def _has_its_places(cls, prompt: str | None) -> str | None:
        for place in PLACES:
            if prompt is not None and prompt.count(place) != 1:
                raise ValueError(
                    f"expected {', '.join(PLACES)} once each, got {prompt.count(place)} x {place}"
                )
        return prompt
