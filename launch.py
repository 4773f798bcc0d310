"""Fine-tune a pretrained network in the best way: `python launch.py --help`."""

from delta_tune.cli.launch import main

if __name__ == "__main__":
    raise SystemExit(main())
