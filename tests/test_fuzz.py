"""Any bytes and any values in: a valid object or one clear line out, never another exception."""

import copy
import hashlib
import io
import json
import shutil
import zipfile
from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import classifier
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from data_utils import Split, tokenize
from finetune import load_teacher, published_config
from lora import LoraConfig, add_lora, lora_tensors, merge_lora, peft_settings
from predict import load_model, read_sentences
from student import DistilRNN, load_student
from support import archive as cola
from support.bases import Base, base_fingerprint, find_base, load_tokenizer
from support.checkpoints import kind_of, read_decision, save_student, write_adapter
from support.checkpoints.peft_settings import read_settings
from support.checkpoints.students import STUDENT
from support.corpus import DEV, SPLITS, read_split
from support.decisions import decision_of
from support.devices import CPU
from support.errors import UserError
from support.files import read_json, read_tensors
from support.options import RULES
from support.reporting import show_run
from support.reporting.finished import load_series, read_history
from support.reporting.judgements import threshold_note
from support.reporting.tables import (
    comparison_table,
    confidence_table,
    facts_table,
    result_table,
    run_table,
    settings_table,
)
from support.runs import Progress, Session, check_finished, claim
from train_utils import Training, cross_entropy, predict_logits, train

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    DTYPES,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


def tried(call, *arguments):
    """The call's result, or None where it refused in one line."""
    try:
        return call(*arguments)
    except UserError as error:
        assert 0 < len(str(error)) < 2000
        return None


def tried_with(path, content, call, *arguments):
    """Check it while a file holds other bytes than its own."""
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        return tried(call, *arguments)
    finally:
        path.write_bytes(before)


def with_entries(path, changes):
    """The bytes of a JSON file with some entries replaced."""
    return json.dumps({**json.loads(path.read_bytes()), **changes}).encode()


def with_tensors(path, changes, metadata=None):
    """The bytes of a safetensors file with some tensors replaced, or left out where None."""
    tensors = {**safetensors.torch.load(path.read_bytes()), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return safetensors.torch.save(kept, metadata)


def tensors_of(*names):
    """Some tensors to replace, those of other names among them."""
    return st.dictionaries(
        st.sampled_from(names) | st.text(max_size=4), TENSORS | st.none(), max_size=2
    )


# ---------------------------------------------------------------------------------------------
# The corpus and other sentences

LINE = st.one_of(
    st.binary(max_size=30),
    st.tuples(
        st.binary(max_size=3), st.sampled_from([b"0", b"1", b"2"]), st.binary(max_size=9)
    ).map(lambda parts: b"\t".join([parts[0], parts[1], b"", parts[2]])),
)


@given(st.binary(max_size=300) | st.lists(LINE, max_size=6).map(b"\n".join))
def test_any_corpus_file_is_read_whole_or_refused(folder, content):
    path = folder / "any.tsv"
    path.write_bytes(content)
    if found := tried(read_split, path):
        sentences, labels = found
        assert len(sentences) == len(labels) == len(content.removesuffix(b"\n").split(b"\n"))
        assert all(sentence.strip() for sentence in sentences)
        assert set(labels) <= {0, 1}


@given(st.binary(max_size=100))
def test_any_sentences_to_judge_are_read_whole_or_refused(folder, content):
    path = folder / "any.txt"
    path.write_bytes(content)
    if found := tried(read_sentences, Namespace(sentences=[], input=path)):
        lines, labels, _, numbers = found
        whole = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert numbers == [n for n, line in enumerate(whole, start=1) if line.strip()]
        assert len(lines) == len(labels) == len(numbers)
        assert all(line.strip() and "\t" not in line for line in lines)


RAW = b"a\t1\t\tIt rained.\n"


def archive(method: int, changes: dict[int, int]) -> bytes:
    """An archive as CoLA's, its files a line each, with the bytes at some places replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for split in SPLITS:
            file.writestr(f"cola_public/raw/{split}.tsv", RAW)
    found = bytearray(buffer.getvalue())
    for place, byte in changes.items():
        found[place % len(found)] = byte
    return bytes(found)


METHODS = st.sampled_from(
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
BYTES = st.dictionaries(st.integers(0, 599), st.integers(0, 255), max_size=3)


@given(st.binary(max_size=200) | st.builds(archive, METHODS, BYTES))
def test_any_archive_is_the_corpus_or_refused_and_leaves_nothing_else(folder, content):
    target = folder / "cola"
    sha256 = dict.fromkeys(SPLITS, hashlib.sha256(RAW).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cola, "download", lambda url, path: path.write_bytes(content))
        tried(cola.fetch_cola, target, sha256)
    if list(target.rglob("*.tsv")):
        assert {path.name for path in target.rglob("*.tsv")} == {f"{s}.tsv" for s in SPLITS}
        assert all((target / "raw" / f"{split}.tsv").read_bytes() == RAW for split in SPLITS)
    assert {path.name for path in target.rglob("*")} - {f"{s}.tsv" for s in SPLITS} == {
        "raw",
        ".lock",
    }
    shutil.rmtree(target)


# ---------------------------------------------------------------------------------------------
# The base model

TINY = {"n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 8, "vocab_size": 5}
END = {"bos_token_id": 0, "eos_token_id": 0}
COUNTS = st.integers(0, 9) | JSON.filter(lambda value: type(value) is not int)  # quick to build


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a GPT-2 of one layer and five tokens."""
    folder = tmp_path_factory.mktemp("base")
    GPT2LMHeadModel(GPT2Config(**TINY, **END)).save_pretrained(folder)
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "c": 3, "ab": 4}
    Tokenizer(models.BPE(vocabulary, [("a", "b")])).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def judge(model, tokenizer, positions):
    """The logits (1, 2) of a sentence."""
    split = tokenize(tokenizer, ["ab"], [1], positions, "here")
    logits = predict_logits(model, split, CPU)
    assert logits.shape == (1, 2)
    return logits


