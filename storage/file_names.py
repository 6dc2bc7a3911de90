"""Names that a file or folder can have on every system and in every store, and the reason why others cannot."""

import os
import re
from pathlib import Path

from mirrorspark.clear_error import BREAKS_AND_CONTROLS, escaped

MOST_BYTES = 255
"""The longest name on the file systems of Linux."""

# Names of devices on Windows, with any ending: a share may be looked at from there, and Git has the same rule.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_SHOWN_CHARACTERS = 40


def why_unfit(name: str, most_bytes: int = MOST_BYTES) -> str | None:
    """Return why no file or folder should have this name, in words that follow it; None if it is fit."""
    if not name.strip():
        return "is empty"
    if BREAKS_AND_CONTROLS.search(name):
        return "has a line break or another control character"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "has half a character"
    if size > most_bytes:
        return f"has {size} bytes, and {most_bytes} are the most"
    if name[0] == " " or name[-1] in " .":
        return "begins with a blank, or ends with a blank or a dot"
    return "is the name of a device on Windows" if _DEVICES.fullmatch(name) else None


def unfit_folder(path: str) -> str | None:
    """Return why a folder of this path cannot be made, as part and reason; None if it can, or is there."""
    if not path.strip():
        return "it is empty"
    folder = Path(path)
    # Path.exists raises for a name that is too long.
    new = [one.name for one in (folder, *folder.parents) if one.name != ".." and not os.path.exists(one)]  # noqa: PTH110
    return next((f"its part '{shown(part)}' {why}" for part in reversed(new) if (why := why_unfit(part))), None)


def shown(name: str) -> str:
    """Return a name as a message shows it: its beginning, with control characters as Python writes them."""
    text = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
    return escaped(text)
