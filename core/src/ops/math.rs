//! Elementary functions over vectors, with our own polynomials, so that results do not depend on a system's libm.

use super::vector::Vector;

/// Below this, `exp` underflows out of the normal range; we return exactly zero, so that a masked score of minus
/// infinity gets no weight at all.
const EXP_LOWEST: f32 = -87.336_54;
const EXP_HIGHEST: f32 = 88.0;

/// e to the x, within 2 units in the last place on [-87.3, 88]; zero below, saturated above.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; the series of e^r to the sixth power is within 4e-9 there.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: only lane arithmetic; the caller proves the instruction set.
    unsafe {
        let clamped = x.min(V::splat(EXP_HIGHEST)).max(V::splat(EXP_LOWEST));
        let n = clamped.mul(V::splat(core::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first with trailing zeros, so that n * part is exact.
        let r = n.mul_add(V::splat(-0.693_359_4), clamped);
        let r = n.mul_add(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.mul_add(r, V::splat(c));
        }
        x.if_less(V::splat(EXP_LOWEST), V::splat(0.0), p.mul(n.exp2()))
    }
}

/// 1 / (1 + e^-x).
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: only lane arithmetic.
    unsafe {
        let one = V::splat(1.0);
        one.div(one.add(exp(V::splat(0.0).sub(x))))
    }
}

/// The error function, within 4e-7: Abramowitz and Stegun 7.1.26, for |x|, with the sign put back.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn erf<V: Vector>(x: V) -> V {
    // SAFETY: only lane arithmetic.
    unsafe {
        let zero = V::splat(0.0);
        let one = V::splat(1.0);
        let a = x.max(zero.sub(x));
        let t = one.div(a.mul_add(V::splat(0.327_591_1), one));
        let mut p = V::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = p.mul_add(t, V::splat(c));
        }
        let tail = p.mul(t).mul(exp(zero.sub(a.mul(a))));
        let magnitude = one.sub(tail);
        x.if_less(zero, zero.sub(magnitude), magnitude)
    }
}

/// The hyperbolic tangent, as 1 - 2 / (1 + e^2x); absolute error below 3e-7.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: only lane arithmetic.
    unsafe {
        let one = V::splat(1.0);
        one.sub(V::splat(2.0).div(one.add(exp(x.add(x)))))
    }
}

/// Adds the lanes in a fixed order: halves are folded onto each other.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn sum<V: Vector>(x: V) -> f32 {
    fold(x, |a, b| a + b)
}

/// The largest lane.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn largest<V: Vector>(x: V) -> f32 {
    fold(x, f32::max)
}

#[inline(always)]
fn fold<V: Vector>(x: V, f: impl Fn(f32, f32) -> f32) -> f32 {
    const { assert!(V::LANES <= 16) };
    let mut lanes = [0.0f32; 16];
    // SAFETY: the array holds the widest vector.
    unsafe { x.store(lanes.as_mut_ptr()) };
    let mut width = V::LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// A function of lanes. A trait rather than a closure: its method can be `#[inline(always)]`, and a closure that the
/// compiler leaves out of line loses the vector unit.
pub trait Lanewise {
    /// The result for lanes `x`, which begin at element `at`.
    ///
    /// # Safety
    /// As for [`Vector`].
    unsafe fn apply<V: Vector>(&self, x: V, at: usize) -> V;
}

/// Applies a function to a slice, the ragged end in a padded vector: the same arithmetic for every element.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn map_in_place<V: Vector>(slice: &mut [f32], f: &impl Lanewise) {
    let whole = slice.len() / V::LANES * V::LANES;
    // SAFETY: whole vectors stay inside the slice; the array holds the widest vector.
    unsafe {
        for at in (0..whole).step_by(V::LANES) {
            let place = slice.as_mut_ptr().add(at);
            f.apply(V::load(place), at).store(place);
        }
        let rest = &mut slice[whole..];
        if !rest.is_empty() {
            let mut lanes = [0.0f32; 16];
            lanes[..rest.len()].copy_from_slice(rest);
            f.apply(V::load(lanes.as_ptr()), whole).store(lanes.as_mut_ptr());
            rest.copy_from_slice(&lanes[..rest.len()]);
        }
    }
}

/// Loads lanes from `slice[at..]`, zeros past its end.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn load_padded<V: Vector>(slice: &[f32], at: usize) -> V {
    // SAFETY: a whole vector is loaded only where the slice has one; the array holds the widest vector.
    unsafe {
        if at + V::LANES <= slice.len() {
            V::load(slice.as_ptr().add(at))
        } else {
            let mut lanes = [0.0f32; 16];
            let rest = slice.len() - at;
            lanes[..rest].copy_from_slice(&slice[at..]);
            V::load(lanes.as_ptr())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vector::{Kernel, launch};
    use super::*;
    use crate::Cpu;

    struct Each<'a> {
        function: &'static str,
        x: &'a mut [f32],
    }
    impl Kernel for Each<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<V: Vector>(self) {
            // SAFETY: launched with a proven vector.
            unsafe { map_in_place::<V>(self.x, &Named(self.function)) }
        }
    }
    struct Named(&'static str);
    impl Lanewise for Named {
        unsafe fn apply<V: Vector>(&self, x: V, _: usize) -> V {
            // SAFETY: launched with a proven vector.
            unsafe {
                match self.0 {
                    "exp" => exp(x),
                    "sigmoid" => sigmoid(x),
                    "erf" => erf(x),
                    _ => tanh(x),
                }
            }
        }
    }

    fn check(function: &'static str, reference: fn(f64) -> f64, absolute: f64, relative: f64) {
        for cpu in Cpu::detect().variants() {
            let mut from = [0.0f32; 1003];
            for (i, x) in from.iter_mut().enumerate() {
                *x = (i as f32 - 500.0) * 0.1737;
            }
            let mut to = from;
            launch(cpu, Each { function, x: &mut to });
            for (x, y) in from.iter().zip(to) {
                let want = reference(f64::from(*x));
                let error = (f64::from(y) - want).abs();
                assert!(
                    error <= absolute + relative * want.abs(),
                    "{function}({x}) = {y}, not {want}, {}",
                    cpu.name()
                );
            }
        }
    }

    #[test]
    fn functions_are_within_their_bounds_on_every_level() {
        check("exp", |x| libm::exp(x.min(88.0)), 1.2e-38, 3e-7);
        check("sigmoid", |x| 1.0 / (1.0 + libm::exp(-x)), 2e-7, 0.0);
        check("erf", libm::erf, 4e-7, 0.0);
        check("tanh", libm::tanh, 3e-7, 0.0);
    }

    #[test]
    fn exp_of_minus_infinity_is_exactly_zero() {
        for cpu in Cpu::detect().variants() {
            let mut x = [f32::NEG_INFINITY, -1000.0, 0.0];
            launch(cpu, Each { function: "exp", x: &mut x });
            assert_eq!(x, [0.0, 0.0, 1.0]);
        }
    }
}
