//! Run-time choice of the instruction set, made once per process.
//!
//! A kernel is a struct of its arguments that implements [`Kernel`]; its body is
//! `#[inline(always)]` and plain Rust. [`dispatch`] calls it through a wrapper
//! that carries `#[target_feature]`, so that the compiler vectorizes the one body
//! for each [`Level`]. `mul_add` and the fixed lanes of [`crate::numeric::lanes`] make the
//! bits the same on all of them.
//!
//! A level says once, in [`Level::vectors`], which [`Vectors`] its kernels work with; what
//! depends on them matches on that, without a wildcard. The dot products of bytes that
//! [`Level::AvxVnni`] and [`Level::Avx512Vnni`] add are of use to integer products alone,
//! which match on the level itself; to all other kernels these levels are AVX2 and AVX-512,
//! and share their code.
//!
//! # Why hand-made wrappers
//!
//! The `multiversion` and `pulp` crates were tried on the Adam update (`f32`,
//! 16,384 elements, AVX-512). All three give the same inner loop, since in each
//! the work is done by `#[target_feature]` around an inlined body, and the same
//! time. The wrappers below are what remains once that is so: they need no
//! dependency, take generic kernels (which `multiversion` 0.9 cannot clone), and
//! one place decides the level, so that [`ENV`] can lower it (neither crate
//! offers that; the bit-for-bit tests need it).

use std::sync::OnceLock;

/// Name of the environment variable that forces a lower level.
pub const ENV: &str = "COMPRESSRS_SIMD";

/// An instruction set that kernels are compiled for, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compilation target guarantees. Without a fused multiply-add in
    /// the target (x86-64 before Haswell) the C library's `fma` serves: right,
    /// but slow.
    Portable,
    /// 128-bit NEON, part of every aarch64 target.
    Neon,
    /// 256-bit AVX2 with FMA.
    Avx2,
    /// AVX2, with 256-bit dot products of bytes (AVX-VNNI).
    AvxVnni,
    /// 512-bit AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX-512, with 512-bit dot products of bytes (AVX-512 VNNI).
    Avx512Vnni,
}

/// The vector registers that kernels of a [`Level`] work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// Those of the compilation target, as the compiler uses them.
    Target,
    /// 256 bits: AVX2, FMA and F16C.
    Avx2,
    /// 512 bits: AVX-512 (F, BW, DQ, VL), and all of AVX2's.
    Avx512,
}

impl Level {
    /// All levels, from the least to the most.
    pub const ALL: [Level; 6] = [
        Level::Portable,
        Level::Neon,
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512,
        Level::Avx512Vnni,
    ];

    /// The name used in [`ENV`] and in `show_config`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512 => "avx512",
            Level::Avx512Vnni => "avx512vnni",
        }
    }

    /// The vectors of its kernels.
    #[inline]
    pub const fn vectors(self) -> Vectors {
        match self {
            // NEON is part of the aarch64 base target.
            Level::Portable | Level::Neon => Vectors::Target,
            Level::Avx2 | Level::AvxVnni => Vectors::Avx2,
            Level::Avx512 | Level::Avx512Vnni => Vectors::Avx512,
        }
    }

    /// Whether this machine can run it.
    pub fn is_supported(self) -> bool {
        match self {
            // AVX2 is all that is compiled then.
            Level::Portable => !cfg!(all(feature = "single-level", target_arch = "x86_64")),
            Level::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => {
                cfg!(not(feature = "single-level"))
                    && Level::Avx2.is_supported()
                    && is_x86_feature_detected!("avxvnni")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => {
                Level::Avx512.is_supported() && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                cfg!(not(feature = "single-level"))
                    && Level::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::AvxVnni | Level::Avx512 | Level::Avx512Vnni => false,
        }
    }

    /// The levels of this machine, from the least to the most.
    pub fn supported() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|l| l.is_supported())
    }

    fn choose(request: Option<&str>) -> Result<Level, String> {
        let names = || Level::supported().map(Level::name).collect::<Vec<_>>().join(", ");
        match request.map(str::trim) {
            None | Some("") => Level::supported().last().ok_or_else(|| {
                "kernels were compiled for AVX2 alone, without which this machine is".into()
            }),
            Some(name) => {
                Level::supported().find(|l| l.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
                    format!("{ENV} must be one of {} on this machine, got {name:?}", names())
                })
            }
        }
    }
}

/// The level in force: the best supported one, or the one that [`ENV`] names.
///
/// Read once; later changes of the environment have no effect.
///
/// # Errors
/// [`ENV`] names something that is not a level of this machine.
#[inline]
pub fn level() -> Result<Level, &'static str> {
    static LEVEL: OnceLock<Result<Level, String>> = OnceLock::new();
    LEVEL
        .get_or_init(|| Level::choose(std::env::var(ENV).ok().as_deref()))
        .as_ref()
        .copied()
        .map_err(String::as_str)
}

/// Asks for the two lines of the cache from an address on, which need not be valid, where
/// this machine can be asked.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    let address = address.cast::<i8>();
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: hints, which read nothing and take any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(address);
            _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(64));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A kernel: arguments and a body that is compiled once per level.
pub trait Kernel {
    /// What the kernel returns.
    type Output;
    /// The body. Implementations must be `#[inline(always)]`, and so must all
    /// that they call in a loop, or they are compiled for the base target only.
    fn run(self) -> Self::Output;
}

