import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest
import yaml
from helpers.commands import command, process
from helpers.repository import ROOT
from helpers.run_results import column, rows, untimed

from grpo_pl.__main__ import main
from grpo_pl.config.sentences import explain

TINY = ROOT / "configs" / "tiny.yaml"


def boom(**_):
    raise KeyError("no such thing")


def boom_on_digits(*, response, **_):
    if any(character.isdigit() for character in response):
        raise KeyError("no such thing")
    return len(response)


def reward(function, **settings):
    inside = {"function": f"{__name__}.{function}", **settings}
    return json.dumps({"*": None, "mine": {"class_path": "Function", "init_args": inside}})


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """A folder with everything that one can get wrong."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    shutil.copytree(tiny_model, folder / "no_template")
    (folder / "no_template" / "chat_template.jinja").unlink()
    (folder / "column.jsonl").write_text('{"question": "What?", "result": "4"}\n')
    (folder / "colours.jsonl").write_text('{"question": "Which colour?", "answer": "blue"}\n')
    (folder / "trainer.yaml").write_text("trainer: {max_epoch: 3}")
    (folder / "group.yaml").write_text("modle: {kl: null}")
    (folder / "component.yaml").write_text(
        "model: {advantage: {class_path: GroupRelative, init_args: {scal: none}}}"
    )
    (folder / "broken.yaml").write_text("model: {kl: null\ndata: [")
    return folder


# Each line: what is wrong, the arguments, and what the sentence has to name: the key, what was got, the fix.
PARSED = {
    "an option": ("--trainer.max_epoch 3", "trainer.max_epoch. Did you mean trainer.max_epochs?"),
    "a top option": ("--pretraind x", "Did you mean pretrained?"),
    "an option of a group": (
        "--data.sampling.min_p 0.1",
        "has max_tokens, temperature, top_k, top_logprobs, top_p",
    ),
    "an option of a component": ("--model.advantage.scal none", "Did you mean model.advantage.scale?"),
    "an option of a reward": (
        "--model.rewards.digit.init_args.patern x",
        "Did you mean model.rewards.digit.pattern?",
    ),
    "an option of a callback": ("--checkpoint.every_n_epoch 2", "Did you mean checkpoint.every_n_epochs?"),
    "an option of the optimizer": (
        "--model.optimizer.learning_rate 1",
        "model.optimizer has amsgrad, .* lr,",
    ),
    "a class": ("--model.advantage GroupRelativ", "model.advantage: .*Did you mean GroupRelative?"),
    "a class of another kind": (
        "--data.engine LastNumber",
        "data.engine: expected one of DatasetEngine, .*ServerEngine, VLLMEngine, got LastNumber$",
    ),
    "a class or null": ("--model.kl KLInLos", "model.kl: .*Did you mean KLInLoss?"),
    "an engine": (
        "--data.engine VLLM",
        "data.engine: expected one of DatasetEngine, InProcessEngine, OverlappedEngine, ReplayEngine, "
        "ServerEngine, VLLMEngine, got VLLM",
    ),
    "a reward": ("--model.rewards.digit LastNumbr", "model.rewards.digit: .*Did you mean LastNumber?"),
    "rewards": (
        "--model.rewards '{a: LastNumbr}'",
        "model.rewards.a: .*Did you mean LastNumber?",
    ),
    "an optimizer": ("--model.optimizer AdamWW", "model.optimizer: .* torch.optim.AdamW, got AdamWW"),
    "a key in YAML": ("--config {files}/trainer.yaml", "trainer.max_epoch. Did you mean trainer.max_epochs?"),
    "a group in YAML": ("--config {files}/group.yaml", "modle.kl. Did you mean model.kl?"),
    "a component's key in YAML": ("--config {files}/component.yaml", "Did you mean model.advantage.scale?"),
    "a bracket in YAML": ("--config {files}/broken.yaml", "line 2, column 5"),
    "a config file": (
        f"--config {ROOT}/configs/tinny.yaml",
        "no file .*tinny.yaml. Did you mean .*/tiny.yaml?",
    ),
    "a word for a number": ("--data.group_size four", "data.group_size: expected int, got four"),
    "a fraction": ("--data.group_size 2.5", "data.group_size: expected int, got 2.5"),
    "a word for a number or null": (
        "--trainer.max_epochs three",
        "max_epochs: expected int or null, got three",
    ),
    "a component's number": ("--model.kl.coefficient big", "model.kl.coefficient: expected float, got big"),
    "the learning rate": ("--model.optimizer.lr fast", "model.optimizer.lr: expected float, got fast"),
    "a choice": ("--data.long_prompts dropp", "data.long_prompts: expected one of .*Did you mean drop?"),
    "a component's choice": (
        "--model.advantage.scale x",
        "scale: expected one of 'group', 'batch', 'none', got x",
    ),
    "the precision": ("--trainer.precision fp17", "trainer.precision: .*'bf16-mixed'.* got fp17"),
    "a missing argument": ("--data.train JSONL", "data.train.path: no value is given"),
    "a missing function": (
        f"--model.rewards.digit Function --model.rewards.digit.init_args.function {__name__}.nope",
        "model.rewards.digit.function: module 'test_cli' has no attribute 'nope'",
    ),
}
COMBINED = {
    "a group of one": ("--data.group_size 1", "data.group_size=1: .* set data.group_size to 2"),
    "minibatches": ("--data.minibatches 3", "data.minibatches=3 does not divide the 16 responses"),
    "micro-batches": ("--trainer.accumulate_grad_batches 9", "accumulate_grad_batches=9 is more than the 8"),
    "max_steps": ("--trainer.max_steps 3", "trainer.max_steps=3 ends inside .* set it to 4"),
    "val_check_interval": ("--trainer.val_check_interval 0.5", "set trainer.check_val_every_n_epoch"),
    "limit_train_batches": ("--trainer.limit_train_batches 2", "set trainer.max_epochs instead"),
    "KL without reference": ("--model.reference null", "model.kl needs a reference: set model.reference"),
    "GAE without critic": (
        "--model.advantage GAE",
        "needs a critic: set model.critic, for instance to ValueHead",
    ),
    "a critic without GAE": ("--model.critic ValueHead", "model.critic is set .* set model.critic to null"),
    "rewards without weight": (
        "--model.rewards.digit.init_args.weight 0",
        "model.rewards has no .* weight .* add",
    ),
    "no rewards": ("--model.rewards {}", "model.rewards has no reward"),
    "a missing column": (
        "--data.train JSONL --data.train.path {files}/column.jsonl",
        "column.jsonl: line 1 has no column 'answer'; set `answer` to one of .*'question', 'result'",
    ),
    "a missing file": (
        "--data.train JSONL --data.train.path {files}/no.jsonl",
        "no.jsonl: there is no such file",
    ),
    "answers that are no numbers": (
        "--data.train JSONL --data.train.path {files}/colours.jsonl --model.rewards '{correct: LastNumber}'",
        "model.rewards.correct: LastNumber can read none of the answers of data.train .*'blue'.* check",
    ),
    "long prompts": ("--data.max_prompt_tokens 8", "tokens, more than 8; raise data.max_prompt_tokens"),
    "the context": (
        "--data.max_prompt_tokens 250",
        "context of 256: make data.max_prompt_tokens and data.sampling.max_tokens .* add up to at most 256",
    ),
    "temperature 0": ("--data.sampling.temperature 0", "data.sampling.temperature=0 .* set it above 0"),
    "a policy that is none": ("--model.policy ValueHead", "model.policy builds no .* set it to CausalLM"),
    "a checkpoint": ("--ckpt_path {files}/no.ckpt", "ckpt_path=.*no.ckpt: there is no such file"),
}
PRETRAINED = {
    "no model": ("", "say --pretrained FOLDER_OR_HUB_NAME"),
    "an empty folder": ("--pretrained {files}/empty", "empty is a folder without config.json: give"),
    "a file": ("--pretrained {files}/file", "file is not a folder: give a Hugging Face model folder"),
    "a path to nothing": ("--pretrained /no/such/model", "/no/such/model is not a folder: give"),
    "no chat template": (
        "--pretrained {files}/no_template",
        "data.format.use_chat_template .* set it to false",
    ),
}
TABLE = [
    pytest.param(f"--pretrained TINY {arguments}", sentence, id=name)
    for name, (arguments, sentence) in (PARSED | COMBINED).items()
] + [pytest.param(arguments, sentence, id=name) for name, (arguments, sentence) in PRETRAINED.items()]


@pytest.mark.parametrize(("arguments", "sentence"), TABLE)
def test_a_mistake_is_answered_by_its_key_and_the_fix(
    arguments, sentence, files, tiny_model, tmp_path, refused
):
    words = shlex.split(arguments.replace("{files}", str(files)).replace("TINY", str(tiny_model)))
    run = ("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run")
    assert re.search(sentence.replace("?", r"\?"), refused(command, *run, *words))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_without_a_config_every_component_that_is_missing_is_named(refused):
    text = refused(command, "fit")
    for key in ("policy", "rewards", "advantage", "loss", "aggregation"):
        assert f"model.{key}" in text
    assert "--config" in text


def test_the_commands_are_fit_and_validate(refused):
    for arguments in ([], ["fti"]):
        text = refused(command, *arguments)
        assert "fit" in text
        assert "validate" in text
        assert "predict" not in text


def test_a_message_that_is_not_understood_is_still_one_line():
    assert explain("Something\n  - quite\n\nnew", {}) == "Something quite new"


def test_a_reward_that_raises_shows_the_sample(fit, refused):
    text = refused(fit, "--model.rewards", reward("boom"))
    for part in (
        "'mine'",
        "KeyError",
        "no such thing",
        "What is ",
        "Reply with just the number",
        "on_error: abstain",
    ):
        assert part in text


def test_a_reward_that_abstains_where_it_fails_does_not_stop_the_run(fit):
    run = fit("--model.rewards", reward("boom_on_digits", on_error="abstain"), "--samples.every", 0)
    assert column(run, "iteration") == [0, 1, 2, 3]
    assert all(0 < row["rewards/mine_abstained"] < 1 for row in rows(run)[1:])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        unscored = any(character.isdigit() for character in sample["response"])
        assert (sample["reward"] is None) == unscored
        assert not (unscored and sample["advantage"])


def test_a_process_ends_with_code_2_and_one_sentence():
    done = process("-m", "grpo_pl", "fit", "--config", TINY, "--trainer.epochs", 3)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"grpo_pl: error: there is no option trainer.epochs. Did you mean trainer.\w+_epochs\?\n", done.stderr
    )


@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_leave_the_core_to_others_unless_told_otherwise(said, spins):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import sys, os, grpo_pl; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | said, capture_output=True, text=True
    )
    assert done.stdout.split() == [spins, "False"], done.stderr


def test_a_hub_name_that_cannot_be_reached_is_named(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ("--config", TINY, "--pretrained", "nobody/none", "--trainer.default_root_dir", tmp_path)
    sentence = refused(command, "fit", *words)
    assert re.search("pretrained=nobody/none could not be loaded .*: give a complete .* folder", sentence)


def test_a_cache_beyond_the_memory_is_refused_before_vllm_is_imported(tiny_model, tmp_path):
    code = """
        import sys
        from grpo_pl.__main__ import main
        try:
            main(sys.argv[1:])
        finally:
            print("vllm" in sys.modules)
    """
    arguments = ["--config", TINY, "--pretrained", tiny_model, "--trainer.default_root_dir", tmp_path]
    engine = ["--data.engine", "VLLMEngine", "--data.engine.kv_cache_gib", 100000]
    done = process("-c", textwrap.dedent(code), "fit", *arguments, *engine)
    assert done.returncode == 2
    assert re.fullmatch(
        r"grpo_pl: error: data.engine.kv_cache_gib=100000 is more than .*: set it lower\n", done.stderr
    )
    assert done.stdout.splitlines()[-1] == "False"


# ------------------------------------------------------------------------------------------------ what works


def printed_config(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(TINY), *map(str, arguments), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_shows_the_whole_config(capsys):
    config = printed_config(capsys, "--pretrained", "some/model")
    assert config["pretrained"] == "some/model"
    assert config["data"]["group_size"] == 4
    assert config["data"]["update_epochs"] == 1
    assert config["model"]["advantage"]["class_path"].endswith("GroupRelative")


def test_a_component_of_another_class_starts_from_its_own_defaults(capsys):
    """Not from the bounds and coefficients of the one before, which mean something else there."""
    before = ("--model.loss.clip_low", 0.1, "--model.kl.coefficient", 0.3, "--model.policy.chunk_tokens", 64)
    config = printed_config(capsys, *before)["model"]
    assert config["loss"]["init_args"]["clip_low"] == 0.1
    config = printed_config(capsys, *before, "--model.loss", "GSPO", "--model.kl", "KLInReward")["model"]
    assert (config["loss"]["init_args"]["clip_low"], config["loss"]["init_args"]["clip_high"]) == (3e-4, 4e-4)
    assert config["kl"]["init_args"]["coefficient"] == 0.05
    again = ("--model.loss", "GSPO", "--model.loss.clip_low", 0.01)
    assert printed_config(capsys, *before, *again)["model"]["loss"]["init_args"]["clip_low"] == 0.01


def test_what_means_the_same_to_another_class_is_kept(capsys):
    config = printed_config(capsys, "--model.policy.chunk_tokens", 64, "--model.policy", "LoRA")["model"]
    assert config["policy"]["class_path"].endswith("LoRA")
    assert config["policy"]["init_args"]["chunk_tokens"] == 64


def test_later_configs_and_options_win(capsys, tmp_path):
    (tmp_path / "one.yaml").write_text("data: {group_size: 8, minibatches: 4}\nmodel: {kl: null}")
    (tmp_path / "two.yaml").write_text("data: {group_size: 16}")
    overlays = ("--config", tmp_path / "one.yaml", "--config", tmp_path / "two.yaml")
    config = printed_config(capsys, *overlays, "--data.minibatches", 1)
    assert config["data"]["group_size"] == 16
    assert config["data"]["minibatches"] == 1
    assert config["data"]["prompts_per_iteration"] == 4
    assert config["model"]["kl"] is None


def test_components_go_by_their_short_names_and_their_arguments_by_theirs(capsys):
    config = printed_config(capsys, "--model.advantage.scale", "none")
    assert config["model"]["advantage"]["class_path"].endswith(".GroupRelative")
    assert config["model"]["advantage"]["init_args"]["scale"] == "none"
    config = printed_config(capsys, "--model.advantage", "GAE", "--model.advantage.lam", 0.9)
    assert config["model"]["advantage"]["class_path"].endswith(".GAE")
    assert config["model"]["advantage"]["init_args"]["lam"] == 0.9


def test_a_runs_config_runs_again_to_the_same_config_and_the_same_metrics(fit):
    run = fit("--samples.every", 0)
    config, metrics = (run / "config.yaml").read_bytes(), rows(run)
    main(["fit", "--config", str(run / "config.yaml")])
    assert (run / "config.yaml").read_bytes() == config
    assert rows(run.with_name("run.1")) == metrics
    assert untimed(run) == untimed(run.with_name("run.1"))
