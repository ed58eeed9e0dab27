"""Wrong data files and chat templates: each is refused with its line, before a model is loaded."""

import json
import re
from pathlib import Path

import pytest
from helpers.commands import OverARun, Refused
from helpers.refusals import cases

GOOD = b'{"question": "What is 2 + 2?", "answer": "4"}\n'
ANSWER = b', "answer": "4"}\n'
# What stands in the JSON Lines file, and what the sentence has to say.
LINES = {
    "nothing": (b"", "expected one JSON object per line, got an empty file"),
    "blank lines": (b"\n  \n\n", "got an empty file"),
    "a CSV header": (b"question,answer\n", "line 1 is not JSON"),
    "binary": (bytes(range(256)), "line 1 is not (JSON|UTF-8)"),
    "latin-1": ('{"question": "caf\xe9"'.encode("latin-1") + ANSWER, "line 1 is not UTF-8 at its byte 17"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "line 1 is not UTF-8 at its byte 0"),
    "a list of objects": (b"[" + GOOD.strip() + b"]\n", "line 1: expected a JSON object, got list"),
    "a number": (b"3\n", "line 1: expected a JSON object, got int"),
    "a torn last line": (GOOD + GOOD[:20], "line 2 is not JSON"),
    "two objects in a line": (GOOD.strip() + GOOD, "line 1 is not JSON .Extra data"),
    "an object over lines": (b'{\n"question": "a"\n}\n', "line 1 is not JSON"),
    "single quotes": (b"{'question': 'a', 'answer': '4'}\n", "line 1 is not JSON"),
    "a key twice": (b'{"question": "a", "question": "b"' + ANSWER, "line 1 is not JSON .the key 'question'"),
    "a question that is a number": (
        b'{"question": 3' + ANSWER,
        "line 1: expected a string in column 'question'",
    ),
    "no question": (b'{"question": null' + ANSWER, "expected a string in column 'question', got None"),
    "a blank question": (b'{"question": "  "' + ANSWER, "line 1: the question in column 'question' is blank"),
    "messages that end otherwise": (
        b'{"question": [{"role": "assistant", "content": "a"}]' + ANSWER,
        "column 'question': expected a string, or messages with role and content of which the last is the",
    ),
    "messages without content": (b'{"question": [{"role": "user"}]' + ANSWER, "or messages with role and"),
    "no messages": (b'{"question": []' + ANSWER, "or messages with role and content"),
    "no answer": (b'{"question": "a", "answer": null}\n', "expected a string or a number in column 'answer'"),
    "an answer that is a list": (b'{"question": "a", "answer": [1]}\n', r"column 'answer', got \[1\]"),
    "an answer that is a truth value": (b'{"question": "a", "answer": true}\n', "got True; set `answer`"),
    "NaN": (b'{"question": "a", "answer": NaN}\n', "got nan; set `answer`"),
    "Infinity": (b'{"question": "a", "answer": -Infinity}\n', "got -inf; set `answer`"),
    "too large a number": (b'{"question": "a", "answer": 1e999}\n', "got inf; set `answer`"),
    "an endless number": (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    "half a character": (b'{"question": "\\ud800"' + ANSWER, "holds half of a surrogate pair"),
    "a control character": (
        b'{"question": "a\x00"' + ANSWER,
        "line 1 is not JSON .Invalid control character",
    ),
    "brackets in brackets": (b'{"question": "a", "x": ' + b"[" * 99999, "line 1 is not JSON .*recursion"),
    "another column in line 3": (GOOD * 2 + b'{"question": "a"}\n', "line 3 has no column 'answer'"),
    "answers that are no numbers": (b'{"question": "a", "answer": ""}\n', "can read none of the answers"),
    "a huge line": (b'{"question": "' + b"x " * 20000 + b'"' + ANSWER, "row 0 has .* tokens, more than 128"),
}
TABLES = {
    "junk.parquet": (b"PAR1 nonsense PAR1", "cannot be loaded .Parquet"),
    "empty.jsonl": (b"", "cannot be loaded .no rows"),
    "torn.jsonl": (GOOD[:20], "cannot be loaded"),
    "ragged.csv": (b'question,answer\n"a,4\nb,5,6\n', "cannot be loaded .Error tokenizing data"),
    "header.csv": (b"question,answer\n", "cannot be loaded .*no data"),
    "text.txt": (b"a", "expected a file ending in one of"),
}
JSONL = "--data.val null --data.train JSONL --data.train.path"
TABLE = "--data.val null --data.train HuggingFaceDataset --data.train.path"
ARGUMENTS = {
    "a folder": (f"{JSONL} {{here}}", "cannot be read .Is a directory"),
    "a file as a folder": (f"{JSONL} {{here}}/good.jsonl/x", "cannot be read .Not a directory"),
    "no file": (f"{JSONL} {{here}}/nothing.jsonl", "there is no such file"),
    "a zero byte": (f"{JSONL} 'a\0b'", "cannot be read .embedded null byte"),
    "rows backwards": (f"{JSONL} {{here}}/good.jsonl --data.train.rows 1:0", "expected rows="),
    "rows past the end": (f"{JSONL} {{here}}/good.jsonl --data.train.rows 0:9", "stop <= 1, got '0:9'"),
    "a table that is a folder": (f"{TABLE} {{here}}/folder", "cannot be loaded .*contain any data files"),
    "a template of numbers": ("--data.format.template_kwargs '{chat_template: 3}'", "chat template refuses"),
    "a torn template": (
        "--data.format.template_kwargs '{chat_template: \"{% for\"}'",
        "chat template refuses",
    ),
    "a template that divides by 0": (
        "--data.format.template_kwargs '{chat_template: \"{{ 1 / 0 }}\"}'",
        "chat template refuses the messages .division by zero",
    ),
    "a template without end": (
        "--data.format.template_kwargs '{chat_template: \"{% for i in range(10 ** 6) %}x{% endfor %}\"}'",
        "chat template refuses the messages .Range too big",
    ),
    "a template that looks around": (
        "--data.format.template_kwargs '{chat_template: \"{{ cycler.__init__.__globals__ }}\"}'",
        "chat template refuses the messages .*unsafe",
    ),
    "an empty template": (
        "--data.format.template_kwargs '{chat_template: \"\"}'",
        "encodes to no token at all",
    ),
    "an example without an answer": ("--data.format.few_shot '[{question: a}]'", "few_shot"),
    "a problem set without problems": (
        "--data.train.size 0",
        "data.train.size=0: expected 1 or more and at most",
    ),
}


QUICK = (
    *("nothing", "binary", "UTF-16", "a torn last line", "a key twice", "a question that is a number", "NaN"),
    *("no answer", "chat messages", "another column in line 3", "answers that are no numbers", "a huge line"),
)


@pytest.mark.parametrize("name", cases(LINES, *QUICK))
def test_a_wrong_line_is_named(name: str, refused: Refused, over_a_run: OverARun, tmp_path: Path) -> None:
    content, sentence = LINES[name]
    (tmp_path / "data.jsonl").write_bytes(content)
    assert re.search(sentence, refused(over_a_run, f"{JSONL} {{here}}/data.jsonl"))


@pytest.mark.parametrize("name", cases(TABLES, "junk.parquet", "empty.jsonl"))
def test_a_wrong_table_is_named(name: str, refused: Refused, over_a_run: OverARun, tmp_path: Path) -> None:
    content, sentence = TABLES[name]
    (tmp_path / name).write_bytes(content)
    answer = refused(over_a_run, f"{TABLE} {{here}}/{name}")
    assert re.search(sentence, answer)
    assert name in answer


QUICK_ARGUMENTS = (
    "a folder",
    "rows past the end",
    "a template that divides by 0",
    "a template that looks around",
)


@pytest.mark.parametrize("name", cases(ARGUMENTS, *QUICK_ARGUMENTS))
def test_wrong_data_settings_are_refused(
    name: str, refused: Refused, over_a_run: OverARun, tmp_path: Path
) -> None:
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    (tmp_path / "folder").mkdir()
    arguments, sentence = ARGUMENTS[name]
    assert re.search(sentence, refused(over_a_run, arguments))


def test_a_byte_order_mark_and_other_line_ends_are_no_mistakes(tmp_path: Path) -> None:
    from grpo_pl.prompts import sources

    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n" + GOOD)
    rows = sources.JSONL(str(tmp_path / "data.jsonl"))
    assert [row.text for row in (rows[0], rows[1])] == [json.loads(GOOD)["question"]] * 2
