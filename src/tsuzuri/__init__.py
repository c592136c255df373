"""tsuzuri 綴り: from one text file to a language model that writes.

import tsuzuri

lm = tsuzuri.load("runs/book")
print(lm.generate("吾輩は"))
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsuzuri.language_model import LanguageModel

__version__ = "0.1.0"


def load(run: str | Path) -> "LanguageModel":
    """The model of a run folder, or of one in a bucket, at its newest sound checkpoint.

    Raises:
      UserError: it is not a run folder, or holds no checkpoint yet.
      RunError: no checkpoint is sound.
    """
    from tsuzuri.language_model import LanguageModel  # JAX is imported here, not with tsuzuri

    return LanguageModel.load(run)
