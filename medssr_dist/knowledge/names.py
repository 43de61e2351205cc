"""Names of diseases and phenotypes: for display, for comparison, and for telling families apart."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_ROMAN = re.compile(r"[IVX]+")
_UNCLEAR = re.compile(r"susceptib|predispos|quantitative trait|modifier|protection against|resistance to|\?", re.I)
_MAX_LENGTH = 80

# Words that do not tell one disease from another; the rest, sorted, is the disease's family.
_NOT_TELLING = re.compile(
    r".|.*\d.*|[ivx]+|of|the|with|without|or|and|to|due|by|in|types?|form|syndrome|disease|disorder|"
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


def tidy_name(disease_id: str, name: str) -> str:
    """`name` for display: no ';ABBREVIATION', no marks of doubt; OMIM's all-capital names in sentence case.

    Example: tidy_name("OMIM:1", "DEAFNESS, Y-LINKED 2; DFNY2") == "Deafness, Y-linked 2"
    """
    name = " ".join(name.split(";")[0].split())
    if disease_id.startswith("OMIM:"):
        if name.isupper():
            name = re.sub(r"[A-Z]{2,}", _lower_word, name)
        name = re.sub(r"\b([xy])-linked", lambda match: match.group(1).upper() + "-linked", name)
    return name[:1].upper() + name[1:]


def _lower_word(match: re.Match) -> str:
    word = match.group()
    return word if _ROMAN.fullmatch(word) else word.lower()


def is_clean(name: str) -> bool:
    """Whether `name` names a disease that an answer option can show: short, and not a risk or a trait."""
    return len(name) <= _MAX_LENGTH and not _UNCLEAR.search(name) and re.search(r"[a-z]{3}", name) is not None


@lru_cache(maxsize=2**16)
def split_words(text: str) -> tuple[str, ...]:
    """Lower-case words of `text` without accents and punctuation; how names are found and compared."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return tuple(re.findall(r"[a-z0-9]+", plain))


def derive_family(name: str) -> str:
    """Key shared by the types and spellings of one disease: its telling words, sorted.

    Example: "Ciliary dyskinesia, primary, 26" and "Primary ciliary dyskinesia" -> "ciliary dyskinesia primary"
    """
    telling = {word for word in split_words(name) if not _NOT_TELLING.fullmatch(word)}
    return " ".join(sorted(telling)) or " ".join(split_words(name))


def decapitalize(phenotype: str) -> str:
    """A phenotype's name as it stands inside a sentence: 'Seizure' -> 'seizure', 'Babinski sign' unchanged."""
    rest = phenotype.split(" ")[0][1:]
    if not rest or rest != rest.lower() or not rest[0].isalpha() or _EPONYM.match(phenotype):
        return phenotype
    return phenotype[0].lower() + phenotype[1:]
