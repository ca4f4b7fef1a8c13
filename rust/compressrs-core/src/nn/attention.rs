//! Scaled dot-product attention of several heads, and the gradient of softmax.

use super::GRAIN_ELEMENTS;
use crate::distill::{Axis, PerRow, SoftmaxOutput, softmax};
use crate::linalg::gemm::multiply;
use crate::linalg::matrix::Matrix;
use crate::numeric::element::Float;
use crate::numeric::lanes::sum_tree;
use crate::runtime::parallel::{self, SharedMut};
use crate::runtime::scratch::Scratch;
use crate::runtime::simd::{self, Kernel};

/// Lanes of a sum.
const LANES: usize = 16;

/// `dx = y (dy - sum(y dy))` for rows of so many columns: the gradient of `y = softmax(x)`.
///
/// # Panics
/// If lengths disagree.
pub fn softmax_backward<T: Float>(columns: usize, y: &[T], dy: &[T], dx: &mut [T]) {
    assert!(y.len() == dx.len() && dy.len() == dx.len());
    if columns == 0 {
        return;
    }
    let rows = dx.len() / columns;
    assert_eq!(dx.len(), rows * columns);
    let dx = SharedMut::new(dx);
    parallel::for_each(0..rows, GRAIN_ELEMENTS.div_ceil(columns), 1, |part| {
        let range = part.start * columns..part.end * columns;
        // SAFETY: parts do not overlap.
        let dx = unsafe { dx.slice(range.clone()) };
        simd::dispatch(SoftmaxBackward { columns, y: &y[range.clone()], dy: Some(&dy[range]), dx });
    });
}

struct SoftmaxBackward<'a, T> {
    columns: usize,
    y: &'a [T],
    /// None if it is in `dx`.
    dy: Option<&'a [T]>,
    dx: &'a mut [T],
}

impl<T: Float> Kernel for SoftmaxBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let SoftmaxBackward { columns, y, dy, dx } = self;
        if let Some(dy) = dy {
            dx.copy_from_slice(dy);
        }
        for (y, dx) in y.chunks_exact(columns).zip(dx.chunks_exact_mut(columns)) {
            let mut lanes = [T::zero(); LANES];
            for (y, dx) in y.chunks(LANES).zip(dx.chunks(LANES)) {
                for l in 0..y.len() {
                    lanes[l] = y[l].mul_add(dx[l], lanes[l]);
                }
            }
            let sum = sum_tree(lanes);
            for (dx, y) in dx.iter_mut().zip(y) {
                *dx = *y * (*dx - sum);
            }
        }
    }
}

/// The sizes of an attention: queries, keys and values are `[batch, length, heads width]`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Sequences.
    pub batch: usize,
    /// Queries of a sequence.
    pub queries: usize,
    /// Keys, and values, of a sequence.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub width: usize,
    /// Whether a query sees only keys that are not behind it.
    pub causal: bool,
}

impl Heads {
    /// Lengths of queries, of keys and of probabilities.
    pub fn lengths(&self) -> [usize; 3] {
        let one = self.batch * self.heads;
        [
            one * self.queries * self.width,
            one * self.keys * self.width,
            one * self.queries * self.keys,
        ]
    }

    /// One head of one sequence, as a matrix with a row for each of `length` places.
    fn matrix<'a, T: Float>(&self, x: &'a [T], length: usize, head: usize) -> Matrix<'a, T> {
        let (batch, head) = (head / self.heads, head % self.heads);
        let size = length * self.heads * self.width;
        Matrix::row_major(&x[batch * size..(batch + 1) * size], length, self.heads * self.width)
            .block(0..length, head * self.width..(head + 1) * self.width)
    }

    /// Copies a matrix to where a head is.
    ///
    /// # Safety
    /// Nothing else uses the head's places in `out` meanwhile.
    unsafe fn put<T: Float>(&self, rows: &[T], length: usize, head: usize, out: &SharedMut<'_, T>) {
        let (batch, head) = (head / self.heads, head % self.heads);
        // Of heads without elements there are no rows to copy.
        for (i, row) in rows.chunks_exact(self.width.max(1)).enumerate() {
            let at = ((batch * length + i) * self.heads + head) * self.width;
            // SAFETY: the caller guarantees that the places are this head's alone.
            unsafe { out.slice(at..at + self.width) }.copy_from_slice(row);
        }
    }

    fn scale<T: Float>(&self) -> T {
        T::from_f64((self.width as f64).sqrt().recip())
    }

    /// Runs a body for each head of each sequence.
    fn for_each(&self, body: impl Fn(usize) + Sync) {
        let work = self.queries * self.keys * self.width;
        let grain = (256 * 1024usize).div_ceil(work.max(1));
        parallel::for_each(0..self.batch * self.heads, grain, 1, |part| part.for_each(&body));
    }
}

