"""The report tells what the runs' own files say, as text, in a file that asks for nothing."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest

from pipeline.artefacts.run import Run
from pipeline.artefacts.selection import SelectionTable
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.provenance import Json, short
from pipeline.report.page import Page, render
from pipeline.sweep_statistics import t_quantile
from stages import compare, report, sweep
from stages.config_file import with_overrides
from stages.configs import CompareConfig, Config
from stages.report import ReportSettings
from stages.report_runs import find_runs
from stages.sweep_config import SweepConfig
from tests.browser import Visit, chromium
from tests.image_folders import textures
from tests.workspaces import linked_copy

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
    """What the script of the page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    value: dict[str, Json] = json.loads(found.group(1))
    return value


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells of the first table by the name of the row."""
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', body, re.DOTALL)
    return {name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows}


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
    assert list(rows) == ["plain", "KD", "LR + DS &lt;b&gt;"]
    num_training = runs_of(compared, method=None)[0].result.num_training_samples
    own = {
        "plain": runs_of(compared, method=None),
        "KD": runs_of(compared, method="kd", distilled=range(num_training, num_training + 1)),
        "LR + DS &lt;b&gt;": runs_of(compared, method="kd", distilled=range(num_training)),
    }
    for name, runs in own.items():
        assert len(runs) == 2
        tests = [100 * run.result.test_accuracy for run in runs]
        assert rows[name][:2] == ["2", f"{fmean(tests):.2f} ± {stdev(tests):.2f}"]
        best = [100 * run.result.held_out_accuracy_best for run in runs]
        assert rows[name][3] == f"{fmean(best):.2f} ± {stdev(best):.2f}"
    pairs = zip(own["LR + DS &lt;b&gt;"], own["plain"], strict=True)
    gains = [100 * (one.result.test_accuracy - other.result.test_accuracy) for one, other in pairs]
    half = t_quantile(0.975, 1) * stdev(gains) / 2**0.5
    told = f"{fmean(gains):+.2f} [{fmean(gains) - half:+.2f}, {fmean(gains) + half:+.2f}]"
    assert rows["LR + DS &lt;b&gt;"][5] == told
    assert rows["plain"][5] == "-"


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
    assert len(helpful) == min(40, len(scores))
    assert helpful[-1] >= np.sort(scores)[-len(helpful)]
    wrong = frame[~frame["teacher_correct"]]
    assert presets["Teacher wrong"]["total"] == len(wrong)
    assert set(members("Teacher wrong")) <= set(wrong["sample_index"])
    assert presets["Dropped"]["total"] == (~frame["selected"]).sum()
    assert presets["Likely label errors"]["total"] == frame["label_issue"].sum()


def test_thumbnails_are_the_images(compared, text):
    import base64
    import io

    from PIL import Image

    from pipeline.artefacts.dataset import Dataset
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

    def column(number):
        rows = f"rows => rows.map(row => parseFloat(row.cells[{number}].textContent))"
        return visit.page.eval_on_selector_all("section:nth-of-type(2) tbody tr", rows)

    visit.page.click("section:nth-of-type(2) thead th:nth-child(3) button")
    assert column(2) == sorted(column(2), reverse=True)
    visit.page.click("section:nth-of-type(2) thead th:nth-child(3) button")
    assert column(2) == sorted(column(2))


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


def test_the_same_runs_give_the_same_bytes(compared, page):
    again = report.execute([compared.workspace], ReportSettings(output=page.parent / "again.html"))
    assert again.read_bytes() == page.read_bytes()


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
    assert "damaged and is made again" in caplog.text
    pd.testing.assert_frame_equal(pd.read_parquet(path), kept)


def test_single_runs_get_names_from_what_was_done(compared, tmp_path):
    runs = sorted(compared.runs_folder.glob("student-*"))
    text = report.execute(runs, ReportSettings(output=tmp_path / "runs.html")).read_text()
    assert {"resnet8a, plain", "resnet8a, KD", "resnet8a, KD + LR + influence 60 %"} == set(
        rows_of(text)
    )


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
    told = re.search(r"is of cache (\w+)\.", text)
    assert told is not None
    assert told[1] in {short(cache) for cache in caches if cache is not None}


def test_a_baseline_can_be_named(compared, tmp_path):
    settings = ReportSettings(output=tmp_path / "report.html", baselines=("LR + DS <b>",))
    text = report.execute([compared.workspace], settings).read_text()
    assert "test, minus LR + DS &lt;b&gt;" in text
    assert "test, minus plain" not in text


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
