"""`grpo_pl check-invariance`."""

from grpo_pl.commands.options import Options, new_file

DESCRIPTION = """Sample one rollout, and compare its gradient in float32 over strategies, ranks and
micro-batches. Takes every option of `grpo_pl fit`."""


def check_invariance(args: list[str]) -> int:
    """Compare the gradient of one rollout over strategies, ranks and micro-batches; 1 if they differ."""
    parser = Options("check-invariance", DESCRIPTION)
    parser.add_argument("--out", type=new_file, help="a JSON file to write the table to, too")
    own, for_fit = parser.split(args, policy_alone=True)
    from grpo_pl.commands.check_invariance.ways import check

    return check(for_fit, own.out)
