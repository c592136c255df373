"""The text that benchmarks read: a file of one's own, or the embedded tales."""

from pathlib import Path


def write_text(source: str | None, megabytes: int, out: Path) -> None:
    """Writes so many MB of UTF-8 to `out`: of the text `source`, again and again, or of tales."""
    limit = megabytes * 1_000_000
    size = 0
    with out.open("wb") as file:
        while size < limit:
            text = Path(source).read_bytes() if source else _tales(min(limit - size, 20_000_000))
            size += file.write(text[: limit - size].decode(errors="ignore").encode() or b" ")


def _tales(size: int) -> bytes:
    from tsuzuri.corpus.tales import documents

    tales, have = [], 0
    for document in documents():
        tales.append(document.text.encode())
        have += len(tales[-1])
        if have >= size:
            break
    return b"\n".join(tales)


def chunks(path: Path, size: int) -> list[str]:
    """The text of a file as documents of about `size` characters, cut at line ends."""
    text = path.read_text(encoding="utf-8")
    found, start = [], 0
    while start < len(text):
        end = text.find("\n", start + size) + 1 or len(text)
        found.append(text[start:end])
        start = end
    return found
