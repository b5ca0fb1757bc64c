"""Any bytes and any values in: a valid object or one clear line out, never another exception."""

import hashlib
import io
import json
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import TRAINING, archive_of, classifier
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from data_utils import Split, tokenize
from finetune import load_teacher, published_config
from lora import LoraConfig, add_lora, lora_tensors, merge_lora, peft_settings
from predict import load_model, sentences_to_judge, threshold_note
from student import DistilRNN
from support import archive as cola
from support.bases import Base, base_fingerprint, find_base, load_tokenizer
from support.checkpoints.adapters import read_config, write_adapter
from support.checkpoints.students import (
    MODELS,
    SHIPPED,
    decision_of,
    kind_of,
    read_decision,
    save_student,
)
from support.corpus import DEV, SPLITS, read_corpus
from support.devices import CPU
from support.errors import UserError
from support.files import write_json
from support.options import RULES
from support.reporting import show_run, tables
from support.reporting.finished import load_experiment
from support.reporting.metrics import read_history
from support.runs import Progress, SavedState, check_finished, claim
from support.sentences import COLA_CLASSES
from support.teaching import teacher_answers
from train_utils import Training, cross_entropy, lesson_fingerprint, predict_logits, train

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
COUNTS = st.integers(0, 9) | JSON.filter(lambda value: type(value) is not int)  # quick to build
NUMBERS = st.sampled_from([10**400, -(10**400), 5e-324, 1e308]) | st.integers() | st.floats() | JSON
JUNK = st.binary(max_size=200) | JSON.map(json.dumps).map(str.encode)
SHAPES = st.lists(st.integers(0, 3), max_size=3) | st.sampled_from([(2, 1), (2, 2), (3, 2)])
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
TENSORS = st.builds(
    lambda shape, dtype: torch.arange(int(np.prod(shape))).view(shape).to(dtype), SHAPES, DTYPES
)
SEPARATE = st.text(alphabet=st.characters(exclude_characters=".", codec="utf-8"), max_size=4)


def edited(whole: bytes, changes: dict) -> bytes:
    """Return a file's bytes with other values in it; None leaves a tensor out.

    Keys are an entry of JSON ("a.b" is one of an inner object), a tensor's name, or a cell of CSV.
    """
    if whole.startswith(b"{"):
        entries = json.loads(whole)
        for name, value in changes.items():
            outer, _, inner = name.partition(".")
            if not inner:
                entries[outer] = value
            elif isinstance(entries[outer], dict):
                entries[outer][inner] = value
        return json.dumps(entries).encode()
    if b"\0" not in whole:
        rows = [line.split(",") for line in whole.decode().split("\n")]
        for (row, column), cell in changes.items():
            rows[row % len(rows)][column % len(rows[0])] = cell
        return "\n".join(map(",".join, rows)).encode()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    tensors = {**safetensors.torch.load(whole), **changes}
    metadata = tensors.pop("metadata", header.get("__metadata__"))
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return safetensors.torch.save(kept, metadata)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return a file's bytes with some replaced, and some missing at the end."""

    def changed(changes: dict[int, int], missing: int) -> bytes:
        content = bytearray(whole)
        for place, byte in changes.items():
            content[place] = byte
        return bytes(content[: len(content) - missing])

    places = st.dictionaries(st.integers(0, len(whole) - 1), st.integers(0, 255), max_size=3)
    return st.builds(changed, places, st.integers(0, 9))


def with_changes(changes: st.SearchStrategy[dict]) -> Callable:
    """Return what makes other contents of a whole file: with these changes, damaged, or junk."""
    return lambda whole: changes.map(partial(edited, whole)) | damaged(whole) | JUNK


