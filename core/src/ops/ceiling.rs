//! What this machine can do at best: how fast memory is read, how fast each unit multiplies. Benches divide by it.

use super::vector::{Kernel, Vector, launch, unroll};
use crate::cpu::Cpu;

/// Reads every byte of a block once, in order; returns a checksum so that nothing is optimised away.
pub fn read(cpu: Cpu, block: &[u8]) -> f32 {
    struct Read<'a>(&'a [u8]);
    impl Kernel for Read<'_> {
        type Output = f32;
        #[inline(always)]
        unsafe fn run<V: Vector>(self) -> f32 {
            let step = 8 * V::LANES * 4;
            // SAFETY: whole steps only.
            unsafe {
                let mut acc = [V::splat(0.0); 8];
                for at in (0..self.0.len() / step * step).step_by(step) {
                    let from = self.0.as_ptr().add(at).cast::<f32>();
                    unroll!(8: i < 8, { acc[i] = acc[i].max(V::load(from.add(i * V::LANES))); });
                }
                acc.into_iter().map(|v| super::math::largest(v)).fold(0.0, f32::max)
            }
        }
    }
    launch(cpu, Read(block))
}

/// Float32 multiply-adds without any memory: `rounds` times 24 vectors. Returns a checksum and the operations done
/// (a multiply-add is two).
pub fn multiply_add(cpu: Cpu, rounds: usize) -> (f32, u64) {
    struct Fma(usize);
    impl Kernel for Fma {
        type Output = (f32, u64);
        #[inline(always)]
        unsafe fn run<V: Vector>(self) -> (f32, u64) {
            // SAFETY: lane arithmetic only.
            unsafe {
                let mut acc = [V::splat(1.0); 12];
                let (a, b) =
                    (V::splat(core::hint::black_box(0.999_9)), V::splat(core::hint::black_box(1e-6)));
                for _ in 0..self.0 {
                    unroll!(12: i < 12, { acc[i] = acc[i].mul_add(a, b); });
                    unroll!(12: i < 12, { acc[i] = acc[i].mul_add(a, b); });
                }
                let check = acc.into_iter().map(|v| super::math::largest(v)).fold(0.0, f32::max);
                (check, (self.0 * 24 * V::LANES * 2) as u64)
            }
        }
    }
    launch(cpu, Fma(rounds))
}

/// Dot products of bfloat16 pairs; `None` where the processor has none.
pub fn dot_bf16(cpu: Cpu, rounds: usize) -> Option<(f32, u64)> {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if cpu.bf16() {
        // SAFETY: the value proves AVX-512 BF16.
        return Some(unsafe { x86::dot_bf16(rounds) });
    }
    let _ = (cpu, rounds);
    None
}

/// Dot products of int8 quadruples; `None` where the processor has none.
pub fn dot_int8(cpu: Cpu, rounds: usize) -> Option<(i32, u64)> {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if cpu.vnni() {
        // SAFETY: the value proves AVX-512 VNNI.
        return Some(unsafe { x86::dot_int8(rounds) });
    }
    let _ = (cpu, rounds);
    None
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod x86 {
    use crate::ops::vector::unroll;
    use core::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn dot_bf16(rounds: usize) -> (f32, u64) {
        let one = _mm512_set1_epi32(core::hint::black_box(0x3c00_3c00));
        // SAFETY: the same 512 bits under another name.
        let one: __m512bh = unsafe { core::mem::transmute(one) };
        let mut acc = [_mm512_setzero_ps(); 12];
        for _ in 0..rounds {
            unroll!(12: i < 12, { acc[i] = _mm512_dpbf16_ps(acc[i], one, one); });
            unroll!(12: i < 12, { acc[i] = _mm512_dpbf16_ps(acc[i], one, one); });
        }
        (acc.into_iter().map(|v| _mm512_reduce_add_ps(v)).sum(), (rounds * 24 * 32 * 2) as u64)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn dot_int8(rounds: usize) -> (i32, u64) {
        let one = _mm512_set1_epi32(core::hint::black_box(0x0101_0101));
        let mut acc = [_mm512_setzero_si512(); 12];
        for _ in 0..rounds {
            unroll!(12: i < 12, { acc[i] = _mm512_dpbusd_epi32(acc[i], one, one); });
            unroll!(12: i < 12, { acc[i] = _mm512_dpbusd_epi32(acc[i], one, one); });
        }
        let check = acc.into_iter().fold(0i32, |sum, v| sum.wrapping_add(_mm512_reduce_add_epi32(v)));
        (check, (rounds * 24 * 64 * 2) as u64)
    }
}
