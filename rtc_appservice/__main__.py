"""`python -m rtc_appservice` is `rtc-appservice`."""

import sys

#: What a shell makes of an end by Ctrl-C.
_INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while its modules are still being loaded."""
    try:
        from rtc_appservice.cli.main import main as commands

        commands()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