def replaced(values: st.SearchStrategy, *more: str) -> Callable:
    """Return the same with some entries of JSON or some tensors replaced, or others added."""

    def contents(whole: bytes) -> st.SearchStrategy[bytes]:
        is_json = whole.startswith(b"{")
        found = json.loads(whole) if is_json else safetensors.torch.load(whole)
        objects = {key: part for key, part in found.items() if isinstance(part, dict)}
        inner = [f"{key}.{name}" for key, part in objects.items() for name in part]
        names = st.sampled_from([*found, *inner, *more]) | SEPARATE
        return with_changes(st.dictionaries(names, values, max_size=3))(whole)

    return contents


def optional(values: dict[str, st.SearchStrategy]) -> Callable:
    """Return the same with any of these values."""
    return with_changes(st.fixed_dictionaries({}, optional=values))


def lines(line: st.SearchStrategy[bytes]) -> Callable:
    """Return contents of such lines, whatever the whole file is."""
    return lambda whole: st.lists(line, max_size=4).map(b"\n".join) | damaged(whole)


def tried(call: Callable, *arguments):
    """Return the call's result, or None where it refused in one line."""
    try:
        return call(*arguments)
    except UserError as error:
        assert 0 < len(str(error)) < 2000
        return None


# ---------------------------------------------------------------------------------------------
# Whole files

