#!/usr/bin/env bash
# textarena deals fifteen-puzzles that have no solution, and its Minesweeper goes on after a mine.
#
# textarena 0.7.4 shuffles the 15 tiles, and half of all orders cannot be reached by sliding. In Minesweeper a mine is an invalid
# move, of which one is forgiven after each valid one: with a safe cell between them all mines may be stepped on. Guessed: a puzzle
# can be solved, and a mine ends the game.
#
# Seen with Python 3.11:
#   FifteenPuzzle-v0: 88 of 200 seeds have no solution
#   Minesweeper-v0-small: stepped on 5 of 5 mines, over: False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile textarena==0.7.4

cat >"$folder/look.py" <<'PYTHON'
import textarena


def solvable(seed):
    """By parity: inversions of the tiles, and the rows between the empty cell and the last one."""
    game = textarena.make("FifteenPuzzle-v0")
    game.reset(num_players=1, seed=seed)
    cells = [cell for row in game.state.game_state["board"] for cell in row]
    tiles = [cell for cell in cells if cell]
    inversions = sum(a > b for i, a in enumerate(tiles) for b in tiles[i + 1 :])
    return (inversions + 3 - cells.index(next(cell for cell in cells if not cell)) // 4) % 2 == 0


print(f"FifteenPuzzle-v0: {sum(not solvable(seed) for seed in range(200))} of 200 seeds have no solution")
game = textarena.make("Minesweeper-v0-small")
game.reset(num_players=1, seed=1)
game.step("[0 0]")
cells = [(row, col) for row in range(5) for col in range(5)]
mines = [cell for cell in cells if game.grid[cell[0]][cell[1]] == -1]
safe = [cell for cell in cells if cell not in mines and not game.revealed[cell[0]][cell[1]]]
stepped = 0
for mine, other in zip(mines, safe):
    for row, col in (mine, other):
        done, _ = game.step(f"[{row} {col}]")
    stepped += 1
    if done:
        break
print(f"Minesweeper-v0-small: stepped on {stepped} of {len(mines)} mines, over: {done}")
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" look.py 2>/dev/null)
echo "$seen"
expected="FifteenPuzzle-v0: 88 of 200 seeds have no solution
Minesweeper-v0-small: stepped on 5 of 5 mines, over: False"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
