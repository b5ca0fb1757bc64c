"""Make the models that ship, in results/models/, out of finished runs: smaller, and judged anew.

    python -m bench.shipping RUN [RUN ...]

Of several students the one ships which has the best AUC on its held-out sentences. The teacher's
adapter is rounded to bf16. The student's matrices are stored in 8 bits, its embedding in 4, without
the rows of tokens that it hardly met. Both load into fp32. The student's thresholds and all that is
told of the models' answers are then of the smaller files.
"""

import argparse
import shutil
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench import markdown
from bench.ablation import held_out_auc
from bench.minimal_pairs import KEPT, pair_margins
from bench.results import RESULTS, students
from data_utils import HELD_OUT, Split, hold_out, load_corpus
from distil import choose_threshold
from finetune import load_teacher
from student import load_student
from support import PROJECT
from support.bases import find_base, save_tokenizer
from support.bases.tokens import token_ids
from support.checkpoints.adapters import read_adapter, write_adapter
from support.checkpoints.students import MODELS, SCALE, SHIPPED, kind_of
from support.corpus import DEV, TRAIN
from support.decisions import SOFTMAX
from support.devices import CPU
from support.files import read_json, read_tensors, write_csv, write_json, write_tensors
from support.reporting import summary
from support.reporting.finished import load_experiment, load_run
from support.reporting.metrics import DEV_SETS
from support.reporting.tables import result_table
from support.teaching.written import sentences_of_file
from train_utils import count_parameters, evaluate

COLA = PROJECT / "cola_public"
WRITTEN = RESULTS / "smollm2_student" / "written.txt.gz"
LEAST = 3  # times that a token must have been met
EMBEDDING, GROUP = "embedding.weight", 64  # numbers that share a scale in the embedding
CARD = """# {name}

{what}

{tables}

The intervals cover the choice of sentences; another seed moves a result as much. The [first
page](../../../README.md) explains the terms. The figures are of the files here, which are smaller
than what was trained (`bench/shipping.py`). metrics.json has the command of the training.

- **Trained on** the training sentences of CoLA ([Warstadt, Singh and Bowman
  2019](https://arxiv.org/abs/1805.12471)){more}. No sentence is in these files.
- **Licence:** Apache-2.0, that of the base, SmolLM2-135M-Instruct.
- **It must not be used** to grade people's language, to judge dialects, learners or whole texts, or
  where a mistake matters: {wrong:.0%} of its answers on in_domain_dev are wrong. It knows single
  sentences, as linguists write them.
"""
TEACHER = """The teacher: SmolLM2-135M with LoRA of rank 4. It judges whether a sentence is
acceptable English. PEFT loads it too.

    python run.py --mode predict --checkpoint smollm2 "The boys was running.\""""
STUDENT = """The student: a GRU of two layers and {parameters:.1f}M parameters. It learnt from [its
teacher](../LoRA_smollm2_22915/README.md) whether a sentence is acceptable English. `predict` takes
it where no other model is named.

    python run.py --mode predict "The boys was running."

It calls a sentence acceptable from p = {p:.2f} on, so that both classes weigh the same. With
`--threshold accuracy` it does so from p = 0.50 on, and makes fewer mistakes."""


