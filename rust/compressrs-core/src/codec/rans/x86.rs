//! Thirty-two states at once: four vectors of AVX2, or two of AVX-512.

use std::arch::x86_64::*;

use super::table::Slots;
use super::{BITS, LOW, TOTAL, WIDE, Words};

/// For each set of states that need a word: which of the next words each gets.
static ORDER: [[u32; 8]; 256] = {
    let mut order = [[0; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            order[set][lane] = next;
            next += (set >> lane & 1) as u32;
            lane += 1;
        }
        set += 1;
    }
    order
};

/// Decodes groups of [`WIDE`] symbols while there are words for all, and returns how many
/// symbols it decoded.
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub unsafe fn decode_avx2(
    slots: &Slots,
    states: &mut [u32; WIDE],
    words: &mut Words<'_>,
    out: &mut [u8],
) -> usize {
    const LANES: usize = 8;
    const VECTORS: usize = WIDE / LANES;
    let low_bits = _mm256_set1_epi32(TOTAL as i32 - 1);
    let byte = _mm256_set1_epi32(0xff);
    // SAFETY: each load is of 8 of 32 states.
    let mut x: [__m256i; VECTORS] = std::array::from_fn(|v| unsafe {
        _mm256_loadu_si256(states.as_ptr().add(v * LANES).cast())
    });
    let mut done = 0;
    let (groups, _) = out.as_chunks_mut::<WIDE>();
    for group in groups {
        if words.words.len() - words.at < WIDE {
            break;
        }
        let mut symbols = [_mm256_setzero_si256(); VECTORS];
        for v in 0..VECTORS {
            let index = _mm256_and_si256(x[v], low_bits);
            // SAFETY: an index is below TOTAL, the number of slots.
            let slot = unsafe { _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), index) };
            symbols[v] = _mm256_and_si256(slot, byte);
            let product = _mm256_mullo_epi32(
                _mm256_srli_epi32::<20>(slot),
                _mm256_srli_epi32::<{ BITS as i32 }>(x[v]),
            );
            let offset = _mm256_and_si256(_mm256_srli_epi32::<8>(slot), low_bits);
            x[v] = _mm256_add_epi32(product, offset);
        }
        for state in &mut x {
            // Below LOW: nothing in the high half.
            let needs = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(*state), _mm256_setzero_si256());
            let set = _mm256_movemask_ps(_mm256_castsi256_ps(needs)) as usize;
            // SAFETY: `at` words were read and WIDE are left at the start of the group, of
            // which the vectors so far took at most LANES each.
            let next = unsafe { _mm_loadu_si128(words.words.as_ptr().add(words.at).cast()) };
            // SAFETY: a set of 8 states is below 256; a row is 8 words of 32 bits.
            let order = unsafe { _mm256_loadu_si256(ORDER.as_ptr().add(set).cast()) };
            let next = _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(next), order);
            let shifted = _mm256_or_si256(_mm256_slli_epi32::<16>(*state), next);
            *state = _mm256_blendv_epi8(*state, shifted, needs);
            words.at += set.count_ones() as usize;
        }
        let low = _mm256_packus_epi32(symbols[0], symbols[1]);
        let high = _mm256_packus_epi32(symbols[2], symbols[3]);
        let packed = _mm256_packus_epi16(low, high);
        // The packs work in halves of the vector; this puts the symbols in order.
        let lanes = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let packed = _mm256_permutevar8x32_epi32(packed, lanes);
        // SAFETY: a group is 32 bytes.
        unsafe { _mm256_storeu_si256(group.as_mut_ptr().cast(), packed) };
        done += WIDE;
    }
    for v in 0..VECTORS {
        // SAFETY: as for the loads.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().add(v * LANES).cast(), x[v]) };
    }
    debug_assert_eq!(LOW, 1 << 16);
    done
}

/// As [`decode_avx2`].
///
/// # Safety
/// The machine has AVX-512 (F, BW, DQ, VL).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn decode_avx512(
    slots: &Slots,
    states: &mut [u32; WIDE],
    words: &mut Words<'_>,
    out: &mut [u8],
) -> usize {
    const LANES: usize = 16;
    const VECTORS: usize = WIDE / LANES;
    let low_bits = _mm512_set1_epi32(TOTAL as i32 - 1);
    let high_bits = _mm512_set1_epi32(!(LOW as i32 - 1));
    // SAFETY: each load is of 16 of 32 states.
    let mut x: [__m512i; VECTORS] = std::array::from_fn(|v| unsafe {
        _mm512_loadu_si512(states.as_ptr().add(v * LANES).cast())
    });
    let mut done = 0;
    let (groups, _) = out.as_chunks_mut::<WIDE>();
    for group in groups {
        if words.words.len() - words.at < WIDE {
            break;
        }
        for v in 0..VECTORS {
            let index = _mm512_and_si512(x[v], low_bits);
            // SAFETY: an index is below TOTAL, the number of slots.
            let slot = unsafe { _mm512_i32gather_epi32::<4>(index, slots.as_ptr().cast()) };
            // SAFETY: 16 symbols of the 32 of a group.
            unsafe {
                _mm_storeu_si128(
                    group.as_mut_ptr().add(v * LANES).cast(),
                    _mm512_cvtepi32_epi8(slot),
                );
            }
            let product = _mm512_mullo_epi32(
                _mm512_srli_epi32::<20>(slot),
                _mm512_srli_epi32::<{ BITS }>(x[v]),
            );
            let offset = _mm512_and_si512(_mm512_srli_epi32::<8>(slot), low_bits);
            x[v] = _mm512_add_epi32(product, offset);
        }
        for state in &mut x {
            let needs = _mm512_testn_epi32_mask(*state, high_bits);
            // SAFETY: `at` words were read and WIDE are left at the start of the group, of
            // which the vectors so far took at most LANES each.
            let next = unsafe { _mm256_loadu_si256(words.words.as_ptr().add(words.at).cast()) };
            let next = _mm512_maskz_expand_epi32(needs, _mm512_cvtepu16_epi32(next));
            let shifted = _mm512_or_si512(_mm512_slli_epi32::<16>(*state), next);
            *state = _mm512_mask_blend_epi32(needs, *state, shifted);
            words.at += needs.count_ones() as usize;
        }
        done += WIDE;
    }
    for v in 0..VECTORS {
        // SAFETY: as for the loads.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().add(v * LANES).cast(), x[v]) };
    }
    done
}
