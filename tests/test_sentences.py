"""Files as people have them: each is understood, or refused in one line that says where."""

import gzip
import json
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.corpus import DEV, OUT_OF_DOMAIN, TRAIN, bare, read_corpus
from support.errors import UserError
from support.sentences import ANY, COLA_CLASSES, Columns, number_labels, read_sentences

SEPARATORS = {"tabs": "\t", "commas": ",", "semicolons": ";"}
GOOD, BAD = "It rains.", "Rain it."

# ---------------------------------------------------------------------------------------------
# One file. | stands for the separator


UNDERSTOOD = {  # its text, its labels, the names of 0 and 1
    "a heading": (f"sentence|label\n{GOOD}|1\n{BAD}|0\n", "10", ("0", "1")),
    "others": (f"id|Text |Label\n7|{GOOD}|1\n8|{BAD}|0\n", "10", ("0", "1")),
    "no last newline": (f"sentence|label\n{GOOD}|1\n{BAD}|0", "10", ("0", "1")),
    "DOS lines": (f"sentence|label\r\n{GOOD}|1\r\n{BAD}|0\r\n", "10", ("0", "1")),
    "a BOM": (f"\ufeffsentence|label\n{GOOD}|1\n{BAD}|0\n", "10", ("0", "1")),
    "blank lines": (f"\nsentence|label\n\n{GOOD}|1\n\n{BAD}|0\n\n", "10", ("0", "1")),
    "spaces": (f"sentence|label\n {GOOD} | 1\n{BAD}|0 \n", "10", ("0", "1")),
    "quotes": (f'"sentence"|"label"\n"{GOOD}"|"1"\n"{BAD}"|"0"\n', "10", ("0", "1")),
    "words": (f"label|text\nacceptable|{GOOD}\nunacceptable|{BAD}\n", "10", COLA_CLASSES),
    "signs": (f"label|text\nPositive|{GOOD}\nNegative|{BAD}\n", "10", ("Negative", "Positive")),
    "answers": (f"label|text\nno|{GOOD}\nyes|{BAD}\nNO|{GOOD}\n", "010", ("no", "yes")),
    "truth": (f"label|text\nTrue|{GOOD}\nFalse|{BAD}\n", "10", ("False", "True")),
    "one class": (f"label|text\nyes|{GOOD}\nyes|{BAD}\n", "11", ("no", "yes")),
    "no labels": (f"index|sentence\n0|{GOOD}\n1|{BAD}\n", None, None),
    "hidden labels": (f"sentence|label\n{GOOD}|-1\n{BAD}|-1\n", None, None),
}  # fmt: skip


def read(content: bytes, columns: Columns = ANY) -> tuple:
    """Return sentences, labels as one text, and classes; None where there are no labels."""
    table = read_sentences(content, "a.file", columns)
    sentences = [row.sentence for row in table.rows]
    if not table.label_column:
        return sentences, None, None
    classes, (rows,) = number_labels([table], columns.positive)
    assert all(name in table.understood(classes) for name in classes)
    return sentences, "".join(str(row.label) for row in rows), classes


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_table_with_a_heading_is_understood(name, separator):
    text, labels, classes = UNDERSTOOD[name]
    content = text.replace("|", SEPARATORS[separator]).encode()
    expected = [GOOD, BAD, GOOD][: len(labels or "10")], labels, classes
    assert read(content) == expected
    assert read(gzip.compress(content, mtime=0)) == expected


