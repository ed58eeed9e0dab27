import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import worker_calls as calls

from grpo_pl.rewards.base import RewardError
from grpo_pl.rewards.pool import Outcome, Pool, Workers

TIMEOUT, CRASH = Outcome(failure="timeout"), Outcome(failure="crash")


@pytest.fixture
def pools() -> Iterator[list[Pool]]:
    made: list[Pool] = []
    yield made
    for pool in made:
        pool.close()


@pytest.fixture
def run(pools):
    """Runs calls in a pool of its own with the given limits."""

    def run(*pending: partial, **limits: object) -> list[Outcome]:
        pools.append(Pool("helpers.worker_calls", Workers(**limits)))
        return pools[-1].run(pending)

    return run


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(pid: int) -> bool:
    """Whether a process ends within two minutes."""
    for _ in range(1200):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


def test_outcomes_come_in_the_order_of_the_calls_and_not_of_their_ends(run):
    slow, quick = partial(calls.slow_double, 1.0, 0.3), [partial(calls.double, n) for n in range(20)]
    assert run(slow, *quick) == [Outcome(2.0), *(Outcome(2 * n) for n in range(20))]


ENDLESS = {
    "a loop": partial(calls.hang),
    "a loop in C": partial(calls.hang_in_c),
    "deaf to signals": partial(calls.ignore_all_signals_and_sleep),
    "sleep": partial(calls.slow_double, 1.0, calls.A_MINUTE),
    "sleep in a thread": partial(calls.sleep_in_a_thread),
    "a child": partial(calls.wait_for_a_child),
    "an empty pipe": partial(calls.read_what_never_comes),
    "a stop": partial(calls.get_signal, signal.SIGTSTP),
}
DEADLY = {
    "killed": partial(calls.kill_myself),
    "terminated": partial(calls.get_signal, signal.SIGTERM),
    "a fault": partial(calls.get_signal, signal.SIGSEGV),
    "aborted": partial(calls.get_signal, signal.SIGABRT),
    "exit": partial(calls.leave),
    "exit at once": partial(calls.leave_at_once, 0),
    "exit with a code": partial(calls.leave_at_once, 3),
    "an interrupt": partial(calls.end_all_calls),
    "an error without words": partial(calls.fail_without_words),
    "3 GiB": partial(calls.allocate, 3 * 2**10),
    "3 GiB of text": partial(calls.take_as_text),
    "3 GiB in pieces": partial(calls.take_in_pieces),
    "closed files": partial(calls.close_all_files),
    "a reply of 17 MiB": partial(calls.give_text, 17 * 2**20),
}
FAILING = {
    "an error": (partial(calls.fail, "no"), "ZeroDivisionError: no"),
    "an error of a megabyte": (partial(calls.fail, "x" * 2**20), "ZeroDivisionError: x{480}"),
    "an error of odd characters": (partial(calls.fail, "\0\n\ud800"), "ZeroDivisionError: \0\n\ud800"),
    "recursion": (partial(calls.recurse), "RecursionError"),
    "mapped memory": (partial(calls.map_memory), "OSError: .*Cannot allocate memory"),
    "what JSON lacks": (partial(calls.give_what_json_lacks), "TypeError"),
    "a deep list": (partial(calls.give_a_deep_list), "RecursionError"),
    "a circle": (partial(calls.give_a_circle), "ValueError: Circular reference"),
}
STRANGE = {
    "rubbish": (partial(calls.print_rubbish), 1.0),
    "a megabyte": (partial(calls.give_text, 2**20), "x" * 2**20),
    "a child left behind": (partial(calls.leave_a_child_behind), 1.0),
    "a fork": (partial(calls.fork), 1.0),
    "another folder": (partial(calls.move_away), 1.0),
}


@pytest.fixture(scope="module")
def one_worker() -> Iterator[Pool]:
    """One worker with little time and memory, so that each call shows that the next one finds a right one."""
    pool = Pool("helpers.worker_calls", Workers(processes=1, timeout_s=0.5, memory_gib=0.25))
    yield pool
    pool.close()


def between(pool: Pool, call: partial) -> Outcome:
    """The outcome of a call; the calls before and behind it have theirs."""
    before, outcome, behind = pool.run([partial(calls.double, 1), call, partial(calls.double, 2)])
    assert (before, behind) == (Outcome(2), Outcome(4))
    return outcome


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.timeout(180)
def test_whatever_hangs_is_killed_at_the_deadline_and_costs_itself_alone(one_worker, call):
    assert between(one_worker, call) == TIMEOUT


@pytest.mark.parametrize("call", DEADLY.values(), ids=DEADLY)
def test_a_worker_that_dies_or_runs_out_of_memory_is_replaced(run, call):
    outcomes = run(
        partial(calls.double, 1), call, partial(calls.double, 2), processes=1, timeout_s=30.0, memory_gib=0.25
    )
    assert outcomes == [Outcome(2), CRASH, Outcome(4)]


