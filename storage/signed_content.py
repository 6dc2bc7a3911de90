"""Content of files that others can write, signed by a key that they lack."""

import hmac

SIGNATURE_BYTES = 32

_DIGEST = "sha256"


def signed(content: bytes, name: str, key: bytes) -> bytes:
    """Return ``content`` after its signature, which holds under this name alone."""
    return _signature(content, name, key) + content


def verified(found: bytes, name: str, key: bytes) -> bytes | None:
    """Return the content of what :func:`signed` has returned; None if it is not whole, or not signed by this key."""
    signature, content = found[:SIGNATURE_BYTES], found[SIGNATURE_BYTES:]
    return content if hmac.compare_digest(signature, _signature(content, name, key)) else None


def _signature(content: bytes, name: str, key: bytes) -> bytes:
    return hmac.digest(key, name.encode() + b"\0" + content, _DIGEST)
