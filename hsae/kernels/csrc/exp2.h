// Powers of two, a vector at a time.
#pragma once
#include "vec.h"

#define LOG2E 1.44269504f

// 2^x for x up to 127, within 2e-7 of it; 0 or next to nothing below -126.
INLINE vec exp2_of(vec x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    vec f = (vec)_mm512_reduce_ps((__m512)x, 1); // x - floor(x)
    vec p = all(0x1.ec320ap-10f);
    p = p * f + 0x1.26900ep-7f;
    p = p * f + 0x1.c95446p-5f;
    p = p * f + 0x1.ebd5a8p-3f;
    p = p * f + 0x1.62e4f6p-1f;
    p = p * f + 0x1.fffffep-1f;
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    const float round = 0x1.8p23f; // adding it leaves the nearest whole number in the last bits
    x = higher(x, all(-126.0f));
    vec shifted = x + round, f = x - (shifted - round);
    vec p = all(0x1.5c08e6p-10f);
    p = p * f + 0x1.3d0c54p-7f;
    p = p * f + 0x1.c6b6e4p-5f;
    p = p * f + 0x1.ebf918p-3f;
    p = p * f + 0x1.62e428p-1f;
    p = p * f + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
#endif
}
