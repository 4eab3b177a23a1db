"""Write the table of measured claims into README.md, from the records; a test compares them.

python .ci/readme.py
"""

from __future__ import annotations

from pathlib import Path

from mmfusion_lib import records
from mmfusion_lib.files import write_text

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- claims: written by .ci/readme.py -->\n", "<!-- end of claims -->\n"


def table() -> str:
    """Our own claims that have been tried, with the number and the verdict of each."""
    lines = ["| claim | measured | verdict |", "| --- | --- | --- |"]
    for claim in records.claims():
        if claim.source == "ours" and not claim.why:
            ours, verdict = claim.verdict()
            lines.append(f"| {claim.claim} | {ours} | {verdict} |")
    return "\n".join(lines) + "\n"


def split(text: str) -> tuple[str, str, str]:
    """The text before the table, the table, the text after it."""
    start, end = text.index(START) + len(START), text.index(END)
    return text[:start], text[start:end], text[end:]


def main() -> None:
    before, _, after = split(README.read_text(encoding="utf-8"))
    write_text(README, before + table() + after)


if __name__ == "__main__":
    main()
