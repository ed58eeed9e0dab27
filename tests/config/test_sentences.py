"""A mistake in a setting is answered with its whole key, entry and index included, and with what to write."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Refused
from helpers.repository import ROOT

from grpo_pl.config import cli

TINY = str(ROOT / "configs" / "tiny.yaml")
REWARDS = (
    "CodeTests, EnvironmentReward, EnvironmentSuccess, ExactMatch, Format, Function, GroupLength, Judge, "
    "LastNumber, LengthPenalty, MathAnswer, OutcomeRewardModel, ProcessRewardModel, SoftOverlong, "
    "StepPattern, TaskScore, WorkerFunction"
)
VERIFIERS = "CodeTests, EnvironmentSuccess, ExactMatch, LastNumber, MathAnswer, TaskScore"
LOSSES = "CISPO, ClipCov, ClippedSurrogate, DPPO, GMPO, GSPO, KLCov, OffPolicyMask, Reinforce, SAPO, VESPO"
ENGINES = "DatasetEngine, InProcessEngine, OverlappedEngine, ReplayEngine, ServerEngine, VLLMEngine"
PLAYS = "Calculator, GuessTheNumber, Gymnasium, OpenEnv, SkyRLGym, TextArena, Tools, TryAgain, Verifiers"
ALARMS = "AllTruncated, EntropyCollapse, KLExplosion, MismatchGrowth, NoSignal, RewardHacking"
NO_VALUE = "no value is given; set it in a --config file or on the command line"
SETTINGS = "expected settings, or a file with them, got"
RAISES = "raises_on_import.X: its module cannot be imported (RuntimeError: not today)"
IN_MAPPINGS = {
    "--model.rewards.mine Function": f"model.rewards.mine.function: {NO_VALUE}",
    "--model.rewards '{mine: Function}'": f"model.rewards.mine.function: {NO_VALUE}",
    "--model.rewards.mine Judge": f"model.rewards.mine.url, model.rewards.mine.model: {NO_VALUE}",
    "--model.rewards.mine Function --model.rewards.mine.functon x": "there is no option "
    "model.rewards.mine.functon. Did you mean model.rewards.mine.function?",
    "--model.rewards '{digit: {class_path: Format, init_args: {patern: x}}}'": "there is no option "
    "model.rewards.digit.patern. Did you mean model.rewards.digit.pattern?",
    "--model.rewards.digit.weight x": "model.rewards.digit.weight: expected float, got x",
    "--model.rewards.digit.weight nan": "model.rewards.digit.weight: expected float, got nan",
    "--model.rewards '{a: LastNumber, b: {class_path: LastNumber, init_args: {weight: x}}}'": (
        "model.rewards.b.weight: expected float, got x"
    ),
    "--model.rewards.digit.on_error abstai": "model.rewards.digit.on_error: expected one of 'raise', "
    "'abstain', got abstai. Did you mean abstain?",
    "--model.rewards.digit.isolation nope": "there is no option model.rewards.digit.isolation; "
    "model.rewards.digit has full_match, on_error, opened, pattern, weight",
    "--model.rewards.digit.init_args 3": "model.rewards.digit.init_args: expected settings, got 3",
    "--model.rewards.a LastNumbr": f"model.rewards.a: expected one of {REWARDS}, got LastNumbr. "
    "Did you mean LastNumber?",
    "--model.rewards.a no_such_module.X": "model.rewards.a: No module named 'no_such_module'",
    "--model.rewards.a.weight 3": "model.rewards.a.weight: model.rewards.a names no class; "
    f"set model.rewards.a to one of {REWARDS} first",
    "--model.rewards '{a: {class_path: LastNumber, weight: 3}}'": "model.rewards.a.weight: "
    "the settings of a class stand below its init_args; write it there",
    "--model.rewards '{a: {class_path: Function, init_args: {function: Nope}}}'": (
        "model.rewards.a.function: expected the import path of a function, got Nope"
    ),
    "--model.verifiers.v Nope": f"model.verifiers.v: expected one of {VERIFIERS}, got Nope",
    "--model.verifiers '{v: Format}'": f"model.verifiers.v: expected one of {VERIFIERS}, got Format",
    "--model.terms.x Nope": "model.terms.x: expected one of CISPO, ClipCov, ClippedSurrogate, "
    "ClippedValueLoss, DPPO, EntropyBonus, GMPO, GSPO, KLCov, KLInLoss, KLInReward, OffPolicyMask, "
    "PositiveNLL, Reinforce, SAPO, ScoreCentering, TeacherKL, VESPO, got Nope",
}
IN_LISTS = {
    "--model.masks '[{class_path: WithoutTruncated, init_args: {x: 1}}]'": (
        "there is no option model.masks.0.x"
    ),
    "--model.masks '[WithoutTruncated, Nope]'": "model.masks.1: expected one of TopEntropy, "
    "WithoutTruncated, got Nope",
    "--model.masks '[WithoutTruncated]' --model.masks+ TopEntrpy": "model.masks.1: expected one of "
    "TopEntropy, WithoutTruncated, got TopEntrpy. Did you mean TopEntropy?",
    "--model.masks.1.share 3": "model.masks.1.share: an entry of a list has no option; write the list, "
    "as --model.masks '[...]'",
    "--model.masks '[WithoutTruncated]' --model.masks.1.share 3": "model.masks.1.share: an entry of a list "
    "has no option; write the list, as --model.masks '[...]'",
    "--model.masks.share 3": "model.masks.share: model.masks is null; set model.masks to a list such as "
    "[TopEntropy] first",
    "--model.optimizer.betas '[0.9, x]'": "model.optimizer.betas.1: expected float, got x",
    "--model.optimizer.betas '[0.9]'": "model.optimizer.betas: expected a list of 2 values, got [0.9]",
    "--data.engine ServerEngine --data.engine.urls '[3]'": "data.engine.urls.0: expected str, got 3",
    "--data.engine ServerEngine --data.engine.urls.0 x": "data.engine.urls.0: an entry of a list has no "
    "option; write the list, as --data.engine.urls '[...]'",
    "--data.format.few_shot '[3]'": "data.format.few_shot.0: expected settings with question, answer, got 3",
    "--alarms '{own: [{class_path: KLExplosion, init_args: {x: 1}}]}'": "there is no option "
    "alarms.own.0.x; alarms.own.0 has above, stop, window",
}
WITHOUT_A_VALUE = {
    "--model.loss.clip_high": "model.loss.clip_high: expected one argument after --model.loss.clip_high",
    "--model.rewards.digit.weight": "model.rewards.digit.weight: expected one argument after "
    "--model.rewards.digit.weight",
    "--pretrained": "pretrained: expected one argument after --pretrained",
    "--trainer.max_epochs": "trainer.max_epochs: expected one argument after --trainer.max_epochs",
    "--config": "config: expected one argument after --config",
    "-c": "config: expected one argument after -c",
}
GROUPS = {
    **{
        f"--{group} null": f"{group}: {SETTINGS} null"
        for group in (
            *("model", "data", "trainer", "checkpoint", "alarms", "guard", "data.sampling", "data.format"),
        )
    },
    "--model 3": f"model: {SETTINGS} 3",
    "--model '{'": f"model: {SETTINGS} {{",
    "--data no.yaml": f"data: {SETTINGS} no.yaml",
    "--model '{loss: {class_path: Nope}}'": f"model.loss: expected one of {LOSSES}, got Nope",
    "--model '{loss: {class_path: GSPO, init_args: {x: 1}}}'": "there is no option model.loss.x; "
    "model.loss has clip_high, clip_low",
    "--data '{sampling: {temperature: hot}}'": "data.sampling.temperature: expected float, got hot",
}
KINDS = {
    "--data.engine OverlappedEngine --data.engine.engine Nope": (
        f"data.engine.engine: expected one of {ENGINES}, got Nope"
    ),
    "--data.environment GuessTheNumbr": f"data.environment: expected one of {PLAYS}, got GuessTheNumbr. "
    "Did you mean GuessTheNumber?",
    "--data.environment.tools '[my_tools.add]'": "data.environment.tools: data.environment is null; set "
    f"data.environment to one of {PLAYS} first",
    "--data.environment Tools --data.environment.tols '[my_tools.add]'": "there is no option "
    "data.environment.tols. Did you mean data.environment.tools?",
    "--data.episodes.call_format Nope": "data.episodes.call_format: expected one of Hermes, Llama, Tag, "
    "got Nope",
    "--data.episodes.history kep": "data.episodes.history: expected one of 'refuse', 'keep', 'fork', got "
    "kep. Did you mean keep?",
    "--data.episodes.outcomes.turns nul": "data.episodes.outcomes.turns: expected one of 'score', 'zero', "
    "'abstain', got nul",
    "--model.kl.controller Nope": "model.kl.controller: expected AdaptiveCoefficient or null, got Nope",
    "--model.loss OffPolicyMask --model.loss.loss Nope": (
        f"model.loss.loss: expected one of {LOSSES}, got Nope"
    ),
    "--alarms.own '[own_alarm.NoAlarm]'": f"alarms.own.0: expected one of {ALARMS}, got own_alarm.NoAlarm",
    "--alarms.own '[own_alarm.Nope]'": "alarms.own.0: module 'own_alarm' has no attribute 'Nope'",
    "--trainer.logger Nope": "trainer.logger: expected a Logger such as CSVLogger, a list such as "
    "[CSVLogger], bool or null, got Nope",
    "--trainer.logger CSVLogger --trainer.logger.nam x": "there is no option trainer.logger.nam. "
    "Did you mean trainer.logger.name?",
    "--trainer.limit_train_batches '[1]'": "trainer.limit_train_batches: expected int, float or null, "
    "got [1]",
    "--model.policy.dtype float33": "model.policy.dtype: expected one of 'float32', 'bfloat16', 'float16', "
    "got float33. Did you mean float32?",
    "--model.rewards null": "model.rewards: expected a mapping such as {mine: CodeTests}, got null",
    "--model.rewards LastNumber": "model.rewards: expected a mapping such as {mine: LastNumber}, "
    "got LastNumber",
    "--model.masks WithoutTruncated": "model.masks: expected a list such as [WithoutTruncated] or null, "
    "got WithoutTruncated",
    '--model.loss ""': f"model.loss: expected one of {LOSSES}, got ''",
    "--model.loss '[GSPO]'": f"model.loss: expected one of {LOSSES}, got [GSPO]. Did you mean GSPO?",
    "--model.kl null --model.kl.coefficient 3": "model.kl.coefficient: model.kl is null; set model.kl to "
    "one of KLInLoss, KLInReward, TeacherKL first",
    "--trainer.strategy.x 3": "trainer.strategy.x: trainer.strategy has settings only where it names a "
    "class, and auto is none",
    "--model.optimizer own_alarm.NoAlarm": "model.optimizer: expected an import path such as "
    "torch.optim.AdamW, got own_alarm.NoAlarm",
    "--model.lr_scheduler Nope": "model.lr_scheduler: expected an import path such as "
    "torch.optim.lr_scheduler.LinearLR or null, got Nope",
}
MODULES = {
    "--model.advantage raises_on_import.X": f"model.advantage: {RAISES}",
    "--model.kl raises_on_import.X": f"model.kl: {RAISES}",
    "--model.optimizer raises_on_import.X": f"model.optimizer: {RAISES}",
    "--model.rewards.a raises_on_import.X": f"model.rewards.a: {RAISES}",
    "--model.masks '[WithoutTruncated, raises_on_import.X]'": f"model.masks.1: {RAISES}",
    "--model.rewards '{a: {class_path: Function, init_args: {function: raises_on_import.X}}}'": (
        f"model.rewards.a.function: {RAISES}"
    ),
    "--model.loss lacks_a_library.X": "model.loss: lacks_a_library.X: its module cannot be imported "
    "(ModuleNotFoundError: No module named 'no_such_library')",
}
CASES = IN_MAPPINGS | IN_LISTS | WITHOUT_A_VALUE | GROUPS | KINDS | MODULES


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], cli.CLI]:
    """Reads options over configs/tiny.yaml, where modules with mistakes can be imported."""
    (tmp_path / "raises_on_import.py").write_text("raise RuntimeError('not today')")
    (tmp_path / "lacks_a_library.py").write_text("import no_such_library")
    (tmp_path / "own_alarm.py").write_text("class NoAlarm: pass")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda arguments: cli.CLI(["--config", TINY, *shlex.split(arguments)])


@pytest.mark.parametrize("arguments", CASES)
def test_a_mistake_is_named_by_its_whole_key(
    arguments: str, read: Callable[[str], cli.CLI], refused: Refused
) -> None:
    assert refused(read, arguments) == f"grpo_pl: error: {CASES[arguments]}"
