"""Tests of the HTML page in a real browser: Debian's chromium, without a window.

Where there is no chromium, or no playwright to drive it, the tests that need them are skipped.
"""

import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef
from test_report import add_corpus, change_metrics, make_run, make_runs, set_threshold

import report
from support import PROJECT
from support.corpus import DEV
from support.reporting.finished import DEV_SETS, find_runs

SR_NOS = [22915, 22916, 22917]
CORPUS = [
    line.split("\t")
    for split in DEV_SETS
    for line in (PROJECT / f"nano/corpus/raw/{split}.tsv").read_text().splitlines()
]
LABELS = np.array([int(row[1]) for row in CORPUS])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Open a page; at the end no request has left it, and nothing was wrong in its console."""
    requests, faults, pages = [], [], []

    def open_page(path: Path, choice: str = "", **options):
        pages.append(shown := browser.new_page(**options))
        shown.on("request", lambda request: requests.append(request.url))
        shown.on("console", lambda message: faults.append(message.text))
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.goto(f"{path.as_uri()}{choice}")
        return shown

    yield open_page
    for shown in pages:
        shown.close()
    assert faults == []
    asked = {url.split("#")[0] for url in requests if not url.startswith("data:")}
    assert asked <= {shown.url.split("#")[0] for shown in pages}


@pytest.fixture(scope="module")
def nano():
    """The teacher and two students of three seeds, of which results/ has the judgements."""
    return find_runs(PROJECT / "results/nano", SR_NOS, within="runs")


@pytest.fixture(scope="module")
def nano_page(nano, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)  # where the runs say that their corpus is
        return write(tmp_path_factory.mktemp("page"), nano, "22915-22917")


def write(out_dir: Path, shown, serial: str = "7") -> Path:
    path = out_dir / "Report.html"
    report.write_report(path.with_suffix(".pdf"), path, shown, serial, out_dir / "plots", [])
    return path


def shown_scores(shown) -> dict[str, list[str]]:
    """What the table under the slider shows of each model."""
    rows = shown.locator("#scores tbody tr").all()
    cells = [row.locator("td").all_text_contents() for row in rows]
    return {name: values for name, *values in cells}


def expected_scores(experiment, split: str, threshold: float = 0) -> list[str]:
    """Accuracy, baseline, MCC and counts, the means over the runs, by scikit-learn."""
    labels = experiment.labels(split)
    answers = [run.predictions[split].margins > threshold for run in experiment.runs]
    tn, fp, fn, tp = np.mean([confusion_matrix(labels, a).ravel() for a in answers], axis=0)
    accuracy = np.mean([accuracy_score(labels, a) for a in answers])
    mcc = np.mean([matthews_corrcoef(labels, a) for a in answers])
    baseline = max(labels.mean(), 1 - labels.mean())
    counts = (f"{count:.1f}".removesuffix(".0") for count in (tp, fn, tn, fp))
    return [f"{accuracy:.2%}", f"{baseline:.2%}", f"{mcc:.3f}", *counts]


def choice_of(shown) -> dict[str, str]:
    """What the address keeps, which follows a choice after 200 ms of the page's own clock."""
    kept = shown.evaluate("new Promise((done) => setTimeout(() => done(location.hash), 250))")
    return {name: value for name, (value,) in parse_qs(kept.removeprefix("#")).items()}


