"""The command line: ``python -m mmfusion_lib COMMAND``.

Nothing heavy is imported before a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .errors import InputError


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="python -m mmfusion_lib",
        description="Multimodal fusion, taught and reproduced: experiments, data and own models.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    add("env", "Check Python, device, memory, disk, data, weights and package index.")

    run = add("run", "Run a recipe, or go on with one that was interrupted.")
    run.add_argument("recipe", help="name of the recipe; `records` lists them")
    run.add_argument("--scale", help="smoke, lab or paper (default: MMFUSION_SCALE, or by device)")
    run.add_argument("--seeds", type=int, nargs="+", help="replace the recipe's seeds")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace a setting, as in model=prismer-large or train.lr=1e-4; repeat the option",
    )
    run.add_argument("--publish", action="store_true", help="write the record to book/results")

    lab = add("lab", "Run lab recipes without a current record, most valuable first.")
    lab.add_argument("--minutes", type=float, required=True, help="start nothing that ends later")

    records = add("records", "Show recipes and their records, or the claims and their verdicts.")
    records.add_argument(
        "what",
        nargs="?",
        default="status",
        help="status, verdicts, claims[:SOURCE][:CHAPTER], grid:BEGINNING, commands, reasons",
    )

    card = add("card", "Regenerate the numbers of a data card, or check them.")
    card.add_argument("name", help="a set of data_cards: scenes, food101, coco, ...")
    card.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")

    build = add("build", "Fetch a public data set, or take your download, and convert it.")
    build.add_argument("name", help="figures, groceries or mmimdb")
    build.add_argument("--out", required=True, help="folder to write to; use it as MMFUSION_DATA")
    build.add_argument("--source", help="of mmimdb: the file that you downloaded")

    fit = add("fit", "Train a classifier on your own images and texts.")
    fit.add_argument("data", help="CSV or JSONL table, or a folder with one sub-folder a class")
    fit.add_argument("--out", required=True, help="file to write, ending in .safetensors")
    fit.add_argument("--model", default="probe", help="probe (default), or pmf: images with texts")
    fit.add_argument("--epochs", type=int, help="passes over the training part, of pmf")
    fit.add_argument("--image-column", default="image")
    fit.add_argument("--text-column", default="text")
    fit.add_argument("--label-column", default="label")
    fit.add_argument("--seed", type=int, default=0, help="of the split, and of pmf's training")

    predict = add("predict", "Classify images or texts with a saved classifier.")
    predict.add_argument("model", help="file that `fit` wrote")
    predict.add_argument("images", nargs="*", help="image files, in order")
    predict.add_argument("--text", action="append", help="one text an item; repeat the option")

    tune = add("tune", "Train a captioner on your own pictures and captions, or go on training it.")
    tune.add_argument("data", help="folder with captions.csv (or answers.csv), or such a table")
    tune.add_argument("--out", required=True, help="file to write, ending in .safetensors")
    tune.add_argument("--task", default="caption", help="caption (default), or answer: questions")
    tune.add_argument("--start", help="file that `tune` wrote, to go on from")
    tune.add_argument("--epochs", type=int, help="passes over the training part")
    tune.add_argument("--batch", type=int, help="rows a step")
    tune.add_argument("--experts", default="", help="label maps to read too, as in edge")
    tune.add_argument("--labels", help="folder of their files (default: they are made first)")
    tune.add_argument("--seed", type=int, default=0, help="of new weights, split and order")
    tune.add_argument("--no-resume", action="store_true", help="forget an interrupted training")

    caption = add("caption", "Caption all pictures of a folder, or ask a question about each.")
    caption.add_argument("folder", help="pictures at any depth")
    caption.add_argument("--model", required=True, help="file that `tune` wrote")
    caption.add_argument("--out", required=True, help="new .csv, .tsv or .jsonl file")
    caption.add_argument("--question", help="ask this instead")
    caption.add_argument("--labels", help="folder of the label files, for a model with experts")

    experts = add("experts", "Make expert labels for a folder of pictures, or go on making them.")
    experts.add_argument("folder", help="pictures at any depth: .jpg, .jpeg, .png, .webp")
    experts.add_argument("--experts", required=True, help="names, as in edge,obj_detection")
    experts.add_argument("--to", required=True, help="folder to write the labels to")
    experts.add_argument("--source", default="packaged", help="packaged (no hub), or hub")
    experts.add_argument("--batch", type=int, default=8, help="pictures an expert gets at once")
    experts.add_argument("--workers", type=int, help="processes (default: one a GPU, or one)")
    experts.add_argument("--sheet", type=int, default=0, help="draw the first so many pictures")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 on bad input, 130 on Ctrl-C)."""
    arguments = parser().parse_args(argv)
    try:
        return globals()[f"_{arguments.command}"](arguments) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or "Interrupted: run the same command again to go on.", file=sys.stderr)
        return 130


