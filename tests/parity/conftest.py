"""The table at the end of `make parity`."""

from typing import Any

import peers


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if peers.rows and terminalreporter.verbosity >= 0:  # not in `make test`, which is quiet
        terminalreporter.write_line("\n| preset | reference | difference |\n|---|---|---|")
        for preset, reference, difference in peers.rows:
            terminalreporter.write_line(f"| {preset} | {reference} | {difference:.1e} |")
