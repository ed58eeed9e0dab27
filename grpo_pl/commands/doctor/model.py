"""Checks that a model folder has what a run takes from it: weights, tokenizer, template, end of responses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from grpo_pl.commands.doctor.findings import Finding, broken, fail_if, good, warn_if
from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.loading import (
    context_length,
    eos_token_ids,
    load_config,
    load_tokenizer,
    sampling_defaults,
)
from grpo_pl.prompts.chat import ChatFormat
from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "What is 12 + 7?", "nineteen"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def check_model(pretrained: str, format: ChatFormat) -> list[Finding]:
    """The findings about a model that is not loaded; `format` is how the config puts a question to it."""
    try:
        findings = [configuration(pretrained), weights(Path(resolve_pretrained(pretrained)))]
        tokenizer = load_tokenizer(pretrained)
        eos = eos_token_ids(pretrained)
        embeddings = int(load_config(pretrained).get_text_config().vocab_size)
    except ConfigError as error:
        fix = "--pretrained FOLDER_OR_HUB_NAME; tools/fetch_model.py fetches the demo model"
        return [Finding("model", "problem", str(error), fix)]
    findings.append(vocabulary(len(tokenizer), embeddings))
    findings += [prompt(tokenizer, format), generation(sampling_defaults(pretrained))]
    if broken(findings):
        return findings
    return [*findings, ending(tokenizer, eos, turn_end(tokenizer, format))]


def names(settings: Mapping[str, str]) -> Finding:
    """Whether policy, engine and tokenizer name one model: config key -> model, empty if it names none."""
    different = {name for name in settings.values() if name}
    if len(different) == 1:
        return good("names", f"policy, engine and tokenizer are {different.pop()}")
    found = "; ".join(f"{key}: {name}" for key, name in settings.items() if name)
    fix = "say --pretrained once and leave the others out, unless these are copies of one model"
    return Finding("names", "warning", found, fix)


def configuration(pretrained: str) -> Finding:
    """The model's architecture, dtype and context length."""
    config = load_config(pretrained)
    architecture = ", ".join(config.architectures or ["no architecture"])
    tied = "tied" if config.get_text_config().tie_word_embeddings else "untied"
    dtype = str(config.dtype).removeprefix("torch.")
    found = f"{architecture}, {dtype}, {tied} embeddings, context of {context_length(pretrained):,} tokens"
    known = any("CausalLM" in name or "ConditionalGeneration" in name for name in config.architectures or [])
    return warn_if(not known, "model", found, "take a causal language model (...ForCausalLM)")


def weights(folder: Path) -> Finding:
    """Whether a folder has all files of weights."""
    if not folder.is_dir():
        return good("weights", f"{folder}: on the hub")
    if (folder / INDEX).is_file():
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    else:
        named = {SINGLE}
    missing = sorted(name for name in named if not (folder / name).is_file())
    size = sum((folder / name).stat().st_size for name in named - set(missing))
    if not missing:
        return good("weights", f"{len(named)} files of safetensors, {size / (1 << 30):.2f} GiB", bytes=size)
    fix = "download the folder again; grpo_pl export and save_pretrained write safetensors"
    return Finding("weights", "problem", f"{folder} lacks {', '.join(missing[:3])}", fix)


def vocabulary(tokens: int, embeddings: int) -> Finding:
    """Whether every token has an embedding."""
    found = f"{tokens:,} tokens, {embeddings:,} embeddings"
    fix = "take the tokenizer of this very model, or resize its embeddings (resize_token_embeddings)"
    return fail_if(tokens > embeddings, "vocabulary", found, fix)


def prompt(tokenizer: "PreTrainedTokenizerBase", format: ChatFormat) -> Finding:
    """How a question becomes tokens: by which template, with how many BOS, and whether text would do."""
    try:
        ids = format.encode(QUESTION, tokenizer)
    except ConfigError as error:
        fix = (
            "--data.format.use_chat_template false for a base model, or --pretrained with an "
            "instruction-tuned one"
        )
        return Finding("template", "problem", str(error).partition(": set")[0], fix)
    bos: Any = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        fix = "take bos_token out of the chat template: the tokenizer adds it already"
        return Finding("template", "problem", "a prompt begins with two BOS tokens", fix)
    start = "with BOS" if bos is not None and ids[:1] == [bos] else "without BOS"
    found = f"a question of {len(tokenizer.tokenize(QUESTION))} tokens becomes {len(ids)}, {start}"
    found = f"{'chat template' if format.use_chat_template else 'plain text'}: {found}"
    as_text = tokenizer(tokenizer.decode(ids))["input_ids"]
    if as_text != ids:
        found += f"; sent as text it would be read as {len(as_text)}, so engines get token ids"
    return good("template", found)


def turn_end(tokenizer: "PreTrainedTokenizerBase", format: ChatFormat) -> int | None:
    """The special token that the chat template puts after an answer; None if there is none."""
    if not format.use_chat_template:
        return None
    solved = [*format.messages(QUESTION), {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(solved, tokenize=False, **format.template_kwargs)
    except TemplateError:
        return None  # a template without answers
    _, answer, after = str(text).rpartition(ANSWER)
    ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"] if answer else []
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    return ids[0] if ids and ids[0] in added else None


def ending(tokenizer: "PreTrainedTokenizerBase", eos: set[int], turn: int | None) -> Finding:
    """Whether the token that ends a response for the engine is the one that the model writes.

    Args:
        tokenizer: The model's tokenizer.
        eos: The tokens that end a response, by `generation_config.json` or else `config.json`.
        turn: The token that the chat template puts after an answer; None if it is unknown.
    """

    def name(token: int) -> str:
        return f"{tokenizer.convert_ids_to_tokens(token)} ({token})"

    needed: Any = turn if turn is not None else tokenizer.eos_token_id
    if needed is None and not eos:
        fix = 'set "eos_token_id" in generation_config.json'
        return Finding("end of response", "problem", "no token ends a response: all will be truncated", fix)
    if needed is not None and needed not in eos:
        ends = ", ".join(map(name, sorted(eos))) or "no token"
        why = "the chat template ends an answer" if turn is not None else "the tokenizer ends a text"
        fix = f'set "eos_token_id": {sorted(eos | {needed})} in generation_config.json'
        found = f"{why} with {name(needed)}, and only {ends} ends it"
        return Finding("end of response", "problem", found, fix)
    pad = ["no pad token (none is needed)"] if tokenizer.pad_token_id is None else []
    return good("end of response", ", ".join([*map(name, sorted(eos)), *pad]))


def generation(defaults: dict[str, float]) -> Finding:
    """The model's own sampling settings, which others apply unasked and grpo_pl's engines do not."""
    settings = [f"{key}={value:g}" for key, value in defaults.items() if value != NEUTRAL.get(key)]
    if not settings:
        return good("generation_config", "no sampling settings")
    return good("generation_config", f"{', '.join(settings)}: not applied, each request carries its own")