RUN = SHIPPED["student"]
TINY = GPT2Config(
    n_layer=1, n_embd=4, n_head=2, n_positions=8, vocab_size=5, bos_token_id=0, eos_token_id=0
)
TWO = Split(["ab", "c"], torch.tensor([4, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 0]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Return a folder of files of every kind that is read, each of them whole."""
    folder = tmp_path_factory.mktemp("whole")
    lines = [f"a\t{n % 2}\t\tIt rained {n} times.\n" for n in range(20)]
    (folder / "corpus.tsv").write_text("".join(lines))
    (folder / "sentences.txt").write_bytes(b"It rained.\n")
    GPT2LMHeadModel(TINY).save_pretrained(base := folder / "base")
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "c": 3, "ab": 4}
    Tokenizer(models.BPE(vocabulary, [("a", "b")])).save(str(base / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    write_json(base / "tokenizer_config.json", settings)
    sharded = shutil.copytree(base, folder / "sharded")
    (sharded / "model.safetensors").rename(sharded / "part.safetensors")
    names = dict.fromkeys(load_file(sharded / "part.safetensors"), "part.safetensors")
    write_json(sharded / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    add_lora(model := classifier(base), published_config(model, r=1))
    tensors, key = lora_tensors(model), base_fingerprint(classifier(base).backbone)
    write_adapter(folder / "adapter", peft_settings(model), tensors, str(base), key)
    (folder / "student").mkdir()
    found = Base("base", base, load_tokenizer(base), 8, "folder")
    save_student(DistilRNN(torch.tensor([1, 4]), width=2), found, folder / "student")
    (folder / "state").mkdir()
    parameters = training().parameters()
    optimizer = torch.optim.Adam(parameters.values())
    state = SavedState(folder / "state", parameters, optimizer, lesson_fingerprint(TWO))
    state.progress.sentences = state.progress.steps = 1
    state.save()
    (folder / RUN).mkdir()
    for name in ("metrics.json", "history.csv", "predictions.csv", "config.json"):
        shutil.copy(MODELS / RUN / name, folder / RUN / name)
    return folder


def training() -> Training:
    """Return a small training."""
    options = Namespace(**TRAINING | {"batch_size": 1, "max_steps": 3})
    model = DistilRNN(torch.tensor([3, 4]), width=2)
    return Training(model, dict.fromkeys(SPLITS, TWO), cross_entropy, options, CPU)


# ---------------------------------------------------------------------------------------------
# The readers: each asserts that what it returns is valid


def corpus(path: Path) -> list[str]:
    rows = [row for rows in read_corpus(path).rows.values() for row in rows]
    lines = path.read_bytes().split(b"\n")
    assert {row.line for row in rows} <= {n for n, line in enumerate(lines, 1) if line.strip()}
    assert all(row.sentence.strip() for row in rows)
    assert {row.label for row in rows} == {0, 1}
    return [row.sentence for row in rows]


def to_judge(path: Path) -> list[str]:
    none = dict.fromkeys(("text_column", "label_column", "positive"))
    rows = sentences_to_judge(Namespace(sentences=[], input=path, **none)).rows
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert {row.line for row in rows} <= {n for n, line in enumerate(content, 1) if line.strip()}
    assert all(row.sentence.strip() and "\n" not in row.sentence for row in rows)
    return [row.sentence for row in rows]


def judge(model: nn.Module, tokenizer: Tokenizer, positions: int) -> torch.Tensor:
    """Return the logits (1, 2) of a sentence."""
    logits = predict_logits(model, tokenize(tokenizer, ["ab"], [1], positions, "here"), CPU)
    assert logits.shape == (1, 2)
    return logits


def base(path: Path) -> torch.Tensor:
    found = find_base(str(path.parent))
    return judge(classifier(found.folder), found.tokenizer, found.max_length)


def adapter_settings(path: Path) -> LoraConfig:
    config, _ = read_config(path)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with suppress(ValueError):
        add_lora(model, config)
    assert model(torch.zeros(1, 4)).shape == (1, 2)
    return config


def adapter(path: Path) -> torch.Tensor:
    found = load_teacher(path.parent, None, False)
    before = judge(found.model.eval(), found.base.tokenizer, 8)
    merge_lora(found.model)
    after = judge(found.model, found.base.tokenizer, 8)
    if before.abs().max() < 1e3:  # a damaged number may be of any size
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    return before


def student(path: Path) -> torch.Tensor:
    return judge(*load_model(path.parent, Namespace(given=set())))


def thresholds(path: Path) -> object:
    decision = read_decision(path.parent)
    margins = np.array([-3e38, -1.0, 0, 1, 3e38])
    p = decision.p_acceptable(margins)
    assert ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p) >= 0).all()
    assert (np.diff(decision.answers(margins)) >= 0).all()
    assert threshold_note("a student", decision, COLA_CLASSES).count("\n") == 0
    again = json.loads(json.dumps(decision.entries()))
    assert decision_of(again, decision.rule) == decision
    return decision


def state(path: Path) -> Progress:
    with TemporaryDirectory() as copy:  # since training writes
        progress = train(training(), shutil.copytree(path.parent, Path(copy, "state")))
    assert progress.stopped
    return progress


def report(path: Path) -> object:
    experiment = load_experiment([path.parent])
    for name in ("calibration", "result", "run", "settings"):
        assert len(getattr(tables, f"{name}_table")([experiment])) > 0
    return experiment


def history(path: Path) -> object:
    for best_epoch in (-1, 0, 7):
        assert tried(read_history, path.parent, best_epoch) is None
    table = read_history(path.parent, 6)
    assert np.isfinite(table.to_numpy()).all()
    assert table["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    return table


def shown(path: Path) -> str:
    show_run(path.parent)
    return "shown"


TEXT = st.text(max_size=9).map(str.encode) | st.binary(max_size=9)
COLUMNS = st.tuples(TEXT, st.sampled_from([b"0", b"1", b"2"]), st.just(b""), TEXT)
BPE = st.fixed_dictionaries(
    {
        "vocab": st.dictionaries(st.sampled_from(["a", "b", "ab", "<|endoftext|>"]), COUNTS),
        "merges": st.sampled_from([[], [["a", "b"]]]),
    }
)
PLACES = st.sampled_from(
    ["part.safetensors", "model.safetensors", "part.bin", "../part.safetensors"]
)
NAMES = st.lists(st.sampled_from(["0", "1"]))
LORA = {  # with values that are valid, and others
    "r": st.integers(1, 2) | JSON,
    "lora_alpha": st.floats(width=16) | JSON,
    "lora_dropout": st.floats(0, 1) | JSON,
    "target_modules": NAMES | st.sampled_from(["0", ".*", "[01]"]) | JSON,
    "bias": st.sampled_from(["none", "lora_only", "all"]) | JSON,
    "modules_to_save": st.none() | NAMES | JSON,
    "use_rslora": st.booleans() | JSON,
    "use_dora": JSON,
}
THRESHOLDS = {
    "threshold": st.sampled_from(RULES) | JSON,
    "thresholds": st.dictionaries(st.sampled_from(RULES), NUMBERS) | JSON,
    "calibration": st.dictionaries(st.sampled_from(["slope", "intercept"]), NUMBERS) | JSON,
}
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["val_accuracy", "val_mcc", "seconds"]), JSON), max_size=2
)
PROGRESS = st.dictionaries(
    st.sampled_from(sorted(asdict(Progress()))), COUNTS | ROWS, max_size=2
).map(lambda changes: json.dumps(asdict(Progress(sentences=1, steps=1)) | changes))
METADATA = st.fixed_dictionaries({"progress": PROGRESS | st.text(max_size=9)}) | st.dictionaries(
    st.text(max_size=4), st.text(max_size=9)
)
CELL = st.sampled_from(["", "nan", "inf", "-1", "2", "0.5", "1e999", DEV]) | st.text(max_size=4)
CELLS = st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), CELL, max_size=2)
CONFIG = [*GPT2Config().to_dict(), "auto_map", "quantization_config"]  # with code of others
SETTINGS = ["auto_map", "model_max_length", "add_bos_token"]
SCALES = ["embedding.weight.scale", "rnn.weight_ih_l0.scale"]
WEIGHTS = TENSORS | st.none()
READERS = {  # a file, what may stand there made of what does, and what reads it
    "a corpus": ("corpus.tsv", lines(COLUMNS.map(b"\t".join) | TEXT), corpus),
    "sentences": ("sentences.txt", lines(TEXT), to_judge),
    "a base's settings": ("base/config.json", replaced(COUNTS, *CONFIG), base),
    "a base's weights": ("base/model.safetensors", replaced(WEIGHTS), base),
    "an index": ("sharded/model.safetensors.index.json", replaced(PLACES | JSON), base),
    "a tokenizer": ("base/tokenizer.json", replaced(BPE | JSON), base),
    "its settings": ("base/tokenizer_config.json", replaced(JSON, *SETTINGS), base),
    "an adapter's settings": ("adapter/adapter_config.json", optional(LORA), adapter_settings),
    "an adapter": ("adapter/adapter_model.safetensors", replaced(WEIGHTS), adapter),
    "a student": ("student/model.safetensors", replaced(WEIGHTS, *SCALES), student),
    "a student's settings": ("student/config.json", replaced(COUNTS), student),
    "thresholds": (f"{RUN}/config.json", optional(THRESHOLDS), thresholds),
    "a state": ("state/state.safetensors", replaced(WEIGHTS), state),
    "progress": ("state/state.safetensors", optional({"metadata": METADATA}), state),
    "metrics": (f"{RUN}/metrics.json", replaced(JSON), report),
    "metrics to show": (f"{RUN}/metrics.json", replaced(JSON), shown),
    "predictions": (f"{RUN}/predictions.csv", with_changes(CELLS), report),
    "a history": (f"{RUN}/history.csv", with_changes(CELLS), history),
}
FOUND = [  # by this test
    ("a base's settings", {"id2label": 0}),
    ("a base's settings", {"output_hidden_states": "0"}),
    ("a base's settings", {"return_dict": False}),
    ("an adapter's settings", {"r": True}),
    ("a student", {"vocabulary": torch.tensor(0)}),
    ("a student", {"rnn.weight_hh_l0": torch.tensor(0.0)}),
]


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_with(folder: Path, name: str, content: bytes) -> object:
    """Return what a reader makes of a content; nothing is written, and the file is put back."""
    file, _, read = READERS[name]
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(content)
    try:
        before = contents(folder)
        found = tried(read, folder / file)
        assert contents(folder) == before
    finally:
        (folder / file).write_bytes(whole)
    return found


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_any_content_is_read_as_something_valid_or_refused(whole, name, data):
    file, strategy, _ = READERS[name]
    read_with(whole, name, data.draw(strategy((whole / file).read_bytes())))


@pytest.mark.parametrize(("name", "changes"), [*((n, {}) for n in READERS), *FOUND], ids=str)
def test_the_whole_file_is_read_and_what_once_ended_in_a_traceback_does_not(whole, name, changes):
    content = edited((whole / READERS[name][0]).read_bytes(), changes)
    assert read_with(whole, name, content) is not None or changes


# ---------------------------------------------------------------------------------------------
# What is written anew where it is not whole

RAW = b"a\t1\t\tIt rained.\n"
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
ARCHIVES = [archive_of(dict.fromkeys(SPLITS, RAW), method) for method in METHODS]


class Answer(io.BytesIO):
    """What a server sends without its length."""

    length = None


@given(JUNK | st.sampled_from(ARCHIVES).flatmap(damaged))
def test_any_archive_is_the_corpus_or_refused_and_leaves_nothing_else(whole, content):
    target = whole.with_name("cola")
    sha256 = dict.fromkeys(SPLITS, hashlib.sha256(RAW).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(content))
        tried(cola.fetch_cola, target, sha256)
    left = contents(target)
    left.pop(target / "raw" / ".lock")
    assert left in ({}, {target / "raw" / f"{split}.tsv": RAW for split in SPLITS})
    shutil.rmtree(target)


IDENTITY = {"lr": 1}
IDENTITIES = (JSON | st.just(IDENTITY)).map(lambda value: json.dumps({"identity": value}))


def found_finished(folder: Path, overwrite: bool) -> bool:
    """Return whether the run of ``IDENTITY`` is finished there."""
    with claim(folder, {"identity": IDENTITY, "command": ""}, overwrite) as claimed:
        return claimed.finished


@given(
    st.sampled_from(["metrics.json", "unfinished.json"]),
    st.binary(max_size=30) | IDENTITIES.map(str.encode),
)
def test_any_run_in_a_folder_is_this_run_or_refused_and_can_be_overwritten(whole, name, content):
    here = whole.with_name("claimed")
    here.mkdir()
    (here / name).write_bytes(content)
    (here / "state.safetensors").touch()  # else an unfinished run would make way unasked
    assert tried(found_finished, here, False) in (None, name == "metrics.json")
    assert (here / name).read_bytes() == content
    assert found_finished(here, True) is False
    (here / "state.safetensors").unlink(missing_ok=True)  # gone on with where it is this run's
    assert {path.name for path in here.iterdir()} - {".lock"} == {"unfinished.json"}
    assert json.loads((here / "unfinished.json").read_text())["identity"] == IDENTITY
    shutil.rmtree(here)


@given(st.binary(max_size=30) | JSON.map(lambda value: json.dumps({"command": value}).encode()))
def test_any_mark_of_an_unfinished_run_keeps_its_model_from_use(whole, content):
    for folder, read in ((whole / RUN, check_finished), (whole / "student", kind_of)):
        (folder / "unfinished.json").write_bytes(content)
        assert tried(read, folder) is None
        (folder / "unfinished.json").unlink()


ANSWERS = ("logits", "hints", "mean", "components")


@given(st.sampled_from([0, 3]), st.dictionaries(st.sampled_from(ANSWERS), TENSORS))
def test_any_kept_answers_of_a_teacher_are_of_their_shapes_or_computed_again(whole, width, tensors):
    teacher, place = classifier(whole / "base"), whole.with_name("transfer")
    for content in (None, safetensors.torch.save(tensors)):
        for path in place.glob("*.safetensors") if content else ():
            path.write_bytes(content)
        taught = teacher_answers(TWO, teacher, "its fingerprint", CPU, width, place)
        assert taught.teacher_logits.shape == (2, 2)
        assert (None if taught.hints is None else taught.hints.shape) == ((2, 3) if width else None)
    shutil.rmtree(place)
