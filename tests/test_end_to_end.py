"""Every mode as a user runs it, on nano: in processes of its own where that matters."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pandas as pd
import peft
import pytest
import torch
from conftest import NANO, beginnings, padded_logits, refusal, write_corpus
from safetensors import safe_open
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef

import distil
import finetune
from bench.kills import READS, TRAINS, WRITES, compare_killed
from bench.parity import hugging_face
from data_utils import load_corpus
from predict import NANO_NOTE
from support import PROJECT
from support.bases import load_tokenizer
from support.corpus import DEV, SPLITS, read_corpus
from support.reporting import describe, read_metrics
from support.reporting.finished import find_runs
from support.teaching import written

NANO_RUN = ("--gpt_variant", "nano", "--sr_no", 7)
QUICK = (*NANO_RUN, "--max_steps", 6, "--epochs", 2, "--batch_size", 32)
HINTS = shlex.split(
    "--hint_weight 3 --transfer_source everyday --embedding_start mapped --held_out 200"
)
SENTENCES = ["The teacher sleeps.", "The teacher sleep."]
DEV_FILE = NANO / "corpus" / "raw" / "in_domain_dev.tsv"
COMMAND = [sys.executable, str(PROJECT / "run.py")]


class Demo(NamedTuple):
    """A folder in which ``--mode all`` has run, the options but for --mode, and what it printed."""

    folder: Path
    options: tuple
    result: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the beginnings of nano's corpus, for runs that take no time."""
    return write_corpus(tmp_path_factory.mktemp("data"), beginnings(1000, 300, 300))


@pytest.fixture(scope="module")
def demo(tmp_path_factory, data):
    """The demonstration, quickly: other tests look at its runs and change nothing there."""
    folder = tmp_path_factory.mktemp("demo")
    options = (*QUICK, "--data_dir", data)
    more = ("--transfer_size", 200, "--out_dir", folder)
    command = [*COMMAND, "--mode", "all", *map(str, (*options, *more))]
    return Demo(folder, options, done(subprocess.run(command, capture_output=True, text=True)))


def done(result):
    """A command that is done."""
    assert result.returncode == 0, result.stderr
    return result


def checkpoint(folder, mode):
    return folder / "checkpoints" / f"{mode}_nano_7"


def answers(result) -> list[dict]:
    """What ``predict --json`` printed."""
    return [json.loads(line) for line in done(result).stdout.splitlines()]


# ---------------------------------------------------------------------------------------------
# Training


def test_all_leaves_every_file_of_the_design(demo):
    folder, _, result = demo
    student = ["model.safetensors", "config.json", "tokenizer.json"]
    teacher = ["adapter_config.json", "adapter_model.safetensors"]
    for mode, weights in (("LoRA", teacher), ("rnn", student), ("distil", student)):
        run = checkpoint(folder, mode)
        assert all((run / name).stat().st_size > 0 for name in (*weights, "predictions.csv"))
        assert not (run / "state.safetensors").exists()
        history, metrics = pd.read_csv(run / "history.csv"), read_metrics(run)
        assert list(history) == [
            "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mcc",
            "seconds", "sentences_per_second", *(["hint_loss"] if mode == "distil" else []),
        ]  # fmt: skip
        assert metrics["training"]["steps"] == 6
        best = history.iloc[metrics["training"]["best_epoch"] - 1]
        assert metrics[DEV]["accuracy"] == best.val_accuracy
        assert metrics[DEV]["mcc"] == best.val_mcc
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


@pytest.mark.parametrize(("mode", "more"), [("LoRA", ()), ("distil", ("--transfer_size", 200))])
def test_a_finished_run_is_shown_and_a_student_without_loading_its_teacher(
    demo, call, mode, more, monkeypatch
):
    weights = max(checkpoint(demo.folder, mode).glob("*model.safetensors"))
    before = weights.stat().st_mtime_ns
    if mode == "distil":  # what LoRA trains on is known by being loaded
        monkeypatch.setattr("support.bases.loading.load_pretrained", None)
    options = ("--mode", mode, *demo.options, *more, "--out_dir", demo.folder)
    result = done(call(*options))
    assert "accuracy" in result.stdout
    assert ("Number of parameters: " in result.stdout) == (mode == "LoRA")
    assert "epoch 1/" not in result.stdout
    assert weights.stat().st_mtime_ns == before
    assert "lr is 0.001 there, 0.01 here" in refusal(call(*options, "--lr", 0.01))


