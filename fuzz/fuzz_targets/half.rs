//! Conversions to and from half precision, against the crate `half`.
#![no_main]

use compressrs_core::numeric::element::{Element, bf16, f16};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bits: (u32, u32, u16)| {
    let (x, threshold, short) = (f32::from_bits(bits.0), bits.1, bits.2);
    let (h, b) = (half::f16::from_f32_const(x), half::bf16::from_f32_const(x));
    assert!(f16::store(x).to_bits() == h.to_bits() || h.is_nan() && f16::store(x).is_nan());
    assert!(bf16::store(x).to_bits() == b.to_bits() || b.is_nan() && bf16::store(x).is_nan());
    let (h, b) = (f16::from_bits(short), bf16::from_bits(short));
    assert!(h.load().to_bits() == h.to_f32_const().to_bits() || h.is_nan() && h.load().is_nan());
    assert!(b.load().to_bits() == b.to_f32_const().to_bits() || b.is_nan() && b.load().is_nan());
    // Rounded down or up: one of the two neighbours, in the order of thresholds.
    let (down, up) = (f16::store_stochastic(x, 0), f16::store_stochastic(x, u32::MAX));
    let between = f16::store_stochastic(x, threshold);
    assert!(x.is_nan() == between.is_nan());
    if !x.is_nan() {
        let magnitude = |h: f16| h.to_bits() & 0x7FFF;
        assert!(magnitude(down) <= magnitude(between) && magnitude(between) <= magnitude(up));
        assert!(magnitude(up) - magnitude(down) <= 1);
    }
    let (down, up) = (bf16::store_stochastic(x, 0), bf16::store_stochastic(x, u32::MAX));
    let between = bf16::store_stochastic(x, threshold);
    assert!(x.is_nan() == between.is_nan());
    if !x.is_nan() {
        let magnitude = |b: bf16| b.to_bits() & 0x7FFF;
        assert!(magnitude(down) <= magnitude(between) && magnitude(between) <= magnitude(up));
        assert!(magnitude(up) - magnitude(down) <= 1);
    }
});
