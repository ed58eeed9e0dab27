"""Generation settings that transformers loads and refuses to save, mended by what they mean."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from grpo_pl.models.generation import mend
from grpo_pl.models.loading import load_generation_config, sampling_defaults
from grpo_pl.system.refusal import ArgumentError

ENDS = {"eos_token_id": 0, "pad_token_id": 1}
NO_USE: list[dict[str, Any]] = [
    *({name: 0.5, "do_sample": False} for name in ("temperature", "top_p", "min_p", "top_h", "typical_p")),
    *({name: 0.5, "do_sample": False} for name in ("epsilon_cutoff", "eta_cutoff")),
    {"top_k": 20, "do_sample": False},
    {"temperature": 0.0},
    {"temperature": -1.0},
    {"temperature": "hot"},
    {"top_k": 0},
    {"top_k": -1},
    {"top_k": 2.5},
    {"top_p": 1.5},
    {"early_stopping": True},
    {"length_penalty": 2.0},
    {"pad_token_id": -1},
    {"output_scores": True},
    {"output_attentions": True},
    {"cache_implementation": "static", "use_cache": False},
]
"""Settings of which the first one is taken away."""


def read(settings: dict[str, Any], folder: Path) -> GenerationConfig:
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps(ENDS | settings))
    config = load_generation_config(str(folder))
    assert config is not None
    return config


def saved(config: GenerationConfig, folder: Path) -> dict[str, Any]:
    """The settings that transformers writes."""
    config.save_pretrained(folder / "saved")
    content: dict[str, Any] = json.loads((folder / "saved" / "generation_config.json").read_text())
    return {name: value for name, value in content.items() if name != "transformers_version"}


@pytest.mark.parametrize(
    "sampling",
    [
        *({name: 0.5} for name in ("temperature", "top_p", "min_p", "top_h", "typical_p")),
        *({name: 0.5} for name in ("epsilon_cutoff", "eta_cutoff")),
        *({"top_k": 20}, {"temperature": 1.7, "top_k": 20, "top_p": 0.8}, {"temperature": 2}),
    ],
    ids=str,
)
def test_sampling_settings_mean_that_sampling_is_on(sampling: dict[str, Any], tmp_path: Path) -> None:
    config = read(sampling, tmp_path)
    with pytest.raises(ValueError, match="do_sample"):
        saved(config, tmp_path)
    changes = mend(config)
    assert changes.startswith("do_sample=true, which ")
    assert all(f"{name}={value}" in changes for name, value in sampling.items())
    assert saved(config, tmp_path) == ENDS | sampling | {"do_sample": True}


@pytest.mark.parametrize("settings", NO_USE, ids=str)
def test_settings_without_use_are_taken_away(settings: dict[str, Any], tmp_path: Path) -> None:
    name, *_ = settings
    config = read(settings, tmp_path)
    with pytest.raises(ValueError, match=name):
        saved(config, tmp_path)
    assert mend(config) == f"no {name}={settings[name]!r}, which has no use"
    assert saved(config, tmp_path) == {k: v for k, v in (ENDS | settings).items() if k != name}


def test_temperature_0_is_greedy_whatever_stands_beside_it(tmp_path: Path) -> None:
    config = read({"temperature": 0.0, "top_p": 0.9, "top_k": 1}, tmp_path)
    assert mend(config) == "no temperature=0.0 and top_p=0.9 and top_k=1, which have no use"
    assert saved(config, tmp_path) == ENDS


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"do_sample": True, "temperature": 0.6}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
        *({"num_beams": 4, "early_stopping": True}, {"max_length": 20, "max_new_tokens": 30}),
    ],
    ids=str,
)
def test_what_transformers_saves_stays_as_it_is(settings: dict[str, Any], tmp_path: Path) -> None:
    config = read(settings, tmp_path)
    before = saved(config, tmp_path)
    assert mend(config) == ""
    assert saved(config, tmp_path) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": "maybe"},
        {"max_new_tokens": 0},
        {"num_return_sequences": 3},
        {"num_return_sequences": 3, "num_beams": 2},
        {"cache_implementation": "nope"},
        {"compile_config": {"mode": "default"}},
        {"watermarking_config": {"greenlist_ratio": 3.0}},
        {"watermarking_config": {"nope": 1}},
        {"assistant_ensemble_weight": 2.0},
        {"logits_processor": []},
        {"suppress_tokens": 3},
        {"suppress_tokens": [0], "forced_eos_token_id": 0},
    ],
    ids=str,
)
def test_what_transformers_does_not_load_is_one_sentence(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"cannot use its generation_config\.json \(.+\): correct it there$"
    ):
        read(settings, tmp_path)


def test_a_folder_without_settings_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_generation_config(str(tmp_path)) is None


def test_sampling_defaults_are_the_numbers_among_them(tmp_path: Path) -> None:
    read({"temperature": "hot", "top_p": 0.8}, tmp_path)
    assert sampling_defaults(str(tmp_path)) == {"top_p": 0.8}
