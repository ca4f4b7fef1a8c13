//! Gradients of some rows of a tensor.
//!
//! The rows that have a gradient are gathered, in ascending order, from the weights and from
//! every state, updated as a tensor of their own by the same loops as any other, and scattered
//! back. So a step reads and writes no other rows, and a gradient of all rows gives the bits of
//! the dense one.

use super::values::{Values, with_values};
use crate::numeric::element::Float;
use crate::numeric::elementwise::convert;
use crate::runtime::memory;
use crate::runtime::parallel::{self, SharedMut};

/// Bytes that are worth a task of their own. Rows lie anywhere in memory, so that each byte
/// takes longer than in a loop over neighbors.
const GRAIN_BYTES: usize = 32 * 1024;

/// Which rows of a tensor have a gradient.
pub struct Rows {
    /// Ascending and distinct.
    rows: Vec<usize>,
    /// Where the occurrences of each row begin in `order`, and where the last ends.
    starts: Vec<usize>,
    /// The occurrences, by row and then in the order in which they were given.
    order: Vec<usize>,
    /// Number of rows of the tensor.
    of: usize,
}

/// The sum of the gradients of each row.
pub enum RowSums {
    /// In double precision, of gradients in it.
    F64(Vec<f64>),
    /// In single precision, of gradients in it or in half precision.
    F32(Vec<f32>),
}

impl RowSums {
    /// The sums, row after row.
    pub fn values(&self) -> Values<'_> {
        match self {
            RowSums::F64(sums) => Values::F64(sums),
            RowSums::F32(sums) => Values::F32(sums),
        }
    }
}

impl Rows {
    /// The rows `given`, in any order and any number of times, of a tensor with `of` rows.
    ///
    /// # Errors
    /// Position and value of the first that is out of range.
    ///
    /// # Unwinds
    /// With [`OutOfMemory`](memory::OutOfMemory).
    pub fn new(given: &[i64], of: usize) -> Result<Self, (usize, i64)> {
        // Each is read once: others may write to them meanwhile.
        let mut pairs = memory::with_capacity(given.len());
        for (position, &row) in given.iter().enumerate() {
            let checked = usize::try_from(row).ok().filter(|&row| row < of);
            pairs.push((checked.ok_or((position, row))?, position));
        }
        if !pairs.is_sorted() {
            pairs.sort_unstable();
        }
        let mut rows = memory::with_capacity(pairs.len());
        let mut starts = memory::with_capacity(pairs.len() + 1);
        for (i, &(row, _)) in pairs.iter().enumerate() {
            if rows.last() != Some(&row) {
                rows.push(row);
                starts.push(i);
            }
        }
        starts.push(pairs.len());
        let order = memory::collect(pairs.iter().map(|&(_, position)| position));
        Ok(Rows { rows, starts, order, of })
    }

    /// Number of distinct rows.
    #[expect(clippy::len_without_is_empty, reason = "not needed")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The sum of the gradients of each row, added in the order in which they were given.
    ///
    /// # Panics
    /// If there are not `width` values for each row that was given.
    ///
    /// # Unwinds
    /// With [`OutOfMemory`](memory::OutOfMemory).
    pub fn sums(&self, values: Values<'_>, width: usize) -> RowSums {
        assert_eq!(values.len(), self.order.len() * width, "number of values");
        match values {
            Values::F64(_) => RowSums::F64(self.sums_as(values, width)),
            _ => RowSums::F32(self.sums_as(values, width)),
        }
    }

    fn sums_as<C: Float>(&self, values: Values<'_>, width: usize) -> Vec<C> {
        let mut sums = memory::zeroed(memory::product(self.len(), width));
        let out = SharedMut::new(&mut sums);
        self.for_each(width * size_of::<C>(), |i, _| {
            // SAFETY: rows do not overlap, and each has one call.
            let sum = unsafe { out.slice(i * width..(i + 1) * width) };
            let occurrences = &self.order[self.starts[i]..self.starts[i + 1]];
            with_values!(values, values => {
                let row = |position: usize| &values[position * width..(position + 1) * width];
                for (sum, &x) in sum.iter_mut().zip(row(occurrences[0])) {
                    *sum = convert(x);
                }
                for &position in &occurrences[1..] {
                    for (sum, &x) in sum.iter_mut().zip(row(position)) {
                        *sum += convert::<_, C>(x);
                    }
                }
            });
        });
        sums
    }

    /// Copies the rows of a tensor, given as bytes, to `few`.
    ///
    /// # Panics
    /// If the lengths do not fit the rows.
    ///
    /// # Safety
    /// Nothing else writes to the tensor meanwhile, nor uses `few`.
    pub unsafe fn gather(&self, tensor: &SharedMut<'_, u8>, few: &SharedMut<'_, u8>) {
        let bytes = self.row_bytes(tensor, few);
        self.for_each(bytes, |i, row| {
            // SAFETY: each row of `few` is written by one call; the caller guarantees that
            // nothing else uses it, and nothing writes to the tensor.
            unsafe {
                let from = tensor.read(row * bytes..(row + 1) * bytes);
                few.slice(i * bytes..(i + 1) * bytes).copy_from_slice(from);
            }
        });
    }

