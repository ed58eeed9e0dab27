"""`python -m grpo_pl {fit,validate,plan,submit,check-invariance,doctor,rollout,ablate,compare} ...`."""

import sys


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence and exit code 2."""
    args = sys.argv[1:] if args is None else args
    command, rest = (args[0], args[1:]) if args else ("", [])
    if command == "doctor":  # it imports the rest itself, which may be what is broken
        from grpo_pl.diagnosis.command import doctor

        sys.exit(doctor(rest))
    from grpo_pl import cli
    from grpo_pl.mistakes import mistakes_answered
    from grpo_pl.quiet import tame_logs

    tame_logs()
    with mistakes_answered():
        if command == "check-invariance":
            from grpo_pl.invariance.command import check_invariance

            sys.exit(check_invariance(rest))
        elif command == "rollout":
            from grpo_pl.rollout.command import rollout

            rollout(rest)
        else:
            sys.exit(cli.run(args))


if __name__ == "__main__":
    main()
