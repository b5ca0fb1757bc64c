"""Where bases come from, what is refused, and how one is told from another."""

import http.server
import json
import os
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import NANO, change_config, refusal, serving, write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaConfig, LlamaModel
from transformers.dynamic_module_utils import resolve_trust_remote_code

import run as front_door
from model import load_classifier
from support import PROJECT, bases
from support.bases import base_fingerprint, find_base, load_language_model
from support.bases.finding import base_folder, origin_of
from support.checkpoints.adapters import write_adapter
from support.errors import UserError
from support.files import read_json
from support.fingerprints import corpus_fingerprint, fingerprint

# ---------------------------------------------------------------------------------------------
# Finding and loading


@pytest.fixture
def folder(tmp_path):
    """A copy of nano that a test may break."""
    return shutil.copytree(NANO, tmp_path / "copy", ignore=shutil.ignore_patterns("corpus"))


def split_weights(folder, name: str) -> None:
    """Have an index say that all weights are in a file; they are in part.safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    torch.save(weights, folder / "part.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["gpt3", "../gone", "/gone/too"])
def test_a_name_of_no_base_is_refused(name):
    words = "no such folder" if "/" in name else "neither one of gpt2, .*nor OWNER/NAME on the hub"
    with pytest.raises(UserError, match=f"base model {name}: {words}"):
        find_base(name)


def test_a_base_is_of_one_kind_and_a_folder_stands_before_the_hubs(folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    kinds = {
        "nano": "package", "smollm2": "package", "some.gguf": "file", "gpt2": "folder",
        "openai-community/gpt2": "hub", "gpt2-medium": "hub", "OWNER/NAME": "hub",
    }  # fmt: skip
    assert {name: origin_of(name) for name in kinds} == kinds
    assert find_base("gpt2").kind == "folder"
    assert find_base("nano").folder == NANO  # wherever the command is given
    args = front_door.parse(["--mode", "gen", "--gpt_variant", "~/gpt2"])
    assert find_base(args.gpt_variant).folder == tmp_path / "gpt2"


WEIGHTS, HEADER = "model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_bytes(b"[" * 100_000), "config.json: broken JSON"),
        (lambda f: change_config(f, model_type="of another kind"), "cannot be loaded"),
        (lambda f: change_config(f, initializer_range=-1.0), "initializer_range is out of range"),
        (lambda f: change_config(f, n_positions=True), "n_positions = True"),
        (lambda f: change_config(f, quantization_config={"quant_method": "mxfp4"}), "quantised"),
        (lambda f: change_config(f, configuration_files=["config.4.json"]), "names other files"),
        (lambda f: (f / WEIGHTS).unlink(), r"model\.safetensors: no such file"),
        (lambda f: (f / WEIGHTS).write_bytes(HEADER), "tensors are missing"),
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


def test_the_language_model_and_the_tokenizer_are_hugging_faces(folder, nano_corpus):
    base, split = find_base(str(folder)), nano_corpus["in_domain_dev"]
    assert (base.name, base.folder, base.max_length) == (str(folder), folder, 512)
    expected = AutoTokenizer.from_pretrained(NANO)(split.sentences)["input_ids"]
    assert bases.token_ids(base.tokenizer, split.sentences) == expected
    ids, reference = split.input_ids[None, :9], GPT2LMHeadModel.from_pretrained(NANO).eval()
    with torch.no_grad():
        assert torch.equal(load_language_model(folder)(ids).logits, reference(ids).logits)


# ---------------------------------------------------------------------------------------------
# Code that lies in a base's folder

AUTO_MAP = {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]} | {
    f"AutoModel{kind}": "code.Model" for kind in ("", "ForCausalLM", "ForSequenceClassification")
}
ADAPTER = {
    "r": 1, "lora_alpha": 1, "lora_dropout": 0.0, "use_rslora": False, "target_modules": ["c_fc"],
    "bias": "none", "modules_to_save": ["score"], "fan_in_fan_out": True,
}  # fmt: skip


@pytest.fixture
def marker(folder, tmp_path, monkeypatch):
    """A file that the code in ``folder`` makes when it is run; nobody may be asked about it."""
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("it has asked"))
    marker = tmp_path / "was run"
    change_config(folder, auto_map=AUTO_MAP)
    (folder / "custom_generate").mkdir()
    for path in ("code.py", "custom_generate/generate.py"):
        (folder / path).write_text(f"from pathlib import Path; Path({str(marker)!r}).touch()")
    # transformers looks into the tokenizer's settings where it is to add tokens.
    change_config(folder, "tokenizer_config.json", auto_map=AUTO_MAP, add_bos_token=True)
    return marker


UNHEARD = {"model_type": "unheard_of"}
# transformers makes the parts of a model without handing on that no code may be run.
PART = {"model_type": "siglip_text_model", "auto_map": AUTO_MAP}


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ("gen --gpt_variant copy", UNHEARD),
        ("LoRA --gpt_variant copy", UNHEARD),
        ("rnn --gpt_variant copy", UNHEARD),
        ("distil --teacher adapter --gpt_variant copy", UNHEARD),
        ("predict --checkpoint adapter a", UNHEARD),  # which names the base
        ("export --checkpoint adapter --gpt_variant copy", UNHEARD),
        ("gen --gpt_variant copy", {"model_type": "gemma3", "vision_config": PART}),
        ("gen --gpt_variant copy", {"model_type": "gemma3", "vision_config": {"part": PART}}),
    ],
)
def test_a_base_that_needs_its_own_code_is_refused_unasked(
    folder, marker, tmp_path, monkeypatch, capsys, options, config
):
    change_config(folder, **config)
    tensors = {"score.weight": torch.zeros(2, 128)}
    write_adapter(tmp_path / "adapter", ADAPTER, tensors, str(folder), "0" * 64)
    monkeypatch.chdir(tmp_path)
    status = front_door.main(["--mode", *options.split()])
    out, error = capsys.readouterr()
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert f"{config['model_type']} cannot be used here: it needs code of its own" in error
    assert not marker.exists()
    assert not (tmp_path / "checkpoints").exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder, marker, run):
    """The library's own classes are loaded, as if nothing else were there."""
    gen = ("--mode", "gen", "--max_new_tokens", 5, "--gpt_variant")
    result = run(*gen, folder, input="yes\n" * 99)
    assert (result.returncode, result.stderr) == (0, "")
    assert isinstance(load_language_model(folder), GPT2LMHeadModel)
    load_classifier(base_folder(str(folder)))
    bases.load_auto_tokenizer(folder)
    with pytest.raises(ValueError):  # where transformers would ask
        resolve_trust_remote_code(None, "somebody's", False, True)
    assert not marker.exists()


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 4}])
def test_the_options_say_how_a_base_writes(folder, settings, capsys):
    """A base may ask for beams, or for a method whose code is on the hub."""
    written = []
    options = ["--mode", "gen", "--max_new_tokens", "5", "--temperature", "0", "--gpt_variant"]
    for more in ({}, settings):
        change_config(folder, "generation_config.json", **more)
        assert front_door.main([*options, str(folder)]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != ""


def test_one_function_alone_has_transformers_read_a_folder():
    """So no call can forget to refuse code."""
    for path in [*PROJECT.glob("*.py"), *(PROJECT / "support").rglob("*.py")]:
        calls = r"(?<!nn\.Embedding)\.(?:from_pretrained|from_config|pipeline)\([^)]*"
        for call in re.findall(calls, path.read_text()):
            assert "trust_remote_code=False" in call, (path, call)


# ---------------------------------------------------------------------------------------------
# Fingerprints


def fingerprint_in(folder) -> str:
    return base_fingerprint(bases.load_backbone(folder))


def test_the_fingerprint_is_of_weights_and_settings_and_not_of_the_path(folder):
    original = fingerprint_in(NANO)
    assert fingerprint_in(folder) == original
    assert base_fingerprint(load_classifier(NANO).backbone) == original  # packed, and probed
    change_config(folder, n_head=read_json(folder / "config.json")["n_head"] // 2)
    with_fewer_heads = fingerprint_in(folder)
    weights = load_file(folder / WEIGHTS)
    weights["transformer.wte.weight"][0, 0] += 1
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert len({original, with_fewer_heads, fingerprint_in(folder)}) == 3


def test_the_base_and_the_corpus_of_results_are_those_of_today(nano_corpus):
    """Else nobody could go on from what is committed."""
    runs = [read_json(p) for p in (PROJECT / "results/nano").glob("*/LoRA_*/metrics.json")]
    assert {run["base"]["fingerprint"] for run in runs} == {fingerprint_in(NANO)}
    assert {run["data"]["sha256"] for run in runs} == {corpus_fingerprint(nano_corpus)}


def test_other_parts_have_another_fingerprint():
    zero, bytes_of_a = torch.zeros(1, dtype=torch.uint8), torch.tensor([*b"\0a"], dtype=torch.uint8)
    parts = [
        ("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (zero, "a"), (bytes_of_a,), (zero, zero),
        (torch.zeros(2, dtype=torch.uint8),), (zero,), ("(1,)torch.uint8\0",),
        (torch.zeros(2, 3),), (torch.zeros(3, 2),), (torch.zeros(2, 3, dtype=torch.int32),),
    ]  # fmt: skip
    assert len({fingerprint(*each) for each in parts}) == len(parts)
    assert fingerprint("ab", zero) == fingerprint("ab", zero.clone())


ENTRIES = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
LLAMA = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9, num_attention_heads=2,
    num_key_value_heads=1, rope_parameters=ENTRIES,
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("num_key_value_heads", 2, False),
        ("hidden_act", "relu", False),
        ("rope_parameters", {**ENTRIES, "factor": 3.0}, False),
        ("rope_parameters", dict(reversed(ENTRIES.items())), True),
        ("model_type", "mistral", False),
        ("layer_types", ["full_attention"], True),  # a family gains it without a change
        ("invented_tomorrow", True, True),  # by a later release of transformers
    ],
)
def test_a_setting_changes_the_fingerprint_where_it_changes_the_numbers(key, value, same):
    backbone = LlamaModel(LlamaConfig(**LLAMA))
    original = base_fingerprint(backbone)
    setattr(backbone.config, key, value)  # the weights stay
    assert (base_fingerprint(backbone) == original) == same


# ---------------------------------------------------------------------------------------------
# GGUF files, which are converted


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A GGUF file of a small Llama, and an empty cache for what it is converted into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "small.gguf")


