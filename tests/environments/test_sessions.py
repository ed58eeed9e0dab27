import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import episodes

from grpo_pl.environments.base import Environment
from grpo_pl.environments.sessions import Failure, Sessions
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Said, Turn

LONG = 60.0
"""More than any answer takes, and all wait no longer than the answer takes."""


def prompt(text: str = "") -> Prompt:
    return Prompt(token_ids=[], text=text, answer="")


@pytest.fixture
def sessions() -> Iterator[Callable[..., Sessions]]:
    made: list[Sessions] = []

    def start(environment: Environment, **limits: float) -> Sessions:
        made.append(Sessions(environment, **{"timeout_s": LONG, "memory_gib": 1.0, "processes": 64} | limits))
        return made[-1]

    yield start
    for each in made:
        each.close()


def gone(pid: int) -> bool:
    """Whether a process ends within two minutes."""
    for _ in range(1200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def all_answers(playing: Sessions, many: int) -> dict[int, Turn | Failure]:
    found: dict[int, Turn | Failure] = {}
    while len(found) < many:
        for key, answer in playing.answers(LONG):
            assert key not in found
            found[key] = answer
    return found


def opened(playing: Sessions, many: int, seed: int = 0) -> None:
    for key in range(many):
        playing.reset(key, prompt(), seed)
    assert all_answers(playing, many) == dict.fromkeys(range(many), Turn())


def ask(playing: Sessions, key: int, text: str) -> Turn | Failure:
    playing.step(key, Said(text=text))
    return all_answers(playing, 1)[key]


def content(answer: Turn | Failure) -> str:
    assert isinstance(answer, Turn), answer
    return answer.messages[0]["content"]


def test_an_episode_keeps_its_object_and_its_process_from_turn_to_turn(sessions):
    playing = sessions(episodes.Obeys())
    opened(playing, 2)
    assert [content(ask(playing, key, "count")) for key in (0, 0, 1, 0)] == ["1", "2", "1", "3"]
    (first, *_), (again, *_), (other, *_) = (content(ask(playing, k, "process")).split() for k in (0, 0, 1))
    assert first == again != other
    assert ask(playing, 0, "count").reward == 3.0
    assert ask(playing, 0, "win") == Turn(reward=1.0, done=True)


def test_the_prototype_stays_as_it_is(sessions):
    prototype = episodes.Obeys()
    playing = sessions(prototype)
    opened(playing, 1)
    ask(playing, 0, "count")
    playing.end(0)
    opened(playing, 1)
    assert content(ask(playing, 0, "count")) == "1"
    assert prototype.turns == 0


def test_all_episodes_are_played_at_once_and_each_gets_its_own_answer(sessions, tmp_path):
    """An environment that answers when 64 have been asked: played one after the other, none would answer."""
    playing = sessions(episodes.Meets(str(tmp_path), 64))
    opened(playing, 64)
    for key in random.Random(0).sample(range(64), 64):
        playing.step(key, Said(text=f"episode {key}"))
    assert {key: content(turn) for key, turn in all_answers(playing, 64).items()} == {
        key: f"episode {key}" for key in range(64)
    }


def test_one_of_64_that_hangs_costs_itself_alone(sessions):
    playing = sessions(episodes.Obeys())
    opened(playing, 64)
    playing.timeout_s = 1.0
    playing.step(7, Said(text="hang_in_c"))
    playing.timeout_s = LONG
    for key in {*range(64)} - {7}:
        playing.step(key, Said(text="count"))
    found = all_answers(playing, 64)
    assert found.pop(7).kind == "timeout"
    assert {content(turn) for turn in found.values()} == {"1"}
    for key in found:
        playing.step(key, Said(text="count"))
    assert {content(turn) for turn in all_answers(playing, 63).values()} == {"2"}
    playing.end(7)
    playing.reset(7, prompt(), 0)
    assert all_answers(playing, 1) == {7: Turn()}


@pytest.mark.parametrize("way", ["hang", "stop", "hang_with_a_child"])
@pytest.mark.parametrize("where", ["reset", "step"])
def test_what_hangs_is_killed_at_its_deadline_with_its_children(sessions, tmp_path, way, where):
    note = tmp_path / "child"
    playing = sessions(episodes.Obeys(str(note)))
    if where == "step":
        opened(playing, 1)
    playing.timeout_s = limit = 2.0 if way == "hang_with_a_child" else 0.5
    if where == "step":
        playing.step(0, Said(text=way))
    else:
        playing.reset(0, prompt(way), 0)
    assert all_answers(playing, 1) == {0: Failure("timeout", f"Obeys.{where}: took more than {limit:g} s")}
    if note.exists() and (child := note.read_text()):
        assert gone(int(child))
        assert not note.with_name("child.end").exists(), "it came to its own end"


@pytest.mark.parametrize("way", ["die", "fault", "exit", "interrupt", "take_memory", "say_much"])
def test_what_crashes_costs_itself_alone(sessions, way):
    playing = sessions(episodes.Obeys(), memory_gib=0.25)
    opened(playing, 2)
    crash = Failure("crash", "Obeys.step: its process died or ran out of memory")
    assert ask(playing, 0, way) == crash
    assert content(ask(playing, 1, "take_some_memory")) == str(100 * 2**20)
    playing.reset(0, prompt(way), 0)
    assert all_answers(playing, 1)[0].kind == "crash"


def test_what_a_crashed_episode_has_started_dies_with_it(sessions, tmp_path):
    note = tmp_path / "child"
    playing = sessions(episodes.Obeys(str(note)))
    opened(playing, 1)
    assert ask(playing, 0, "leave_a_child_and_die").kind == "crash"
    assert gone(int(note.read_text()))
    assert not note.with_name("child.end").exists(), "it came to its own end"


MESSAGES = "expected messages of user, tool with text as content, got"
REWARD = "expected a finite number as the reward"
MISTAKES = {
    "fail": "ZeroDivisionError: no",
    "nothing": "TypeError: expected a Turn, got None",
    "text": "TypeError: expected a Turn, got 'Higher.'",
    "assistant": f"{MESSAGES} {{'role': 'assistant', 'content': 'I won.'}}",
    "no_role": f"{MESSAGES} {{'content': '?'}}",
    "no_content": f"{MESSAGES} {{'role': 'user'}}",
    "parts_as_content": f"{MESSAGES} {{'role': 'user', 'content': [{{'type': 'text', 'text': '?'}}]}}",
    "text_as_message": f"{MESSAGES} 'Higher.'",
    "odd_unicode": r"a message is no valid Unicode: {'role': 'user', 'content': '\ud800'}",
    "odd_name": r"a message is no valid Unicode: {'role': 'tool', 'name': '\ud800', 'content': '?'}",
    "sentence_as_reward": f"{REWARD}, got 'Congratulations! You solved the puzzle!'",
    "nan": f"{REWARD}, got nan",
    "no_reward": f"{REWARD}, got None",
    "endless_reward": f"{REWARD}, got 1{79 * '0'}",
    "odd_done": "expected done to be true or false, got 'no'",
    "silence": "no message, though the episode is not over",
}


def test_a_wrong_answer_is_an_error_that_names_environment_and_method(sessions):
    playing = sessions(episodes.Obeys())
    opened(playing, len(MISTAKES))
    for key, way in enumerate(MISTAKES):
        playing.step(key, Said(text=way))
    assert all_answers(playing, len(MISTAKES)) == {
        key: Failure("error", f"Obeys.step: {mistake}") for key, mistake in enumerate(MISTAKES.values())
    }


def test_a_reset_may_speak_as_the_system_and_pays_nothing(sessions):
    playing = sessions(episodes.Obeys())
    playing.reset(0, prompt("win"), 0)
    assert all_answers(playing, 1)[0] == Failure(
        "error", "Obeys.reset: reward 1 before the policy has said anything"
    )
    playing.reset(1, prompt("assistant"), 0)
    assert "expected messages of system, user, tool" in all_answers(playing, 1)[1].message
    playing.reset(2, prompt("over"), 0)
    assert all_answers(playing, 1)[2] == Failure(
        "error", "Obeys.reset: done before the policy has said anything"
    )


def test_numbers_may_be_those_of_numpy(sessions):
    playing = sessions(episodes.OddlyTyped())
    opened(playing, 1)
    assert ask(playing, 0, "a") == episodes.say("a", reward=0.5, done=False)
    assert ask(playing, 0, "end") == episodes.say("end", reward=0.5, done=True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (episodes.Obeys(), lambda seed: random.Random(seed).random()),
        (episodes.NumpyDraws(), lambda seed: np.random.RandomState(seed % 2**32).random_sample()),
    ],
    ids=["random", "numpy"],
)
def test_the_global_generators_are_seeded_for_each_episode(sessions, environment, expected):
    playing = sessions(environment)
    seeds = [5, 5, 2**63 - 1]
    for key, seed in enumerate(seeds):
        playing.reset(key, prompt(), seed)
    all_answers(playing, 3)
    assert [float(content(ask(playing, key, "draw"))) for key in range(3)] == [*map(expected, seeds)]


