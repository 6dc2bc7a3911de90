"""FarmHash's 64-bit fingerprint of strings, which TensorFlow's ``tf.strings.to_hash_bucket_fast`` builds on."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def fingerprint64(strings: pa.Array) -> npt.NDArray[np.uint64]:
    """Return the fingerprint of each string, uint64 ``[strings]``; a null has that of the empty string.

    Args:
        strings: an Arrow array of strings or bytes, large ones included; its memory is read in place.
    """
    from data_pipelines.farmhash_kernels import OF_NOTHING, fingerprints  # for what Numba takes, see kernels

    is_large = pa.types.is_large_string(strings.type) or pa.types.is_large_binary(strings.type)
    if not (is_large or pa.types.is_string(strings.type) or pa.types.is_binary(strings.type)):
        raise TypeError(f"an array of {strings.type} has no fingerprints; cast it to strings")
    if not len(strings):
        return np.empty(0, np.uint64)
    _, offset_buffer, content_buffer = strings.buffers()
    all_offsets = np.frombuffer(offset_buffer, np.int64 if is_large else np.int32)
    offsets = all_offsets[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    content = np.frombuffer(content_buffer, np.uint8) if content_buffer else np.empty(0, np.uint8)
    found: npt.NDArray[np.uint64] = fingerprints(content, offsets)
    if strings.null_count:
        # What lies under a null is not defined; it need not be empty.
        found[np.asarray(strings.is_null(), bool)] = OF_NOTHING
    return found
