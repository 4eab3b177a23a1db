"""Records and claims: what is written is what is read, and verdicts follow from the numbers."""

import re
from pathlib import Path

import pytest

from mmfusion_lib import InputError, records
from mmfusion_lib.records import Claim, Record
from mmfusion_lib.train_config import TrainResult

BOOK = Path(__file__).parents[1] / "book"


def make(**changes) -> Record:
    fields = {
        "recipe": "toy",
        "scale": "lab",
        "title": "Toy",
        "seeds": [0, 1, 2],
        "trials": 5,
        "settings": {},
        "results": {"a": records.spread([0.5, 0.6, 0.7])},
        "comparisons": {"a - b": {"difference": 0.1, "low": 0.02, "high": 0.2}},
        "curves": {},
        "seconds": 60.0,
        "peak_bytes": 1,
        "library": "x",
    }
    return Record(**(fields | changes))


def claim(**changes) -> Claim:
    fields = {
        "id": "c",
        "source": "ours",
        "chapter": "02",
        "claim": "a is 0.6",
        "where": "here",
        "metric": "accuracy",
        "data": "toy",
        "provenance": "ours",
        "value": 0.62,
        "tolerance": 0.03,
        "recipe": "toy",
        "result": "a",
    }
    return Claim(**(fields | changes))


def test_a_record_survives_the_file(tmp_path):
    record = make()
    record.save(tmp_path)
    assert records.load("toy", folder=tmp_path) == record
    assert records.load_all(tmp_path) == [record]
    assert records.load("other", folder=tmp_path) is None
    assert record.text("a") == "0.600 ± 0.100"  # sample deviation of 0.5, 0.6, 0.7
    assert record.text("a - b") == "+0.100 [0.020, 0.200]"
    with pytest.raises(InputError, match=r"no result 'z'.*a, a - b"):
        record.text("z")


def test_what_training_cost():
    result = TrainResult([], None, 5, 10.0, 4.0, 0.25, 100, "cpu")
    unit = records.cost(result)
    assert unit.pop("peak_bytes") == 100
    found = records.costs("ours", [unit, {**unit, "seconds": 20.0}])
    assert found["ours-seconds"]["values"] == [10, 20]
    assert found["ours-rate"]["mean"] == 4 and found["ours-data-wait"]["mean"] == 0.25
    assert list(records.costs("probe", [{"seconds": 1.0, "hits": "10"}])) == ["probe-seconds"]


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "toy.lab.json").write_text('{"recipe": "toy"}')
    with pytest.raises(InputError, match=r"toy\.lab\.json is not a run record"):
        records.load("toy", folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),  # |0.60 - 0.62| <= 0.03
        ({"tolerance": 0.01}, "not reproduced"),
        ({"value": None, "tolerance": None, "least": 0.6}, "reproduced"),
        ({"value": None, "tolerance": None, "least": 0.61}, "not reproduced"),
        ({"result": "a - b"}, "reproduced"),  # the interval lies above 0
        ({"result": "a - b", "least": 0.01}, "reproduced"),  # and above 0.01, but not above 0.03
        ({"result": "a - b", "least": 0.03}, "not reproduced"),
        ({"recipe": "absent"}, "pending"),
        ({"recipe": "", "why": "no data"}, "not attempted: no data"),
    ],
)
def test_verdicts(tmp_path, changes, verdict):
    make().save(tmp_path)
    assert claim(**changes).verdict(tmp_path)[1] == verdict


def test_an_interval_that_touches_zero_is_not_reproduced(tmp_path):
    make(comparisons={"a - b": {"difference": 0.1, "low": -0.01, "high": 0.2}}).save(tmp_path)
    assert claim(result="a - b").verdict(tmp_path)[1] == "not reproduced"
    assert claim(result="a - b", least=-0.02).verdict(tmp_path)[1] == "reproduced"  # no worse


def test_bad_claims_are_refused(tmp_path):
    with pytest.raises(InputError, match="provenance 'hearsay'"):
        claim(provenance="hearsay")
    with pytest.raises(InputError, match="either a recipe or a 'why'"):
        claim(why="both")
    path = tmp_path / "claims.yaml"
    path.write_text("- {id: a, nonsense: 1}\n")
    with pytest.raises(InputError, match="Entry 1 of"):
        records.claims(path)
    path.write_text("- [unclosed\n")
    with pytest.raises(InputError, match="not valid YAML"):
        records.claims(path)


CLAIMS = """
- &a {id: x-a-cider, source: PMF, chapter: "01", claim: Model A, where: Table 1, metric: CIDEr,
   data: COCO, provenance: paper, value: 1.50, why: no data}
- {<<: *a, id: x-a-bleu, metric: BLEU-4, value: 40.0}
- {<<: *a, id: x-b-bleu, claim: Model B, metric: BLEU-4, value: 2, where: Table 2}
- &b {id: ours-a, source: ours, chapter: "02", claim: a is large, where: here, metric: accuracy,
   data: toy, provenance: ours, value: 0.6, tolerance: 0.1, recipe: toy, result: a}
- {<<: *b, id: ours-b, value: 0.9}
- {<<: *b, id: pending, source: PMF, recipe: absent}
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Six claims and the record of ``make``, in place of the book's."""
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    make().save(tmp_path / "runs")
    monkeypatch.setattr(records, "results_root", lambda: tmp_path)


