"""Fetch chosen folders of a public git repository at a pinned commit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError


def fetch(url: str, commit: str | None, folder: Path, paths: Sequence[str]) -> str:
    """Check out ``paths`` of a repository at ``commit`` into ``folder``.

    A partial clone: history without contents, then only the files of ``paths`` at the commit. So an
    abbreviated commit can be resolved, and other versions of the pictures are not downloaded.
    A checkout that is complete is used again; an interrupted one is started anew.

    Args:
        url: https, file:// or local path of the repository.
        commit: full or abbreviated (None: the tip of its default branch).
        folder: where the checkout goes.
        paths: folders or files to take.

    Returns:
        The full commit id.

    Raises:
        InputError: git is missing, or the repository or commit cannot be reached.
    """
    done = folder / ".git" / "mmfusion-complete"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git("clone", "--quiet", "--filter=blob:none", "--no-checkout", url, str(folder))
        _git("sparse-checkout", "set", "--no-cone", *[f"/{path}" for path in paths], folder=folder)
        _git("checkout", "--quiet", "--detach", *([commit] if commit else []), folder=folder)
        done.touch()
    head = _git("rev-parse", "HEAD", folder=folder)
    if commit and not head.startswith(commit):
        raise InputError(
            f"{folder} holds commit {head[:12]} and not {commit}: delete the folder and start again."
        )
    return head


def _git(*arguments: str, folder: Path | None = None) -> str:
    """Run git without prompts; returns its output."""
    command = ["git", *(["-C", str(folder)] if folder else []), *arguments]
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise InputError("git is not installed: install it, then start the build again.") from error
    if result.returncode:
        reason = (result.stderr.strip() or "no message").splitlines()[-1].rstrip(".")
        raise InputError(
            f"`git {arguments[0]}` of {arguments[-1]} failed ({reason}): check the network and the "
            "address, then start the build again; finished repositories are kept."
        )
    return result.stdout.strip()
