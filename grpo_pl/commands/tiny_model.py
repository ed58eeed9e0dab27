"""`grpo_pl tiny-model`: a random Llama with a byte-level tokenizer, for debugging and tests."""

import argparse
import json
from pathlib import Path
from typing import Any

from grpo_pl.commands.options import Options, check_at_least
from grpo_pl.config.by_name import config_file
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAD, START, END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = len(SPECIAL) + 256
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings", "initializer_range"),
)
"""What `--sizes` may set."""


def make_tiny_model(
    folder: Path,
    *,
    tied: bool = True,
    seed: int = 0,
    vocab_size: int = 320,
    key_value_heads: int = 1,
    template: str = CHAT_TEMPLATE,
    **sizes: Any,
) -> Path:
    """Write a random Llama, by default of about 0.1 M parameters, with tokenizer and chat template.

    Args:
        folder: Where to write it.
        tied: Whether the LM head is the embedding.
        seed: Seed of the weights.
        vocab_size: Tokens: 3 special ones, 256 bytes and as many merges as are left.
        key_value_heads: Half as many as attention heads.
        template: The chat template.
        **sizes: Entries of the model's config in place of those here.
    """
    import torch

    from grpo_pl.models.loading import untrained_language_model

    folder.mkdir(parents=True, exist_ok=True)
    end, pad = write_tokenizer(folder, vocab_size, template)
    ends = {"eos_token_id": end, "pad_token_id": pad}
    config = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2 * key_value_heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
        "bos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config | sizes | ends))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    torch.manual_seed(seed)
    untrained_language_model(str(folder)).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, vocab_size: int, template: str = CHAT_TEMPLATE) -> tuple[int, int]:
    """Write a tokenizer of bytes and a few merges; gives its tokens for the end and for padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is the number? Reply with just the answer."], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    return SPECIAL.index(END), SPECIAL.index(PAD)  # they come first


def tiny_model(args: list[str]) -> None:
    """Make the model, and print its folder."""
    parser = Options(
        "tiny-model", "Make a random Llama, by default of 0.1 M parameters, for debugging and tests."
    )
    say = parser.add_argument
    say("folder", type=Path, help="where to write it")
    say("--untied", action="store_true", help="an LM head of its own")
    say("--seed", type=int, default=0)
    say(
        "--vocabulary",
        type=int,
        default=320,
        help="tokens: 259 are bytes and special ones, the others merges",
    )
    say("--template", type=Path, help="the chat template, a Jinja file")
    say("--sizes", type=sizes, default={}, help="entries of its config, such as '{hidden_size: 192}'")
    options = parser.parse_args(args)
    check_at_least("tiny-model", options, vocabulary=BYTES)
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        raise ConfigError(f"tiny-model: {options.folder} exists and is not empty: name a new folder")
    check_folder("tiny-model: folder", options.folder)
    template = CHAT_TEMPLATE
    if options.template:
        template = Path(
            config_file(str(options.template), "tiny-model: --template: there is no file")
        ).read_text()
    made = make_tiny_model(
        options.folder,
        tied=not options.untied,
        seed=options.seed,
        vocab_size=options.vocabulary,
        template=template,
        **options.sizes,
    )
    print(made)


def sizes(text: str) -> dict[str, int | float]:
    """The type of --sizes: numbers of a Llama's config by name."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict) or not all(
        name in SIZES and type(number) in (int, float) for name, number in value.items()
    ):
        raise argparse.ArgumentTypeError(f"expected a mapping of {', '.join(SIZES)} to numbers, got {text}")
    return value