AB = ["A.", "B."], "10", ("0", "1")
AB_TRUTH = ["A.", "B."], "10", ("false", "true")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{GOOD}\n{BAD}\n", ([GOOD, BAD], None, None)),
        ("Well, it is.\nNow, I go.", (["Well, it is.", "Now, I go."], None, None)),
        ("Text, he wrote.\nNot I, no.", (["Text, he wrote.", "Not I, no."], None, None)),
        ("sentence\nWell, yes.\nNo, sir.\n", (["Well, yes.", "No, sir."], None, None)),
        (f"gj04\t1\t\t{GOOD}\ngj04\t0\t*\t{BAD}", ([GOOD, BAD], "10", COLA_CLASSES)),
        ('a\t1\t\tHe said "no\n', (['He said "no'], "1", COLA_CLASSES)),
        ('{"text": "A.", "label": true}\n\n{"label": false, "text": "B."}', AB_TRUTH),
        ('{"sentence": "A.", "label": 1}\n{"sentence": "B.", "label": 0}', AB),
        ('{"sentence": "A."}\n{"sentence": "B."}\n', (["A.", "B."], None, None)),
        ('sentence\tlabel\n"A," he.\t1\n"B\t0\n', (['"A," he.', '"B'], "10", ("0", "1"))),
        ('text\tlabel\n"a ""b"""\t1\n"d\te"\t0\n', (['a "b"', "d\te"], "10", ("0", "1"))),
        ('text,label\n"a ""b""", 1\n"d\ne",0\n', (['a "b"', "d e"], "10", ("0", "1"))),
        ('label, text\n1.0, "a, b"\n0.0, "c"\n', (["a, b", "c"], "10", ("0", "1"))),
        (",text\n0,A b.\n1,C d.\n", (["A b.", "C d."], None, None)),
        ("  A b. \n\tC d.\n", (["A b.", "C d."], None, None)),
        ("a\t1\t\t A b. ", ([" A b. "], "1", COLA_CLASSES)),
    ],
)
def test_other_kinds_of_files_are_understood(content, expected):
    assert read(content.encode()) == expected


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
def test_what_pandas_writes_is_read_as_it_was(separator, tmp_path):
    sentences = ['He said, "no"; then left.', "a, b; c\td", "Plain.", 'Two\nlines, "quoted".']
    frame = pd.DataFrame({"n": range(4), "text": sentences, "label": ["spam", "ham"] * 2})
    frame.to_csv(path := tmp_path / "a.csv", sep=separator, index=False)
    expected = [*sentences[:3], 'Two lines, "quoted".'], "1010", ("ham", "spam")
    if separator == "\t":  # there quotes are often a sentence's own
        assert "line 5: quotes over several lines" in refusal(path.read_bytes())
    else:
        assert read(path.read_bytes(), Columns(positive="Spam")) == expected
    frame.to_json(path, orient="records", lines=True)
    assert read(path.read_bytes(), Columns(positive="spam")) == expected


REFUSED = {  # its text, what is said of it, and the options
    "three classes": ("sentence|label\nA.|1\nB.|0\nC.|2\n", "line 4: a third class .'1', '0', '2'"),
    "unknown classes": ("sentence|label\nA.|ham\nB.|spam\n", "'ham', 'spam'; .*--positive"),
    "a gap": ("sentence|label\nA.|1\nB.|\n", "line 3: no label in 'label'"),
    "a missing value": ("sentence|label\nA.|1\nB.|NaN\n", "line 3: no label in 'label'"),
    "no sentence": ("sentence|label\nA.|1\n |0\n", "line 3: no sentence in column 'sentence'"),
    "a column less": ("sentence|label\nA.|1\nB.\n", "after line 2: not as many columns"),
    "a column more": ("sentence|label\nA.|1\n\nB.|c|0\n", "after line 2: not as many columns"),
    "a heading alone": ("sentence|label\n", "a heading and no sentences"),
    "no text column": ("id|phrase|class\n1|A.|0\n2|B.|1\n", "line 1: .*(tab in|table).*sentence"),
    "no heading": ("1|A.\n0|B.\n", "line 1: .*(tab in|table).*sentence"),
    "not UTF-8": ("sentence|label\nA.|1\n\xff|0\n", "line 3: byte 1 is not UTF-8"),
    "binary": ("sentence|label\nA.|1\n\0|0\n", r"line 3: a control character, '\\x00'"),
    "another text column": ("a|label\nA.|1\n", "no heading with b", Columns(text="b")),
    "a missing label": ("text|y\nA.|1\n", "column --label_column 'z'.* 'y'", Columns(label="z")),
    "a column of CoLA's": ("a|1||A.\nb|0|*|B.\n", "line 1: no heading", Columns(label="1")),
    "a missing class": ("text|label\nA.|1\n", "are '1'; --positive 2 is", Columns(positive="2")),
}  # fmt: skip


