import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from grpo_pl.rewards.base import score_samples
from grpo_pl.rewards.code_tests import CodeTests
from grpo_pl.rewards.pool import Workers
from grpo_pl.rewards.sandbox import testing
from grpo_pl.rewards.sandbox.box import Box, Program, SandboxError, refusal
from grpo_pl.rewards.sandbox.kernel import prctl
from grpo_pl.types import Prompt, Sample

ISOLATIONS = [name for name in ("namespaces", "landlock") if refusal(name) is None]
SECRET = "correct horse battery staple"
DONE = [{"input": "", "output": "done"}]
A_MINUTE = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.fixture(params=["namespaces", "landlock"])
def isolation(request) -> str:
    if request.param not in ISOLATIONS:
        pytest.skip(f"this machine grants no {request.param}: {refusal(request.param)}")
    return request.param


def sample(program: str, tests: object) -> Sample:
    prompt = Prompt(token_ids=[1], text="question", answer="", metadata={"tests": tests})
    response = f"So:\n```python\n{program}\n```\n"
    return Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)


def reward(isolation: str = ISOLATIONS[0], test_timeout_s: float = 4.0, **kwargs: object) -> CodeTests:
    workers = Workers(processes=1, timeout_s=60.0, memory_gib=0.5)
    return CodeTests(isolation=isolation, workers=workers, test_timeout_s=test_timeout_s, **kwargs)


def score(program: str, tests: object, isolation: str = ISOLATIONS[0], **kwargs: object) -> float | None:
    return reward(isolation, **kwargs).score([sample(program, tests)])[0]


# ----------------------------------------------------------------------------------------- programs and tests


def test_a_program_that_prints_what_is_right_passes(isolation):
    tests = [{"input": "2 3\n", "output": "5"}, {"input": "10 -4", "output": "6 \n\n"}]
    assert score("print(sum(map(int, input().split())))", tests, isolation) == 1.0
    assert score("print(5)", tests, isolation) == 0.0
    assert score("print(5)", tests, isolation, partial_credit=True) == 0.5
    assert score("print(sum(map(int, input().split())))\nraise SystemExit(3)", tests, isolation) == 0.0


def test_assertions_see_what_the_program_defines(isolation):
    tests = ["assert add(1, 2) == 3", "assert add([1], [2]) == [1, 2]", "assert add('é', 'b') == 'éb'"]
    assert score("def add(a, b): return a + b", tests, isolation) == 1.0
    assert score("def add(a, b): return 3", tests, isolation) == 0.0
    assert score("def add(a, b): return 3", tests, isolation, partial_credit=True) == pytest.approx(1 / 3)
    assert score("def plus(a, b): return a + b", tests, isolation) == 0.0


USUAL = Path(__file__).with_name("programs.txt").read_text().split("### ")[1:]


@pytest.mark.parametrize(("program", "test"), [part.split("--- its test\n") for part in USUAL])
def test_what_usual_tests_do_with_a_program_works(program, test):
    _, program = program.split("\n", 1)
    assert score(program, [test]) == 1.0


def test_the_last_closed_python_block_is_the_program():
    fence = "```"
    assert (
        testing.last_program(f"{fence}py\na\n{fence}\n{fence}Python\nb\n{fence}\n{fence}text\nc\n{fence}")
        == "b\n"
    )
    assert testing.last_program(f"{fence}\na\n{fence}\n{fence}python\nb\n") == "a\n"
    assert testing.last_program("print(1)") is None
    assert CodeTests().extract(f"{fence}\na\n{fence}") == "a\n"
    no_program = Sample(prompt=sample("", DONE).prompt, response="done", response_tokens=1, truncated=False)
    assert reward().score([no_program]) == [0.0]


@pytest.mark.parametrize("tests", [None, [], "", "no json", "{}", [1], [{"input": "1"}], 5, [["assert 1"]]])
def test_without_readable_tests_it_abstains(tests):
    assert score("print('done')", tests) is None
    assert not reward().can_score(sample("", tests).prompt)


def test_tests_may_be_json_text_and_stand_in_the_answer():
    prompt = Prompt(token_ids=[1], text="", answer=json.dumps(DONE))
    done = Sample(prompt=prompt, response="```\nprint('done')\n```", response_tokens=1, truncated=False)
    assert reward(tests=None).score([done]) == [1.0]
    assert score("print('done')", json.dumps(DONE)) == 1.0


