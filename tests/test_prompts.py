"""Prompt sources, the chat format, the encoded set, and the order of visits."""

import json
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from grpo_pl.functional import derive_seed, permutation
from grpo_pl.prompts import (
    JSONL,
    Arithmetic,
    ChatFormat,
    Example,
    HuggingFaceDataset,
    PromptSet,
    PromptSource,
    Question,
    ReasoningGym,
    iteration_prompts,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and no_system is defined %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if think is defined %}<think>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, a BOS token in front of plain text, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<|im_start|>", "<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "<|im_start|>", "<|im_end|>")])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>")
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def base_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer without a chat template."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>")


class Rows(PromptSource):
    """A source of the given texts; the answer of row `i` is `i`."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Question:
        return Question(text=self.texts[index], answer=str(index))


BARE = ChatFormat(use_chat_template=False, question_template="{question}")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_set(tokenizer: PreTrainedTokenizerFast, *texts: str, **options: Any) -> PromptSet:
    options = {"max_prompt_tokens": 100, "long_prompts": "error", "key": "data.train"} | options
    return PromptSet(Rows(*texts), BARE, tokenizer, **options)


# ------------------------------------------------------------------------------------------------------ JSONL


def test_jsonl_keeps_order_and_other_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"question": "q0", "answer": "a0", "level": 3},
        {"question": "q1", "answer": "a1"},
    )
    source = JSONL(path)
    assert list(source) == [
        Question(text="q0", answer="a0", metadata={"level": 3}),
        Question(text="q1", answer="a1"),
    ]


@pytest.mark.parametrize(
    ("answer", "text"), [("7", "7"), (7, "7"), (0.5, "0.5"), (-3, "-3"), (10**40, "1" + "0" * 40)]
)
def test_jsonl_turns_numbers_into_the_answer_as_written(tmp_path: Path, answer: Any, text: str) -> None:
    assert JSONL(write(tmp_path / "a.jsonl", {"question": "q", "answer": answer}))[0].answer == text


def test_jsonl_renames_columns_and_may_have_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"problem": "p", "solution": "s"})
    assert JSONL(path, question="problem", answer="solution")[0] == Question(text="p", answer="s")
    assert JSONL(path, question="problem", answer=None)[0] == Question(
        text="p", answer="", metadata={"solution": "s"}
    )


def test_jsonl_skips_empty_lines_a_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "\xc3\xa9", "answer": "1"}\r\n\r\n  \n{"question": "b", "answer": "2"}'
    )
    assert [row.text for row in JSONL(str(path))] == ["é", "b"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(None, "01234"), ("1:3", "12"), (":2", "01"), ("3:", "34"), (":", "01234"), ("4:5", "4")],
)
def test_rows_select_a_half_open_slice(tmp_path: Path, rows: str | None, expected: str) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": str(i), "answer": ""} for i in range(5)))
    assert "".join(row.text for row in JSONL(path, rows=rows)) == expected


@pytest.mark.parametrize(
    "rows", ["0:6", "3:3", "3:1", "-2:", "5:", "3", "", "a:b", "0:5:1", "0 : 5", "\u0660:\u0663"]
)
def test_rows_outside_the_file_are_refused_and_not_cut(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": str(i), "answer": ""} for i in range(5)))
    with pytest.raises(
        ValueError, match=r'rows="start:stop" with 0 <= start < stop <= 5, got .*; set `rows`'
    ):
        JSONL(path, rows=rows)


GOOD = b'{"question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "one JSON object per line, got an empty file; set `path`"),
        (b"\n \n", "one JSON object per line, got an empty file; set `path`"),
        (
            GOOD + b"\n{oops\n",
            r"line 3 is not JSON \(Expecting property name.*; write one JSON object per line",
        ),
        (GOOD + b"[" * 100_000, "line 2 is not JSON .*recursion"),
        (GOOD + b"[1]", "line 2: expected a JSON object, got list"),
        (GOOD + b"null", "line 2: expected a JSON object, got NoneType"),
        (GOOD + b'{"question": "\xff"}', "line 2 is not UTF-8 at its byte 14; convert the file"),
        (
            b'{"problem": "q", "answer": "a"}',
            "line 1 has no column 'question'; set `question` to one of its columns: 'problem', 'answer'",
        ),
        (
            b'{"question": "q"}',
            "line 1 has no column 'answer'; set `answer` to one of its columns: 'question'",
        ),
        (b"{}", "line 1 has no column 'question'; set `question` to one of its columns: none"),
        (
            b'{"question": 5, "answer": "a"}',
            "line 1: expected a string in column 'question', got 5; set `question`",
        ),
        (
            b'{"question": "q", "answer": null}',
            "a string or a number in column 'answer', got None; set `answer`",
        ),
        (b'{"question": "q", "answer": true}', "a string or a number in column 'answer', got True"),
        (b'{"question": "q", "answer": NaN}', "a string or a number in column 'answer', got nan"),
        (b'{"question": "q", "answer": 1e999}', "a string or a number in column 'answer', got inf"),
        (b'{"question": "\\ud800", "answer": "a"}', "column 'question' holds half of a surrogate pair"),
    ],
)
def test_jsonl_says_what_is_wrong_and_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^JSONL path=.*a\.jsonl: .*{message}"):
        JSONL(str(path))


def test_jsonl_names_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"JSONL path=nowhere.jsonl: there is no such file; set `path`"):
        JSONL("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\); set `path`"):
        JSONL(str(tmp_path))


def test_a_long_value_does_not_flood_the_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a string") as caught:
        JSONL(write(tmp_path / "a.jsonl", {"question": ["x" * 10_000], "answer": ""}), answer=None)
    assert len(str(caught.value)) < 500


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_column = st.text(max_size=5) | _values
_objects = st.fixed_dictionaries({"question": _column, "answer": _column})
_json_lines = st.lists((_objects | _values).map(json.dumps), max_size=4).map(
    lambda lines: "\n".join(lines).encode()
)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60) | _json_lines, rows=st.none() | st.text("0123:", max_size=4))
def test_any_file_gives_text_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, rows: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    try:
        source = JSONL(str(path), rows=rows)
    except ValueError:
        return
    assert len(source) > 0
    for question in source:
        question.text.encode()
        question.answer.encode()


# -------------------------------------------------------------------------------------- Hugging Face datasets


@pytest.fixture
def hub_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Five rows as a `datasets.Dataset`, with the library's cache inside `tmp_path`."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets.Dataset.from_list([{"question": f"q{i}", "answer": i, "level": i % 2} for i in range(5)])


@pytest.mark.parametrize("form", ["a.jsonl", "a.parquet", "a.csv", "folder", "saved", "saved_splits"])
def test_a_local_data_set_of_any_form_gives_the_same_rows(tmp_path: Path, hub_table: Any, form: str) -> None:
    path = tmp_path / form
    if form == "saved":
        hub_table.save_to_disk(path)
    elif form == "saved_splits":
        sys.modules["datasets"].DatasetDict(train=hub_table, test=hub_table.select([0])).save_to_disk(path)
    elif form == "folder":
        path.mkdir()
        hub_table.to_json(path / "train.jsonl")
    else:
        {"a.jsonl": hub_table.to_json, "a.parquet": hub_table.to_parquet, "a.csv": hub_table.to_csv}[form](
            path
        )
    source = HuggingFaceDataset(str(path), rows="1:4")
    assert list(source) == [
        Question(text=f"q{i}", answer=str(i), metadata={"level": i % 2}) for i in range(1, 4)
    ]
    assert source[-1].text == "q3"


def test_hugging_face_data_sets_say_what_is_wrong(tmp_path: Path, hub_table: Any) -> None:
    sys.modules["datasets"].DatasetDict(train=hub_table).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    hub_table.to_json(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("q")
    (tmp_path / "broken.jsonl").write_text("{oops")
    (tmp_path / "empty.csv").write_text("question,answer\n")
    head = r"^HuggingFaceDataset path=.* split=\w+: .*"
    with pytest.raises(ValueError, match=head + r"no such split; set `split` to one of \['train'\]"):
        HuggingFaceDataset(saved, split="test")
    with pytest.raises(ValueError, match=head + r"cannot be loaded .*test.*; set `path`, `name` or `split`"):
        HuggingFaceDataset(str(tmp_path / "a.jsonl"), split="test")
    with pytest.raises(
        ValueError, match=r"has no column 'q'; set `question` to one of .* 'question', 'answer'"
    ):
        HuggingFaceDataset(saved, question="q")
    with pytest.raises(ValueError, match=r"has no column 'gold'; set `answer` to one of"):
        HuggingFaceDataset(saved, answer="gold")
    with pytest.raises(ValueError, match=head + r"row 2: expected a string in column 'level', got 0"):
        HuggingFaceDataset(saved, question="level", rows="2:")[0]
    with pytest.raises(ValueError, match=head + r"0 <= start < stop <= 5, got '0:6'"):
        HuggingFaceDataset(saved, rows="0:6")
    with pytest.raises(ValueError, match=head + r"ending in one of .jsonl, .*, got '\.txt'; set `path`"):
        HuggingFaceDataset(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match=head + r"cannot be loaded"):
        HuggingFaceDataset(str(tmp_path / "broken.jsonl"))
    with pytest.raises(ValueError, match=head + r"cannot be loaded .*; set `path`"):
        HuggingFaceDataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=head + r"cannot be loaded .*no data"):
        HuggingFaceDataset(str(tmp_path / "empty.csv"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"needs the package .*: pip install 'grpo_pl\[tasks\]'"):
        ReasoningGym("leg_counting")


# ------------------------------------------------------------------------------------------------- procedural


@pytest.mark.parametrize("operators", ["+", "+-", "*"])
@pytest.mark.parametrize("digits", [1, 2])
def test_arithmetic_splits_are_disjoint_and_cover_every_problem(digits: int, operators: str) -> None:
    options: dict[str, Any] = {"digits": digits, "operators": operators, "held_out": 20}
    val = {row.text for row in Arithmetic(split="val", **options)}
    numbers = 9 * 10 ** (digits - 1)
    everything = len(operators) * numbers * (numbers + 1) // 2
    train = Arithmetic(split="train", size=everything - 20, **options)
    seen = {row.text for row in train}
    assert len(val) == 20
    assert len(seen) == len(train) == everything - 20
    assert not val & seen


def test_no_held_out_sum_is_trained_on_the_other_way_round() -> None:
    def problem(text: str) -> tuple[str, frozenset[str]]:
        a, operator, b = text.split()
        return operator, frozenset((a, b))

    options: dict[str, Any] = {"operators": "+*", "template": "{a} {operator} {b}"}
    val = {problem(row.text) for row in Arithmetic(split="val", **options)}
    train = {problem(row.text) for row in Arithmetic(split="train", **options)}
    assert len(val) == 200
    assert len(train) == 2 * 4095 - 200
    assert not val & train


def test_both_orders_of_the_operands_occur() -> None:
    pairs = [row.text.split() for row in Arithmetic(template="{a} {operator} {b}")]
    larger_first = sum(int(a) > int(b) for a, _, b in pairs)
    assert 0.4 < larger_first / len(pairs) < 0.6


def test_arithmetic_asks_the_standard_question_with_the_right_answer() -> None:
    for row in Arithmetic(digits=2, operators="+-*", size=500):
        head, a, operator, b = row.text.removesuffix("? Reply with just the number.").rsplit(maxsplit=3)
        assert head == "What is"
        assert 10 <= int(a) <= 99
        assert 10 <= int(b) <= 99
        assert int(row.answer) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operator]


def test_a_larger_arithmetic_set_only_adds_rows_and_another_seed_changes_them() -> None:
    small, large = Arithmetic(size=50), Arithmetic(size=3000)
    assert list(small) == [large[i] for i in range(50)]
    assert list(small) == list(Arithmetic(size=50))
    assert list(small) != list(Arithmetic(size=50, seed=1))


def test_many_digits_are_sampled_without_listing_all_pairs() -> None:
    train, val = Arithmetic(digits=12), Arithmetic(digits=12, split="val", template="{a}{operator}{b}")
    assert (len(train), len(val)) == (10_000, 200)
    assert len({row.text for row in train}) == 10_000
    assert all(len(row.text) == 25 for row in val)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": 0}, "1 to 18 digits, got 0; set `digits`"),
        ({"operators": "/"}, "got '/'; set `operators`"),
        ({"operators": ""}, "got ''; set `operators`"),
        ({"operators": "++"}, r"each once, got '\+\+'; set `operators`"),
        ({"held_out": 0}, "0 < held_out < 4095 .*, got 0; set `held_out`"),
        ({"digits": 1, "held_out": 45}, "0 < held_out < 45 .*, got 45; set `held_out`"),
        ({"size": 3896}, r"0 < size <= 3895 \(all of split 'train'\), got 3896; set `size`"),
        ({"size": 201, "split": "val"}, r"0 < size <= 200 \(all of split 'val'\), got 201; set `size`"),
        ({"size": 0}, "got 0; set `size`"),
        ({"template": "{a} + {b}"}, r"got '\{a\} \+ \{b\}' without \{operator\}; set `template`"),
    ],
)
def test_arithmetic_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Arithmetic: expected .*{message}"):
        Arithmetic(**options)


def test_reasoning_gym_entries_are_scored_by_their_own_verifier() -> None:
    import reasoning_gym

    rows = list(ReasoningGym("leg_counting", size=5, config={"min_animals": 2, "max_animals": 3}))
    assert len(rows) == 5
    for row in pickle.loads(pickle.dumps(rows)):
        task, config, entry = (row.metadata[key] for key in ("task", "config", "entry"))
        assert 2 <= entry["metadata"]["num_animals"] <= 3
        verifier = reasoning_gym.create_dataset(task, **config)
        assert verifier.score_answer(row.answer, entry) == 1.0
        assert verifier.score_answer("no idea", entry) < 1.0


def test_reasoning_gym_rows_depend_on_the_seed_alone() -> None:
    texts = {seed: [row.text for row in ReasoningGym("chain_sum", size=30, seed=seed)] for seed in (0, 1)}
    assert texts[0] == [row.text for row in ReasoningGym("chain_sum", size=30, seed=0)]
    assert not set(texts[0]) & set(texts[1])


def test_a_reasoning_gym_task_without_a_gold_answer_has_an_empty_one() -> None:
    assert ReasoningGym("graph_color", size=1)[0].answer == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "leg_countin"}, "no such task; set `task`, perhaps to one of: leg_counting"),
        ({"task": "leg_counting", "size": 0}, "size >= 1, got 0; set `size`"),
        ({"task": "leg_counting", "config": {"legs": 2}}, "'legs', got {'legs': 2}; set `config`"),
        ({"task": "leg_counting", "config": {"min_animals": 0}}, "got {'min_animals': 0}; set `config`"),
        (
            {"task": "leg_counting", "config": {"size": 3}},
            r"got \['size'\] in `config`; set `size` and `seed` next",
        ),
    ],
)
def test_reasoning_gym_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^ReasoningGym task=leg_count.*: .*{message}"):
        ReasoningGym(**options)


# ------------------------------------------------------------------------------------------------ chat format


SHOTS = [Example(question="1+1", answer="2")]


def test_messages_are_system_then_examples_then_the_question() -> None:
    chat = ChatFormat(system="Be brief.", few_shot=SHOTS, question_template=r"{question}=? In \boxed{}.")
    assert chat.messages("2+3") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": r"1+1=? In \boxed{}."},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": r"2+3=? In \boxed{}."},
    ]
    assert ChatFormat().messages("{question}") == [{"role": "user", "content": "{question}"}]


def test_chat_ends_where_the_assistant_begins_and_adds_no_second_bos(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = ChatFormat().encode("é?", tokenizer)
    assert tokenizer.decode(ids) == "<|im_start|>user\né?<|im_end|>\n<|im_start|>assistant\n"
    assert {type(token) for token in ids} == {int}
    assert 0 not in ids


def test_template_variables_reach_the_template(
    tokenizer: PreTrainedTokenizerFast, base_tokenizer: PreTrainedTokenizerFast
) -> None:
    thinking = ChatFormat(template_kwargs={"think": True}).encode("a", tokenizer)
    assert tokenizer.decode(thinking).endswith("assistant\n<think>")
    own = ChatFormat(template_kwargs={"chat_template": "{{ messages[0]['content'] }}!"})
    assert base_tokenizer.decode(own.encode("a", base_tokenizer)) == "a!"


def test_plain_text_is_examples_and_an_open_question_after_bos(
    base_tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = ChatFormat(system="Sums.", few_shot=SHOTS, use_chat_template=False)
    text = "Sums.\n\nQuestion: 1+1\nAnswer: 2\n\nQuestion: 2+3\nAnswer:"
    assert plain.plain_text("2+3") == text
    assert base_tokenizer.decode(plain.encode("2+3", base_tokenizer)) == "<s>" + text
    assert BARE.plain_text("2+3") == "2+3"


@pytest.mark.parametrize("use_chat_template", [True, False])
@given(texts=st.lists(st.text(max_size=10), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_batch_encodes_as_its_rows_do(
    tokenizer: PreTrainedTokenizerFast, use_chat_template: bool, texts: list[str]
) -> None:
    chat = ChatFormat(use_chat_template=use_chat_template)
    assert chat.encode_batch(texts, tokenizer) == [chat.encode(text, tokenizer) for text in texts]


def test_a_format_that_cannot_work_names_the_key_to_change(
    tokenizer: PreTrainedTokenizerFast, base_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        ValueError, match=r"data.format.use_chat_template is true but .* no chat template: set it to"
    ):
        ChatFormat().encode("a", base_tokenizer)
    with pytest.raises(ValueError, match=r"refuses the messages \(no system role\); set data.format.system"):
        ChatFormat(system="s", template_kwargs={"no_system": True}).encode("a", tokenizer)
    with pytest.raises(
        ValueError, match=r"expected \{question\} .*, got 'x'; set data.format.question_template"
    ):
        ChatFormat(question_template="x")
    with pytest.raises(ValueError, match=r"got \['padding', 'tokenize'\]; set data.format.template_kwargs"):
        ChatFormat(template_kwargs={"tokenize": False, "padding": True})
    with pytest.raises(ValueError, match=r"needs a chat template: set data.format.use_chat_template to true"):
        ChatFormat(use_chat_template=False, template_kwargs={"think": True})


# ------------------------------------------------------------------------------------------------- prompt set


def test_a_prompt_carries_the_row_and_its_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = JSONL(write(tmp_path / "a.jsonl", {"question": "ab", "answer": 5, "level": 1}))
    prompts = PromptSet(source, BARE, tokenizer, max_prompt_tokens=3, long_prompts="error", key="data.val")
    (prompt,) = [prompts[i] for i in range(len(prompts))]
    assert tokenizer.decode(prompt.token_ids) == "<s>ab"
    assert (prompt.text, prompt.answer, prompt.metadata, prompt.seed) == ("ab", "5", {"level": 1}, 0)


def test_long_prompts_are_counted_and_refused_dropped_or_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ("ab", "abcd", "", "abcdef")  # 3, 5, 1 and 7 tokens with BOS
    with pytest.raises(
        ValueError,
        match=r"data.train: row 1 has 5 tokens, more than 4; raise data.* or .*long_prompts to",
    ):
        make_set(tokenizer, *texts, max_prompt_tokens=4)
    dropped = make_set(tokenizer, *texts, max_prompt_tokens=4, long_prompts="drop")
    assert [dropped[i].answer for i in range(len(dropped))] == ["0", "2"]
    cut = make_set(tokenizer, *texts, max_prompt_tokens=4, long_prompts="truncate")
    assert [tokenizer.decode(cut[i].token_ids) for i in range(len(cut))] == ["<s>ab", "abcd", "<s>", "cdef"]
    assert (dropped.num_long, cut.num_long) == (2, 2)
    assert make_set(tokenizer, *texts, max_prompt_tokens=7).num_long == 0


def test_an_empty_set_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"data.train: all 2 rows are longer than 2 tokens .*; raise"):
        make_set(tokenizer, "abc", "abcd", max_prompt_tokens=2, long_prompts="drop")
    with pytest.raises(ValueError, match=r"data.max_prompt_tokens >= 1, got 0"):
        make_set(tokenizer, "abc", max_prompt_tokens=0)
    nothing = ChatFormat(template_kwargs={"chat_template": "{{ messages[0]['content'] }}"})
    with pytest.raises(
        ValueError, match=r"data.val: row 1 encodes to no token at all .*set data.val or data.format"
    ):
        PromptSet(
            Rows("a", ""), nothing, tokenizer, max_prompt_tokens=9, long_prompts="error", key="data.val"
        )


def test_more_rows_than_one_batch_keep_their_order(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [str(i) for i in range(5001)]
    prompts = make_set(tokenizer, *texts)
    assert [prompts[i].text for i in range(len(prompts))] == texts
    assert all(
        tokenizer.decode(prompts[i].token_ids) == f"<s>{i}" for i in (0, 499, 500, 501, 999, 1000, 5000)
    )


# ----------------------------------------------------------------------------------------------------- visits


@pytest.fixture(scope="module")
def seven(tokenizer: PreTrainedTokenizerFast) -> PromptSet:
    return make_set(tokenizer, *"abcdefg")


@given(
    iteration=st.integers(0, 10**6),
    share=st.integers(1, 5),
    world_size=st.integers(1, 6),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=100, deadline=None)
def test_the_union_over_ranks_is_independent_of_their_number(
    seven: PromptSet, iteration: int, share: int, world_size: int, seed: int
) -> None:
    total = share * world_size
    alone = iteration_prompts(seven, iteration=iteration, prompts_per_iteration=total, seed=seed)
    together = [
        iteration_prompts(
            seven,
            iteration=iteration,
            prompts_per_iteration=total,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    assert [len(part) for part in together] == [share] * world_size
    assert [prompt for part in together for prompt in part] == alone


@pytest.mark.parametrize("per_iteration", [1, 2, 3, 5, 7, 14, 20])
def test_each_epoch_visits_every_row_once_in_another_order(seven: PromptSet, per_iteration: int) -> None:
    visits = [
        prompt.text
        for iteration in range(7 * 4)
        for prompt in iteration_prompts(
            seven, iteration=iteration, prompts_per_iteration=per_iteration, seed=3
        )
    ]
    epochs = ["".join(visits[start : start + 7]) for start in range(0, len(visits), 7)]
    assert all(sorted(epoch) == list("abcdefg") for epoch in epochs)
    assert len(set(epochs)) > len(epochs) * 0.9
    order = permutation(7, derive_seed(3, "prompts", 0))
    assert epochs[0] == "".join("abcdefg"[row] for row in order)


def test_the_cut_into_iterations_does_not_change_the_stream(seven: PromptSet) -> None:
    def stream(per_iteration: int) -> list[str]:
        iterations = range(60 // per_iteration)
        return [
            p.text
            for i in iterations
            for p in iteration_prompts(seven, iteration=i, prompts_per_iteration=per_iteration, seed=0)
        ]

    assert stream(1) == stream(4) == stream(10) == stream(60)


def test_an_iteration_asked_for_again_is_the_same_and_another_run_seed_is_not(seven: PromptSet) -> None:
    options: dict[str, Any] = {"prompts_per_iteration": 4, "seed": 0}
    fifth = iteration_prompts(seven, iteration=5, **options)
    for iteration in (0, 9, 3):
        iteration_prompts(seven, iteration=iteration, **options)
    assert iteration_prompts(seven, iteration=5, **options) == fifth
    assert iteration_prompts(seven, iteration=5, **(options | {"seed": 1})) != fifth


def test_every_visit_has_its_own_seed_and_the_shared_prompt_keeps_zero(seven: PromptSet) -> None:
    prompts = [
        prompt
        for iteration in range(10)
        for prompt in iteration_prompts(seven, iteration=iteration, prompts_per_iteration=12, seed=8)
    ]
    assert [prompt.seed for prompt in prompts] == [
        derive_seed(8, "rollout", iteration, position) for iteration in range(10) for position in range(12)
    ]
    assert len({prompt.seed for prompt in prompts}) == 120
    assert Counter(prompt.text for prompt in prompts).most_common()[-1][1] == 120 // 7
    assert all(seven[i].seed == 0 for i in range(7))


@pytest.mark.parametrize(("per_iteration", "world_size"), [(0, 1), (5, 2), (3, 4)])
def test_prompts_that_do_not_divide_among_ranks_are_refused(
    seven: PromptSet, per_iteration: int, world_size: int
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"data.prompts_per_iteration .* multiple of {world_size}, .* got {per_iteration}",
    ):
        iteration_prompts(
            seven, iteration=0, prompts_per_iteration=per_iteration, seed=0, rank=0, world_size=world_size
        )


# ---------------------------------------------------------------------------------------------------- configs


def parse(config: dict[str, Any]) -> Any:
    """What the CLI builds of `train` and `format`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=PromptSource)
    parser.add_argument("--val", type=PromptSource | None)
    parser.add_argument("--format", type=ChatFormat, default=ChatFormat())
    return parser.instantiate(parser.parse_object(config))