def refusal(content: bytes, columns: Columns = ANY) -> str:
    """Return the one line that refuses a file."""
    with pytest.raises(UserError) as caught:
        read(content, columns)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("a.file")
    return line


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_table_with_a_fault_is_refused_with_its_line(name, separator):
    text, words, *columns = REFUSED[name]
    content = text.replace("|", SEPARATORS[separator]).encode("latin-1")
    assert re.search(words, refusal(content, *columns))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no sentences"),
        (b" \n\n", "no sentences"),
        (b"A b.\nC\td.\n", "line 2: a tab in the sentence"),
        (b"id,phrase\n1,Two words\n2,More words\n", "line 1: a table, by its 2 columns"),
        (b"A b.;0\nC d.;1\n", "line 1: a table, by its 2 columns"),
        (b'sentence,label\n"A b,1\nC d.,0\n', "after line 1: .*; quotes stand around"),
        (b'sentence,label\n"A b."x,1\n', "after line 1: .*; quotes stand around"),
        (b'{"text": "A."}\n{"text": ', "line 2: not a JSON object"),
        (b'[{"text": "A."}]\n', "line 1: not a JSON object"),
        (b'[\n{"text": "A."}]\n', "line 1: not a JSON object"),
        (b'{"text": 7}\n', "line 1: no sentence in column 'text'"),
        (b'{"text": "A."}\n{"label": 1}\n', "line 2: no sentence in column 'text'"),
        (b'{"text": "A.", "label": 1}\n{"text": "B."}\n', "line 2: no label in 'label'"),
        (b'{"text": "A\\u0000b."}\n', "line 1: a control character"),
        (b'{"text": "A\\ud800b."}\n', "line 1: a control character"),
        (b'{"body": "A."}\n', "no column named sentence or text"),
        (b"a\t1\t\tFine.\na\t2\t\tFine.\n", "line 2: the label '2'"),
        (b"a\t1\t\tFine.\na\t1\tFine.\n", "line 2: 3 columns"),
        (b"a\t1\t\t \n", "line 1: no sentence"),
        (b"1\t1\tA b.\t0.9\n", "line 1: a tab in the sentence"),
        (b",review,stars\n0,A b.,1\n1,C d.,5\n", "line 1: a table, by its 3 columns"),
        (b"text,Text,label\nA.,B.,1\n", "line 1: two columns of one name"),
        (b'text,"label\nA.,1\n', "after line 1: .*; quotes stand around"),
        (b'text\tlabel\n"A b.\t1\nC d."\t0\n', "line 2: quotes over several lines"),
        (b'text\n"A b.\nC d."\n', "line 2: quotes over several lines"),
        (b"\x1f\x8bnot gzip", "broken"),
        (b"PK\x03\x04", "line 1: a control character"),
    ],
)
def test_another_file_with_a_fault_is_refused_with_its_line(content, words):
    assert re.search(words, refusal(content))


CELLS = st.sampled_from([*'01"{[ \0\ré', "sentence", "label", "yes", "A b.", '""', "", "-1"])
LINES = st.lists(st.lists(CELLS, max_size=4), max_size=5)


@given(lines=LINES, separator=st.sampled_from(["\t", ",", ";"]), heading=st.booleans())
def test_any_table_is_read_or_refused_in_one_line(lines, separator, heading):
    lines = [["sentence", "label"], *lines] if heading else lines
    content = "\n".join(separator.join(line) for line in lines).encode()
    try:
        sentences, labels, classes = read(content)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(sentence.strip() and "\n" not in sentence for sentence in sentences)
    assert labels is None or (set(labels) <= {"0", "1"} and len(labels) == len(sentences))
    assert classes is None or len(set(classes)) == 2


# ---------------------------------------------------------------------------------------------
# A corpus of one's own


