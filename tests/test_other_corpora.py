"""Tests of corpora that are not CoLA: classes of other names, and in_domain_dev as only dev set."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import NANO, classifier
from markupsafe import escape
from test_page import browser, show, shown_scores, write  # noqa: F401
from test_report import change_metrics, make_run, write_reports

from data_utils import load_corpus, tokenize
from predict import length_note
from support.bases import load_tokenizer
from support.corpus import DEV, OUT_OF_DOMAIN, TRAIN
from support.devices import CPU
from support.errors import UserError
from support.reporting import measure, read_metrics, show_run, tables
from support.reporting.finished import corpus_of, find_runs, load_run
from support.reporting.metrics import classes_of
from support.sentences import COLA_CLASSES
from train_utils import evaluate

SENTIMENT = ["negative", "positive"]
SCORES = measure(torch.eye(2), torch.tensor([0, 1]))
HOSTILE = ['<b>one & "two"</script>', "{0} {{ 7 * 7 }} $x_{ 'a'"]  # as long as they may be


def make_own(out_dir: Path, mode: str, classes=SENTIMENT, **more) -> Path:
    """A run on a corpus of one's own, without out_of_domain_dev and without sources."""
    folder = make_run(out_dir, mode, **more)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics[OUT_OF_DOMAIN], metrics["data"][OUT_OF_DOMAIN]
    (raw := folder / "corpus" / "raw").mkdir(parents=True)
    for split in (TRAIN, DEV):
        counts = metrics["data"][split]
        labels = (int(n < counts["acceptable"]) for n in range(counts["sentences"]))
        rows = [f"\t{label}\t\t{split} {n}." for n, label in enumerate(labels)]
        (raw / f"{split}.tsv").write_text("\n".join(rows))
    own = {"name": "mine", "folder": str(raw.parent), "sha256": "cd", "classes": classes}
    metrics["data"] |= own
    (folder / "metrics.json").write_text(json.dumps(metrics))
    table = pd.read_csv(folder / "predictions.csv")
    table[table["split"] == DEV].to_csv(folder / "predictions.csv", index=False)
    return folder


@pytest.fixture(scope="module", params=[SENTIMENT, HOSTILE], ids=["sentiment", "hostile"])
def own(request, tmp_path_factory) -> SimpleNamespace:
    """A report of three runs on such a corpus, of which the student without teacher says 1 only."""
    out_dir = tmp_path_factory.mktemp("own")
    for mode, bias in (("LoRA", 0), ("distil", 1), ("rnn", 99)):
        make_own(out_dir, mode, request.param, bias=bias)
    with redirect_stdout(io.StringIO()) as printed:
        paper, page = write_reports(out_dir)
        show_run(out_dir / "checkpoints" / "rnn_gpt2_7")
    return SimpleNamespace(
        folder=out_dir, found=find_runs(out_dir, [7]), classes=request.param,
        paper=paper, page=page, printed=printed.getvalue(),
    )  # fmt: skip


def test_a_report_has_the_classes_names_and_the_dev_set_that_there_is(own):
    negative, positive = own.classes
    task = f"mine: 8,551 training sentences, a dev set of 527. 1 is “{positive}”, 0 “{negative}”."
    assert task in own.paper
    assert escape(task) in own.page
    assert "acceptable" not in own.paper + own.printed
    assert OUT_OF_DOMAIN not in own.printed
    assert "<b>" not in own.page
    assert f"  {DEV:<18} accuracy 69.26%" in own.printed
    assert f'<- answers "{positive}" to everything' in own.printed
    first = own.found[0]
    assert tables.source_table([first], corpus_of(first)).empty
    assert [*tables.run_table([first])] == ["run", "sr_no", DEV, "epoch kept", "steps"]


def test_a_page_has_the_classes_names_and_the_dev_set_that_there_is(own, show):  # noqa: F811
    negative, positive = own.classes
    shown = show(own.folder / "Report_7.html")
    text = shown.locator("body").inner_text()
    assert f"Where a model says “{positive}”" in text
    assert f"● {positive}, ✕ {negative}, — threshold" in text
    heads = shown.locator("#scores th").all_text_contents()[4:]
    assert heads == [f"{name} {mark}" for name in (positive, negative) for mark in "✓✗"]
    assert shown.locator("[name=judged] option").all_text_contents() == [DEV]
    assert not shown.locator("[name=set]").is_visible()
    assert shown.locator("[name=source]").is_disabled()
    assert "acceptable" not in text
    assert text.count(OUT_OF_DOMAIN) == 1  # that it is judged once, where there is one
    assert list(shown_scores(shown)) == ["LoRA", "distil", "rnn (one class only: 1 of 1)"]
    shown.select_option("[name=label]", label=negative)
    assert shown.locator("#count").text_content() == "162 of 527 sentences."
    row = shown.locator("#sentences tbody tr").first.locator("td").all_text_contents()
    assert row[:3] == ["in 366", f"{DEV} 365.", negative]
    for width in (390, 1200):
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") == width


