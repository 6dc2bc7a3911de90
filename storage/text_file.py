"""Text files as editors write them: the encoding by the byte order mark, and any kind of line break."""

import codecs
from pathlib import Path
from typing import Any

# The longer marks first, because UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 4096


def encoding_of(head: bytes) -> str:
    """Return the Python name of the Unicode encoding of a text that begins with ``head``; UTF-8 if nothing else shows.

    Without a mark, UTF-16 shows by a zero in nearly every second byte, because most texts have characters of ASCII.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    sample = head[:_SAMPLE_BYTES]
    zeros = [sample[place::2].count(0) for place in (0, 1)]
    for place, name in ((0, "utf-16-be"), (1, "utf-16-le")):
        if len(sample) > 1 and zeros[place] > 0.3 * len(sample) / 2 and not zeros[1 - place]:
            return name
    return "utf-8"


def read_text(path: Any) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark, with plain line feeds.

    Args:
        path: A path, or a resource of a package, which has ``read_bytes`` too.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: The file has another encoding; the message names the file and the remedy.
    """
    content = (Path(path) if isinstance(path, str) else path).read_bytes()
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnicodeDecodeError(
            error.encoding, error.object, error.start, error.end, f"{error.reason}: {path} is not {encoding.upper()}; "
            f"save it with the encoding UTF-8"
        ) from None  # fmt: skip
    return text.replace("\r\n", "\n").replace("\r", "\n")
