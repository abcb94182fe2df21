//! The bend between two matrices of a feed-forward block, plain or gated.

use super::math::{Lanewise, erf, load_padded, map_in_place, sigmoid, tanh};
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
                Activation::Silu => map_in_place::<V>(self.gate, &Gated { bend: Silu, up: self.up }),
                Activation::Gelu => map_in_place::<V>(self.gate, &Gated { bend: Gelu, up: self.up }),
                Activation::GeluTanh => map_in_place::<V>(self.gate, &Gated { bend: GeluTanh, up: self.up }),
                Activation::Relu => map_in_place::<V>(self.gate, &Gated { bend: Relu, up: self.up }),
                Activation::ClampedSwish => map_in_place::<V>(self.gate, &ClampedSwish { up: self.up }),
            }
        }
    }
}

struct Gated<'a, B> {
    bend: B,
    up: Option<&'a [f32]>,
}

impl<B: Lanewise> Lanewise for Gated<'_, B> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, at: usize) -> V {
        // SAFETY: `load_padded` stays inside the slice.
        unsafe {
            let y = self.bend.apply(x, at);
            match self.up {
                Some(up) => y.mul(load_padded(up, at)),
                None => y,
            }
        }
    }
}

struct Silu;
impl Lanewise for Silu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe { x.mul(sigmoid(x)) }
    }
}

struct Gelu;
impl Lanewise for Gelu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe {
            let bent = erf(x.mul(V::splat(core::f32::consts::FRAC_1_SQRT_2)));
            x.mul(V::splat(0.5)).mul(V::splat(1.0).add(bent))
        }
    }
}

struct GeluTanh;
impl Lanewise for GeluTanh {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe {
            // sqrt(2 / pi) (x + 0.044715 x^3)
            let cubed = x.mul(x).mul_add(V::splat(0.044_715), V::splat(1.0)).mul(x);
            x.mul(V::splat(0.5)).mul(V::splat(1.0).add(tanh(cubed.mul(V::splat(0.797_884_6)))))
        }
    }
}

struct Relu;
impl Lanewise for Relu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe { x.max(V::splat(0.0)) }
    }
}

/// The largest magnitude that [`Activation::ClampedSwish`] lets through.
const CLAMP: f32 = 7.0;
/// Its sigmoid is that of `STEEPNESS * x`.
const STEEPNESS: f32 = 1.702;

struct ClampedSwish<'a> {
    up: Option<&'a [f32]>,
}

impl Lanewise for ClampedSwish<'_> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, at: usize) -> V {
        // SAFETY: lane arithmetic; `load_padded` stays inside the slice.
        unsafe {
            let x = V::splat(CLAMP).min(x);
            let y = x.mul(sigmoid(x.mul(V::splat(STEEPNESS))));
            match self.up {
                Some(up) => {
                    let up = load_padded::<V>(up, at).max(V::splat(-CLAMP)).min(V::splat(CLAMP));
                    y.mul(up.add(V::splat(1.0)))
                }
                None => y,
            }
        }
    }
}

/// `x = limit * tanh(x / limit)`.
pub fn cap(cpu: Cpu, limit: f32, x: &mut [f32]) {
    launch(cpu, CapRow { limit, x });
}

struct CapRow<'a> {
    limit: f32,
    x: &'a mut [f32],
}

impl Kernel for CapRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: launched with a proven vector.
        unsafe { map_in_place::<V>(self.x, &Cap(self.limit)) }
    }
}

struct Cap(f32);
impl Lanewise for Cap {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
        // SAFETY: lane arithmetic.
        unsafe { tanh(x.mul(V::splat(1.0 / self.0))).mul(V::splat(self.0)) }
    }
}

/// `x = x * factors + bias`, channel by channel.
pub fn scale(x: &mut [f32], factors: &[f32], bias: Option<&[f32]>) {
    assert!(x.len() == factors.len() && bias.is_none_or(|bias| bias.len() == x.len()));
    x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    if let Some(bias) = bias {
        x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
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
            Activation::ClampedSwish => x.min(7.0) / (1.0 + libm::exp(-1.702 * x.min(7.0))),
        };
        let factor = |activation, up: f64| match activation {
            Activation::ClampedSwish => up.clamp(-7.0, 7.0) + 1.0,
            _ => up,
        };
        for cpu in Cpu::detect().variants() {
            for activation in [
                Activation::Silu,
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::Relu,
                Activation::ClampedSwish,
            ] {
                let mut gate = [0.0f32; 77];
                let mut up = [0.0f32; 77];
                for i in 0..77 {
                    gate[i] = (i as f32 - 38.0) * 0.3;
                    up[i] = 9.0 - i as f32 * 0.24;
                }
                let x = gate;
                activate(cpu, activation, &mut gate, Some(&up));
                for i in 0..77 {
                    let want = definition(activation, f64::from(x[i])) * factor(activation, f64::from(up[i]));
                    assert!((f64::from(gate[i]) - want).abs() < 2e-5, "{activation:?} {} {i}", cpu.name());
                }
            }
        }
    }

    #[test]
    fn caps_match_their_definition() {
        for cpu in Cpu::detect().variants() {
            let mut x = [0.0f32; 37];
            x.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 - 18.0) * 7.0);
            let before = x;
            cap(cpu, 30.0, &mut x);
            for (y, x) in x.iter().zip(before) {
                let want = 30.0 * libm::tanh(f64::from(x) / 30.0);
                assert!((f64::from(*y) - want).abs() < 2e-5, "{x}: {y}, not {want}, {}", cpu.name());
            }
        }
    }
}