@pytest.mark.parametrize("name", ["JSONL", "HuggingFaceDataset", "Arithmetic", "ReasoningGym"])
def test_each_source_is_built_from_yaml_by_its_short_name(
    tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": "q", "answer": "a"} for _ in range(5)))
    if name == "HuggingFaceDataset":
        request.getfixturevalue("hub_table")
    init_args = {
        "Arithmetic": "{operators: '+-', split: val, size: 3}",
        "ReasoningGym": "{task: leg_counting, size: 3, config: {min_animals: 2}}",
    }.get(name, f"{{path: '{path}', rows: '1:4', answer: null}}")
    built = parse({"train": yaml.safe_load(f"{{class_path: {name}, init_args: {init_args}}}")})
    assert type(built.train).__name__ == name
    assert len(built.train) == 3


def test_the_format_is_a_plain_section_of_the_config() -> None:
    section = {
        "system": "s",
        "few_shot": [{"question": "1+1", "answer": "2"}],
        "template_kwargs": {"think": True},
    }
    assert parse({"format": section}).format == ChatFormat(
        system="s", few_shot=SHOTS, template_kwargs={"think": True}
    )
    assert parse({}).format == ChatFormat()


def test_the_gsm8k_overlay_trains_and_validates_on_different_rows(tmp_path: Path) -> None:
    overlay = yaml.safe_load((Path(__file__).parents[1] / "configs" / "task" / "gsm8k.yaml").read_text())
    data = overlay["data"]
    path = write(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": f"#### {i}"} for i in range(700)))
    for split in ("train", "val"):
        data[split]["init_args"]["path"] = path
    built = parse({key: data[key] for key in ("train", "val", "format")})
    train, val = ({row.text for row in source} for source in (built.train, built.val))
    assert (len(train), len(val)) == (600, 100)
    assert not train & val
    assert built.format.messages("Q")[-1]["content"].startswith("Q\nThink step by step")
    assert data["max_prompt_tokens"] == 256