def test_a_test_may_not_take_longer_than_all_of_them():
    with pytest.raises(
        ValueError, match=r"^test_timeout_s=90.0: expected more than 0 and at most workers\.time"
    ):
        CodeTests(test_timeout_s=90.0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root has a capability to lose")
def test_what_the_machine_does_not_grant_is_refused_with_the_key_to_change():
    """As root without CAP_SYS_ADMIN, which is what a container usually gives."""
    script = (
        "from grpo_pl.rewards.sandbox.kernel import prctl\nfrom grpo_pl.rewards.code_tests import CodeTests\n"
        "prctl(24, 21)\n"
        "CodeTests(isolation='landlock')\n"
        "try: CodeTests()\nexcept ValueError as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == (
        "isolation=namespaces is not granted by this machine ([Errno 1] unshare: Operation not permitted): "
        "set it to landlock, which allows less, or run elsewhere\n"
    )


# -------------------------------------------------------------------------------------------- the attack list

ATTACKS, HACKS = (
    dict(part.split("\n", 1) for part in Path(__file__).with_name(name).read_text().split("### ")[1:])
    for name in ("attacks.txt", "hacks.txt")
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    tmp_path.chmod(0o777)
    path.chmod(0o666)
    return path


@pytest.fixture
def trainer() -> Iterator[psutil.Process]:
    """What a program takes for the trainer, and may harm."""
    with psutil.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module", autouse=True)
def _adopt_orphans() -> None:
    """What a program leaves behind becomes a child of this process, so that it is found."""
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def boxed_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[-1:] == ["main.py"]:
                found.append(process)
    return found


HANGS = {"loop for a minute", "sleep", "stop", "ignore all signals"}
"""They end at their deadline alone, however short it is."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attack_is_contained_and_scored_as_failure(attack, isolation, secret, trainer):
    clone, handle = {"x86_64": (56, 303), "aarch64": (220, 264)}[os.uname().machine]
    names = {"SECRET_PATH": str(secret), "TRAINER_PID": trainer.pid}
    names |= {"CLONE_NUMBER": clone, "HANDLE_NUMBER": handle}
    program = ATTACKS[attack] + "print('done')"
    for name, value in names.items():
        program = program.replace(name, repr(value))
    stat, limits = secret.stat(), trainer.rlimit(psutil.RLIMIT_CPU)
    assert score(program, DONE, isolation, test_timeout_s=1.0 if attack in HANGS else 4.0) == 0.0
    assert boxed_processes() == []
    assert secret.read_text() == SECRET
    assert (secret.stat().st_mode, secret.stat().st_mtime, secret.stat().st_nlink) == (
        stat.st_mode,
        stat.st_mtime,
        1,
    )
    assert os.listdir(secret.parent) == ["secret"]
    assert trainer.is_running()
    assert trainer.status() == psutil.STATUS_SLEEPING
    assert trainer.rlimit(psutil.RLIMIT_CPU) == limits
    assert score("print('done')", DONE, isolation) == 1.0


@pytest.mark.parametrize("hack", HACKS)
def test_a_program_that_tampers_with_its_tests_fails_them(hack, isolation):
    assert score(HACKS[hack], ["assert f(2) == 736251"], isolation) == 0.0
    assert boxed_processes() == []


def test_the_environment_of_the_trainer_is_not_there(isolation, monkeypatch):
    monkeypatch.setenv("API_KEY", SECRET)
    program = "import os\nprint(sorted(set(os.environ) - {'LC_CTYPE'}))"
    assert score(program, [{"input": "", "output": "['PYTHONHASHSEED']"}], isolation) == 1.0


def test_sets_have_the_same_order_in_every_run(isolation):
    order = "print(list(set('abcdefghijklmnopqrstuvwxyz')))"
    environment = {"PYTHONHASHSEED": "0"}
    expected = subprocess.run([sys.executable, "-c", order], env=environment, capture_output=True, text=True)
    assert score(order, [{"input": "", "output": expected.stdout}], isolation) == 1.0


def test_what_a_program_writes_is_gone_with_it():
    program = (
        "import os\nprint(os.listdir('.'), len(os.listdir('/tmp')))\nopen('mine', 'w').write('x' * 10**6)"
    )
    if ISOLATIONS[0] != "namespaces":
        pytest.skip("a program may write in namespaces alone")
    assert score(program, [{"input": "", "output": "['main.py'] 1"}] * 2) == 1.0


def test_a_worker_that_is_killed_takes_its_programs_with_it(isolation):
    workers = Workers(processes=1, timeout_s=2.0, memory_gib=0.5, on_timeout=-1.0)
    endless = CodeTests(isolation=isolation, workers=workers, test_timeout_s=1.9)
    scored = score_samples({"tests": endless}, [sample(A_MINUTE, DONE * 3)])
    assert scored.by_name["tests"] in ([-1.0], [0.0])  # the first failed test may end it just before
    many = CodeTests(isolation=isolation, workers=workers, test_timeout_s=1.9, partial_credit=True)
    assert many.score([sample(A_MINUTE, DONE * 3)]) == [-1.0]
    assert many.failures["timeouts"] == 1
    for _ in range(50):
        if not boxed_processes():
            break
        time.sleep(0.1)
    assert boxed_processes() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_gets_the_same_box(isolation):
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("there is no interpreter that every user may run")
    script = (
        f"import sys, os; sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "sys.dont_write_bytecode = True\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "from grpo_pl.rewards.sandbox.box import Box\nfrom grpo_pl.rewards.sandbox import testing\n"
        f"box = Box({isolation!r}, 2**29, 2**24)\n"
        "right = lambda program: testing.score(f'```\\n{program}\\n```', "
        "[dict(input='', output='done')], box, 5.0, False)\n"
        "print(right(\"print('done')\"), right(\"import os; os.fork(); print('done')\"),"
        " right(\"open('/etc/passwd'); print('done')\"), right(\"x = bytearray(2**30); print('done')\"))"
    )
    ended = subprocess.run([python, "-c", script], cwd="/", capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["1.0", "0.0", "0.0", "0.0"], ended.stderr


def test_a_box_that_cannot_be_built_is_an_error_and_no_wrong_answer():
    box = Box("namespaces", memory_bytes=2**29, disk_bytes=-1)
    with (
        Program(
            box, {"main.py": ""}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout_s=5.0
        ) as program,
        pytest.raises(SandboxError),
    ):
        program.wait()


def test_sixteen_programs_are_scored_at_once(isolation):
    assert reward(isolation).score([sample("print('done')", DONE)] * 16) == [1.0] * 16
