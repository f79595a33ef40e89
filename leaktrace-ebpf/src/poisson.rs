//! Sampling by bytes: which of a native allocator's blocks are taken.
//!
//! Bytes are drawn in a Poisson process, one in `rate` on average, and a block is taken when one of
//! its bytes is drawn: with the probability 1 − exp(−size / rate). Sizes are rounded up to a quarter of a
//! power of two before, and the probability is that of the rounded size, so that all blocks of a
//! class have the same and a sum of them can be scaled without knowing each. Blocks whose class
//! reaches the rate are always taken.
//!
//! Pure: random bits in, decisions out; the tests of `leaktrace` include this file.

use core::hint::black_box;

/// Smallest class, in bytes.
const SMALLEST: u64 = 16;

/// The size by which a block of `size` bytes is sampled at `rate`: rounded up to a quarter of a power
/// of two, at most the rate.
#[inline(always)]
pub fn class(size: u64, rate: u64) -> u64 {
    if size >= rate {
        return rate;
    }
    let size = if size < SMALLEST { SMALLEST } else { size };
    let quarter = (1 << log2(size)) / 4;
    let rounded = (size + quarter - 1) & !(quarter - 1);
    if rounded < rate { rounded } else { rate }
}

/// Bytes until the next byte that is drawn: exponentially distributed with the mean `rate`, at least
/// 1. `random` is uniform over all of its values.
#[inline(always)]
pub fn gap(rate: u64, random: u32) -> u64 {
    // −ln(u) = ln 2 · −log2(u), u = (random + 1) / 2³², so that it is never zero.
    const LN_2: u64 = 45426; // · 2¹⁶
    let whole = random as u64 + 1;
    let integer = log2(whole);
    // Its fraction, bit by bit: squaring doubles the logarithm.
    let mut x = (whole << (32 - integer)) >> 1; // in [1, 2) · 2³¹
    let mut fraction = 0;
    for _ in 0..FRACTION_BITS {
        x = (x * x) >> 31;
        // Without a branch, which the compiler must not make of it either: Linux 6.1 would follow all 2¹⁶ ways.
        let bit = black_box(x >> 32);
        fraction = fraction << 1 | bit;
        x >>= bit;
    }
    let log2 = (integer << FRACTION_BITS) + fraction;
    let below = (32 << FRACTION_BITS) - log2;
    ((below * LN_2) >> 16) * rate / (1 << FRACTION_BITS) + 1
}

const FRACTION_BITS: u64 = 16;

/// The position of the highest bit of a number below 2³³; 0 for 0. (This target has no instruction
/// for it.)
#[inline(always)]
fn log2(number: u64) -> u64 {
    let (mut number, mut log) = (number, 0);
    if number >> 32 != 0 {
        (number, log) = (number >> 32, 32);
    }
    if number >> 16 != 0 {
        (number, log) = (number >> 16, log + 16);
    }
    if number >> 8 != 0 {
        (number, log) = (number >> 8, log + 8);
    }
    if number >> 4 != 0 {
        (number, log) = (number >> 4, log + 4);
    }
    if number >> 2 != 0 {
        (number, log) = (number >> 2, log + 2);
    }
    log + (number >> 1 & 1)
}