def rows_of(n: int) -> list[tuple[str, int]]:
    """Return sentences with labels; every third is one that was there, in other capitals."""
    sentences = [f"The boy has {number // 3} dogs." for number in range(n)]
    return [(s.upper() if k % 3 else s, k // 3 % 2) for k, s in enumerate(sentences)]


def csv_of(rows: list[tuple[str, int]]) -> bytes:
    return pd.DataFrame(rows, columns=["text", "label"]).to_csv(index=False).encode()


NINE = csv_of(rows_of(9))


def test_one_file_is_split_by_a_rule_that_keeps_equal_sentences_together(tmp_path):
    (path := tmp_path / "mine.csv").write_bytes(csv_of(rows_of(300)))
    corpus = read_corpus(path)
    sentences = {split: {bare(row.sentence) for row in rows} for split, rows in corpus.rows.items()}
    assert [*corpus.rows] == [TRAIN, DEV]
    assert not sentences[TRAIN] & sentences[DEV]
    assert len(sentences[TRAIN] | sentences[DEV]) == 100
    assert 30 < len(corpus.rows[DEV]) < 90
    assert "1 sentence of 5" in corpus.facts["split"]
    path.write_bytes(csv_of(rows_of(300)[::-1]))  # another order, the same sides
    again = {
        split: {bare(r.sentence) for r in rows} for split, rows in read_corpus(path).rows.items()
    }
    assert again == sentences


@pytest.mark.parametrize(
    "names",
    [
        ("train.tsv", "dev.tsv", "test.tsv"),
        ("train.csv", "validation.csv", "test.csv"),
        ("train.jsonl.gz", "valid.json", None),
        ("raw/in_domain_train.tsv", "raw/in_domain_dev.tsv", "raw/out_of_domain_dev.tsv"),
        ("train.csv", None, "test.csv"),
    ],
)
def test_a_folder_may_have_the_usual_names(tmp_path, names):
    parts = dict(zip((TRAIN, DEV, OUT_OF_DOMAIN), names, strict=True))
    for number, name in enumerate(names):
        if name:
            (path := tmp_path / name).parent.mkdir(exist_ok=True)
            path.write_bytes(csv_of(rows_of(60 + number)))
    corpus = read_corpus(tmp_path)
    assert [*corpus.rows] == [s for s, name in parts.items() if name or s == DEV]
    if names[1]:
        assert [len(rows) for rows in corpus.rows.values()] == [60, 61, 62][: len(corpus.rows)]
        assert "split" not in corpus.facts
    assert corpus.facts["classes"] == ["0", "1"]
    assert corpus.facts["files"].keys() == corpus.rows.keys()


def test_a_test_file_without_labels_is_left_out_and_said(tmp_path):
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_bytes(csv_of(rows_of(60)))
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tIt rains.\n")
    corpus = read_corpus(tmp_path)
    assert [*corpus.rows] == [*corpus.facts["files"]] == [TRAIN, DEV]
    assert corpus.understood[0] == f"{tmp_path / 'test.tsv'}: no labels; it is left out"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no training sentences there"),
        ({"train.txt": b"It rains.\n"}, "no training sentences there"),
        (
            {"train.csv": csv_of([("A.", 1), ("B.", 1)]), "dev.csv": NINE},
            "2 sentences for in_domain_train, 9 for .*; both classes",
        ),
        ({"train.csv": csv_of([("A b.", 1)])}, "0 sentences for in_domain_train, 1 for"),
        ({"train.csv": NINE, "dev.csv": csv_of([("A b.", 1)])}, "9 sentences .*, 1 for .*; both"),
        ({"train.csv": NINE, "train.tsv": b""}, "is in_domain_train, train.csv and train.tsv"),
        ({"train.csv": NINE, "dev.csv": b"text\nA b.\n"}, "dev.csv: no labels; name their"),
        ({"train.csv": NINE, "dev.csv": b"text,label\nA b.,2\n"}, "dev.csv, line 2: a third class"),
    ],
)
def test_a_folder_that_is_no_corpus_is_refused(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_corpus(tmp_path)


# ---------------------------------------------------------------------------------------------
# At work


def test_a_corpus_in_one_file_is_trained_on_reported_and_judged_by_its_own_names(call, tmp_path):
    csv = pd.DataFrame(rows_of(300), columns=["body", "verdict"])
    csv["verdict"] = csv["verdict"].map({0: "spam", 1: "ham"})
    csv.to_csv(tmp_path / "mine.csv", index=False)
    columns = ("--text_column", "Body", "--label_column", "verdict", "--positive", "ham")
    few = ("--gpt_variant", "nano", "--recipe", "published", "--max_steps", 2, "--student_width", 8)
    done = call("--mode", "all", *few, "--data_dir", "mine.csv", *columns, "--out_dir", "out")
    assert done.returncode == 0, done.stderr
    assert OUT_OF_DOMAIN not in done.stdout
    said, split, *_ = done.stderr.splitlines()
    assert said.endswith(
        "300 sentences in column 'body', labels 'spam' (0) and 'ham' (1) in 'verdict'"
    )
    assert "mine.csv: split by a fixed rule" in split
    page = (tmp_path / "out" / "Report_22915.html").read_text()
    assert "1 is “ham”, 0 “spam”." in page
    assert "THE BOY HAS 7 DOGS." in page  # a sentence of the dev set, read again
    folder = tmp_path / "out" / "checkpoints" / "rnn_nano_22915"
    predict = ("--mode", "predict", "--checkpoint", folder, "--input", "mine.csv", *columns)
    head, *rows = call(*predict).stdout.splitlines()
    assert head.split() == ["p(ham)", "judgement", "sentence"]
    assert {row.split()[1] for row in rows[:300]} <= {"ham", "spam"}
    assert rows[301].startswith("ham: ")
    answers = [json.loads(line) for line in call(*predict, "--json").stdout.splitlines()]
    assert [answer["gold"] for answer in answers] == (csv["verdict"] == "ham").astype(int).tolist()
    assert all(list(a) == ["sentence", "label", "p_acceptable", "logits", "gold"] for a in answers)
    for more, words in (
        (("--checkpoint", "student"), "models of other classes; score one by one"),
        (("--positive", "Spam"), "--positive Spam: the model was trained with it as class 0"),
    ):
        refused = call(*predict, *more)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert words in refused.stderr
    csv["verdict"] = csv["verdict"].map({"spam": "junk", "ham": "ham"})
    csv.to_csv(tmp_path / "mine.csv", index=False)  # the same sentences, another name
    refused = call("--mode", "rnn", *few, "--data_dir", "mine.csv", *columns, "--out_dir", "out")
    assert "classes is ['spam', 'ham'] there, ['junk', 'ham'] here" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["It rains.", ""], "the command line: 1 blank line passed over"),
        (["It rains.", "It rains. He left."], "line 2: perhaps several sentences, judged as one"),
        (["It rains and " * 40], "line 1 has 120 tokens, and a training sentence about 10"),
        (["Dr. Smith met Mr. J. Brown in St. Louis."], ""),
    ],
)
def test_predict_notes_once_what_it_was_not_made_for(call, arguments, words):
    done = call("--mode", "predict", "--checkpoint", "student", *arguments, *arguments[:1])
    notes = [line for line in done.stderr.splitlines() if "calls a sentence acceptable" not in line]
    assert len(notes) == bool(words)
    assert words in "".join(notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mode", "predict", "--checkpoint", "studnet", "It rains."), "student and smollm2 are"),
        (("--mode", "predict", "--input", "a.csv", "It rains."), "choose one"),
        (("--mode", "predict", "--positive", "1", "It rains."), "the columns of a table; choose"),
        (("--mode", "predict", "--checkpoint", "student", "--sr_no", "3", "It rains."),
         "--sr_no means nothing beside --checkpoint"),
        (("--mode", "predict", "--checkpoint", "student", "--out_dir", "a", "It rains."),
         "--out_dir means nothing beside --checkpoint"),
        (("--mode", "predict", "--checkpoint", "student", "--gpt_variant", "nano", "It rains."),
         "--gpt_variant means nothing to a student"),
        (("--mode", "predict", "--text_column", "a", "It rains."), "choose one"),
        (("--mode", "distil", "--gpt_variant", "nano", "--teacher", "student"), "of a LoRA run"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(call, options, words):
    done = call(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
