"""Every mode as a user runs it, on nano: in processes of its own where that matters."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
import peft
import pytest
import torch
from conftest import NANO, padded_logits, refusal
from safetensors import safe_open
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef
from transformers import GPT2ForSequenceClassification

import distil
import finetune
import run as front_door
from bench.kills import TRAINS, compare_killed
from support import PROJECT
from support.bases import load_tokenizer
from support.corpus import DEV, SPLITS, read_split
from support.options import RULES
from support.reporting import describe
from support.reporting.finished import find_runs

NANO_RUN = ("--gpt_variant", "nano", "--sr_no", 7)
QUICK = (*NANO_RUN, "--max_steps", 6, "--epochs", 2, "--batch_size", 32)
SENTENCES = ["The teacher sleeps.", "The teacher sleep."]


COMMAND = [sys.executable, str(PROJECT / "run.py")]


class Demo(NamedTuple):
    folder: Path
    options: tuple  # but for --mode and --out_dir
    result: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the beginnings of nano's corpus, for runs that take no time."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "raw").mkdir()
    for split, size in zip(SPLITS, (1000, 300, 300), strict=True):
        lines = (NANO / "corpus" / "raw" / f"{split}.tsv").read_bytes().splitlines(True)
        (folder / "raw" / f"{split}.tsv").write_bytes(b"".join(lines[:size]))
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory, data):
    """A folder in which ``--mode all`` has run, quickly; with what options, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    options = (*QUICK, "--data_dir", data)
    more = ("--transfer_size", 200, "--out_dir", folder)
    command = [*COMMAND, "--mode", "all", *map(str, (*options, *more))]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    return Demo(folder, options, result)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run ``run.py`` as the fixture ``run`` does, but in this process."""
    monkeypatch.chdir(tmp_path)

    def in_process(*arguments, input="") -> SimpleNamespace:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode())))
        try:
            status = front_door.main([*map(str, arguments)])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=printed.out, stderr=printed.err)

    return in_process


def checkpoint(folder, mode):
    return folder / "checkpoints" / f"{mode}_nano_7"


# ---------------------------------------------------------------------------------------------
# What works


def test_help_imports_nothing_heavy():
    code = (
        "import sys, run\n"
        "try: run.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'pandas', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    for words in ("['--help']", "['--mode', 'distil', '--help']"):
        command = [sys.executable, "-c", code.replace("['--help']", words)]
        subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)


def test_all_leaves_every_file_of_the_design(demo):
    folder, _, result = demo
    for mode, weights in (
        ("LoRA", ["adapter_config.json", "adapter_model.safetensors"]),
        ("rnn", ["model.safetensors", "config.json", "tokenizer.json"]),
        ("distil", ["model.safetensors", "config.json", "tokenizer.json"]),
    ):
        for name in [*weights, "history.csv", "metrics.json"]:
            assert (checkpoint(folder, mode) / name).stat().st_size > 0, name
        assert not (checkpoint(folder, mode) / "state.safetensors").exists()
        for curve in ("loss", "accuracy"):
            picture = folder / "plots" / f"{mode}_nano_7_{curve}.png"
            assert picture.read_bytes().startswith(b"\x89PNG")
    assert (folder / "Report_7.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "Report_7.html").read_text().startswith("<!doctype html>")
    assert f"page:   {folder / 'Report_7.html'}\n" in result.stdout
    assert not list(folder.rglob("*.partial"))
    for line in ("Number of parameters: ", "Number of trainable parameters: ", "Reduction: "):
        assert line in result.stdout
    assert result.stderr == ""  # no progress bar, and no warning, where the output is piped


def test_the_history_and_the_metrics_are_of_the_design(demo):
    for mode in ("LoRA", "rnn", "distil"):
        history = pd.read_csv(checkpoint(demo.folder, mode) / "history.csv")
        assert list(history) == [
            "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mcc",
            "seconds", "sentences_per_second", *(["hint_loss"] if mode == "distil" else []),
        ]  # fmt: skip
        metrics = json.loads((checkpoint(demo.folder, mode) / "metrics.json").read_text())
        assert metrics["training"]["steps"] == 6
        best = history.iloc[metrics["training"]["best_epoch"] - 1]
        assert metrics["in_domain_dev"]["accuracy"] == best.val_accuracy
        assert metrics["in_domain_dev"]["mcc"] == best.val_mcc


def no_model(*arguments, **settings):
    """Stand where a base would be loaded."""
    raise AssertionError("a base was loaded")


@pytest.mark.parametrize("mode", ["LoRA", "distil"])
def test_a_finished_run_is_shown_without_loading_its_base_or_its_teacher(
    demo, call, mode, monkeypatch
):
    weights = max(checkpoint(demo.folder, mode).glob("*model.safetensors"))
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr("support.bases.loading.load_pretrained", no_model)
    more = ("--transfer_size", 200) if mode == "distil" else ()
    result = call("--mode", mode, *demo.options, *more, "--out_dir", demo.folder)
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
    assert ("Number of parameters: " in result.stdout) == (mode == "LoRA")
    assert "epoch 1/" not in result.stdout
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("mode", ["LoRA", "rnn"])
def test_a_folder_that_bears_a_hubs_name_is_told(call, tmp_path, data, mode):
    shutil.copytree(NANO, tmp_path / "gpt2", ignore=shutil.ignore_patterns("corpus"))
    few = ("--max_steps", 1, "--data_dir", data)
    result = call("--mode", mode, "--gpt_variant", "gpt2", *few)
    assert result.returncode == 0, result.stderr
    assert f"note: base gpt2: a folder, {tmp_path / 'gpt2'}\n" in result.stderr
    metrics = json.loads((tmp_path / f"checkpoints/{mode}_gpt2_22915/metrics.json").read_text())
    assert (metrics["base"]["name"], metrics["base"]["kind"]) == ("gpt2", "folder")
    assert metrics["identity"]["base"] == metrics["base"]["fingerprint"]


def test_several_sr_no_train_what_each_alone_does_and_give_one_report(demo, call, tmp_path):
    options = (*QUICK, "--data_dir", demo.options[demo.options.index("--data_dir") + 1])
    several = ("--mode", "rnn", *options, "--sr_no", "6-7", "--out_dir", tmp_path)
    result = call(*several)
    assert result.returncode == 0, result.stderr
    alone, together = (checkpoint(folder, "rnn") for folder in (demo.folder, tmp_path))
    for name in ("model.safetensors", "predictions.csv"):
        assert (alone / name).read_bytes() == (together / name).read_bytes()
    assert "epoch 1/" not in call(*several).stdout  # both are finished
    result = call("--mode", "report", "--sr_no", "6-7", "--out_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "Report_6-7.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "plots" / "rnn_nano_6-7_loss.png").exists()
    result = call("--mode", "report", "--sr_no", "6-8", "--out_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "rnn_nano_8" in result.stderr  # what is missing is named, and the rest is reported
    assert (tmp_path / "Report_6-8.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_run_folder_with_other_options_is_refused(demo, call):
    line = refusal(call("--mode", "LoRA", *demo.options, "--lr", 0.01, "--out_dir", demo.folder))
    assert "lr is 0.001 there, 0.01 here" in line


def test_a_bias_of_another_rule_is_another_run(call, monkeypatch, data):
    few = ("--data_dir", data, "--epochs", 1, "--max_steps", 1)
    options = ("--mode", "rnn", *NANO_RUN, *few, "--held_out", 200)
    with monkeypatch.context() as earlier:
        earlier.setitem(distil.IDENTITY_RULES, "bias", "as many as there are")
        assert call(*options).returncode == 0
        assert "kept epoch" in call(*options).stdout
    assert "bias is as many as there are there, as learnt here" in refusal(call(*options))


@pytest.mark.parametrize("rule", RULES)
def test_a_students_threshold_is_that_of_its_training_in_every_figure(call, data, tmp_path, rule):
    """What predict says by itself is what metrics.json and predictions.csv have."""
    few = ("--data_dir", data, "--epochs", 1, "--max_steps", 9, "--batch_size", 32)
    trained = call("--mode", "rnn", *NANO_RUN, *few, "--held_out", 200, "--threshold", rule)
    assert trained.returncode == 0, trained.stderr
    (run,) = find_runs(tmp_path, [7])[0].runs
    edge = run.predictions[DEV].decision.threshold
    assert f"threshold: a margin of {edge:+.2f}, p(acceptable) = " in trained.stdout
    assert f" ({rule}), set on 200 held-out sentences" in trained.stdout
    options = ("--mode", "predict", "--json", "--checkpoint", run.folder, "--input")
    for split in SPLITS[1:]:
        result = call(*options, data / "raw" / f"{split}.tsv")
        found, kept = pd.read_json(io.StringIO(result.stdout), lines=True), run.predictions[split]
        assert found["label"].tolist() == kept.answers.tolist()
        assert found["p_acceptable"].tolist() == pytest.approx(
            kept.decision.p_acceptable(kept.margins).tolist(), abs=1e-6
        )
        assert describe(run.metrics[split]) in result.stderr
        assert f"({rule})" in result.stderr or rule == "accuracy"


def test_a_student_learns_from_a_file_of_sentences_and_another_file_is_another_run(
    demo, call, tmp_path, monkeypatch
):
    path = tmp_path / "mine.txt"
    path.write_text("The dogs chased a cat.\nThe dogs chase cat a.\nShe smiled.\n")
    more = ("--transfer_source", "written", "--transfer_size", 3, "--transfer_file", path)
    cell = ("--student_cell", "gru", "--student_layers", 2)
    teacher = ("--teacher", checkpoint(demo.folder, "LoRA"), "--hint_weight", 0, "--max_steps", 2)
    options = ("--mode", "distil", *demo.options, *more, *cell, *teacher)
    result = call(*options)
    assert result.returncode == 0, result.stderr
    assert "kept epoch" in call(*options).stdout
    assert (
        json.loads((tmp_path / "checkpoints/distil_nano_7/config.json").read_text())["cell"]
        == "gru"
    )
    path.write_text(path.read_text().replace("She", "He"))
    assert "transfer_file is" in refusal(call(*options))
    path.unlink()
    result = call(*options)
    assert (
        "note: mine.txt: no such file; the run is finished, and is shown"
        in result.stderr.replace(f"{tmp_path}/", "")
    )
    assert "kept epoch" in result.stdout
    assert "mine.txt: no such file" in refusal(call(*options, "--sr_no", 8))


def test_a_finished_student_is_shown_when_its_teacher_is_gone_and_no_other_is(demo, call, tmp_path):
    folder = checkpoint(tmp_path, "distil")
    shutil.copytree(checkpoint(demo.folder, "distil"), folder)
    options = ("--mode", "distil", *demo.options, "--transfer_size", 200)
    result = call(*options)
    assert result.returncode == 0, result.stderr
    assert "kept epoch" in result.stdout
    assert "LoRA_nano_7: no teacher there" in result.stderr
    assert "the run is finished, and is shown" in result.stderr
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for other in (("--lr", 0.01), ("--overwrite",), ("--sr_no", 8)):
        assert "no teacher there; run: python run.py" in refusal(call(*options, *other))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not checkpoint(tmp_path, "LoRA").exists()
    identity = json.loads((folder / "metrics.json").read_text())["identity"]
    (folder / "unfinished.json").write_text(json.dumps({"identity": identity}))
    assert "no teacher there" in refusal(call(*options))


def test_what_is_replaced_after_its_fingerprint_was_taken_is_refused(
    demo, call, monkeypatch, tmp_path
):
    """A teacher, a file of sentences and a base; nothing is trained under the wrong name."""
    (tmp_path / "mine.txt").write_text("The dogs chased a cat.\nShe smiled.\n")
    teacher = ("--teacher", checkpoint(demo.folder, "LoRA"), "--hint_weight", 0)
    more = ("--transfer_source", "written", "--transfer_size", 2, "--transfer_file", "mine.txt")
    distilled = ("--mode", "distil", *demo.options, *more, *teacher)
    words = "replaced by another while this command ran; give the command again"
    with monkeypatch.context() as patch:
        patch.setattr(distil, "teacher_fingerprint", lambda *_: "that of another")
        assert f"{teacher[1]}: {words}" in refusal(call(*distilled))

    def read(path, *rest):
        path.write_text("The dogs chased a cat.\nHe smiled.\n")
        return sentences_of_file(path, *rest)

    sentences_of_file = distil.sentences_of_file
    with monkeypatch.context() as patch:
        patch.setattr(distil, "sentences_of_file", read)
        assert f"mine.txt: {words}" in refusal(call(*distilled))
    seen = iter(["one", "another"])
    monkeypatch.setattr(finetune, "base_fingerprint", lambda _: next(seen))
    assert f"nano: {words}" in refusal(call("--mode", "LoRA", *demo.options))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_base_writes_after_no_held_out_sentence_and_another_rule_is_another_run(
    demo, call, monkeypatch
):
    few = ("--transfer_source", "written", "--transfer_size", 20, "--held_out", 200)
    teacher = ("--teacher", checkpoint(demo.folder, "LoRA"), "--hint_weight", 0)
    options = ("--mode", "distil", *demo.options, *few, *teacher)
    corpora, written_sentences = [], distil.written_sentences

    def watched(base, key, corpus, *rest):
        corpora.append(corpus)
        return written_sentences(base, key, corpus, *rest)

    with monkeypatch.context() as earlier:
        earlier.setitem(distil.IDENTITY_RULES, "prompts", "any training sentence")
        earlier.setattr("distil.written_sentences", watched)
        result = call(*options)
        assert result.returncode == 0, result.stderr
    (corpus,) = corpora
    assert len(corpus["held_out"]) == 200
    assert not set(corpus["held_out"].sentences) & set(corpus["in_domain_train"].sentences)
    words = "prompts is any training sentence there, none held out here"
    assert words in refusal(call(*options))


@pytest.mark.parametrize("mode", ["LoRA", "distil"])
def test_predict_reads_any_checkpoint_and_every_source_alike(demo, call, mode, tmp_path):
    options = ("--mode", "predict", "--json", "--checkpoint", checkpoint(demo.folder, mode))
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    outputs = {
        call(*options, *SENTENCES).stdout,
        call(*options, "--input", "sentences.txt").stdout,
        call(*options, input="\n".join(SENTENCES) + "\n").stdout,
    }
    assert len(outputs) == 1
    for line, sentence in zip(outputs.pop().splitlines(), SENTENCES, strict=True):
        found = json.loads(line)
        assert found["sentence"] == sentence
        probabilities = torch.tensor(found["logits"]).softmax(0)
        assert found["label"] == int(probabilities.argmax())
        assert found["p_acceptable"] == pytest.approx(probabilities[1].item(), abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["LoRA", "rnn"])
def test_what_is_scored_is_the_model_as_predict_loads_it(demo, call, mode, precision, tmp_path):
    """To the last bit of every logit."""
    device = ("--precision", precision)
    assert call("--mode", mode, *demo.options, *device, "--lr", 0.01).returncode == 0
    folder = checkpoint(tmp_path, mode)
    predictions = pd.read_csv(folder / "predictions.csv")
    metrics = json.loads((folder / "metrics.json").read_text())
    for split in SPLITS[1:]:
        path = demo.options[-1] / "raw" / f"{split}.tsv"
        options = ("--mode", "predict", "--json", "--checkpoint", folder, *device)
        said = [json.loads(row) for row in call(*options, "--input", path).stdout.splitlines()]
        rows = predictions[predictions["split"] == split]
        assert [row["logits"] for row in said] == rows[["logit_0", "logit_1"]].to_numpy().tolist()
        answers = [row["label"] for row in said]
        assert metrics[split]["predicted_acceptable"] == sum(answers)
        assert metrics[split]["correct"] == (rows["label"] == answers).sum()


def test_a_student_judges_in_a_process_without_the_libraries_that_take_seconds(demo, call):
    code = (
        "import sys, run\n"
        "status = run.main(sys.argv[1:])\n"
        "print(*sys.modules, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    options = ("--mode", "predict", "--json", "--checkpoint", str(checkpoint(demo.folder, "rnn")))
    command = [sys.executable, "-c", code, *options, *SENTENCES]
    result = subprocess.run(
        command, cwd=PROJECT, capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == call(*options, *SENTENCES).stdout
    modules = set(result.stderr.split())
    assert {"torch", "tokenizers"} <= modules
    slow = {"transformers", "huggingface_hub", "pandas", "scipy", "matplotlib", "reportlab"}
    assert not (slow | {"onnx", "onnxruntime", "torch._dynamo"}) & modules


def test_a_file_in_colas_layout_is_judged_by_its_sentences_and_scored(demo, call):
    path = NANO / "corpus" / "raw" / "in_domain_dev.tsv"
    sentences, labels = read_split(path)
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo.folder, "rnn"))
    result = call(*options, "--input", path)
    *_, first, second = result.stdout.splitlines()
    rows = [json.loads(line) for line in call(*options, "--json", *sentences).stdout.splitlines()]
    answers = [row["label"] for row in rows]
    assert f"accuracy {accuracy_score(labels, answers):.2%}" in first
    assert f"MCC {matthews_corrcoef(labels, answers):.3f}" in first
    for count in confusion_matrix(labels, answers).ravel():
        assert re.search(rf"\b{count}\b", second)
    scored = call(*options, "--json", "--input", path)
    assert [json.loads(line) for line in scored.stdout.splitlines()] == rows
    assert first in scored.stderr


def test_a_tab_in_a_sentence_is_refused_with_its_line(demo, call):
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo.folder, "rnn"))
    line = refusal(call(*options, input="Fine.\nNot\tfine.\n"))
    assert "standard input, line 2: a tab in the sentence" in line
    assert "line 2: 2 tab-separated" in refusal(call(*options, input="a\t1\t\tFine.\nNot\tfine.\n"))


def test_a_byte_order_mark_and_blank_lines_change_no_judgement(demo, call, tmp_path):
    options = ("--mode", "predict", "--json", "--checkpoint", checkpoint(demo.folder, "rnn"))
    expected = call(*options, *SENTENCES).stdout
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(SENTENCES).encode())
    assert call(*options, "--input", "bom.txt").stdout == expected
    assert call(*options, input="\ufeff" + "\n".join(SENTENCES)).stdout == expected
    for text, words in (
        ("\n\n".join(SENTENCES), "1 blank line "),
        ("{}\n\n \n{}\n\n", "2 blank lines "),
    ):
        result = call(*options, input=text.format(*SENTENCES))
        assert result.stdout == expected
        assert f"standard input: {words}passed over" in result.stderr


def test_any_sentence_is_printed_where_the_locale_is_ascii(demo, run):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    student = checkpoint(demo.folder, "rnn")
    result = run("--mode", "predict", "--checkpoint", student, "Étude — ok.", env=ascii_only)
    assert result.returncode == 0, result.stderr
    assert "Étude — ok." in result.stdout
    few = ("--gpt_variant", "nano", "--max_new_tokens", 2)
    result = run("--mode", "gen", *few, "--prompt", "Étude", env=ascii_only)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Étude")


@pytest.mark.parametrize("mode", ["LoRA", "rnn"])
def test_nano_says_that_it_knows_its_own_lexicon_alone(demo, call, mode):
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo.folder, mode))
    assert "note: nano knows its own small lexicon alone" in call(*options, "The cat purrs.").stderr
    own, _ = read_split(NANO / "corpus" / "raw" / "in_domain_dev.tsv")
    assert call(*options, *own[:20]).stderr == ""


def test_a_path_may_begin_with_the_home_folder(demo, call, monkeypatch, tmp_path):
    """As --option=~/place, which no shell expands."""
    monkeypatch.setenv("HOME", str(demo.folder.parent))
    home = f"~/{demo.folder.name}"
    student = f"--checkpoint={home}/checkpoints/rnn_nano_7"
    (demo.folder / "some.txt").write_text("Fine.")
    result = call("--mode", "predict", student, f"--input={home}/some.txt")
    assert result.returncode == 0, result.stderr
    result = call("--mode", "report", "--sr_no", 7, f"--out_dir={home}")
    assert result.returncode == 0, result.stderr
    args = front_door.parse(["--mode", "distil", "--teacher=~/a", "--data_dir=~/b"])
    assert (args.teacher, args.data_dir) == (demo.folder.parent / "a", demo.folder.parent / "b")
    assert not (tmp_path / "~").exists()


def test_predict_prints_a_table(demo, call):
    result = call("--mode", "predict", "--checkpoint", checkpoint(demo.folder, "rnn"), *SENTENCES)
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["p(acceptable)", "judgement", "sentence"]
    for row, sentence in zip(rows, SENTENCES, strict=True):
        assert row.endswith(sentence)
        assert row.split()[1] in ("acceptable", "unacceptable")


def test_predict_shows_several_models_side_by_side(demo, call):
    """What each says is what it says alone."""
    folders = [checkpoint(demo.folder, mode) for mode in ("LoRA", "rnn")]
    options = ("--mode", "predict", *(word for f in folders for word in ("--checkpoint", f)))
    alone = [
        call("--mode", "predict", "--json", "--checkpoint", folder, *SENTENCES).stdout
        for folder in folders
    ]
    both = call(*options, "--json", *SENTENCES).stdout.splitlines()
    for line, *answers in zip(both, *map(str.splitlines, alone), strict=True):
        found = json.loads(line)
        assert list(found["models"]) == [folder.name for folder in folders]
        for models, answer in zip(found["models"].values(), map(json.loads, answers), strict=True):
            assert {"sentence": found["sentence"], **models} == answer
    header, *rows = call(*options, *SENTENCES).stdout.splitlines()
    assert header.split() == [*(folder.name for folder in folders), "sentence"]
    for row, line in zip(rows, both, strict=True):
        for cell, answer in zip(
            row.split()[::2], json.loads(line)["models"].values(), strict=False
        ):
            assert cell == f"{answer['p_acceptable']:.3f}"
    labelled = call(*options, "--input", NANO / "corpus" / "raw" / "in_domain_dev.tsv").stdout
    for folder in folders:
        assert f"\n{folder.name}:\naccuracy " in labelled


def test_checkpoints_that_cannot_be_used_so_are_refused(demo, call):
    one = ("--checkpoint", checkpoint(demo.folder, "rnn"))
    assert "one is given twice" in refusal(call("--mode", "predict", *one, *one, "Hello."))
    missing = (*one, "--checkpoint", "nowhere")
    assert "nowhere: no such" in refusal(call("--mode", "predict", *missing, "Hello."))
    threshold = (*one, "--threshold", "balanced", "Hello.")
    line = refusal(call("--mode", "predict", *threshold))
    assert "--threshold balanced: rnn_nano_7 decides at p = 0.5 alone" in line
    assert "--mode export takes one" in refusal(call("--mode", "export", *one, *one))


def test_peft_loads_the_saved_adapter_and_agrees_with_predict(demo, call):
    folder = checkpoint(demo.folder, "LoRA")
    sentences = read_split(NANO / "corpus" / "raw" / "out_of_domain_dev.tsv")[0][:50]
    result = call("--mode", "predict", "--json", "--checkpoint", folder, *sentences)
    ours = torch.tensor([json.loads(line)["logits"] for line in result.stdout.splitlines()])
    base = GPT2ForSequenceClassification.from_pretrained(NANO, num_labels=2)
    base.config.pad_token_id = 0
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    expected = padded_logits(theirs, load_tokenizer(NANO), sentences)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_gen_gives_the_same_text_for_the_same_sr_no(run, call):
    options = ("--mode", "gen", "--gpt_variant", "nano", "--max_new_tokens", 20)
    first = run(*options, "--sr_no", 1)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The teacher")
    assert first.stderr == ""
    assert call(*options, "--sr_no", 1).stdout == first.stdout
    assert call(*options, "--sr_no", 2).stdout != first.stdout
    greedy = call(*options, "--temperature", 0, "--num_samples", 2).stdout.split("---")
    assert greedy[1].partition("\n")[2].strip() == greedy[2].partition("\n")[2].strip()
    tiny = call(*options, "--temperature", 1e-39).stdout
    assert tiny.strip() == greedy[1].partition("\n")[2].strip()


def test_report_alone_gives_the_same_table(demo, call):
    result = call("--mode", "report", "--sr_no", 7, "--out_dir", demo.folder)
    assert result.returncode == 0, result.stderr
    rows = [
        line for line in demo.result.stdout.splitlines() if line.startswith(("LoRA ", "distil "))
    ]
    assert rows
    assert all(row in result.stdout for row in rows)


def test_export_writes_both_kinds_and_leaves_nothing_where_there_is_no_checkpoint(
    call, demo, tmp_path
):
    assert "no such checkpoint" in refusal(call("--mode", "export", "--checkpoint", "nowhere"))
    assert list(tmp_path.iterdir()) == []
    for mode, file in (("LoRA", "model.safetensors"), ("distil", "student.onnx")):
        result = call("--mode", "export", "--checkpoint", checkpoint(demo.folder, mode))
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "exports" / f"{mode}_nano_7" / file).stat().st_size > 0


# ---------------------------------------------------------------------------------------------
# Interrupting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_keeps_its_folder_until_a_signal_ends_it_and_the_same_one_goes_on(
    call, tmp_path, data, number
):
    options = ("--mode", "rnn", *NANO_RUN, "--data_dir", data, "--epochs", 3, "--batch_size", 16)
    folder = checkpoint(tmp_path, "rnn")
    first = subprocess.Popen(
        [*COMMAND, *map(str, options)], cwd=tmp_path, encoding="utf-8",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while not (folder / "state.safetensors").exists():  # the first epoch's end
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # alive, but not done before the second asks
        assert f"{folder.name}: another command is at work here" in refusal(call(*options))
        first.send_signal(number)
        first.send_signal(signal.SIGCONT)
        _, error = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    if number == signal.SIGINT:
        assert first.returncode == 130
        assert error == "\nrun.py: interrupted; the same command goes on from the last save\n"
    result = call(*options)
    assert result.returncode == 0, result.stderr
    assert "resuming after step" in result.stdout
    assert json.loads((folder / "metrics.json").read_text())["training"]["stopped"] == "epochs"


def test_a_reader_that_leaves_interrupts_training_and_loses_nothing(call, tmp_path, data):
    few = ("--data_dir", data, "--epochs", 2, "--batch_size", 32)
    options = ("--mode", "rnn", *NANO_RUN, *few, "--overwrite")
    process = subprocess.Popen(
        [*COMMAND, *map(str, options)], cwd=tmp_path, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 130
    assert "the same command without --overwrite goes on" in error
    assert "Traceback" not in error
    result = call(*options)
    assert result.returncode == 0, result.stderr
    assert "resuming after step 32, in epoch 2" in result.stdout


def test_three_kills_change_nothing(tmp_path, data):
    few = ("--data_dir", data, "--epochs", 2, "--batch_size", 8)
    options = ["--mode", "rnn", *map(str, (*NANO_RUN, *few))]
    assert compare_killed(tmp_path, kills=3, seed=1, options=options, aim=TRAINS) == []


def test_a_student_with_hints_is_killed_anywhere_and_ends_the_same(demo, tmp_path, data):
    """While its base writes, its teacher reads, and it trains; its folder has no projection."""
    teacher = checkpoint(demo.folder, "LoRA")
    hints = ("--hint_weight", 3, "--transfer_source", "written", "--transfer_size", 750)
    hints = (*hints, "--embedding_start", "teacher", "--student_dropout", 0.3, "--held_out", 200)
    some = ("--data_dir", data, "--epochs", 2, "--batch_size", 16, "--teacher", teacher)
    options = ["--mode", "distil", *map(str, (*NANO_RUN, *hints, *some))]
    assert compare_killed(tmp_path, kills=3, seed=3, options=options) == []
    folder = checkpoint(tmp_path / "alone", "distil")
    assert len(list((tmp_path / "alone" / "transfer").glob("teacher_*.safetensors"))) > 1
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        found = set(file.keys())
    with safe_open(checkpoint(demo.folder, "rnn") / "model.safetensors", framework="pt") as file:
        assert found == set(file.keys())


def test_a_run_overwritten_and_interrupted_leaves_no_model_for_use(
    demo, call, tmp_path, monkeypatch
):
    shutil.copytree(demo.folder / "checkpoints", tmp_path / "checkpoints")
    steps = []

    def interrupted(*examples):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return cross_entropy(*examples)

    cross_entropy = finetune.cross_entropy
    monkeypatch.setattr(finetune, "cross_entropy", interrupted)
    again = ("--mode", "LoRA", *demo.options, "--lr", "3e-3")
    result = call(*again, "--overwrite")
    assert result.returncode == 130
    assert result.stderr.endswith(
        "the same command without --overwrite goes on from the last save\n"
    )
    for mode in (["predict", *SENTENCES], ["export"], ["distil"]):
        line = refusal(call("--mode", *mode, *NANO_RUN))
        assert "LoRA_nano_7: this run is not finished; finish it with: python run.py" in line
        assert "--lr 3e-3 --overwrite" in line
    assert [run.mode for run in find_runs(tmp_path, [7])] == ["distil", "rnn"]
    result = call(*again)
    assert result.returncode == 0, result.stderr
    assert call("--mode", "predict", *NANO_RUN, *SENTENCES).returncode == 0


# ---------------------------------------------------------------------------------------------
# Several processes


def torchrun(*arguments, script=COMMAND[1]) -> subprocess.CompletedProcess:
    """The command in two processes, over Gloo, on a thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launcher, script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


