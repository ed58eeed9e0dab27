"""The games of the real library, each played to its end."""

import copy
import itertools
import random
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from textarena.envs.registration import ENV_REGISTRY

from grpo_pl.environments.sessions import Sessions
from grpo_pl.environments.text_arena import TextArena
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Said, Turn

PROMPT = Prompt(token_ids=[], text="Play.", answer="")


def hanoi(disks: int, source: str, target: str, spare: str) -> Iterator[str]:
    if disks:
        yield from hanoi(disks - 1, source, spare, target)
        yield f"[{source} {target}]"
        yield from hanoi(disks - 1, spare, target, source)


def searched(game: Any, moves: list[str], seen: Callable[[Any], object]) -> list[str]:
    """The shortest way to a reward of 1."""
    queue, known = deque([(game, [])]), {repr(seen(game))}
    while queue:
        played, way = queue.popleft()
        for move in moves:
            tried = copy.deepcopy(played)
            done, _ = tried.step(move)
            if done and tried.state.rewards == {0: 1}:
                return [*way, move]
            if not done and not tried.state.made_invalid_move and (key := repr(seen(tried))) not in known:
                known.add(key)
                queue.append((tried, [*way, move]))
    raise AssertionError("it cannot be won")


def lights(game: Any) -> list[str]:
    """Row by row: what the first row presses decides the rest."""
    for first in range(32):
        grid = copy.deepcopy(game.state.game_state["grid"])
        pressed = []
        for row in range(5):
            for col in range(5):
                if first >> col & 1 if row == 0 else grid[row - 1][col]:
                    pressed.append(f"[{row} {col}]")
                    game._toggle_lights(grid, row, col)
        if not any(map(any, grid)):
            return pressed
    raise AssertionError("it cannot be won")


def pegs(board: list[bool], jumps: list[tuple[int, int, int]]) -> list[str] | None:
    if sum(board) == 1:
        return []
    for peg, over, hole in jumps:
        if board[peg] and board[over] and not board[hole]:
            left = [(n in {peg, over, hole}) != there for n, there in enumerate(board)]
            if (found := pegs(left, jumps)) is not None:
                return [f"{peg} {hole}", *found]
    return None


def merges(game: Any) -> Iterator[str]:
    while True:
        for move in ("[left]", "[down]", "[right]", "[up]"):
            tried = copy.deepcopy(game)
            tried.step(move)
            if not tried.state.made_invalid_move and not tried.state.error_count:
                yield move
                break


def loop(game: Any) -> list[str]:
    """The border of a rectangle, which every puzzle has for a solution."""
    for top, left, height, width in itertools.product(range(3), range(3), range(2, 5), range(2, 5)):
        if top + height <= 4 and left + width <= 4:
            edges = [f"h {top + side} {left + n}" for side in (0, height) for n in range(width)]
            edges += [f"v {top + n} {left + side}" for side in (0, width) for n in range(height)]
            tried = copy.deepcopy(game)
            for edge in edges:
                done, _ = tried.step(f"[{edge}]")
            if done:
                return edges
    raise AssertionError("it cannot be won")


WINS: dict[str, Callable[[Any], Any]] = {
    "Countdown-v0": lambda game: countdown(game.numbers, game.target),
    "Crosswords-v0": lambda game: [
        f"[{row} {col} {letter}]"
        for row, line in enumerate(game.state.game_state["solution"])
        for col, letter in enumerate(line)
        if letter != "."
    ],
    "Cryptarithm-v0": lambda _: [f"{a} {b}" for a, b in zip("SENDMORY", "95671082", strict=True)],
    "FrozenLake-v0-random": lambda game: searched(
        game, ["[up]", "[down]", "[left]", "[right]"], lambda g: g.state.game_state["player_pos"]
    ),
    "GuessTheNumber-v0": lambda game: [f"It is [{game.game_number}]!"],
    "LightsOut-v0": lights,
    "LogicPuzzle-v0": lambda game: [
        "".join(
            f"[{row} {col} {mark}]"
            for table in game.game_board_solution.values()
            for row, cells in table.items()
            for col, mark in cells.items()
        )
    ],
    "Mastermind-v0": lambda game: [" ".join(map(str, game.state.game_state["secret_code"]))],
    "PegJump-v0": lambda game: pegs(game.state.game_state["board"], sorted(game.ALLOWED_MOVES)),
    "RushHour-v0": lambda game: searched(
        game,
        [f"[{car}{way}]" for car in game.state.game_state["vehicles"] for way in "+-"],
        lambda g: [(car.row, car.col) for car in g.state.game_state["vehicles"].values()],
    ),
    "Secretary-v0": lambda game: (
        ["continue"] * game.state.game_state["draws"].index(max(game.state.game_state["draws"])) + ["accept"]
    ),
    "Slitherlink-v0": loop,
    "Sokoban-v0": lambda game: searched(
        game, ["[up]", "[down]", "[left]", "[right]"], lambda g: g.room_state.tolist()
    ),
    "Sudoku-v0": lambda game: [
        f"{row + 1} {col + 1} {number}"
        for row, line in enumerate(game.full_grid)
        for col, number in enumerate(line)
        if not game.state.game_state["board"][row][col]
    ],
    "ThreeCardMonte-v0": lambda game: [str(game.ball_pos)],
    "TowerOfHanoi-v0": lambda _: hanoi(3, "A", "C", "B"),
    "2048-v0-ultra-easy": merges,
}


