#!/usr/bin/env bash
# Games of textarena pay for texts that are no moves, pay sentences instead of numbers, and pay more for worse play.
#
# textarena 0.7.4 ends a game at the second invalid move in a row and pays progress for it: RushHour a quarter for two texts of any
# kind, PegJump 1/14. Countdown, Cryptarithm, Slitherlink and ThreeCardMonte give `set_invalid_move` its arguments in the wrong
# order, so that the reward is the sentence and the reason a number. Bandit pays the regret of a wrong button, which is larger for
# a worse one. Set takes one card that is named three times for a set of three. Guessed: a reward is a number that grows with play.
#
# Seen with Python 3.11:
#   RushHour-v0, two moves that cannot be read: 0.25
#   PegJump-v0, two moves that cannot be read: 0.0714285714285714
#   Countdown-v0, two moves that cannot be read: Invalid action format. Use `[i j op]` where i,j are indices and op is +,-,*,/
#   Cryptarithm-v0, two moves that cannot be read: Bad action format. Use `[A 5]`.
#   Slitherlink-v0, two moves that cannot be read: Bad action format. Use [h row col] or [v row col].
#   ThreeCardMonte-v0, two moves that cannot be read: Bad action. Use `[k]`.
#   Bandit-v0, the worst button pays more than the best of the wrong ones: True
#   Set-v0, [1, 1, 1] in each of 20 turns: 20
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile textarena==0.7.4 numpy

cat >"$folder/look.py" <<'PYTHON'
import contextlib
import io

import textarena


def paid(name, *moves, choose=None):
    """What a game pays at its end; `choose` makes the last move from its state."""
    game = textarena.make(name)
    with contextlib.redirect_stdout(io.StringIO()):
        game.reset(num_players=1, seed=7)
        for move in moves:
            done, _ = game.step(move)
        if choose:
            done, _ = game.step(choose(game.state.game_state["ground_truth"]))
    assert done
    return game.close()[0][0]


for name in ("RushHour", "PegJump", "Countdown", "Cryptarithm", "Slitherlink", "ThreeCardMonte"):
    print(f"{name}-v0, two moves that cannot be read:", paid(f"{name}-v0", "Hm.", "Hm."))
pressed = ["[red]"] * 20
worst = paid("Bandit-v0", *pressed, choose=lambda chances: f"[{min(chances, key=chances.get)}]")
second = paid("Bandit-v0", *pressed, choose=lambda chances: f"[{sorted(chances, key=chances.get)[-2]}]")
print("Bandit-v0, the worst button pays more than the best of the wrong ones:", worst > second)
print("Set-v0, [1, 1, 1] in each of 20 turns:", paid("Set-v0", *["[1, 1, 1]"] * 20))
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" look.py 2>/dev/null)
echo "$seen"
expected="RushHour-v0, two moves that cannot be read: 0.25
PegJump-v0, two moves that cannot be read: 0.0714285714285714
Countdown-v0, two moves that cannot be read: Invalid action format. Use \`[i j op]\` where i,j are indices and op is +,-,*,/
Cryptarithm-v0, two moves that cannot be read: Bad action format. Use \`[A 5]\`.
Slitherlink-v0, two moves that cannot be read: Bad action format. Use [h row col] or [v row col].
ThreeCardMonte-v0, two moves that cannot be read: Bad action. Use \`[k]\`.
Bandit-v0, the worst button pays more than the best of the wrong ones: True
Set-v0, [1, 1, 1] in each of 20 turns: 20"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
