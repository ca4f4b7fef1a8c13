//! Says which instruction sets this machine's tests reach, and which they do not.

use std::io::Write;

use compressrs_core::runtime::simd::Level;

#[test]
fn levels_that_are_not_tested_here_are_named() {
    let names = |supported: bool| {
        let levels = Level::ALL.into_iter().filter(|level| level.is_supported() == supported);
        levels.map(Level::name).collect::<Vec<_>>().join(", ")
    };
    // Not by `eprintln`, whose output is shown of tests that fail.
    let said = writeln!(
        std::io::stderr(),
        "\nkernels are tested at: {}\nNOT TESTED on this machine: {}",
        names(true),
        names(false)
    );
    assert!(said.is_ok());
    assert!(Level::Portable.is_supported() || cfg!(feature = "single-level"));
}
