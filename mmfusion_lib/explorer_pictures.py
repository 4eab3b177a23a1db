"""Pictures for the explorer: with the maps of experts, spoilt or not, drawn small, or a reader's own."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError
from .experts.label_map import LabelMap, kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .prismer import Prismer

NAME = 60  # letters of a picture's name


@dataclass(frozen=True)
class Picture:
    """A picture and what experts say about it.

    Attributes:
        name: as it is shown.
        image: RGB.
        labels: expert -> its map.
        alt: the picture in words, for who cannot see it.
        scene: the maps are those of a generated scene, which ``from_scenes.noisy`` can spoil.
        note: a sentence shown beside it.
    """

    name: str
    image: Image
    labels: Mapping[str, LabelMap] = field(default_factory=dict)
    alt: str = ""
    scene: bool = False
    note: str = ""


class Noise(NamedTuple):
    """How maps are spoilt, see ``from_scenes.noisy``."""

    kind: str
    amount: float
    experts: tuple[str, ...]


def scene_pictures(split: str, rows: Sequence[int]) -> list[Picture]:
    """Generated scenes with their exact maps; the objects in words beside them.

    Args:
        split: of ``scenes.load``.
        rows: numbers of scenes, one or more.

    Raises:
        InputError: no rows.
    """
    if not len(rows):
        raise InputError("There are no rows of scenes to show: give one or more.")
    from PIL import Image

    from .data import scene_captions, scenes
    from .experts.from_scenes import from_scene

    table, found = scenes.load(split, max(rows) + 1), []
    for row in rows:
        scene = scenes.decode(table[row])
        alt = "Generated scene. " + scene_captions.captions(scene.graph)[0]
        maps = from_scene(scene)
        name = scene.graph["id"]
        found.append(Picture(name, Image.fromarray(scene.image), maps, alt, scene=True))
    return found


def opened(model: Prismer, source: Any, name: str, trained_on: str) -> Picture:
    """A reader's own picture, with the maps of the model's suppliers and a note that says what is missing.

    Args:
        model: its ``suppliers`` are run.
        source: anything that ``open_image`` takes.
        name: any string; letters that cannot be shown are left out.
        trained_on: what the model was trained on.

    Raises:
        InputError: the picture cannot be opened.
    """
    from .data.images import open_image

    name = "".join(letter for letter in name if letter.isprintable())[:NAME] or "picture"
    image = open_image(source, name)
    labels = {each.name: each([image])[0] for each in model.suppliers}
    missing = [spoken(each) for each in model.config.experts if each not in labels]
    note = (
        f"{name} is your picture. Experts that ran on it: {_listed(map(spoken, labels))}. Experts of "
        f"this model that cannot run here: {_listed(missing)}. The model was trained on {trained_on}: "
        "of other pictures it may say anything."
    )
    return Picture(name, image, labels, f"Your picture, {name}", note=note)


def spoilt(picture: Picture, noise: Noise, seed: int) -> dict[str, LabelMap]:
    """The picture's maps, those of ``noise.experts`` spoilt.

    Raises:
        InputError: no generated scene, or a noise that ``from_scenes.noisy`` refuses.
    """
    from .experts.from_scenes import noisy

    if not picture.scene:
        raise InputError(
            f"The maps of {picture.name} cannot be spoilt: choose a generated scene for that."
        )
    some = {name: each for name, each in picture.labels.items() if name in noise.experts}
    return {**picture.labels, **noisy(some, noise.kind, noise.amount, seed)}


def drawn(labels: LabelMap, image: Image) -> dict[str, str]:
    """A map in colour, at the size of ``image``, and what it says in words."""
    from PIL import Image as Images

    from .experts import sheet
    from .experts.geometry import resize

    labels = resize(labels, image.size)
    names = dict.fromkeys(text for *_, text in sheet.places(labels))
    kind = kind_of(labels.expert)
    return {
        "expert": labels.expert,
        "label": spoken(labels.expert),
        "says": _listed(names) if kind.semantic else kind.meaning,
        "image": uri(Images.fromarray(sheet.picture(labels, image)), "PNG"),
    }


def uri(image: Image, form: str) -> str:
    """A picture as an address that holds all of it; a PNG has 128 colours."""
    file = io.BytesIO()
    if form == "PNG":
        image.quantize(128).save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=88)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def spoken(expert: str) -> str:
    """An expert's name as one reads it."""
    return expert.replace("_", " ")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
