"""What all of `make chaos` shares: a text, an undisturbed run, the table of figures at the end."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer import TINY, Trainer

from tsuzuri.presets import preset
from tsuzuri.train import train

_FIGURES = pytest.StashKey[list[tuple[str, Any]]]()


@pytest.fixture(scope="session")
def text(tmp_path_factory: Any) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n}番目の綴りは{n * n}。\n" for n in range(500)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def undisturbed(text: str, tmp_path_factory: Any) -> tuple[Path, str]:
    """A whole run of TINY and its parameters' SHA-256; in this process, without a cache."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return run, train(preset("llama", **TINY), run, [text], progress=False)["parameters_sha256"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: Any) -> dict[str, str]:
    """The environment of the processes: what one has compiled the next need not."""
    return {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def starter(cache: dict[str, str]) -> Any:
    """Gives a function that starts Trainers; at the end none is left running."""

    @contextlib.contextmanager
    def starter() -> Iterator[Callable[..., Trainer]]:
        started: list[Trainer] = []

        def start(run: Path, config: Any, *arguments: str, env: Any = None, **more: Any) -> Trainer:
            started.append(Trainer(run, config, *arguments, env=cache | (env or {}), **more))
            return started[-1]

        try:
            yield start
        finally:
            for trainer in started:
                trainer.close()

    return starter


@pytest.fixture
def start(starter: Any) -> Iterator[Callable[..., Trainer]]:
    with starter() as start:
        yield start


@pytest.fixture
def tell(request: Any) -> Callable[[str, Any], None]:
    """Takes a figure for the table at the end."""
    rows = request.config.stash.setdefault(_FIGURES, [])
    return lambda figure, value: rows.append((figure, value))


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    if rows := config.stash.get(_FIGURES, None):
        terminalreporter.write_line("\n| fault | figure |\n|---|---|")
        for figure, value in rows:
            terminalreporter.write_line(f"| {figure} | {value} |")
