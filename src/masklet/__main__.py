"""``python -m masklet``: as the command, for launchers that start a module."""

from masklet.cli import main

if __name__ == "__main__":
    main()
