"""Any bytes and any values in: a valid object or one clear line out, never another exception."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data_utils import UserError, read_split
from distil import load_student
from lora import LoraConfig, add_lora, read_config
from train_utils import TrainState, is_finished, read_json, read_tensors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool])
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


# ---------------------------------------------------------------------------------------------
# The corpus reader

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


# ---------------------------------------------------------------------------------------------
# The checkpoint readers


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_json_file_is_an_object_or_refused(folder, content):
    path = folder / "any.json"
    path.write_bytes(content)
    assert isinstance(tried(read_json, path), dict | None)


@given(st.binary(max_size=200), st.booleans())
def test_any_safetensors_file_is_read_or_refused(folder, content, with_header):
    path = folder / "any.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content if with_header else content)
    tried(read_tensors, path)


NAMES = st.lists(st.sampled_from(["0", "1"]))
VALID = st.fixed_dictionaries(
    {
        "r": st.integers(1, 2),
        "lora_alpha": st.floats(allow_nan=False, allow_infinity=False, width=16),
        "lora_dropout": st.floats(0, 1),
        "target_modules": NAMES | st.sampled_from(["0", ".*", "[01]"]),
        "bias": st.sampled_from(["none", "lora_only"]),
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
    found = tried(read_config, folder)
    assert found or changes
    if found:
        config, _ = found
        assert isinstance(config, LoraConfig)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        tried(add_lora, model, config)
        assert model(torch.zeros(1, 4)).shape == (1, 2)


STUDENT = ("vocabulary", "embedding.weight", "linear.weight", "linear.bias", "rnn.weight_ih_l0")


@given(st.dictionaries(st.sampled_from(STUDENT) | st.text(max_size=4), TENSORS, max_size=5))
def test_any_tensors_are_a_student_or_refused(folder, tensors):
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    assert tried(load_student, folder) is None  # the weights of the RNN are never whole here


STATE = st.sampled_from(["weight.w", "best.w", "step.w", "exp_avg.w", "exp_avg_sq.w", "weight"])
METADATA = st.dictionaries(
    st.sampled_from(["progress", "identity"]),
    st.text(max_size=9) | JSON.map(json.dumps) | st.just("{}") | st.just('{"steps": 3}'),
)


@given(st.dictionaries(STATE, TENSORS, max_size=6), METADATA)
def test_any_state_is_resumed_or_refused(folder, tensors, metadata):
    path = folder / "state.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    parameter = nn.Parameter(torch.zeros(2))
    state = TrainState(path, {"w": parameter}, torch.optim.Adam([parameter]), {})
    tried(state.load)
    (folder / "metrics.json").unlink(missing_ok=True)
    tried(is_finished, folder, {"lr": 1}, False)


@given(JSON)
def test_any_metrics_are_this_run_or_refused(folder, value):
    (folder / "metrics.json").write_text(json.dumps({"identity": value}))
    assert tried(is_finished, folder, {"lr": 1}, False) in (None, True)