def test_episodes_wait_for_room_in_their_order(sessions):
    playing = sessions(episodes.Obeys(), processes=2)
    for key in range(4):
        playing.reset(key, prompt(), 0)
    assert set(all_answers(playing, 2)) == {0, 1}
    assert playing.answers(0.0) == []
    playing.end(3)
    playing.end(1)
    assert all_answers(playing, 1) == {2: Turn()}
    assert ask(playing, 0, "die").kind == "crash"
    playing.reset(5, prompt(), 0)
    assert all_answers(playing, 1) == {5: Turn()}, "3 was taken back before it began"


def test_close_is_called_at_the_end_and_the_process_is_gone(sessions, tmp_path):
    note = tmp_path / "closed"
    playing = sessions(episodes.Obeys(str(note)))
    opened(playing, 1)
    pid, session, group, folder = content(ask(playing, 0, "process")).split()
    child = content(ask(playing, 0, "leave_a_child"))
    assert pid == group
    assert session != str(os.getsid(0))  # the terminal's Ctrl-C goes to the session's foreground
    assert Path(folder).exists()
    playing.end(0)
    assert gone(int(pid))
    assert gone(int(child))
    assert not note.with_name("closed.end").exists(), "it came to its own end"
    assert note.read_text() == "closed"
    assert playing.answers(0.0) == []


