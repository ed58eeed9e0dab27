"""Which of PPO's four models does one need? Seven algorithms in the same number of samples, as a table.

  python tools/four_models.py OUT [--only grpo ppo] [--config CONFIG] [any option of `grpo_pl fit`]

Two of them need reward models. Where OUT/reward_model and OUT/process_reward_model are missing, they are made
first: from rollouts of the pretrained model and of OUT/grpo, and the task's verifier.
OUT/<algorithm> are run folders; a finished one is not run again. The table is OUT/table.md.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KL_IN_LOSS = ("--model.kl", "KLInLoss", "--model.kl.coefficient", "0.001", "--model.kl.bound", "10")
"""Without the bound, one token that the policy has given up outweighs all others: k3 was 3 on average."""
STEPS = r"[^0-9]+(?=[0-9])"
"""Between two steps: whatever stands before a number, so that each step ends where one begins."""
PPO = (
    *("--config", str(ROOT / "configs" / "ppo.yaml"), "--model.critic.attention", "eager"),
    *("--model.critic.row_tokens", "256", "--model.critic_lr", "1e-4", "--model.advantage.lam", "1.0"),
    *("--model.kl", "KLInReward", "--model.kl.coefficient", "0.01"),
)


def paid_by(class_path: str, folder: Path, **arguments: object) -> tuple[str, str]:
    """The options that make a model the only reward; the rule is still logged."""
    model = {"class_path": class_path, "init_args": {"pretrained": str(folder), **arguments}}
    rule = {"class_path": "LastNumber", "init_args": {"weight": 0.0}}
    return "--model.rewards", json.dumps({"correct": rule, "model": model})


def algorithms(out: Path) -> dict[str, tuple[str, ...]]:
    """Name -> its difference from the config."""
    outcome = paid_by("OutcomeRewardModel", out / "reward_model" / "model", link="sigmoid")
    process = paid_by("ProcessRewardModel", out / "process_reward_model" / "model", steps=STEPS)
    return {
        "grpo": KL_IN_LOSS,
        "ppo": PPO,
        "ppo_reward_model": (*PPO, *outcome),
        "rloo": (*KL_IN_LOSS, "--model.advantage", "LeaveOneOut"),
        "reinforce_plus_plus": (*KL_IN_LOSS, "--model.advantage", "ReinforcePlusPlus"),
        "grpo_no_reference": ("--model.kl", "null"),
        "grpo_process": (*KL_IN_LOSS, "--model.advantage", "ProcessGroupRelative", *process),
    }


def call(script: str, *arguments: object) -> None:
    """Run a command of this checkout; a failure ends everything."""
    command = [sys.executable, *script.split(), *map(str, arguments)]
    print("$", *command[1:], flush=True)
    if code := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(code)


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return (folder / "ended.json").is_file()


def train_reward_model(out: Path, config: list[str], options: str) -> None:
    """The one that the options name, from rollouts of the pretrained model and of what GRPO made of it."""
    policy = out / "grpo_policy"
    if not policy.is_dir():
        call("tools/export_hf.py", out / "grpo" / "checkpoints" / "last.ckpt", policy)
    process = ("--config", ROOT / "configs" / "process_reward_model.yaml", "--trainer.max_epochs", 2)
    for kind, name, overlay, of_base, how in (
        ("pairs", "reward_model", ("--trainer.max_epochs", 1), (400, 8), ("--pairs-per-prompt", 2)),
        ("steps", "process_reward_model", process, (40, 4), ("--continuations", 4, "--steps", STEPS)),
    ):
        of_policy = (1200, 4) if kind == "pairs" else (100, 4)
        if str(out / name / "model") not in options or finished(out / name):
            continue
        data = out / f"{name}_data"
        sources = {"base": (of_base, ()), "policy": (of_policy, ("--pretrained", policy))}
        for source, ((prompts, group_size), pretrained) in sources.items():
            call(
                *("tools/make_reward_data.py", kind, data / source, *config, *pretrained, *how),
                *("--prompts", prompts, "--data.group_size", group_size),
            )
        for split in ("train", "val"):
            text = "".join((data / source / f"{split}.jsonl").read_text() for source in sources)
            (data / f"{split}.jsonl").write_text(text)
        call(
            "-m grpo_pl fit --config",
            *(ROOT / "configs" / "reward_model.yaml", *overlay, "--trainer.default_root_dir", out / name),
            *("--data.train.init_args.path", data / "train.jsonl"),
            *("--data.val.init_args.path", data / "val.jsonl", "--checkpoint.every_n_epochs", 1),
        )


def row(name: str, folder: Path) -> str:
    """One line of the table."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    accuracy = [float(r["val/accuracy"]) for r in rows if r.get("val/accuracy")]
    last, later = rows[-1], [float(r["time/iteration_s"]) for r in rows[2:]]
    seconds = sorted(later)[len(later) // 2]
    return (
        f"| {name} | {accuracy[0]:.3f} | {accuracy[-1]:.3f} | {float(last['memory/models']):.0f} | "
        f"{float(last['memory/parameters']) / 1e6:.0f} M | {float(last['memory/peak_gib']):.1f} GiB | "
        f"{seconds:.0f} s |"
    )


def main() -> None:
    """Run what is missing, in order, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--only", nargs="+", choices=algorithms(Path()), default=list(algorithms(Path())))
    said, options = parser.parse_known_args()
    out, config = said.out.resolve(), ["--config", said.config]
    lines = [
        "| algorithm | accuracy before | after | models held | parameters | peak memory | an iteration |",
        "|---|---|---|---|---|---|---|",
    ]
    differences = algorithms(out)

    def train(name: str) -> None:
        folder = ("--trainer.default_root_dir", out / name)
        if not finished(out / name):
            call("-m grpo_pl fit", *config, *differences[name], *options, *folder)

    for name in differences:
        if name not in said.only:
            continue
        if "RewardModel" in str(differences[name]):
            train("grpo")
            train_reward_model(out, config, str(differences[name]))
        train(name)
        lines.append(row(name, out / name))
        (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
