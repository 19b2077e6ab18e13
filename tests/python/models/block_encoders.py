"""Encoders of block formats: the gguf package's where it has one, else simple ones of our own.

Ours choose scales from the largest value of a run and round: good enough to tell formats apart, not
as good as llama.cpp's, which search.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def encode(values: np.ndarray, quantization: Type) -> np.ndarray:
    """f32 [rows, cols] -> uint8 [rows, bytes]; cols are whole blocks."""
    if encoder := _ENCODERS.get(quantization):
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        blocks = encoder(values.reshape(-1, block_size).astype(np.float32))
        assert blocks.dtype == np.uint8
        assert blocks.shape[1] == block_bytes
        return blocks.reshape(values.shape[0], -1)
    return gguf.quants.quantize(values, quantization)


def _half(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[blocks, 1] -> its bytes as f16, and what they say."""
    half = values.astype(np.float16)
    return half.view(np.uint8), half.astype(np.float32)


def _over(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)


def _extreme(runs: np.ndarray) -> np.ndarray:
    """Of each run the value of the largest size, with its sign."""
    return np.take_along_axis(runs, np.abs(runs).argmax(-1)[..., None], -1)[..., 0]


def _nibbles(q: np.ndarray) -> np.ndarray:
    """[..., 32] -> [..., 16]: elements 0 to 15 low, 16 to 31 high."""
    return q[..., :16] | q[..., 16:] << 4


def _bit_pairs(q: np.ndarray) -> np.ndarray:
    """[blocks, 256] -> [blocks, 64]: byte l of each 32 holds elements l, l + 32, l + 64, l + 96."""
    quarters = q.reshape(len(q), 2, 4, 32)
    shifted = quarters << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(shifted, axis=2).reshape(len(q), 64)


def _high_bits(q: np.ndarray, bit: int) -> np.ndarray:
    """[blocks, 256] -> [blocks, 32]: bit r of byte l is that of element 32 r + l."""
    runs = (q >> bit & 1).reshape(len(q), 8, 32)
    return np.bitwise_or.reduce(runs << np.arange(8, dtype=np.uint8)[:, None], axis=1)


def _nearest_iq4(values: np.ndarray) -> np.ndarray:
    middles = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    d, scale = _half(_extreme(blocks)[:, None] / -127)
    return np.concatenate([d, _nibbles(_nearest_iq4(_over(blocks, scale)))], axis=1)


def _iq4_xs(blocks: np.ndarray) -> np.ndarray:
    runs = blocks.reshape(-1, 8, 32)
    scales = _extreme(runs) / -127
    d, unit = _half(np.abs(scales).max(1, keepdims=True) / 31)
    factors = np.clip(np.round(_over(scales, unit)), -32, 31)
    q = _nearest_iq4(_over(runs, (unit * factors)[..., None]))
    stored = (factors + 32).astype(np.uint16)
    high = (stored >> 4) << np.arange(0, 16, 2, dtype=np.uint16)
    low = (stored & 15).astype(np.uint8)
    return np.concatenate(
        [
            d,
            np.bitwise_or.reduce(high, axis=1)[:, None].view(np.uint8),
            low[:, 0::2] | low[:, 1::2] << 4,
            _nibbles(q).reshape(-1, 128),
        ],
        axis=1,
    )


def _with_minimums(
    runs: np.ndarray, most_q: int, most_factor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """w = d * scale * q - dmin * min: q [blocks, 256], scale and min [blocks, runs], d and dmin
    as bytes.
    """
    lowest = np.minimum(runs.min(-1), 0)
    scales = (np.maximum(runs.max(-1), 0) - lowest) / most_q
    d, unit = _half(scales.max(1, keepdims=True) / most_factor)
    dmin, minimum_unit = _half(-lowest.min(1, keepdims=True) / most_factor)
    factors = np.clip(np.round(_over(scales, unit)), 0, most_factor)
    minimums = np.clip(np.round(_over(-lowest, minimum_unit)), 0, most_factor)
    shifted = runs + (minimum_unit * minimums)[..., None]
    q = np.clip(np.round(_over(shifted, (unit * factors)[..., None])), 0, most_q)
    return (
        q.reshape(len(runs), 256).astype(np.uint8),
        factors.astype(np.uint8),
        minimums.astype(np.uint8),
        d,
        dmin,
    )


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    q, factors, minimums, d, dmin = _with_minimums(blocks.reshape(-1, 16, 16), 3, 15)
    return np.concatenate([factors | minimums << 4, _bit_pairs(q), d, dmin], axis=1)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    runs = blocks.reshape(-1, 16, 16)
    scales = _extreme(runs) / -4
    d, unit = _half(np.abs(scales).max(1, keepdims=True) / 31)
    factors = np.clip(np.round(_over(scales, unit)), -32, 31)
    q = np.clip(np.round(_over(runs, (unit * factors)[..., None])), -4, 3) + 4
    q = q.reshape(-1, 256).astype(np.uint8)
    stored = (factors + 32).astype(np.uint8)
    high = (stored >> 4).reshape(-1, 4, 4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    low = (stored[:, :8] & 15) | (stored[:, 8:] & 15) << 4
    bits = [_high_bits(q, 2), _bit_pairs(q & 3), low, np.bitwise_or.reduce(high, axis=1), d]
    return np.concatenate(bits, axis=1)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    q, factors, minimums, d, dmin = _with_minimums(blocks.reshape(-1, 8, 32), 31, 63)
    first = factors[:, :4] | factors[:, 4:] >> 4 << 6
    second = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
    third = (factors[:, 4:] & 15) | (minimums[:, 4:] & 15) << 4
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([d, dmin, first, second, third, _high_bits(q, 4), nibbles], axis=1)


_ENCODERS: dict[Type, Callable[[np.ndarray], np.ndarray]] = {
    Type.IQ4_NL: _iq4_nl,
    Type.IQ4_XS: _iq4_xs,
    Type.Q2_K: _q2_k,
    Type.Q3_K: _q3_k,
    Type.Q5_K: _q5_k,
}