def twice_at_once(run, *arguments, **settings) -> list:
    """Give a command in two processes at once; return their results, which are good."""
    with ThreadPoolExecutor(2) as pool:
        results = [*pool.map(lambda _: run(*arguments, **settings), range(2))]
    assert [result.returncode for result in results] == [0, 0], results
    return results


def test_a_gguf_file_is_converted_once_by_the_processes_of_a_machine(tmp_path, small, run):
    results = twice_at_once(run, "--mode", "gen", "--gpt_variant", small, "--max_new_tokens", 2)
    assert sum("converting it, once" in result.stderr for result in results) == 1
    assert base_folder(str(small)).is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json", "half"])
def test_a_converted_folder_that_is_not_whole_is_made_again(small, lost):
    folder = base_folder(str(small))
    content = (folder / WEIGHTS).read_bytes()
    if lost == "half":
        (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    else:
        (folder / lost).unlink()
    assert base_folder(str(small)) == folder
    assert (folder / WEIGHTS).read_bytes() == content
    assert find_base(str(small)).tokenizer.get_vocab() == bases.load_tokenizer(NANO).get_vocab()
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_conversion_on_a_full_disk_is_one_line(tmp_path, run, small):
    """A file of more than 16 KiB cannot be written."""
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2**14, 2**14))
    result = run("--mode", "gen", "--gpt_variant", small, preexec_fn=full)
    converting, line = result.stderr.splitlines()
    assert converting.startswith("small.gguf: converting it")
    assert re.match(r"run\.py: error: .*small-.*: cannot be written \(.*File too large", line)
    assert result.returncode == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_what_lies_beside_a_gguf_file_is_not_read(tmp_path, small):
    """As in a folder of downloads: an adapter, and settings that name code."""
    expected = load_language_model(base_folder(str(small))).state_dict()
    moved = small.rename(tmp_path / "moved.gguf")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2"}))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": AUTO_MAP, "tokenizer_class": "Other"}))
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
        files, headers = REPOSITORIES.get(repo, {}), {"X-Repo-Commit": "0" * 40}
        status, content = 200, files.get(name)
        if what == "revision":
            content = json.dumps({"id": repo, "sha": "0" * 40}).encode()
        elif what == "tree":
            rows = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
            content = json.dumps(rows).encode()
        elif content is None:
            status, content = 403 if "gated" in repo else 404, b""
            headers["X-Error-Code"] = "GatedRepo" if "gated" in repo else "EntryNotFound"
        headers |= {"ETag": f'"{name}"', "Content-Length": str(len(content))}
        self.send_response(status)
        for header in headers.items():
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
    with serving(Handler) as server:
        server.asked = []
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}, server.asked


def test_a_variant_is_fetched_once_and_completed_after_an_interrupt(run, hub, tmp_path):
    """By two processes at once; then it comes from the cache."""
    env, asked = hub
    arguments = ("--mode", "gen", "--gpt_variant", "gpt2", "--max_new_tokens", 5)
    first, other = twice_at_once(run, *arguments, env=env)
    (settings,) = tmp_path.glob("cache/hub/models--gpt2/snapshots/*/tokenizer_config.json")
    downloads = [path for what, path in asked if what == "GET" and "/resolve/" in path]
    fetched = sorted(path.rpartition("/")[2] for path in downloads)
    assert fetched == sorted(os.listdir(settings.parent))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(fetched)
    asked.clear()
    again = run(*arguments, env=env)
    assert again.stdout == first.stdout == other.stdout != ""
    assert asked == []
    settings.resolve().unlink()
    settings.unlink()
    assert run(*arguments, env=env).stdout == first.stdout
    assert settings.read_bytes() == NANOS["tokenizer_config.json"]


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
