"""Tests of the HTML page in a real browser: Debian's chromium, without a window.

Where there is no chromium, or no playwright to drive it, the tests that need them are skipped.
"""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef
from test_report import SIZES, add_corpus, change_metrics, make_run, make_runs, set_threshold

import report
from support import PROJECT
from support.corpus import DEV
from support.decisions import Decision
from support.reporting import page, tables
from support.reporting.finished import DEV_SETS, Predictions, find_runs

SR_NOS = [22915, 22916, 22917]


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
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert {url.split("#")[0] for url in requests if url.startswith("file:")} <= {
        shown.url.split("#")[0] for shown in pages
    }


@pytest.fixture(scope="module")
def nano():
    """The teacher and two students of three seeds, of which results/ has the judgements."""
    return find_runs(PROJECT / "results/nano", SR_NOS, within="runs")


@pytest.fixture(scope="module")
def nano_page(nano, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "Report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)  # where the runs say that their corpus is
        report.write_html(path, nano, "22915-22917")
    return path


def write(out_dir: Path, sr_nos=(7,)) -> Path:
    report.write_html(path := out_dir / "Report.html", find_runs(out_dir, list(sr_nos)), "7")
    return path


def shown_scores(shown) -> dict[str, list[str]]:
    """What the table under the slider shows of each model."""
    rows = shown.locator("#scores tbody tr").all()
    cells = [row.locator("td").all_text_contents() for row in rows]
    return {name: values for name, *values in cells}


def expected_scores(series, split: str, threshold: float) -> list[str]:
    """Accuracy, MCC and counts, the means over the runs, by scikit-learn."""
    labels = series.labels(split)
    answers = [run.predictions[split].margins > threshold for run in series.runs]
    tn, fp, fn, tp = np.mean([confusion_matrix(labels, a).ravel() for a in answers], axis=0)
    accuracy = np.mean([accuracy_score(labels, a) for a in answers])
    mcc = np.mean([matthews_corrcoef(labels, a) for a in answers])
    return [f"{accuracy:.2%}", f"{mcc:.3f}", *(f"{count:.1f}" for count in (tp, fn, tn, fp))]


def without_best(values: list[str]) -> list[str]:
    accuracy, _, mcc, _, *counts = values
    return [accuracy, mcc, *counts]


def choice_of(shown) -> dict[str, str]:
    """What the address keeps, which follows a choice after 200 ms of the page's own clock."""
    kept = shown.evaluate("new Promise((done) => setTimeout(() => done(location.hash), 250))")
    return {name: value for name, (value,) in parse_qs(kept.removeprefix("#")).items()}


def listed(shown) -> list[str]:
    """The lines of the sentences in the table, all of them."""
    if shown.locator("#more").is_visible():
        shown.click("#more")
    return first_lines(shown)


def first_lines(shown) -> list[str]:
    """The lines of the sentences in the table, those that it shows at first."""
    return shown.locator("#sentences tbody td:first-child").all_text_contents()


def count(shown) -> int:
    """How many sentences the table says that it has."""
    return int(shown.locator("#count").text_content().split()[0])


def lines(nano) -> list[str]:
    names = zip(("in", "out"), DEV_SETS, strict=True)
    return [f"{name} {i + 1}" for name, dev in names for i in range(len(nano[0].labels(dev)))]


def means(series) -> np.ndarray:
    """The mean margin (sentences,) over the runs, of both dev sets."""
    runs = [np.concatenate([r.predictions[s].margins for s in DEV_SETS]) for r in series.runs]
    return np.mean(runs, axis=0)


def labels_of(series) -> np.ndarray:
    return np.concatenate([series.labels(split) for split in DEV_SETS])


# ---------------------------------------------------------------------------------------------
# Thresholds


def test_at_threshold_0_the_figures_are_those_of_metrics_json(nano, nano_page, show):
    shown = show(nano_page)
    for place, split in enumerate(DEV_SETS):
        shown.select_option("[name=judged]", str(place))
        for series in nano:
            scores = [run.metrics[split] for run in series.runs]
            accuracy, mcc = (
                np.mean([score[key] for score in scores]) for key in ("accuracy", "mcc")
            )
            values = shown_scores(shown)[series.mode]
            assert (values[0], values[2]) == (f"{accuracy:.2%}", f"{mcc:.3f}")
            assert without_best(values) == expected_scores(series, split, 0)


def test_the_slider_moves_accuracy_mcc_and_the_counts_of_each_model(nano, nano_page, show):
    shown = show(nano_page)
    slider = shown.locator("[name=t]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.mouse.down()
    shown.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=5)
    shown.mouse.up()
    threshold = int(choice_of(shown)["t"])
    assert threshold > 0
    assert f"above +{threshold / 100:.2f}" in shown.locator("#threshold").text_content()
    slider.press("ArrowLeft")
    step = int(slider.get_attribute("step"))
    assert int(slider.input_value()) == threshold - step
    threshold = (threshold - step) / 100
    for series in nano:
        found = without_best(shown_scores(shown)[series.mode])
        # A margin within half a hundredth of the threshold may be taken for it.
        near = [expected_scores(series, DEV, threshold + e) for e in (-0.005, 0, 0.005)]
        for value, *options in zip(found, *near, strict=True):
            values = [float(option.strip("%")) for option in options]
            assert min(values) <= float(value.strip("%")) <= max(values)
    shown.click("#zero")
    assert without_best(shown_scores(shown)[nano[0].mode]) == expected_scores(nano[0], DEV, 0)


def test_the_best_thresholds_are_marked_where_no_other_is_better(nano, nano_page, show):
    shown = show(nano_page)
    edge = int(shown.locator("[name=t]").get_attribute("max")) / 100
    for series in nano:
        _, best, _, best_mcc, *_ = shown_scores(shown)[series.mode]
        labels = series.labels(DEV)
        margins = [run.predictions[DEV].margins for run in series.runs]

        def mean(score, threshold):
            return np.mean([score(labels, m > threshold) for m in margins])  # noqa: B023

        for at, score in ((best, accuracy_score), (best_mcc, matthews_corrcoef)):
            others = max(mean(score, t) for t in np.arange(-edge, edge, 0.5))
            assert mean(score, float(at)) >= others - 0.003


def test_a_model_of_one_class_is_named_beside_its_figures(tmp_path, show):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", bias=99)
    shown = show(write(tmp_path))
    assert list(shown_scores(shown)) == ["LoRA", "rnn (one class only: 1 of 1)"]


# ---------------------------------------------------------------------------------------------
# Sentences


def test_a_heads_button_sorts_by_its_column_and_says_so(nano, nano_page, show):
    shown, names = show(nano_page), lines(nano)
    assert first_lines(shown) == names[:50]
    lora, spread = means(nano[0]), np.ptp([means(series) for series in nano], axis=0)
    head = shown.locator("#sentences th", has=shown.get_by_role("button", name="LoRA"))

    def order(values: np.ndarray) -> list[float]:
        return [values[names.index(line)] for line in first_lines(shown)]

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
    files = [PROJECT / f"nano/corpus/raw/{split}.tsv" for split in DEV_SETS]
    rows = [line.split("\t") for file in files for line in file.read_text().splitlines()]
    every, found = [means(series) for series in nano], listed(shown)
    cells = shown.locator("#sentences tbody tr")
    assert len(found) == len(rows) == 2800
    labels = labels_of(nano[0])
    for i in (0, 777, 1400, 2799):
        line, source, sentence, label, *margins, _ = cells.nth(i).locator("td").all_text_contents()
        assert (source, sentence) == (rows[i][0], rows[i][3])
        assert label == ("acceptable" if rows[i][1] == "1" else "* unacceptable")
        assert line == found[i]
        for series, mean, text in zip(nano, every, margins, strict=True):
            runs = [
                np.concatenate([r.predictions[s].answers for s in DEV_SETS]) for r in series.runs
            ]
            right = sum(run[i] == labels[i] for run in runs)
            sign = "✓" if right == 3 else "◐" if right else "✗"
            margin, *verdict = text.split()
            assert verdict == [sign, f"{right}/3"]
            assert float(margin) == pytest.approx(mean[i], abs=0.011)


def test_filters_leave_the_sentences_that_they_name(nano, nano_page, show):
    shown, labels = show(nano_page), labels_of(nano[0])
    distil = nano[1]
    files = [PROJECT / f"nano/corpus/raw/{split}.tsv" for split in DEV_SETS]
    rows = [line.split("\t") for file in files for line in file.read_text().splitlines()]
    answers = [np.concatenate([r.predictions[s].answers for s in DEV_SETS]) for r in distil.runs]
    wrong = np.all([run != labels for run in answers], axis=0)
    kept = np.ones(len(rows), bool)

    def check():
        assert listed(shown) == [name for name, keep in zip(lines(nano), kept, strict=True) if keep]
        assert shown.locator("#count").text_content().startswith(f"{kept.sum()} of 2800 ")

    shown.select_option("[name=label]", "0")
    kept &= labels == 0
    assert (
        shown.locator("#sentences tbody tr").count() == 50
    )  # the first ones, until all are wanted
    check()
    shown.select_option("[name=model]", label="distil")
    shown.select_option("[name=verdict]", label="wrong")
    kept &= wrong
    check()
    shown.select_option("[name=set]", DEV)
    kept &= np.arange(2800) < 1400
    check()
    shown.fill("[name=text]", "THE ")
    kept &= ["the " in row[3].lower() for row in rows]
    check()
    source = next(row[0] for row, keep in zip(rows, kept, strict=True) if keep)
    shown.select_option("[name=source]", source)
    kept &= [row[0] == source for row in rows]
    check()
    assert 0 < kept.sum() < 100


def test_points_that_are_chosen_by_mouse_or_keys_are_the_sentences_listed(nano, nano_page, show):
    shown = show(nano_page)
    lora, distil, rnn = (means(series) for series in nano)
    chart = shown.locator("#scatter")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    corner, opposite = ((box["x"] + box["width"] * x, box["y"] + box["height"] * y)
                        for x, y in ((0.55, 0.2), (0.9, 0.6)))  # fmt: skip
    shown.mouse.move(*corner)
    shown.mouse.down()
    shown.mouse.move(*opposite, steps=4)
    shown.mouse.up()
    chosen = {name: float(value) for name, value in choice_of(shown).items()}
    assert chosen.keys() == {"x0", "x1", "y0", "y1"}

    def inside(x, y, x0=-99, x1=99, y0=-99, y1=99) -> int:
        return int(((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).sum())

    assert 0 < count(shown) == pytest.approx(inside(lora, distil, **chosen), abs=2)
    shown.click("#clear")
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
    for mode in ("LoRA", "rnn"):
        folder = make_run(tmp_path, mode, odd)
        change_metrics(folder, "data", folder=str(tmp_path / "corpus"))
    add_corpus(folder)
    for split in DEV_SETS:
        path = folder / "corpus" / "raw" / f"{split}.tsv"
        rows = [row.split("\t") for row in path.read_text().splitlines()]
        for number, sentence in enumerate(ODD):
            rows[number][0], rows[number][3] = f"<u>{number}", sentence
        target = tmp_path / "corpus" / "raw" / f"{split}.tsv"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join("\t".join(row) for row in rows))
    path = write(tmp_path)
    shown = show(path)
    assert tuple(shown.locator("#sentences td.text").all_text_contents()[:4]) == ODD
    assert shown.locator("#sentences td:nth-child(2)").first.text_content() == "<u>0"
    assert shown.evaluate("window.hacked") is None
    assert shown.locator("i, b, u, img").count() == 0
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


def test_tables_have_captions_and_heads_and_fields_have_labels(nano_page, show):
    shown = show(nano_page)
    for table in shown.locator("table").all():
        assert table.locator("caption").count() == 1
        assert table.locator("thead th").count() > 1
    fields = "[...document.querySelectorAll('select, input:not([type=hidden])')]"
    words = "field.labels[0].firstChild.textContent.trim()"
    assert shown.evaluate(f"{fields}.every((field) => {words})")
    buttons = shown.locator("#sentences thead button")
    assert buttons.count() == shown.locator("#sentences thead th").count()


# ---------------------------------------------------------------------------------------------
# Other runs


def test_without_its_corpus_a_page_has_lines_and_says_what_is_missing(tmp_path, show):
    make_runs(tmp_path)
    shown = show(write(tmp_path, (7, 8)))
    said = shown.locator("#missing").text_content()
    assert said.startswith("gone/raw/in_domain_dev.tsv: no such file. ")
    assert listed(shown)[527] == "out 1"
    assert shown.locator("[name=text]").is_disabled()
    heads = shown.locator("#sentences thead button").all_text_contents()
    assert heads == ["line", "label", "LoRA", "distil", "rnn", "spread"]


def test_another_corpus_with_other_labels_is_not_shown(tmp_path):
    add_corpus(folder := make_run(tmp_path, "LoRA"))
    series = find_runs(tmp_path, [7])
    assert page.judgements(series)["text"][0] == "A."
    path = folder / "corpus" / "raw" / f"{DEV}.tsv"
    path.write_text(path.read_text().replace("\t1\t", "\t0\t", 1))
    found = page.judgements(series)
    assert "text" not in found
    assert "not the corpus of" in found["missing"]


def test_beside_the_published_the_page_says_what_is_comparable_with_them(tmp_path):
    make_run(tmp_path, "LoRA")
    change_metrics(make_run(tmp_path, "rnn"), "arguments", lr=0.01)
    (caption, rows, notes), *_ = page.compared(find_runs(tmp_path, [7]))
    assert "Then the published" in caption
    assert caption.endswith(" Comparable with them: LoRA gpt2.")
    assert notes == tables.without_training(find_runs(tmp_path, [7]))
    assert rows[-1][0] == "published rnn"


def test_of_a_single_run_there_is_no_comparison(tmp_path, show):
    make_run(tmp_path, "rnn")
    shown = show(write(tmp_path))
    assert not shown.locator("#compare").is_visible()
    heads = shown.locator("#sentences thead button").all_text_contents()
    assert heads == ["line", "label", "rnn"]
    assert set(shown.locator("#sentences td span").all_text_contents()) == {"✓ ", "✗ "}


def test_each_corpus_has_its_own_sentences(tmp_path, show):
    make_run(tmp_path, "LoRA")
    change_metrics(make_run(tmp_path, "rnn", "nano"), "data", name="nano/corpus", sha256="cd")
    shown = show(write(tmp_path))
    corpora = shown.locator("[name=corpus] option").all_text_contents()
    assert corpora == ["cola_public, gpt2", "nano/corpus, nano"]
    assert list(shown_scores(shown)) == ["LoRA"]
    shown.select_option("[name=corpus]", "1")
    shown.locator("#scores td", has_text="rnn").wait_for()
    assert list(shown_scores(shown)) == ["rnn"]
    assert choice_of(shown) == {"corpus": "1"}


def test_margins_are_shown_from_the_models_own_threshold_on(tmp_path, show):
    """At 0 a model decides as in metrics.json, wherever its threshold is."""
    folder = make_run(tmp_path, "rnn")
    (plain,) = find_runs(tmp_path, [7])
    set_threshold(folder, 2.5)
    shown = show(write(tmp_path))
    assert without_best(shown_scores(shown)["rnn"]) == [
        cell.removesuffix(".0") for cell in expected_scores(plain, DEV, 0)
    ]
    margins = shown.locator("#sentences td.number").all_text_contents()
    expected = means(plain)[: len(margins)]
    assert [float(text.split()[0]) for text in margins] == pytest.approx(expected, abs=0.011)
    assert "less the model's own threshold" in shown.locator("form").text_content()


@given(
    st.lists(st.floats(-1e9, 1e9) | st.floats(-0.02, 0.02), min_size=2, max_size=20),
    st.just(0.0) | st.floats(-9, 9),
)
def test_any_margin_is_rounded_so_that_no_answer_changes(margins, threshold):
    margins = np.array(margins)
    decision = Decision("balanced", {"balanced": threshold, "accuracy": 0.0})
    part = Predictions(np.zeros(len(margins), int), margins, decision)
    parts, above = dict.fromkeys(DEV_SETS, part), margins - threshold
    (run,) = [type("Run", (), {"predictions": parts})]
    found = page.hundredths(type("Series", (), {"runs": [run]}))[0, : len(margins)]
    assert ((found > 0) == (part.answers == 1)).all()
    near = np.abs(above) < 1000
    assert (np.abs(found / 100 - above)[near] <= 0.0101).all()


def test_the_page_is_small_and_names_no_other_place(nano_page):
    text = nano_page.read_text()
    assert len(text) < 500_000
    assert set(re.findall(r"\w+://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    (corpus,) = json.loads(data)
    assert [len(corpus["label"]), len(corpus["text"])] == [2800, 2800]


def test_the_page_in_results_is_that_of_its_runs(nano_page):
    kept = PROJECT / "results/nano/Report_22915-22917.html"
    assert kept.read_text() == nano_page.read_text(), "run: python -m bench.results --tables nano"
    assert list((PROJECT / "results").rglob("*.html")) == [kept]  # CoLA's sentences are not ours


def test_a_page_of_colas_size_and_five_seeds_is_at_most_2_mb(tmp_path):
    make_runs(tmp_path, sr_nos=range(1, 6))
    assert sum(sentences for sentences, _ in list(SIZES.values())[1:]) == 1043
    longest = 1043 * 300  # bytes of sentences and sources, more than CoLA's
    assert write(tmp_path, range(1, 6)).stat().st_size + longest < 2_000_000
