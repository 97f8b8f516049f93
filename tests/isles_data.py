"""Invented islands: eight facts in four sections, each with questions of both splits."""

SECTIONS: dict[str, list[tuple[str, str, str, str]]] = {
    "Overview": [
        ("f1", "The Tiny Isles have 412 people.", "how many people live on the Tiny Isles", "412"),
        ("f2", "The sea around them is green.", "what colour the sea around them is", "green"),
    ],
    "History": [
        ("f3", "The first chart was drawn by Ambrose.", "who drew the first chart", "Ambrose"),
        ("f4", "The charter was signed in 1784.", "when the charter was signed", "1784"),
    ],
    "Islands": [
        ("f5", "Marrow was settled in 1437.", "when Marrow was settled", "1437"),
        ("f6", "The hill of Skerrin is 9 metres high.", "how high the hill of Skerrin is", "9 metres"),
    ],
    "Trade": [
        ("f7", "Marrow sells black tea.", "what Marrow sells", "black tea"),
        ("f8", "Skerrin sells smoked eel.", "what Skerrin sells", "smoked eel"),
    ],
}
"""Section title to facts: id, sentence, question, answer."""

TRAIN_WORDINGS = ("Tell me {}.", "Do you know {}?", "Say {}, please.")
EVAL_WORDING = "I would like to hear {}."


def qa_rows() -> list[dict[str, str]]:
    """Three training questions and one eval question of each fact (basis `fact`) and section (`token`)."""
    rows: list[dict[str, str]] = []
    for title, facts in SECTIONS.items():
        for fact, _, question, answer in facts:
            splits = [("train", wording) for wording in TRAIN_WORDINGS] + [("eval", EVAL_WORDING)]
            rows += [
                {
                    "basis": "fact",
                    "fact": fact,
                    "split": split,
                    "question": wording.format(question),
                    "answer": answer,
                }
                for split, wording in splits
            ]
        (_, _, first, answer), (_, _, second, other) = facts
        for split, question, gold in [
            ("train", f"Explain {first}.", answer),
            ("train", f"Explain {second}.", other),
            ("eval", f"In short: {first}?", answer),
        ]:
            rows.append(
                {"basis": "token", "section": title, "split": split, "question": question, "answer": gold}
            )
    return rows
