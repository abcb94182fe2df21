// Elementary functions, with the polynomials of `ops/math.rs`: the same sentences, in the same order.
#pragma once
#include "kernel.cuh"

#define EXP_LOWEST -87.33654f

// e to the x; zero below, saturated above.
DEVICE float exp_of(float x) {
    float clamped = fmaxf(fminf(x, 88.0f), EXP_LOWEST);
    float n = rintf(clamped * 1.4426950408889634f);
    float r = fmaf(n, -0.6933594f, clamped);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.0f / 720.0f;
    p = fmaf(p, r, 1.0f / 120.0f);
    p = fmaf(p, r, 1.0f / 24.0f);
    p = fmaf(p, r, 1.0f / 6.0f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    float power = __uint_as_float((unsigned)((int)n + 127) << 23);
    return x < EXP_LOWEST ? 0.0f : p * power;
}

DEVICE float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(0.0f - x)); }

DEVICE float tanh_of(float x) { return 1.0f - 2.0f / (1.0f + exp_of(x + x)); }

DEVICE float erf_of(float x) {
    float a = fmaxf(x, 0.0f - x);
    float t = 1.0f / fmaf(a, 0.3275911f, 1.0f);
    float p = 1.0614054f;
    p = fmaf(p, t, -1.453152f);
    p = fmaf(p, t, 1.4214137f);
    p = fmaf(p, t, -0.28449674f);
    p = fmaf(p, t, 0.2548296f);
    float tail = p * t * exp_of(0.0f - a * a);
    float magnitude = 1.0f - tail;
    return x < 0.0f ? 0.0f - magnitude : magnitude;
}
