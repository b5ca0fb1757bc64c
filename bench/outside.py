"""Judge a corpus' in_domain_dev with this project and outside it, and compare every logit.

    python -m bench.outside nano cola_public
    python -m bench.outside FOLDER cola_public      # a folder with a full-size GPT-2

PEFT's adapters are read here and ours by PEFT, the merged model by transformers alone, the
exported student by onnxruntime. Ours packs sentences, the others pad them. Noise on every trained
parameter stands for training. The other side's own rounding, its fp32 against its float64, tells
how small a difference can be. Last come the settings of PEFT's that are refused.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import peft
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from bench.inference_speed import onnx_session
from data_utils import Split, load_corpus
from finetune import load_teacher
from lora import lora_tensors, peft_settings
from student import DistilRNN
from support.bases import Base, find_base
from support.checkpoints.adapters import read_adapter, write_adapter
from support.checkpoints.export import save_merged, save_onnx
from support.corpus import DEV, TRAIN
from support.devices import CPU
from support.errors import UserError
from train_utils import predict_logits

PUBLISHED = {
    "r": 4, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "bias": "lora_only",
    "modules_to_save": ["score", "ln_f"], "fan_in_fan_out": True, "task_type": "SEQ_CLS",
}  # fmt: skip
CONFIGURATIONS = {  # what differs from the published set
    "the published set": {},
    "another rank and alpha": {"r": 2, "lora_alpha": 32},
    "rslora": {"use_rslora": True, "lora_alpha": 7},
    "c_attn alone, no biases": {"target_modules": ["c_attn"], "bias": "none"},
    "mlp alone, rank 16": {"target_modules": ["mlp.c_fc", "mlp.c_proj"], "r": 16},
    "a pattern, dropout": {"target_modules": r".*\.h\.[01]\.mlp\.c_proj", "lora_dropout": 0.3},
    "all-linear": {"target_modules": "all-linear"},
    "score alone": {"modules_to_save": None},
    "score and embeddings whole": {"modules_to_save": ["score", "wte", "wpe"]},
}
REFUSED = {  # each alone
    "use_dora": True, "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_attn": 2},
    "layers_to_transform": [0], "layer_replication": [[0, 2], [1, 2]], "lora_bias": True,
    "exclude_modules": ["c_fc"], "target_parameters": ["c_attn.weight"], "bias": "all",
    "trainable_token_indices": [1], "init_lora_weights": "pissa", "task_type": "CAUSAL_LM",
}  # fmt: skip
BATCH_SIZES = (1, 7, 128)  # of the exported student's batches


def main() -> None:
    """Print a line a comparison, then the refusals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="nano, or a folder in Hugging Face format")
    parser.add_argument("corpus", type=Path)
    args = parser.parse_args()
    base = find_base(args.base)
    corpus = load_corpus(args.corpus, base.tokenizer, base.max_length)
    print(f"{args.base}, {len(corpus[DEV])} sentences of {args.corpus.name}")
    print(f"{'logits':<52} {'difference':>10} {'rounding':>10} {'std':>6}")
    with tempfile.TemporaryDirectory() as folder:
        comparisons = compare_all(base, corpus, Path(folder))
        total = len(CONFIGURATIONS) + 2 + len(BATCH_SIZES)
        for name, ours, theirs, exact in tqdm(comparisons, total=total, disable=None):
            difference, rounding = (x.sub(theirs).abs().max().item() for x in (ours, exact))
            tqdm.write(f"{name:<52} {difference:>10.1e} {rounding:>10.1e} {exact.std():>6.2f}")
    for key, value in REFUSED.items():
        print(refusal(key, value))


