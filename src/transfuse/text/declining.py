"""Whether a reply declines to answer: "I don't know" in its many forms.

Knows English best, where it also sees whether an answer follows after all; of German, French, Spanish, Italian,
Portuguese and Dutch the plain forms only. A reply in another language counts as an answer.
"""

import re
import unicodedata

_SUBJECT = (
    r"(?:(?:this|that|the|these|any|your|above|given|provided|available)\s+)*"
    r"(?:document|documents|text|texts|article|passages?|context|sources?|section|material|data|excerpt|question|"
    r"information|report|page|it|this|there|i|we|answer|name|detail|details|fact|facts)(?:\s+(?:above|itself|here|"
    r"provided|given|at hand))?"
)
_SAID = (
    r"(?:say|says|said|mention|mentions|mentioned|state|states|stated|specify|specifies|specified|provide|provides|"
    r"provided|give|gives|given|contain|contains|include|includes|included|indicate|indicates|indicated|disclose|"
    r"disclosed|describe|described|discuss|discussed|tell|reveal|revealed|address|addressed|reported|recorded|listed|"
    r"documented|answer|found|available|known|clear|possible|certain|determined|named)"
)
_NOT = r"(?:not|never|n't|cannot|can not)"

_FORMS = (
    # the one who answers
    r"\b(?:i|we)(?:\s+(?:really|simply|just|honestly|currently|also|still))*\s+"
    r"(?:do|did|could|can|would|have|am|are|was)\s*(?:not|n't)"
    r"(?:\s+(?:actually|currently|really|yet|been able to|able to))*\s+"
    r"(?:know|have|sure|certain|aware|familiar|able|find|answer|tell|say|determine|confirm|provide|recall|remember|see|"
    r"locate|identify|possess|access|give|help|assist)\b",
    r"\b(?:i|we)\s+(?:cannot|can\s*not|ca\s*n't|are unable to|am unable to|was unable to|have no)\b",
    r"\b(?:i am|i'm|we are|we're)\s+(?:\w+\s+)?(?:unable|unsure|uncertain|unaware|unfamiliar)\b",
    r"\b(?:i'm|we're)\s+(?:\w+ly\s+)?not\s+(?:\w+ly\s+)?(?:sure|certain|aware|able|familiar)\b",
    r"\b(?:i|we)\s+lack\b",
    r"^(?:do\s*n't|do not)\s+know\b",
    r"^(?:no|not)\s+(?:idea|clue|sure|known|applicable|specified|stated|mentioned|given|provided|available|certain|"
    r"enough|sufficient|answerable|in the (?:text|document|context|passage))\b",
    r"^(?:no|insufficient|not enough)\s+(?:\w+\s+)?(?:information|data|answer|mention|details?)\b",
    r"^(?:unknown|unanswerable|unspecified|unclear|undisclosed|unsure|uncertain|n\s*/?\s*a|none given)\W*$",
    # what is asked about
    rf"\b{_SUBJECT}\b[^.?!;]{{0,80}}?\b(?:do|does|did|is|are|was|were|has|have|can|could)\s*{_NOT}\s+"
    rf"(?:\w+\s+){{0,3}}?{_SAID}\b",
    rf"\b{_SUBJECT}\b[^.?!;]{{0,60}}?\bcan\s*not\s+(?:be\s+)?(?:\w+\s+)?(?:{_SAID}|answered|known|say)\b",
    r"\b(?:is|are|was|were|has|have|had)\s*(?:not|n't)\s+(?:been\s+|be\s+)?(?:\w+ly\s+)?"
    r"(?:mentioned|stated|specified|provided|given|disclosed|known|indicated|reported|documented|included|answered|"
    r"discussed|revealed|listed|available|clear|publicly)\b",
    r"\bcan\s*not\s+be\s+(?:\w+ly\s+)?(?:answered|determined|known|found|inferred|established|identified|confirmed)\b",
    r"\b(?:it|this|that|answer|date|name|number|reason|location|identity|information|year|figure|cause)\s+"
    r"(?:is|are|was|were|remains?|remained)\s+(?:currently\s+|still\s+)?"
    r"(?:unknown|unclear|unspecified|undisclosed|uncertain|unavailable|a mystery)\b",
    r"\b(?:there is|there's|there was|there are|contains?|provides?|gives?|has|have|with|found|find)\s+"
    r"(?:no|not any|not enough|insufficient|nothing|not sufficient)\b[^.?!;]{0,40}\b"
    r"(?:information|mention|details?|data|answer|record|evidence|indication|about|reference|knowledge|way)\b",
    r"\b(?:nobody|no one|no-one)\s+knows\b",
    r"\bno\s+(?:information|mention|details?|data|record)\s+(?:is|was|are|were|about|on|of|regarding|available)\b",
    r"\bimpossible to (?:say|know|tell|determine|answer)\b",
    r"\b(?:beyond|outside)\s+(?:my|the scope of (?:my|the))\b",
    # other languages
    r"\bich\s+(?:weiß|weiss)\s+(?:es\s+|das\s+|leider\s+)*nicht\b|\bkeine\s+(?:ahnung|angaben?|information(?:en)?)\b|"
    r"\b(?:ist|sind|wird|werden)\s+(?:\w+\s+){0,3}nicht\s+(?:bekannt|angegeben|erwähnt|genannt)\b|^unbekannt\W*$",
    r"\bje\s+ne\s+(?:le\s+)?sais\s+pas\b|\bn'est\s+pas\s+(?:précisé|mentionné|indiqué|connu)e?\b|^inconnue?\W*$",
    r"\bno\s+(?:lo\s+)?sé\b|\bno\s+se\s+(?:menciona|sabe|indica|especifica)\b|^desconocid[oa]\W*$",
    r"\bnon\s+(?:lo\s+)?so\b|\bnon\s+(?:è|e')\s+(?:specificato|menzionato|indicato|noto)\b",
    r"\b(?:eu\s+)?não\s+sei\b|\bnão\s+(?:é|foi)\s+(?:mencionad|informad|especificad)[oa]\b",
    r"\b(?:dat\s+)?weet\s+ik\s+niet\b|\bik\s+weet\s+(?:het\s+)?niet\b|\bniet\s+(?:bekend|vermeld)\b",
)
_DECLINES = re.compile("|".join(f"(?:{form})" for form in _FORMS))

