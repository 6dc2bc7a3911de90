"""Names of columns: any text, and the plain name that stands for it where TensorFlow or a file system needs one."""

import hashlib
import keyword
import re
from collections import Counter
from collections.abc import Iterable

# TensorFlow's names of operations, and files on any system, accept these.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_PLAIN_FILE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
# Python calls a signature by keywords, which can be neither of these.
_TAKEN = frozenset({"self", *keyword.kwlist})
_SHOWN_CHARACTERS = 40

# Names of the feature that says who asks. An attribute of a user, such as user_age, is not among them.
USER_NAME = re.compile(
    r"(user|customer|visitor|member|subscriber|account|client|viewer|reader|listener|player|buyer|shopper|person)s?"
    r"(_?(id|ids|key|no|nr|num|number|name|idx|index|code|hash|uuid|guid))?|uid",
    re.IGNORECASE,
)

# As in id, order_id, ORDER_ID, orderId and orderID, but not in paid.
IDENTIFIER_NAME = re.compile(r"(?:^|_)(?i:id)$|[a-z0-9]I[dD]$")


def refusal_of_name(name: object) -> str | None:
    """Return the reason why a column cannot have this name, with the remedy; None if it can."""
    if not isinstance(name, str):
        return "is not a text; rename the column, in pandas by df.columns = df.columns.astype(str)"
    if not name:
        return "is empty; give the column a name"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has half of a character, which UTF-8 cannot hold; rename the column"
    return "has a null character; rename the column" if "\0" in name else None


def file_name(name: str) -> str:
    """Return the name of a column's files, without a suffix; it may also begin with an underscore."""
    return name if _PLAIN_FILE.fullmatch(name) else plain_name(name)


def plain_name(name: str) -> str:
    """Return the name that stands for a column in TensorFlow's graphs: letters of A-Z, digits and underscores.

    Most names are plain already and stay. Others keep the characters that can stay, and end with a digest of the whole
    name, so that two columns have two names: ``is late`` becomes ``is_late_`` and eight hex digits.
    """
    if _PLAIN.fullmatch(name) and name not in _TAKEN:
        return name
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:_SHOWN_CHARACTERS]
    # An operation's name begins with a letter.
    start = readable if readable[:1].isalpha() else f"column_{readable}".rstrip("_")
    return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def repeated_names(names: Iterable[str]) -> list[str]:
    """Return the names, of columns, features or classes, that come more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
