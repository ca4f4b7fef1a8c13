//! Coded and decoded: the same bytes, on every level, and no harm from streams of anywhere.

use compressrs_core::codec::block::{self, Block, MAX_SYMBOLS};
use compressrs_core::codec::planes::{self, Elements};
use compressrs_core::codec::positions::{self, Element};
use compressrs_core::codec::rans::{self, NARROW, Table, WIDE};
use compressrs_core::runtime::simd::Level;
use proptest::prelude::*;

fn table(symbols: &[u8]) -> Option<Table> {
    let mut counts = [0; 256];
    symbols.iter().for_each(|&s| counts[usize::from(s)] += 1);
    Table::new(&counts)
}

fn round_trip<const N: usize>(symbols: &[u8]) {
    let Some(table) = table(symbols) else { return };
    let mut coded = Vec::new();
    rans::encode::<N>(&table, symbols, &mut coded);
    for level in Level::supported() {
        let mut out = vec![0; symbols.len()];
        rans::decode_at::<N>(level, &table, &coded, &mut out).unwrap();
        assert!(out == symbols, "{}", level.name());
    }
    // One symbol more or less than was written is not what was written.
    for wrong in [symbols.len() + 1, symbols.len().saturating_sub(1)] {
        let mut out = vec![0; wrong];
        assert!(rans::decode::<N>(&table, &coded, &mut out).is_err() || wrong == symbols.len());
    }
}

fn encode(elements: Elements, data: &[u8]) -> Vec<u8> {
    planes::encode(elements, data).concat()
}

/// Symbols from a few to all values, more or less skewed.
fn symbols(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any::<(u8, u8)>(), len), 0u32..8, any::<u8>()).prop_map(
        |(pairs, skew, mask)| {
            let value = |(a, b): (u8, u8)| if b.trailing_zeros() >= skew { a } else { b } & mask;
            pairs.into_iter().map(value).collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn rans_gives_back_what_it_was_given(symbols in symbols(0..3000)) {
        round_trip::<NARROW>(&symbols);
        round_trip::<WIDE>(&symbols);
    }

    #[test]
    fn planes_give_back_what_they_were_given(data in symbols(0..4000), rotate: bool) {
        for width in [1, 2, 4, 8] {
            let elements = Elements::new(width, rotate).unwrap();
            let data = &data[..data.len() - data.len() % width];
            let stream = encode(elements, data);
            let mut out = vec![1; data.len()];
            prop_assert_eq!(planes::decode(elements, &stream, &mut out), Ok(()));
            prop_assert!(out == data);
            // At most the heads of blocks more than there was.
            prop_assert!(stream.len() <= data.len() + 16 * width);
            let mut longer = vec![1; data.len() + width];
            prop_assert!(planes::decode(elements, &stream, &mut longer).is_err());
        }
    }

    #[test]
    fn random_bytes_are_no_stream_or_one(data in prop::collection::vec(any::<u8>(), 0..600), n in 0usize..64) {
        let mut out = vec![0; 8 * n];
        for width in [1, 2, 4, 8] {
            let _ = planes::decode(Elements::new(width, true).unwrap(), &data, &mut out);
        }
        let mut rest = &data[..];
        if let Ok(table) = Table::read(&mut rest) {
            for level in Level::supported() {
                let _ = rans::decode_at::<WIDE>(level, &table, rest, &mut out);
            }
        }
    }

    #[test]
    fn damaged_streams_are_refused_or_decode_alike_on_every_level(
        symbols in symbols(1000..3000), at: prop::sample::Index, flip in 1u8..,
    ) {
        let Some(table) = table(&symbols) else { return Ok(()) };
        let mut coded = Vec::new();
        rans::encode::<WIDE>(&table, &symbols, &mut coded);
        let at = at.index(coded.len());
        coded[at] ^= flip;
        let decode = |level, coded: &[u8]| {
            let mut out = vec![0; symbols.len()];
            rans::decode_at::<WIDE>(level, &table, coded, &mut out).map(|()| out)
        };
        let truth = decode(Level::Portable, &coded);
        let cut = decode(Level::Portable, &coded[..at]);
        prop_assert!(cut.is_err());
        for level in Level::supported() {
            prop_assert_eq!(&decode(level, &coded), &truth);
            prop_assert!(decode(level, &coded[..at]).is_err());
        }
    }

    #[test]
    fn bits_and_gaps_give_back_what_they_were_given(data in symbols(0..3000), sparse: bool) {
        let data: Vec<u8> = if sparse { data.iter().map(|&b| if b % 64 == 1 { b } else { 0 }).collect() } else { data };
        check_positions(&data);
        check_positions(&data.iter().map(|&b| u16::from(b) << 8).collect::<Vec<_>>());
        check_positions(&data.iter().map(|&b| u64::from(b) << 40).collect::<Vec<_>>());
    }
}

fn check_positions<T: Element + std::fmt::Debug>(x: &[T]) {
    let kept: Vec<T> = x.iter().copied().filter(|&x| x != T::default()).collect();
    let mut bits = vec![0; x.len().div_ceil(8)];
    let (mut values, mut gaps, mut same) = (Vec::new(), Vec::new(), Vec::new());
    positions::to_bits(x, &mut bits, &mut values);
    positions::to_gaps(x, &mut gaps, &mut same);
    assert_eq!((&values, &same), (&kept, &kept));
    assert_eq!(positions::count(x), kept.len());
    let mut out = x.to_vec();
    out.reverse();
    positions::from_bits(&bits, &values, &mut out).unwrap();
    assert_eq!(out, x);
    out.reverse();
    positions::from_gaps(&gaps, &values, &mut out).unwrap();
    assert_eq!(out, x);
    // Too few values, too many, and elements that are missing.
    if let Some((_, fewer)) = values.split_last() {
        assert!(positions::from_bits(&bits, fewer, &mut out).is_err());
        assert!(positions::from_gaps(&gaps, fewer, &mut out).is_err());
        let last = x.iter().rposition(|&x| x != T::default()).unwrap();
        assert!(positions::from_gaps(&gaps, &values, &mut out[..last]).is_err());
        assert!(positions::from_bits(&bits, &values, &mut out[..last]).is_err());
    }
    values.push(T::default());
    assert!(positions::from_bits(&bits, &values, &mut out).is_err());
    assert!(positions::from_gaps(&gaps, &values, &mut out).is_err());
}

/// Weights as training leaves them, near enough: a sum of uniform numbers.
fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..8).map(|_| uniform()).sum::<f32>() * 0.05).collect()
}

