//! Coded streams of any bytes: refused, or decoded alike on every level.
#![no_main]

use compressrs_core::codec::block::Block;
use compressrs_core::codec::planes::{self, Elements};
use compressrs_core::codec::positions;
use compressrs_core::codec::rans::{self, NARROW, Table, WIDE};
use compressrs_core::runtime::simd::Level;
use libfuzzer_sys::fuzz_target;

fn everywhere<const N: usize>(table: &Table, bytes: &[u8], n: usize) {
    let decode = |level| {
        let mut out = vec![0; n];
        rans::decode_at::<N>(level, table, bytes, &mut out).ok().map(|()| out)
    };
    let mut levels = Level::supported();
    let truth = levels.next().and_then(decode);
    for level in levels {
        assert!(decode(level) == truth, "{}", level.name());
    }
}

fn positions_of<T: positions::Element>(places: &[u8], values: &[T], n: usize) {
    let mut out = vec![T::default(); n];
    let _ = positions::from_bits(places, values, &mut out);
    let _ = positions::from_gaps(places, values, &mut out);
}

fuzz_target!(|data: &[u8]| {
    let [kind, low, high, stream @ ..] = data else { return };
    let n = usize::from(u16::from_le_bytes([*low, *high]));
    match kind % 4 {
        0 => {
            for width in [1, 2, 4, 8] {
                let elements = Elements::new(width, kind & 4 != 0).unwrap();
                let mut out = vec![0; n / width * width];
                let _ = planes::decode(elements, stream, &mut out);
            }
        }
        1 => {
            let mut rest = stream;
            while let Ok(block) = Block::take(&mut rest) {
                if block.symbols() <= 1 << 16 {
                    let mut out = vec![0; block.symbols()];
                    if block.decode(&mut out).is_ok() {
                        assert!(block.raw().is_none_or(|raw| raw == out));
                    }
                }
            }
        }
        2 => {
            let mut rest = stream;
            if let Ok(table) = Table::read(&mut rest) {
                everywhere::<NARROW>(&table, rest, n);
                everywhere::<WIDE>(&table, rest, n);
            }
        }
        _ => {
            let (places, values) = stream.split_at(stream.len() / 2);
            positions_of(places, values, n);
            let wide: Vec<u32> = values.iter().map(|&v| u32::from(v) << 20).collect();
            positions_of(places, &wide, n);
        }
    }
});