def _env(_: argparse.Namespace) -> int:
    from . import env

    return env.main()


def _run(arguments: argparse.Namespace) -> None:
    from . import runs

    changes = dict(_setting(text) for text in arguments.set)
    if arguments.seeds:
        changes["seeds"] = arguments.seeds
    record = runs.run(arguments.recipe, arguments.scale, publish=arguments.publish, **changes)
    if not runs.is_first():
        return
    print(f"{record.title}\n{record.caption()}")
    for name in [*record.results, *record.comparisons]:
        print(f"  {name:40s} {record.text(name)}")


def _setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``; the value is read as JSON where it is that, and is a word elsewhere."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(
            f"--set {text!r} is not NAME=VALUE: write for instance --set train.lr=1e-4."
        )
    with suppress(json.JSONDecodeError):
        return name, json.loads(value)
    return name, value


def _lab(arguments: argparse.Namespace) -> None:
    from . import runs

    made = runs.lab(arguments.minutes, on_start=lambda recipe: print(f"running {recipe.name}"))
    waiting = ", ".join(recipe.name for recipe in runs.pending()) or "none"
    print(f"{len(made)} records written; still pending: {waiting}")


def _records(arguments: argparse.Namespace) -> None:
    from . import records

    print(records.markdown(arguments.what))


def _card(arguments: argparse.Namespace) -> int:
    from . import cards

    if not arguments.check:
        cards.update(arguments.name)
        if arguments.name in cards.PAPER_SETS:
            print(cards.compare(arguments.name))
        return 0
    differences = cards.check(arguments.name)
    print("\n".join(differences) or f"The card of {arguments.name} is up to date.")
    return 1 if differences else 0


def _build(arguments: argparse.Namespace) -> None:
    if arguments.name == "mmimdb":
        from .data import build_mmimdb

        if not arguments.source:
            raise InputError("mmimdb is built from your download: give the file with --source.")
        build_mmimdb.build(arguments.out, arguments.source)
        return
    if arguments.source:
        raise InputError(f"--source is for mmimdb: {arguments.name} is fetched; leave it out.")
    if arguments.name == "figures":
        from .data.build_figures import build
    elif arguments.name == "groceries":
        from .data.build_groceries import build
    else:
        raise InputError(
            f"Unknown data set {arguments.name!r}: build figures, groceries or mmimdb."
        )
    build(arguments.out)


def _fit(arguments: argparse.Namespace) -> None:
    more = {}
    if arguments.model == "probe":
        if arguments.epochs is not None:
            raise InputError("A probe has no --epochs: leave it out, or add --model pmf.")
        from .classifier import fit_table
    elif arguments.model == "pmf":
        from .pmf_classifier import PMFClassifierConfig, fit_table

        epochs = {} if arguments.epochs is None else {"epochs": arguments.epochs}
        more = {"config": PMFClassifierConfig(seed=arguments.seed, **epochs)}
    else:
        raise InputError(f"Unknown model {arguments.model!r}: use probe or pmf.")
    result = fit_table(
        arguments.data,
        arguments.out,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
        seed=arguments.seed,
        **more,
    )
    print(result)


def _predict(arguments: argparse.Namespace) -> None:
    from .pmf_classifier import load

    model = load(arguments.model)
    images, texts = arguments.images or None, arguments.text
    prediction = model.predict(images, texts)
    names = images or texts
    for name, label, row in zip(names, prediction.labels, prediction.probabilities):
        print(f"{name}\t{label}\t{row.max():.3f}")


def _tune(arguments: argparse.Namespace) -> None:
    from .captioner import Captioner

    options = {"epochs": arguments.epochs, "batch_size": arguments.batch}
    captioner = Captioner.fit(
        arguments.data,
        arguments.out,
        task=arguments.task,
        start=arguments.start,
        experts=_names(arguments.experts),
        labels=arguments.labels,
        resume=not arguments.no_resume,
        seed=arguments.seed,
        **{name: value for name, value in options.items() if value is not None},
    )
    print(captioner.report)


def _caption(arguments: argparse.Namespace) -> int:
    from .captioner import Captioner
    from .data.caption_table import check_new, find_pictures

    find_pictures(arguments.folder)  # what is wrong with these two is said before a model is loaded
    check_new(arguments.out)
    written = Captioner.load(arguments.model).write(
        arguments.folder, arguments.out, question=arguments.question, labels=arguments.labels
    )
    print(written)
    return int(not written.count)


def _names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _experts(arguments: argparse.Namespace) -> int:
    from functools import partial

    from .experts.make_labels import load_expert, make_labels

    summary = make_labels(
        arguments.folder,
        arguments.to,
        _names(arguments.experts),
        batch=arguments.batch,
        workers=arguments.workers,
        load=partial(load_expert, source=arguments.source),
        sheets=arguments.sheet,
    )
    print(summary)
    return summary.status


if __name__ == "__main__":
    sys.exit(main())