@pytest.mark.parametrize("mode", ["LoRA", "rnn"])
def test_a_folder_that_bears_a_hubs_name_is_told(call, tmp_path, data, mode):
    shutil.copytree(NANO, tmp_path / "gpt2", ignore=shutil.ignore_patterns("corpus"))
    few = ("--max_steps", 1, "--data_dir", data)
    result = done(call("--mode", mode, "--gpt_variant", "gpt2", *few))
    assert f"note: base gpt2: a folder, {tmp_path / 'gpt2'}\n" in result.stderr
    metrics = read_metrics(tmp_path / f"checkpoints/{mode}_gpt2_22915")
    assert (metrics["base"]["name"], metrics["base"]["kind"]) == ("gpt2", "folder")
    assert metrics["identity"]["base"] == metrics["base"]["fingerprint"]
    assert (tmp_path / "plots" / f"{mode}_gpt2_22915_loss.png").exists()


def test_several_sr_no_train_what_each_alone_does_and_give_one_report(demo, call, tmp_path):
    several = ("--mode", "rnn", *demo.options, "--sr_no", "6-7")
    done(call(*several))
    for name in ("model.safetensors", "predictions.csv"):
        alone, together = (checkpoint(f, "rnn") / name for f in (demo.folder, tmp_path))
        assert alone.read_bytes() == together.read_bytes()
    assert "epoch 1/" not in call(*several).stdout  # both are finished
    done(call("--mode", "report", "--sr_no", "6-7"))
    assert (tmp_path / "plots" / "rnn_nano_6-7_loss.png").exists()
    result = done(call("--mode", "report", "--sr_no", "6-8"))
    assert "rnn_nano_8" in result.stderr  # what is missing is named, and the rest is reported
    for several in ("6-7", "6-8"):
        assert (tmp_path / f"Report_{several}.pdf").read_bytes().startswith(b"%PDF")
    again = done(call("--mode", "report", "--sr_no", 7, "--out_dir", demo.folder)).stdout
    printed = demo.result.stdout.splitlines()
    rows = [line for line in printed if line.startswith(("LoRA ", "distil "))]
    assert rows
    assert all(row in again for row in rows)  # as `all` showed them


def test_a_finished_student_is_shown_when_its_teacher_or_file_is_gone_and_no_other_is(
    demo, call, tmp_path
):
    file, teacher, away = tmp_path / "mine.txt", checkpoint(tmp_path, "LoRA"), tmp_path / "away"
    shutil.copytree(checkpoint(demo.folder, "LoRA"), teacher)
    file.write_text("The dogs chased a cat.\nThe dogs chase cat a.\nShe smiled.\n")
    more = ("--transfer_source", "written", "--transfer_size", 3, "--transfer_file", "mine.txt")
    cell = ("--student_cell", "gru", "--student_layers", 2, "--hint_weight", 0)
    options = ("--mode", "distil", *demo.options, *more, *cell)
    done(call(*options))
    folder = checkpoint(tmp_path, "distil")
    assert json.loads((folder / "config.json").read_text())["cell"] == "gru"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for gone, words in ((file, "mine.txt: no such file"), (teacher, "LoRA_nano_7: no teacher")):
        gone.rename(away)
        shown = done(call(*options))
        assert "kept epoch" in shown.stdout
        assert words in shown.stderr
        assert "the run is finished, and is shown" in shown.stderr
        for other in (("--lr", 0.01), ("--overwrite",)):
            assert words in refusal(call(*options, *other))
        away.rename(gone)
    file.write_text(file.read_text().replace("She", "He"))
    assert "transfer_file is" in refusal(call(*options))  # another file is another run
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    unfinished = {"identity": read_metrics(folder)["identity"]}
    (folder / "unfinished.json").write_text(json.dumps(unfinished))
    file.unlink()
    assert "mine.txt: no such file" in refusal(call(*options))