def assert_same_training(one, two):
    """One process' run and two processes' of it: the same losses and the same results."""
    histories = [pd.read_csv(folder / "history.csv") for folder in (one, two)]
    for column in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        assert histories[1][column].tolist() == pytest.approx(histories[0][column], rel=1e-5)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert [m["hardware"]["processes"] for m in metrics] == [1, 2]
    for split in ("in_domain_dev", "out_of_domain_dev"):
        assert metrics[1][split]["correct"] == metrics[0][split]["correct"]
        assert metrics[1][split]["sentences"] == len(read_predictions(two, split))


def read_predictions(folder, split):
    predictions = pd.read_csv(folder / "predictions.csv")
    return predictions[predictions["split"] == split]["line"].unique()


def test_two_processes_train_what_one_does_and_one_of_them_prints(demo, tmp_path):
    """LoRA and distil; the third run is finished already."""
    finished = checkpoint(tmp_path, "rnn")
    shutil.copytree(checkpoint(demo.folder, "rnn"), finished)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    options = (*demo.options, "--transfer_size", 200, "--out_dir", tmp_path)
    result = torchrun("--mode", "all", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Number of parameters: ") == 1
    assert result.stdout.count("kept epoch") == 3
    assert result.stdout.count("report: ") == 1
    for mode in ("LoRA", "distil"):
        assert_same_training(checkpoint(demo.folder, mode), checkpoint(tmp_path, mode))
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_two_processes_train_a_student_with_hints_as_one_does(demo, call, tmp_path):
    teacher = checkpoint(demo.folder, "LoRA")
    hints = ("--hint_weight", 3, "--transfer_source", "written", "--transfer_size", 100)
    hints = (*hints, "--embedding_start", "teacher", "--held_out", 200)
    options = ("--mode", "distil", *demo.options, *hints, "--teacher", teacher, "--out_dir")
    assert call(*options, tmp_path / "one").returncode == 0
    result = torchrun(*options, tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert_same_training(*(checkpoint(tmp_path / name, "distil") for name in ("one", "two")))
    one, two = (next((tmp_path / name / "transfer").glob("*.json")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that did would abort the process, now and then, as it exits."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(PROJECT)!r})
from support.processes import any_process, process_group
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
with process_group():
    any_process(True)
    during = threads()
    import torch
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()
os.write(1, f"{{before < during > threads() == before}}\\n".encode())
""")
    result = torchrun(script=script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "True"]


@pytest.mark.parametrize(("local_rank", "lines"), [(0, 1), (1, 0)])
def test_what_a_machine_lacks_is_said_there_once(call, monkeypatch, local_rank, lines):
    """As on the second machine of several: its processes are not the main one."""
    environment = {"WORLD_SIZE": 4, "RANK": 2 + local_rank, "LOCAL_RANK": local_rank}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(front_door, "process_group", nullcontext)  # the others are not there
    result = call("--mode", "rnn", *QUICK, "--data_dir", "nowhere")
    assert result.returncode == 2
    assert result.stderr.count("run.py: error: --data_dir nowhere") == lines


def test_a_rank_without_other_processes_silences_nothing(demo, call, monkeypatch):
    """As left over in a shell or set by another launcher."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "--mode" in refusal(call("--mode", "dance"))
    assert "--data_dir nowhere" in refusal(call("--mode", "rnn", *QUICK, "--data_dir", "nowhere"))
    result = call("--mode", "predict", "--checkpoint", checkpoint(demo.folder, "rnn"), *SENTENCES)
    assert result.returncode == 0
    assert SENTENCES[0] in result.stdout


def test_an_error_that_every_process_meets_is_said_once(tmp_path):
    nowhere = ("--data_dir", tmp_path / "nowhere")
    result = torchrun("--mode", "rnn", *QUICK, *nowhere, "--out_dir", tmp_path)
    assert result.returncode != 0
    assert result.stderr.count("run.py: error: --data_dir") == 1


def test_a_process_without_a_sentence_of_the_batch_does_no_harm(call, tmp_path, data):
    few = ("--max_steps", 3, "--batch_size", 1, "--data_dir", data)
    options = ("--mode", "rnn", *NANO_RUN, *few, "--out_dir")
    assert call(*options, tmp_path / "one").returncode == 0
    result = torchrun(*options, tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert_same_training(*(checkpoint(tmp_path / name, "rnn") for name in ("one", "two")))


# ---------------------------------------------------------------------------------------------
# Bad input: one line, exit status 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "dance"], "--mode dance: choose one of gen, LoRA"),
        (["--mode", "lora"], "--mode lora: did you mean LoRA?"),
        (["--prompt", "no mode"], "--mode: choose one of gen, LoRA"),
        (["--mode", "LoRA", "--recipe", "hints"], "--recipe means nothing to --mode LoRA"),
        (
            ["--mode", "distil", "--transfer_size", 2_000_000_000],
            "--transfer_size: 2000000000 is out",
        ),
        (["--mode", "gen", *NANO_RUN, "--device", "meta"], "--device meta: not usable here"),
        (["--mode", "gen", "--lora_rank", 3], "--lora_rank means nothing to --mode gen"),
        (
            ["--mode", "distil", "--transfer_source", "written"],
            "--transfer_source means nothing without --transfer_size",
        ),
        (
            ["--mode", "distil", *NANO_RUN, "--transfer_file", "mine.txt"],
            "--transfer_file means nothing without --transfer_source written or both",
        ),
        (
            ["--mode", "rnn", "--threshold", "accuracy"],
            "--threshold means nothing without --held_out",
        ),
        (
            ["--mode", "all", *NANO_RUN, "--hint_weight", 0, "--hint_width", 9],
            "--hint_width means nothing without --hint_weight",
        ),
        (["--mode", "rnn", "--sr_no", "5-1"], "--sr_no: 5-1: a range rises"),
        (["--mode", "rnn", "--sr_no", "1-1001"], "--sr_no: 1-1001: a range rises"),
        (["--mode", "rnn", "--sr_no", "1,,2"], "--sr_no: '1,,2' is not like"),
        (["--mode", "rnn", "--sr_no", "1-"], "--sr_no: '1-' is not like"),
        (["--mode", "rnn", "--sr_no", "3,1-5"], "--sr_no: 3,1-5 has a number twice"),
        (["--mode", "rnn", "--sr_no", 2**63], "--sr_no: 9223372036854775808 is out of range"),
        (["--mode", "rnn", "--sr_no", "1" * 101], "--sr_no: more than 100 characters"),
        (["--mode", "predict", "--sr_no", "1,2"], "--sr_no: --mode predict takes one number"),
        (["--mode", "LoRA", "--epochs", 0], "--epochs"),
        (["--mode", "LoRA", "--batch_size", "many"], "--batch_size"),
        (["--mode", "LoRA", "--lr", "nan"], "--lr"),
        (["--mode", "LoRA", "--lr", "-1"], "--lr"),
        (["--mode", "LoRA", "--lora_rank", 0], "--lora_rank"),
        (["--mode", "LoRA", *NANO_RUN, "--lora_rank", 4096], "does not fit a weight"),
        (["--mode", "all", *NANO_RUN, "--held_out", 4000], "--held_out 4000: the corpus has 4000;"),
        (["--mode", "LoRA", "--held_out", 5], "--held_out means nothing to --mode LoRA"),
        (["--mode", "distil", "--kd_temperature", 0], "--kd_temperature"),
        (["--mode", "distil", "--kd_alpha", 1.5], "--kd_alpha"),
        (["--mode", "gen", "--top_p", 0], "--top_p"),
        (["--mode", "distil", "--kd_temperature", "1e200"], "--kd_temperature"),
        (["--mode", "gen", "--temperature", -1], "--temperature"),
        (["--mode", "export", "--precision", "bf16"], "--precision means nothing to --mode export"),
        (["--mode", "gen", *NANO_RUN, "--max_new_tokens", 5000], "room for"),
        (["--mode", "gen", "--gpt_variant", "gpt7"], "neither one of"),
        (["--mode", "gen", *NANO_RUN, "--device", "cuda:99"], "--device cuda:99"),
        (["--mode", "LoRA", *NANO_RUN, "--data_dir", "nowhere"], "--data_dir nowhere"),
        (
            ["--mode", "distil", *NANO_RUN, "--out_dir", "out"],
            "run: python run.py --mode LoRA --gpt_variant nano --sr_no 7 --out_dir out,",
        ),
        (["--mode", "predict", *NANO_RUN, "Hello."], "no such checkpoint folder"),
        (["--mode", "report", "--sr_no", 12], "python run.py --mode all --sr_no 12"),
        (["--mode", "LoRA", *NANO_RUN, "--out_dir", "/proc/nothing"], "cannot be written"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(call, arguments, words, tmp_path):
    assert words in refusal(call(*arguments))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_bad_input_is_one_line_and_status_2_in_a_process_of_its_own(run):
    assert "--lora_rank means nothing" in refusal(run("--mode", "gen", "--lora_rank", 3))
    assert "nowhere.txt: no such file" in refusal(
        run("--mode", "predict", "--input", "nowhere.txt")
    )


def test_a_data_folder_that_lacks_a_file_is_named(call, tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    line = refusal(call("--mode", "rnn", *NANO_RUN, "--data_dir", "data"))
    assert "data/raw/in_domain_train.tsv: no such file" in line


@pytest.mark.parametrize("options", [("--mode", "export"), ("--mode", "rnn", *NANO_RUN)])
def test_an_out_dir_that_is_a_file_is_refused(demo, call, tmp_path, options):
    (tmp_path / "file").touch()
    student = ("--checkpoint", checkpoint(demo.folder, "rnn")) if "export" in options else ()
    line = refusal(call(*options, *student, "--out_dir", "file"))
    assert "cannot be written (Not a directory)" in line


def test_empty_and_broken_sentences_are_refused(call, demo):
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo.folder, "rnn"))
    assert "no sentences" in refusal(call(*options, input=""))
    assert "no such file" in refusal(call(*options, "--input", "nowhere.txt"))
    assert "the model takes 1 to" in refusal(call(*options, "word " * 3000))
    control = "standard input, line 2: a control character, '\\x07'"
    assert control in refusal(call(*options, input="Fine.\nRing\x07.\n"))
    control = "the command line, line 2: a control character, '\\x1b'"
    assert control in refusal(call(*options, "Fine.", "\x1b[31mRed."))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_while_printing_is_one_line(demo):
    command = [*COMMAND, "--mode", "predict", "--checkpoint"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*command, checkpoint(demo.folder, "rnn"), "The teacher sleeps."],
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False,
        )  # fmt: skip
    assert result.stderr.startswith("run.py: error: output: No space left on device")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(tmp_path, before, after):
    """OpenMP reads it when PyTorch is loaded: it is set before."""
    code = (
        "import os, sys, run; run.dispatch = lambda _: print(os.environ['OMP_WAIT_POLICY'], "
        "'torch' in sys.modules); run.main(['--mode', 'report'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": before} if before else {}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{after} False\n", done.stderr
