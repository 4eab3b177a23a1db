"""An interactive figure of one fusion layer of PMF: which token goes where, stage by stage.

Plain HTML and SVG with a few lines of our own script: it works in the built page with neither
kernel nor network, in Jupyter, from the keyboard, and on a phone. Its ground is white on light and
dark pages alike, as that of the plots.

Columns are the two sides. Rows, from the top: what enters the frozen layer, the layer, what comes
out, the mapping, the message at the other side.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, fields
from html import escape

from .errors import InputError
from .plots import BOTH, IMAGE, NEUTRAL, TEXT

INK, MOST = "#21272C", 8  # of all letters; the largest number of tokens of one kind
WIDTH, COLUMN, GAP, PITCH = 360, 172, 16, 21.0  # user units; a phone shows about one a pixel
IN, LAYER, OUT, MAPPING, MESSAGE, HEIGHT = 28, 66, 114, 156, 214, 240  # rows, by their upper edge
NAMES = ("Inputs", "Querying", "Keep", "Map and cross", "Fusion", "Output")
# kind -> letter, fill, edge, ink, and what it is
KINDS = {
    "z": ("z", "#DCEBF6", IMAGE, INK, "image token"),
    "x": ("x", "#FBE6D8", TEXT, INK, "text token"),
    "c": ("c", "#E9EDEF", NEUTRAL, INK, "query context prompt"),
    "q": ("q", "#EBDFF1", BOTH, INK, "query prompt"),
    "sent": ("u", BOTH, BOTH, "#FFFFFF", "what a query prompt brings back"),
    "y": ("y", BOTH, BOTH, "#FFFFFF", "message: the same, mapped"),
    "f": ("f", "#E9EDEF", NEUTRAL, INK, "fusion context prompt"),
    "drop": ("", "#FFFFFF", NEUTRAL, NEUTRAL, "dropped"),
}


@dataclass(frozen=True)
class FusionFigure:
    """Show it as the last expression of a cell.

    Args:
        image_tokens, text_tokens, query_prompts: N of each side as drawn, and M_qp, 1 to 8.
        query_context_prompts, fusion_context_prompts: M_qcp and M_fcp, 0 to 8.
        image_name, text_name: headings of the two columns.

    Raises:
        InputError: a number that cannot be drawn.
    """

    image_tokens: int = 4
    text_tokens: int = 3
    query_prompts: int = 2
    query_context_prompts: int = 2
    fusion_context_prompts: int = 2
    image_name: str = "Image"
    text_name: str = "Text"

    def __post_init__(self) -> None:
        for field in fields(self)[:5]:
            name, value = field.name, getattr(self, field.name)
            least = 0 if name.endswith("context_prompts") else 1
            if not least <= value <= MOST:
                raise InputError(
                    f"FusionFigure: {name}={value} cannot be drawn: choose {least} to {MOST}."
                )

    def notes(self) -> list[str]:
        """What happens in each stage, in words."""
        i, t, q = self.image_tokens, self.text_tokens, self.query_prompts
        c, f = self.query_context_prompts, self.fusion_context_prompts
        return [
            f"What enters: {_count(i, 'image token')} and {_count(t, 'text token')}. Below each row "
            "stands that side's frozen layer. It will run twice.",
            f"First run. Each side appends {_count(c, 'query context prompt')} and "
            f"{_count(q, 'query prompt')}, and its frozen layer reads all of them: {i + c + q} on "
            f"the image side, {t + c + q} on the text side.",
            f"Only what comes out at the query prompts is kept, {q} on each side. Outputs at tokens "
            "and context prompts are dropped: this run reads the tokens and does not change them.",
            "A small trained mapping on each side carries what was kept to the width of the other "
            "side. The two messages cross at the same time: neither side waits for the other.",
            f"Second run of the same frozen layers, on the same tokens as at first. Behind them "
            f"stand {_count(f, 'fusion context prompt')} and the message from the other side: "
            f"{i + f + q} on the image side, {t + f + q} on the text side.",
            f"What comes out at the tokens goes on to the next layer; all behind them is dropped. "
            f"So {i} and {t} tokens leave, as many as came, however many layers fuse.",
        ]

    def _repr_html_(self) -> str:
        uid = f"fusion-{uuid.uuid4().hex[:12]}"  # anew each time, so that no two figures clash
        notes = self.notes()
        buttons = "".join(
            f'<button type="button" data-step="{n}" aria-pressed="{str(n == 0).lower()}" '
            f'data-note="{escape(note)}">{n + 1} {name}</button>'
            for n, (name, note) in enumerate(zip(NAMES, notes))
        )
        scenes = "".join(
            f'<g data-scene="{n}"{"" if n == 0 else HIDDEN}>{scene}</g>'
            for n, scene in enumerate(self._scenes())
        )
        legend = "".join(
            f'<li><span style="background:{fill};border-color:{edge};color:{ink}">'
            f"{letter or '&#215;'}</span> {what}</li>"
            for letter, fill, edge, ink, what in KINDS.values()
        )
        words = "".join(f"<li>{name}: {escape(note)}</li>" for name, note in zip(NAMES, notes))
        return (
            f'<div id="{uid}"><style>{STYLE.replace("#ID", "#" + uid)}</style>'
            f'<div class="bar" role="group" aria-label="Stages of one fusion layer">{buttons}'
            '<button type="button" data-move="-1">Back</button>'
            '<button type="button" data-move="1">Next</button></div>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" text-anchor="middle" fill="{INK}" role="img" '
            'aria-label="One fusion layer, described stage by stage in the text below" '
            f'aria-describedby="{uid}-note">'
            f"{self._frame()}{scenes}</svg>"
            f'<p id="{uid}-note" class="note" aria-live="polite">{escape(notes[0])}</p>'
            f'<ul class="key" aria-label="Key">{legend}</ul>'
            f"<noscript><p>The stages of the figure, in words:</p><ol>{words}</ol></noscript>"
            f"<script>{SCRIPT.replace('#ID', uid)}</script></div>"
        )

    def _frame(self) -> str:
        """What stands there in all stages."""
        parts = []
        columns = ((self.image_name, IMAGE, "i\u2192t"), (self.text_name, TEXT, "t\u2192i"))
        for side, (name, colour, way) in enumerate(columns):
            left = side * (COLUMN + GAP)
            parts += [
                f'<rect x="{left}" y="20" width="{COLUMN}" height="3" fill="{colour}"/>',
                _text(left + COLUMN / 2, 14, name, 12, ' font-weight="bold"'),
                _box(left + COLUMN / 2 - 50, MAPPING, 100, 22, f"mapping {way}", BOTH),
            ]
        return "".join(parts)

    def _scenes(self) -> list[str]:
        """What each stage adds."""
        q, c, f = self.query_prompts, self.query_context_prompts, self.fusion_context_prompts
        scenes: list[list[str]] = [[] for _ in NAMES]
        # Squares have one size in all rows: that of the longest.
        most = max(self.image_tokens, self.text_tokens) + max(c, f) + q
        for side, (own, count) in enumerate((("z", self.image_tokens), ("x", self.text_tokens))):
            left = side * (COLUMN + GAP)
            middle, other = left + COLUMN / 2, (1 - side) * (COLUMN + GAP)
            tokens, asked = [own] * count, [own] * count + ["c"] * c + ["q"] * q
            told = tokens + ["f"] * f + ["y"] * q
            kept = ["drop"] * (count + c) + ["sent"] * q

            def row(kinds: list[str], top: float, prime: str = "", x: float = left) -> str:
                return _cells(kinds, x, top, most, prime)

            enter = _arrow(middle, IN + 20, middle, LAYER - 1)
            through = enter + _arrow(middle, LAYER + 30, middle, OUT - 1)
            idle, first, second = (
                _box(left, LAYER, COLUMN, 30, f"frozen layer{run}", edge)
                for run, edge in ((": idle", NEUTRAL), (": first run", INK), (": second run", INK))
            )
            sent = middle + min(PITCH, COLUMN / most) * (count + c) / 2  # centre of what is kept
            down = _arrow(sent, OUT + 20, middle, MAPPING - 1)
            cross = _arrow(middle, MAPPING + 22, other + COLUMN / 2, MESSAGE - 1, BOTH)
            message = f'<g class="cross{side}">{row(["y"] * q, MESSAGE, x=other)}</g>'
            gone = tokens + ["drop"] * (f + q)
            scenes[0] += [row(tokens, IN), enter, idle]
            scenes[1] += [row(asked, IN), through, first, row(asked, OUT, "'")]
            scenes[2] += [row(asked, IN), through, first, row(kept, OUT)]
            scenes[3] += [idle, row(kept, OUT), down, cross, message]
            scenes[4] += [row(told, IN), through, second, row(told, OUT, "'")]
            scenes[5] += [row(told, IN), through, second, row(gone, OUT, "'")]
        return ["".join(scene) for scene in scenes]


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _cells(kinds: list[str], left: float, top: float, most: int, prime: str) -> str:
    """A row of squares, centred in the column, of a size that lets ``most`` of them fit."""
    pitch = min(PITCH, COLUMN / most)
    size, x = pitch - 2, left + (COLUMN - pitch * len(kinds)) / 2 + 1
    parts = []
    for n, kind in enumerate(kinds):
        letter, fill, edge, ink, _ = KINDS[kind]
        at, low = x + n * pitch, top + (19 - size) / 2
        dashed = ' stroke-dasharray="2 2"' if kind == "drop" else ""
        parts.append(
            f'<rect x="{at:.1f}" y="{low:.1f}" width="{size:.1f}" height="{size:.1f}" rx="3" '
            f'fill="{fill}" stroke="{edge}" stroke-width="1.5"{dashed}/>'
        )
        letter = "\u00d7" if kind == "drop" else letter + prime
        parts.append(_text(at + size / 2, low + size * 0.7, letter, size * 0.64, f' fill="{ink}"'))
    return "".join(parts)


def _text(x: float, y: float, words: str, size: float, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}"{more}>{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, words: str, edge: str) -> str:
    rect = (
        f'<rect x="{x + 1}" y="{y}" width="{width - 2}" height="{height}" rx="5" fill="#F4F6F7" '
        f'stroke="{edge}"/>'
    )
    return rect + _text(x + width / 2, y + height / 2 + 4, words, 11)


def _arrow(x: float, top: float, end: float, bottom: float, colour: str = INK) -> str:
    """From (x, top) down to (end, bottom), straight or in an S."""
    half = (top + bottom) / 2
    return (
        f'<path d="M{x:.1f} {top}C{x:.1f} {half} {end} {half} {end} {bottom - 5}" '
        f'stroke="{colour}" stroke-width="1.5" fill="none"/>'
        f'<path d="M{end - 4} {bottom - 6}L{end} {bottom}L{end + 4} {bottom - 6}z" '
        f'fill="{colour}"/>'
    )


HIDDEN = ' style="display:none"'
STYLE = f"""
#ID {{padding:12px;border-radius:6px;background:#FFFFFF;color:{INK};
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif}}
#ID .bar {{display:flex;flex-wrap:wrap;gap:6px;margin-bottom:12px}}
#ID button {{font:inherit;font-size:14px;line-height:1.4;padding:3px 9px;border-radius:6px;
  border:1px solid {NEUTRAL};background:#FFFFFF;color:{INK};cursor:pointer}}
