"""`python -m grpo_pl {fit,validate,plan,submit,check-invariance,doctor,rollout,ablate,compare} ...`."""

import sys


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence and exit code 2."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["doctor"]:  # it imports the rest itself, which may be what is broken
        from grpo_pl.diagnosis.command import doctor

        sys.exit(doctor(args[1:]))
    from grpo_pl import cli

    cli.main(args, run)


def run(args: list[str]) -> int | None:
    """Run a command line; its exit code where it has one of its own."""
    if args[:1] == ["check-invariance"]:
        from grpo_pl.invariance.command import check_invariance

        return check_invariance(args[1:])
    if args[:1] == ["rollout"]:
        from grpo_pl.rollout.command import rollout

        rollout(args[1:])
        return None
    from grpo_pl import cli

    return cli.run(args)


if __name__ == "__main__":
    main()
