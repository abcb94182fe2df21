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
    vbmi: bool,
    bf16: bool,
    bytes: Bytes,
}

/// Dot products of bytes beside the level's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    None,
    /// x86-64 with AVX-VNNI.
    AvxVnni,
    /// aarch64 with `sdot`.
    Dotprod,
    /// aarch64 with `usdot` too.
    I8mm,
}

impl Cpu {
    /// The level that every processor reaches.
    pub const PORTABLE: Cpu =
        Cpu { level: Level::Portable, vnni: false, vbmi: false, bf16: false, bytes: Bytes::None };

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

    /// AVX-512 VBMI: bytes chosen from 64.
    pub fn vbmi(self) -> bool {
        self.vbmi
    }

    /// AVX-512 BF16: two bfloat16 products summed into float32.
    pub fn bf16(self) -> bool {
        self.bf16
    }

    /// AVX-VNNI: the same as AVX-512 VNNI in 256 bits, on processors without AVX-512.
    pub fn avx_vnni(self) -> bool {
        self.bytes == Bytes::AvxVnni
    }

    /// aarch64's dot products of signed bytes.
    pub fn dotprod(self) -> bool {
        matches!(self.bytes, Bytes::Dotprod | Bytes::I8mm)
    }

    /// aarch64's dot products of unsigned with signed bytes.
    pub fn i8mm(self) -> bool {
        self.bytes == Bytes::I8mm
    }

    /// This processor and every lesser one that it can stand in for, strongest first. Each has its own kernels.
    pub fn variants(self) -> heapless::Vec<Cpu, 8> {
        let plain = Cpu { bytes: Bytes::None, ..self };
        let signed = if self.i8mm() { Cpu { bytes: Bytes::Dotprod, ..self } } else { self };
        let avx2 = Cpu { level: self.level.min(Level::Avx2), vnni: false, vbmi: false, bf16: false, ..self };
        let lesser = [
            self,
            signed,
            Cpu { vbmi: false, bf16: false, ..self },
            Cpu { vnni: false, vbmi: false, bf16: false, ..self },
            avx2,
            Cpu { bytes: Bytes::None, ..avx2 },
            plain,
            Cpu::PORTABLE,
        ];
        let mut variants: heapless::Vec<Cpu, 8> = heapless::Vec::new();
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
    pub fn features(self) -> heapless::Vec<&'static str, 12> {
        let mut features: heapless::Vec<&'static str, 12> = heapless::Vec::new();
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
        add(self.vbmi, "AVX-512 VBMI");
        add(self.bf16, "AVX-512 BF16");
        add(self.avx_vnni(), "AVX-VNNI");
        add(self.dotprod(), "DOTPROD");
        add(self.i8mm(), "I8MM");
        features
    }

    /// A name for tables and test output.
    pub fn name(self) -> &'static str {
        match (self.level, self.vnni, self.bf16) {
            (Level::Portable, ..) => "portable",
            (Level::Neon, ..) if self.i8mm() => "neon+i8mm",
            (Level::Neon, ..) if self.dotprod() => "neon+dotprod",
            (Level::Neon, ..) => "neon",
            (Level::Avx2, ..) if self.avx_vnni() => "avx2+vnni",
            (Level::Avx2, ..) => "avx2",
            (Level::Avx512, false, false) => "avx512",
            (Level::Avx512, true, false) if self.vbmi => "avx512+vnni+vbmi",
            (Level::Avx512, true, false) => "avx512+vnni",
            (Level::Avx512, false, true) => "avx512+bf16",
            (Level::Avx512, true, true) if self.vbmi => "avx512+vnni+vbmi+bf16",
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
    let more = if extended.eax >= 1 { __cpuid_count(7, 1).eax } else { 0 };
    let bytes = if bit(more, 4) { Bytes::AvxVnni } else { Bytes::None };
    if !wide {
        return Cpu { level: Level::Avx2, vnni: false, vbmi: false, bf16: false, bytes };
    }
    let (vnni, vbmi) = (bit(extended.ecx, 11), bit(extended.ecx, 1));
    Cpu { level: Level::Avx512, vnni, vbmi, bf16: bit(more, 5), bytes }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Cpu {
    Cpu { level: Level::Neon, vnni: false, vbmi: false, bf16: false, bytes: bytes() }
}

/// Linux lets programs read the registers that say so.
#[cfg(all(target_arch = "aarch64", any(target_os = "linux", target_os = "android")))]
fn bytes() -> Bytes {
    let (first, second): (u64, u64);
    // SAFETY: reads two identification registers, which the system has emulated for programs since 2017.
    unsafe {
        core::arch::asm!("mrs {}, ID_AA64ISAR0_EL1", out(reg) first, options(nomem, nostack));
        core::arch::asm!("mrs {}, ID_AA64ISAR1_EL1", out(reg) second, options(nomem, nostack));
    }
    // DP in bits 47..44, I8MM in bits 55..52.
    match (first >> 44 & 15 > 0, second >> 52 & 15 > 0) {
        (true, true) => Bytes::I8mm,
        (true, false) => Bytes::Dotprod,
        _ => Bytes::None,
    }
}

/// All of Apple's own processors for computers have `sdot`; elsewhere nobody is asked.
#[cfg(all(target_arch = "aarch64", not(any(target_os = "linux", target_os = "android"))))]
fn bytes() -> Bytes {
    if cfg!(target_os = "macos") { Bytes::Dotprod } else { Bytes::None }
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
