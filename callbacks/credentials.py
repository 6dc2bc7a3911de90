"""Keeps passwords out of what people read: a tracking URI may carry one, and so may the errors that quote it."""

import re

_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")


def without_credentials(text: str) -> str:
    """Return ``text`` with user name and password cut out of every URI in it."""
    return _USER_AND_PASSWORD.sub("", text)
