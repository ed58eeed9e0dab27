"""The chat format, the encoded set, and the order of visits."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.questions import SHOTS, parse, write
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from grpo_pl.functional import derive_seed, permutation
from grpo_pl.prompts import JSONL, ChatFormat, PromptSet, PromptSource, Question, iteration_prompts

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


def make_set(tokenizer: PreTrainedTokenizerFast, *texts: str, **options: Any) -> PromptSet:
    options = {"max_prompt_tokens": 100, "long_prompts": "error", "key": "data.train"} | options
    return PromptSet(Rows(*texts), BARE, tokenizer, **options)


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


def test_a_conversation_is_put_to_the_model_as_it_is(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+3"},
    ]
    path = write(tmp_path / "a.jsonl", {"prompt": [turn | {"name": None} for turn in turns], "answer": 5})
    options: dict[str, Any] = {"max_prompt_tokens": 100, "long_prompts": "error", "key": "data.train"}
    (prompt,) = PromptSet(JSONL(path, question="prompt"), ChatFormat(), tokenizer, **options)
    assert prompt.text == "2+3"
    assert prompt.messages == turns
    few_shot = ChatFormat(few_shot=SHOTS).encode("2+3", tokenizer)
    assert prompt.token_ids == few_shot
    with pytest.raises(ValueError, match=r"^system is for questions, .* conversations: leave it"):
        PromptSet(JSONL(path, question="prompt"), ChatFormat(system="s"), tokenizer, **options)
    with pytest.raises(ValueError, match=r"use_chat_template=false cannot put conversations: set it to true"):
        PromptSet(JSONL(path, question="prompt"), ChatFormat(use_chat_template=False), tokenizer, **options)


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
@settings(max_examples=30)
def test_a_batch_encodes_as_its_rows_do(
    tokenizer: PreTrainedTokenizerFast, use_chat_template: bool, texts: list[str]
) -> None:
    chat = ChatFormat(use_chat_template=use_chat_template)
    assert chat.encode_batch(texts, tokenizer) == [chat.encode(text, tokenizer) for text in texts]


def test_a_format_that_cannot_work_names_the_key_to_change(
    tokenizer: PreTrainedTokenizerFast, base_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"^use_chat_template is true but .* no chat template: set it to"):
        ChatFormat().encode("a", base_tokenizer)
    with pytest.raises(ValueError, match=r"refuses the messages \(no system role\); set system"):
        ChatFormat(system="s", template_kwargs={"no_system": True}).encode("a", tokenizer)
    with pytest.raises(ValueError, match=r"^question_template='x': expected \{question\} in it"):
        ChatFormat(question_template="x")
    with pytest.raises(ValueError, match=r"^template_kwargs: .*, got \['padding', 'tokenize'\]"):
        ChatFormat(template_kwargs={"tokenize": False, "padding": True})
    with pytest.raises(ValueError, match=r"needs a chat template: set use_chat_template to true"):
        ChatFormat(use_chat_template=False, template_kwargs={"think": True})


def test_a_prompt_carries_the_row_and_its_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = JSONL(write(tmp_path / "a.jsonl", {"question": "ab", "answer": 5, "level": 1}))
    prompts = PromptSet(source, BARE, tokenizer, max_prompt_tokens=3, long_prompts="error", key="data.val")
    (prompt,) = [prompts[i] for i in range(len(prompts))]
    assert tokenizer.decode(prompt.token_ids) == "<s>ab"
    assert (prompt.text, prompt.answer, prompt.metadata, prompt.seed) == ("ab", "5", {"level": 1}, 0)
    assert prompt.messages == [{"role": "user", "content": "ab"}]


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
    with pytest.raises(ValueError, match=r"^max_prompt_tokens=0: expected 1 or more"):
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


@pytest.fixture(scope="module")
def seven(tokenizer: PreTrainedTokenizerFast) -> PromptSet:
    return make_set(tokenizer, *"abcdefg")


@given(
    iteration=st.integers(0, 10**6),
    share=st.integers(1, 5),
    world_size=st.integers(1, 6),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=100)
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
        match=rf"^prompts_per_iteration={per_iteration}: expected a positive multiple of {world_size},",
    ):
        iteration_prompts(
            seven, iteration=0, prompts_per_iteration=per_iteration, seed=0, rank=0, world_size=world_size
        )


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
