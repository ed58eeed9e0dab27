"""The checks of a config, each only if those before it have passed."""

from grpo_pl.commands.doctor.answers import check_answers
from grpo_pl.commands.doctor.components import check_components
from grpo_pl.commands.doctor.engine import check_engine
from grpo_pl.commands.doctor.episode import check_dialogue
from grpo_pl.commands.doctor.findings import Finding, broken, warn_if
from grpo_pl.commands.doctor.model import check_model, names
from grpo_pl.commands.doctor.products import types
from grpo_pl.commands.doctor.prompts import check_prompts, read_sets, shown, spread
from grpo_pl.commands.doctor.report import Report
from grpo_pl.commands.doctor.run import check_run
from grpo_pl.config.cli import CLI
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.models.loading import eos_token_ids, load_tokenizer
from grpo_pl.module import PolicyOptimization
from grpo_pl.training.checks.engines import different_heads

FROM_ONE_MODEL = ("model.policy.init_args.pretrained", "data.engine.init_args.pretrained", "data.pretrained")


def check_configured(report: Report, options: list[str], *, with_engine: bool) -> None:
    """Add the themes that need a config of `fit`; a config that `fit` would refuse is refused."""
    cli = CLI(options)
    settings = cli.settings.as_dict()
    if not report.add("components", check_components(settings)):
        report.skip(["model", "data", "run", "engine"], "they need these components")
        return
    cli.build()
    module, data = cli.model, cli.datamodule
    if not isinstance(module, PolicyOptimization) or not isinstance(data, RolloutDataModule):
        report.skip(["model", "data", "run", "engine"], "they are those of the job policy")
        return
    models = {key.replace(".init_args", ""): cli.settings.get(key) for key in FROM_ONE_MODEL}
    of_model = check_model(data.pretrained, data.format)
    of_model += [] if broken(of_model) else check_dialogue(data)
    if not report.add("model", [*of_model, names(models)]):
        report.skip(["data", "run", "engine"], "the model comes first")
        return
    if not check_data(report, module, data):
        report.skip(["run", "engine"], "the data comes first")
        return
    fits = report.add(
        "run", [types(cli.settings), heads(module, data), *check_run(cli.trainer, module, data, settings)]
    )
    if not with_engine:
        report.skip(["engine"], "--engine false")
    elif not fits:
        report.skip(["engine"], "the run has to fit first")
    else:
        with report.console.status("") as status:
            findings = check_engine(cli.trainer, module, data, lambda stage: status.update(f"{stage} ..."))
        report.add("engine", findings)


def heads(module: PolicyOptimization, data: RolloutDataModule) -> Finding:
    """Whether the LM heads of all models and of the engine multiply in one type."""
    one_sided = different_heads(data.engine, module.head_dtypes)
    in_float32 = "float32" in module.head_dtypes.values()
    found = one_sided or f"all multiply in {'float32' if in_float32 else 'the type of the other layers'}"
    return warn_if(bool(one_sided), "LM heads", found, "say --head_dtype float32 once for all, or nowhere")


def check_data(report: Report, module: PolicyOptimization, data: RolloutDataModule) -> bool:
    """Add the theme of the prompts and their answers, and show some; whether it has no problem."""
    sets = read_sets(data)
    tokenizer, ends = load_tokenizer(data.pretrained), eos_token_ids(data.pretrained)
    train, val = spread(sets["data.train"]), spread(sets.get("data.val", sets["data.train"]))
    rewards = {f"model.rewards.{name}": reward for name, reward in module.rewards.items()}
    verifiers = {f"model.verifiers.{name}": verifier for name, verifier in module.verifiers.items()}
    findings = [*check_prompts(sets, ends), *check_answers(rewards, train, tokenizer)]
    healthy = report.add("data", [*findings, *check_answers(verifiers, val, tokenizer)])
    report.show("data.train", shown(sets["data.train"]))
    return healthy
