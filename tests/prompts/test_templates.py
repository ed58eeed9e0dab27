"""Chat templates and tokenizers as models bring them: what they open, append, leave out and date."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Fit
from helpers.questions import write
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpo_pl.prompts import JSONL, ChatFormat, PromptSet
from grpo_pl.prompts.notices import notices
from grpo_pl.prompts.openings import opened_by_template, opened_by_text

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def made(before: str = "<s> ", behind: str = "") -> PreTrainedTokenizerFast:
    """One token per byte; plain text gets the given special tokens."""
    vocabulary = {
        token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    known = [(token, vocabulary[token]) for token in SPECIAL]
    backend.post_processor = processors.TemplateProcessing(single=f"{before}$A{behind}", special_tokens=known)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


PLAIN = {"use_chat_template": False, "question_template": "{question}"}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def begins(header: str, condition: str = "add_generation_prompt") -> str:
    return TURNS + "{% if " + condition + " %}" + header + "{% endif %}"


def chat(template: str, **options: Any) -> ChatFormat:
    return ChatFormat(
        template_kwargs={"chat_template": template} | options.pop("template_kwargs", {}), **options
    )


def prompts_of(
    tmp_path: Path, format: ChatFormat, tokenizer: PreTrainedTokenizerFast, *questions: Any
) -> PromptSet:
    rows = [{"question": question, "answer": "5"} for question in questions or ("2+3",)]
    source = JSONL(write(tmp_path / "a.jsonl", *rows))
    return PromptSet(source, format, tokenizer, max_prompt_tokens=500, long_prompts="error", key="data.train")


# ------------------------------------------------------------------------------------------- what is opened

HEADER = "<|im_start|>assistant\n"
EMPTY = HEADER + "<think>\n\n</think>\n\n"
OPENED = {
    "nothing": (HEADER, HEADER, ""),
    "a thought": (HEADER + "<think>\n", HEADER, "<think>\n"),
    "a thought, where answers show an empty one": (HEADER + "<think>\n", EMPTY, "<think>\n"),
    "an empty thought": (EMPTY, EMPTY, "<think>\n\n</think>\n\n"),
    "an empty thought, cut": ("<|a|>\n<think></think>", "<|a|>\n<think></think>\n", "<think></think>"),
    "no thought, where answers show an empty one": ("<|a|>", "<|a|>\n<think></think>\n", ""),
    "another tag": (HEADER + "<reasoning>\n", HEADER, "<reasoning>\n"),
    "a tag with a colon": ("<|a|><seed:think>", "<|a|><seed:think></seed:think>x", "<seed:think>"),
    "two tags": (HEADER + "<plan>\n<think>\n", HEADER, "<plan>\n<think>\n"),
    "a tag in brackets": ("<|a|>[THINK]", "<|a|>", "[THINK]"),
    "a channel": (
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>analysis<|message|>",
    ),
    "no channel": ("<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>", ""),
    "a token that begins": ("<|bot|><|START_THINKING|>", "<|bot|><|START_RESPONSE|>", "<|START_THINKING|>"),
    "a token that begins, where answers show both": (
        "<|bot|><|START_THINKING|>",
        "<|bot|><|START_THINKING|><|END_THINKING|><|START_RESPONSE|>",
        "<|START_THINKING|>",
    ),
    "words": (HEADER + "Let me think.\n", HEADER, "Let me think.\n"),
    "a space more": ("Assistant:", "Assistant: ", ""),
    "a line more": (HEADER + "\n", HEADER, ""),
}


@pytest.mark.parametrize("case", OPENED)
def test_the_prompt_opens_what_stands_behind_the_header_of_a_response(case: str) -> None:
    asked, answered, opened = OPENED[case]
    assert opened_by_template(asked, answered) == opened


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("\nAssistant: Let me think.\n<think>\n", "<think>\n"),
        ("\nAnswer:", ""),
        ("\nPut it in <answer> </answer> tags.\nAnswer:", ""),
        ("\n<reasoning><step>", "<reasoning><step>"),
        (" [/INST]", ""),
        ("[THINK]", "[THINK]"),
        ("\nIs 1 < 2> true?", ""),
        ("2+3\n<|begin_of_thought|>", "<|begin_of_thought|>"),
        ("2+3 ◁think▷", "◁think▷"),
        ("2+3[think]\n", "[think]\n"),
        ("2+3\n<\uff5cthink\uff5c>", "<\uff5cthink\uff5c>"),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ('2+3<step kind="first">', '<step kind="first">'),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("2+3\n</think>", ""),
        ("2+3◁/think▷", ""),
        ("<|end_of_thought|>", ""),
        ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", ""),
        ("2+3<|im_end|>", ""),
        ("2+3<|endoftext|>", ""),
        ("2+3<end_of_turn>\n<start_of_turn>model\n", ""),
        ("2+3<|assistant|>\n", ""),
        ("<\uff5cAssistant\uff5c>", ""),
        ("Solve for a[i]", ""),
        ("Solve for a[0]", ""),
        ("<x" * 9999, ""),
    ],
)
def test_plain_text_opens_the_tags_that_it_ends_in(text: str, opened: str) -> None:
    assert opened_by_text(text) == opened


def test_plain_text_of_the_data_opens_what_it_ends_in(tmp_path: Path) -> None:
    question = "<|im_start|>user\n2+3<|im_end|>\n<|im_start|>assistant\n"
    prompts = prompts_of(tmp_path, ChatFormat(**PLAIN), made(), question + "<think>\n", question)
    assert [row.opened for row in prompts.rows] == ["<think>\n", ""]


@pytest.mark.parametrize("tag", ["<think>", "<|begin_of_thought|>", "◁think▷", "[think]"])
def test_plain_text_of_the_format_opens_what_it_ends_in(tmp_path: Path, tag: str) -> None:
    format = ChatFormat(use_chat_template=False, question_template="{question}\n" + tag)
    assert prompts_of(tmp_path, format, made()).rows[0].opened == tag


def test_a_prompt_knows_what_its_own_conversation_has_opened(tmp_path: Path) -> None:
    """As SmolLM3's template, which thinks unless the system message says otherwise."""
    closing = begins(HEADER + "<think>\n{% if '/no_think' in messages[0].content %}\n</think>\n{% endif %}")
    system = [{"role": "system", "content": "/no_think"}, {"role": "user", "content": "2+3"}]
    rows = prompts_of(tmp_path, chat(closing), made(), "2+3", system, system[1:]).rows
    assert [row.opened for row in rows] == ["<think>\n", "<think>\n</think>\n", "<think>\n"]