#ID button[aria-pressed="true"] {{background:{BOTH};border-color:{BOTH};color:#FFFFFF}}
#ID button:focus-visible {{outline:3px solid {IMAGE};outline-offset:2px}}
#ID svg {{display:block;width:100%;max-width:520px;height:auto}}
#ID .note {{min-height:6.5em;margin:10px 0 0;font-size:15px;line-height:1.5;color:{INK}}}
#ID .key {{display:flex;flex-wrap:wrap;gap:4px 14px;margin:8px 0 0;padding:0;list-style:none;
  font-size:13px;color:{INK}}}
#ID .key li {{margin:0}}
#ID .key span {{display:inline-block;width:18px;height:18px;line-height:16px;text-align:center;
  border:1.5px solid;border-radius:3px;font-size:11px}}
#ID noscript {{color:{INK}}}
@media (prefers-reduced-motion:no-preference) {{
  #ID .cross0, #ID .cross1 {{animation:fusion-cross0 .9s ease-in-out}}
  #ID .cross1 {{animation-name:fusion-cross1}}
}}
@keyframes fusion-cross0 {{from {{transform:translate(-{COLUMN + GAP}px,-36px)}}}}
@keyframes fusion-cross1 {{from {{transform:translate({COLUMN + GAP}px,-36px)}}}}
"""
SCRIPT = """
(() => {
  const root = document.getElementById("#ID");
  const steps = [...root.querySelectorAll("[data-step]")];
  const scenes = [...root.querySelectorAll("[data-scene]")];
  const note = root.querySelector(".note");
  let now = 0;
  const show = (next) => {
    now = Math.min(Math.max(next, 0), steps.length - 1);
    steps.forEach((step, n) => step.setAttribute("aria-pressed", String(n === now)));
    scenes.forEach((scene, n) => { scene.style.display = n === now ? "" : "none"; });
    note.textContent = steps[now].dataset.note;
  };
  steps.forEach((step, n) => step.addEventListener("click", () => show(n)));
  root.querySelectorAll("[data-move]").forEach((button) =>
    button.addEventListener("click", () => show(now + Number(button.dataset.move))));
  root.querySelector(".bar").addEventListener("keydown", (event) => {
    const next = {ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: steps.length - 1}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    show(next);
    steps[now].focus();
  });
})();
"""
