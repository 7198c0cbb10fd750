//! Which vector instructions this machine has, found once, and functions compiled once for each level.

use std::sync::OnceLock;

/// Vector instruction sets, from none to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the target always has.
    Plain,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with bfloat16 dot products.
    Avx512Bf16,
    /// The same, and tile registers that multiply bfloat16.
    Amx,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Plain => "plain",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        })
    }
}

/// The level in use: the machine's, or a lower one named by `PRIME_SIMD` (`plain`, `avx2`, `avx512`, `avx512bf16`).
///
/// float32 results are the same bits on every level, because each level does the same fused multiply-adds in the same
/// order. bfloat16 products are not: dot-product instructions round differently from separate multiply-adds.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let wanted = match std::env::var("PRIME_SIMD").as_deref() {
            Ok("plain") => Level::Plain,
            Ok("avx2") => Level::Avx2,
            Ok("avx512") => Level::Avx512,
            Ok("avx512bf16") => Level::Avx512Bf16,
            // In this crate's tests there is a model of the tile registers.
            #[cfg(test)]
            Ok("amx") if detect() == Level::Avx512Bf16 => return Level::Amx,
            _ => Level::Amx,
        };
        let vectors = detect();
        if wanted == Level::Amx && vectors == Level::Avx512Bf16 && has_amx() {
            return Level::Amx;
        }
        wanted.min(vectors)
    })
}

/// The vectors of this machine.
#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512, avx512 && is_x86_feature_detected!("avx512bf16")) {
        (_, _, true) => Level::Avx512Bf16,
        (_, true, _) => Level::Avx512,
        (true, ..) => Level::Avx2,
        _ => Level::Plain,
    }
}

/// Whether this process may use tile registers that multiply bfloat16. Asks the system for them, once: it makes room for a thread's only in processes that asked.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // Intel's manual, volume 2, CPUID: AMX-BF16 and AMX-TILE in leaf 7, EDX.
    const BITS: u32 = 1 << 22 | 1 << 24;
    // Linux, Documentation/arch/x86/xstate.rst.
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS;
        // SAFETY: the call reads two numbers and no memory.
        has && unsafe {
            libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
        }
    })
}

/// Tile registers are used under Linux only.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) fn has_amx() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Plain
}

/// Compiles a function once for each vector level and picks at run time.
///
/// The body must be a serial leaf: a closure handed to another thread is compiled without the level's instructions.
/// Write reductions over arrays of lanes, since the compiler never reorders a float sum, and use `mul_add`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident$(<$($generic:ident: $bound:path),*>)?(
        $($arg:ident: $type:ty),* $(,)?
    ) $(-> $return:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name$(<$($generic: $bound),*>)?($($arg: $type),*) $(-> $return)? {
            #[inline(always)]
            fn body$(<$($generic: $bound),*>)?($($arg: $type),*) $(-> $return)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512$(<$($generic: $bound),*>)?($($arg: $type),*) $(-> $return)? {
                    body$(::<$($generic),*>)?($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2$(<$($generic: $bound),*>)?($($arg: $type),*) $(-> $return)? {
                    body$(::<$($generic),*>)?($($arg),*)
                }
                let level = $crate::simd::level();
                if level >= $crate::simd::Level::Avx512 {
                    // SAFETY: the level says that this machine has these instructions.
                    return unsafe { avx512$(::<$($generic),*>)?($($arg),*) };
                }
                if level == $crate::simd::Level::Avx2 {
                    // SAFETY: as above.
                    return unsafe { avx2$(::<$($generic),*>)?($($arg),*) };
                }
            }
            body$(::<$($generic),*>)?($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[test]
#[ignore = "for tools/amx/check.sh, whose machine has everything"]
fn this_machine_has_all_that_the_kernels_can_use() {
    println!("the level is {}", level());
    assert!(level() == Level::Amx && has_amx());
}
