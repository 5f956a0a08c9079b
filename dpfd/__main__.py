"""``python -m dpfd``: the same as the command ``dpfd``."""

from .cli import main

if __name__ == "__main__":
    main()