def test_what_is_replaced_after_its_fingerprint_was_taken_is_refused(
    demo, call, monkeypatch, tmp_path
):
    """A teacher, a file of sentences and a base; nothing stands under the wrong name."""
    (tmp_path / "mine.txt").write_text("The dogs chased a cat.\nShe smiled.\n")
    teacher = ("--teacher", checkpoint(demo.folder, "LoRA"), "--hint_weight", 0)
    more = ("--transfer_source", "written", "--transfer_size", 2, "--transfer_file", "mine.txt")
    distilled = ("--mode", "distil", *demo.options, *more, *teacher)
    words = "replaced by another while this command ran; give the command again"

    def read(path, *rest):
        path.write_text("The dogs chased a cat.\nHe smiled.\n")
        return sentences_of_file(path, *rest)

    sentences_of_file = written.sentences_of_file
    monkeypatch.setattr(written, "sentences_of_file", read)
    assert f"mine.txt: {words}" in refusal(call(*distilled))
    monkeypatch.setattr(distil, "teacher_fingerprint", lambda *_: "that of another")
    assert f"{teacher[1]}: {words}" in refusal(call(*distilled))
    assert not list(tmp_path.rglob("*.safetensors"))
    seen = iter(["one", "another"])  # the base as it was trained on, and as it was scored on
    monkeypatch.setattr(finetune, "base_fingerprint", lambda _: next(seen))
    result = call("--mode", "LoRA", *demo.options)
    assert result.returncode == 2
    assert "was trained on another base (nano, one) than nano (another)" in result.stderr
    assert not checkpoint(tmp_path, "LoRA").joinpath("metrics.json").exists()


# ---------------------------------------------------------------------------------------------
# Using what was trained


@pytest.mark.parametrize(
    ("mode", "precision", "rule"),
    [
        ("LoRA", "fp32", None),
        ("LoRA", "bf16", None),
        ("rnn", "bf16", None),
        ("rnn", "fp32", "balanced"),
        ("rnn", "fp32", "accuracy"),
    ],
)
def test_what_is_scored_is_the_model_as_predict_loads_it(
    demo, call, mode, precision, rule, tmp_path
):
    """To the last bit of every logit; a student's threshold is that of its training."""
    device = ("--precision", precision)
    held = ("--held_out", 200, "--threshold", rule) if rule else ()
    trained = done(call("--mode", mode, *demo.options, *device, *held, "--lr", 0.01))
    (run,) = find_runs(tmp_path, [7])[0].runs
    if rule:
        edge = run.predictions[DEV].decision.threshold
        assert f"threshold: a margin of {edge:+.2f}, p(acceptable) = " in trained.stdout
        assert f" ({rule}), set on 200 held-out sentences" in trained.stdout
    table = pd.read_csv(run.folder / "predictions.csv")
    for split in SPLITS[1:]:
        path = demo.options[-1] / "raw" / f"{split}.tsv"
        options = ("--mode", "predict", "--json", "--checkpoint", run.folder, *device)
        result = call(*options, "--input", path)
        said, kept = pd.DataFrame(answers(result)), run.predictions[split]
        logits = table[table["split"] == split][["logit_0", "logit_1"]].to_numpy().tolist()
        assert said["logits"].tolist() == logits
        assert said["label"].tolist() == kept.answers.tolist()
        p = kept.decision.p_acceptable(kept.margins)
        assert said["p_acceptable"].tolist() == pytest.approx(p.tolist(), abs=1e-6)
        assert describe(run.metrics[split]) in result.stderr
        assert ("(balanced)" in result.stderr) == (rule == "balanced")
    if (mode, precision) == ("LoRA", "fp32"):
        theirs = peft.PeftModel.from_pretrained(hugging_face(NANO), run.folder).eval()
        corpus = load_corpus(demo.options[-1], load_tokenizer(NANO), 512)
        expected = padded_logits(theirs, corpus[split])
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["LoRA", "distil"])
def test_predict_reads_any_checkpoint_and_every_source_alike(demo, call, mode, tmp_path):
    """From a file with a byte order mark, and with blank lines, too; as JSON and as a table."""
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo.folder, mode))
    expected = call(*options, "--json", *SENTENCES)
    for answer, sentence in zip(answers(expected), SENTENCES, strict=True):
        p = torch.tensor(answer["logits"]).softmax(0)
        assert (answer["sentence"], answer["label"]) == (sentence, int(p.argmax()))
        assert answer["p_acceptable"] == pytest.approx(p[1].item(), abs=1e-6)
    assert expected.stderr == f"note: {NANO_NOTE}\n"
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(SENTENCES).encode())
    assert call(*options, "--json", "--input", "bom.txt").stdout == expected.stdout
    for text, note in (
        ("\ufeff{}\n{}", ""),
        ("{}\n\n{}", "standard input: 1 blank line passed over\n"),
        ("{}\n\n \n{}\n\n", "standard input: 3 blank lines passed over\n"),
    ):
        piped = call(*options, "--json", input=text.format(*SENTENCES))
        assert (piped.stdout, piped.stderr) == (expected.stdout, note + expected.stderr)
    header, *rows = call(*options, *SENTENCES).stdout.splitlines()
    assert header.split() == ["p(acceptable)", "judgement", "sentence"]
    for row, answer in zip(rows, answers(expected), strict=True):
        word = ("unacceptable", "acceptable")[answer["label"]]
        assert row.split(maxsplit=2) == [f"{answer['p_acceptable']:.3f}", word, answer["sentence"]]