def countdown(numbers: list[int], target: int) -> list[str]:
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
            for op, value in (("+", a + b), ("*", a * b), ("-", a - b)) if i != j else ():
                move = f"[{i} {j} {op}]"
                if value == target:
                    return [move]
                if len(rest) and value > 0 and (found := countdown([*rest, value], target)):
                    return [move, *found]
    return []


OPTIONS = {"Sokoban-v0": {"num_boxes": 1}}


@pytest.mark.parametrize("name", WINS)
def test_a_game_that_is_won_pays_1(name):
    game = TextArena(name, OPTIONS.get(name))
    for seed in range(2):
        assert game.reset(PROMPT, seed).messages
        for move in WINS[name](game._game):
            turn = game.step(Said(text=move))
            if turn.done:
                break
            assert turn.messages[0]["content"].strip()
        assert turn == Turn(reward=1.0, done=True)


ODD = [
    "",
    "[]",
    "Hm.",
    "[\N{SUPERSCRIPT TWO}]",
    f"[{'9' * 5000}]",
    "[" * 3000,
    "[1 2 3]",
    "[0 0]",
    "[h 9 9]",
    "[A B]",
]


@pytest.mark.parametrize("name", WINS)
def test_a_game_that_is_lost_by_moves_that_it_cannot_read_pays_nothing_and_says_why(name):
    game = TextArena(name, OPTIONS.get(name))
    for seed in range(4):
        draw, game_says = random.Random(seed), game.reset(PROMPT, seed)
        for move in draw.choices(ODD, k=200):
            turn = game.step(Said(text=move))
            if turn.done:
                assert turn == Turn(reward=0.0, done=True)
                break
            game_says = turn.messages[0]["content"]
        assert not re.search(r"Reason: [\d.]+ Please", game_says)
        assert "invalid move. Reason: " in game_says or name in ("ThreeCardMonte-v0", "GuessTheNumber-v0")


def test_blackjack_pays_the_share_of_hands_that_are_won():
    game = TextArena("Blackjack-v0")
    rewards = set()
    for seed in range(30):
        game.reset(PROMPT, seed)
        while not (turn := game.step(Said(text="Stand"))).done:
            assert turn.messages[0]["content"].strip()
        rewards.add(turn.reward)
    assert rewards <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    assert len(rewards) > 3


@pytest.mark.parametrize("name", ["Sokoban-v0", "Secretary-v0"])
def test_an_episode_opens_by_its_seed_alone_in_its_process(name, capfd):
    sessions = Sessions(TextArena(name), timeout_s=60.0, memory_gib=2.0, processes=4)
    try:
        for key, seed in enumerate([5, 6, 5]):
            sessions.reset(key, PROMPT, seed)
        opened: dict[int, Any] = {}
        while len(opened) < 3:
            opened |= dict(sessions.answers(60.0))
        sessions.step(2, Said(text="Hm."))
        [(_, turn)] = sessions.answers(60.0)
    finally:
        sessions.close()
    assert opened[0] == opened[2] != opened[1]
    assert "invalid move" in turn.messages[0]["content"]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Wordle-v0", "it downloads its words; choose another game"),
        ("Bandit-v0-hard", "it pays more for a worse button"),
        ("Sudoku-v0-hard", "some of its puzzles take too long to make"),
        ("Chess-v0", "it is no game for one player"),
        ("FrozenLak-v0", "textarena has no such game; it has, for instance, FrozenLake-v0"),
    ],
)
def test_other_games_are_refused_by_name_with_the_reason(name, reason):
    with pytest.raises(ConfigError, match=rf"^game={name}: {reason}"):
        TextArena(name)


def test_options_are_checked_before_anything_is_played():
    with pytest.raises(
        ConfigError, match=r"^options=\{'width': 5\}: .*unexpected keyword.*FrozenLake-v0 takes \{'size'"
    ):
        TextArena("FrozenLake-v0", {"width": 5})
    assert (
        "+-----+-----+\n"
        in TextArena("FrozenLake-v0", {"size": 2, "num_holes": 0}).reset(PROMPT, 0).messages[0]["content"]
    )


def test_every_game_of_the_library_for_one_player_is_played_here_or_refused_for_a_reason():
    names = {name.removesuffix("-raw") for name in ENV_REGISTRY if name.endswith("-raw")}
    taken, alone = set(), set()
    for name in names:
        try:
            TextArena(name)
            taken.add(name.partition("-v0")[0])
        except ConfigError as error:
            if "for one player" not in str(error):
                alone.add(name.partition("-v0")[0])
    assert taken == {name.partition("-v0")[0] for name in WINS} | {"Blackjack"}
    assert len(taken | alone) == 30
