"""The report shows the numbers of the runs' own files, as text, in a self-contained file."""

import html
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from pipeline.artefacts import tables
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.predictions import COLUMNS, Predictions
from pipeline.artefacts.run import Run
from pipeline.artefacts.selection import SelectionTable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.provenance import Json, short
from stages import compare, train_student
from stages.config.file import with_overrides
from stages.config.root import CompareConfig, Config
from stages.config.sweep import SweepConfig
from stages.report import write as report
from stages.report.answers import calibration_chart, on_test
from stages.report.charts import influence_chart
from stages.report.page import Page, render
from stages.report.samples import explorer
from stages.report.subjects import Subjects, drawn, references
from stages.report.tables import comparison_section
from stages.report.teacher import teacher_of
from stages.report.write import ReportSettings
from stages.run_groups import Group, find_runs
from stages.sweep import run as sweep
from stages.training.predictions import open_predictions
from tests.support.browser import Visit, chromium
from tests.support.image_folders import textures
from tests.support.workspaces import edited as edited_record
from tests.support.workspaces import linked_copy

HOSTILE = (
    "<script>alert(1)<",
    "\"quoted\" & 'quoted' <img src=x onerror=alert(2)>",
    "very long " * 20,
    "$\\frac{1}{0}$",
)
VARIANTS = {
    "plain": ("train_student.distil=false",),
    "KD": ("select.revision=none", "select.strategy=all"),
    "LR + DS <b>": ("select.revision=all", "select.fraction=0.6"),
}


