"""`python -m delta_tune predict | export | serve | report | compare`."""

from delta_tune.cli.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
