//! The bend of a feed-forward block backwards.

use crate::backend::Activation;
use crate::cpu::Cpu;
use crate::ops::math::{Lanewise, erf, exp, load_padded, map_in_place, sigmoid, tanh};
use crate::ops::vector::{Kernel, Vector, launch};

/// Of `y = f(gate) * up`: takes the gradient of `y` and leaves that of `gate` in its place, and that of `up` beside it.
pub fn activate(
    cpu: Cpu,
    activation: Activation,
    gate: &[f32],
    up: Option<(&[f32], &mut [f32])>,
    d: &mut [f32],
) {
    assert_eq!(gate.len(), d.len());
    let up = up.map(|(up, dup)| {
        assert!(up.len() == d.len() && dup.len() == d.len());
        dup.copy_from_slice(d);
        launch(cpu, Row { slope: UpSlope { activation, gate, up }, d: dup });
        up
    });
    launch(cpu, Row { slope: GateSlope { activation, gate, up }, d });
}

/// `dx` of `y = limit * tanh(x / limit)`, given `y`, in the place of `dy`.
pub fn cap(limit: f32, y: &[f32], d: &mut [f32]) {
    d.iter_mut().zip(y).for_each(|(d, y)| *d *= 1.0 - (y / limit) * (y / limit));
}

struct Row<'a, S> {
    slope: S,
    d: &'a mut [f32],
}

impl<S: Lanewise> Kernel for Row<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: launched with a proven vector.
        unsafe { map_in_place::<V>(self.d, &self.slope) }
    }
}

/// See the forward operation.
const CLAMP: f32 = 7.0;
const STEEPNESS: f32 = 1.702;

/// A bend and its slope.
#[inline(always)]
unsafe fn bend<V: Vector>(activation: Activation, x: V) -> (V, V) {
    // SAFETY: lane arithmetic.
    unsafe {
        let (zero, half, one) = (V::splat(0.0), V::splat(0.5), V::splat(1.0));
        match activation {
            Activation::Silu => {
                let s = sigmoid(x);
                (x.mul(s), s.mul(x.mul(one.sub(s)).add(one)))
            }
            Activation::Gelu => {
                let phi = half.mul(one.add(erf(x.mul(V::splat(core::f32::consts::FRAC_1_SQRT_2)))));
                let density = exp(x.mul(x).mul(V::splat(-0.5))).mul(V::splat(0.398_942_3));
                (x.mul(phi), x.mul_add(density, phi))
            }
            Activation::GeluTanh => {
                let (square, root) = (x.mul(x), V::splat(0.797_884_6));
                let t = tanh(square.mul_add(V::splat(0.044_715), one).mul(x).mul(root));
                let inner = square.mul_add(V::splat(0.134_145), one).mul(root);
                let phi = half.mul(one.add(t));
                (x.mul(phi), half.mul(x).mul(one.sub(t.mul(t))).mul_add(inner, phi))
            }
            Activation::Relu => (x.max(zero), zero.if_less(x, one, zero)),
            Activation::ClampedSwish => {
                let limit = V::splat(CLAMP);
                let low = limit.min(x);
                let s = sigmoid(low.mul(V::splat(STEEPNESS)));
                let slope = s.mul(low.mul(one.sub(s)).mul_add(V::splat(STEEPNESS), one));
                (low.mul(s), limit.if_less(x, zero, slope))
            }
        }
    }
}

/// What the gradient of `gate` is the result's times.
struct GateSlope<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: Option<&'a [f32]>,
}

impl Lanewise for GateSlope<'_> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, d: V, at: usize) -> V {
        // SAFETY: lane arithmetic; `load_padded` stays inside the slices.
        unsafe {
            let (_, slope) = bend(self.activation, load_padded::<V>(self.gate, at));
            let d = d.mul(slope);
            match (self.up, self.activation) {
                (None, _) => d,
                (Some(up), Activation::ClampedSwish) => {
                    let up = load_padded::<V>(up, at).max(V::splat(-CLAMP)).min(V::splat(CLAMP));
                    d.mul(up.add(V::splat(1.0)))
                }
                (Some(up), _) => d.mul(load_padded(up, at)),
            }
        }
    }
}

/// What the gradient of `up` is the result's times.
struct UpSlope<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
}

impl Lanewise for UpSlope<'_> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, d: V, at: usize) -> V {
        // SAFETY: lane arithmetic; `load_padded` stays inside the slices.
        unsafe {
            let (y, _) = bend(self.activation, load_padded::<V>(self.gate, at));
            let d = d.mul(y);
            match self.activation {
                Activation::ClampedSwish => {
                    let (zero, up) = (V::splat(0.0), load_padded::<V>(self.up, at));
                    let d = V::splat(CLAMP).if_less(up, zero, d);
                    up.if_less(V::splat(-CLAMP), zero, d)
                }
                _ => d,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::ops::backward::tests::{check, noise};
    use std::vec;
    use std::vec::Vec;

    const ALL: [Activation; 5] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::ClampedSwish,
    ];

    /// Away from corners, where a difference is no gradient.
    fn input(seed: u64, count: usize) -> Vec<f32> {
        let away = |x: f32| match x {
            x if x.abs() < 0.05 => x + 0.1,
            x if (x.abs() - CLAMP).abs() < 0.05 => x + 0.1,
            x => x,
        };
        noise(seed, count).iter().map(|x| away(x * 9.0)).collect()
    }

    #[test]
    fn gradients_of_bends_are_differences() {
        for cpu in Cpu::detect().variants() {
            for activation in ALL {
                for width in [1, 16, 37] {
                    let (gate, up, dy) = (input(1, width), input(2, width), noise(3, width));
                    let of = |gate: &[f32], up: Option<&[f32]>| {
                        let mut y = gate.to_vec();
                        crate::ops::activation::activate(cpu, activation, &mut y, up);
                        y
                    };
                    let (mut dgate, mut dup) = (dy.clone(), vec![0.0; width]);
                    activate(cpu, activation, &gate, Some((&up, &mut dup)), &mut dgate);
                    check("gate", &gate, &dy, &dgate, |gate| of(gate, Some(&up)));
                    check("up", &up, &dy, &dup, |up| of(&gate, Some(up)));
                    let mut plain = dy.clone();
                    activate(cpu, activation, &gate, None, &mut plain);
                    check("plain", &gate, &dy, &plain, |gate| of(gate, None));
                }
            }
        }
    }

    #[test]
    fn gradients_of_caps_are_differences() {
        let (x, dy) = (noise(1, 20).iter().map(|x| x * 9.0).collect::<Vec<_>>(), noise(2, 20));
        let of = |x: &[f32]| {
            let mut y = x.to_vec();
            crate::ops::activation::cap(Cpu::detect(), 5.0, &mut y);
            y
        };
        let mut dx = dy.clone();
        cap(5.0, &of(&x), &mut dx);
        check("cap", &x, &dy, &dx, of);
    }
}
