"""Generated tabletop scenes as a data set: made in parallel, cached as parquet, read by prefix.

``load`` gives the first ``count`` scenes of a split and makes those that the cache lacks;
``make_scene`` (in ``scene_draw``) makes any one of them alone. A shard holds 32 scenes and is
written in one go, so a run that is killed loses at most the shards it was working on, and the next
run goes on from there. The folder's name is a digest of the generator's source, of the versions of
the packages it draws with, of size and seed: a changed generator never reads old scenes.

A row holds ``id``, ``image`` (a PNG, as ``datasets.Image``), the labels as PNG bytes and ``graph``
as JSON; ``decode`` turns it into a ``Scene``. Two labels are rounded by this: depth to 0.1 mm
(error <= 0.05 mm) and normals to 8 bits a component (error <= 0.4 degrees). A row takes about 21 KB
of memory and of disk.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files, settings
from ..errors import InputError
from .scene_draw import HELD_OUT, LIGHTS, SPLITS, Scene, check, make_scene
from .scene_objects import COLOURS, KINDS, SIZES, TEXTURES, WORDS
from .scene_render import NOTHING
from .scene_shade import SURFACES, WALLS

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "LIGHTS",
    "NOTHING",
    "SIZES",
    "SPLITS",
    "SURFACES",
    "TEXTURES",
    "WALLS",
    "WORDS",
    "Scene",
    "decode",
    "encode",
    "load",
    "make_scene",
]

SHARD = 32  # scenes in a file
DEPTH_UNIT = 1e-4  # metres: the depth PNG holds tenths of a millimetre
_FORMAT = 1  # of a row; a change of encode() makes it 2
_LABELS = ("depth", "normal", "classes", "instances", "edges")
_SOURCES = ("solids", "objects", "render", "shade", "draw")


def load(split: str, count: int, size: int = 112, seed: int = 0) -> datasets.Dataset:
    """The first ``count`` scenes of a split, one row a scene.

    Args:
        split: one of ``SPLITS``; only test scenes contain ``HELD_OUT`` colour-kind pairs.
        count: 1 or more. A larger cached set is reused, a smaller one is extended.
        size: height and width in pixels, 32 to 512.
        seed: another seed gives other scenes.

    Raises:
        InputError: a value is out of range, a cached shard is broken, the disk is full, or trimesh
            or embreex is not installed.
    """
    import datasets
    import pyarrow as pa

    check(split, size, seed)
    if count < 1:
        raise InputError(f"{count} scenes were asked for: ask for 1 or more.")
    folder = _folder(size, seed)
    firsts = range(0, count, SHARD)
    _make_missing(folder, [(split, first, size, seed) for first in firsts])
    table = pa.concat_tables([_read(_path(folder, split, first), split, first) for first in firsts])
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            **{name: datasets.Value("binary") for name in _LABELS},
            "graph": datasets.Value("string"),
        }
    )
    return datasets.Dataset(
        datasets.table.InMemoryTable(table.slice(0, count)),
        info=datasets.DatasetInfo(features=features),
        fingerprint=files.digest(folder.name, split, count),
    )


def encode(scene: Scene) -> dict[str, Any]:
    """The row of a scene: PNG bytes, and the graph as JSON."""
    normal = np.rint((scene.normal + 1) * 127.5).astype(np.uint8)
    return {
        "id": scene.graph["id"],
        "image": {"bytes": _png(scene.image), "path": None},
        "depth": _png(np.rint(scene.depth / DEPTH_UNIT).astype(np.uint16)),
        "normal": _png(normal),
        "classes": _png(scene.classes),
        "instances": _png(scene.instances),
        "edges": _png(scene.edges),
        "graph": json.dumps(scene.graph),
    }


def decode(row: Mapping[str, Any]) -> Scene:
    """The scene of a row of ``load``, its picture decoded or not.

    Raises:
        InputError: a column is missing or cannot be decoded.
    """
    from PIL import Image

    arrays = {}
    for name in ("image", *_LABELS):
        try:
            value = row[name]["bytes"] if isinstance(row[name], dict) else row[name]
            picture = Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value
            arrays[name] = np.array(picture)
        except (KeyError, OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"Column {name!r} of scene {row.get('id')!r} cannot be decoded: give a whole row "
                "of scenes.load."
            ) from error
    normal = arrays["normal"].astype(np.float32) / np.float32(127.5) - 1
    return Scene(
        image=arrays["image"],
        depth=arrays["depth"].astype(np.float32) * np.float32(DEPTH_UNIT),
        normal=normal / np.linalg.norm(normal, axis=-1, keepdims=True),
        classes=arrays["classes"],
        instances=arrays["instances"],
        edges=arrays["edges"],
        graph=json.loads(row["graph"]),
    )


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _folder(size: int, seed: int) -> Path:
    """Where the scenes of this generator, size and seed are kept."""
    here = Path(__file__).parent
    sources = [(here / f"scene_{name}.py").read_bytes() for name in _SOURCES]
    packages = {}
    for name in ("numpy", "pillow", "trimesh", "embreex"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise InputError(
                f"Scenes need the package {name}: pip install mmfusion_lib[scenes]."
            ) from error
    return settings.cache_root() / "scenes" / files.digest(*sources, _FORMAT, packages, size, seed)


def _path(folder: Path, split: str, first: int) -> Path:
    return folder / f"{split}-{first:08d}.parquet"


def _read(path: Path, split: str, first: int) -> pyarrow.Table:
    """One shard, every page checked against its checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        ids = table["id"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} is broken: delete it and run again to make it anew.") from error
    if ids != [f"{split}-{index:06d}" for index in range(first, first + SHARD)]:
        raise InputError(f"{path} holds other scenes than its name says: delete it and run again.")
    return table


