"""`python -m grpo_pl {fit,validate,plan,submit,check-invariance,doctor,rollout,ablate,compare} ...`."""

import sys


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence and exit code 2."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["doctor"]:  # it imports the rest itself, which may be what is broken
        from grpo_pl.diagnosis.command import doctor

        sys.exit(doctor(args[1:]))
    from grpo_pl import cli
    from grpo_pl.quiet import tame_logs

    if args[:1] == ["check-invariance"]:
        from grpo_pl.invariance.command import check_invariance

        tame_logs()
        with cli.mistakes_answered():
            sys.exit(check_invariance(args[1:]))
    elif args[:1] == ["rollout"]:
        from grpo_pl.rollout.command import rollout

        tame_logs()
        with cli.mistakes_answered():
            rollout(args[1:])
    else:
        cli.main(args)


if __name__ == "__main__":
    main()
