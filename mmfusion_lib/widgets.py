"""Widgets: a caption explorer and questions about a picture, live in a notebook and still in a page.

One front (``explorer.js``, ``explorer.css``) serves both. Live it talks to ``reply`` through anywidget. The
still twin holds all that it can show, needs neither kernel nor network, and is what ``text/html`` gives: the
book shows it, and a notebook where no kernel runs. ::

    CaptionExplorer(Explorer(model, scene_pictures("test", [0, 1]), trained_on="6,000 scenes"))
"""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import InputError
from .explorer import Explorer, Noise, Writing

FOLDER = Path(__file__).parent
SCRIPT = (FOLDER / "explorer.js").read_text(encoding="utf-8")
STYLE = (FOLDER / "explorer.css").read_text(encoding="utf-8")


class CaptionExplorer:
    """Show it as the last expression of a cell.

    Captions word by word, with what was weighed up and where the model looked.

    Args:
        explorer: model and pictures.
    """

    kind = "caption"

    def __init__(self, explorer: Explorer):
        self.explorer = explorer

    @cached_property
    def payload(self) -> dict[str, Any]:
        """All that the still twin shows; computed once.

        Raises:
            InputError: more than 3 MB.
        """
        return self.explorer.still(self.kind)

    @cached_property
    def live(self) -> Any:
        """The ``anywidget.AnyWidget`` that answers while a kernel runs.

        Raises:
            ImportError: anywidget is not installed.
        """
        import anywidget

        front = {"_esm": SCRIPT, "_css": STYLE}
        widget = type("Live", (anywidget.AnyWidget,), front)()
        widget.on_msg(lambda _, question, buffers: widget.send(self.reply(question, buffers)))
        return widget

    def reply(self, question: Mapping[str, Any], buffers: Sequence[Any] = ()) -> dict[str, Any]:
        """What the kernel answers: see ``answered``; ``error`` where that fails."""
        mine = {name: question.get(name) for name in ("view", "number")}
        try:
            return {**answered(self.explorer, self.kind, question, buffers), **mine}
        except InputError as error:
            return {"error": str(error), **mine}
        except Exception as error:  # a kernel shows none that is raised in a callback
            return {"error": f"This failed ({type(error).__name__}: {error}).", **mine}

    def html(self) -> str:
        """The still twin, complete in itself."""
        name = f"mmfw-{uuid.uuid4().hex[:12]}"  # anew each time, so that no two clash
        payload = _in_script(json.dumps(self.payload))
        code = SCRIPT.replace("export default", "const widget =")
        return (
            f'<div id="{name}"><style>{STYLE}</style>'
            f'<script type="application/json">{payload}</script>'
            "<noscript><p>This figure needs JavaScript.</p></noscript>"
            f"<script>(() => {{\n{code}\n"
            f'const el = document.getElementById("{name}");\n'
            'const payload = JSON.parse(el.querySelector("script").textContent);\n'
            "widget.render({ model: widget.still(payload), el });\n})();</script></div>"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.explorer.pictures)} pictures"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            page = self.html()
        except InputError as error:  # what a page cannot hold can still be shown live
            page = f"<p><strong>{html.escape(str(error))}</strong></p>"
        still = {"text/plain": repr(self), "text/html": page}
        try:
            live, about = self.live._repr_mimebundle_()
        except ImportError:
            return still, {}
        return {**live, **still}, about


class AskWidget(CaptionExplorer):
    """Show it as the last expression of a cell: a question and the ranked answers, with their scores.

    Args:
        explorer: with ``questions`` and ``answers``.

    Raises:
        InputError: the explorer has no answers.
    """

    kind = "ask"

    def __init__(self, explorer: Explorer):
        if not explorer.answers:
            raise InputError("This explorer has no answers to rank: give Explorer(answers=...).")
        super().__init__(explorer)


def answered(
    explorer: Explorer, kind: str, question: Mapping[str, Any], buffers: Sequence[Any] = ()
) -> dict[str, Any]:
    """The answer to one question of the front.

    Args:
        explorer: model and pictures; an upload adds one.
        kind: "caption" or "ask".
        question: ``ask`` is "front", "upload" (``name``), "maps", "write" (``writing``, ``prefix``) or
            "answer" (``question``); the last three with ``picture``, ``experts`` and ``noise``.
        buffers: of an upload, the bytes of the file.

    Raises:
        InputError: a value is missing or cannot be used.
    """
    ask = question.get("ask")
    if ask == "front":
        return {"front": explorer.front(kind), "live": True}
    if ask == "upload":
        number = explorer.add(b"".join(bytes(part) for part in buffers), str(question.get("name")))
        return {"picture": explorer.shown(number)}
    picture, experts, noise = question.get("picture"), question.get("experts"), None
    if type(picture) is not int or not isinstance(experts, list):
        raise InputError(f"{ask!r} came without a picture and experts: give both.")
    if question.get("noise"):
        found = question["noise"]
        try:
            noise = Noise(str(found["kind"]), float(found["amount"]), tuple(found["experts"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The noise {found!r} lacks kind, amount or experts.") from error
    if ask == "maps":
        return {"maps": explorer.maps(picture, noise)}
    if ask == "write":
        try:
            writing = Writing(**question["writing"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{ask!r} came with no writing that can be used: {error}.") from error
        prefix = question.get("prefix") or ()
        tree = explorer.caption(picture, experts, noise=noise, writing=writing, prefix=prefix)
        return {"tree": tree}
    if ask == "answer":
        asked = str(question.get("question") or "")
        return {"answer": explorer.answer(picture, experts, asked, noise=noise)}
    raise InputError(f"{ask!r} is no question: use front, upload, maps, write or answer.")


def _in_script(text: str) -> str:
    """JSON that may stand in a script element: no end tag, no comment."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