def test_predict_shows_and_scores_several_models_side_by_side(demo, call):
    """What each says is what it says alone."""
    folders = [checkpoint(demo.folder, mode) for mode in ("LoRA", "rnn")]
    names, predict = [folder.name for folder in folders], ("--mode", "predict")
    alone = [answers(call(*predict, "--json", "--checkpoint", f, *SENTENCES)) for f in folders]
    options = (*predict, *(word for f in folders for word in ("--checkpoint", f)))
    both = answers(call(*options, "--json", *SENTENCES))
    header, *rows = call(*options, *SENTENCES).stdout.splitlines()
    assert header.split() == [*names, "sentence"]
    for row, found, *each in zip(rows, both, *alone, strict=True):
        assert list(found["models"]) == names
        cells = [f"{answer['p_acceptable']:.3f}" for answer in each]
        assert row.split()[0:4:2] == cells
        sentence = {"sentence": found["sentence"]}
        assert [sentence | answer for answer in found["models"].values()] == each
    sentences, labels, *_ = zip(*read_corpus(NANO / "corpus").rows[DEV], strict=True)
    judged = [answer["models"] for answer in answers(call(*options, "--json", *sentences))]
    scored = call(*options, "--input", DEV_FILE).stdout
    for name in names:
        found = [models[name]["label"] for models in judged]
        _, first, second = scored.partition(f"\n{name}:")[2].splitlines()[:3]
        assert f"accuracy {accuracy_score(labels, found):.2%}" in first
        assert f"MCC {matthews_corrcoef(labels, found):.3f}" in first
        for count in confusion_matrix(labels, found).ravel():
            assert re.search(rf"\b{count}\b", second)