def test_the_files_of_an_ended_episode_are_removed_and_another_s_stay(sessions):
    playing = sessions(episodes.Obeys())
    opened(playing, 2)
    [*_, first], [*_, second] = (content(ask(playing, key, "process")).split() for key in range(2))
    playing.end(0)
    for _ in range(1200):
        if not Path(first).parent.exists():
            break
        time.sleep(0.1)
    assert not Path(first).parent.exists()
    assert Path(second).exists()


def test_a_close_that_hangs_ends_at_its_deadline_without_a_further_call(sessions, tmp_path):
    playing = sessions(episodes.HangsAtClose(str(tmp_path / "end")))
    opened(playing, 1)
    pid = int(content(ask(playing, 0, "")))
    playing.timeout_s = 0.5
    playing.end(0)
    assert gone(pid)
    assert not (tmp_path / "end").exists(), "it came to its own end"


def test_an_episode_that_owes_an_answer_is_ended_without_it(sessions, tmp_path):
    playing = sessions(episodes.Obeys(str(tmp_path / "note")))
    opened(playing, 1)
    pid = int(content(ask(playing, 0, "process")).split()[0])
    playing.step(0, Said(text="hang"))
    playing.end(0)
    playing.end(0)
    assert gone(pid)
    assert not (tmp_path / "note.end").exists(), "it came to its own end"
    playing.reset(0, prompt(), 0)
    assert all_answers(playing, 1) == {0: Turn()}


def test_long_texts_go_there_and_back(sessions):
    playing = sessions(episodes.Obeys())
    playing.reset(0, Prompt(token_ids=[], text="", answer="", metadata={"table": "x" * 2**21}), 0)
    assert all_answers(playing, 1) == {0: Turn()}
    assert content(ask(playing, 0, "say_a_megabyte")) == "é" * 2**20


def test_a_long_answer_that_is_read_after_the_deadline_has_come_in_time(sessions):
    """As while an engine samples for long: the answer waits, most of it in its process."""
    playing = sessions(episodes.Obeys())
    opened(playing, 1)
    playing.timeout_s = 1.0
    playing.step(0, Said(text="say_a_megabyte"))
    time.sleep(2.0)
    assert content(all_answers(playing, 1)[0]) == "é" * 2**20


def test_episodes_import_no_torch(sessions):
    playing = sessions(episodes.Obeys())
    opened(playing, 1)
    modules = content(ask(playing, 0, "modules")).split()
    assert "helpers.episodes" in modules
    assert not {"torch", "vllm", "lightning", "transformers", "numpy"} & set(modules)


