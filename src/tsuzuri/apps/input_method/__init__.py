"""The First Two Character Input Method: fitwchinme -> first two character input method.

The files in reading order: predictors.py says what every model can do; ngram.py and histories.py
are the n-grams, neural.py the Transformer, cache.py what learns while one types; engine.py makes an
input method of them, evaluate.py measures it; composer.py turns keys into text, for terminal.py and
page.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsuzuri.apps.input_method.engine import InputMethod


def load(run: str | Path) -> "InputMethod":
    """The input method in a run folder, which `tsuzuri ime train` made.

    Raises:
      UserError: `run` holds none, or it is not finished, or damaged.
    """
    from tsuzuri.apps.input_method.engine import InputMethod

    return InputMethod.load(run)