def test_gen_gives_the_same_text_for_the_same_sr_no(run, call):
    """In a process of its own, where the locale is ASCII, too."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    nano = ("--gpt_variant", "nano", "--max_new_tokens", 20)
    options = ("--mode", "gen", *nano, "--prompt", "Étude")
    first = done(run(*options, "--sr_no", 1, env=ascii_only))
    assert first.stdout.startswith("Étude")
    assert first.stderr == ""
    assert call(*options, "--sr_no", 1).stdout == first.stdout
    assert call(*options, "--sr_no", 2).stdout != first.stdout
    _, *greedy = call(*options, "--temperature", 0, "--num_samples", 2).stdout.split("---")
    one, two = (text.partition("\n")[2].strip() for text in greedy)
    assert one == two == call(*options, "--temperature", 1e-39).stdout.strip()


# ---------------------------------------------------------------------------------------------
# Interrupting


def start(options, tmp_path, stdout=subprocess.DEVNULL) -> subprocess.Popen:
    """Start the command in a process of its own."""
    command, pipe = [*COMMAND, *map(str, options)], subprocess.PIPE
    return subprocess.Popen(command, cwd=tmp_path, encoding="utf-8", stdout=stdout, stderr=pipe)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_keeps_its_folder_until_a_signal_ends_it_and_the_same_command_goes_on(
    demo, call, tmp_path, data, number
):
    """In the place of a finished run, of which nothing is left for use meanwhile."""
    shutil.copytree(demo.folder / "checkpoints", tmp_path / "checkpoints")
    options = ("--mode", "LoRA", *NANO_RUN, "--data_dir", data, "--epochs", 2)
    folder = checkpoint(tmp_path, "LoRA")
    first = start((*options, "--overwrite"), tmp_path)
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
        again = "the same command without --overwrite goes on from the last save"
        assert (first.returncode, error) == (130, f"\nrun.py: interrupted; {again}\n")
    for mode in (["predict", *SENTENCES], ["export"], ["distil"]):
        line = refusal(call("--mode", *mode, *NANO_RUN))
        assert "LoRA_nano_7: this run is not finished; finish it with: python run.py" in line
        assert "--epochs 2 --overwrite" in line
    assert [run.mode for run in find_runs(tmp_path, [7])] == ["distil", "rnn"]
    assert "resuming after step" in done(call(*options)).stdout
    assert read_metrics(folder)["training"]["stopped"] == "epochs"
    done(call("--mode", "predict", *NANO_RUN, *SENTENCES))


def test_a_reader_that_leaves_interrupts_training_and_loses_nothing(call, tmp_path, data):
    few = ("--data_dir", data, "--epochs", 2, "--batch_size", 32)
    options = ("--mode", "rnn", *NANO_RUN, *few, "--overwrite")
    process = start(options, tmp_path, subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 130
    assert "the same command without --overwrite goes on" in error
    assert "Traceback" not in error
    assert "resuming after step 32, in epoch 2" in done(call(*options)).stdout


def test_three_kills_change_nothing(demo, tmp_path, data):
    """While a base writes, its teacher reads, a student trains; its folder has no projection."""
    teacher = checkpoint(demo.folder, "LoRA")
    hints = (*HINTS, "--transfer_size", 750, "--student_dropout", 0.3)
    some = ("--data_dir", data, "--epochs", 2, "--batch_size", 16, "--teacher", teacher)
    options = ["--mode", "distil", *map(str, (*NANO_RUN, *hints, *some))]
    aims = [WRITES, READS, TRAINS]  # this seed draws each once
    differences, _ = compare_killed(tmp_path, kills=3, seed=160, options=options, aims=aims)
    assert differences == []
    assert len(list((tmp_path / "alone" / "transfer").glob("teacher_*.safetensors"))) > 1
    names = []
    for folder in (checkpoint(tmp_path / "alone", "distil"), checkpoint(demo.folder, "rnn")):
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


# ---------------------------------------------------------------------------------------------
# Several processes


def torchrun(*arguments, script=COMMAND[1]) -> subprocess.CompletedProcess:
    """The command in two processes, over Gloo, on a thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")


def assert_same_training(one, two):
    """One process' run and two processes' of it: the same losses and the same results."""
    histories = [pd.read_csv(folder / "history.csv") for folder in (one, two)]
    for column in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        assert histories[1][column].tolist() == pytest.approx(histories[0][column], rel=1e-5)
    metrics = [read_metrics(folder) for folder in (one, two)]
    assert [m["hardware"]["processes"] for m in metrics] == [1, 2]
    predictions = pd.read_csv(two / "predictions.csv")
    for split in SPLITS[1:]:
        assert metrics[1][split]["correct"] == metrics[0][split]["correct"]
        assert metrics[1][split]["sentences"] == (predictions["split"] == split).sum()
    assert not predictions.duplicated(["split", "line"]).any()