def test_if_their_parent_dies_the_open_episodes_crash_and_the_next_ones_live(sessions):
    playing = sessions(episodes.Obeys())
    opened(playing, 3)
    pids = [int(content(ask(playing, key, "process")).split()[0]) for key in range(3)]
    playing.step(1, Said(text="hang_in_c"))
    playing.step(0, Said(text="kill_the_nursery"))
    assert {key: answer.kind for key, answer in all_answers(playing, 2).items()} == {0: "crash", 1: "crash"}
    assert all(map(gone, pids))
    playing.reset(5, prompt(), 0)
    assert all_answers(playing, 1) == {5: Turn()}
    assert ask(playing, 2, "count").kind == "crash"


def test_all_processes_die_with_a_trainer_that_is_killed(tmp_path):
    note = tmp_path / "child"
    script = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from helpers import episodes\nfrom grpo_pl.environments.sessions import Sessions\n"
        "from grpo_pl.types import Prompt, Said\n"
        f"playing = Sessions(episodes.Obeys({str(note)!r}), timeout_s=300.0, memory_gib=1.0, processes=2)\n"
        "playing.reset(0, Prompt(token_ids=[], text='hang_with_a_child', answer=''), 0)\n"
        "playing.reset(1, Prompt(token_ids=[], text='', answer=''), 0)\nplaying.answers(300.0)\n"
        "print(flush=True)\nplaying.answers(300.0)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what a killed trainer leaves
    trainer = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
    try:
        assert trainer.stdout.readline() == b"\n"
        for _ in range(600):
            if note.exists() and note.read_text():
                break
            time.sleep(0.1)
        below = psutil.Process(trainer.pid).children(recursive=True)
        assert len(below) >= 4  # the nursery, two episodes, a shell and perhaps its sleep
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    assert all(gone(process.pid) for process in below)
    assert not note.with_name("child.end").exists(), "it came to its own end"


def its_processes(playing: Sessions) -> list[psutil.Process]:
    """The process that forks and the episodes, without those of other tests' pools."""
    forks = psutil.Process(playing._nursery.process.pid)
    return [forks, *forks.children(recursive=True)]


def test_after_close_no_process_and_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd"))
    playing = Sessions(episodes.Obeys(), timeout_s=LONG, memory_gib=1.0, processes=8)
    opened(playing, 8)
    assert ask(playing, 3, "die").kind == "crash"
    below = its_processes(playing)
    playing.end(4)
    playing.close()
    assert all(gone(process.pid) for process in below)
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_episodes_leave_nothing_behind(sessions):
    playing = sessions(episodes.Obeys(), processes=4)
    opened(playing, 4)
    files = len(os.listdir("/proc/self/fd"))
    for key in range(4, 60):
        playing.reset(key, prompt(), 0)
        playing.end(key - 4)
        all_answers(playing, 1)
    for key in range(56, 60):
        assert content(ask(playing, key, "count")) == "1"
    assert len(os.listdir("/proc/self/fd")) == files
    for _ in range(1200):
        below = its_processes(playing)
        if len(below) == 5:
            break
        time.sleep(0.1)
    assert len(below) == 5, "the nursery and four episodes"


def test_episodes_that_end_at_the_same_moment_do_not_end_the_process_that_forks(sessions):
    playing = sessions(episodes.Obeys())
    forks = playing._nursery
    for _ in range(15):
        opened(playing, 64)
        for key in range(64):
            playing.end(key)
    opened(playing, 1)
    assert playing._nursery is forks


def test_an_environment_that_cannot_be_pickled_is_refused_at_once():
    with pytest.raises(
        ConfigError, match=r"^HoldsAFile cannot be pickled for its episodes \(TypeErr.*reset$"
    ):
        Sessions(episodes.HoldsAFile(), timeout_s=1.0, memory_gib=1.0, processes=1)


def test_an_environment_that_its_process_cannot_import_is_refused_at_once():
    class_of_a_script = type("Mine", (episodes.Obeys,), {"__module__": "__main__"})
    sys.modules["__main__"].Mine = class_of_a_script
    try:
        with pytest.raises(ConfigError, match=r"^Mine cannot be loaded in a process of its own \(Attribute"):
            Sessions(class_of_a_script(), timeout_s=1.0, memory_gib=1.0, processes=1)
    finally:
        del sys.modules["__main__"].Mine
