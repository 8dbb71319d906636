"""``python -m kproxy`` is the ``kproxy`` command."""

from kproxy.cli.main import main

if __name__ == "__main__":
    main()