def test_a_template_that_takes_no_answers_still_opens_its_tags(tmp_path: Path) -> None:
    asks_only = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    format = chat(asks_only + "{{ m.content }}{% endfor %}\nAssistant: <think>")
    assert prompts_of(tmp_path, format, made()).rows[0].opened == "<think>"


def test_a_template_variable_decides_what_is_opened(tmp_path: Path) -> None:
    template = begins(HEADER + "{% if thinking %}<think>{% endif %}")
    for thinking, opened in ((True, "<think>"), (False, "")):
        format = chat(template, template_kwargs={"thinking": thinking})
        assert prompts_of(tmp_path, format, made()).rows[0].opened == opened


# --------------------------------------------------------------------------------- special tokens at the ends


@pytest.mark.parametrize("behind", [" </s>", " </s> </s>", " <|im_end|>"])
def test_a_response_does_not_begin_behind_a_token_that_the_tokenizer_appends(
    tmp_path: Path, behind: str
) -> None:
    tokenizer = made(behind=behind)
    prompts = prompts_of(tmp_path, ChatFormat(**PLAIN), tokenizer, "2+3", "x" * 40)
    assert [tokenizer.decode(row.token_ids) for row in prompts.rows] == ["<s>2+3", "<s>" + "x" * 40]
    (said,) = map(str, notices(prompts, {1}))
    assert "the tokenizer ends every text in '" + behind.replace(" ", "") in said


