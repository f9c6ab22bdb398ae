"""Keyed bijections of 0..size-1: shuffles without a table.

`permute(i, size, key)` is a pure function, so the place of one row among two billion costs no memory. It is a shuffle,
not a cipher: a key must come from `make_key`, or neighbouring seeds give related orders.
"""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6

IndexT = TypeVar("IndexT", int, NDArray[np.int64])
_Network = Callable[[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.uint64]]
"""(values, half of the bits, keys) -> values: a bijection of all numbers of so many bits."""


def make_key(*parts: int | str) -> int:
    """Return 64 bits that depend on every part and on where each stands. `make_key(1, 2) != make_key(12)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(index: IndexT, size: int | NDArray[np.int64], key: int | NDArray[np.uint64]) -> IndexT:
    """Return where `index` (one int, or a 1-D int64 array) goes in the permutation of 0..size-1 that `key` names.

    `size` and `key` may be arrays beside `index`: each element then has its own permutation. A balanced Feistel network
    on the next even number of bits, walked until it falls inside `size` (Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002): at most four expected steps. Raises ValueError outside 0..size-1.
    """
    if isinstance(index, int):
        return int(permute(np.array([index], np.int64), size, key)[0])
    return _walk(index, size, key, _feistel)


def unpermute(
    index: NDArray[np.int64], size: int | NDArray[np.int64], key: int | NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return what `permute` brings to each of `index`: its inverse. Raises ValueError outside 0..size-1."""
    return _walk(index, size, key, _unfeistel)


def mix_keys(key: int | NDArray[np.uint64], values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return one key for each of `values` under `key` (or under each key of an array): `make_key` for whole arrays."""
    keys = np.broadcast_to(np.asarray(key, np.uint64), values.shape)
    return _mix(values.astype(np.uint64), keys)


def _walk(
    index: NDArray[np.int64], size: int | NDArray[np.int64], key: int | NDArray[np.uint64], network: _Network
) -> NDArray[np.int64]:
    """Walk each number along the network's cycle until it falls inside its size."""
    sizes = np.broadcast_to(np.asarray(size, np.int64), index.shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), index.shape)
    if index.size and (int(index.min()) < 0 or int((sizes - index).min()) < 1):
        raise ValueError(f"index out of range: permute over {size} values got {index.min()}..{index.max()}")
    half = _half_bits(sizes)
    result = index.astype(np.uint64)
    pending = np.arange(index.size)
    while pending.size:
        moved = network(result[pending], half[pending], keys[pending])
        result[pending] = moved
        pending = pending[moved >= sizes[pending].astype(np.uint64)]
    return result.astype(np.int64)


def _half_bits(sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    distinct, where = np.unique(sizes, return_inverse=True)
    bits = [max(1, ((int(size) - 1).bit_length() + 1) // 2) for size in distinct]
    half: NDArray[np.uint64] = np.array(bits, np.uint64)[where]
    return half


def _feistel(values: NDArray[np.uint64], half: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(NUM_ROUNDS):
        round_keys = keys + np.uint64(number * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
        left, right = right, left ^ (_mix(right, round_keys) & mask)
    return (left << half) | right


def _unfeistel(values: NDArray[np.uint64], half: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in reversed(range(NUM_ROUNDS)):
        round_keys = keys + np.uint64(number * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
        left, right = np.bitwise_xor(right, _mix(left, round_keys) & mask), left
    return (left << half) | right


def _mix(values: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014), twice around the key; overflow is meant.
    mixed = values + keys
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = (mixed ^ (mixed >> np.uint64(31))) ^ (keys >> np.uint64(7))
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    result: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(33))
    return result
