"""Evolutionary search for a design of PMF, with the loop that AutoFormer's released code runs.

- First population: random designs.
- Each generation: the best so far are parents; some children are mutants of one parent, some are
  crossings of two; random designs fill up what is missing.
- Always: a design that costs more than the limit is thrown away, one that has been scored is never
  scored again.

Random search is the same loop without mutants and crossings (``at_random``), so it makes as many
evaluations. The functions here see designs, a score and a cost, and no data: whoever calls them
gives ``score`` a slice of the *training* data, and ``choose`` the validation data. Test data have
no way in.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .files import read_json, write_json
from .pmf import PMFConfig
from .supernet import SearchSpace, layers_of

Number = Callable[[PMFConfig], float]  # of a design: its score, or its cost


@dataclass(frozen=True)
class SearchConfig:
    """How to search. The defaults are those of AutoFormer's released code: 1,000 evaluations.

    Args:
        population: designs scored in each generation.
        generations: the first, random one included.
        parents: so many best designs of all generations so far may have children.
        mutants, crossings: children of either kind in a generation.
        layer_chance: that a mutant draws a length of a prompt anew.
        whole_chance: that it draws the number of fusion layers anew, and the mapping width.
        tries: draws of mutants, and of crossings, in a generation; and for each random design.
        seed: of the search.

    Raises:
        InputError: a field, or a pair of fields, makes no search.
    """

    population: int = 50
    generations: int = 20
    parents: int = 10
    mutants: int = 25
    crossings: int = 25
    layer_chance: float = 0.2
    whole_chance: float = 0.4
    tries: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "generations", "parents", "tries"):
            if getattr(self, name) < 1:
                raise InputError(f"SearchConfig: {name}={getattr(self, name)} must be at least 1.")
        for name in ("layer_chance", "whole_chance"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"SearchConfig: {name}={getattr(self, name)} is a probability: use 0 to 1."
                )
        if min(self.mutants, self.crossings) < 0 or (
            self.mutants + self.crossings > self.population
        ):
            raise InputError(
                f"SearchConfig: mutants={self.mutants} and crossings={self.crossings} must not be "
                f"negative, nor together more than population={self.population}."
            )


class Found(NamedTuple):
    """A design that was scored, in which generation (from 0), and what it costs."""

    design: PMFConfig
    score: float
    cost: float
    generation: int


def at_random(config: SearchConfig) -> SearchConfig:
    """Random search with as many evaluations: what evolution must beat."""
    return replace(config, mutants=0, crossings=0)


def search(
    space: SearchSpace,
    score: Number,
    cost: Number,
    limit: float,
    config: SearchConfig,
    path: str | Path | None = None,
) -> list[Found]:
    """Score designs that cost at most ``limit``, generation after generation.

    Args:
        space: the designs.
        score: higher is better; the same for the same design. Called once for each.
        cost: saved activations in bytes a sample, trainable parameters, or whatever is limited.
            Called often, so it must be cheap.
        limit: the highest accepted cost.
        config: how to search.
        path: file that holds the search so far, replaced after each generation. A killed search
            that is called again with the same arguments gives the same result. It does not know
            which weights ``score`` uses: give each supernet a file of its own.

    Returns:
        All designs scored, in order: population x generations, or fewer where the limit leaves
        fewer to find.

    Raises:
        InputError: no design within the limit was drawn, or ``path`` belongs to another search.
    """
    about = {"space": asdict(space), "config": asdict(config), "limit": limit}
    found = _load(path, about)
    first = 1 + max((f.generation for f in found), default=-1)
    for generation in range(first, config.generations):
        # A generator a generation: nothing but the designs found need be stored.
        rng = random.Random(f"{config.seed} {generation}")
        children = _children(space, best(found, config.parents), found, cost, limit, config, rng)
        if not found and not children:
            raise InputError(
                f"None of {config.tries} random designs costs at most {limit:,.0f}: raise the limit."
            )
        found = [*found, *(Found(d, score(d), cost(d), generation) for d in children)]
        if path is not None:
            rows = [[asdict(f.design), *f[1:]] for f in found]
            write_json(path, {"about": about, "found": rows})
    return found


def best(found: Sequence[Found], count: int) -> list[Found]:
    """The highest scores first; of equal ones the cheaper, then the earlier."""
    return sorted(found, key=lambda f: (-f.score, f.cost))[:count]


def choose(found: Sequence[Found], validate: Number, finalists: int = 5) -> tuple[Found, float]:
    """The final choice: of the best designs of a search, the best on validation data.

    Args:
        found: of ``search``.
        validate: score on validation data, of the same weights.
        finalists: how many are validated.

    Returns:
        The design and its validation score; of equal ones, the one with the higher search score.
    """
    scores = [(f, validate(f.design)) for f in best(found, finalists)]
    return max(scores, key=lambda pair: pair[1])


def mutate(
    space: SearchSpace, parent: PMFConfig, config: SearchConfig, rng: random.Random
) -> PMFConfig:
    """A copy with some numbers drawn anew. More layers come in, or fewer stay, at the bottom."""
    layers, width = layers_of(parent), parent.mapping_width
    if rng.random() < config.whole_chance:
        depth = rng.randint(1, space.max_fusion_layers)
        more = [space.draw_layer(rng) for _ in range(depth - len(layers))]
        layers = [*more, *layers][-depth:]
    if rng.random() < config.whole_chance:
        width = rng.choice(space.mapping_widths)

    def anew(value: int, choices: tuple[int, ...]) -> int:
        return rng.choice(choices) if rng.random() < config.layer_chance else value

    layers = [tuple(map(anew, layer, space.choices)) for layer in layers]
    return space.design(width, layers)


def cross(space: SearchSpace, a: PMFConfig, b: PMFConfig, rng: random.Random) -> PMFConfig:
    """Each number from either parent; both have the same number of layers."""
    layers = [tuple(map(rng.choice, zip(*pair))) for pair in zip(layers_of(a), layers_of(b))]
    return space.design(rng.choice((a.mapping_width, b.mapping_width)), layers)


def design_from(fields: dict[str, Any]) -> PMFConfig:
    """A design from ``dataclasses.asdict`` and JSON, where tuples have become lists."""
    return PMFConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _children(
    space: SearchSpace,
    parents: list[Found],
    found: list[Found],
    cost: Number,
    limit: float,
    config: SearchConfig,
    rng: random.Random,
) -> list[PMFConfig]:
    """The designs of one generation: new ones, each within the limit."""
    seen = {f.design for f in found}
    children: list[PMFConfig] = []

    def add(make: Callable[[], PMFConfig], count: int, tries: int) -> None:
        """Up to ``count`` more children, from so many draws."""
        end = len(children) + count
        for _ in range(tries):
            if len(children) == end:
                return
            design = make()
            if design not in seen and cost(design) <= limit:
                seen.add(design)
                children.append(design)

    def mutant() -> PMFConfig:
        return mutate(space, rng.choice(parents).design, config, rng)

    def crossing() -> PMFConfig:
        a = rng.choice(parents).design
        alike = [p.design for p in parents if len(layers_of(p.design)) == len(layers_of(a))]
        return cross(space, a, rng.choice(alike), rng)  # a with itself gives nothing new

    if parents:
        add(mutant, config.mutants, config.tries)
        add(crossing, config.crossings, config.tries)
    while len(children) < config.population:
        before = len(children)
        add(lambda: space.draw(rng), 1, config.tries)
        if len(children) == before:  # as good as all have been found
            break
    return children


def _load(path: str | Path | None, about: dict[str, Any]) -> list[Found]:
    """What an earlier call has stored."""
    if path is None or not Path(path).exists():
        return []
    state = read_json(path)
    if state.get("about") != json.loads(json.dumps(about)):  # tuples have become lists
        raise InputError(
            f"{path} holds a search with another space, config or limit: delete it, or give another "
            "path."
        )
    return [Found(design_from(fields), *rest) for fields, *rest in state["found"]]
