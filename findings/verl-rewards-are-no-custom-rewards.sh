#!/usr/bin/env bash
# The reward functions that verl ships cannot be named as its custom_reward_function.
#
# verl 0.9.1's reward manager calls a custom function as compute_score(data_source=, solution_str=, ground_truth=,
# extra_info=). The functions of verl/utils/reward_score, which its users copy from, take (solution_str, ground_truth, ...):
# they work only through default_compute_score, which chooses by the data source. Guessed: `custom_reward_function.path:
# .../reward_score/gsm8k.py, name: compute_score` is how to score one's own data as GSM8K.
#
# Seen with torch 2.13.0, Python 3.11:
#   default: 1.0
#   gsm8k: compute_score() got an unexpected keyword argument 'data_source'
#   math_reward: compute_score() got an unexpected keyword argument 'data_source'
#   math_dapo: compute_score() got an unexpected keyword argument 'data_source'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --no-compile)
others=(transformers==5.10.4 tensordict==0.10.0 ray==2.60.0 numpy==2.4.6 omegaconf==2.4.0 codetiming==1.4.0 aiohttp==3.14.5
    orjson==3.13.0 packaging==25.0)
"${pip[@]}" torch==2.13.0+cpu "${others[@]}" || "${pip[@]}" torch==2.13.0 "${others[@]}"
"${pip[@]}" --no-deps verl==0.9.1

cat >"$folder/look.py" <<'PYTHON'
import asyncio
import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import verl.utils.reward_score as shipped
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

row = DataProto.from_single_dict({
    "responses": torch.tensor([[1]]),
    "attention_mask": torch.tensor([[1]]),
    "data_source": np.array(["openai/gsm8k"], dtype=object),
    "reward_model": np.array([{"ground_truth": "72"}], dtype=object),
    "extra_info": np.array([{}], dtype=object),
})
tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "#### 72")


async def reward(function):
    manager = NaiveRewardManager(None, tokenizer, function)
    try:
        return (await manager.run_single(row))["reward_score"]
    except TypeError as error:
        return str(error)


print("default:", asyncio.run(reward(shipped.default_compute_score)))
for name in ("gsm8k", "math_reward", "math_dapo"):
    module = importlib.import_module(f"verl.utils.reward_score.{name}")
    print(f"{name}:", asyncio.run(reward(module.compute_score)))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="default: 1.0
gsm8k: compute_score() got an unexpected keyword argument 'data_source'
math_reward: compute_score() got an unexpected keyword argument 'data_source'
math_dapo: compute_score() got an unexpected keyword argument 'data_source'"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