def test_claims_by_source_and_by_chapter(made):
    def rows(what: str) -> list[str]:
        return records.markdown(what).splitlines()[2:]

    assert len(rows("claims")) == 6
    assert len(rows("claims:PMF")) == 4  # three of the first chapter, one of the second
    assert len(rows("claims:02")) == 3
    assert rows("claims:ours:02") == [
        "| a is large | ours | accuracy; toy | 0.6 ± 0.1 | 0.600 ± 0.100 | reproduced |",
        "| a is large | ours | accuracy; toy | 0.9 ± 0.1 | 0.600 ± 0.100 | not reproduced |",
    ]


def test_verdicts_are_counted(made):
    assert records.markdown("verdicts").splitlines()[2:] == [
        "| PMF | 0 | 0 | 1 | 3 | 4 |",
        "| ours | 1 | 1 | 0 | 0 | 2 |",
    ]


def test_a_grid_has_a_row_a_metric_and_a_column_a_model(made):
    assert records.markdown("grid:x-").splitlines() == [
        "| measured | Model A: Table 1 (paper) | Model B: Table 2 (paper) |",
        "| --- | --- | --- |",
        "| CIDEr; COCO | 1.5 | - |",
        "| BLEU-4; COCO | 40.0 | 2 |",  # digits as they are written
    ]


def test_reasons_are_grouped(made):
    rows = records.markdown("reasons").splitlines()[2:]
    assert rows == ["| no data | 3 | PMF, Table 1; PMF, Table 2 |"]


def test_what_has_not_run_has_a_command(made):
    from mmfusion_lib.recipes import ALL

    text = records.markdown("commands")
    for recipe in ALL:
        scale = "lab" if "lab" in recipe.scales else "paper"
        assert f"`python -m mmfusion_lib run {recipe.name} --scale {scale} --publish`" in text
    records.results_root().joinpath("runs/toy.lab.json").rename(
        records.results_root() / "runs" / f"{ALL[0].name}.lab.json"
    )
    assert f" run {ALL[0].name} " not in records.markdown("commands")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("claim", "Unknown table 'claim'"),
        ("status:01", "Unknown table 'status:01'"),
        ("grid", "Unknown table 'grid'"),
        ("claims:99", "No claim belongs in the table 'claims:99'"),
        ("claims:ours:01", "No claim belongs in the table 'claims:ours:01'"),
        ("grid:y-", "No claim belongs in the table 'grid:y-'"),
    ],
)
def test_tables_that_there_are_not(made, what, message):
    with pytest.raises(InputError, match=message):
        records.markdown(what)


def test_committed_claims_point_at_recipes_and_results():
    from mmfusion_lib.recipes import ALL

    names = {recipe.name for recipe in ALL}
    for entry in records.claims():
        if not entry.recipe:
            continue
        assert entry.recipe in names, entry.id
        record = records.load(entry.recipe)
        if record is not None:
            assert record.text(entry.result)
            judged = entry.value is not None or entry.least is not None
            assert judged or entry.result in record.comparisons, entry.id


def test_committed_records_hold_enough_seeds():
    # Nothing random is counted or derived; of an encoder or captioner that is published there is one.
    single = {"scene-encoder"}
    for record in records.load_all():
        if not record.seeds or record.recipe in single:
            continue
        assert len(record.seeds) >= 3
        for name, result in record.results.items():
            counted = result["unit"] in ("parameters", "MiB per sample", "bound")  # of no seed
            counted = counted or name.startswith("zero-shot-")
            assert counted or len(result["values"]) >= 3, name


def test_pages_print_only_numbers_that_are_claimed_or_recorded():
    """Any decimal fraction or percentage in prose must be in a claim or a record, as rounded."""
    known = _known_numbers()
    for name, text in _prose():
        for number in re.findall(r"(?<![\w.,/-])\d+\.\d+(?![\w.]|\.\d)(?:\s?%)?|\b\d+\s?%", text):
            digits = number.rstrip("% \xa0")
            places = len(digits.partition(".")[2])
            scale = 100 if number.endswith("%") else 1
            near = any(abs(round(scale * k, places) - float(digits)) < 1e-9 for k in known)
            assert near, f"{name} prints {number!r}, which is in no claim and no record"


def _known_numbers() -> list[float]:
    found = [0.95]  # the level of every interval
    for entry in records.claims():
        found += [x for x in (entry.value, entry.tolerance, entry.least) if x is not None]
        found += [float(n) for n in re.findall(r"\d+\.\d+|\d+", entry.claim)]
        found += [float(n) / 100 for n in re.findall(r"(\d+\.?\d*)\s?%", entry.claim)]
    for record in records.load_all():
        for result in record.results.values():
            found += [result["mean"], result["std"], *result["values"]]
        for comparison in record.comparisons.values():
            found += list(comparison.values())
    return found


def _prose():
    """(name, text) of every page and Markdown cell, without code, mathematics and tables of data."""
    import json

    pages = [path for path in BOOK.glob("*.md") if path.name not in {"api.md"}]
    texts = [(path.name, path.read_text()) for path in pages]
    for path in [*BOOK.glob("*.ipynb"), *BOOK.glob("exercises/*.ipynb")]:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                texts.append((path.name, "".join(cell["source"])))
    for name, text in texts:
        # Versions and references are names, not results.
        names = r"(?i)\b(python|cc by|figure|table|section|pytorch|transformers|version) \d[\d.]*"
        for pattern in (
            names,
            r"```.*?```",
            r":::.*?:::",
            r"`[^`]*`",
            r"\$\$.*?\$\$",
            r"\$[^$]*\$",
        ):
            text = re.sub(pattern, " ", text, flags=re.DOTALL)
        yield name, text