def test_each_corpus_of_a_report_has_its_own_classes_and_dev_sets(tmp_path, show):  # noqa: F811
    make_run(tmp_path, "LoRA")
    make_own(tmp_path, "LoRA", variant="mine")
    shown = show(write(tmp_path, found := find_runs(tmp_path, [7])))
    text = shown.locator("body").inner_text()
    assert all(
        f"1 is “{classes[1]}”, 0 “{classes[0]}”." in text for classes in (COLA_CLASSES, SENTIMENT)
    )
    assert [len(group) for group in tables.grouped(found)] == [1, 1]
    shown.select_option("[name=label]", label="unacceptable")
    assert "* unacceptable" in shown.locator("#sentences tbody tr").first.inner_text()
    shown.select_option("[name=corpus]", "1")
    shown.locator("h2", has_text="“positive”").wait_for()
    assert shown.locator("[name=label] option").all_text_contents() == ["both", *SENTIMENT[::-1]]


def test_a_model_of_one_class_is_said_to_answer_by_the_class_own_name(tmp_path, capsys):
    show_run(make_own(tmp_path, "rnn", ["bad", "good"], bias=-99))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith('  <- answers "bad" to everything')


@pytest.mark.parametrize(
    ("part", "changes", "fault"),
    [
        ("data", {OUT_OF_DOMAIN: {"sentences": 9}}, f"{OUT_OF_DOMAIN}.acceptable is not a count"),
        ("", {OUT_OF_DOMAIN: SCORES}, f"data.{OUT_OF_DOMAIN}.sentences is not a positive count"),
        ("data", {"classes": ["a", "a"]}, "data.classes is not two names: "),
        ("data", {"classes": ["a", " "]}, "data.classes is not two names: "),
        ("data", {"classes": ["a", "\x1b[2J"]}, "data.classes is not two names: "),
        ("data", {"classes": "ab"}, "data.classes is not two names: "),
        ("data", {"classes": ["a", 1]}, "data.classes is not two names: "),
        ("data", {"columns": ["a"]}, "data.columns is not an object: "),
        ("data", {"columns": {"text": 5}}, "data.columns.text is not text: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, part, changes, fault):
    folder = make_own(tmp_path, "rnn")
    change_metrics(folder, part, **changes)
    with pytest.raises(UserError, match=f"^{folder}/metrics.json: broken .*{fault}") as error:
        load_run(folder)
    assert "\n" not in str(error.value)


def test_what_may_be_missing_may_be_null(tmp_path):
    folder = make_own(tmp_path, "LoRA")
    size = read_metrics(folder)["data"][TRAIN]
    changes = {"classes": None, "columns": None, TRAIN: {**size, "tokens": None}}
    change_metrics(folder, "data", **changes)
    (experiment,) = find_runs(tmp_path, [7])
    assert classes_of(experiment.metrics) == COLA_CLASSES
    assert corpus_of(experiment).keys() == {TRAIN, DEV}
    split = tokenize(load_tokenizer(NANO), ["It rains."], [1], 64, "here")
    assert length_note(split, [1], experiment.metrics) == ""


def test_predictions_of_a_dev_set_that_the_run_had_not_are_no_part_of_it(tmp_path):
    folder = make_own(tmp_path, "rnn")
    with (folder / "predictions.csv").open("a") as file:
        file.write(f"{OUT_OF_DOMAIN},1,0,1\n")
    with pytest.raises(UserError, match=r"predictions.csv: broken \(not of the run that"):
        load_run(folder)


def test_a_model_is_judged_on_the_dev_sets_that_there_are():
    corpus = load_corpus(NANO / "corpus", load_tokenizer(NANO), 512)
    results, rows = evaluate(classifier(), {DEV: corpus[DEV]}, CPU)
    assert results.keys() == {row["split"] for row in rows} == {DEV}
