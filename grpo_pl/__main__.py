"""`python -m grpo_pl fit --config ...`."""

from grpo_pl.cli import main

if __name__ == "__main__":
    main()
