"""Conversion, exhaustively where it can be: all 65536 bfloat16 values, and rounding at every tie."""
import numpy as np
from expertd import from_bf16, to_bf16

ALL = np.arange(65536, dtype=np.uint16)


def test_every_value_survives_the_round_trip():
    back = to_bf16(from_bf16(ALL))
    nan = np.isnan(from_bf16(ALL))
    np.testing.assert_array_equal(back[~nan], ALL[~nan])
    np.testing.assert_array_equal(back[nan], ALL[nan] | 0x40)  # quiet, sign and payload kept


def test_ties_go_to_even_and_neighbours_of_ties_to_the_nearest():
    finite = ALL[np.isfinite(from_bf16(ALL))]
    bits = finite.astype(np.uint32) << 16
    for low, expected in ((0x8000, finite + (finite & 1)), (0x7FFF, finite), (0x8001, finite + 1), (0xFFFF, finite + 1)):
        np.testing.assert_array_equal(to_bf16((bits | low).view(np.float32)), expected)


def test_nan_with_any_payload_stays_nan():
    for pattern in (0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F807FFF):
        values = np.zeros(70000, np.float32)
        values.view(np.uint32)[[0, 40000, 69999]] = pattern
        out = from_bf16(to_bf16(values))
        assert np.isnan(out[[0, 40000, 69999]]).all() and np.count_nonzero(out) == 3
        assert (np.signbit(out[0])) == bool(pattern >> 31)


def test_shapes_and_strides():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert to_bf16(values).shape == (2, 3, 4) and to_bf16(values[:0]).shape == (0, 3, 4)
    np.testing.assert_array_equal(from_bf16(to_bf16(values[:, ::2])), values[:, ::2])
    np.testing.assert_array_equal(from_bf16(to_bf16(values)[::-1]), values[::-1])
