"""The program `search-r3`, also as `python -m search_r3_mteb`: signals first, then the command line."""

from search_r3_mteb.stopping import command_line, end_on_signals
from search_r3_mteb.threads import spin_briefly


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it with one line from here on."""
    end_on_signals("search-r3", lambda: f"Nothing had begun. Start it again: {command_line('search-r3')}")
    spin_briefly()
    from search_r3_mteb.cli import main as run

    run()


if __name__ == "__main__":
    main()
