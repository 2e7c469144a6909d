"""The yardstick of the shipped model: an interpolated byte n-gram with Witten-Bell smoothing."""

import numpy as np

_Counts = tuple[np.ndarray, np.ndarray]  # sorted distinct keys, and a count for each


def ngram_bits_per_byte(train: list[bytes], heldout: list[bytes], order: int = 4) -> float:
    """−mean log₂ P(byte | the order−1 bytes before it) over the held-out bytes, in bits.

    P_n(w|h) = (c(h,w) + T(h) P_{n−1}(w|h′)) / (c(h) + T(h)), where T(h) counts the distinct bytes seen after h, h′
    drops the oldest byte of h, and P_0 = 1/256 (Witten and Bell 1991). Contexts do not cross files; a file starts
    after zeros.
    """
    if not 1 <= order <= 7:  # the key of order + 1 bytes must fit an int64
        raise ValueError(f"order: expected 1 to 7, got {order}")
    total = sum(map(len, heldout))
    probability = np.full(total, 1 / 256)
    for length in range(order):  # bytes of context
        counts = np.unique(_keys(train, length + 1), return_counts=True)
        contexts = counts[0] >> 8
        starts = np.flatnonzero(np.diff(contexts, prepend=-1))
        distinct = (contexts[starts], np.diff(starts, append=len(contexts)))
        seen = (contexts[starts], np.add.reduceat(counts[1], starts))
        keys = _keys(heldout, length + 1)
        after = _lookup(distinct, keys >> 8)
        mixed = (_lookup(counts, keys) + after * probability) / np.maximum(_lookup(seen, keys >> 8) + after, 1)
        probability = np.where(after > 0, mixed, probability)
    return float(-np.log2(probability).mean())


def _keys(files: list[bytes], length: int) -> np.ndarray:
    """The last `length` bytes up to and including each position, as one integer, the newest byte lowest."""
    keys = []
    for data in files:
        padded = np.frombuffer(bytes(length - 1) + data, np.uint8).astype(np.int64)
        key = np.zeros(len(data), np.int64)
        for offset in range(length):
            key = (key << 8) | padded[offset : offset + len(data)]
        keys.append(key)
    return np.concatenate(keys)


def _lookup(table: _Counts, keys: np.ndarray) -> np.ndarray:
    position = np.minimum(np.searchsorted(table[0], keys), len(table[0]) - 1)
    return np.where(table[0][position] == keys, table[1][position], 0)
