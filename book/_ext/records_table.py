"""``{records} what``: a table made from the recorded results, at the place where it is written.

    ```{records} claims:01
    ```

The text comes from `mmfusion_lib.records.markdown`, which reads ``book/results``: no page prints a
number that was typed by hand.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mmfusion_lib import InputError


class Records(SphinxDirective):
    """Puts generated Markdown into the page, and rebuilds the page when a record changes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from mmfusion_lib import records

        for path in sorted((Path(self.env.srcdir) / "results").rglob("*")):
            if path.is_file():
                self.env.note_dependency(str(path))
        try:
            text = records.markdown(self.arguments[0])
        except InputError as error:
            raise self.error(str(error)) from error
        container = nodes.container(classes=["records"])
        self.state.nested_parse(StringList(text.splitlines(), "records"), 0, container)
        return [container]


def setup(app: Sphinx) -> dict[str, bool]:
    """Entry point that Sphinx calls."""
    app.add_directive("records", Records)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