def main() -> None:
    """Make each model, and print its size and what it scores beside its run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    shipped = parser.parse_args().runs
    distilled = [run for run in shipped if kind_of(run) != "adapter"]
    aucs = {run: held_out_auc(load_run(run), COLA) for run in distilled}
    for run, auc in aucs.items():
        print(f"{run.name}: AUC {auc:.4f} on held-out sentences")
        if auc < max(aucs.values()):
            shipped.remove(run)
    if unknown := {run.name for run in shipped} - set(SHIPPED.values()):
        parser.error(f"{unknown.pop()} is the best; name it in SHIPPED (checkpoints/students.py)")
    for run in shipped:
        target, before = MODELS / run.name, read_json(run / "metrics.json")
        ship(run, target)
        size = sum(file.stat().st_size for file in target.iterdir())
        print(f"{target.name}: {size / 1e6:.1f} MB")
        after = read_json(target / "metrics.json")
        for split in DEV_SETS:
            print(f"  {split}: {summary(before[split])} -> {summary(after[split])}")


def ship(run: Path, target: Path) -> None:
    """Write the smaller model and what it scores."""
    target.mkdir(parents=True, exist_ok=True)
    base = find_base("smollm2", weights=False)
    corpus = load_corpus(COLA, base.tokenizer, base.max_length)
    facts, decision = read_json(run / "metrics.json"), SOFTMAX
    if kind_of(run) == "adapter":
        saved = read_adapter(run)
        rounded = {name: tensor.bfloat16() for name, tensor in saved.tensors.items()}
        settings = asdict(saved.config)
        write_adapter(target, settings, rounded, saved.base_name, saved.base_fingerprint)
        teacher = load_teacher(target, None)
        model, facts["adapter"] = teacher.model, teacher.fingerprint
    else:
        tensors, _ = read_tensors(run / "model.safetensors")
        small = compact(without_rare_tokens(tensors, corpus, base.tokenizer))
        write_tensors(target / "model.safetensors", small, {})
        save_tokenizer(base.tokenizer, base.folder, target)
        shutil.copyfile(run / "config.json", target / "config.json")
        model = load_student(target)
        held_out = hold_out(corpus, facts["arguments"]["held_out"]).get(HELD_OUT)
        decision = choose_threshold(model, held_out, facts["arguments"]["threshold"], CPU)
        config = read_json(run / "config.json") | {"threshold": decision.rule}
        config |= decision.entries()
        write_json(target / "config.json", config)
        facts |= decision.entries()
        facts["parameters"] = count_parameters(model.requires_grad_())
    shutil.copyfile(run / "history.csv", target / "history.csv")
    results, rows = evaluate(model, corpus, CPU, decision)
    write_csv(target / "predictions.csv", rows)
    write_json(target / "metrics.json", facts | results)
    pair_margins(target).to_csv(target / KEPT, index=False)
    (target / "README.md").write_text(card(target))


def compact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a student's tensors with the embedding in 4 bits and other matrices in 8.

    The largest of a group is 7 or 127. It is rounding to nearest, without calibration, as GGUF's
    Q4_0 and Q8_0; `expand` (support/checkpoints/students.py) reads them.
    """
    stored = {}
    for name, tensor in tensors.items():
        bits = 4 if name == EMBEDDING else 8
        if tensor.ndim != 2 or tensor.shape[1] % GROUP:
            stored[name] = tensor
            continue
        groups = tensor.unflatten(1, (-1, GROUP if bits == 4 else tensor.shape[1]))
        most = 2 ** (bits - 1) - 1
        scale = (groups.abs().amax(dim=2) / most).half()
        whole = groups / scale.float().clamp(min=1e-7).unsqueeze(2)
        whole = whole.round().clamp(-most, most).flatten(1).to(torch.int8)
        if bits == 4:  # two of them, from 1 to 15, in a byte
            whole = (whole + 8).to(torch.uint8)
            whole = whole[:, ::2] | whole[:, 1::2] << 4
        stored |= {name: whole, name + SCALE: scale}
    return stored


def card(folder: Path) -> str:
    """Return a model's card: what it is, how good, and what it must not be used for."""
    model = load_experiment([folder])
    student, table = model.mode != "LoRA", result_table([model]).drop(columns="run")
    tables = [markdown([tuple(table.columns), *table.itertuples(index=False, name=None)])]
    tables += [f"By either threshold:\n\n{students([model])}"] if student else []
    parameters = model.metrics["parameters"]["total"] / 1e6
    decision = model.runs[0].predictions[DEV].decision
    p = decision.p_acceptable(decision.threshold)
    return CARD.format(
        name=folder.name,
        what=STUDENT.format(parameters=parameters, p=p) if student else TEACHER,
        tables="\n\n".join(tables),
        more=", and on 400,000 that smollm2 wrote" if student else "",
        wrong=1 - model.metrics[DEV]["accuracy"],
    )


def without_rare_tokens(
    tensors: dict[str, Tensor], corpus: dict[str, Split], tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """Return a student's tensors without the rows of tokens that training hardly met."""
    written, _ = sentences_of_file(WRITTEN, corpus, 400_000)
    ids = torch.tensor(list(chain.from_iterable(token_ids(tokenizer, written))))
    met = torch.cat([ids, corpus[TRAIN].input_ids])
    often = torch.bincount(met, minlength=tokenizer.get_vocab_size()) >= LEAST
    kept = often[tensors["vocabulary"]]
    rows = torch.cat([kept, torch.tensor([True])])  # the last is that of unknown tokens
    return tensors | {
        "vocabulary": tensors["vocabulary"][kept],
        "embedding.weight": tensors["embedding.weight"][rows],
    }


if __name__ == "__main__":
    main()
