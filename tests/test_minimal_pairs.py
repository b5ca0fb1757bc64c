"""The 200 pairs of everyday English: what they are, where they are not, and how they are judged."""

import json

import pandas as pd
import pytest
from conftest import PROJECT

from bench import markdown, minimal_pairs, thresholds
from bench.minimal_pairs import PAIRS, by_kind, first_pairs, judge
from support.checkpoints.students import MODELS, SHIPPED
from support.corpus import bare, read_corpus
from support.files import read_bytes
from support.sentences import read_sentences
from support.teaching.written import EVERYDAY

SENTENCES = [*PAIRS["good"], *PAIRS["bad"]]


def test_there_are_twenty_pairs_of_each_of_ten_kinds_and_no_sentence_twice():
    assert PAIRS["kind"].value_counts(sort=False).tolist() == [20] * 10
    assert len({bare(sentence) for sentence in SENTENCES}) == 400


def test_no_pair_is_in_what_a_model_was_trained_on_or_was_a_prompt_of_that():
    written = PROJECT / "results" / "smollm2_student" / "written.txt.gz"
    rows = read_sentences(read_bytes(written), str(written)).rows
    known = {bare(row.sentence) for row in rows} | set(map(bare, EVERYDAY.read_text().splitlines()))
    assert not known & {bare(sentence) for sentence in SENTENCES}


def test_no_pair_is_in_cola(cola):
    rows = [row for part in read_corpus(cola).rows.values() for row in part]
    assert not {bare(row.sentence) for row in rows} & {bare(sentence) for sentence in SENTENCES}


def test_a_pair_is_judged_as_predict_judges_it(run):
    options = ("--mode", "predict", "--json", "--checkpoint", "student")
    result = run(*options, input="\n".join(SENTENCES))
    answers = pd.DataFrame(map(json.loads, result.stdout.splitlines()))
    table = judge(MODELS / SHIPPED["student"])
    for name, rows in (("good", answers[:200]), ("bad", answers[200:])):
        assert rows["label"].tolist() == table[name].tolist()
        assert rows["p_acceptable"].tolist() == pytest.approx(table[f"p_{name}"].tolist())
    margins = answers["logits"].map(lambda pair: pair[1] - pair[0]).to_numpy()
    assert (margins[:200] > margins[200:]).tolist() == table["told"].tolist()


def test_the_tables_count_what_is_told_apart_and_what_is_right(monkeypatch):
    pairs = pd.DataFrame({"kind": ["a", "a", "b"], "good": list("xyz"), "bad": list("uvw")})
    monkeypatch.setattr(minimal_pairs, "PAIRS", pairs)
    table = pd.DataFrame({
        "kind": pairs["kind"], "told": [True, False, True], "good": [1, 1, 0], "bad": [0, 1, 0],
        "right": [1.0, 0.5, 0.5], "p_good": [0.9, 0.8, 0.1], "p_bad": [0.2, 0.8, 0.05],
    })  # fmt: skip
    heads, a, b, whole = by_kind({"one": table})
    assert heads == ("kind", "one, told apart", "one, right")
    assert (a, b) == (("a", "1 of 2", "3 of 4"), ("b", "1 of 1", "1 of 2"))
    assert whole == ("all", "66.7% (21% to 94%)", "66.7%")
    assert first_pairs({"one": table})[1:] == [
        ("x", "0.90 acceptable", "u", "0.20 unacceptable"),
        ("z", "0.10 unacceptable", "w", "0.05 unacceptable"),
    ]


def test_the_table_of_thresholds_is_what_the_command_prints(cola, monkeypatch, capsys):
    run = str(MODELS / SHIPPED["student"])
    monkeypatch.setattr("sys.argv", ["bench.thresholds", run, str(cola)])
    thresholds.main()
    assert capsys.readouterr().out in (PROJECT / "results" / "README.md").read_text()


def test_the_first_page_has_the_first_pair_of_each_kind_right_or_wrong():
    table = first_pairs({"student": judge(MODELS / SHIPPED["student"])})
    assert markdown(table) in (PROJECT / "README.md").read_text()
