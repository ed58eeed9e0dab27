"""Wrong config files, numbers, names and folders: each is refused before a model is loaded."""

import re
from pathlib import Path

import pytest
from helpers.commands import OverARun, Refused, command
from helpers.refusals import cases

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
# What stands in the file, and what the sentence has to say.
FILES = {
    "empty": (b"", "is empty; write settings"),
    "blank": (b"\n   \n# nothing\n", "is empty"),
    "a list": (b"- a\n- b\n", r"expected settings such as .*, got \['a', 'b'\]"),
    "a word": (b"hello\n", "got 'hello'"),
    "a number": (b"3\n", "expected settings .*, got 3"),
    "keys that are numbers": (b"1: 2\n", "expected settings"),
    "a tab": (b"model:\n\tkl: null\n", r"is not YAML .* line 2, column 1"),
    "latin-1": ("data: {seed: 1} # caf\xe9".encode("latin-1"), "is not UTF-8 at its byte 21"),
    "UTF-16": ("data: {seed: 1}".encode("utf-16"), "is not UTF-8 at its byte 0"),
    "binary": (bytes(range(256)), "is not (UTF-8|YAML)"),
    "two documents": (b"data: {seed: 1}\n---\ndata: {seed: 2}\n", "single document .* line 2"),
    "a key twice": (b"data: {seed: 1}\ndata: {seed: 2}\n", "'data' stands there twice at line 2, column 1"),
    "an inner key twice": (b"data:\n  seed: 1\n  seed: 2\n", "'seed' stands there twice at line 3"),
    "a date that is none": (b"data: {seed: 2020-13-45}\n", "month must be in 1..12"),
    "brackets in brackets": (b"[" * 5000, "is not YAML .*recursion"),
    "an alias of nothing": (b"data: *nothing\n", "undefined alias 'nothing' at line 1"),
    "a billion laughs": (LAUGHS.encode(), "its aliases name .* values"),
    "an alias of itself": (b"a: &x {b: *x}\n", "its aliases name .* themselves"),
    "a merge with a number": (b"<<: 3\n", "expected a mapping"),
    "a call": (b"model: {kl: !!python/object/apply:os.system ['true']}", "is not YAML .*os.system"),
    "a name": (b"model: {kl: !!python/name:os.system }", "is not YAML .*os.system"),
    "a list of data settings": (b"data: [1, 2]\n", r"data: expected settings, got \[1, 2\]"),
    "null for the trainer": (b"trainer: null\n", "trainer: expected settings, got null"),
    "a job that is a list": (
        b"job: [policy]\n",
        r"job: expected one of policy, reward_model, got \['policy'\]",
    ),
    "an empty section": (b"modle: {}\n", "modle: is empty; write settings into it, or leave it out"),
    "a job that is none": (b"job: polciy\n", "Did you mean policy?"),
    "a subcommand": (b"fit: {trainer: {max_epochs: 1}}\n", "Did you mean trainer.max_epochs?"),
    "another version": (
        b"# grpo_pl==0.0.7\nmodel: {klx: null}\n",
        r"no option model.klx.* \(grpo_pl 0.0.7 wrote .*config.yaml, and this is ",
    ),
    "not a number": (
        b"model: {kl: {class_path: KLInLoss, init_args: {coefficient: .nan}}}",
        "coefficient=nan",
    ),
    "an infinite temperature": (
        b"data: {sampling: {temperature: .inf}}",
        "temperature=inf: expected a finite",
    ),
    "an infinite clip": (b"trainer: {gradient_clip_val: -.inf}", "trainer.gradient_clip_val=-inf"),
    "no number in a list": (
        b"model: {optimizer: {class_path: torch.optim.AdamW, init_args: {betas: [0.9, .nan]}}}",
        "model.optimizer.betas.1=nan: expected a finite number",
    ),
}
ARGUMENTS = {
    "a folder for a config": ("--config {here}", "config .* cannot be read .Is a directory"),
    "a file as a folder": ("--config {here}/file/x.yaml", "cannot be read .Not a directory"),
    "a config without a value": ("--config", "expected one argument"),
    "no iterations": ("--trainer.max_epochs 0", "trainer.max_epochs=0 trains nothing: set it to 1 or more"),
    "no steps": ("--trainer.max_steps 0", "trainer.max_steps=0 trains nothing"),
    "less than no end": ("--trainer.max_epochs=-2", "trainer.max_epochs=-2|max_epochs.*-2"),
    "no micro-batch": (
        "--trainer.accumulate_grad_batches 0",
        "accumulate_grad_batches=0: expected 1 or more",
    ),
    "a negative clip": (
        "--trainer.gradient_clip_val=-1",
        "gradient_clip_val=-1.* expected more than 0, or null",
    ),
    "no validation interval": (
        "--trainer.check_val_every_n_epoch 0",
        "check_val_every_n_epoch=0: expected 1",
    ),
    "no devices": ("--trainer.devices 0", "trainer: .*devices='0'"),
    "devices in words": ("--trainer.devices many", "trainer: .*devices"),
    "no nodes": ("--trainer.num_nodes 0", "trainer: `num_nodes` must be a positive integer, but got 0"),
    "an accelerator that is none": ("--trainer.accelerator gpuu", "trainer: .*accelerator='gpuu'"),
    "a strategy that is none": ("--trainer.strategy ddpp", "trainer: .*strategy='ddpp'"),
    "settings of a short strategy": (
        "--trainer.strategy fsdp2 --trainer.strategy.offload true",
        "trainer.strategy.offload: trainer.strategy has settings only where it names a class",
    ),
    "a duration": ("--trainer.max_time 1h", "trainer: .*duration='1h'"),
    "double precision": ("--trainer.precision 64-true", "set it to 32-true"),
    "half precision": ("--trainer.precision bf16-true", "set it to bf16-mixed"),
    "a negative seed": ("--seed_everything=-1", "seed_everything=-1: expected 0 to 4294967295"),
    "a large seed": ("--seed_everything 99999999999", "seed_everything=99999999999: expected 0 to"),
    "a negative learning rate": ("--model.optimizer.lr=-1", "model.optimizer: Invalid learning rate: -1"),
    "a negative decay": ("--model.optimizer.weight_decay=-1", "model.optimizer: Invalid weight_decay"),
    "betas above 1": ("--model.optimizer.betas [2,3]", "model.optimizer: Invalid beta parameter at index 0"),
    "a schedule without a period": (
        "--model.lr_scheduler torch.optim.lr_scheduler.CosineAnnealingLR --model.lr_scheduler.T_max 0",
        "model.lr_scheduler: .*modulo by zero",
    ),
    "a schedule by a metric": (
        "--model.lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau",
        "model.lr_scheduler: ReduceLROnPlateau follows a metric",
    ),
    "a negative temperature": (
        "--data.sampling.temperature=-1",
        "data.sampling.temperature=-1.0: expected more",
    ),
    "no validation tokens": ("--data.val_max_tokens 0", "data.val_max_tokens=0: expected 1 or more, or null"),
    "negative validation samples": ("--data.val_samples=-1", "data.val_samples=-1: expected 0 or more"),
    "no responses": ("--data.group_size 0", "data.group_size=0: expected 1 or more"),
    "a negative KL": ("--model.kl.coefficient=-1", "model.kl.coefficient=-1.0: expected 0 or more"),
    "a negative clip of the ratio": (
        "--model.loss.clip_high=-1",
        "model.loss.clip_high=-1.0: expected 0 or more",
    ),
    "a number as a reward's name": (
        "--model.rewards '{1: LastNumber}'",
        "model.rewards: expected a name, got 1: put it in quotes",
    ),
    "a comma in a reward's name": (
        "--model.rewards '{\"a,b\": LastNumber}'",
        "'a,b' cannot be the name of a metric",
    ),
    "an empty verifier's name": ("--model.verifiers '{\"\": LastNumber}'", "model.verifiers: '' cannot be"),
    "null for a reward": (
        "--model.rewards '{a: null}'",
        "model.rewards.a: null removes an entry, and there is only digit: leave it out",
    ),
    "a number for a function": (
        "--model.rewards '{a: {class_path: Function, init_args: {function: math.pi}}}'",
        "expected the import path of a function or a class, and math.pi is neither",
    ),
    "a module that fails": (
        "--model.rewards '{a: {class_path: Function, init_args: {function: failing_module.f}}}'",
        r"failing_module.f: its module cannot be imported \(RuntimeError: not today\)",
    ),
    "a module that exits": (
        "--model.rewards '{a: {class_path: Function, init_args: {function: exiting_module.f}}}'",
        r"exiting_module.f: its module cannot be imported \(SystemExit: 7\)",
    ),
    "a pattern": (
        "--model.rewards.digit.pattern '[['",
        "model.rewards.digit.pattern='.*': expected a regular expression",
    ),
    "a judge's address": (
        "--model.rewards '{a: {class_path: Judge, init_args: {url: \"http://[::1\", model: m}}}'",
        "model.rewards.*url=http://.*: expected one such as",
    ),
    "a server's port": (
        "--data.engine ServerEngine --data.engine.urls '[\"http://127.0.0.1:99999\"]'",
        "data.engine.urls=.*: expected one or more different addresses",
    ),
    "the same server twice": (
        '--data.engine ServerEngine --data.engine.urls \'["http://a", "http://a/"]\'',
        "data.engine.urls=.*different addresses",
    ),
    "no reward model": (
        "--model.rewards '{rm: {class_path: OutcomeRewardModel, init_args: {pretrained: /no/such}}}'",
        "pretrained=/no/such is not a folder",
    ),
    "a file for the run": ("--trainer.default_root_dir {here}/file", "file is a file; name a folder"),
    "a file above the run": ("--trainer.default_root_dir {here}/file/run", "file is a file; name a folder"),
    "no folder for the run": ("--trainer.default_root_dir ''", "default_root_dir=: expected a folder"),
    "a bucket for the run": ("--trainer.default_root_dir s3://a/b", "expected a folder of this machine"),
    "a name that is too long": (
        "--trainer.default_root_dir {here}/" + "x" * 300,
        "is not a folder .File name too long",
    ),
    "a file for checkpoints": ("--checkpoint.dirpath {here}/file", "checkpoint.dirpath=.*file is a file"),
    "rollouts that are none": (
        "--data.val null --data.engine ReplayEngine --data.engine.path {here}/file",
        "data.engine.path: .*file is not a file of rollouts",
    ),
}
COMMANDS = {
    "": "no command is given; expected one of fit, validate, plan, submit, check-invariance, doctor, "
    "rollout, ablate, compare",
    "frobnicate": "there is no command 'frobnicate'; expected one of fit",
    "trian": "there is no command 'trian'",
    "validate": "model.policy, .*data.engine: no value is given; set it in a --config file",
    "fit extra": "there is no option extra",
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_config_file_is_named_with_its_line(
    name: str, refused: Refused, over_a_run: OverARun, tmp_path: Path
) -> None:
    content, sentence = FILES[name]
    (tmp_path / "config.yaml").write_bytes(content)
    assert re.search(sentence.replace("?", r"\?"), refused(over_a_run, "--config {here}/config.yaml"))


QUICK = (
    *("no iterations", "no micro-batch", "a negative clip", "devices in words", "a strategy that is none"),
    *(
        "settings of a short strategy",
        "a negative seed",
        "a negative learning rate",
        "a schedule by a metric",
    ),
    *(
        "a negative temperature",
        "negative validation samples",
        "a comma in a reward's name",
        "null for a reward",
    ),
    *("a number for a function", "a module that fails", "a module that exits", "a judge's address"),
    *("a server's port", "no reward model", "a file for the run", "a file for checkpoints"),
    *("rollouts that are none", "no folder for the run"),
)


@pytest.mark.parametrize("name", cases(ARGUMENTS, *QUICK))
def test_a_wrong_setting_is_refused_before_a_model_is_loaded(
    name: str, refused: Refused, over_a_run: OverARun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, sentence = ARGUMENTS[name]
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "failing_module.py").write_text("raise RuntimeError('not today')")
    (tmp_path / "exiting_module.py").write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    assert re.search(sentence, refused(over_a_run, arguments))


@pytest.mark.parametrize("words", COMMANDS)
def test_a_wrong_command_names_the_right_ones(words: str, refused: Refused) -> None:
    assert re.search(COMMANDS[words], refused(command, *words.split()))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    from grpo_pl.config.files import read_config

    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfdata: {seed: 3}")
    assert read_config(str(tmp_path / "config.yaml")) == {"data": {"seed": 3}}
