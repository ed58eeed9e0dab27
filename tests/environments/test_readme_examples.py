"""The examples of the README of environments run as they stand."""

import re
import sys
from pathlib import Path

import pytest
from helpers.commands import Fit
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, column

from grpo_pl.environments import Call, Prompt, Said, Turn
from grpo_pl.environments.sessions import Sessions

TEXT = (ROOT / "grpo_pl" / "environments" / "README.md").read_text()
GAME, SHOP = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SETTINGS, *_ = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_game.py").write_text(GAME)
    (tmp_path / "my_shop.py").write_text(SHOP)
    (tmp_path / "game.yaml").write_text(SETTINGS)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_game", "my_shop"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def answer(sessions: Sessions) -> Turn:
    [(_, turn)] = sessions.answers(60.0)
    assert isinstance(turn, Turn)
    return turn


@pytest.mark.parametrize("example", [GAME, SHOP], ids=["game", "shop"])
def test_an_example_is_short(example: str) -> None:
    assert len(example.splitlines()) <= 25


def test_the_game_is_won_by_its_hints() -> None:
    from my_game import Guess  # type: ignore[import-not-found]

    sessions = Sessions(Guess(high=20), timeout_s=60.0, memory_gib=1.0, processes=1)
    sessions.reset(0, Prompt(token_ids=[1], text="?", answer=""), seed=3)
    assert answer(sessions).messages[0]["content"] == "Guess my number, from 1 to 20."
    low, high, turn = 1, 20, Turn()
    while not turn.done:
        guess = (low + high) // 2
        sessions.step(0, Said(text=f"Is it {guess}?"))
        turn = answer(sessions)
        hint = turn.messages[0]["content"] if turn.messages else ""
        low, high = (guess + 1, high) if hint == "Higher." else (low, guess - 1)
    assert turn.reward == 1
    sessions.close()


def test_the_shop_answers_calls() -> None:
    from my_shop import Shop  # type: ignore[import-not-found]

    sessions = Sessions(Shop(), timeout_s=60.0, memory_gib=1.0, processes=1)
    sessions.reset(0, Prompt(token_ids=[1], text="?", answer=""), seed=3)
    assert answer(sessions) == Turn()
    fruits = [Call(name="price", arguments={"fruit": fruit}) for fruit in ("pear", "plum")]
    sessions.step(0, Said(text="", attempts=tuple(fruits)))
    assert [message["content"] for message in answer(sessions).messages] == ["4", "Error: KeyError: 'plum'"]
    sessions.step(0, Said(text="A pear costs 4."))
    assert answer(sessions) == Turn(done=True)
    sessions.close()


def test_a_run_plays_the_game(fit: Fit, tmp_path: Path) -> None:
    small = ("--data.episodes.tokens", 100, "--data.sampling.max_tokens", 8, "--trainer.max_epochs", 1)
    folder = fit("--config", tmp_path / "game.yaml", *small, *NO_VALIDATION)
    assert sum(column(folder, f"episodes/ended_{end}")[0] for end in ("done", "tokens", "turn_tokens")) == 1
    assert len(column(folder, "rewards/game")) == 1
