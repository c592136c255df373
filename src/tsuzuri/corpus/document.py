"""What every corpus yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or a piece of a long one.

    Attributes:
      text: the text as it was: nothing stripped, no newline translated.
      metadata: what the corpus knows of it, such as title, author and credits.
      continues: the next Document is the rest of this one. So a book of gigabytes passes through in
        bounded memory; a document is whole when a piece with `continues=False` has come.
      entropy_bits: the information content of the text, -log2 of its probability, where the corpus
        knows its own distribution.
    """

    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    continues: bool = False
    entropy_bits: float | None = None
