"""What a checker of an exercise answers, and how a learner's function is tried."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch


@dataclass(frozen=True)
class Result:
    """What a checker found; ``print`` shows it."""

    exercise: str
    hint: str = ""  # empty when the function passed

    @property
    def passed(self) -> bool:
        return not self.hint

    def __str__(self) -> str:
        said = f"not yet: {self.hint}" if self.hint else "passed"
        return textwrap.fill(f"{self.exercise}: {said}", width=72, subsequent_indent="    ")


def checker(exercise: str) -> Callable[[Callable[[Any], str]], Callable[[Any], Result]]:
    """Turn ``function -> hint`` (empty: all is well) into ``function -> Result``.

    Whatever the learner's function raises becomes a hint, so an unsolved notebook runs to its end.
    """

    def decorate(hint_for: Callable[[Any], str]) -> Callable[[Any], Result]:
        @wraps(hint_for)
        def check(function: Any) -> Result:
            try:
                with torch.no_grad():
                    return Result(exercise, hint_for(function))
            except Exception as error:
                kind = type(error).__name__
                return Result(exercise, f"your function raised {kind}: {error}")

        return check

    return decorate
