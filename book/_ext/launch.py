"""Colab and Binder buttons follow from one field: ``repository: url`` in ``_config.yml``.

While the field is empty there are no buttons, so that no page offers a link that leads nowhere.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.config import Config


def keep_or_drop(app: Sphinx, config: Config) -> None:
    """Drop the launch buttons where the repository has no address yet."""
    options = dict(config.html_theme_options)
    if not options.get("repository_url"):
        options.pop("launch_buttons", None)
        options.pop("repository_url", None)
    config.html_theme_options = options


def setup(app: Sphinx) -> dict[str, bool]:
    """Entry point that Sphinx calls."""
    app.connect("config-inited", keep_or_drop)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
