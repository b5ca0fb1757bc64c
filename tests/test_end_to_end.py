"""Every mode as a user runs it: real processes, on nano."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import peft
import pytest
import torch
from conftest import NANO, padded_logits, refusal
from transformers import GPT2ForSequenceClassification

from data_utils import PROJECT, read_split
from model import load_tokenizer

sys.path.insert(0, str(PROJECT / "bench"))
from kills import compare_killed

NANO_RUN = ("--gpt_variant", "nano", "--sr_no", 7)
QUICK = (*NANO_RUN, "--max_steps", 6, "--epochs", 2, "--batch_size", 32)
SENTENCES = ["The teacher sleeps.", "The teacher sleep."]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which ``--mode all`` has run, quickly; and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    options = (*QUICK, "--transfer_size", 200, "--out_dir", folder)
    command = [sys.executable, PROJECT / "run.py", "--mode", "all", *map(str, options)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    return folder, result


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
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)


def test_all_leaves_every_file_of_the_design(demo):
    folder, result = demo
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
    assert not list(folder.rglob("*.partial"))
    for line in ("Number of parameters: ", "Number of trainable parameters: ", "Reduction: "):
        assert line in result.stdout
    assert result.stderr == ""  # no progress bar, and no warning, where the output is piped


def test_the_history_and_the_metrics_are_of_the_design(demo):
    for mode in ("LoRA", "rnn", "distil"):
        history = pd.read_csv(checkpoint(demo[0], mode) / "history.csv")
        assert list(history) == [
            "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mcc",
            "seconds", "sentences_per_second",
        ]  # fmt: skip
        metrics = json.loads((checkpoint(demo[0], mode) / "metrics.json").read_text())
        assert metrics["training"]["steps"] == 6
        best = history.iloc[metrics["training"]["best_epoch"] - 1]
        assert metrics["in_domain_dev"]["accuracy"] == best.val_accuracy
        assert metrics["in_domain_dev"]["mcc"] == best.val_mcc


def test_a_finished_run_is_shown_and_not_trained_again(demo, run):
    weights = checkpoint(demo[0], "LoRA") / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    result = run("--mode", "LoRA", *QUICK, "--out_dir", demo[0])
    assert result.returncode == 0
    assert "accuracy" in result.stdout
    assert "epoch 1/" not in result.stdout
    assert weights.stat().st_mtime_ns == before


def test_the_same_run_folder_with_other_options_is_refused(demo, run):
    line = refusal(run("--mode", "LoRA", *QUICK, "--lr", 0.01, "--out_dir", demo[0]))
    assert "lr is 0.001 there, 0.01 here" in line


@pytest.mark.parametrize("mode", ["LoRA", "distil"])
def test_predict_reads_any_checkpoint_and_every_source_alike(demo, run, mode, tmp_path):
    options = ("--mode", "predict", "--json", "--checkpoint", checkpoint(demo[0], mode))
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    outputs = {
        run(*options, *SENTENCES).stdout,
        run(*options, "--input", "sentences.txt").stdout,
        run(*options, input="\n".join(SENTENCES) + "\n").stdout,
    }
    assert len(outputs) == 1
    for line, sentence in zip(outputs.pop().splitlines(), SENTENCES, strict=True):
        found = json.loads(line)
        assert found["sentence"] == sentence
        probabilities = torch.tensor(found["logits"]).softmax(0)
        assert found["label"] == int(probabilities.argmax())
        assert found["p_acceptable"] == pytest.approx(probabilities[1].item(), abs=1e-6)


def test_predict_prints_a_table(demo, run):
    result = run("--mode", "predict", "--checkpoint", checkpoint(demo[0], "rnn"), *SENTENCES)
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["p(acceptable)", "judgement", "sentence"]
    for row, sentence in zip(rows, SENTENCES, strict=True):
        assert row.endswith(sentence)
        assert row.split()[1] in ("acceptable", "unacceptable")


def test_peft_loads_the_saved_adapter_and_agrees_with_predict(demo, run):
    folder = checkpoint(demo[0], "LoRA")
    sentences = read_split(NANO / "corpus" / "raw" / "out_of_domain_dev.tsv")[0][:50]
    result = run("--mode", "predict", "--json", "--checkpoint", folder, *sentences)
    ours = torch.tensor([json.loads(line)["logits"] for line in result.stdout.splitlines()])
    base = GPT2ForSequenceClassification.from_pretrained(NANO, num_labels=2)
    base.config.pad_token_id = 0
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    expected = padded_logits(theirs, load_tokenizer(NANO), sentences)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_gen_gives_the_same_text_for_the_same_sr_no(run):
    options = ("--mode", "gen", "--gpt_variant", "nano", "--max_new_tokens", 20)
    first = run(*options, "--sr_no", 1)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The teacher")
    assert first.stderr == ""
    assert run(*options, "--sr_no", 1).stdout == first.stdout
    assert run(*options, "--sr_no", 2).stdout != first.stdout
    greedy = run(*options, "--temperature", 0, "--num_samples", 2).stdout.split("---")
    assert greedy[1].partition("\n")[2].strip() == greedy[2].partition("\n")[2].strip()
    tiny = run(*options, "--temperature", 1e-39).stdout
    assert tiny.strip() == greedy[1].partition("\n")[2].strip()


def test_report_alone_gives_the_same_table(demo, run):
    result = run("--mode", "report", "--sr_no", 7, "--out_dir", demo[0])
    assert result.returncode == 0, result.stderr
    rows = [line for line in demo[1].stdout.splitlines() if line.startswith(("LoRA ", "distil "))]
    assert rows
    assert all(row in result.stdout for row in rows)


# ---------------------------------------------------------------------------------------------
# Interrupting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_goes_on_with_the_same_command(run, tmp_path, number):
    options = ("--mode", "rnn", *NANO_RUN, "--batch_size", 8, "--epochs", 1)
    command = [sys.executable, PROJECT / "run.py", *map(str, options)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    folder = checkpoint(tmp_path, "rnn")
    while not (folder / ".lock").exists():
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in error
        assert "Traceback" not in error
    result = run(*options)
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "metrics.json").read_text())["training"]["stopped"] == "epochs"


def test_a_reader_that_leaves_interrupts_training_and_loses_nothing(run, tmp_path):
    options = ("--mode", "rnn", *NANO_RUN, "--epochs", 2, "--overwrite")
    command = [sys.executable, PROJECT / "run.py", *map(str, options)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 130
    assert "the same command without --overwrite goes on" in error
    assert "Traceback" not in error
    result = run(*options)
    assert result.returncode == 0, result.stderr
    assert "resuming after step 32, in epoch 2" in result.stdout


def test_three_kills_change_nothing(tmp_path):
    options = ["--mode", "rnn", "--gpt_variant", "nano", "--epochs", "2", "--batch_size", "32"]
    assert compare_killed(tmp_path, kills=3, seed=1, options=options) == []


def test_a_second_command_is_refused_until_the_first_is_dead_and_then_goes_on(run, tmp_path):
    options = ("--mode", "rnn", *NANO_RUN, "--epochs", 3)
    command = [sys.executable, PROJECT / "run.py", *map(str, options)]
    folder = checkpoint(tmp_path, "rnn")
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        while not (folder / "state.safetensors").exists():  # the first epoch's end
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # alive, but not done before the second asks
        assert f"{folder.name}: another command is at work here" in refusal(run(*options))
    finally:
        first.kill()
        first.wait()
    result = run(*options)
    assert result.returncode == 0, result.stderr
    assert "resuming after step" in result.stdout
    assert json.loads((folder / "metrics.json").read_text())["training"]["stopped"] == "epochs"


# ---------------------------------------------------------------------------------------------
# Several processes


def torchrun(*arguments) -> subprocess.CompletedProcess:
    """The command in two processes, over Gloo, on a thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launcher, PROJECT / "run.py", *map(str, arguments)],
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
    result = torchrun("--mode", "all", *QUICK, "--transfer_size", 200, "--out_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Number of parameters: ") == 1
    assert result.stdout.count("report: ") == 1
    for mode in ("LoRA", "rnn", "distil"):
        assert_same_training(checkpoint(demo[0], mode), checkpoint(tmp_path, mode))
    again = torchrun("--mode", "rnn", *QUICK, "--out_dir", tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("kept epoch") == 1


@pytest.mark.parametrize(("local_rank", "lines"), [(0, 1), (1, 0)])
def test_what_a_machine_lacks_is_said_there_once(run, local_rank, lines):
    """As on the second machine of several: its processes are not the main one."""
    environment = {"RANK": str(2 + local_rank), "LOCAL_RANK": str(local_rank)}
    result = run("--mode", "rnn", *QUICK, "--data_dir", "nowhere", env=environment)
    assert result.returncode == 2
    assert result.stderr.count("run.py: error: --data_dir nowhere") == lines


def test_an_error_that_every_process_meets_is_said_once(tmp_path):
    nowhere = ("--data_dir", tmp_path / "nowhere")
    result = torchrun("--mode", "rnn", *QUICK, *nowhere, "--out_dir", tmp_path)
    assert result.returncode != 0
    assert result.stderr.count("run.py: error: --data_dir") == 1


def test_a_process_without_a_sentence_of_the_batch_does_no_harm(run, tmp_path):
    options = ("--mode", "rnn", *NANO_RUN, "--max_steps", 3, "--batch_size", 1, "--out_dir")
    assert run(*options, tmp_path / "one").returncode == 0
    result = torchrun(*options, tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert_same_training(*(checkpoint(tmp_path / name, "rnn") for name in ("one", "two")))


# ---------------------------------------------------------------------------------------------
# Bad input: one line, exit status 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "dance"], "--mode"),
        (["--mode", "gen", "--lora_rank", 3], "--lora_rank means nothing to --mode gen"),
        (["--mode", "LoRA", "--epochs", 0], "--epochs"),
        (["--mode", "LoRA", "--batch_size", "many"], "--batch_size"),
        (["--mode", "LoRA", "--lr", "nan"], "--lr"),
        (["--mode", "LoRA", "--lr", "-1"], "--lr"),
        (["--mode", "LoRA", "--lora_rank", 0], "--lora_rank"),
        (["--mode", "LoRA", *NANO_RUN, "--lora_rank", 4096], "does not fit a layer"),
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
def test_bad_input_is_one_line_and_status_2(run, arguments, words, tmp_path):
    assert words in refusal(run(*arguments))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_export_writes_both_kinds_and_leaves_nothing_where_there_is_no_checkpoint(
    run, demo, tmp_path
):
    assert "no such checkpoint" in refusal(run("--mode", "export", "--checkpoint", "nowhere"))
    assert list(tmp_path.iterdir()) == []
    for mode, file in (("LoRA", "model.safetensors"), ("distil", "student.onnx")):
        result = run("--mode", "export", "--checkpoint", checkpoint(demo[0], mode))
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "exports" / f"{mode}_nano_7" / file).stat().st_size > 0


def test_a_data_folder_that_lacks_a_file_is_named(run, tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    line = refusal(run("--mode", "rnn", *NANO_RUN, "--data_dir", "data"))
    assert "data/raw/in_domain_train.tsv: no such file" in line


def test_empty_and_broken_sentences_are_refused(run, demo):
    options = ("--mode", "predict", "--checkpoint", checkpoint(demo[0], "rnn"))
    assert "line 2: the sentence is empty" in refusal(run(*options, input="Fine.\n\nFine.\n"))
    assert "no sentences" in refusal(run(*options, input=""))
    assert "no such file" in refusal(run(*options, "--input", "nowhere.txt"))
    assert "the model takes 1 to" in refusal(run(*options, "word " * 3000))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_while_printing_is_one_line(demo):
    command = [sys.executable, PROJECT / "run.py", "--mode", "predict", "--checkpoint"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*command, checkpoint(demo[0], "rnn"), "Fine."],
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False,
        )  # fmt: skip
    assert result.returncode != 0
    assert "No space left" in result.stderr
