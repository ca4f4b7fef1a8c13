//! Prepared patterns, kept beside the matrices that they were made from.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compressrs_core::runtime::{memory, parallel};
use compressrs_core::sparse::{CsrError, Index, Offsets, Pattern, Prepared, Tiling};
use pyo3::prelude::*;

use crate::errors::{guard, run};

/// Indices compared at a time.
const BLOCK: usize = 64 * 1024;

/// What is prepared for the products of a matrix, and of its transpose, once they are
/// asked for: a form for each tiling.
#[derive(Default)]
pub struct Cache(Mutex<State>);

#[derive(Clone, Default)]
struct State {
    /// What it was made from, unless nobody can write to that.
    copy: Option<Arc<Copied>>,
    prepared: [[Option<Arc<Prepared>>; Tiling::ALL.len()]; 2],
}

/// Which form of a pattern.
#[derive(Clone, Copy)]
pub struct Form {
    /// Whether it is of the transpose.
    pub transposed: bool,
    pub tiling: Tiling,
}

impl State {
    fn slot(&mut self, form: Form) -> &mut Option<Arc<Prepared>> {
        let tiling = Tiling::ALL.iter().position(|&tiling| tiling == form.tiling);
        &mut self.prepared[usize::from(form.transposed)][tiling.expect("one of all")]
    }
}

/// A copy of a pattern.
struct Copied {
    offsets: Offsets,
    /// A vector of indices, of their type.
    indices: Box<dyn Any + Send + Sync>,
    bytes: usize,
}

impl Copied {
    fn indices<I: Index>(&self) -> Option<&[I]> {
        self.indices.downcast_ref::<Vec<I>>().map(|indices| &indices[..])
    }

    fn is_of<I: Index>(&self, indices: &[I], offsets: &Offsets) -> bool {
        let Some(own) = self.indices::<I>() else { return false };
        let same = |part: std::ops::Range<usize>| own[part.clone()] == indices[part];
        self.offsets == *offsets
            && own.len() == indices.len()
            && parallel::reduce(own.len(), BLOCK, same, |a, b| a && b).unwrap_or(true)
    }
}

impl Cache {
    // Never held while the GIL is given up or asked for.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory that are held.
    pub fn bytes(&self) -> usize {
        let state = self.state();
        let prepared = state.prepared.iter().flatten().flatten().map(|prepared| prepared.bytes());
        prepared.sum::<usize>() + state.copy.as_ref().map_or(0, |copy| copy.bytes)
    }

    /// The prepared form of a pattern that nobody can write to and that was checked.
    pub fn of_checked<I: Index>(
        &self,
        py: Python<'_>,
        pattern: Pattern<'_, I>,
        form: Form,
    ) -> PyResult<Arc<Prepared>> {
        let known = self.state().slot(form).clone();
        if let Some(prepared) = known {
            return Ok(prepared);
        }
        let prepared = prepare(py, pattern, form)?;
        *self.state().slot(form) = Some(prepared.clone());
        Ok(prepared)
    }

    /// The prepared form of a pattern that may have changed since the last call, and may
    /// meanwhile.
    ///
    /// # Errors
    /// The outer one if memory is short, the inner one if an index is bad.
    pub fn of_writable<I: Index>(
        &self,
        py: Python<'_>,
        indices: &[I],
        offsets: Offsets,
        columns: usize,
        form: Form,
    ) -> PyResult<Result<Arc<Prepared>, CsrError>> {
        let mut state = self.state().clone();
        let known = match state.copy.take() {
            Some(copy) if run(py, || copy.is_of(indices, &offsets))? => Some(copy),
            _ => None,
        };
        if known.is_some()
            && let Some(prepared) = state.slot(form)
        {
            return Ok(Ok(prepared.clone()));
        }
        let copy = match known {
            Some(copy) => copy,
            None => {
                let own = guard(|| memory::copied(indices))?;
                let bytes = size_of_val(&own[..]) + size_of_val(offsets.as_slice());
                Arc::new(Copied { offsets, indices: Box::new(own), bytes })
            }
        };
        let own = copy.indices::<I>().expect("compared or made with these");
        let checked = run(py, || Pattern::new(own, &copy.offsets, columns))?;
        let pattern = match checked {
            Ok(pattern) => pattern,
            Err(error) => return Ok(Err(error)),
        };
        let prepared = prepare(py, pattern, form)?;
        let mut state = self.state();
        if !state.copy.as_ref().is_some_and(|other| Arc::ptr_eq(other, &copy)) {
            *state = State { copy: Some(copy.clone()), ..State::default() };
        }
        *state.slot(form) = Some(prepared.clone());
        Ok(Ok(prepared))
    }
}

fn prepare<I: Index>(
    py: Python<'_>,
    pattern: Pattern<'_, I>,
    form: Form,
) -> PyResult<Arc<Prepared>> {
    let Form { transposed, tiling } = form;
    run(py, || {
        Arc::new(if transposed {
            Prepared::transposed(pattern, tiling)
        } else {
            Prepared::new(pattern, tiling)
        })
    })
}
