//! A vector of float32 lanes: the one thing that differs between instruction sets in most kernels.
//!
//! A [`Kernel`] is a computation written over any [`Vector`]; [`launch`] runs it with the widest vector that a `Cpu`
//! value proves. Everything is inlined into one function per level that carries the level's target features.
//!
//! The methods are unsafe for two reasons that every caller shares: the instruction set must exist (`launch` sees to
//! it), and pointers must be valid for the lanes they touch (each kernel states why they are).

#[cfg(target_arch = "aarch64")]
pub mod neon;
#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
pub mod x86;

use crate::cpu::{Cpu, Level};

/// Float32 lanes. Fused multiply-add may or may not round once; a level is consistent with itself.
#[allow(clippy::missing_safety_doc, missing_docs)] // One contract for all, stated above.
pub trait Vector: Copy {
    const LANES: usize;
    /// Tokens that a matrix kernel treats together: as many as registers hold.
    const GROUP: usize;
    /// Vectors of output rows that a matrix kernel holds beside a full group of tokens.
    const BESIDE_GROUP: usize;
    /// Query rows that the attention kernel treats together, beside four vectors of positions or channels.
    const QUERIES: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self * a + b`.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// Two to the power of an integral value in -126..=127.
    unsafe fn exp2(self) -> Self;
    /// Lane by lane: where `self < bound` take `then`, elsewhere `otherwise`.
    unsafe fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// 32-bit words of two bfloat16: the low halves, the high halves.
    unsafe fn bf16_words(from: *const u32) -> [Self; 2];
    /// 32-bit words of two float16: the low halves, the high halves.
    unsafe fn f16_words(from: *const u32) -> [Self; 2];
    /// 32-bit words of four bytes, as 0..=255, lowest byte first.
    unsafe fn u8_words(from: *const u32) -> [Self; 4];
    /// Consecutive float16.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Consecutive int8.
    unsafe fn load_i8(from: *const i8) -> Self;

    /// Turns a square of words over: word `i` of the `j`-th pointer becomes lane `j` of the `i`-th stretch of `to`,
    /// each `stride` words behind the one before. There is a pointer for every lane, to words that need no alignment.
    #[inline(always)]
    unsafe fn turn_words(from: &[*const u32], to: *mut u32, stride: usize) {
        for (lane, from) in from[..Self::LANES].iter().enumerate() {
            for word in 0..Self::LANES {
                // SAFETY: the caller's pointers are valid for a word of every lane, and `to` for all of these.
                unsafe { to.add(word * stride + lane).write(from.add(word).read_unaligned()) };
            }
        }
    }
    /// Words of consecutive halves: the first operand's low, the second's high. Halves are two bytes, low byte first.
    #[inline(always)]
    unsafe fn pair_halves(low: *const u8, high: *const u8, to: *mut u32) {
        for lane in 0..Self::LANES {
            // SAFETY: the caller's pointers are valid for a half of every lane, and `to` for a word of each.
            unsafe {
                let [low, high] = [low, high]
                    .map(|from| from.add(2 * lane).cast::<[u8; 2]>().read())
                    .map(u16::from_le_bytes);
                to.add(lane).write(u32::from(low) | u32::from(high) << 16);
            }
        }
    }
    /// A hint that these bytes are read soon.
    #[inline(always)]
    fn ask_for(_: &u8) {}
}

/// A computation that can run with any vector.
pub trait Kernel {
    /// What it computes.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The processor must have `V`'s instruction set.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Runs a kernel at the level of `cpu`.
pub fn launch<K: Kernel>(cpu: Cpu, kernel: K) -> K::Output {
    match cpu.level() {
        // SAFETY: a `Cpu` of this level proves the instruction sets that the function requires.
        #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
        Level::Avx512 => unsafe { x86::launch_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
        Level::Avx2 => unsafe { x86::launch_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe { kernel.run::<neon::F32x4>() },
        // SAFETY: the portable vector needs no instruction set beyond the target's own.
        _ => unsafe { kernel.run::<Portable>() },
    }
}

/// Tokens per activation panel at the level of `cpu`: [`Vector::GROUP`] as a number.
pub fn group(cpu: Cpu) -> usize {
    struct Group;
    impl Kernel for Group {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<V: Vector>(self) -> usize {
            V::GROUP
        }
    }
    launch(cpu, Group)
}

/// Repeats a block for `i` from 0 to a constant `N`, each time with a constant `i`, so that arrays indexed by it become
/// registers; the number in front is the most that `N` can be. A loop leaves that to the compiler's patience, and a
/// closure that the compiler does not inline loses the vector unit: its intrinsics become calls.
macro_rules! unroll {
    (2: $i:ident < $n:expr, $body:block) => { $crate::ops::vector::unroll!(@ [0 1] $i $n, $body) };
    (4: $i:ident < $n:expr, $body:block) => { $crate::ops::vector::unroll!(@ [0 1 2 3] $i $n, $body) };
    (5: $i:ident < $n:expr, $body:block) => { $crate::ops::vector::unroll!(@ [0 1 2 3 4] $i $n, $body) };
    (6: $i:ident < $n:expr, $body:block) => { $crate::ops::vector::unroll!(@ [0 1 2 3 4 5] $i $n, $body) };
    (8: $i:ident < $n:expr, $body:block) => { $crate::ops::vector::unroll!(@ [0 1 2 3 4 5 6 7] $i $n, $body) };
    (12: $i:ident < $n:expr, $body:block) => {
        $crate::ops::vector::unroll!(@ [0 1 2 3 4 5 6 7 8 9 10 11] $i $n, $body)
    };
    (@ [$($step:literal)*] $i:ident $n:expr, $body:block) => {{
        $( if $step < $n { let $i: usize = $step; $body } )*
    }};
}
pub(crate) use unroll;

/// Four lanes in plain Rust, which the compiler turns into the target's baseline vectors.
#[derive(Clone, Copy, Debug)]
pub struct Portable([f32; 4]);

impl From<[f32; 4]> for Portable {
    #[inline(always)]
    fn from(lanes: [f32; 4]) -> Self {
        Portable(lanes)
    }
}

impl Portable {
    #[inline(always)]
    fn map2(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(core::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 4;
    const GROUP: usize = 4;
    const BESIDE_GROUP: usize = 2;
    const QUERIES: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for four lanes.
        Portable(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for four lanes.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map2(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.map2(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.map2(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.map2(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.map2(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.map2(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Portable(core::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Portable(self.0.map(libm::rintf))
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        Portable(self.0.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    unsafe fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        Portable(core::array::from_fn(|i| if self.0[i] < bound.0[i] { then.0[i] } else { otherwise.0[i] }))
    }
    #[inline(always)]
    unsafe fn bf16_words(from: *const u32) -> [Self; 2] {
        // SAFETY: the caller's pointer is valid for four words.
        let words = unsafe { from.cast::<[u32; 4]>().read_unaligned() };
        [
            Portable(words.map(|w| f32::from_bits(w << 16))),
            Portable(words.map(|w| f32::from_bits(w & 0xffff_0000))),
        ]
    }
    #[inline(always)]
    unsafe fn f16_words(from: *const u32) -> [Self; 2] {
        // SAFETY: the caller's pointer is valid for four words.
        let words = unsafe { from.cast::<[u32; 4]>().read_unaligned() };
        let wide = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
        [Portable(words.map(|w| wide(w & 0xffff))), Portable(words.map(|w| wide(w >> 16)))]
    }
    #[inline(always)]
    unsafe fn u8_words(from: *const u32) -> [Self; 4] {
        // SAFETY: the caller's pointer is valid for four words.
        let words = unsafe { from.cast::<[u32; 4]>().read_unaligned() };
        core::array::from_fn(|byte| Portable(words.map(|w| (w >> (8 * byte) & 0xff) as f32)))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's pointer is valid for four lanes.
        let bits = unsafe { from.cast::<[u16; 4]>().read_unaligned() };
        Portable(bits.map(|b| half::f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's pointer is valid for four lanes.
        Portable(unsafe { from.cast::<[i8; 4]>().read_unaligned() }.map(f32::from))
    }
}