/// `softmax(q k' / sqrt(width)) v` for each head; the probabilities `[batch, heads, queries,
/// keys]` are kept. Of each sequence only the first `lengths` keys count, where given.
///
/// # Panics
/// If lengths disagree.
pub fn forward<T: Float>(
    heads: &Heads,
    (q, k, v): (&[T], &[T], &[T]),
    lengths: Option<&[usize]>,
    probabilities: &mut [T],
    out: &mut [T],
) {
    let [of_q, of_k, of_p] = heads.lengths();
    assert!(q.len() == of_q && k.len() == of_k && v.len() == of_k);
    assert!(probabilities.len() == of_p && out.len() == of_q);
    assert!(lengths.is_none_or(|lengths| lengths.len() == heads.batch));
    let (probabilities, out) = (SharedMut::new(probabilities), SharedMut::new(out));
    let size = heads.queries * heads.keys;
    heads.for_each(|head| {
        // SAFETY: each head has its own probabilities.
        let p = unsafe { probabilities.slice(head * size..(head + 1) * size) };
        let (q, k) = (heads.matrix(q, heads.queries, head), heads.matrix(k, heads.keys, head));
        multiply(heads.scale(), q, k.transposed(), None, p);
        let seen = lengths.map_or(heads.keys, |lengths| lengths[head / heads.heads]);
        if seen < heads.keys || heads.causal {
            for (i, row) in p.chunks_exact_mut(heads.keys.max(1)).enumerate() {
                let seen = if heads.causal { seen.min(i + 1) } else { seen };
                row[seen.min(heads.keys)..].fill(T::neg_infinity());
            }
        }
        let axis = Axis::last(heads.queries, heads.keys);
        softmax(axis, SoftmaxOutput::Probability, PerRow::All(1.0), None, p);
        let mut rows = Scratch::<T>::new(heads.queries * heads.width);
        let p = Matrix::row_major(p, heads.queries, heads.keys);
        multiply(T::one(), p, heads.matrix(v, heads.keys, head), None, &mut rows);
        // SAFETY: each head has its own places.
        unsafe { heads.put(&rows, heads.queries, head, &out) };
    });
}

/// The gradients of [`forward`] with respect to queries, keys and values, given that with
/// respect to its result.
///
/// # Panics
/// If lengths disagree.
pub fn backward<T: Float>(
    heads: &Heads,
    (q, k, v): (&[T], &[T], &[T]),
    probabilities: &[T],
    dy: &[T],
    (dq, dk, dv): (&mut [T], &mut [T], &mut [T]),
) {
    let [of_q, of_k, of_p] = heads.lengths();
    assert!(q.len() == of_q && k.len() == of_k && v.len() == of_k && dy.len() == of_q);
    assert!(probabilities.len() == of_p);
    assert!(dq.len() == of_q && dk.len() == of_k && dv.len() == of_k);
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    let size = heads.queries * heads.keys;
    heads.for_each(|head| {
        let (queries, keys) = (heads.queries, heads.keys);
        let p = &probabilities[head * size..(head + 1) * size];
        let dy = heads.matrix(dy, queries, head);
        let matrix = Matrix::row_major(p, queries, keys);
        let mut rows = Scratch::<T>::new(queries.max(keys) * heads.width);
        let (of_q, of_k) = (queries * heads.width, keys * heads.width);
        multiply(T::one(), matrix.transposed(), dy, None, &mut rows[..of_k]);
        // SAFETY: each head has its own places; so below.
        unsafe { heads.put(&rows[..of_k], keys, head, &dv) };
        let mut ds = Scratch::<T>::new(size);
        multiply(T::one(), dy, heads.matrix(v, keys, head).transposed(), None, &mut ds);
        if keys > 0 {
            simd::dispatch(SoftmaxBackward { columns: keys, y: p, dy: None, dx: &mut ds });
        }
        let ds = Matrix::row_major(&ds, queries, keys);
        let scale = heads.scale();
        multiply(scale, ds, heads.matrix(k, keys, head), None, &mut rows[..of_q]);
        // SAFETY: as above.
        unsafe { heads.put(&rows[..of_q], queries, head, &dq) };
        multiply(scale, ds.transposed(), heads.matrix(q, queries, head), None, &mut rows[..of_k]);
        // SAFETY: as above.
        unsafe { heads.put(&rows[..of_k], keys, head, &dk) };
    });
}
