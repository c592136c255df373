"""The text that a tokenizer learns from."""

from collections.abc import Callable, Iterator

from tsuzuri.config import TokenizerConfig
from tsuzuri.errors import UserError
from tsuzuri.tokenizer.protocol import slices, utf8


def sample(
    texts: Iterator[str], cfg: TokenizerConfig, say: Callable[[str], None], progress: bool
) -> Iterator[str]:
    """Yields the first `cfg.sample_mb` MB of the texts, in slices.

    Raises:
      UserError: there is no text, or it holds half of a surrogate pair.
    """
    from tqdm import tqdm

    limit, seen = cfg.sample_mb * 1_000_000, 0
    with tqdm(
        total=limit, disable=not progress, unit="B", unit_scale=True, desc="tokenizer"
    ) as bar:
        for part in (part for text in texts for part in slices(text)):
            if seen >= limit:
                say(f"the tokenizer learns from the first {cfg.sample_mb} MB of the text")
                return
            seen += len(utf8(part))
            bar.update(seen - bar.n)
            yield part
        if seen == 0:
            raise UserError("there is no text to train a tokenizer on")
        bar.total = seen
