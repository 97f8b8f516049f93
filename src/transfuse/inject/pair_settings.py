"""How questions and answers are written and checked."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from transfuse.types import PairKind, StrictModel

Share = Annotated[float, Field(ge=0, lt=1)]
"""Of the direct training pairs of a run."""


class PairSettings(StrictModel):
    """Writing and checking of question-answer pairs."""

    n_eval: NonNegativeInt = 1
    """Eval questions of each fact; no training question comes near them."""
    pairs_per_request: PositiveInt = 5
    """Pairs asked for at a time, of a fact."""
    section_pairs_per_request: PositiveInt = 10
    """Pairs asked for at a time, of a section."""
    max_rounds: PositiveInt = 4
    """Requests for pairs after which a fact is left as it is."""
    max_retries_skip: NonNegativeInt = 1
    """How often a fact that the generator skips is put to it again, with its source in view."""
    max_dry_rounds: PositiveInt = 2
    """Requests in a row without a new pair after which a section is left as it is."""
    window_tokens: PositiveInt = 1000
    """A longer section is cut into stretches of whole sentences of at most this length."""
    temperature: NonNegativeFloat = 1.0
    """Of writing; checks are always greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: PositiveInt = 1024
    verify: bool = True
    """Whether each question is answered from its source in a second request, which does not see the answer."""
    judge: bool = True
    """Whether answers in other words are compared in a third request; where not, they count as different."""
    max_answer_words: PositiveInt = 20
    """Pairs with longer answers are dropped."""
    eval_distance: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Likeness of wording (1 is the same) from which a training question is too near to an eval question."""
    reverse_share: Share = 0.0
    """Further pairs whose answer is what the fact is about, per direct training pair."""
    two_facts_share: Share = 0.0
    """Further pairs that take two facts of one section, per direct training pair."""
    unknown_share: Share = 0.0
    """Further questions that the document does not answer, per direct training pair."""
    paraphrases: NonNegativeInt = 0
    """Statements of each fact in other words."""

    @property
    def shares(self) -> dict[PairKind, float]:
        """Share of each further kind of pairs, those of 0 left out."""
        shares: dict[PairKind, float] = {
            "reverse": self.reverse_share,
            "two-facts": self.two_facts_share,
            "unknown": self.unknown_share,
        }
        return {kind: share for kind, share in shares.items() if share}
