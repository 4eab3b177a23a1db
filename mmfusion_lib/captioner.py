"""Your own pictures with Prismer: learn your captions or answers, then write them for a folder.

Pictures lie in a folder, with ``captions.csv`` (image, caption) or ``answers.csv`` (image, question,
answer) beside them; see :mod:`mmfusion_lib.data.caption_table`. ::

    model = Captioner.fit("shop", "shop.safetensors")
    model.caption(["new.jpg"])
    Captioner.load("shop.safetensors").write("new", "new.csv")
    asked = Captioner.fit("shop", "asked.safetensors", task="answer")
    asked.answer(["new.jpg"], ["Is it ripe?"])

The model is the book's Prismer ``small``, by default without experts (PrismerZ): what was pretrained
reads pictures and words, all that joins the two is learnt from your rows. Hundreds of rows are a
beginning. Any other Prismer writes too: ``Captioner(Prismer.from_official(...)).write(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import caption_training, prismer_text, prismer_training, settings, trainable
from .caption_items import LONGEST, Picture, Pictures
from .caption_training import BATCH, CaptionerConfig, FitReport
from .checkpoints import weights_digest
from .data import caption_table
from .errors import InputError
from .experts import tensors
from .files import digest
from .prismer import Prismer
from .prismer_text import CAPTION_PROMPT

Say = Callable[[Tensor, list[str]], list[str]]  # latents (B, L, D), prompts -> B texts

LENGTHS = (5, 16)  # tokens of a published caption: of its 8 to 20, four are the prompt


class Written(NamedTuple):
    """What ``Captioner.write`` did: the file, its rows, and (picture, reason) of what was left out."""

    file: Path
    count: int
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.count} pictures written to {self.file}"]
        if not self.count:
            lines = ["No picture could be read; nothing was written."]
        return "\n".join([*lines, *(f"left out: {reason}" for _, reason in self.skipped)])


class Captioner:
    """A Prismer that opens files, with what it takes to write as its training texts are written.

    Args:
        model: with tokenizer and transform.
        config: of its training; None: it was trained elsewhere. Then only the experts in
            ``model.suppliers`` are run, where there are any.
        answers: those it was trained on.
        lengths: tokens of its shortest and longest text, end mark included.
        report: of the training.
    """

    def __init__(
        self,
        model: Prismer,
        config: CaptionerConfig | None = None,
        answers: Sequence[str] = (),
        lengths: tuple[int, int] = LENGTHS,
        report: FitReport | None = None,
    ):
        self.model = model.eval()
        self.config = config or CaptionerConfig()
        self.answers, self.lengths, self.report = tuple(answers), tuple(lengths), report

    @classmethod
    def fit(
        cls,
        data: str | Path,
        out: str | Path,
        *,
        task: str = "caption",
        start: str | Path | None = None,
        experts: Sequence[str] = (),
        labels: str | Path | None = None,
        resume: bool = True,
        **options: Any,
    ) -> Captioner:
        """Train on a table of your own and save what was learnt.

        A tenth of the pictures is held out to choose the epoch, where there are 20 or more. Checkpoint
        and log lie in a folder beside ``out``, named after it; the same call goes on from there.

        Args:
            data: a table, or the folder with its pictures.
            out: file to write, ending in .safetensors.
            task: "caption" or "answer".
            start: a file of ``save`` to go on from; None: pretrained parts that were never joined.
            experts: names of label maps to read beside the pictures.
            labels: folder of their label files (``python -m mmfusion_lib experts``); None: packaged
                experts make them first.
            resume: False forgets an interrupted training.
            options: fields of ``CaptionerConfig``: epochs, batch_size, lr, seed.

        Raises:
            InputError: whatever is wrong with table, pictures or labels, by file and row; a start that
                has other experts; data or settings that have changed since the training that is to be
                gone on with; or the disk is full: then the last checkpoint stays.
            KeyboardInterrupt: after Ctrl-C, when the step is finished and saved.
        """
        out = Path(out)
        if out.suffix != ".safetensors":
            raise InputError(f"{out} does not end in .safetensors: rename it.")
        if start is not None and Path(start).resolve() == out.resolve():
            raise InputError(f"{out} is the file to start from: give another one to write.")
        config = CaptionerConfig(task=task, experts=experts, **options)
        model, answers, lengths, report = caption_training.run(
            data, out, config, start, labels, resume
        )
        captioner = cls(model, config, answers, lengths, report)
        captioner.save(out)
        return captioner

    def save(self, path: str | Path) -> None:
        """Write what was trained as one safetensors file, how to use it as JSON in its metadata.

        Raises:
            InputError: the disk is full, or the folder cannot be written to.
        """
        meta = {
            "kind": caption_training.KIND,
            "config": asdict(self.config),
            "answers": self.answers,
            "lengths": self.lengths,
        }
        trainable.save_trainable(self.model, path, meta)

    @classmethod
    def load(cls, path: str | Path) -> Captioner:
        """Read what ``save`` wrote, onto the encoders of this machine.

        Raises:
            InputError: missing file, another kind of file, or other encoder weights here.
        """
        meta = caption_training.metadata(path)
        try:
            config = CaptionerConfig(**meta["config"])
            answers, lengths = meta["answers"], meta["lengths"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} comes from another version of this library ({error}): train it again."
            ) from error
        model = caption_training.build(config)
        trainable.load_trainable(model, path)
        return cls(model.to(settings.device()), config, answers, lengths)

    def caption(self, paths: Sequence[str | Path], labels: str | Path | None = None) -> list[str]:
        """A caption of each picture.

        Args:
            paths: of N pictures.
            labels: folder of label files, laid out as ``paths``, which are then relative; None:
                packaged experts run on the pictures, where the model has experts.

        Raises:
            InputError: no pictures, or one that cannot be read.
        """
        prompts = [CAPTION_PROMPT] * len(_listed(paths))
        return self._each(paths, prompts, labels, self._captions)

    def answer(
        self,
        paths: Sequence[str | Path],
        questions: Sequence[str] | str,
        candidates: Sequence[str] | None = None,
        labels: str | Path | None = None,
    ) -> list[str]:
        """The answer to a question about each picture.

        Args:
            paths: of N pictures.
            questions: one for all, or N.
            candidates: answers to choose from; None: those of the training; (): it is written freely.
            labels: as in ``caption``.

        Raises:
            InputError: as ``caption``; another number of questions; or one that is empty or too long.
        """
        count = len(_listed(paths))
        asked = [questions] * count if isinstance(questions, str) else list(questions)
        if len(asked) != count:
            raise InputError(
                f"There are {len(asked)} questions for {count} pictures: ask one of all, or one "
                "of each."
            )
        prompts = [self._question(question) for question in asked]
        say = self._answers(self.answers if candidates is None else candidates)
        return self._each(paths, prompts, labels, say)

    def write(
        self,
        folder: str | Path,
        file: str | Path,
        question: str | None = None,
        labels: str | Path | None = None,
    ) -> Written:
        """Caption every picture below a folder, or ask the same of each, and write a table of it.

        A picture that cannot be read is left out and reported. The table is what ``fit`` reads. A call
        that was stopped goes on where it was, given again; a picture that has changed is done anew.

        Args:
            folder: of the pictures.
            file: a new .csv, .tsv or .jsonl file.
            question: to ask; None: captions.
            labels: folder of label files for the pictures; None: as in ``caption``.

        Raises:
            InputError: no pictures, a file that is there already, a bad question, or a full disk.
        """
        from tqdm.auto import tqdm

        file = caption_table.check_new(file)
        names = caption_table.find_pictures(folder)
        prompt = CAPTION_PROMPT if question is None else self._question(question)
        say = self._captions if question is None else self._answers(self.answers)
        pictures = self._pictures(folder, labels)
        using = (
            weights_digest(self.model),
            self.lengths,
            self.answers,
            pictures.experts,
            str(labels),
        )
        kept = caption_table.Kept(file, digest(using, question))
        found: list[tuple[str, ...]] = []
        skipped: list[tuple[str, str]] = []
        with tqdm(total=len(names), unit="picture", leave=False, disable=None) as bar:
            for start in range(0, len(names), BATCH):
                some = names[start : start + BATCH]
                key = digest([(name, _look(pictures.folder / name)) for name in some])
                if key not in kept.parts:
                    kept.add(key, self._one_batch(pictures, some, prompt, say))
                texts, reasons = kept.parts[key]
                asked = () if question is None else (question,)
                found += [(name, *asked, text) for name, text in texts]
                skipped += [(name, reason) for name, reason in reasons]
                bar.update(len(some))
        if found:
            caption_table.write_rows(file, "caption" if question is None else "answer", found)
        kept.forget()
        return Written(file, len(found), tuple(skipped))

    def _one_batch(
        self, pictures: Pictures, names: Sequence[str], prompt: str, say: Say
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(name, text) of what can be read, (name, reason) of the rest."""
        opened: dict[str, Picture] = {}
        skipped = []
        for name in names:
            try:
                name.encode()
                opened[name] = pictures(name)
            except UnicodeEncodeError:
                skipped.append((name, f"{name!r} is no UTF-8 name: rename it."))
            except InputError as error:
                skipped.append((name, str(error)))
        if not opened:
            return [], skipped
        latents = self._encode(pictures, list(opened.values()))
        return list(zip(opened, say(latents, [prompt] * len(opened)))), skipped

    def _each(
        self,
        paths: Sequence[str | Path],
        prompts: Sequence[str],
        labels: str | Path | None,
        say: Say,
    ) -> list[str]:
        pictures, found = self._pictures("", labels), []
        for start in range(0, len(paths), BATCH):
            opened = [pictures(str(path)) for path in paths[start : start + BATCH]]
            found += say(self._encode(pictures, opened), list(prompts[start : start + BATCH]))
        return found

    def _pictures(self, folder: str | Path, labels: str | Path | None) -> Pictures:
        if labels is None and self.config.experts and not self.model.suppliers:
            from .experts.make_labels import load_expert

            self.model.suppliers = [load_expert(name) for name in self.config.experts]
        suppliers = self.model.suppliers if labels is None else ()
        return Pictures(self.model, folder, labels, suppliers)

    @torch.no_grad()
    def _encode(self, pictures: Pictures, opened: Sequence[Picture]) -> Tensor:
        """(B, L, D)."""
        batch = tensors.to(pictures.batch(opened), self.model.encoder.positions.device)
        return self.model.eval().encode(batch)

    def _captions(self, latents: Tensor, prompts: list[str]) -> list[str]:
        return [prismer_text.sentence(text) for text in self._free(latents, prompts, 1.0)]

    def _answers(self, candidates: Sequence[str]) -> Say:
        if not candidates:
            return lambda latents, prompts: self._free(latents, prompts, -1.0)
        choices = prismer_text.answer_ids(self.model.tokenizer, candidates)

        def choose(latents: Tensor, prompts: list[str]) -> list[str]:
            ids, mask = self._prompts(prompts, latents)
            scores = self.model.rank(latents, ids, choices, attention_mask=mask)  # (B, K)
            return [candidates[int(best)] for best in scores.argmax(1)]

        return choose

    def _free(self, latents: Tensor, prompts: list[str], length_penalty: float) -> list[str]:
        """Go on from prompts with as many tokens as the training texts have."""
        ids, mask = self._prompts(prompts, latents)
        shortest, longest = self.lengths
        told = mask.sum(1).tolist()  # tokens of each prompt
        written = self.model.generate(
            latents, ids, attention_mask=mask, length_penalty=length_penalty,
            min_length=[n + shortest - 1 for n in told], max_length=[n + longest for n in told],
        )  # fmt: skip
        return [self.model.tokenizer.decode(row[ids.shape[1] :]).strip() for row in written]

    def _prompts(self, prompts: list[str], latents: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = prismer_text.prompt_ids(self.model.tokenizer, prompts)
        return ids.to(latents.device), mask.to(latents.device)

    def _question(self, question: str) -> str:
        caption_table.check_question(question)
        asked = prismer_text.clean_question(question)
        count = len(prismer_training.prompt_tokens(self.model.tokenizer, asked))
        if count > LONGEST:
            raise InputError(f"The question has {count} tokens, more than {LONGEST}: shorten it.")
        return asked


def _look(path: Path) -> tuple[int, int] | None:
    """Bytes of a file, and when they were last changed; None where there are none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _listed(paths: Any) -> Sequence[Any]:
    if isinstance(paths, str | Path) or not len(paths):
        raise InputError(f"{str(paths)!r} is no list of pictures: give a list of one path or more.")
    return paths