@pytest.fixture(scope="module")
def compared(digits: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three students under two seeds."""
    workspace = linked_copy(digits.workspace, tmp_path_factory.mktemp("report") / "a <i>work")
    config = with_overrides(digits, [f"workspace={workspace}", "train_student.epochs=2"])
    settings = CompareConfig(seeds=(0, 1), variants=VARIANTS)
    config = config.model_copy(update={"compare": settings})
    compare.execute(config)
    return config


@pytest.fixture(scope="module")
def page(compared: Config) -> Path:
    return report.execute([compared.workspace], ReportSettings())


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def data_of(text: str) -> dict[str, Json]:
    """Return the data that the script of the page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    value: dict[str, Json] = json.loads(found.group(1))
    return value


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells of the first table by the name of the row, without the notes in them."""
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    rows = re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th>(.*?)</tr>', body, re.DOTALL)
    return {name: [cell for cell, _ in cells_of(cells)] for name, cells in rows}


def cells_of(row: str) -> list[tuple[str, bool]]:
    """Text of the cells of a row, and whether it is marked as the best of its column."""
    found = re.findall(r"<td( class=\"best\")?>(.*?)(?: <small.*?)?</td>", row)
    return [(cell, bool(best)) for best, cell in found]


def measurements_of(text: str) -> dict[str, list[str]]:
    """Cells of the folded table of all measurements."""
    return rows_of(text[text.index("All measurements") :])


def subjects_of(config: Config, groups: list[Group]) -> Subjects:
    """These students alone."""
    dataset = Dataset.open(config.data_folder)
    return Subjects(
        groups=groups,
        compared=[],
        teacher=None,
        answers=None,
        num_test=dataset.eval.num_samples,
        num_held_out=len(dataset.record.held_out),
        class_names=dataset.record.class_names,
    )


def runs_of(config: Config, *, method: str | None, distilled: range | None = None) -> list[Run]:
    paths = sorted(config.runs_folder.glob("student-*"))
    runs = [Run.open(path) for path in paths]
    own = [run for run in runs if run.result.method == method]
    if distilled is not None:
        own = [run for run in own if run.result.num_distilled in distilled]
    return sorted(own, key=lambda run: run.result.seed)


def table_of(config: Config) -> SelectionTable:
    """The table of the student with influence."""
    tables = [
        SelectionTable.open(path)
        for path in config.selections_folder.glob("*.parquet")
        if not path.name.endswith(".scores.parquet")
    ]
    (found,) = [table for table in tables if table.record.identity.fraction == 0.6]
    return found


def test_the_table_has_the_numbers_of_the_runs(compared, text):
    assert "3 students of one teacher, 6 runs" in text
    rows = rows_of(text)
    assert list(rows) == ["plain", "KD", "LR + DS &lt;b&gt;", "teacher"]
    num_training = runs_of(compared, method=None)[0].result.num_training_samples
    own = {
        "plain": runs_of(compared, method=None),
        "KD": runs_of(compared, method="kd", distilled=range(num_training, num_training + 1)),
        "LR + DS &lt;b&gt;": runs_of(compared, method="kd", distilled=range(num_training)),
    }
    for name, runs in own.items():
        assert len(runs) == 2
        tests = [100 * run.result.test_accuracy for run in runs]
        assert rows[name][0] == f"{fmean(tests):.2f} ± {stdev(tests):.2f}"
        assert rows[name][-1] == "2"
        best = [100 * run.result.held_out_accuracy_best for run in runs]
        assert measurements_of(text)[name][1] == f"{fmean(best):.2f} ± {stdev(best):.2f}"
    pairs = zip(own["LR + DS &lt;b&gt;"], own["plain"], strict=True)
    gains = [100 * (one.result.test_accuracy - other.result.test_accuracy) for one, other in pairs]
    half = scipy.stats.t.ppf(0.975, 1) * stdev(gains) / 2**0.5
    expected = f"{fmean(gains):+.2f} [{fmean(gains) - half:+.2f}, {fmean(gains) + half:+.2f}]"
    assert rows["LR + DS &lt;b&gt;"][1] == expected
    assert rows["plain"][1] == "-"


def test_a_workspace_below_the_present_folder_is_named_from_there(compared, monkeypatch):
    workspace = compared.workspace
    runs = sorted(compared.runs_folder.glob("student-*"))
    assert find_runs(runs, []).workspace == workspace
    monkeypatch.chdir(workspace.parent)
    assert find_runs(runs, []).workspace == Path(workspace.name)
    assert find_runs([path.relative_to(Path.cwd()) for path in runs], []).workspace == Path(
        workspace.name
    )


def test_samples_are_those_of_the_table(compared, text):
    data, table = data_of(text), table_of(compared)
    frame = table.frame.set_index("sample_index")
    assert 50 < len(data["samples"]) <= 200
    for sample in data["samples"]:
        row = frame.loc[sample["index"]]
        assert sample["label"] == row["label"]
        assert sample["right"] == row["teacher_correct"]
        assert sample["selected"] == row["selected"]
        assert sample["influence"] == row["dloss_undistill"]
        assert sample["beta"] == float(row["beta"])
        top, share = max(sample["teacher"], key=lambda pair: pair[1])
        assert top == row["teacher_class"]
        assert share == pytest.approx(row["p_max"], abs=1e-5)
        assert dict(map(tuple, sample["teacher"]))[row["label"]] == pytest.approx(
            row["p_target"], abs=1e-5
        )
        assert not row["held_out"]


def test_revised_labels_are_what_students_learn(compared, text):
    table = table_of(compared)
    soft = table.record.identity.soft_labels[:12]
    views = sorted((compared.selections_folder / f"{soft}.soft" / "c").glob("*/0/0"))
    assert len(views) == 2
    shape = (len(table.frame), 10)
    mean = np.mean([np.fromfile(path, "<f2").reshape(shape).astype(float) for path in views], 0)
    for sample in data_of(text)["samples"]:
        shown = dict(map(tuple, sample["revised"]))
        assert sample["label"] in shown
        for klass, share in shown.items():
            assert share == pytest.approx(mean[sample["index"], klass], abs=1e-6)


def test_presets_ask_the_whole_table(compared, text):
    data, frame = data_of(text), table_of(compared).frame
    frame = frame[~frame["held_out"]]
    presets = {preset["name"]: preset for preset in data["presets"]}
    indices = [sample["index"] for sample in data["samples"]]

    def members(name):
        return [indices[position] for position in presets[name]["members"]]

    scores = frame.set_index("sample_index")["dloss_undistill"]
    assert members("Most helpful")[0] == scores.idxmax()
    assert members("Most harmful")[0] == scores.idxmin()
    helpful = scores[members("Most helpful")].to_numpy()
    assert (np.diff(helpful) <= 0).all()
    assert len(helpful) == min(40, (scores > 0).sum())
    assert helpful[-1] >= np.sort(scores)[-len(helpful)]
    wrong = frame[~frame["teacher_correct"]]
    assert presets["Teacher wrong"]["total"] == len(wrong)
    assert set(members("Teacher wrong")) <= set(wrong["sample_index"])
    assert presets["Not distilled"]["total"] == (~frame["selected"]).sum()
    assert presets["Likely label errors"]["total"] == frame["label_issue"].sum()


def test_thumbnails_are_the_images(compared, text):
    import base64
    import io

    from PIL import Image

    from pipeline.data.loaders import BatchLoader

    dataset = Dataset.open(compared.data_folder)
    (batch,) = (b.images.clone() for b in BatchLoader(dataset.train, batch_size=4096).view(0))
    for sample in data_of(text)["samples"]:
        kind, data = sample["image"].split(";base64,")
        assert kind == "data:image/png"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert np.array_equal(shown, batch[sample["index"]].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_finds_nothing_to_complain_of_and_asks_for_nothing(browser, page, width, scheme):
    visit = Visit(browser, page, width=width, scheme=scheme)
    assert visit.cards()
    assert visit.complaints == []
    assert visit.asked_for == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "images => images.filter(i => !i.complete || i.naturalWidth === 0).length"
    visit.page.wait_for_load_state("networkidle")
    assert visit.page.eval_on_selector_all("#grid img", broken) == 0


def test_a_phone_shows_charts_whole_and_legible(browser, page):
    visit = Visit(browser, page, width=390)
    edges = "all => all.map(c => [c.scrollWidth - c.clientWidth, c.getBoundingClientRect().right])"
    charts = visit.page.eval_on_selector_all(".chart", edges)
    assert len(charts) > 8
    assert all(hidden <= 0 and right <= 390 for hidden, right in charts)
    sizes = visit.page.eval_on_selector_all(
        ".chart text",
        """all => all.map(t => parseFloat(getComputedStyle(t).fontSize)
            * t.ownerSVGElement.getBoundingClientRect().width
            / t.ownerSVGElement.viewBox.baseVal.width)""",
    )
    assert min(sizes) > 9


def test_the_verdict_comes_first_and_the_provenance_last(browser, page):
    visit = Visit(browser, page, width=1280)
    assert "on the test images" in visit.page.inner_text(".verdict")
    tops = [
        visit.page.locator(place).bounding_box()["y"]
        for place in (".verdict", ".tiles", "#s1", "#samples", "#provenance")
    ]
    assert tops == sorted(tops)
    assert len(visit.page.query_selector_all(".tile")) == 3
    assert visit.page.query_selector_all("details[open]") == []
    assert not visit.page.is_visible("text=data set")
    visit.page.click("#provenance summary")
    assert visit.page.is_visible("#provenance >> text=data set")


def test_the_table_can_be_downloaded(browser, compared, page):
    visit = Visit(browser, page, width=1280)
    with visit.page.expect_download() as waiting:
        visit.page.click("text=Download the table as CSV")
    assert waiting.value.suggested_filename == "students.csv"
    table = pd.read_csv(waiting.value.path()).set_index("student")
    assert list(table.index) == ["plain", "KD", "LR + DS <b>", "teacher"]
    accuracies = [run.result.test_accuracy for run in runs_of(compared, method=None)]
    assert table.loc["plain", "test_accuracy_mean"] == pytest.approx(fmean(accuracies), rel=1e-12)
    assert visit.complaints == []


def test_one_colour_is_one_student_on_the_whole_page(text):
    keyed = re.findall(r'<(?:li|th)[^>]* style="--key: ([^"]+)">([^<:]+)', text)
    colours: dict[str, set[str]] = {}
    for colour, name in keyed:
        colours.setdefault(name, set()).add(colour)
    assert colours["teacher"] == {"currentColor"}
    own = [colours[name] for name in ("plain", "KD", "LR + DS &lt;b&gt;")]
    assert all(len(found) == 1 for found in own)
    assert len(set.union(*own)) == 3


def test_the_page_has_its_date_its_command_and_a_link_to_the_documentation(compared, page, text):
    command = re.search(r"<code>(.*?)</code>", text)
    assert command is not None
    assert html.unescape(command[1]) == shlex.join(["heartcut", "report", str(compared.workspace)])
    assert re.search(r"Written on \d+ \w+ \d{4} by", text)
    link = re.search(r'<a href="([^"]+)">docs/report.md</a>', text)
    assert link is not None
    assert (page.parent / unquote(link[1])).resolve().is_file()


def test_the_command_has_every_option_but_the_output(compared, tmp_path, monkeypatch):
    monkeypatch.chdir(compared.workspace.parent)
    settings = ReportSettings(output=tmp_path / "r.html", baselines=("KD",), thumbnails=7)
    text = report.execute([compared.workspace], settings).read_text()
    command = re.search(r"<code>(.*?)</code>", text)
    assert html.unescape(command[1]) == (
        f"heartcut report '{compared.workspace.name}' --baseline KD --thumbnails 7"
    )


def test_filters_and_sorting_work(browser, page, text):
    samples = {sample["index"]: sample for sample in data_of(text)["samples"]}
    visit = Visit(browser, page, width=1280)
    visit.page.click("text=Most harmful")
    everything = visit.cards()
    assert everything == sorted(everything, key=lambda index: samples[index]["influence"])
    visit.choose("teacher", "1")
    assert visit.cards() == [index for index in everything if samples[index]["right"]]
    visit.choose("teacher", "0")
    assert visit.cards() == [index for index in everything if not samples[index]["right"]]
    visit.choose("teacher", "")
    visit.choose("sort", "beta")
    by_beta = [samples[index]["beta"] for index in visit.cards()]
    assert by_beta == sorted(by_beta)
    visit.page.check("#reverse")
    assert [samples[index]["beta"] for index in visit.cards()] == by_beta[::-1]
    label = samples[everything[0]]["label"]
    visit.choose("class", str(label))
    assert visit.cards()
    assert {samples[index]["label"] for index in visit.cards()} == {label}
    visit.choose("selected", "1")
    assert all(samples[index]["selected"] for index in visit.cards())
    assert visit.complaints == []


def test_a_click_sorts_a_table(browser, page):
    visit = Visit(browser, page, width=1280)

    first = "#s1 > .scroll"

    def column(number):
        rows = f"rows => rows.map(row => parseFloat(row.cells[{number}].textContent))"
        return visit.page.eval_on_selector_all(f"{first} tbody tr", rows)

    visit.page.click(f"{first} thead th:nth-child(2) button")
    assert column(1) == sorted(column(1), reverse=True)
    visit.page.click(f"{first} thead th:nth-child(2) button")
    assert column(1) == sorted(column(1))
    minus = f"{first} thead th:nth-child(3) button"
    for _ in range(2):  # text comes last in both directions
        visit.page.click(minus)
        cells = visit.page.eval_on_selector_all(
            f"{first} tbody tr", "rows => rows.map(row => row.cells[2].textContent)"
        )
        assert cells.index("-") == len(cells) - 1


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of images whose classes are called what an attacker would call them."""
    from PIL import Image

    from stages import cache_teacher, prepare, select, train_student, train_teacher

    root = tmp_path_factory.mktemp("hostile") / '"><script>alert(3)<'
    for split, count in (("train", 120), ("test", 20)):
        for number, image in enumerate(textures(count, seed=count)):
            name = HOSTILE[number % len(HOSTILE)]
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    small = {"arch": "resnet8a", "epochs": 1, "batch_size": 32, "precision": "fp32"}
    config = Config.model_validate(
        {
            "workspace": root / "work",
            "prepare": {"source": "folder", "path": root},
            "views": {"count": 1},
            "train_teacher": small,
            "train_student": small,
        }
    )
    for stage in (prepare, train_teacher, cache_teacher, select, train_student):
        stage.execute(config)
    return report.execute([config.workspace], ReportSettings())


def test_hostile_names_are_shown_as_text(browser, hostile):
    visit = Visit(browser, hostile, width=390)
    assert visit.complaints == []
    assert visit.asked_for == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    shown = visit.page.inner_text("body")
    for name in HOSTILE:
        assert name.strip() in shown
    assert "alert(3)" in shown
    assert visit.page.eval_on_selector_all(
        "img", "all => all.every(i => i.src.startsWith('data:'))"
    )
    assert visit.page.eval_on_selector_all("script", "all => all.length") == 2


def test_text_that_ends_a_script_does_not():
    evil = "</script><script>alert(1)</script><!--"
    page = Page(title=evil, intro=evil, sections=(), explorer={"classes": [evil]})
    text = render(page)
    assert text.count("</script>") == 2
    assert "<!--" not in text
    assert data_of(text) == {"classes": [evil]}


def test_the_same_runs_give_the_same_bytes_on_the_same_day(compared, page, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    pages = [page.parent / name for name in ("once.html", "again.html")]
    for path in pages:
        report.execute([compared.workspace], ReportSettings(output=path))
    once, again = (path.read_bytes() for path in pages)
    assert once == again
    assert b"2 January 1970" in once


def test_it_is_small(page):
    assert page.stat().st_size < 2_000_000


def test_predictions_made_later_are_those_of_the_training(compared):
    run = runs_of(compared, method=None)[0]
    path = run.path / "predictions.parquet"
    kept = pd.read_parquet(path)
    assert (kept["split"] == "test").sum() > 100
    right = kept[kept["split"] == "test"]
    assert (right["predicted"] == right["label"]).mean() == run.result.test_accuracy
    assert right["cross_entropy"].mean() == pytest.approx(run.result.test_loss, rel=1e-6)
    path.unlink()
    report.execute([compared.workspace], ReportSettings(output=compared.workspace / "later.html"))
    pd.testing.assert_frame_equal(pd.read_parquet(path), kept)


def test_damaged_predictions_are_made_again(compared, caplog):
    run = runs_of(compared, method=None)[0]
    path = run.path / "predictions.parquet"
    kept = pd.read_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    report.execute([compared.workspace], ReportSettings(output=compared.workspace / "later.html"))
    assert "damaged and is recomputed" in caplog.text
    pd.testing.assert_frame_equal(pd.read_parquet(path), kept)


def test_predictions_that_disagree_with_the_result_are_recomputed_and_then_rejected(spare, caplog):
    """Whole files of one run whose accuracies differ: one is of other weights, or was edited."""
    run = runs_of(spare, method=None)[0]
    dataset = Dataset.open(spare.data_folder)
    kept = open_predictions(run, dataset).frame
    path = run.path / "predictions.parquet"
    record = Predictions.open(run.path).record
    wrong = kept.assign(predicted=(kept["label"] + 1) % 10)
    table = tables.as_table({name: wrong[name].to_numpy() for name in COLUMNS}, COLUMNS)
    tables.write(path, table, metadata={tables.RECORD: record.model_dump_json()})
    pd.testing.assert_frame_equal(open_predictions(run, dataset).frame, kept)
    assert "does not agree with result.json and is recomputed" in caplog.text
    for split in ("test_accuracy", "held_out_accuracy_last"):
        changed = run.result.model_copy(update={split: getattr(run.result, split) - 0.1})
        with pytest.raises(ArtefactMismatch, match=r"result\.json does not agree with the weights"):
            open_predictions(replace(run, result=changed), dataset)


def test_single_runs_get_names_from_what_was_done(compared, tmp_path):
    runs = sorted(compared.runs_folder.glob("student-*"))
    text = report.execute(runs, ReportSettings(output=tmp_path / "runs.html")).read_text()
    students = {
        "resnet8a, no teacher",
        "resnet8a, KD",
        "resnet8a, KD + label revision + influence 60 %",
    }
    assert students | {"teacher"} == set(rows_of(text))


def test_a_selection_is_found_under_a_name(compared, page, tmp_path):
    workspace = linked_copy(compared.workspace, tmp_path / compared.workspace.name)
    table = workspace / "selections" / table_of(compared).path.name
    table.rename(table.with_name("mine.parquet"))
    (workspace / "selections" / "broken.parquet").write_bytes(b"PAR1")
    named = report.execute([workspace], ReportSettings(output=tmp_path / "report.html"))
    own, expected = (data_of(path.read_text(encoding="utf-8")) for path in (named, page))
    assert own["samples"] == expected["samples"]


def test_students_of_several_caches_are_said_to_be(digits, tmp_path):
    workspace = linked_copy(digits.workspace, tmp_path / "work")
    whole = ("select.revision=none", "select.strategy=all")
    points = {"KD": whole, "KD, one view": (*whole, "views.count=1")}
    config = with_overrides(digits, [f"workspace={workspace}", "train_student.epochs=1"])
    config = config.model_copy(update={"sweep": SweepConfig(name="v", seeds=(0,), points=points)})
    sweep.execute(config)
    settings = ReportSettings(output=tmp_path / "report.html")
    text = report.execute([workspace / "sweeps" / "v"], settings).read_text()
    assert "2 students of 2 teacher caches, 2 runs" in text
    caches = {Run.open(path).result.inputs.cache for path in config.runs_folder.glob("student-*")}
    shown = re.search(r"are of cache (\w+)\.", text)
    assert shown is not None
    assert shown[1] in {short(cache) for cache in caches if cache is not None}


def test_a_baseline_can_be_named(compared, tmp_path):
    settings = ReportSettings(output=tmp_path / "report.html", baselines=("LR + DS <b>",))
    text = report.execute([compared.workspace], settings).read_text()
    assert "test, minus LR + DS &lt;b&gt;" in text
    assert "test, minus plain" not in text


def edited(table: SelectionTable, **columns: object) -> SelectionTable:
    """The table with other columns, as a user may have edited it."""
    return replace(table, frame=table.frame.assign(**columns))


def shown(config: Config, table: SelectionTable, *, most: int = 200) -> dict[str, Json] | None:
    return explorer(table, None, None, Dataset.open(config.data_folder), most=most)


def test_a_table_without_anything_to_look_at_has_no_samples(compared):
    table = table_of(compared)
    nothing = edited(
        table, teacher_correct=True, selected=True, dloss_undistill=np.nan, label_issue=pd.NA
    )
    assert shown(compared, nothing) is None


@pytest.mark.parametrize("most", [1, 7, 50])
def test_no_more_samples_are_shown_than_asked_for(compared, most):
    found = shown(compared, table_of(compared), most=most)
    assert 0 < len(found["samples"]) <= most


def test_helpful_rows_help_and_harmful_ones_harm(compared):
    table = table_of(compared)
    scores = np.full(len(table.frame), 1.0)
    scores[::200] = -1.0
    found = shown(compared, edited(table, dloss_undistill=scores))
    members = {preset["name"]: preset["members"] for preset in found["presets"]}
    for name, sign in (("Most helpful", 1.0), ("Most harmful", -1.0)):
        influences = [found["samples"][position]["influence"] for position in members[name]]
        assert set(influences) == {sign}


def test_gaps_in_an_edited_table_are_not_known(compared):
    table = table_of(compared)
    rows = table.frame.index[~table.frame["held_out"]]
    right = table.frame["teacher_correct"].astype("boolean")
    right[rows[0]] = pd.NA
    numbers = {name: table.frame[name].copy() for name in ("p_max", "p_target", "beta")}
    for column in numbers.values():
        column[rows[0]] = np.nan
    scores = table.frame["dloss_undistill"].copy()
    scores[rows[0]] = scores.max() + 1.0
    gaps = edited(table, teacher_correct=right, dloss_undistill=scores, **numbers)
    samples = {sample["index"]: sample for sample in shown(compared, gaps)["samples"]}
    found = samples[int(rows[0])]
    assert (found["right"], found["p_max"], found["beta"]) == (False, None, None)
    assert found["teacher"] == []
    assert influence_chart(gaps) is not None


def test_calibration_without_a_known_held_out_row_says_nothing_of_the_teacher(compared):
    table = table_of(compared)
    subjects = subjects_of(compared, find_runs([compared.workspace], []).groups[:1])
    frames = on_test(subjects.groups, Dataset.open(compared.data_folder))
    for unknown, is_shown in ((table, True), (edited(table, p_max=np.nan), False)):
        chart = calibration_chart(frames, subjects, unknown)
        names = [key.name.partition(":")[0] for key in chart.legend]
        assert names == (["teacher, held out"] if is_shown else []) + ["plain"]
        assert "nan" not in chart.svg


def test_a_cache_of_other_pixels_that_a_run_accepted_is_looked_at(compared):
    dataset = Dataset.open(compared.data_folder)
    (group, *_) = [g for g in find_runs([compared.workspace], []).groups if not g.is_plain]
    cache = group.runs[0].result.inputs.cache
    samples = dataset.train.samples
    pixels = samples.pixels.copy()
    pixels[3] ^= 1
    changed = replace(dataset.train, samples=replace(samples, pixels=pixels))
    facts = teacher_of(compared.workspace, cache, dataset, None)
    rows = np.arange(8)
    expected = facts.probs(dataset, rows)
    assert facts.probs(replace(dataset, train=changed), rows).equal(expected)


@pytest.fixture
def spare(compared, tmp_path) -> Config:
    """A copy of the compared students, to change."""
    workspace = linked_copy(compared.workspace, tmp_path / "spare")
    return with_overrides(compared, [f"workspace={workspace}"])


def without_digests(run: Run) -> Path:
    """The folder of a run as earlier versions wrote it."""
    with edited_record(run.path / "result.json") as record:
        del record["files"]
    return run.path


def test_another_seed_of_a_compared_student_joins_its_row(spare):
    overrides = ["train_student.seed=2", *VARIANTS["KD"]]
    train_student.execute(with_overrides(spare, overrides))
    groups = {group.name: group for group in find_runs([spare.workspace], []).groups}
    assert set(groups) == set(VARIANTS)
    assert [run.result.seed for run in groups["KD"].runs] == [0, 1, 2]


def test_runs_that_are_gone_are_left_out_of_a_workspace(spare):
    gone = runs_of(spare, method=None)[0]
    shutil.rmtree(gone.path)
    groups = {group.name: group for group in find_runs([spare.workspace], []).groups}
    assert [run.result.seed for run in groups["plain"].runs] == [1]
    assert [run.result.seed for run in groups["KD"].runs] == [0, 1]


def test_a_sweep_without_a_run_is_refused_where_it_is_asked_for_only(spare):
    points = {"one": ("train_student.distil=false",)}
    config = spare.model_copy(update={"sweep": SweepConfig(name="v", points=points)})
    sweep.execute(config)
    (path,) = {run.path for run in runs_of(spare, method=None) if run.result.seed == 0}
    shutil.rmtree(path)
    assert len(find_runs([spare.workspace], []).groups) == len(VARIANTS)
    with pytest.raises(ArtefactNotFound, match="has no run that succeeded"):
        find_runs([spare.workspace / "sweeps" / "v"], [])


@pytest.mark.parametrize("damage", ["", '{"epoch": 1}\n', None])
def test_damaged_metrics_are_reported(spare, damage):
    run = runs_of(spare, method=None)[0]
    path = without_digests(run) / "metrics.jsonl"
    first, *_ = path.read_text().splitlines(keepends=True)
    path.unlink()
    path.write_text(first if damage is None else damage)
    message = "does not hold a line of numbers"
    if damage is None:  # the first of two epochs is left
        message = r"has 1 epochs \(expected 2|has another \w+ held-out accuracy than result\.json"
    with pytest.raises(ArtefactMismatch, match=message):
        report.execute([spare.workspace], ReportSettings())


def test_damaged_settings_are_reported(spare):
    run = runs_of(spare, method=None)[0]
    without_digests(run)
    (run.path / "predictions.parquet").unlink()
    settings = run.path / "config.toml"
    kept = [line for line in settings.read_text().splitlines() if "precision" not in line]
    settings.unlink()
    settings.write_text("\n".join(kept))
    with pytest.raises(ArtefactMismatch, match=r"config.toml is damaged: precision"):
        report.execute([spare.workspace], ReportSettings())


def test_a_teacher_is_no_plain_student(compared):
    teacher = next(compared.runs_folder.glob("teacher-*"))
    plain = runs_of(compared, method=None)[0].path
    groups = find_runs([teacher, plain], []).groups
    assert [group.name for group in references(groups, ())] == ["resnet8a, no teacher"]


def test_means_of_several_numbers_of_epochs_have_no_number_in_their_title(compared):
    first, second, *_ = find_runs([compared.workspace], []).groups
    run = second.runs[0]
    longer = replace(run, result=run.result.model_copy(update={"mean_of_last": 7}))
    groups = [first, replace(second, runs=(longer,))]
    (table,) = comparison_section(subjects_of(compared, groups)).tables
    assert "held out, mean of last" in table.header
    (table,) = comparison_section(subjects_of(compared, [first, second])).tables
    assert f"held out, mean of last {run.result.mean_of_last}" in table.header


def test_more_baselines_than_lines_are_drawn_alone(compared):
    group, *_ = find_runs([compared.workspace], []).groups
    groups = [replace(group, name=f"{number:02d}") for number in range(30)]
    assert drawn(groups, groups[:9]) == groups[:9]


def test_plain_students_alone_have_no_teacher(compared, tmp_path):
    plain = [run.path for run in runs_of(compared, method=None)]
    text = report.execute(plain, ReportSettings(output=tmp_path / "r.html")).read_text()
    assert "1 student of no teacher, 2 runs" in text
    assert "The teacher runs once" not in text


def test_an_output_that_is_a_folder_is_refused_before_any_work(compared, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_runs", None)
    with pytest.raises(ConfigError, match="is a folder"):
        report.execute([compared.workspace], ReportSettings(output=tmp_path))


def test_a_folder_in_the_place_of_a_selection_table_is_reported(compared, tmp_path):
    with pytest.raises(ArtefactMismatch, match=r"is a folder \(expected a parquet file"):
        report.execute([compared.workspace], ReportSettings(selection=tmp_path))


def test_ids_are_of_one_element_each(text):
    found = re.findall(r'<[^>]*\sid="([^"]+)"', text)
    assert len(found) > 100
    assert len(found) == len(set(found))
    for wanted in re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', text):
        assert wanted in found


def test_mistakes_are_one_line(compared, digits, tmp_path):
    with pytest.raises(ConfigError, match=r"--baseline nobody: there is no such student"):
        report.execute([compared.workspace], ReportSettings(baselines=("nobody",)))
    with pytest.raises(ArtefactNotFound, match="does not exist"):
        report.execute([tmp_path / "nothing"], ReportSettings())
    with pytest.raises(ArtefactNotFound, match="has no run of a student"):
        report.execute([digits.workspace], ReportSettings())
    with pytest.raises(ConfigError, match="--set needs a configuration"):
        report.execute([compared.workspace], ReportSettings(), overrides=["select.eta=0.5"])


def test_runs_of_two_data_sets_are_refused(compared, hostile):
    with pytest.raises(ArtefactMismatch, match="was trained on data set"):
        report.execute([compared.workspace, hostile.parent], ReportSettings())