def test_two_processes_train_what_one_does_and_one_of_them_prints(demo, tmp_path):
    """LoRA and distil; the third run is finished already."""
    finished = checkpoint(tmp_path, "rnn")
    shutil.copytree(checkpoint(demo.folder, "rnn"), finished)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    options = (*demo.options, "--transfer_size", 200, "--out_dir", tmp_path)
    result = done(torchrun("--mode", "all", *options))
    counts = {"Number of parameters: ": 1, "kept epoch": 3, "report: ": 1}
    assert {words: result.stdout.count(words) for words in counts} == counts
    for mode in ("LoRA", "distil"):
        assert_same_training(checkpoint(demo.folder, mode), checkpoint(tmp_path, mode))
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_two_processes_train_a_student_with_hints_as_one_does(demo, call, tmp_path):
    """The second batch has one of the 900 sentences, and leaves one process without any."""
    teacher = checkpoint(demo.folder, "LoRA")
    hints = (*HINTS, "--transfer_size", 100, "--batch_size", 899)
    options = ("--mode", "distil", *demo.options, *hints, "--teacher", teacher, "--out_dir")
    with patch.object(written, "written_sentences", wraps=written.written_sentences) as writing:
        done(call(*options, tmp_path / "one"))
    corpus = writing.call_args.args[2]  # the base writes after no sentence that is held out
    assert len(corpus["held_out"]) == 200
    assert not set(corpus["held_out"].sentences) & set(corpus["in_domain_train"].sentences)
    done(torchrun(*options, tmp_path / "two"))
    runs = [checkpoint(tmp_path / name, "distil") for name in ("one", "two")]
    assert_same_training(*runs)
    metrics = read_metrics(runs[0])
    assert metrics["training"]["steps"] == 4  # in two epochs
    folders = (sorted((tmp_path / name / "transfer").glob("*.json")) for name in ("one", "two"))
    one, two = ([path.read_bytes() for path in files] for files in folders)
    assert one == two
    assert len(one) == 2  # after the corpus, and everyday


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
    assert done(torchrun(script=script)).stdout.split() == ["True", "True"]


# ---------------------------------------------------------------------------------------------
# Bad input: one line, exit status 2


NANO7 = "--gpt_variant nano --sr_no 7"
REFUSED = [  # a command, the line's words, and the input if it has any
    ("--mode dance", "--mode dance: choose one of gen, LoRA"),
    ("--mode lora", "--mode lora: did you mean LoRA?"),
    ("--prompt Hello", "--mode: choose one of gen, LoRA"),
    ("--mode LoRA --recipe hints", "--recipe means nothing to --mode LoRA"),
    ("--mode LoRA Hello.", "Hello. means nothing to --mode LoRA"),
    ("--mode LoRA --lora_ra 3", "--lora_ra means nothing to --mode LoRA"),
    ("--mode export --precision bf16", "--precision means nothing to --mode export"),
    ("--mode distil --transfer_source written", "means nothing without --transfer_size"),
    (f"--mode distil {NANO7} --transfer_file a", "nothing without --transfer_source written"),
    ("--mode rnn --threshold accuracy", "--threshold means nothing without --held_out"),
    (f"--mode all {NANO7} --hint_weight 0 --hint_width 9", "means nothing without --hint_weight"),
    ("--mode rnn --sr_no 5-1", "--sr_no: 5-1: a range rises"),
    ("--mode rnn --sr_no 1,,2", "--sr_no: '1,,2' is not like"),
    ("--mode rnn --sr_no 1-", "--sr_no: '1-' is not like"),
    ("--mode rnn --sr_no 3,1-5", "--sr_no: 3,1-5 has a number twice"),
    (f"--mode rnn --sr_no {2**63}", "--sr_no: 9223372036854775808 is out of range"),
    (f"--mode rnn --sr_no {'1' * 101}", "--sr_no: more than 100 characters"),
    ("--mode predict --sr_no 1,2", "--sr_no: --mode predict takes one number"),
    ("--mode LoRA --epochs 0", "--epochs: 0 is out of range: at least 1"),
    ("--mode LoRA --batch_size many", "--batch_size: invalid whole number value: 'many'"),
    ("--mode LoRA --lr nan", "--lr: nan is out of range: more than 0"),
    ("--mode LoRA --lr inf", "--lr: inf is out of range"),
    ("--mode LoRA --lr 0", "--lr: 0 is out of range: more than 0"),
    ("--mode distil --transfer_size 2000000000", "--transfer_size: 2000000000 is out of range"),
    ("--mode distil --kd_temperature 1e200", "--kd_temperature: 1e200 is out of range"),
    ("--mode distil --kd_alpha 1.5", "--kd_alpha: 1.5 is out of range: at least 0 and at most 1"),
    ("--mode gen --top_p 0", "--top_p: 0 is out of range: more than 0 and at most 1"),
    ("--mode gen --temperature -1", "--temperature: -1 is out of range"),
    (f"--mode LoRA {NANO7} --lora_rank 4096", "does not fit a weight"),
    (f"--mode all {NANO7} --held_out 4000", "--held_out 4000: the corpus has 4000;"),
    (f"--mode all {NANO7} --held_out 1", "--held_out 1: these have one label; hold out more"),
    (f"--mode gen {NANO7} --max_new_tokens 5000", "room for"),
    (f"--mode gen {NANO7} --device cuda:99", "--device cuda:99"),
    (f"--mode LoRA {NANO7} --data_dir nowhere", "nowhere: no such file or folder"),
    (f"--mode rnn {NANO7} --data_dir bare", "bare: no training sentences there"),
    (f"--mode distil {NANO7} --out_dir out", f"run.py --mode LoRA {NANO7} --out_dir out,"),
    ("--mode export --checkpoint nowhere", "nowhere: no such checkpoint folder"),
    ("--mode export --checkpoint {rnn} --checkpoint {rnn}", "--mode export takes one"),
    ("--mode export --checkpoint {rnn} --out_dir file", "cannot be written (Not a directory)"),
    (f"--mode rnn {NANO7} --out_dir file", "cannot be written (Not a directory)"),
    ("--mode report --sr_no 12", "no finished run with sr_no 12; --mode all makes"),
    ("--mode predict --checkpoint {rnn} --checkpoint {rnn} Hello.", "one is given twice"),
    ("--mode predict --checkpoint {rnn} --checkpoint nowhere Hello.", "nowhere: no such"),
    ("--mode predict --checkpoint {rnn} --input file Hello.", "choose one"),
    ("--mode predict --checkpoint {rnn} --input nowhere", "nowhere: no such file"),
    ("--mode predict --checkpoint {rnn}", "no sentences"),
    ("--mode predict --checkpoint {rnn} '" + "word " * 3000 + "'", "the model takes 1 to"),
    ("--mode predict --checkpoint {rnn} Fine. '\x1b[31m'", "command line, line 2: a control char"),
    ("--mode predict --checkpoint {rnn}", "input, line 2: a control char", "Fine.\nRing\x07.\n"),
    ("--mode predict --checkpoint {rnn}", "input, line 2: a tab in the", "Fine.\nNot\tfine.\n"),
    ("--mode predict --checkpoint {rnn}", "line 2: 2 columns;", "a\t1\t\tFine.\nNot\tfine.\n"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0][:60])
