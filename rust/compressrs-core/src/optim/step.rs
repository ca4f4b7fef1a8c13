//! The one driver: applies the formulas of any number of tensors, in place.

use super::rule::{Update, dispatch_elementwise};
use super::tensor::{ALIGN, GRAIN_ELEMENTS, Tensor};
use super::update::update_part;
use crate::numeric::element::Float;
use crate::runtime::memory;
use crate::runtime::parallel;

/// Makes sure that there is memory for what [`step`] copies and computes on the side, so that
/// a lack of it is found before anything has been written.
///
/// # Unwinds
/// With [`OutOfMemory`](crate::runtime::memory::OutOfMemory).
pub fn reserve<C: Float>(tensors: &[Tensor<'_, C>]) {
    let most = tensors.iter().map(Tensor::scratch_len).max().unwrap_or(0);
    // It is not kept: the allocator has it at hand for the step.
    drop(memory::with_capacity::<C>(most));
}

/// Updates every tensor.
///
/// All elementwise tensors are seen as one long range of elements that is divided
/// into tasks, so that many small tensors cost no more than one large one.
///
/// # Panics
/// If a state is shorter than its rule needs, or a step of [`Prodigy`](super::Prodigy) has not
/// been through [`estimate`](super::estimate).
pub fn step<C: Float>(tensors: &mut [Tensor<'_, C>]) {
    let mut total = 0;
    for tensor in &mut *tensors {
        let elements = match tensor.update {
            Update::Lamb(layerwise) => {
                layerwise.step(tensor);
                0
            }
            Update::Adafactor(factored) => {
                tensor.with_full(|tensor| factored.step(tensor));
                0
            }
            Update::Muon(orthogonal) => {
                tensor.with_full(|tensor| orthogonal.step(tensor));
                0
            }
            Update::Cautious(cautious) => {
                tensor.with_full(|tensor| cautious.step(tensor));
                0
            }
            Update::Prodigy(_) => panic!("the distance has not been estimated"),
            Update::Shampoo(preconditioned) => {
                tensor.with_full(|tensor| preconditioned.step(tensor));
                0
            }
            Update::Soap(rotated) => {
                tensor.with_full(|tensor| rotated.step(tensor));
                0
            }
            _ => tensor.len(),
        };
        tensor.range = total..total + elements;
        total += elements;
    }
    let tensors = &*tensors;
    // Converting takes time.
    let converts = tensors.iter().any(|t| !t.range.is_empty() && !t.is_in_place());
    let grain = if converts { GRAIN_ELEMENTS / 4 } else { GRAIN_ELEMENTS };
    parallel::for_each(0..total, grain, ALIGN, |range| {
        let first = tensors.partition_point(|t| t.range.end <= range.start);
        for tensor in &tensors[first..] {
            if tensor.range.start >= range.end {
                break;
            }
            let begin = range.start.saturating_sub(tensor.range.start);
            let end = (range.end - tensor.range.start).min(tensor.range.len());
            // A tensor need not start at a multiple of ALIGN, but its tasks must
            // for the sake of its mask. The one before takes what is left of one.
            let part = round_up(begin, tensor.range.len())..round_up(end, tensor.range.len());
            if part.is_empty() {
                continue;
            }
            // SAFETY: the tensors are borrowed by `step`, and its tasks get parts
            // that do not overlap, since both ends are rounded alike.
            dispatch_elementwise!(tensor.update, formula => unsafe { update_part(tensor, part, formula) }, {});
        }
    });
}

/// The next multiple of ALIGN, or the end.
fn round_up(i: usize, len: usize) -> usize {
    i.next_multiple_of(ALIGN).min(len)
}