def drag(place, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with the mouse from a point of a place to another, in shares of its width and height."""
    box = place.bounding_box()
    source, target = ({"x": box["width"] * x, "y": box["height"] * y} for x, y in (start, end))
    place.drag_to(place, source_position=source, target_position=target)


def first_lines(shown) -> list[str]:
    """The lines of the sentences in the table, those that it shows at first."""
    return shown.locator("#sentences tbody td:first-child").all_text_contents()


def count(shown) -> int:
    """How many sentences the table says that it has."""
    return int(shown.locator("#count").text_content().split()[0])


LINES = [f"{name} {n}" for name in ("in", "out") for n in range(1, 1401)]  # of nano's dev sets


def means(experiment) -> np.ndarray:
    """The mean margin (sentences,) over the runs, of both dev sets."""
    runs = [np.concatenate([r.predictions[s].margins for s in DEV_SETS]) for r in experiment.runs]
    return np.mean(runs, axis=0)


def answers_of(experiment) -> np.ndarray:
    """The answers (runs, sentences) on both dev sets."""
    return np.concatenate([experiment.answers(split) for split in DEV_SETS], axis=1)


# ---------------------------------------------------------------------------------------------
# Thresholds


def test_at_0_models_decide_as_ever_and_the_slider_moves_their_scores(nano, nano_page, show):
    shown = show(nano_page)
    for place, split in reversed([*enumerate(DEV_SETS)]):
        shown.select_option("[name=judged]", str(place))
        for experiment in nano:
            assert shown_scores(shown)[experiment.mode] == expected_scores(experiment, split)
    slider = shown.locator("[name=t]")
    drag(slider, (0.5, 0.5), (0.6, 0.5))
    threshold = int(choice_of(shown)["t"])
    assert threshold > 0
    assert f"above +{threshold / 100:.2f}" in shown.locator("#threshold").text_content()
    slider.press("ArrowLeft")
    step = int(slider.get_attribute("step"))
    assert int(slider.input_value()) == threshold - step
    threshold = (threshold - step) / 100
    for experiment in nano:
        # A margin within half a hundredth of the threshold may be taken for it.
        near = [expected_scores(experiment, DEV, threshold + e) for e in (-0.005, 0, 0.005)]
        for value, *options in zip(shown_scores(shown)[experiment.mode], *near, strict=True):
            values = [float(option.strip("%")) for option in options]
            assert min(values) <= float(value.strip("%")) <= max(values)
    shown.click("#zero")
    assert shown_scores(shown)[nano[0].mode] == expected_scores(nano[0], DEV)


# ---------------------------------------------------------------------------------------------
# Sentences


def test_a_heads_button_sorts_by_its_column_and_says_so(nano, nano_page, show):
    shown = show(nano_page)
    assert first_lines(shown) == LINES[:50]
    lora, spread = means(nano[0]), np.ptp([means(one) for one in nano], axis=0)
    head = shown.locator("#sentences th", has=shown.get_by_role("button", name="LoRA"))

    def order(values: np.ndarray) -> list[float]:
        return [values[LINES.index(line)] for line in first_lines(shown)]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert order(lora) == pytest.approx(-np.sort(-lora)[:50], abs=0.011)
    head.locator("button").press("Enter")  # by the keyboard, the other way round
    assert head.get_attribute("aria-sort") == "ascending"
    assert order(lora) == pytest.approx(np.sort(lora)[:50], abs=0.011)
    assert choice_of(shown)["sort"] == "LoRA"
    shown.get_by_role("button", name="spread").click()
    assert head.get_attribute("aria-sort") == "none"
    assert order(spread) == pytest.approx(-np.sort(-spread)[:50], abs=0.021)


def test_each_sentence_has_its_text_its_label_and_the_margin_of_every_model(nano, nano_page, show):
    shown = show(nano_page)
    shown.click("#more")
    assert first_lines(shown) == LINES
    rows = shown.locator("#sentences tbody tr")
    for i in (0, 777, 1400, 2799):
        _, source, sentence, label, *margins, _ = rows.nth(i).locator("td").all_text_contents()
        assert (source, sentence) == (CORPUS[i][0], CORPUS[i][3])
        assert label == ("acceptable" if CORPUS[i][1] == "1" else "* unacceptable")
        for experiment, text in zip(nano, margins, strict=True):
            right = (answers_of(experiment)[:, i] == LABELS[i]).sum()
            sign = "✓" if right == 3 else "◐" if right else "✗"
            margin, *verdict = text.split()
            assert verdict == [sign, f"{right}/3"]
            assert float(margin) == pytest.approx(means(experiment)[i], abs=0.011)


def test_filters_leave_the_sentences_that_they_name(nano, nano_page, show):
    shown = show(nano_page)
    wrong = np.all(answers_of(nano[1]) != LABELS, axis=0)
    the = np.array(["the " in row[3].lower() for row in CORPUS])
    kept = np.ones(len(CORPUS), bool)
    source = next(row[0] for row in CORPUS[:1400] if row[1] == "0")
    shown.select_option("[name=model]", label="distil")
    for name, value, left in (
        ("label", "0", LABELS == 0), ("verdict", "✗", wrong), ("set", "in", np.arange(2800) < 1400),
        ("text", "THE ", the), ("source", source, np.array([row[0] == source for row in CORPUS])),
    ):  # fmt: skip
        field = shown.locator(f"[name={name}]")
        field.fill(value) if name == "text" else field.select_option(value)
        kept &= left
        assert len(first_lines(shown)) == min(50, kept.sum())  # until all are wanted
        if kept.sum() > 50:
            shown.click("#more")
        assert first_lines(shown) == [n for n, keep in zip(LINES, kept, strict=True) if keep]
        assert count(shown) == kept.sum()
    assert kept.any()


def test_points_that_are_chosen_by_mouse_or_keys_are_the_sentences_listed(nano, nano_page, show):
    shown = show(nano_page)
    lora, distil, rnn = (means(experiment) for experiment in nano)
    drag(shown.locator("#scatter"), (0.55, 0.2), (0.9, 0.6))
    chosen = {name: float(value) for name, value in choice_of(shown).items()}
    assert chosen.keys() == {"x0", "x1", "y0", "y1"}

    def inside(x, y, x0=-99, x1=99, y0=-99, y1=99) -> int:
        return int(((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).sum())

    assert 0 < count(shown) == pytest.approx(inside(lora, distil, **chosen), abs=2)
    shown.click("#clear")
    shown.mouse.down()  # on the button, from where a drag leads nowhere
    shown.locator("#scatter").hover()
    shown.mouse.up()
    assert count(shown) == 2800
    shown.select_option("[name=y]", label="rnn")
    shown.locator("[name=x0]").press_sequentially("1.5")
    shown.locator("[name=y1]").press_sequentially("-1.5")
    assert 0 < count(shown) == pytest.approx(inside(lora, rnn, x0=1.5, y1=-1.5), abs=2)


# ---------------------------------------------------------------------------------------------
# The address, markup, widths


def test_the_address_keeps_the_choice_over_a_reload(nano_page, show):
    shown = show(nano_page)
    shown.select_option("[name=set]", DEV)
    shown.select_option("[name=label]", "1")
    shown.locator("[name=t]").fill("55")
    shown.get_by_role("button", name="rnn").click()
    kept = choice_of(shown)
    assert kept == {"set": "in", "label": "1", "t": shown.locator("[name=t]").input_value(),
                    "sort": "-rnn"}  # fmt: skip
    before = shown_scores(shown), first_lines(shown)
    shown.reload()
    assert choice_of(shown) == kept
    assert (shown_scores(shown), first_lines(shown)) == before
    other = show(nano_page, "#label=0&sort=distil")
    assert other.locator("#sentences [aria-sort=ascending]").text_content() == "distil"
    assert other.locator("[name=label]").input_value() == "0"


@pytest.mark.parametrize("choice", ["corpus=length&x=9&t=nan", "sort=-&set=%3Cb%3E&nonsense=1&%"])
def test_an_address_that_nobody_wrote_shows_the_page_as_it_is_at_first(nano_page, show, choice):
    shown = show(nano_page, f"#{choice}")
    assert shown.locator("#count").text_content() == "2800 of 2800 sentences."


ODD = (
    "<script>window.hacked = 1</script>", "</script><img src=x onerror='window.hacked = 1'>",
    '"Quoted" & \'so\' <b>bold</b>', "{{ 7 * 7 }} {% raw %} ${1} \\u003c \u2028 é",
)  # fmt: skip


def test_a_sentence_a_source_and_a_variant_are_text_whatever_they_hold(tmp_path, show):
    odd = "<i>&'name"
    raw = add_corpus(make_run(tmp_path, "LoRA", odd))
    for split in DEV_SETS:
        rows = [row.split("\t") for row in (raw / f"{split}.tsv").read_text().splitlines()]
        for number, sentence in enumerate(ODD):
            rows[number][0], rows[number][3] = f"<u>{number}", sentence
        (raw / f"{split}.tsv").write_text("\n".join("\t".join(row) for row in rows))
    shown = show(path := write(tmp_path, find_runs(tmp_path, [7])))
    assert tuple(shown.locator("#sentences td.text").all_text_contents()[:4]) == ODD
    assert shown.locator("#sentences td:nth-child(2)").first.text_content() == "<u>0"
    assert shown.evaluate("window.hacked") is None
    assert shown.locator("i, b, u, img[src=x]").count() == 0
    assert odd in shown.locator("table.cards").first.text_content()
    assert len(re.findall("<script", path.read_text())) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_page_in_dark_and_light(nano_page, show, scheme):
    shown = show(nano_page, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    wider = "[...document.querySelectorAll('form *, td')].filter(n => n.scrollWidth > 390).length"
    assert shown.evaluate(wider) == 0
    colour = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.search(r"\d+", colour)[0])
    assert (red < 60) == (scheme == "dark")


def test_tables_have_captions_and_fields_have_labels(nano_page, show):
    shown = show(nano_page)
    assert shown.evaluate("[...document.querySelectorAll('table')].every((t) => t.caption)")
    fields = "[...document.querySelectorAll('select, input:not([type=hidden])')]"
    words = "field.labels[0].firstChild.textContent.trim()"
    assert shown.evaluate(f"{fields}.every((field) => {words})")


# ---------------------------------------------------------------------------------------------
# Other runs


@pytest.fixture
def made(tmp_path, show):
    """A page of runs made here: a model of one class, two corpora that are gone, and a threshold.

    Most of this model's margins are nearer to its threshold than the page's numbers tell.
    """
    rnn = make_run(tmp_path, "rnn")
    table = pd.read_csv(rnn / "predictions.csv")
    table["logit_1"] /= 1000
    table.to_csv(rnn / "predictions.csv", index=False)
    set_threshold(rnn, 2.5)
    make_run(tmp_path, "distil", bias=99)
    change_metrics(make_run(tmp_path, "rnn", "nano"), "data", name="nano/corpus", sha256="cd")
    return show(write(tmp_path, found := find_runs(tmp_path, [7]))), found


def test_at_0_a_model_decides_by_its_own_threshold_and_one_of_one_class_is_named(made):
    shown, (_, rnn, _) = made
    scores = shown_scores(shown)
    assert list(scores) == ["distil (one class only: 1 of 1)", "rnn"]
    assert scores["rnn"] == expected_scores(rnn, DEV, threshold=2.5)
    margins = shown.locator("#sentences td:nth-child(4)").all_text_contents()
    expected = means(rnn)[: len(margins)] - 2.5
    assert [float(text.split()[0]) for text in margins] == pytest.approx(expected, abs=0.011)


def test_without_its_corpus_a_page_has_lines_and_says_what_is_missing(made):
    shown, _ = made
    said = shown.locator("#missing").text_content()
    assert said.startswith("gone: no such file or folder; --data_dir names a corpus. ")
    shown.click("#more")
    assert first_lines(shown)[527] == "out 1"
    assert shown.locator("[name=text]").is_disabled()
    heads = shown.locator("#sentences thead button").all_text_contents()
    assert heads == ["line", "label", "distil", "rnn", "spread"]


def test_each_corpus_has_its_own_sentences_and_a_single_run_no_comparison(made):
    shown, _ = made
    corpora = shown.locator("[name=corpus] option").all_text_contents()
    assert corpora == ["cola_public, gpt2", "nano/corpus, nano"]
    shown.select_option("[name=corpus]", "1")
    shown.locator("#scores td", has_text="rnn").wait_for()
    assert len(shown_scores(shown)) == 1
    assert choice_of(shown) == {"corpus": "1"}
    assert not shown.locator("#compare").is_visible()
    assert shown.locator("#sentences thead button").all_text_contents() == ["line", "label", "rnn"]
    assert set(shown.locator("#sentences td span").all_text_contents()) == {"✓ ", "✗ "}


def without_pictures(page: Path) -> str:
    return re.sub(r'"data:image/png;base64,[\w+/=]*"', "", page.read_text())


def test_the_page_in_results_is_that_of_its_runs_and_names_no_other_place(nano_page):
    kept, text = PROJECT / "results/nano/Report_22915-22917.html", without_pictures(nano_page)
    same = without_pictures(kept) == text
    assert same, "run: python -m bench.results --tables nano"
    assert set(re.findall(r"\w+://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert list((PROJECT / "results").rglob("*.html")) == [kept]  # CoLA's sentences are not ours


def test_a_page_of_colas_size_and_five_seeds_is_at_most_2_mb(tmp_path):
    make_runs(tmp_path, sr_nos=range(1, 6))
    longest = 1043 * 300  # bytes of sentences and sources, more than CoLA's
    page = write(tmp_path, find_runs(tmp_path, range(1, 6)))
    assert page.stat().st_size + longest < 2_000_000
