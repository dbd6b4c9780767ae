"""What can be said of a word by itself: its class, its ending. The vocabulary of the local explainer."""

from __future__ import annotations

CLASSES = {
    "a pronoun": "i you he she it we they me him us them myself yourself himself herself itself ourselves themselves "
    "someone something everyone everything anyone anything nobody nothing",
    "a possessive": "my your his her its our their mine yours hers ours theirs",
    "an article": "a an the",
    "a demonstrative": "this that these those",
    "a form of ‘be’": "am is are was were be been being isn't aren't wasn't weren't i'm you're he's she's it's we're "
    "they're",
    "a form of ‘have’ or ‘do’": "have has had do does did haven't hasn't hadn't don't doesn't didn't",
    "a modal verb": "can could will would shall should may might must can't couldn't won't wouldn't shouldn't i'll "
    "you'll he'll she'll we'll they'll",
    "a preposition": "of in on at by with from into onto over under through between behind near around about after "
    "before during without inside outside across against along among above below beside toward towards upon for to",
    "a conjunction": "and or but nor so because if when while although though unless until since as than",
    "a question word": "who what where when why how which whose whom",
    "a number word": "one two three four five six seven eight nine ten eleven twelve hundred thousand million first "
    "second third",
    "a quantifier": "all any both each every few many more most much no none some several lot lots",
    "a form of ‘say’": "say says said saying asked ask asks replied shouted cried whispered answered called told",
    "a month or a day": "january february march april june july august september october november december monday "
    "tuesday wednesday thursday friday saturday sunday",
}
"""English words of a closed class"""
CLASS_OF = {word: number for number, words in enumerate(CLASSES.values(), start=1) for word in words.split()}
CLASS_NAMES = ("", *CLASSES)

FULL_STOPS = frozenset(".!?")
QUOTES = frozenset("\"“”«»„‘’`'")


def word_class(word: str) -> int:
    """The number of a word's class in `CLASS_NAMES`; 0 for words of no closed class."""
    return CLASS_OF.get(word.lower().replace("’", "'"), 0)


KINDS = (
    "",
    "a lower-case word",
    "a capitalised word",
    "a number",
    "a punctuation mark",
    "a quotation mark",
    "a full stop",
    "a line break",
    "a later part of a word",
)
"""what a token can be"""
(WORD, CAPITAL, NUMBER, MARK, QUOTE, STOP, BREAK, PART) = range(1, len(KINDS))


def kind(word: str) -> int:
    """What the first token of a word is, by the word so far, in `KINDS`; 0 for what is none of them."""
    if not word:
        return 0
    if "\n" in word:
        return BREAK
    if any(c in FULL_STOPS for c in word):
        return STOP
    if any(c in QUOTES for c in word) and not any(c.isalnum() for c in word):
        return QUOTE
    first = next((c for c in word if c.isalnum()), "")
    if not first:
        return MARK
    if first.isdigit():
        return NUMBER
    return CAPITAL if first.isupper() else WORD


def ends_sentence(word: str) -> bool:
    """Whether a new sentence can begin behind it."""
    return bool(word) and (word[-1] in FULL_STOPS or "\n" in word or word.startswith("<"))