    /// Copies rows back to where [`gather`](Self::gather) had them from.
    ///
    /// # Panics
    /// If the lengths do not fit the rows.
    ///
    /// # Safety
    /// Nothing else uses the tensor meanwhile, nor writes to `few`.
    pub unsafe fn scatter(&self, few: &SharedMut<'_, u8>, tensor: &SharedMut<'_, u8>) {
        let bytes = self.row_bytes(tensor, few);
        self.for_each(bytes, |i, row| {
            // SAFETY: the rows are distinct, so that each is written by one call; the caller
            // guarantees that nothing else uses the tensor, and nothing writes to `few`.
            unsafe {
                let to = tensor.slice(row * bytes..(row + 1) * bytes);
                to.copy_from_slice(few.read(i * bytes..(i + 1) * bytes));
            }
        });
    }

    /// The bits of the rows of a mask with `width` bits a row; see [`Tensor`](super::Tensor).
    ///
    /// # Unwinds
    /// With [`OutOfMemory`](memory::OutOfMemory).
    pub fn gather_bits(&self, mask: &[u8], width: usize) -> Vec<u8> {
        let mut bits = memory::zeroed(super::mask_bytes(memory::product(self.len(), width)));
        for (i, &row) in self.rows.iter().enumerate() {
            for column in 0..width {
                let (from, to) = (row * width + column, i * width + column);
                bits[to / 8] |= (mask[from / 8] >> (from % 8) & 1) << (to % 8);
            }
        }
        bits
    }

    /// The bytes of a row of a tensor, of which `few` holds the rows that have a gradient.
    fn row_bytes(&self, tensor: &SharedMut<'_, u8>, few: &SharedMut<'_, u8>) -> usize {
        let bytes = tensor.len().checked_div(self.of).unwrap_or(0);
        assert_eq!((bytes * self.of, bytes * self.len()), (tensor.len(), few.len()), "rows");
        bytes
    }

    /// Calls `f` with number and row of each distinct row, in parallel.
    fn for_each(&self, bytes: usize, f: impl Fn(usize, usize) + Sync) {
        let grain = (GRAIN_BYTES / bytes.max(1)).max(1);
        parallel::for_each(0..self.len(), grain, 1, |part| {
            for i in part {
                f(i, self.rows[i]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_their_gradients_added_in_the_order_given() {
        let rows = Rows::new(&[3, 0, 3, 1, 3], 4).unwrap();
        assert_eq!(rows.rows, [0, 1, 3]);
        assert_eq!(rows.order, [1, 3, 0, 2, 4]);
        // In another order the sum of the last row would be 1.
        let values = [1e8_f32, 2.0, -1e8, 3.0, 1.0];
        let RowSums::F32(sums) = rows.sums(Values::F32(&values), 1) else { panic!() };
        assert_eq!(sums, [2.0, 3.0, 1e8 - 1e8 + 1.0]);
        let halves = values.map(|x| half::bf16::from_f32(x.signum()));
        let RowSums::F32(sums) = rows.sums(Values::Bf16(&halves), 1) else { panic!() };
        assert_eq!(sums, [1.0, 1.0, 1.0]);
        let wide: Vec<f64> = (0..15).map(f64::from).collect();
        let RowSums::F64(sums) = rows.sums(Values::F64(&wide), 3) else { panic!() };
        assert_eq!(sums, [3.0, 4.0, 5.0, 9.0, 10.0, 11.0, 18.0, 21.0, 24.0]);
    }

    #[test]
    fn rows_out_of_range_are_named() {
        assert_eq!(Rows::new(&[0, 4], 4).err(), Some((1, 4)));
        assert_eq!(Rows::new(&[-1], 4).err(), Some((0, -1)));
        assert_eq!(Rows::new(&[0], 0).err(), Some((0, 0)));
        assert_eq!(Rows::new(&[], 0).unwrap().len(), 0);
    }

    #[test]
    fn only_these_rows_are_gathered_and_scattered() {
        let mut tensor: Vec<u8> = (0..12).collect();
        let shared = SharedMut::new(&mut tensor);
        let rows = Rows::new(&[2, 0], 4).unwrap();
        let mut few = [0; 6];
        // SAFETY: nothing else uses either.
        unsafe { rows.gather(&shared, &SharedMut::new(&mut few)) };
        assert_eq!(few, [0, 1, 2, 6, 7, 8]);
        few.fill(99);
        // SAFETY: as above.
        unsafe { rows.scatter(&SharedMut::new(&mut few), &shared) };
        assert_eq!(tensor, [99, 99, 99, 3, 4, 5, 99, 99, 99, 9, 10, 11]);
    }

    #[test]
    fn bits_of_rows_need_not_begin_with_a_byte() {
        // Rows of 3 bits, the lowest first: 101, 111, 001.
        let mask = [0b0011_1101, 0b0000_0001];
        let rows = Rows::new(&[2, 0], 3).unwrap();
        assert_eq!(rows.gather_bits(&mask, 3), [0b0010_0101]);
    }
}