def judge_by_base(folder):
    """Read the model from a folder, as every mode reads it."""
    found = find_base(str(folder))
    return judge(classifier(found.folder), found.tokenizer, found.max_length)


OTHERS = ["auto_map", "quantization_config", "attn_implementation"]  # which name code of others
KEYS = st.sampled_from(sorted([*GPT2Config().to_dict(), *OTHERS]))


@given(
    st.binary(max_size=100) | JSON.map(json.dumps).map(str.encode),
    st.dictionaries(KEYS | st.text(max_size=4), COUNTS, max_size=3),
)
@example(b"", {"id2label": 0})  # found by these tests, as the other examples
@example(b"", {"output_hidden_states": "0"})
@example(b"", {"return_dict": False})
def test_any_base_configuration_is_a_model_or_refused(base, content, changes):
    path = base / "config.json"
    assert tried_with(path, content, judge_by_base, base) is None
    logits = tried_with(path, with_entries(path, changes), judge_by_base, base)
    assert changes or logits is not None


@given(tensors_of("transformer.wte.weight", "transformer.h.0.mlp.c_fc.bias"))
def test_any_base_weights_are_a_model_or_refused(base, changes):
    path = base / "model.safetensors"
    logits = tried_with(path, with_tensors(path, changes), judge_by_base, base)
    assert changes or logits is not None


FILES = st.sampled_from(
    ["part.safetensors", "model.safetensors", "part.bin", "../part.safetensors"]
)


