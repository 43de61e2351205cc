"""One choice, read where a reply is known to state it: a letter of the question's options, or an option's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from medssr_dist.data.plain_text import lower, make_plain

_LETTER = r"(?P<letter>[A-Z])(?![\w'’+]|-\w|/[a-z])"
# The letter itself, perhaps in brackets or quotes. A lower-case one must stand alone: not the article in "a drug".
_LABEL = re.compile(
    rf"(?P<open>[(\[{{\"'<]*) ?(?:{_LETTER}|(?P<small>[a-z])(?=[)\]}}\"'.,;:]|\n"
    rf"|\Z)(?!\.[a-z]))(?P<close>(?: ?[)\]}}\"'>])*)"
)
_JOINED = re.compile(
    r"(?: ?(?P<or>,? \(?(?:or|oder|ou|o)|/) ?|(?:,? (?:and|as well as|und|et|y|e|to|through)|[,&+]|-|和|或|与|及) ?)"
    r"(?:also |both |either |option |choice |answer )?[(\[\"']*(?P<letter>[A-Z])(?![\w'])[)\]\"']*(?P<after>.{0,12})",
)
_PRONOUN = re.compile(r"I(?:'|,? [a-z])")
_OWN_CLAUSE = re.compile(r",? (?:is|was|would|can|could|has|does|should|may|might|will|in|on)\b")
# Words that may follow a letter without brackets. Others make it a part of a term or an article: "B cells", "A drop".
_AFTER_LETTER = re.compile(
    r"(?: (?:because|since|as|due|for|which|is|was|based|given|with|in|but|not|rather|instead|while|although|though|"
    r"here|therefore|and|so|only|from|per|according|where|when|by|on|alone|considering|owing|, )\b"
    r"| ?[-(\[<\\}#|]|$)"
)
_SPEAKS = re.compile(r" (?:am|was|would|think|have|had|can|will|do|did|believe)\b")
_REJECTED = re.compile(
    r"[^.\n]{0,4} ?(?:is|was|would be|seems|can be|should be) (?:not|n't|in ?correct|wrong|un|false|less|ruled"
    r"|excluded)"
)
_CLOSES_TEXT = re.compile(
    r"(?:[.,;:!)\]}\"'<\n-]| ?[(\[\-\\<]| (?:because|since|as|due|which|for|given|based|in this|rather|and not|here)"
    r"\b| not (?=\S)|$)"
)
_NO_CHOICE = re.compile(
    r"(?:none|neither|unknown|unclear|cannot|can't|not (?:among|listed|given|available|possible|clear|stated|provided)"
    r"|(?:un|in)determina\w+|undetermined|all (?:of|the)|n/?a\b|impossible|ambiguous)"
)
_FILLER = re.compile(
    r"[ \n:=\-,>]*(?:(?:(?:most |very |quite |almost certainly |certainly )?(?:likely|probably|clearly|definitely"
    r"|therefore"
    r"|thus|simply|indeed|hence|certainly|just|actually|then|obviously|of course|without (?:a )?doubt|in fact|also"
    r"|still|now|again|:)"
    r"|(?:the |la |le |l'|die |el |a |o |de )?(?:final |correct |right |best )?(?:option|choice|answer|letter|statement"
    r"|opci[oó]n|op[cç][aã]o|r[eé]ponse|antwort|opzione|вариант|选项|選択肢)|to be|be|that of|la|letra|lettre|buchstabe"
    r"|буква)[ :.#,]+){0,4}[ \n:]*"
)
_ARTICLE = re.compile(r"(?:the|an?|to|with) ")
_SIGN = re.compile(r" ?([.,:;!?)\-]*)[ \n\"'(\[]*")
_CLAUSE_END = re.compile(r"[.!)\]\"'},]|\n|$")
_QUOTES = re.compile(r"[\"'(\[{]*")
_LABEL_BEHIND = re.compile(r" ?[(\[](?:option |choice |answer )?([a-z])[)\]]")
_AND = re.compile(r",? (?:and|or) (?:the |an? )?|, ")


@dataclass(frozen=True)
class Reading:
    """What stands at a place that should hold a choice.

    Example: Reading("B", 17, is_text=False): the letter B, which ends at character 17.

    Attributes:
        letter: the option's letter; None: a choice is stated that is no single option ("A and C", "none of these").
        end: the end of the choice in the text.
        is_text: whether the option's text stands there, without its letter.
    """

    letter: str | None
    end: int
    is_text: bool = False


class Choices:
    """The options of a question, ready to be searched for in replies.

    Attributes:
        letters: the options' letters.
        texts: letter -> the option's text, plain and in lower case.
    """

    def __init__(self, options: Mapping[str, str]):
        self.letters = frozenset(options)
        self.texts = {letter: _fold(text) for letter, text in options.items()}
        owners: dict[str, list[str]] = {}
        for letter, text in self.texts.items():
            owners.setdefault(text, []).append(letter)
        owners.pop("", None)
        self._owners = {text: letters[0] if len(letters) == 1 else None for text, letters in owners.items()}
        longest_first = sorted(owners, key=len, reverse=True)
        # Without an option's text, the pattern matches nowhere.
        words = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._pattern = re.compile(rf"(?<!\w)(?<!\w[-.])(?!(?<=-)\d)(?:{words})(?![\w%]|-\w|[.,]\d)")

    def find_texts(self, low: str) -> list[tuple[str | None, int, int]]:
        """Return (letter, begin, end) of each option text in a lower-case text; the longest where several fit.

        The letter is None where several options have this text.
        """
        return [(self._owners[match.group()], match.start(), match.end()) for match in self._pattern.finditer(low)]

    def match_text(self, low: str, at: int) -> tuple[str | None, int] | None:
        """Return (letter, end) of the option text that begins at `at`, or None."""
        match = self._pattern.match(low, at)
        return (self._owners[match.group()], match.end()) if match else None

    def name(self, text: str) -> str | None:
        """Return the letter of the only option with this text, which may have any case and a final full stop."""
        return self._owners.get(_fold(text))

    # The three readers below are written for texts that `make_plain` has made, `low` being the same in lower case.

    def read_at(self, text: str, low: str, at: int) -> Reading | None:
        """Read the choice that begins at `at`, after words like "option"; None if what stands there is no choice."""
        begin = _FILLER.match(low, at)
        starts = [begin.end()] if begin else []
        for start in [*starts, at]:
            if reading := self._read_label(text, low, start) or self._read_text(low, start):
                return reading
        return Reading(None, starts[0]) if starts and _NO_CHOICE.match(low, starts[0]) else None

    def _read_label(self, text: str, low: str, at: int) -> Reading | None:
        label = _LABEL.match(text, at)
        letter = label and (label["letter"] or label["small"]).upper()
        if not label or letter not in self.letters:
            return None
        end = label.end()
        own = self._read_text(low, at)
        if own and own.end > end:  # an option's text that begins with a letter: "E. coli", "A and B"
            return own
        joined = _JOINED.match(text, end)
        if joined and joined["letter"] in self.letters and not self._is_separate(joined):
            return Reading(None, end)
        if _REJECTED.match(low, end):
            return None
        return self._check_follower(low, end, letter, bool(label["close"]))

    def _is_separate(self, joined: re.Match[str]) -> bool:
        """Whether a letter after the chosen one begins something else: "B, I am sure", "B, and A is wrong"."""
        if joined["or"]:
            return False
        return bool(_PRONOUN.match(joined["letter"] + joined["after"]) or _OWN_CLAUSE.match(joined["after"]))

    def _check_follower(self, low: str, end: int, letter: str, is_closed: bool) -> Reading | None:
        """Judge a letter by what follows it: the option's text, another option's text, a sentence, or a term."""
        mark = _SIGN.match(low, end)
        sign, after = (mark[1], mark.end()) if mark else ("", end)
        own = self.texts[letter]
        if own and low.startswith(own, after):
            return Reading(letter, after + len(own))
        other = self.match_text(low, after)
        is_other = other is not None and other[0] != letter and not own.startswith(low[after : other[1]])
        if other and is_other and self._is_contradiction(low, sign, other[1]):
            return Reading(None, end)
        is_bare = not sign and not is_closed and low[end : end + 1] not in ("\n", "")
        if is_bare and (not _AFTER_LETTER.match(low, end) or (letter == "I" and _SPEAKS.match(low, end))):
            return None
        # "E. coli": an initial, unless the option's text begins so.
        is_initial = sign == "." and not is_closed
        return None if is_initial and self._is_name(low, after, own) else Reading(letter, end)

    def _is_name(self, low: str, after: int, own: str) -> bool:
        """Whether the word at `after` is a species' name rather than the option's text or a new sentence."""
        species = _SPECIES.match(low, after)
        return bool(species and not own.startswith(species.group()))

    def _is_contradiction(self, low: str, sign: str, end: int) -> bool:
        """Whether another option's text, up to `end`, is given as that of the letter, as in "A. Gout" for B's gout."""
        if sign in ("", ",", ";", "!", "?"):
            return not sign and _CLOSES_TEXT.match(low, end) is not None
        return sign != "." or _CLAUSE_END.match(low, end) is not None

    def _read_text(self, low: str, at: int) -> Reading | None:
        article = _ARTICLE.match(low, at)
        for start in (at, article.end() if article else at):
            quoted = _QUOTES.match(low, start)
            found = self.match_text(low, start) or self.match_text(low, quoted.end() if quoted else start)
            if found and _CLOSES_TEXT.match(low, found[1]):
                return self._check_label_behind(low, *found)
        return None

    def _check_label_behind(self, low: str, letter: str | None, end: int) -> Reading:
        """Read "iron (C)" too: the letter behind decides between equal texts, and must not contradict the text."""
        behind = _LABEL_BEHIND.match(low, end)
        if behind and (named := behind[1].upper()) in self.letters:
            same = self.texts[named] == self.texts[letter] if letter else True
            return Reading(named if same else None, behind.end())
        joined = _AND.match(low, end)
        if joined and self.match_text(low, joined.end()):
            return Reading(None, end)
        return Reading(letter, end, is_text=True)

    def read_whole(self, text: str, is_strict: bool = False) -> Reading | None:
        """Read a text that consists of a choice and nothing else: "B", "(B) iron", "Option B: iron.", "iron".

        Unless `is_strict`, the option's text behind the letter may be cut or have a remark behind it.
        """
        low = lower(text)
        if (letter := self._owners.get(_fold(text), "")) != "" and low.strip(" .").upper() not in self.letters:
            return Reading(letter, len(text), is_text=True)
        match = _WHOLE.match(text)
        letter = match and match["letter"].upper()
        if not match or letter not in self.letters:
            return None
        rest = _fold(match["rest"])
        own = self.texts[letter]
        is_own = not rest or rest == own
        if not is_strict and match["sign"]:
            is_own |= (len(rest) > 2 and own.startswith(rest)) or _goes_on(rest, own)
        return Reading(letter, len(text)) if is_own else None


_WHOLE = re.compile(
    r"[\s\"'(\[{<>#:-]*(?:(?:the )?(?:final )?(?:answer|option|choice|letter"
    r"|ans)[ :.-]+)?[(\[\"'{]*(?P<letter>[A-Za-z])"
    r"(?![\w+])(?P<sign>[)\]\"'}]+[.:,-]*|[.:,]|(?= -))?[\s)\]}-]*(?P<rest>[^\n]{0,400})\Z",
    re.IGNORECASE,
)
# Names after a genus initial that is also an option's letter.
_SPECIES = re.compile(
    r"(?:coli|aureus|difficile|cereus|fragilis|anthracis|burgdorferi|henselae|pertussis|fumigatus|flavus|baumannii"
    r"|israelii|perfringens|tetani|botulinum|diphtheriae|jejuni|albicans|trachomatis|pneumoniae|psittaci|neoformans"
    r"|immitis|dermatitidis|faecalis|faecium|histolytica|cloacae|granulosus|vermicularis|gondii|lamblia|hominis"
    r"|ducreyi|influenzae|pylori|capsulatum|microti|abortus|melitensis|bacilliformis|quintana|cepacia|recurrentis"
    r"|lumbricoides|duodenale|braziliense|corrodens|chaffeensis|phagocytophilum|auris|glabrata|krusei|koseri"
    r"|freundii|sordellii|septicum|saginata|elegans)\b"
)


def _goes_on(rest: str, own: str) -> bool:
    """Whether `rest` is the option's text with a remark behind it."""
    return bool(own) and rest.startswith(own) and not rest[len(own) : len(own) + 1].isalnum()


def _fold(text: str) -> str:
    return lower(" ".join(make_plain(text).split())).rstrip(".").strip()


@lru_cache(maxsize=1024)
def _prepare(items: tuple[tuple[str, str], ...]) -> Choices:
    return Choices(dict(items))


def prepare_choices(options: Mapping[str, str]) -> Choices:
    """Return the prepared options of a question; those of the last 1,024 questions are kept."""
    return _prepare(tuple(options.items()))
