"""Keeps passwords out of what people read: a tracking URI may carry one, and so may the errors that quote it."""

import re

# A password may hold "@" and "/" as they are, so everything between the first ":" and the last "@" goes. Where that is
# not the password (`http://host:5000/a@b`), a part of an address is lost; the other way round, a part of a password
# would be shown.
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^\s/?#:]*(?::(?:(?!://)\S)*)?@")


def without_credentials(text: str) -> str:
    """Return ``text`` with user name and password cut out of every URI in it."""
    return _USER_AND_PASSWORD.sub("", text)
