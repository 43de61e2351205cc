"""Names of diseases and phenotypes: their display form, their words, and the family of a disease."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

_ROMAN = re.compile(r"[IVX]+")
# A word without capitals inside; not the subtype in "type Il".
_PLAIN_WORD = re.compile(r"(?<!\btype )\b[A-Za-z0-9][a-z0-9]+\b")
_UNCLEAR = re.compile(r"susceptib|predispos|quantitative trait|modifier|protection against|resistance to|\?", re.I)
_MAX_LENGTH = 80

# Words that do not distinguish diseases; the other words, sorted, are the family of a disease. Numbers do not, but
# places on a chromosome do: "16p11".
_COMMON_WORDS = re.compile(
    r".|(?![\dx]+[pq]\d).*\d.*|[ivx]+|of|the|with|without|or|and|to|due|by|in|types?|form|syndrome|disease|disorder|"
    r"autosomal|recessive|dominant|linked|susceptibility"
)
# Phenotype names that begin with a proper noun keep their capital in prose.
_EPONYM = re.compile(
    r"(Alzheimer|Axenfeld|Babinski|Barrett|Beau|Beevor|Bence|Bitot|Blake|Bowdler|Burkitt|Chaddock|Chiari|Chvostek|"
    r"Crohn|Darier|Darwin|Descemet|Duane|Ebstein|Erlenmeyer|Ewing|Froment|Gerbode|Gottron|Gowers|Graves|Hashimoto|"
    r"Heberden|Heinz|Hirschsprung|Hodgkin|Hoffmann|Horner|Hurthle|Kaposi|Lafora|Leber|Lester|Lewy|Lisch|Madelung|"
    r"Marcus|Meckel|Merkel|Mizuo|Mobitz|Mongolian|Morgagni|Paget|Pappenheimer|Parkinson|Peters|Pneumocystis|Potter|"
    r"Probst|Raynaud|Reye|Rieger|Rosenthal|Schmorl|Sertoli|Stahl|Sydney|Tarlov|Tessier)\b"
)


def strip_markup(name: str) -> str:
    """Return `name` without OMIM's marks: braces, brackets, a leading '?', and the '@' that separates a number.

    Example: strip_markup("{3-@methylglutaconic aciduria}") == "3-methylglutaconic aciduria"
    """
    return re.sub(r"[{}\[\]@]|(?<!\S)\?", "", name).strip()


def tidy_name(disease_id: str, name: str, word_cases: Mapping[str, str]) -> str:
    """Return `name` for display: without ';ABBREVIATION' and OMIM's marks, not all in capitals, with its acronyms.

    Args:
        word_cases: lower-case word -> its spelling, for words with capitals inside; OMIM's names lack these.

    Example: tidy_name("OMIM:1", "HYPER-IGE SYNDROME, X-LINKED; ABC", {"ige": "IgE"}) == "Hyper-IgE syndrome, X-linked"
    """
    name = strip_markup(" ".join(name.split(";")[0].split()))
    if disease_id.startswith("OMIM:"):
        if name.isupper():
            name = re.sub(r"[A-Z]{2,}", _lower_word, name)
        name = re.sub(r"\b([xy])-linked", lambda match: match.group(1).upper() + "-linked", name)
        name = _PLAIN_WORD.sub(lambda match: word_cases.get(match.group().lower(), match.group()), name)
    return name[:1].upper() + name[1:]


def _lower_word(match: re.Match[str]) -> str:
    word = match.group()
    return word if _ROMAN.fullmatch(word) else word.lower()


def is_clean(name: str) -> bool:
    """Return whether `name` can be an answer option: short, and a disease, not a risk or a trait."""
    return len(name) <= _MAX_LENGTH and not _UNCLEAR.search(name) and re.search(r"[a-z]{3}", name) is not None


@lru_cache(maxsize=2**16)
def split_words(text: str) -> tuple[str, ...]:
    """Return the lower-case words of `text` without accents and punctuation. Names are compared in this form."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return tuple(re.findall(r"[a-z0-9]+", plain))


def derive_family(name: str) -> str:
    """Return the key that all types and spellings of a disease share: its distinctive words, sorted.

    Example: "Ciliary dyskinesia, primary, 26" and "Primary ciliary dyskinesia" -> "ciliary dyskinesia primary"
    """
    distinctive = {word for word in split_words(name) if not _COMMON_WORDS.fullmatch(word)}
    return " ".join(sorted(distinctive)) or " ".join(split_words(name))


def decapitalize(phenotype: str) -> str:
    """Return a phenotype's name as written inside a sentence: 'Seizure' -> 'seizure', 'Babinski sign' unchanged."""
    rest = phenotype.split(" ")[0][1:]
    if not rest or rest != rest.lower() or not rest[0].isalpha() or _EPONYM.match(phenotype):
        return phenotype
    return phenotype[0].lower() + phenotype[1:]
