"""Generated tables, at the place in a page where they are named: nobody types a number.

```{records} claims:01          a table of `mmfusion_lib.records.markdown`: claims or status
```
```{build-facts}                machine and versions of this build
```
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mmfusion_lib import InputError


class Generated(SphinxDirective):
    """Parses generated Markdown as if it stood in the page."""

    def parse(self, text: str) -> list[nodes.Node]:
        container = nodes.container(classes=["records"])
        self.state.nested_parse(
            StringList(text.splitlines(), "records"), 0, container
        )
        return [container]


class Records(Generated):
    """Tables from ``book/results``; the page is read again when a record changes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from mmfusion_lib import records

        for path in sorted((Path(self.env.srcdir) / "results").rglob("*")):
            if path.is_file():
                self.env.note_dependency(str(path))
        try:
            return self.parse(records.markdown(self.arguments[0]))
        except InputError as error:
            raise self.error(str(error)) from error


class BuildFacts(Generated):
    """The machine and the versions that built the page."""

    def run(self) -> list[nodes.Node]:
        from mmfusion_lib import records

        machine = records.machine()
        rows = [
            ("device", machine["device"]),
            ("processor cores", machine["cores"]),
            ("memory", f"{machine['memory_gib']} GiB"),
            ("platform", machine["platform"]),
            ("Python", machine["python"]),
            ("commit", records.commit()),
            *records.versions().items(),
        ]
        lines = ["| what | found |", "| --- | --- |"]
        return self.parse(
            "\n".join(
                lines + [f"| {name} | {value} |" for name, value in rows]
            )
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Entry point that Sphinx calls."""
    app.add_directive("records", Records)
    app.add_directive("build-facts", BuildFacts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