def _write(folder: Path, split: str, first: int, size: int, seed: int) -> None:
    """Make one shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [encode(make_scene(split, first + i, seed, size)) for i in range(SHARD)]
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {
            "id": pa.string(),
            "image": picture,
            **{name: pa.binary() for name in _LABELS},
            "graph": pa.string(),
        }
    )
    with files.atomic_path(_path(folder, split, first)) as temporary:
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, temporary, use_dictionary=False, write_page_checksum=True)


# Making shards in parallel. The workers are plain Python processes fed line by line: they need
# nothing of the caller's main module (a notebook, a script without a guard), and when the caller
# dies their input ends and so do they.


def _make_missing(folder: Path, shards: list[tuple[str, int, int, int]]) -> None:
    """Make the shards that are not there, given as (split, first, size, seed)."""
    from tqdm.auto import tqdm

    missing = [shard for shard in shards if not _path(folder, *shard[:2]).exists()]
    if not missing:
        return
    workers = min(os.cpu_count() or 1, len(missing))
    with tqdm(total=SHARD * len(missing), desc="making scenes", unit="scene") as bar:
        if workers == 1:
            for split, first, size, seed in missing:
                _write(folder, split, first, size, seed)
                bar.update(SHARD)
            return
        with ThreadPoolExecutor(workers) as threads, _workers(workers) as idle:
            jobs = [threads.submit(_order, idle, [str(folder), *shard]) for shard in missing]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update(SHARD)
            finally:
                for job in jobs:
                    job.cancel()


@contextmanager
def _workers(number: int) -> Iterator[SimpleQueue]:
    """A queue of ``number`` idle processes; they are ended when the block is left."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "from mmfusion_lib.data import scenes; scenes._serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the caller alone, which then ends them
        )
        for _ in range(number)
    ]
    idle: SimpleQueue = SimpleQueue()
    for process in processes:
        idle.put(process)
    try:
        yield idle
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _order(idle: SimpleQueue, order: list) -> None:
    """Have an idle process make one shard."""
    process = idle.get()
    try:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = ""
    finally:
        idle.put(process)
    if not answer:
        raise RuntimeError("A process that makes scenes died; its last words are above.")
    if problem := json.loads(answer):
        raise InputError(problem)


def _serve() -> None:
    """A worker's life: read orders from standard input, answer each with a problem or ``""``."""
    for line in sys.stdin:
        folder, split, first, size, seed = json.loads(line)
        try:
            _write(Path(folder), split, first, size, seed)
            problem = ""
        except InputError as error:
            problem = str(error)
        print(json.dumps(problem), flush=True)
