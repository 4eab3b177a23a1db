"""The tables that pages show of claims and records; ``records.markdown`` is the way in.

Every function here makes one table as Markdown, from the claims file and the records alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import records
from .errors import InputError


def table(what: str) -> str:
    """The table of that name: see ``records.markdown``.

    Raises:
        InputError: there is no such table, or no claim belongs in it.
    """
    kind, *parts = what.split(":")
    tables = {"claims": _claims, "grid": _grid} if parts else {"status": _status, "claims": _claims}
    if not parts:
        tables |= {"verdicts": _verdicts, "commands": _commands, "reasons": _reasons}
    if kind not in tables:
        raise InputError(
            f"Unknown table {what!r}: use status, verdicts, claims, claims:SOURCE, claims:CHAPTER, "
            "claims:SOURCE:CHAPTER, grid:BEGINNING, commands or reasons."
        )
    return tables[kind](*parts)


def _status() -> str:
    from .recipes import ALL
    from .runs import code_digest

    rows = []
    for recipe in ALL:
        record = records.load(recipe.name)
        if record is None:
            state = "pending" if "lab" in recipe.scales else "paper scale only: not run"
            rows.append([f"`{recipe.name}`", recipe.title, state, "-", "-", "-"])
            continue
        state = "current" if record.library == code_digest(recipe) else "older code"
        rows.append(
            [
                f"`{recipe.name}`",
                recipe.title,
                state,
                f"{record.seconds / 60:.1f}",
                str(len(record.seeds)),
                f"{record.machine['device']}, {record.machine['cores']} cores, {record.date}",
            ]
        )
    return _table(["recipe", "what it measures", "record", "minutes", "seeds", "machine"], rows)


def _claims(*parts: str) -> str:
    """Claims of which source and chapter, each where it is named, are among ``parts``."""
    rows = []
    for claim in records.claims():
        if not set(parts) <= {claim.source, claim.chapter}:
            continue
        ours, verdict = claim.verdict()
        value = "-" if claim.value is None else f"{claim.value:,.10g}"
        if claim.least is not None:
            value = f"{claim.least:g} or more"
        if claim.tolerance is not None:
            value += f" ± {claim.tolerance:g}"
        source = f"{claim.source}, {claim.where} ({claim.provenance})"
        if claim.source == "ours":
            source = "ours"
        measured = claim.metric if claim.data == "none needed" else f"{claim.metric}; {claim.data}"
        rows.append([claim.claim, source, measured, value, ours, verdict])
    _some(rows, "claims", parts)
    return _table(["claim", "source", "measured", "claimed", "ours", "verdict"], rows)


def _verdicts() -> str:
    kinds = ("reproduced", "not reproduced", "pending", "not attempted")
    counts: dict[str, list[int]] = {}
    for claim in records.claims():
        kind = claim.verdict()[1].partition(":")[0]
        counts.setdefault(claim.source, [0] * len(kinds))[kinds.index(kind)] += 1
    rows = [[source, *map(str, found), str(sum(found))] for source, found in counts.items()]
    return _table(["claims of", *kinds, "all"], rows)


def _grid(beginning: str) -> str:
    found = [c for c in records.claims() if c.id.startswith(beginning) and c.value is not None]
    _some(found, "grid", [beginning])
    columns = list(dict.fromkeys(f"{c.claim}: {c.where} ({c.provenance})" for c in found))
    cells: dict[str, dict[str, str]] = {}
    for c in found:
        row = cells.setdefault(f"{c.metric}; {c.data}", {})
        row[f"{c.claim}: {c.where} ({c.provenance})"] = str(c.value)
    rows = [[name, *(row.get(column, "-") for column in columns)] for name, row in cells.items()]
    return _table(["measured", *columns], rows)


def _commands() -> str:
    from .recipes import ALL

    rows = []
    for recipe in ALL:
        if records.load(recipe.name) is None:
            scale = "lab" if "lab" in recipe.scales else "paper"
            command = f"`python -m mmfusion_lib run {recipe.name} --scale {scale} --publish`"
            rows.append([recipe.title, command, f"{recipe.minutes[scale]:,.0f}"])
    return _table(["what it measures", "command", "minutes on two cores"], rows)


def _reasons() -> str:
    reasons: dict[str, list[str]] = {}
    for claim in records.claims():
        if claim.why:
            reasons.setdefault(claim.why, []).append(f"{claim.source}, {claim.where}")
    rows = [
        [why, str(len(found)), "; ".join(dict.fromkeys(found))] for why, found in reasons.items()
    ]
    return _table(["reason", "claims", "where they stand"], rows)


def _some(found: list, kind: str, parts: Iterable[str]) -> None:
    if not found:
        raise InputError(
            f"No claim belongs in the table {':'.join([kind, *parts])!r}: "
            "look at the ids, sources and chapters in book/results/claims.yaml."
        )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