/// A kernel with a body of its own for each kind of [`Vectors`]. A [`Kernel`] has one body
/// for all.
pub trait ByVectors {
    /// What the kernel returns.
    type Output;
    /// The body for [`Vectors::Target`]. Like the others it must be `#[inline(always)]`.
    fn target(self) -> Self::Output;
    /// The body for [`Vectors::Avx2`].
    ///
    /// # Safety
    /// The machine must have these vectors.
    unsafe fn avx2(self) -> Self::Output;
    /// The body for [`Vectors::Avx512`].
    ///
    /// # Safety
    /// The machine must have these vectors.
    unsafe fn avx512(self) -> Self::Output;

    // The wrappers, each compiled once per kernel. As methods they belong to the module of the
    // kernel's type: as functions of this module, the code of all kernels was one codegen unit,
    // which took the release build twice as long.

    /// Runs [`target`](Self::target).
    #[cfg(not(all(target_arch = "x86_64", feature = "single-level")))]
    #[doc(hidden)]
    #[inline(never)]
    fn compiled_target(self) -> Self::Output
    where
        Self: Sized,
    {
        self.target()
    }

    /// Runs [`avx2`](Self::avx2).
    ///
    /// # Safety
    /// The machine must have the features named.
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn compiled_avx2(self) -> Self::Output
    where
        Self: Sized,
    {
        // SAFETY: the features are those of `Vectors::Avx2`.
        unsafe { self.avx2() }
    }

    /// Runs [`avx512`](Self::avx512).
    ///
    /// # Safety
    /// The machine must have the features named.
    #[cfg(all(target_arch = "x86_64", not(feature = "single-level")))]
    #[doc(hidden)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn compiled_avx512(self) -> Self::Output
    where
        Self: Sized,
    {
        // SAFETY: the features are those of `Vectors::Avx512`.
        unsafe { self.avx512() }
    }
}

impl<K: Kernel> ByVectors for K {
    type Output = K::Output;

    #[inline(always)]
    fn target(self) -> K::Output {
        self.run()
    }

    #[inline(always)]
    unsafe fn avx2(self) -> K::Output {
        self.run()
    }

    #[inline(always)]
    unsafe fn avx512(self) -> K::Output {
        self.run()
    }
}

/// Runs a kernel at the level in force.
///
/// # Panics
/// If [`ENV`] names no level of this machine; callers that must not panic ask
/// [`level`] first.
#[inline]
pub fn dispatch<K: ByVectors>(kernel: K) -> K::Output {
    match level() {
        // SAFETY: `level` returns only supported levels.
        Ok(level) => unsafe { run_at(level, kernel) },
        Err(message) => panic!("{message}"),
    }
}

/// Runs a kernel at a given level, for tests and benches that compare them.
///
/// # Panics
/// If this machine does not support `level`.
pub fn dispatch_at<K: ByVectors>(level: Level, kernel: K) -> K::Output {
    assert!(level.is_supported(), "{} is not supported here", level.name());
    // SAFETY: just checked.
    unsafe { run_at(level, kernel) }
}

/// # Safety
/// The machine must support `level`.
#[inline]
unsafe fn run_at<K: ByVectors>(level: Level, kernel: K) -> K::Output {
    match level.vectors() {
        #[cfg(not(all(target_arch = "x86_64", feature = "single-level")))]
        Vectors::Target => kernel.compiled_target(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller guarantees that the machine supports the level.
        Vectors::Avx2 => unsafe { kernel.compiled_avx2() },
        #[cfg(all(target_arch = "x86_64", not(feature = "single-level")))]
        // SAFETY: as above.
        Vectors::Avx512 => unsafe { kernel.compiled_avx512() },
        #[cfg(any(not(target_arch = "x86_64"), feature = "single-level"))]
        _ => unreachable!("{} is not compiled", level.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_the_default_and_a_name_lowers_it() {
        let best = Level::supported().last().unwrap();
        assert_eq!(Level::choose(None), Ok(best));
        assert_eq!(Level::choose(Some("")), Ok(best));
        assert_eq!(Level::choose(Some("Portable")), Ok(Level::Portable));
        for level in Level::supported() {
            assert_eq!(Level::choose(Some(level.name())), Ok(level));
        }
    }

    /// Says which of its bodies ran.
    struct Which;

    impl ByVectors for Which {
        type Output = Vectors;
        fn target(self) -> Vectors {
            Vectors::Target
        }
        unsafe fn avx2(self) -> Vectors {
            Vectors::Avx2
        }
        unsafe fn avx512(self) -> Vectors {
            Vectors::Avx512
        }
    }

    #[test]
    fn every_level_takes_the_body_for_its_vectors() {
        for level in Level::ALL {
            let wanted = match level.name() {
                "portable" | "neon" => Vectors::Target,
                "avx2" | "avxvnni" => Vectors::Avx2,
                "avx512" | "avx512vnni" => Vectors::Avx512,
                name => panic!("a test for {name}"),
            };
            assert_eq!(level.vectors(), wanted);
            if level.is_supported() {
                assert_eq!(dispatch_at(level, Which), wanted);
            }
        }
        assert_eq!(dispatch(Which), level().unwrap().vectors());
    }

    #[test]
    fn an_unknown_or_unsupported_level_is_an_error() {
        for name in ["avx1024", "neon,avx2"] {
            let message = Level::choose(Some(name)).unwrap_err();
            assert!(message.contains(name) && message.contains("portable"), "{message}");
        }
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx512" };
        assert!(Level::choose(Some(foreign)).is_err());
    }
}