def compare_all(
    base: Base, corpus: dict[str, Split], folder: Path
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Each comparison's name, our logits, the others' and the others' in float64.

    Logits are (sentences, 2). What is saved on the way goes to ``folder``.
    """
    dev = corpus[DEV]
    for name, changes in CONFIGURATIONS.items():
        theirs = peft.get_peft_model(
            reference(base.folder), peft.LoraConfig(**{**PUBLISHED, **changes})
        )
        add_noise(theirs)
        theirs.save_pretrained(folder / name)
        yield f"PEFT's adapter read here, {name}", *compared(folder / name, theirs, dev)
    source, saved = folder / "the published set", folder / "ours"
    adapter = load_teacher(source, merged=False)
    tensors, settings = lora_tensors(adapter.model), peft_settings(adapter.model)
    base_name = read_adapter(source).base_name
    write_adapter(saved, settings, tensors, base_name, adapter.base_fingerprint)
    theirs = peft.PeftModel.from_pretrained(reference(base.folder), saved)
    yield "our adapter read by PEFT", *compared(saved, theirs, dev)
    save_merged(load_teacher(saved).model, base, folder / "merged")
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    yield "our adapter merged, read by transformers", *compared(saved, theirs, dev)
    student = DistilRNN(corpus[TRAIN].input_ids.unique())
    save_onnx(student, base.tokenizer, base.folder, folder)
    ours = predict_logits(student, dev, CPU)
    exact = predict_logits(student.double(), dev, CPU)
    for size in BATCH_SIZES:
        theirs = onnx_logits(folder / "student.onnx", dev, size)
        yield f"our student in onnxruntime, batches of {size}", ours, theirs, exact


def compared(adapter: Path, theirs: nn.Module, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of an adapter read here, and those of another's model in fp32 and float64."""
    ours = predict_logits(load_teacher(adapter).model, split, CPU)
    return ours, padded_logits(theirs, split), padded_logits(theirs.double(), split)


def reference(base: Path) -> nn.Module:
    """Hugging Face's classifier, with the same head at every call."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.config.pad_token_id = model.config.eos_token_id
    return model


@torch.no_grad()
def add_noise(model: nn.Module) -> None:
    """As if trained: noise on everything that trains, B included."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn_like(parameter)


def padded_logits(model: nn.Module, split: Split) -> Tensor:
    """Logits (sentences, 2) of a model of PEFT's or transformers', like lengths in one batch."""

    def judge(input_ids: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
        return model.eval()(input_ids=input_ids, attention_mask=mask).logits

    # GPT2ForSequenceClassification reads the last token that is not the pad token, so the pad is a
    # token that no sentence ends in.
    pad = model.config.pad_token_id
    assert pad not in split.input_ids[split.cu_seqlens[1:] - 1]
    return judged(split, np.argsort(split.seqlens, kind="stable"), 32, pad, judge)


def onnx_logits(path: Path, split: Split, size: int) -> Tensor:
    """Logits (sentences, 2) of an exported student, in the split's own order: more is padded."""
    session = onnx_session(path)

    def judge(input_ids: Tensor, lengths: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids.numpy(), "lengths": lengths.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return judged(split, np.arange(len(split)), size, 0, judge)


@torch.no_grad()
def judged(split: Split, order: np.ndarray, size: int, pad: int, judge: Callable) -> Tensor:
    """Logits (sentences, 2) the usual way, ``size`` sentences at a time, padded to the longest."""
    logits, bounds = torch.empty(len(split), 2).double(), split.cu_seqlens.tolist()
    for indices in np.split(order, range(size, len(order), size)):
        rows = [split.input_ids[bounds[i] : bounds[i + 1]] for i in indices]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        logits[indices] = judge(input_ids, torch.from_numpy(split.seqlens[indices])).double()
    return logits


def refusal(key: str, value: object) -> str:
    """The line with which a setting of PEFT's is refused, the folder's name left out."""
    with tempfile.TemporaryDirectory() as folder:
        peft.LoraConfig(**{**PUBLISHED, key: value}).save_pretrained(folder)
        try:
            load_teacher(Path(folder))
        except UserError as error:
            return str(error).replace(f"{folder}/", "")
    return f"{key} = {value!r} is NOT refused"


if __name__ == "__main__":
    main()