@pytest.mark.parametrize(("call", "error"), FAILING.values(), ids=FAILING)
def test_whatever_a_call_raises_or_cannot_say_is_its_error_alone(one_worker, call, error):
    outcome = between(one_worker, call)
    assert (outcome.value, outcome.failure) == (None, None)
    assert re.match(error, outcome.error, re.DOTALL)
    assert len(outcome.error) <= 500


@pytest.mark.parametrize(("call", "value"), STRANGE.values(), ids=STRANGE)
def test_what_a_call_does_besides_does_not_change_its_value(one_worker, call, value):
    assert between(one_worker, call) == Outcome(value)


@pytest.mark.parametrize(
    "count", [60, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_bad_calls_end_in_time_lose_no_worker_and_keep_memory_flat(pools, count, capsys):
    """Two at once, so that each pair shows by itself that nothing hangs beyond its deadline."""
    pools.append(Pool("helpers.worker_calls", Workers(timeout_s=0.5, memory_gib=0.5)))
    failing, strange = ([call for call, _ in table.values()] for table in (FAILING, STRANGE))
    rng = random.Random(7)
    bad = [rng.choice([*ENDLESS.values(), *DEADLY.values(), *failing, *strange]) for _ in range(count)]
    pools[0].run([partial(calls.double, 1)] * 2)
    me, longest, most = psutil.Process(), 0.0, 0
    begin, before, files = time.monotonic(), me.memory_info().rss, me.num_fds()
    for pair in zip(bad[::2], bad[1::2], strict=True):
        start = time.monotonic()
        pools[0].run(pair)
        longest = max(longest, time.monotonic() - start)
        most = max([most, *(memory.vms for memory in memory_of_workers(pools[0]))])
    grown = me.memory_info().rss - before
    said = (
        f"{count} bad calls in {time.monotonic() - begin:.0f} s: slowest pair {longest:.1f} s, address space "
        f"of a worker up to {most / 2**20:.0f} MiB, this process grew by {grown / 2**20:.1f} MiB"
    )
    with capsys.disabled():
        print(said)
    assert longest < 180  # nothing hangs: a pair has a second and the start of some workers
    assert grown < 64 * 2**20
    assert most < 2**30
    assert me.num_fds() <= files  # three for each of two workers at most
    assert pools[0].run([partial(calls.double, 1), partial(calls.double, 2)]) == [Outcome(2), Outcome(4)]


def memory_of_workers(pool: Pool) -> Iterator[Any]:
    """That of a pool's workers that are alive; this process has others, of the tests before."""
    for worker in pool._workers:
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(worker.process.pid).memory_info()


@pytest.mark.parametrize(
    "words",
    ["no JSON\n", "[1]\n", '{"failure": "timeout"}\n', '{"value": 1}\n{"value": 2}\n', "[" * 100000 + "\n"],
    ids=["no JSON", "no object", "a verdict", "two replies", "brackets in brackets"],
)
def test_a_worker_that_is_taken_over_can_say_nothing_but_a_score(run, words):
    """Its words are JSON with a value or an error; all else costs the sample."""
    outcomes = run(partial(calls.double, 1), partial(calls.say, words), partial(calls.double, 2), processes=1)
    assert outcomes == [Outcome(2), CRASH, Outcome(4)]


def test_a_worker_that_says_too_much_is_ended(run):
    assert run(partial(calls.say_much), timeout_s=60.0) == [CRASH]


def test_memory_beyond_what_the_worker_holds_is_what_is_limited(run):
    inside, beyond = partial(calls.allocate, 200), partial(calls.allocate, 300)
    assert run(inside, beyond, memory_gib=0.25) == [Outcome(200 * 2**20), CRASH]


def test_what_a_worker_computed_before_does_not_change_an_outcome(run):
    hoarding = [partial(calls.hoard, 100)] * 7  # the third in one worker does not fit
    assert CRASH not in run(*hoarding, processes=1, memory_gib=0.25)


def test_an_error_is_reported_and_the_worker_lives(run, pools):
    assert run(partial(calls.session), partial(calls.fail, "no"), partial(calls.session), processes=1)[
        1
    ] == Outcome(error="ZeroDivisionError: no")
    before, after = pools[0].run([partial(calls.session)]), pools[0].run([partial(calls.session)])
    assert before == after


def test_a_retry_helps_where_the_failure_was_an_accident(run, tmp_path):
    first, second = (partial(calls.die_the_first_time, str(tmp_path / name)) for name in "ab")
    assert run(first, retries=0) == [CRASH]
    assert run(second, retries=1) == [Outcome(1.0)]


def test_a_retry_is_as_often_as_it_is_allowed(run, tmp_path):
    tried = tmp_path / "tried"
    assert run(partial(calls.note_and_hang, str(tried)), timeout_s=0.5, retries=2) == [TIMEOUT]
    assert tried.read_text() == "tried\n" * 3


def test_workers_import_no_torch_and_have_a_session_of_their_own(run):
    [modules], [session] = run(partial(calls.modules)), run(partial(calls.session))
    assert "helpers.worker_calls" in modules.value
    assert not {"torch", "vllm", "lightning", "transformers"} & set(modules.value)
    assert session.value != os.getsid(0)  # the terminal's Ctrl-C goes to the sessions's foreground


def test_sets_have_the_same_order_in_every_worker(run):
    first, second = run(partial(calls.hash_of, "a")), run(partial(calls.hash_of, "a"))
    assert first == second


def test_the_children_of_a_call_die_with_it(run, tmp_path):
    note = tmp_path / "child"
    assert run(partial(calls.start_a_child_and_hang, str(note)), timeout_s=2.0) == [TIMEOUT]
    assert gone(int(note.read_text()))
    assert not note.with_name("child.end").exists(), "it came to its own end"


def test_the_temporary_files_of_a_killed_worker_are_removed(run, tmp_path):
    note = tmp_path / "file"
    assert run(partial(calls.leave_a_file_and_hang, str(note)), timeout_s=1.0) == [TIMEOUT]
    assert not Path(note.read_text()).parent.exists()


@pytest.mark.parametrize("call", ["write_pid_and_hang", "start_a_child_and_hang"])
def test_workers_and_their_children_die_with_a_trainer_that_is_killed(tmp_path, call):
    note = tmp_path / "worker"
    script = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import threading\nfrom helpers import worker_calls\nfrom functools import partial\n"
        "from grpo_pl.rewards.pool import Pool, Workers\n"
        f"run = partial(Pool('helpers.worker_calls', Workers(timeout_s=300.0)).run, "
        f"[partial(worker_calls.{call}, {str(note)!r})])\n"
        "threading.Thread(target=run).start()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what a killed trainer leaves
    trainer = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        for _ in range(600):
            if note.exists() and note.read_text():
                break
            time.sleep(0.1)
        worker = int(note.read_text())
        assert alive(worker)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    assert gone(worker)
    assert not note.with_name("worker.end").exists(), "it came to its own end"


def test_a_pool_serves_several_threads_and_outlives_the_one_that_started_it(run, pools):
    run(partial(calls.double, 0))
    pools[0].close()
    found: list[list[Outcome]] = []
    threads = [
        threading.Thread(target=lambda: found.append(pools[0].run([partial(calls.double, 4)] * 5)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        thread.join() if thread is threads[0] else None
    for thread in threads:
        thread.join()
    assert found == [[Outcome(8)] * 5] * 3


def test_after_an_interrupt_the_pool_is_right_again(run, pools):
    run(partial(calls.double, 0), processes=1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            pools[0].run([partial(calls.slow_double, 5, 3)])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert pools[0].run([partial(calls.double, 1)]) == [Outcome(2)]


def test_a_megabyte_goes_there_and_back(run):
    assert run(partial(calls.allocate, 1), partial(calls.double, "9" * 2**20)) == [
        Outcome(2**20),
        Outcome("9" * 2**21),
    ]


def test_a_module_that_cannot_be_imported_is_said_in_one_sentence(pools):
    pools.append(Pool("no_such_module", Workers()))
    with pytest.raises(RewardError, match=r"could not import no_such_module \(ModuleNotFoundError"):
        pools[0].run([partial(calls.double, 1)])


def test_a_closed_pool_leaves_no_process(run, pools):
    [session] = run(partial(calls.session))
    pools[0].close()
    assert not psutil.pid_exists(session.value)


def test_a_worker_that_died_while_idle_is_replaced(run, pools):
    [session] = run(partial(calls.session), processes=1)
    os.kill(session.value, signal.SIGKILL)
    assert gone(session.value)
    assert pools[0].run([partial(calls.double, 1)]) == [Outcome(2)]


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"processes": 0}, "processes"),
        ({"retries": -1}, "retries"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"memory_gib": float("inf")}, "memory_gib"),
        ({"on_timeout": float("nan")}, "on_timeout"),
        ({"on_crash": float("inf")}, "on_crash"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(limits, key):
    with pytest.raises(ValueError, match=rf"^{key}=.*: expected "):
        Workers(**limits)


def test_files_of_workers_stay_few(run, pools):
    run(*[partial(calls.kill_myself)] * 3)
    before = len(os.listdir("/proc/self/fd"))
    pools[0].run([partial(calls.kill_myself)] * 6)
    assert len(os.listdir("/proc/self/fd")) == before
    assert Path(f"/proc/{os.getpid()}").exists()
