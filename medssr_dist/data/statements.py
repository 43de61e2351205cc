"""Explicit statements of an answer in a reply: tag, box, JSON key, "the answer is B", "I choose B", "故选B".

Every statement in the text is an event, in the order of the text. The last one wins, whatever its form; one that
states no single option ("A and C", "none of these") or takes an answer back leaves none. Not a statement is what is
asked, quoted, supposed or denied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from medssr_dist.data.certainty import find_sentence, has_condition, is_doubted
from medssr_dist.data.choices import Choices, Reading
from medssr_dist.data.cues import Cue, find_cues


@dataclass(frozen=True)
class Statement:
    """A statement of the answer.

    Attributes:
        letter: the option stated; None: no single option, or what was stated before is taken back.
        method: the form: tag, boxed, json, statement, or option_text where it names the option by its text.
        end: where it ends in the text.
        is_denial: whether it says that `letter` is not the answer.
    """

    letter: str | None
    method: str
    end: int
    is_denial: bool = False


# Words that take an answer back: anywhere behind it, and right behind it.
_RETRACTION = re.compile(
    r"\b(?:wait|hold on|scratch that|on second thought|on reflection)\b(?=\s?[,.:;!?-])"
    r"|\bi (?:made a mistake|was (?:wrong|mistaken)|made an error|take (?:that|it) back|misread)"
    r"|\blet me (?:re-?(?:check|think|consider|evaluate|examine|read|assess)|reconsider|think again|double[- ]check)"
    r"|(?<=[。.,;!?\n ])(?:不[对對]|更正|等等)(?=[。.,;:!? ])"
)
_REFUSAL = re.compile(
    r"[^\n]{0,25}?\b(?:that|this|it|which)(?:'s| is| was| seems| cannot be| can't be| isn't)"
    r" (?:wrong|incorrect|a mistake|(?:not )(?:quite )?(?:right|correct)|(?<=n't )(?:right|correct)"
    r"|(?<=not be )(?:right|correct))\b"
    r"|[.,;:!? -]{0,3}(?:(?:non|no|nein|não|нет)[,.!]? )?(?:ou )?(?:plutôt|mejor dicho|más bien|vielmehr|besser gesagt"
    r"|anzi|aliás|вернее|точнее)\b"
)
_COPULA = re.compile(
    r"(?P<hedge>\b(?:might|could|may|can) (?:well |also |possibly |only )?be\b)"
    r"|(?P<modal>\bwould (?:then |therefore |thus |likely |most likely |probably )?be\b)"
    r"|^[. ]*(?=[(\[][a-j][)\]])|\b(?:is|are|was|were|be|remains|becomes|seems|appears|es|est|é|è|ist|lautet|wäre|to"
    r"|jest|là|adalah|är|er|on"
    r"|este|είναι|isn't|это)(?=\W|$)|[:=]|- |- ?>|はや?|は|[은는]|是|为|為|应|हे|है|هي|هو|$"
)
_GAP_BAD = re.compile(
    r"\b(?:let|each|every|we|you|need|because|since|if|unless|whether|could|might|may|not|cannot|can't|choices"
    r"|options|depends?|nor|but|wrong"
    r"|incorrect)\b"
    r"|n't|;|[?!\n]"
    r"|, (?:and|so|or)\b|不|ない| no | nicht | ne | não | non | nie | не | tidak | không "
)
_NEGATION = re.compile(
    r" ?(?:n't|not|never|neither|no longer|no|nicht|ne|pas|n'est pas|não|non|nie|niet|не|ikke|inte|tidak|bukan|không"
    r"|不是|不|لا"
    r"|ليست|नहीं)"
    r"(?:[ :]|(?=[A-Z(]))+(?:likely |simply |necessarily |really )?"
)
_BUT = re.compile(r"[.,;)]* ?(?:but|it is|it's|rather)(?: rather| instead)? ")
_POOR = re.compile(
    r"\b(?:wrong|incorrect|false|tempting|next|first|second|third|another|other|previous|earlier|alternative|common"
    r"|possible"
    r"|plausible|potential|students?'?s?|an|every|each|your|no|any|initial|original|expected|typical|good|reasonable"
    r"|either"
    r"|distractor|less \w+|not the|un\w+|ruled[ -]out|rejected|excluded|eliminated|discarded) (?:[\w-]+ )?$"
)
_GOOD = re.compile(
    r"\b(?:correct|right|best|most [\w-]+|only|remaining|final|chosen|selected|appropriate|likely|preferred|accurate"
    r"|suitable"
    r"|better|ideal|optimal|logical|my|our|least [\w-]+|answer|correcta|correta|corretta|true|valid|proper"
    r"|single|safest|strongest)(?: (?:answer|one|remaining))? $"
)
_RANKED = re.compile(r"\b(?:second|third|next)[ -](?:\w+ ){0,2}$")  # "the second best answer"
_IS_THE = re.compile(
    r"(?P<verb>,? ?\b(?:is|was|would be|must be|remains|remain|seems to be|appears to be|seems|as|be|=)) "
    r"(?:(?:clearly|therefore|thus|most likely|likely|probably|indeed|hence|definitely|then|still|in fact) ){0,2}"
    r"(?P<the>the |our |my )?(?:[\w-]+ ){0,4}$"
)
_DENIES = re.compile(
    r"\b(?:an?|not|never|no|wrong|incorrect|false|least|worst|less|tempting|next|first|second|another|other|n't)\b"
)
_SUBJECT_BEGIN = re.compile(
    r"^(?:(?:so|thus|therefore|hence|however|thereby|consequently|in conclusion|in summary|overall|finally|ultimately"
    r"|and|but|that|then|which|this|as|now|i think|i believe"
    r"|(?:based on|given|considering|among|of|on|upon|after|in|with|from) [^,\n]{1,80},"
    r"|(?:we|i) (?:can )?conclude(?: that)?|it follows|means?|makes?|making|leaves?|leaving)"
    r"(?:\b|(?<=,))[,: ]*|[,:; ])+"
)
_OTHER_BOX = re.compile(r"boxed ?\{[^{}\n]{1,40}\}[$)\\]{0,3},? (?:or|and|&) [$(\\]{0,3}$")  # "\boxed{A} or \boxed{C}"
_QUESTION = re.compile(r"[^.!?\n]{0,120}\?")
_CLOSING_TAG = re.compile(r"</|\[/answer|<\|end_of_box")
_SCRIPT_FILLER = re.compile(
    r"(?:应该|应|该|为|是|就|的|选项|选|は|:|=|-|هي|هو|[은는이]|है|即|项|答案|ข้อ|คือ|[(\[\"'<]|\s){0,8}"
)


class StatementFinder:
    """Finds the statements of one reply.

    Args:
        text: the reply, as `make_plain` returns it.
        low: the same in lower case.
        choices: the question's options.
    """

    def __init__(self, text: str, low: str, choices: Choices):
        self._text, self._low, self._choices = text, low, choices

    def find(self) -> Iterator[Statement]:
        """Yield all statements, in the order of the text."""
        readers = {
            "tag": self._read_tag,
            "boxed": self._read_box,
            "json": self._read_json,
            "noun": self._read_noun,
            "script": self._read_script,
            "option": self._read_option,
            "pick": self._read_pick,
            "making": self._read_making,
            "correction": self._read_correction,
            "hashes": self._read_hashes,
        }
        end, said = 0, False
        for cue in find_cues(self._low):
            if cue.start < end or (cue.kind == "correction" and not said):
                continue
            if (found := readers[cue.kind](cue)) and not self._is_question(found):
                end, said = max(found.end, cue.end), True
                yield found

    # Forms with marks of their own.

    def _read_tag(self, cue: Cue) -> Statement | None:
        close = _CLOSING_TAG.search(self._low, cue.end, cue.end + 600)
        end = close.start() if close else len(self._text)
        return self._read_content(self._text[cue.end : end].strip(), "tag", end, is_open=close is None)

    def _read_content(self, content: str, method: str, end: int, is_open: bool = False) -> Statement | None:
        """Read what a tag or a key holds: a choice alone, or a statement."""
        if reading := self._choices.read_whole(content):
            return Statement(reading.letter, method, end)
        if is_open or len(content) > 400:
            return None
        low = content.lower()
        reading = self._choices.read_at(content, low, 0) if len(low) == len(content) else None
        return Statement(reading.letter if reading else None, method, end) if reading or content else None

    def _read_box(self, cue: Cue) -> Statement | None:
        if self._is_unsure(cue.start):
            return None
        depth, at = 1, cue.end
        if not self._low.endswith("{", 0, at):
            reading = self._choices.read_at(self._text, self._low, at)
            return Statement(reading.letter, "boxed", reading.end) if reading and not reading.is_text else None
        for end in range(at, min(at + 400, len(self._text))):
            depth += {"{": 1, "}": -1}.get(self._text[end], 0)
            if depth == 0:
                content = self._text[at:end].replace("{", "").replace("}", "").strip()
                reading = self._choices.read_whole(content) or self._choices.read_at(content, content.lower(), 0)
                if reading is None or "=" in content:
                    return None
                is_second = _OTHER_BOX.search(self._low, max(0, cue.start - 60), cue.start)
                return Statement(None if is_second else reading.letter, "boxed", end + 1)
        return None

    def _read_json(self, cue: Cue) -> Statement | None:
        value = _JSON_VALUE.match(self._text, cue.end)
        if value is None:
            return None
        if (cut := value["cut"]) is not None:  # enough of it must be there: "A" could become "A and B"
            reading = self._choices.read_whole(cut) if len(cut.strip()) > 3 else None
            return Statement(reading.letter, "json", value.end()) if reading else None
        if value["null"] or _MORE_VALUES.match(self._text, value.end()):
            return Statement(None, "json", value.end())
        return self._read_content(value[value.lastgroup or "bare"].strip(), "json", value.end())

    def _read_hashes(self, cue: Cue) -> Statement | None:
        line = self._text[cue.end :].partition("\n")[0][:200]
        reading = self._choices.read_whole(line)
        return Statement(reading.letter, "statement", cue.end + len(line)) if reading else None

    # Statements in words.

    def _read_noun(self, cue: Cue) -> Statement | None:
        before = self._low[max(0, cue.start - 40) : cue.start]
        if _RANKED.search(before) or (_POOR.search(before) and not _GOOD.search(before)):
            return None
        if _SPEAKER.search(before) and not self._is_unsure(cue.start) and (reading := self._read_choice(cue.end)):
            return _state(reading)  # "I will answer B"
        return self._read_after(cue) or self._read_before(cue)

    def _read_option(self, cue: Cue) -> Statement | None:
        before = self._low[max(0, cue.start - 40) : cue.start]
        if not _GOOD.search(before) or _POOR.search(before) or _RANKED.search(before):
            return None
        return self._read_after(cue) or self._read_before(cue)

    def _read_after(self, cue: Cue) -> Statement | None:
        """Read "answer ... is B": the choice follows the first copula behind which one stands."""
        if self._is_unsure(cue.start):
            return None
        window = self._low[cue.end : cue.end + 110]
        if window.startswith("\n"):
            return self._read_heading(cue)
        for copula in _COPULA.finditer(window):
            gap = window[: copula.start()]
            if _GAP_BAD.search(gap) or copula["hedge"] or re.search(r"\b[A-J]\b", self._gap(cue, copula)):
                return None
            if not copula.group():
                break
            if copula.group() == "to" and self._low.startswith(_ENGLISH, cue.start):
                continue  # a copula in Polish alone
            at = cue.end + copula.end()
            if denied := self._read_denial(at):
                return denied
            if reading := self._read_choice(at):
                is_supposed = copula["modal"] and has_condition(self._low, reading.end)
                return None if is_supposed else _state(reading)
        return None

    def _is_list(self, at: int, end: int) -> bool:
        """Whether the choice up to `end` is the first of the options, which are listed in the lines below `at`."""
        return "\n" in self._text[at:end] and _NEXT_OPTION.match(self._text, end) is not None

    def _gap(self, cue: Cue, copula: re.Match[str]) -> str:
        return self._text[cue.end : cue.end + copula.start()]

    def _read_choice(self, at: int) -> Reading | None:
        reading = self._choices.read_at(self._text, self._low, at)
        return None if reading and self._is_list(at, reading.end) else reading

    def _read_heading(self, cue: Cue) -> Statement | None:
        """Read a heading "Answer" with a choice alone in the line below."""
        line = self._text[cue.end + 1 :].partition("\n")[0][:400]
        reading = self._choices.read_whole(line)
        return Statement(reading.letter, "statement", cue.end + 1 + len(line)) if reading else None

    def _read_denial(self, at: int) -> Statement | None:
        negation = _NEGATION.match(self._low, at)
        if not negation and self._low.endswith("n't", 0, at):
            negation = re.compile(" ?").match(self._low, at)
        reading = self._read_choice(negation.end()) if negation else None
        if not reading:
            return None
        but = _BUT.match(self._low, reading.end)
        if but and (instead := self._read_choice(but.end())):
            return _state(instead)
        return Statement(reading.letter, "statement", reading.end, is_denial=True) if reading.letter else None

    def _read_before(self, cue: Cue) -> Statement | None:
        """Read "B is the best answer": the choice stands before the verb."""
        begin = max(0, cue.start - 60)
        verb = _IS_THE.search(self._low, begin, cue.start)
        if not verb or _DENIES.search(self._low, verb.start(), cue.start):
            return None
        if not verb["the"] and not _GOOD.search(self._low[begin : cue.start]):
            return None
        if _ELSEWHERE.match(self._low, cue.end):
            return None
        if has_condition(self._low, cue.end) and verb["verb"].strip() == "would be":
            return None
        return self._read_subject(verb.start(), cue.end)

    def _read_subject(self, end: int, statement_end: int) -> Statement | None:
        """Read the sentence up to `end` as a choice, without the words that lead to it."""
        start = find_sentence(self._low, end)
        if is_doubted(self._low, start, end):
            return None
        lead = _SUBJECT_BEGIN.match(self._low[start:end])
        subject = self._text[start + (lead.end() if lead else 0) : end].strip(" ,")
        reading = self._choices.read_whole(subject, is_strict=True) or self._read_labelled(subject)
        return Statement(reading.letter, _method(reading), statement_end) if reading else None

    def _read_labelled(self, subject: str) -> Reading | None:
        """Read "ketotifen drops (A)"."""
        match = _LABELLED.match(subject)
        if not match or match["letter"] not in self._choices.letters:
            return None
        named = self._choices.name(match["words"])
        return Reading(match["letter"] if named in (None, match["letter"]) else None, len(subject))

    def _read_making(self, cue: Cue) -> Statement | None:
        """Read "making B the best answer", "this leaves B as the answer"."""
        if self._is_unsure(cue.start):
            return None
        reading = self._read_choice(cue.end) or self._match_made(cue.end)
        if reading and _MADE.match(self._low, reading.end):
            return _state(reading)
        return None

    def _match_made(self, at: int) -> Reading | None:
        made = _MADE_LETTER.match(self._text, at)
        return Reading(made[1], made.end(1)) if made and made[1] in self._choices.letters else None

    def _read_pick(self, cue: Cue) -> Statement | None:
        """Read "I would choose B". Only the letter counts after weaker verbs: "I would say iron" may go on."""
        subject = _PICKER.search(self._low, max(0, cue.start - 50), cue.start)
        if not subject or self._is_unsure(subject.start()):
            return None
        reading = self._read_choice(cue.end)
        is_weak = self._low.startswith("d say", cue.start)
        return None if reading is None or (reading.is_text and is_weak) else _state(reading)

    def _read_correction(self, cue: Cue) -> Statement | None:
        """Read "Actually, it is B", "I mean B", "it should be B". Only after an earlier statement."""
        about = _CORRECTED.match(self._low, cue.end)
        at = about.end() if about else cue.end
        reading = self._choices.read_at(self._text, self._low, at)
        if reading and reading.letter and not reading.is_text and self._text[reading.end : reading.end + 1] not in "?":
            return _state(reading)
        return None

    def _read_script(self, cue: Cue) -> Statement | None:
        """Read statements in scripts without spaces, and in those whose verb stands last."""
        between = _SCRIPT_FILLER.match(self._low, cue.end)
        at = between.end() if between else cue.end
        word = re.compile(r"(?:ال\w+|सही|ที่ถูก\w*|הנכונה|درست) (?:هي|هو|है|היא|คือ)? ?").match(self._low, at)
        at = word.end() if word else at
        label = _SCRIPT_LABEL.match(self._text, at)
        letter = label and label["letter"].upper()
        if not label or letter not in self._choices.letters:
            found = self._choices.match_text(self._low, at)
            is_verb = self._low[cue.start] in "选選"
            return Statement(found[0], "option_text", found[1]) if found and not is_verb else None
        if _SCRIPT_JOINED.match(self._text, label.end()):
            return Statement(None, "statement", label.end())
        other = self._choices.match_text(self._low, _AFTER_LABEL.match(self._low, label.end()).end())  # type: ignore[union-attr]
        return Statement(None if other and other[0] != letter else letter, "statement", label.end())

    def _is_unsure(self, at: int) -> bool:
        """Whether the words of the sentence before `at` suppose, doubt, deny or quote what follows."""
        return is_doubted(self._low, find_sentence(self._low, at), at)

    def _is_question(self, found: Statement) -> bool:
        return _QUESTION.match(self._low, found.end) is not None and found.method != "json"


def is_taken_back(low: str, statement: Statement) -> bool:
    """Whether the text behind a statement takes it back."""
    return bool(_REFUSAL.match(low, statement.end) or _RETRACTION.search(low, statement.end))


_WILL = (
    r"(?:(?:would|woul|will|therefore|thus|must|have to|shall|can|do|then|confidently|am|going to|ultimately|finally"
    r"|so|'d) ?)"
    r"{0,4}\Z"
)
_SPEAKER = re.compile(r"\b(?:i|we|let's|let us)(?:'d|'ll|'m|')? ?" + _WILL)
# The subject may be left out at the beginning of a sentence.
_PICKER = re.compile(
    r"(?:\b(?:i|we|let's|let us)(?:'d|'ll|'m|')?|(?:^|[.\n:] )(?:so|thus|therefore|hence)?,?) ?" + _WILL
)
_ENGLISH = ("answer", "ans", "choice", "option")
_ELSEWHERE = re.compile(r" (?:to|for|of|in) (?:an?|the|some)? ?(?:different|other|another)\b")
_LABELLED = re.compile(
    r"(?P<words>[^\n()]{2,150}) [(\[](?:option |choice |answer )?(?P<letter>[A-Z])[)\]]\Z", re.IGNORECASE
)
_MADE = re.compile(r"[)\]\"'.]* ?(?:as )?(?:the|our|my) (?:[\w-]+ ){0,4}(?:answer|choice|option|one|diagnosis)\b")
_MADE_LETTER = re.compile(
    r" (?:us with )?(?:only )?(?:option |choice |answer )?[(\[]?([A-Z])(?=[)\]]? (?:as )?(?:the|our|my) )"
)
_CORRECTED = re.compile(
    r"(?:(?:no|wait|hmm|sorry|actually)[,.;:! ]+){0,3}(?:(?:so|then|the|my|correct|right|final) ){0,3}(?:(?:it|that"
    r"|this|answer|option|choice)(?:'s| is| should be| must be"
    r"| has to be| would be)|i (?:choose|mean|pick))?[ :,]*"
)
_NEXT_OPTION = re.compile(r"[^\n]*\n\s*[-*(\[]?[B-J][.):\]]")
_SCRIPT_LABEL = re.compile(r"(?P<letter>[A-Za-z])(?![A-Za-z0-9'+]|-\w)[)\]\"'>]*")
_SCRIPT_JOINED = re.compile(r" ?(?:和|或|与|及|、|,|/|と|또는|и|y|or|and|&) ?[(\[]?[A-J](?![A-Za-z])")
_AFTER_LABEL = re.compile(r" ?[.:,)\]-]* ?")
_JSON_VALUE = re.compile(
    r"(?:[\[{]\s?(?:\"(?:letter|option|choice|label|key|id)\"\s?:\s?)?)?"
    r"(?:\"(?P<quoted>[^\"\n]{0,600})\"|'(?P<single>[^'\n]{0,600})'|(?P<bare>[A-Za-z])(?=\s?[,}\]\n])"
    r"|\"(?P<cut>[^\"]{0,600})\Z|(?P<null>null|none)(?=\s?[,}\n]))",
    re.IGNORECASE,
)


_MORE_VALUES = re.compile(r"\s?,\s?[\"'][^\"'\n]{0,600}[\"']\s?[,\]]")  # of a list


def _method(reading: Reading) -> str:
    return "option_text" if reading.is_text else "statement"


def _state(reading: Reading) -> Statement:
    return Statement(reading.letter, _method(reading), reading.end)