@pytest.fixture(scope="module")
def sharded(base, tmp_path_factory):
    """The base again, its weights in a file that an index names."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("sharded") / "base")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    weights = load_file(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@given(
    st.just({}) | st.dictionaries(st.sampled_from(["weight_map", "metadata"]), JSON, max_size=1),
    st.dictionaries(st.sampled_from(["wte.weight", "h.0.ln_1.bias"]), FILES | JSON, max_size=2),
)
def test_any_index_of_weights_is_a_model_or_refused(sharded, changes, places):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= {f"transformer.{name}": place for name, place in places.items()}
    content = json.dumps(index | changes).encode()
    logits = tried_with(path, content, judge_by_base, sharded)
    assert changes or places or logits is not None


PARTS = ["model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"]
TOKENS = st.dictionaries(st.sampled_from(["a", "b", "ab", "<|endoftext|>"]), COUNTS)
SETTINGS = st.sampled_from(["eos_token", "model_max_length", "auto_map", "add_bos_token"])
BPE = st.fixed_dictionaries({"vocab": TOKENS, "merges": st.sampled_from([[], [["a", "b"]]])})


@pytest.fixture(scope="module")
def model(base):
    return classifier(base)


@given(
    st.dictionaries(st.sampled_from(PARTS), BPE | JSON, max_size=1),
    st.dictionaries(SETTINGS | st.text(max_size=4), JSON),
)
def test_any_tokenizer_makes_tokens_of_the_model_or_is_refused(base, model, changes, settings):
    def judge_by_tokenizer():
        found = find_base(str(base))
        return judge(model, found.tokenizer, found.max_length)

    path = base / "tokenizer.json"
    logits = tried_with(path, with_entries(path, changes), judge_by_tokenizer)
    assert changes or logits is not None
    path = base / "tokenizer_config.json"
    tried_with(path, with_entries(path, settings), judge_by_tokenizer)


# ---------------------------------------------------------------------------------------------
# The checkpoint readers


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_json_file_is_an_object_or_refused(folder, content):
    path = folder / "any.json"
    path.write_bytes(content)
    assert isinstance(tried(read_json, path), dict | None)


SAVED = {"weight": torch.arange(6.0).view(2, 3), "step": torch.tensor(7)}


@given(st.dictionaries(st.integers(0, 200), st.integers(0, 255), max_size=3), st.integers(0, 9))
def test_any_safetensors_file_is_read_or_refused(folder, changes, missing):
    """A file that is whole is read; one with other bytes, or fewer, as it stands or not at all."""
    path, content = folder / "any.safetensors", bytearray(safetensors.torch.save(SAVED))
    for place, byte in changes.items():
        content[place % len(content)] = byte
    path.write_bytes(content[: len(content) - missing])
    found = tried(read_tensors, path)
    assert found or changes or missing
    if not (changes or missing):
        assert all(torch.equal(found[0][name], tensor) for name, tensor in SAVED.items())
    assert not (found and missing)


NAMES = st.lists(st.sampled_from(["0", "1"]))
VALID = st.fixed_dictionaries(
    {
        "r": st.integers(1, 2),
        "lora_alpha": st.floats(allow_nan=False, allow_infinity=False, width=16),
        "lora_dropout": st.floats(0, 1),
        "target_modules": NAMES | st.sampled_from(["0", ".*", "[01]"]),
        "bias": st.sampled_from(["none", "lora_only", "all"]),
        "modules_to_save": st.none() | NAMES,
        "use_rslora": st.booleans(),
        "fan_in_fan_out": st.booleans(),
        "peft_type": st.just("LORA"),
        "task_type": st.just("SEQ_CLS"),
    }
)
FIELDS = ["r", "lora_alpha", "lora_dropout", "target_modules", "bias", "modules_to_save"]
CHANGES = st.dictionaries(st.sampled_from([*FIELDS, "use_dora"]) | st.text(max_size=9), JSON)


@given(VALID, st.just({}) | CHANGES)
def test_any_adapter_configuration_wraps_a_model_or_is_refused(folder, valid, changes):
    (folder / "adapter_config.json").write_text(json.dumps({**valid, **changes}))
    found = tried(read_settings, folder / "adapter_config.json")
    assert found or changes
    if found:
        config = LoraConfig(**found[0])
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        with suppress(ValueError):
            add_lora(model, config)
        assert model(torch.zeros(1, 4)).shape == (1, 2)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """The folder of an adapter on the base."""
    folder, model = tmp_path_factory.mktemp("adapter"), classifier(base)
    add_lora(model, published_config(model, r=1))
    fingerprint, settings = base_fingerprint(base), peft_settings(model)
    write_adapter(folder, settings, lora_tensors(model), str(base), fingerprint)
    return folder


GPT2 = "base_model.model.transformer."
ADAPTER = (f"{GPT2}h.0.attn.c_attn.lora_A.weight", f"{GPT2}ln_f.bias", "base_model.model.score")


@given(tensors_of(*ADAPTER), st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4)))
def test_any_adapter_is_a_classifier_or_refused(base, adapter, changes, metadata):
    path = adapter / "adapter_model.safetensors"
    content = with_tensors(path, changes, metadata)
    if found := tried_with(path, content, load_teacher, adapter, None, False):
        before = judge(found.model.eval(), found.base.tokenizer, 8)
        merge_lora(found.model)
        after = judge(found.model, found.base.tokenizer, 8)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert found or changes


PARAMETERS = ("vocabulary", "embedding.weight", "linear.weight", "linear.bias", "rnn.weight_ih_l0")
SCALED = (*PARAMETERS, "embedding.weight.scale", "rnn.weight_ih_l0.scale")


@given(st.dictionaries(st.sampled_from(SCALED) | st.text(max_size=4), TENSORS, max_size=5))
def test_any_tensors_are_a_student_or_refused(folder, tensors):
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    assert tried(load_student, folder) is None  # the weights of the RNN are never whole here


@pytest.fixture(scope="module")
def student(base, tmp_path_factory):
    """The folder of a student."""
    folder = tmp_path_factory.mktemp("student")
    model = DistilRNN(torch.tensor([1, 4]), width=2)
    save_student(model, Base("base", base, load_tokenizer(base), 8, "folder"), folder)
    return folder


SHAPES = st.sampled_from([(2,), (2, 1), (2, 2), (3, 2)])
ROWS = st.builds(
    lambda shape, dtype: torch.arange(12)[: np.prod(shape)].view(shape).to(dtype), SHAPES, DTYPES
)


@given(st.dictionaries(st.sampled_from(SCALED), TENSORS | ROWS | st.none(), max_size=2), COUNTS)
@example({"vocabulary": torch.tensor(0)}, 8)
@example({"rnn.weight_hh_l0": torch.tensor(0.0)}, 8)
def test_any_students_folder_is_a_student_or_refused(student, changes, positions):
    (student / "config.json").write_text(
        json.dumps({"model_type": STUDENT, "n_positions": positions})
    )
    path = student / "model.safetensors"
    found = tried_with(
        path, with_tensors(path, changes), load_model, student, Namespace(given=set())
    )
    assert found or changes or type(positions) is not int
    if found:
        assert tried(judge, *found) is not None or changes or positions < 1


CONFIG = {
    "model_type": STUDENT, "n_positions": 8, "threshold": "accuracy",
    "thresholds": {"balanced": 0.5, "accuracy": -1}, "calibration": {"slope": 2, "intercept": 0.5},
}  # fmt: skip
NUMBERS = st.sampled_from([10**400, -(10**400), 5e-324, 1e308]) | st.integers() | st.floats() | JSON
DECISIONS = {
    "threshold": st.sampled_from(RULES) | JSON,
    "thresholds": st.dictionaries(st.sampled_from(RULES), NUMBERS) | JSON,
    "calibration": st.dictionaries(st.sampled_from(["slope", "intercept"]), NUMBERS) | JSON,
}


@given(st.fixed_dictionaries({}, optional=DECISIONS))
def test_any_thresholds_of_a_student_decide_or_are_refused(folder, changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    decision = tried(read_decision, folder)
    assert decision or changes
    if decision:
        margins = np.array([-3e38, -1.0, 0, 1, 3e38])
        p = decision.p_acceptable(margins)
        assert ((p >= 0) & (p <= 1)).all()
        assert (np.diff(p) >= 0).all()
        assert (np.diff(decision.answers(margins)) >= 0).all()
        assert threshold_note("a student", decision).count("\n") == 0
        again = json.loads(json.dumps(decision.entries()))
        assert decision_of(again, decision.rule) == decision


STATE = st.sampled_from(["weight.w", "best.w", "step.w", "exp_avg.w", "exp_avg_sq.w", "weight"])
METADATA = st.dictionaries(
    st.just("progress") | st.text(max_size=4),
    st.text(max_size=9) | JSON.map(json.dumps) | st.just("{}") | st.just('{"steps": 3}'),
)


WHOLE = {f"{kind}.w": torch.zeros(2) for kind in ("weight", "best", "exp_avg", "exp_avg_sq")}
WHOLE["step.w"] = torch.zeros(())


@given(st.dictionaries(STATE, TENSORS, max_size=6), METADATA)
@example(WHOLE, {"progress": '{"steps": 3}'})
def test_any_state_is_resumed_or_refused(folder, tensors, metadata):
    path = folder / "state.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    parameter = nn.Parameter(torch.zeros(2))
    session = tried(Session, folder, {"w": parameter}, torch.optim.Adam([parameter]))
    path.unlink()
    assert session or tensors is not WHOLE
    if session:
        assert session.progress.steps == (3 if tensors is WHOLE else session.progress.steps)
        assert session.progress.steps in (0, 3)


IDENTITY = {"lr": 1}
IDENTITIES = (JSON | st.just(IDENTITY)).map(lambda value: json.dumps({"identity": value}))


def found_finished(folder, overwrite):
    """Whether the run of ``IDENTITY`` is finished there."""
    with claim(folder, {"identity": IDENTITY, "command": ""}, overwrite) as claimed:
        return claimed.finished


@given(
    st.sampled_from(["metrics.json", "unfinished.json"]),
    st.binary(max_size=30) | IDENTITIES.map(str.encode),
)
def test_any_run_in_a_folder_is_this_run_or_refused_and_can_be_overwritten(folder, name, content):
    here = folder / "claimed"
    here.mkdir(exist_ok=True)
    (here / name).write_bytes(content)
    (here / "state.safetensors").touch()  # else an unfinished run would make way unasked
    assert tried(found_finished, here, False) in (None, name == "metrics.json")
    assert (here / name).read_bytes() == content
    assert found_finished(here, True) is False
    (here / "state.safetensors").unlink(missing_ok=True)  # gone on with where it is this run's
    assert {path.name for path in here.iterdir()} - {".lock"} == {"unfinished.json"}
    assert json.loads((here / "unfinished.json").read_text())["identity"] == IDENTITY
    (here / "unfinished.json").unlink()


@given(st.binary(max_size=30) | JSON.map(lambda value: json.dumps({"command": value}).encode()))
def test_any_mark_of_an_unfinished_run_keeps_its_model_from_use(folder, content):
    mark = folder / "unfinished.json"
    mark.write_bytes(content)
    assert all(tried(read, folder) is None for read in (check_finished, kind_of))
    mark.unlink()


# ---------------------------------------------------------------------------------------------
# What a run keeps

TWO = Split(["ab", "c"], torch.tensor([4, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 0]))
PROGRESS = st.sampled_from(sorted(asdict(Progress())))
ROW = st.dictionaries(st.sampled_from(["val_accuracy", "val_mcc", "seconds"]), JSON)


def write_state(session):
    """As `Session.save` does, whatever stands in its history."""
    metadata = {"progress": json.dumps(asdict(session.progress))}
    session.path.write_bytes(safetensors.torch.save(session.tensors, metadata))


@given(st.dictionaries(PROGRESS, COUNTS | st.lists(ROW, max_size=2), max_size=2))
def test_any_progress_is_gone_on_from_or_refused(folder, changes):
    options = Namespace(
        sr_no=1, batch_size=1, lr=0.1, lr_schedule="constant", epochs=2, patience=2,
        monitor="mcc", max_steps=3,
    )  # fmt: skip
    model, path = DistilRNN(torch.tensor([3, 4]), width=2), folder / "state.safetensors"
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    session = Session(folder, dict(model.named_parameters()), optimizer)
    session.progress = Progress(**{**asdict(Progress(sentences=1, steps=1)), **changes})
    write_state(session)
    training = Training(model, dict.fromkeys(SPLITS, TWO), cross_entropy, options, CPU)
    progress = tried(train, training, folder)
    assert progress.stopped if progress else changes
    path.unlink()


RESULTS = {"sentences": 2, "acceptable": 1, "predicted_acceptable": 1, "correct": 2}
METRICS = {
    "mode": "LoRA", "variant": "nano", "sr_no": 7, "command": "", "teacher": None, "adapter": "",
    "arguments": dict.fromkeys(("max_steps", "monitor", "held_out", "transfer_size"))
    | {"threshold": "balanced"},
    "parameters": {"total": 3, "trainable": 2}, "identity": {}, "base": {"name": "nano"},
    "training": {"best_epoch": 1, "epochs": 1, "steps": 1, "seconds": 1.0},
    "data": {"name": "", "folder": "", "sha256": "", **{key: {"sentences": 2} for key in SPLITS}},
    "hardware": {}, "versions": {}, "thresholds": {"balanced": 0.5, "accuracy": -1.0},
    "calibration": {"slope": 0.5, "intercept": 0.25},
    **{key: {**RESULTS, "accuracy": 1.0, "mcc": 1.0} for key in SPLITS[1:]},
}  # fmt: skip
PATHS = [(key,) for key in METRICS] + [
    (key, inner) for key, part in METRICS.items() if isinstance(part, dict) for inner in part
]
EDITS = st.dictionaries(st.sampled_from(PATHS), JSON, max_size=2)
COLUMNS = "epoch,train_loss,train_accuracy,val_loss,val_accuracy,val_mcc"
HISTORY = [COLUMNS, "1,1,1,1,1,1", "2,1,1,1,1,1"]
PREDICTIONS = [
    "split,label,logit_0,logit_1",
    *(f"{split},{label},0,{2 * label - 1}" for split in SPLITS[1:] for label in (0, 1)),
]
CELL = st.sampled_from(["", "nan", "inf", "-1", "2", "0.5", "1e999", DEV]) | st.text(max_size=4)
CELLS = st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), CELL, max_size=2)


def write_metrics(folder, edits):
    """Write metrics.json with what stands at some paths replaced."""
    metrics = copy.deepcopy(METRICS)
    for (key, *inner), value in edits.items():
        if not inner:
            metrics[key] = value
        elif isinstance(metrics[key], dict):
            metrics[key][inner[0]] = value
    (folder / "metrics.json").write_text(json.dumps(metrics))


def write_table(path, lines, cells):
    """Write CSV with some cells replaced."""
    rows = [line.split(",") for line in lines]
    for (row, column), cell in cells.items():
        rows[row % len(rows)][column % len(rows[0])] = cell
    path.write_text("\n".join(map(",".join, rows)))


@given(EDITS, CELLS)
def test_any_run_is_reported_or_refused(folder, edits, predictions):
    run = folder / "LoRA_nano_7"
    run.mkdir(exist_ok=True)
    write_metrics(run, edits)
    write_table(run / "predictions.csv", PREDICTIONS, predictions)
    series = tried(load_series, [run])
    assert series or edits or predictions
    if series:
        assert comparison_table([series])
        assert len(confidence_table([series])) == len(result_table([series])) == 2
        for table in (facts_table, settings_table, run_table):
            assert len(table([series])) > 0


@given(CELLS, st.integers(-1, 3))
def test_any_history_has_the_epoch_that_was_kept_or_is_refused(folder, cells, best_epoch):
    write_table(folder / "history.csv", HISTORY, cells)
    table = tried(read_history, folder, best_epoch)
    assert table is not None or cells or best_epoch not in (1, 2)
    if table is not None:
        assert np.isfinite(table.to_numpy()).all()
        assert table["epoch"].tolist() == [1, 2]


@given(EDITS)
def test_any_finished_run_is_shown_or_refused(folder, edits):
    write_metrics(folder, edits)
    assert tried(lambda: show_run(folder) or "shown") or edits