def test_a_real_tokenizer_made_to_append_its_end_ends_no_prompt(smollm: Path) -> None:
    plain = ChatFormat(**PLAIN)
    ids = plain.encode("2+3", AutoTokenizer.from_pretrained(smollm))
    tokenizer = AutoTokenizer.from_pretrained(smollm, add_eos_token=True)
    assert tokenizer("2+3")["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert plain.encode("2+3", tokenizer) == ids


@dataclass
class Said:
    """A format, and what is said of its prompts."""

    format: ChatFormat
    sentence: str
    question: str = "2+3"


CHATML = begins(HEADER)
NOTICES = {
    "nothing": Said(chat(CHATML), ""),
    "instructions need no header": Said(chat("[INST] {{ messages[0].content }} [/INST]"), ""),
    "a turn without the begin of the next": Said(
        chat(TURNS), r"begins no response: prompts of data.train end in .*, without '<\|im_start\|>assistant'"
    ),
    "turns that end the sequence": Said(
        chat("{% for m in messages %}{{ m.content }}</s>{% endfor %}"), "1 of 1 prompts .* end in '</s>'"
    ),
    "text that ends the sequence": Said(
        ChatFormat(use_chat_template=False, question_template="{question}</s>"), "prompts .* end in '</s>'"
    ),
    "a question that ends the sequence": Said(ChatFormat(**PLAIN), "end in '</s>'", "2+3</s>"),
    "two begins": Said(
        ChatFormat(use_chat_template=False, question_template="<s>{question}"), "begin with '<s><s>', once by"
    ),
    "a thought": Said(chat(begins(HEADER + "<think>\n")), r"open '<think>\\n' for the response"),
    "today": Said(chat("{{ strftime_now('%d %b %Y') }}" + CHATML), "shows today's date"),
    "a given day": Said(chat("{{ strftime_now('%d %b %Y') }}" + CHATML, date="2026-01-31"), ""),
    "a day by a variable": Said(
        chat(
            "{% if not day is defined %}{% set day = strftime_now('%Y') %}{% endif %}{{ day }}" + CHATML,
            template_kwargs={"day": "1 Jan"},
        ),
        "",
    ),
    "a day that is not shown": Said(chat("{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + CHATML), ""),
}


@pytest.mark.parametrize("case", NOTICES)
def test_what_surprises_about_prompts_is_said_once(tmp_path: Path, case: str) -> None:
    what = NOTICES[case]
    said = list(map(str, notices(prompts_of(tmp_path, what.format, made(), what.question), {1})))
    assert len(said) == bool(what.sentence), said
    if what.sentence:
        assert said[0].startswith("data.format: ")
        assert re.search(what.sentence, said[0]), said


def test_a_template_that_leaves_the_question_out_is_refused(tmp_path: Path) -> None:
    """As those of models for images, which go over the parts of a message: text has none."""
    parts = (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}Assistant:"
    )
    with pytest.raises(ValueError, match=r"leaves the question out.*: give a template for text"):
        prompts_of(tmp_path, chat(parts), made())


def test_a_given_day_is_the_same_every_day_and_no_other_word_is_one() -> None:
    tokenizer = made()
    format = chat("{{ strftime_now('%d %b %Y') }}" + CHATML, date="2026-01-31")
    assert tokenizer.decode(format.encode("2+3", tokenizer)).startswith("31 Jan 2026<|im_start|>")
    for wrong in ("tomorrow", "2026-02-30", "31.1.2026", ""):
        with pytest.raises(ValueError, match=rf"^date={wrong}: expected a day such as 2026-01-31"):
            ChatFormat(date=wrong)


def test_a_run_says_at_its_start_what_its_template_opens(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    template = json.dumps({"chat_template": begins(HEADER + "<think>\n")})
    fit("--data.format.template_kwargs", template, "--trainer.max_epochs", 1, "--data.val", "null")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! data.format")]
    assert len(lines) == 1
    assert r"prompts of data.train open '<think>\n' for the response" in lines[0]
