//! What encoders write is what decoders give back, by rANS, by planes and by positions.
#![no_main]

use compressrs_core::codec::block::{self, Block};
use compressrs_core::codec::planes::{self, Elements};
use compressrs_core::codec::positions;
use compressrs_core::codec::rans::{self, NARROW, Table, WIDE};
use compressrs_core::runtime::simd::Level;
use libfuzzer_sys::fuzz_target;

fn rans_gives_back<const N: usize>(symbols: &[u8]) {
    let mut counts = [0; 256];
    symbols.iter().for_each(|&s| counts[usize::from(s)] += 1);
    let Some(table) = Table::new(&counts) else { return };
    let mut written = Vec::new();
    table.write(&mut written);
    let mut rest = &written[..];
    let read = Table::read(&mut rest).unwrap();
    assert!(rest.is_empty());
    let mut coded = Vec::new();
    rans::encode::<N>(&table, symbols, &mut coded);
    for level in Level::supported() {
        let mut out = vec![0; symbols.len()];
        rans::decode_at::<N>(level, &read, &coded, &mut out).unwrap();
        assert!(out == symbols, "{}", level.name());
    }
}

fn positions_give_back<T: positions::Element + std::fmt::Debug>(x: &[T]) {
    let mut bits = vec![0; x.len().div_ceil(8)];
    let (mut values, mut gaps, mut same) = (Vec::new(), Vec::new(), Vec::new());
    positions::to_bits(x, &mut bits, &mut values);
    positions::to_gaps(x, &mut gaps, &mut same);
    assert!(values == same && values.len() == positions::count(x));
    let mut out = x.to_vec();
    out.fill(T::default());
    positions::from_bits(&bits, &values, &mut out).unwrap();
    assert!(out == x);
    out.fill(T::default());
    positions::from_gaps(&gaps, &values, &mut out).unwrap();
    assert!(out == x);
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    rans_gives_back::<NARROW>(data);
    rans_gives_back::<WIDE>(data);

    let mut stream = Vec::new();
    block::encode(data, &mut stream);
    let mut rest = &stream[..];
    let block = Block::take(&mut rest).unwrap();
    let mut out = vec![0; data.len()];
    block.decode(&mut out).unwrap();
    assert!(rest.is_empty() && out == data);

    let width = 1 << (kind & 3);
    let elements = Elements::new(width, kind & 4 != 0).unwrap();
    let whole = &data[..data.len() / width * width];
    let stream = planes::encode(elements, whole).concat();
    let mut out = vec![0; whole.len()];
    planes::decode(elements, &stream, &mut out).unwrap();
    assert!(out == whole);

    positions_give_back(data);
    positions_give_back(&data.iter().map(|&b| u16::from(b) << 8).collect::<Vec<_>>());
    let sparse: Vec<u32> =
        data.iter().map(|&b| if b % 16 == 1 { u32::from(b) } else { 0 }).collect();
    positions_give_back(&sparse);
});
