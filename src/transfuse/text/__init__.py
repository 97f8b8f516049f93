"""Pure functions of strings: answers, wordings, sentences, replies."""