_ANSWERS_ANYWAY = re.compile(
    r"\b(?:but|however|though|although|still|nevertheless|nonetheless)\b[^.?!]{0,40}?"
    r"\b(?:i\s+(?:think|believe|guess|suspect|would say|would guess|assume)|(?:it|he|she|they|that|this)\s+"
    r"(?:is|was|were|are|might be|may be|could be|must be|'s)(?!\s+(?:\w+\s+)?(?:not|n't|no|never|unclear|unknown|"
    r"uncertain|impossible|unavailable|unspecified))|probably|most likely|presumably|"
    r"(?:the\s+)?answer\s+(?:is|was)(?!\s+(?:not|unknown|unclear)))"
    r"|\bmy (?:best )?guess\b|\b(?:if i had to guess|i would guess)\b"
)

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_N_SENTENCES = 3
"""A reply that begins with an answer is one, whatever it says later."""


def declines(reply: str) -> bool:
    """Whether a reply declines to answer.

    Args:
        reply: what the model said.

    Returns:
        True where one of its first sentences says that the answer is not known or not given, and none offers one all
        the same; an empty reply declines as well.
    """
    text = _plain(reply)
    if not text:
        return True
    sentences = [each for each in _SENTENCE.split(text) if each.strip()][:_N_SENTENCES]
    places = [n for n, each in enumerate(sentences) if _DECLINES.search(_main_clause(_without_lead(each)))]
    if not places:
        return False
    if _ANSWERS_ANYWAY.search(text):
        return False
    return all(_is_lead(each) for each in sentences[: places[0]])


_LEADS = re.compile(
    r"^(?:i'?\s*a?m\s+)?(?:(?:very\s+|so\s+)?sorry|i apologi[sz]e|unfortunately|regrettably|well|hmm+|"
    r"that is a (?:good|great|interesting) question|good question|thank you)\b|"
    r"^(?:based on|according to|from)\b"
)
_FILLERS = re.compile(
    r"^(?:answer|a|reply|response)\s*:\s*|^(?:(?:i'?\s*a?m\s+)?(?:very\s+|so\s+)?sorry|i apologi[sz]e|unfortunately|"
    r"regrettably|well|hmm+|actually|honestly|no)\s*[,:.!-]\s*(?:but\s+)?"
)


def _without_lead(sentence: str) -> str:
    """The sentence without what stands before its message: `Sorry, but`, `Answer:`."""
    before = None
    while before != sentence:
        before, sentence = sentence, _FILLERS.sub("", sentence.strip(" \"'*_()[]-"))
    return sentence


def _main_clause(sentence: str) -> str:
    """What stands before a concession: `Nine, though the report does not say whose`."""
    before, found, _ = (
        sentence.partition(" though ") if " though " in sentence else sentence.partition(" although ")
    )
    return before if found and len(before) > 1 else sentence


def _is_lead(sentence: str) -> bool:
    """Whether a sentence only opens a reply, as an apology does."""
    return bool(_LEADS.match(sentence.strip(" \"'*_")))


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("`", "'")
    return "\n".join(" ".join(line.split()) for line in folded.splitlines()).strip()
