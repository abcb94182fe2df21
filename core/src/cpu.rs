//! What this processor may be asked to do: a plain value that is passed down, never a hidden static.
//!
//! Holding a `Cpu` proves that its instruction sets exist: the only ways to one are [`Cpu::detect`] and lowering
//! an existing value. Tests and benches lower it to force a variant.

/// The vector unit that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust; the compiler vectorizes it for the target's baseline.
    Portable,
    /// aarch64 Advanced SIMD, which every aarch64 processor has.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// A proven set of instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    level: Level,
    vnni: bool,
    bf16: bool,
}

impl Cpu {
    /// The level that every processor reaches.
    pub const PORTABLE: Cpu = Cpu { level: Level::Portable, vnni: false, bf16: false };

    /// Asks the processor. Costs a few `cpuid` instructions; call it once and pass the value down.
    pub fn detect() -> Self {
        detect()
    }

    /// The vector unit.
    pub fn level(self) -> Level {
        self.level
    }

    /// AVX-512 VNNI: four 8-bit products summed into 32 bits.
    pub fn vnni(self) -> bool {
        self.vnni
    }

    /// AVX-512 BF16: two bfloat16 products summed into float32.
    pub fn bf16(self) -> bool {
        self.bf16
    }

    /// This processor and every lesser one that it can stand in for, strongest first. Each has its own kernels.
    pub fn variants(self) -> heapless::Vec<Cpu, 5> {
        let lesser = [
            self,
            Cpu { bf16: false, ..self },
            Cpu { vnni: false, bf16: false, ..self },
            Cpu { level: self.level.min(Level::Avx2), vnni: false, bf16: false },
            Cpu::PORTABLE,
        ];
        let mut variants: heapless::Vec<Cpu, 5> = heapless::Vec::new();
        for cpu in lesser {
            // An aarch64 value is not lowered to an x86 one.
            let reachable = cpu.level != Level::Avx2 || self.level >= Level::Avx2;
            if reachable && !variants.contains(&cpu) {
                let _ = variants.push(cpu);
            }
        }
        variants
    }

    /// The instruction sets that this value proves, as processors' manuals name them.
    pub fn features(self) -> heapless::Vec<&'static str, 8> {
        let mut features: heapless::Vec<&'static str, 8> = heapless::Vec::new();
        let mut add = |present: bool, name| {
            if present {
                let _ = features.push(name);
            }
        };
        add(self.level == Level::Neon, "NEON");
        add(self.level >= Level::Avx2, "AVX2");
        add(self.level >= Level::Avx2, "FMA");
        add(self.level >= Level::Avx2, "F16C");
        add(self.level >= Level::Avx512, "AVX-512 (F, BW, DQ, VL)");
        add(self.vnni, "AVX-512 VNNI");
        add(self.bf16, "AVX-512 BF16");
        features
    }

    /// A name for tables and test output.
    pub fn name(self) -> &'static str {
        match (self.level, self.vnni, self.bf16) {
            (Level::Portable, ..) => "portable",
            (Level::Neon, ..) => "neon",
            (Level::Avx2, ..) => "avx2",
            (Level::Avx512, false, false) => "avx512",
            (Level::Avx512, true, false) => "avx512+vnni",
            (Level::Avx512, false, true) => "avx512+bf16",
            (Level::Avx512, true, true) => "avx512+vnni+bf16",
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
fn detect() -> Cpu {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    #[target_feature(enable = "xsave")]
    fn saved_state() -> u64 {
        // SAFETY: `detect` calls this only after CPUID said that XGETBV is enabled (OSXSAVE).
        unsafe { _xgetbv(0) }
    }
    let bit = |word: u32, n: u32| word >> n & 1 == 1;

    let features = __cpuid(1);
    // FMA 12, OSXSAVE 27, AVX 28, F16C 29.
    if ![12, 27, 28, 29].into_iter().all(|n| bit(features.ecx, n)) || __cpuid(0).eax < 7 {
        return Cpu::PORTABLE;
    }
    // SAFETY: OSXSAVE was checked just above.
    let state = unsafe { saved_state() };
    let extended = __cpuid_count(7, 0);
    // XMM and YMM registers are saved by the system; AVX2 is bit 5.
    if state & 0x6 != 0x6 || !bit(extended.ebx, 5) {
        return Cpu::PORTABLE;
    }
    // ZMM and mask registers are saved; F 16, DQ 17, BW 30, VL 31.
    let wide = state & 0xe6 == 0xe6 && [16, 17, 30, 31].into_iter().all(|n| bit(extended.ebx, n));
    if !wide {
        return Cpu { level: Level::Avx2, vnni: false, bf16: false };
    }
    let bf16 = extended.eax >= 1 && bit(__cpuid_count(7, 1).eax, 5);
    Cpu { level: Level::Avx512, vnni: bit(extended.ecx, 11), bf16 }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Cpu {
    Cpu { level: Level::Neon, vnni: false, bf16: false }
}

#[cfg(not(any(all(target_arch = "x86_64", not(target_os = "none")), target_arch = "aarch64")))]
fn detect() -> Cpu {
    Cpu::PORTABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_begin_with_the_cpu_itself_and_end_portable() {
        let cpu = Cpu::detect();
        let variants = cpu.variants();
        assert_eq!(variants.first(), Some(&cpu));
        assert_eq!(variants.last(), Some(&Cpu::PORTABLE));
        assert!(variants.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