#[test]
fn weights_shrink_by_what_their_exponents_leave() {
    let x = weights(300_001);
    let f32s: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bf16s: Vec<u8> = x.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let f16s: Vec<u8> = x.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    for (data, width, most) in [(f32s, 4, 0.85), (bf16s, 2, 0.68), (f16s, 2, 0.86)] {
        let elements = Elements::new(width, true).unwrap();
        let stream = encode(elements, &data);
        let ratio = stream.len() as f64 / data.len() as f64;
        assert!(ratio < most, "{width} bytes: {ratio}");
        let mut out = vec![0; data.len()];
        planes::decode(elements, &stream, &mut out).unwrap();
        assert!(out == data);
    }
}

#[test]
fn blocks_of_every_form_and_length() {
    for n in [0, 1, 2, 7, 8, 31, 32, 33, 1000, 1 << 15, MAX_SYMBOLS] {
        for max in [1, 2, 3, 4, 15, 16, 200, 256] {
            // Uniform: no table pays, so that all packed forms occur.
            let symbols: Vec<u8> = (0..n)
                .map(|i| ((i as u64 * 2_654_435_761) >> 7) as u8)
                .map(|b| (usize::from(b) % max) as u8)
                .collect();
            let mut stream = Vec::new();
            block::encode(&symbols, &mut stream);
            let mut rest = &stream[..];
            let block = Block::take(&mut rest).unwrap();
            assert!(rest.is_empty() && block.symbols() == n);
            let mut out = vec![9; n];
            block.decode(&mut out).unwrap();
            assert!(out == symbols, "{n} symbols below {max}");
            for end in 0..stream.len().min(40) {
                assert!(Block::take(&mut &stream[..end]).is_err());
            }
        }
    }
}

#[test]
fn streams_follow_each_other() {
    let elements = Elements::new(4, true).unwrap();
    let data: Vec<u8> = weights(MAX_SYMBOLS + 5).iter().flat_map(|x| x.to_le_bytes()).collect();
    let (a, b) = data.split_at(4 * 1234);
    let stream = [encode(elements, a), encode(elements, b)].concat();
    let mut out = vec![0; data.len()];
    planes::decode(elements, &stream, &mut out).unwrap();
    assert!(out == data);
}
