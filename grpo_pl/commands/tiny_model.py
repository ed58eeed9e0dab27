"""`grpo_pl tiny-model`: a random Llama with a byte-level tokenizer, for debugging and tests."""

import json
from pathlib import Path

from grpo_pl.commands.options import Options
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAD, START, END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tiny_model(
    folder: Path, *, tied: bool = True, seed: int = 0, vocab_size: int = 320, key_value_heads: int = 1
) -> Path:
    """Write a Llama of about 0.1 M parameters with tokenizer and chat template, from the seed alone."""
    import torch

    from grpo_pl.models.loading import untrained_language_model

    folder.mkdir(parents=True, exist_ok=True)
    end, pad = write_tokenizer(folder, vocab_size)
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
    (folder / "config.json").write_text(json.dumps(config | ends))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    torch.manual_seed(seed)
    untrained_language_model(str(folder)).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, vocab_size: int) -> tuple[int, int]:
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
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return SPECIAL.index(END), SPECIAL.index(PAD)  # they come first


def tiny_model(args: list[str]) -> None:
    """Make the model, and print its folder."""
    parser = Options("tiny-model", "Make a random Llama of 0.1 M parameters, for debugging and tests.")
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--untied", action="store_true", help="an LM head of its own")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        raise ConfigError(f"tiny-model: {options.folder} exists and is not empty: name a new folder")
    check_folder("tiny-model: folder", options.folder)
    print(make_tiny_model(options.folder, tied=not options.untied, seed=options.seed))
