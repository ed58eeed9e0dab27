#!/usr/bin/env bash
# TRL's own text rewards fail on TRL's standard data sets, those whose prompts are texts.
#
# GRPOTrainer of TRL 1.16.0 takes prompts as texts or as conversations, and hands completions to rewards likewise: texts, or
# lists of one message. think_format_reward and accuracy_reward index every completion as a list of messages, so that the
# first step of a run on texts ends in a TypeError; rewards of lengths work with both. Guessed: the rewards that come with a
# trainer take both formats that its data may have.
#
# Seen with torch 2.13.0, transformers 5.19.0, math-verify 0.9.0, Python 3.11:
#   think_format_reward, standard: TypeError: string indices must be integers, not 'str'
#   think_format_reward, conversational: a step
#   accuracy_reward, standard: TypeError: string indices must be integers, not 'str'
#   accuracy_reward, conversational: a step
#   soft_overlong_punishment_reward, standard: a step
#   soft_overlong_punishment_reward, conversational: a step
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --no-compile)
others=(trl==1.16.0 transformers==5.19.0 "math-verify[antlr4_13_2]==0.9.0")
"${pip[@]}" torch==2.13.0+cpu "${others[@]}" || "${pip[@]}" torch==2.13.0 "${others[@]}"

cat >"$folder/look.py" <<'PYTHON'
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

vocabulary = {"<pad>": 0, "<eos>": 1, "2": 2, "+": 3, "4": 4, "user": 5}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=6, num_key_value_heads=1, max_position_embeddings=32, **size))
prompts = {"standard": "2 + 2", "conversational": [{"role": "user", "content": "2 + 2"}]}
for reward in (think_format_reward, accuracy_reward, get_soft_overlong_punishment(4, 2)):
    for format, prompt in prompts.items():
        data = Dataset.from_list([{"prompt": prompt, "solution": "4"}] * 2)
        with tempfile.TemporaryDirectory() as folder:
            settings = GRPOConfig(
                folder, max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=4,
                use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
            )
            trainer = GRPOTrainer(model, reward, settings, data, processing_class=tokenizer)
            try:
                trainer.train()
                outcome = "a step"
            except TypeError as error:
                outcome = f"TypeError: {error}"
        print(f"{reward.__name__}, {format}: {outcome}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null | grep "standard:\|conversational:")
echo "$seen"
expected="think_format_reward, standard: TypeError: string indices must be integers, not 'str'
think_format_reward, conversational: a step
accuracy_reward, standard: TypeError: string indices must be integers, not 'str'
accuracy_reward, conversational: a step
soft_overlong_punishment_reward, standard: a step
soft_overlong_punishment_reward, conversational: a step"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
