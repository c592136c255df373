"""Folders, archives and compressed files, walked as one stream of plain files.

Everything goes by the name's ending and nests: a zip in a tar.xz in a folder is walked too. Memory
stays bounded: archives are read in one pass, and only what must be read at random (a zip or a
Parquet file inside another archive) is first copied to a temporary file.
"""

import contextlib
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from tsuzuri.errors import RunError, UserError

_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
_DAMAGED += (UnicodeDecodeError,)  # of a name in a zip


class File(NamedTuple):
    """A file as the walk meets it; its stream is good until the next one is asked for.

    Attributes:
      name: where it lies, through every archive: `corpus.zip/a/b.txt.gz`.
      suffix: the ending without that of its compression, in lower case: `.txt`.
      stream: its bytes, decompressed.
    """

    name: str
    suffix: str
    stream: IO[bytes]


def walk(source: Path) -> Iterator[File]:
    """Yields the files of a file, a folder or an archive, in sorted, or the archive's own, order.

    Hidden files, those with a name or a folder that begins with a dot, are left out.

    Raises:
      UserError: the path is absent or unreadable, or an archive is damaged.
    """
    for path in paths(source):
        with readable(path), path.open("rb") as stream:
            yield from unpack(str(path), stream)


def unpack(name: str, stream: IO[bytes]) -> Iterator[File]:
    """Yields the plain files in an open file: itself, decompressed, or what the archive holds.

    Raises:
      UserError: it is damaged.
    """
    return _unpack(name, PurePosixPath(name).name, stream)


def paths(source: Path) -> list[Path]:
    """The files on disk that `source` stands for: itself, or all that a folder holds, sorted.

    Raises:
      UserError: the path is absent or a pipe, or a folder holds no file.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if not source.is_dir():
        if source.is_fifo():
            raise UserError(f"{source}: a pipe; text is read several times, so write it to a file")
        return [source]
    inside = sorted(source.rglob("*"))
    found = [path for path in inside if path.is_file() and not _hidden(path.relative_to(source))]
    if not found:
        raise UserError(f"{source}: an empty folder; give a file, or a folder that holds text")
    return found


@contextlib.contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Turns what reading a damaged file raises into a UserError that names the file."""
    try:
        yield
    except (UserError, RunError):
        raise
    except _DAMAGED as error:
        raise UserError(f"{name}: damaged or cut short ({error}); fetch or pack it anew") from error
    except RuntimeError as error:  # how zipfile refuses, say a password
        raise UserError(f"{name}: cannot be unpacked ({error})") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def seekable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file on disk as it is, another stream as a temporary copy: a .gz only plays at seeking."""
    if isinstance(stream, BufferedReader) and isinstance(stream.raw, FileIO):
        yield stream
        return
    with tempfile.SpooledTemporaryFile(max_size=16 << 20) as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
        yield cast(IO[bytes], copy)


def _unpack(name: str, inner: str, stream: IO[bytes]) -> Iterator[File]:
    """`inner` is what is left of the file's name while its compressions are taken off."""
    path = PurePosixPath(inner)
    with readable(name):
        match path.suffix.lower():
            case ".tgz" | ".txz":
                yield from _unpack(name, path.stem + ".tar." + path.suffix[2:], stream)
            case ".gz":
                with gzip.open(stream) as content:
                    yield from _unpack(name, path.stem, cast(IO[bytes], content))
            case ".xz":
                with lzma.open(stream) as content:
                    yield from _unpack(name, path.stem, content)
            case ".zst":
                import pyarrow  # its reader, unlike zstandard's, notices a frame that is cut short

                decompressed = pyarrow.CompressedInputStream(stream, "zstd")
                yield from _unpack(name, path.stem, BufferedReader(decompressed, 1 << 20))
            case ".zip":
                with seekable(stream) as content, zipfile.ZipFile(content) as archive:
                    for info in archive.infolist():
                        member = _name(info)
                        if not info.is_dir() and not _hidden(member):
                            with archive.open(info) as file:
                                yield from _unpack(f"{name}/{member}", member.name, file)
            case ".tar":
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for info in archive:
                        member = PurePosixPath(info.name)
                        file = archive.extractfile(info) if info.isfile() else None
                        if file and not _hidden(member):
                            yield from _unpack(f"{name}/{member}", member.name, file)
                while stream.read(1 << 20):  # the end of a .gz or .xz holds its check
                    pass
            case suffix:
                yield File(name, suffix, stream)


def _name(info: zipfile.ZipInfo) -> PurePosixPath:
    """A name in a zip: UTF-8 if it says so; else often that or, from Windows in Japan, cp932."""
    name = info.filename
    if not info.flag_bits & 0x800:  # zipfile has read it as cp437, in which any byte is a character
        for codec in ("utf-8", "cp932"):
            with contextlib.suppress(UnicodeError):
                return PurePosixPath(name.encode("cp437").decode(codec))
    return PurePosixPath(name)


def _hidden(path: Path | PurePosixPath) -> bool:
    return any(
        part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in path.parts
    )
