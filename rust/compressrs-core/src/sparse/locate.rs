//! Where the entries of a pattern are in another one.

use super::csr::{Index, Pattern};
use crate::runtime::memory;
use crate::runtime::parallel::SharedMut;

/// Entries worth a task of their own.
const GRAIN_ENTRIES: usize = 32 * 1024;

/// What [`locate`] says of an entry that the other pattern has not.
pub const NOWHERE: i64 = -1;

/// A pattern that has an entry twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Repeats {
    /// The one that is looked in.
    Old,
    /// The one whose entries are looked for.
    New,
}

/// Writes where each entry of `new` is in `old`, or [`NOWHERE`]. Columns may be in any
/// order.
///
/// # Errors
/// If an entry repeats; what has been written does not count then.
///
/// # Panics
/// If shapes differ, or there are not as many places as entries of `new`.
pub fn locate<I: Index, J: Index>(
    old: Pattern<'_, I>,
    new: Pattern<'_, J>,
    places: &mut [i64],
) -> Result<(), Repeats> {
    assert_eq!((old.rows(), old.columns()), (new.rows(), new.columns()));
    assert_eq!(places.len(), new.entries());
    let (shared, failed) = (SharedMut::new(places), std::sync::Mutex::new(None));
    new.for_rows(GRAIN_ENTRIES, |rows| {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for row in rows {
            let range = new.row(row);
            let is_sound = sort(old, row, &mut before).ok_or(Repeats::Old);
            let is_sound = is_sound.and_then(|()| sort(new, row, &mut after).ok_or(Repeats::New));
            if let Err(repeats) = is_sound {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(repeats);
                return;
            }
            // SAFETY: `places` is borrowed for the whole call and rows do not overlap.
            let places = unsafe { shared.slice(range.clone()) };
            let mut rest = before.iter().peekable();
            for &(column, place) in &after {
                while rest.next_if(|(other, _)| *other < column).is_some() {}
                let found = rest.next_if(|(other, _)| *other == column);
                places[place - range.start] = found.map_or(NOWHERE, |(_, place)| *place as i64);
            }
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Columns and places of a row's entries, by column; None if one repeats.
fn sort<I: Index>(
    pattern: Pattern<'_, I>,
    row: usize,
    entries: &mut Vec<(usize, usize)>,
) -> Option<()> {
    let range = pattern.row(row);
    entries.clear();
    memory::reserve(entries, range.len());
    entries.extend(pattern.indices().range(range.clone()).iter().zip(range));
    if !entries.is_sorted() {
        entries.sort_unstable();
    }
    entries.windows(2).all(|w| w[0].0 < w[1].0).then_some(())
}