def test_bad_input_is_one_line_and_status_2(demo, call, row, tmp_path):
    command, words, *given = row
    (tmp_path / "file").touch()
    (tmp_path / "bare" / "raw").mkdir(parents=True)
    arguments = shlex.split(command.format(rnn=checkpoint(demo.folder, "rnn")))
    assert words in refusal(call(*arguments, input="".join(given)))
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("unfinished.json")]


@pytest.mark.parametrize(("closed", "status"), [("<&-", 2), (">&-", 0), ("2>&-", 0)])
def test_a_stream_that_the_shell_has_closed_is_an_empty_one(demo, closed, status):
    """The checkpoint is the folder itself, which has a name all the same."""
    words = ["--mode", "predict", "--checkpoint", "."] + SENTENCES * (status == 0)
    command = shlex.join([*COMMAND, *words])
    folder = checkpoint(demo.folder, "rnn")
    done = subprocess.run(f"{command} {closed}", shell=True, cwd=folder, capture_output=True)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    assert (b"standard input: no sentences" in done.stderr) == (status == 2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_while_printing_is_one_line(demo, tmp_path):
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo.folder, "rnn"), *SENTENCES)
    with open("/dev/full", "w") as full:
        error = start(options, tmp_path, full).stderr.read()
    note, line = error.splitlines()
    assert note == f"note: {NANO_NOTE}"
    assert line.startswith("run.py: error: output: No space left on device")


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(before, after):
    """OpenMP reads it when PyTorch is loaded: it is set before."""
    code = """
import os, sys, run
sys.modules["torch"] = None  # which cannot be imported any more
try: run.setup()
except ImportError: print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": before} if before else {}
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, cwd=PROJECT, env=environment, text=True)
    assert printed.split() == [after]
