"""Rules for a textbook's captions: which part is the credit, and which pictures may not be used."""

from __future__ import annotations

import re

# "(credit: ...)", "(credit a: ...; credit b: ...)", "(2007, credit: ...)", "(attribution: ...)",
# "(modification of work by ...)"; brackets may nest once. Or, without brackets, "Credit a: ..." to
# the end. A plain "credit for the discovery" is not followed by a colon and stays in the caption.
_NESTED = r"(?:[^()]|\([^()]*\))*"
_CREDIT = re.compile(
    rf"\((?:[^().]{{0,60}}\b)?(?:credits?|attribution)\b[^:.]{{0,40}}:{_NESTED}\)?"
    rf"|\((?:credits?|modification of work)\b{_NESTED}\)?"
    r"|\bcredits?(?: [a-z])?: .*$",
    re.IGNORECASE,
)


def split_credit(caption: str) -> tuple[str, str]:
    """(caption without its credit line, credit line or '').

    >>> split_credit("A red lake. (credit: J. Doe/Flickr)")
    ('A red lake.', '(credit: J. Doe/Flickr)')
    """
    credits = [match.group().strip() for match in _CREDIT.finditer(caption)]
    return " ".join(_CREDIT.sub(" ", caption).split()), " ".join(credits)


_FOREIGN = re.compile(
    r"CC[ -]?BY[ -](?:NC|ND|SA)|share[ -]?alike|non-?commercial|no[ -]?deriv|\bGNU\b|GFDL|copyleft"
    r"|all rights reserved|fair use|used (?:with|by) permission|©"
    r"|copyright (?:by|of|\d{4}|\(c\))|copyright(?=.{0,30}\ball rights\b)",
    re.IGNORECASE,
)


def foreign_rights(text: str) -> bool:
    """Whether a caption names a licence that asks for more than CC BY, or another's copyright."""
    return bool(re.search(_FOREIGN, text))


def usable_text(caption: str, alt: str) -> bool:
    """Whether both texts are long enough to say something."""
    return len(caption.split()) >= 5 and len(alt.split()) >= 4 and len(alt) >= 20
