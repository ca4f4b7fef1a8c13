//! Random numbers for rounding: up or down, so that the mean is right.
//!
//! A number that moves by less than the distance to its neighbour, as a weight in
//! half precision or a moment in 8 bits does, never moves at all if it is rounded
//! to nearest. Here a threshold that is uniform in `[0, 1)` decides, and it moves
//! in proportion.
//!
//! The thresholds of one element are `u_t = frac(h + t phi)` over the steps `t`,
//! with `h` a hash of seed, tensor and element, another for states than for weights, and `phi` the golden
//! ratio's fraction. For each step they are uniform over the elements, and over
//! the steps they are spread more evenly than independent ones would be (their
//! discrepancy falls as `log(t) / t`), so that a number that creeps makes its way
//! with less noise. Being functions of their counters, they depend neither on the
//! number of threads nor on the vector width.

/// Elements that share a row of thresholds, and in 8-bit state a scale.
pub const BLOCK: usize = 256;

/// `2^32` times the fraction of the golden ratio.
const GOLDEN: u32 = 0x9E37_79B9;

/// Random numbers, of which a block takes a row of [`BLOCK`] somewhere.
static NUMBERS: [u32; BLOCK + STARTS] = {
    let mut numbers = [0; BLOCK + STARTS];
    let mut i = 0;
    while i < numbers.len() {
        numbers[i] = mix(i as u64) as u32;
        i += 1;
    }
    numbers
};

/// Where a row of [`NUMBERS`] may start.
const STARTS: usize = 1024 - BLOCK;

/// What is rounded: the states of an element by one threshold, the weight by another.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    States,
    Weights,
}

/// What rounding decides by in one step of one tensor.
#[derive(Clone, Copy, Debug)]
pub struct StochasticRounding {
    key: u64,
    step_offset: u32,
    first_block: usize,
}

impl StochasticRounding {
    /// That of step `t` of tensor number `tensor`.
    pub fn new(seed: u64, tensor: u64, t: u64) -> Self {
        StochasticRounding {
            key: mix(mix(seed) ^ tensor),
            step_offset: (t as u32).wrapping_mul(GOLDEN),
            first_block: 0,
        }
    }

    /// That of a part of the tensor that begins with this block.
    pub fn from_block(self, first_block: usize) -> Self {
        StochasticRounding { first_block, ..self }
    }

    /// The thresholds of a block of elements.
    #[inline]
    pub(crate) fn thresholds(&self, of: Of, block: usize) -> Thresholds {
        let hash = mix(self.key ^ (of as u64) << 56 ^ (self.first_block + block) as u64);
        let start = (hash >> 32) as usize % STARTS;
        Thresholds {
            numbers: NUMBERS[start..].first_chunk().expect("as many as a block"),
            offset: (hash as u32).wrapping_add(self.step_offset),
        }
    }
}

/// The output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// A threshold for each element of a block, as a fraction of `2^32`.
pub(crate) trait Threshold: Copy {
    fn at(self, i: usize) -> u32;
}

/// Thresholds of a block.
#[derive(Clone, Copy)]
pub(crate) struct Thresholds {
    numbers: &'static [u32; BLOCK],
    /// What is added to each.
    offset: u32,
}

impl Threshold for Thresholds {
    #[inline(always)]
    fn at(self, i: usize) -> u32 {
        self.numbers[i % BLOCK].wrapping_add(self.offset)
    }
}

/// One half everywhere: rounds to nearest, ties up.
#[derive(Clone, Copy)]
pub(crate) struct Nearest;

impl Threshold for Nearest {
    #[inline(always)]
    fn at(self, _: usize) -> u32 {
        1 << 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-squared of counts that should be equal, in standard deviations.
    fn excess(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        let chi: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        let degrees = (counts.len() - 1) as f64;
        (chi - degrees) / (2.0 * degrees).sqrt()
    }

    fn at(i: usize) -> u32 {
        StochasticRounding::new(1, 2, 3).thresholds(Of::States, i / BLOCK).at(i % BLOCK)
    }

    #[test]
    fn thresholds_are_uniform_over_elements() {
        let mut counts = vec![0; 64];
        for i in 0..200_000 {
            counts[(at(i) >> 26) as usize] += 1;
        }
        assert!(excess(&counts) < 5.0, "{}", excess(&counts));
    }

    /// Two that round up with probability p do so together with p squared.
    #[test]
    fn thresholds_do_not_follow_their_neighbours() {
        const N: usize = 200_000;
        for distance in [1, 2, 16, 64, 144, BLOCK] {
            for p in [0.05, 0.5] {
                let up = |i: usize| f64::from(at(i)) < p * 2f64.powi(32);
                let both = (0..N).filter(|&i| up(i) && up(i + distance)).count();
                let correlation = (both as f64 / N as f64 - p * p) / (p * (1.0 - p));
                // A row has some 800 starts, of which each pair sees the same differences.
                assert!(correlation.abs() < 0.1, "distance {distance}: {correlation}");
            }
        }
    }

    #[test]
    fn seed_tensor_and_use_make_a_difference() {
        let first = |seed, tensor, of| {
            let thresholds = StochasticRounding::new(seed, tensor, 1).thresholds(of, 0);
            (0..8).map(|i| thresholds.at(i)).collect::<Vec<_>>()
        };
        let all = [
            first(0, 0, Of::States),
            first(1, 0, Of::States),
            first(0, 1, Of::States),
            first(0, 0, Of::Weights),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
    }

    #[test]
    fn a_part_of_a_tensor_is_rounded_as_in_the_whole() {
        let whole = StochasticRounding::new(1, 2, 3);
        for of in [Of::States, Of::Weights] {
            let (a, b) = (whole.thresholds(of, 7), whole.from_block(4).thresholds(of, 3));
            assert!((0..BLOCK).all(|i| a.at(i) == b.at(i)));
        }
    }

    /// The three-distance theorem: among n steps every arc of 3 / n is visited.
    #[test]
    fn thresholds_are_spread_evenly_over_steps() {
        let mut seen: Vec<u32> = (0..1000)
            .map(|t| StochasticRounding::new(5, 6, t).thresholds(Of::Weights, 8).at(9))
            .collect();
        seen.sort_unstable();
        let widest = seen.windows(2).map(|w| w[1] - w[0]).max().unwrap();
        assert!(f64::from(widest) < 3.0 / 1000.0 * 2f64.powi(32));
    }
}
