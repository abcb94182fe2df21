//! The bend between two matrices of a feed-forward block, plain or gated.

use super::math::{erf, load_padded, map, sigmoid, tanh};
use super::vector::{Kernel, Vector, launch};
use crate::backend::Activation;
use crate::cpu::Cpu;

/// `gate = f(gate)`, or `gate = f(gate) * up` where the block is gated.
pub fn activate(cpu: Cpu, activation: Activation, gate: &mut [f32], up: Option<&[f32]>) {
    if let Some(up) = up {
        assert_eq!(gate.len(), up.len());
    }
    launch(cpu, Row { activation, gate, up });
}

struct Row<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    up: Option<&'a [f32]>,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: launched with a proven vector.
        unsafe {
            match self.activation {
                Activation::Silu => apply::<V>(self.gate, self.up, |x| x.mul(sigmoid(x))),
                Activation::Gelu => apply::<V>(self.gate, self.up, |x| {
                    let bent = erf(x.mul(V::splat(core::f32::consts::FRAC_1_SQRT_2)));
                    x.mul(V::splat(0.5)).mul(V::splat(1.0).add(bent))
                }),
                Activation::GeluTanh => apply::<V>(self.gate, self.up, |x| {
                    // sqrt(2 / pi) (x + 0.044715 x^3)
                    let inner = x
                        .mul(x)
                        .mul_add(V::splat(0.044_715), V::splat(1.0))
                        .mul(x)
                        .mul(V::splat(0.797_884_6));
                    x.mul(V::splat(0.5)).mul(V::splat(1.0).add(tanh(inner)))
                }),
                Activation::Relu => apply::<V>(self.gate, self.up, |x| x.max(V::splat(0.0))),
            }
        }
    }
}

#[inline(always)]
unsafe fn apply<V: Vector>(gate: &mut [f32], up: Option<&[f32]>, f: impl Fn(V) -> V) {
    let start = gate.as_mut_ptr();
    let len = gate.len();
    for at in (0..len).step_by(V::LANES) {
        // SAFETY: whole vectors stay inside `gate`; the ragged end goes through `map` on its own slice.
        unsafe {
            let bend = |x: V| match up {
                Some(up) => f(x).mul(load_padded(up, at)),
                None => f(x),
            };
            if at + V::LANES <= len {
                bend(V::load(start.add(at))).store(start.add(at));
            } else {
                let mut rest = [0.0f32; 16];
                let tail = &mut gate[at..];
                rest[..tail.len()].copy_from_slice(tail);
                map::<V>(&rest[..tail.len()], tail, |x, _| bend(x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_match_their_definitions() {
        let definition = |activation, x: f64| match activation {
            Activation::Silu => x / (1.0 + libm::exp(-x)),
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / core::f64::consts::SQRT_2)),
            Activation::GeluTanh => {
                0.5 * x
                    * (1.0
                        + libm::tanh(libm::sqrt(2.0 / core::f64::consts::PI) * (x + 0.044_715 * x * x * x)))
            }
            Activation::Relu => x.max(0.0),
        };
        for cpu in Cpu::detect().variants() {
            for activation in [
                Activation::Silu,
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::Relu,
            ] {
                let mut gate = [0.0f32; 77];
                let mut up = [0.0f32; 77];
                for i in 0..77 {
                    gate[i] = (i as f32 - 38.0) * 0.3;
                    up[i] = 1.0 + i as f32 * 0.1;
                }
                let x = gate;
                activate(cpu, activation, &mut gate, Some(&up));
                for i in 0..77 {
                    let want = definition(activation, f64::from(x[i])) * f64::from(up[i]);
                    assert!(
                        (f64::from(gate[i]) - want).abs() < 2e-5,
                        "{activation:?} {} {i}",
                        cpu.name()
                    );
                }
            }
        }
    }
}
