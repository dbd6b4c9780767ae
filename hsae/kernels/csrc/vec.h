// Vectors as wide as the processor's, in the compiler's own terms; and work shared among threads.
#pragma once
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define ROWS 6 // tokens of one register tile
#define VECS 4 // vectors of latents in it: 24 of 32 registers add up
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define ROWS 6
#define VECS 2
#elif defined(__x86_64__)
#error "a processor without AVX2: PyTorch's own kernels are faster"
#else
#define LANES 4
#define ROWS 6
#define VECS 4
#endif
#define PANEL (VECS * LANES) // latents of one register tile

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec all(float x) { return (vec){} + x; }
// a where it is above b, else b.
INLINE vec higher(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ivec first = a > b;
    return (vec)((first & (ivec)a) | (~first & (ivec)b));
#endif
}
INLINE float sum(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
#endif
}

// One bit for each lane that is at least `limit`.
INLINE uint32_t at_least(vec v, vec limit) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)v, (__m512)limit, _CMP_GE_OQ);
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)limit, _CMP_GE_OQ));
#else
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(v[i] >= limit[i]) << i;
    return bits;
#endif
}

// Append the chosen lanes and their numbers, counted from `first`. Up to LANES numbers beyond them are overwritten.
INLINE int64_t append(vec v, uint32_t bits, int32_t first, int32_t *index, float *value, int64_t n) {
#if defined(__AVX512F__)
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i numbers = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
    _mm512_storeu_ps(value + n, _mm512_maskz_compress_ps((__mmask16)bits, (__m512)v));
    _mm512_storeu_si512(index + n, _mm512_maskz_compress_epi32((__mmask16)bits, numbers));
    return n + __builtin_popcount(bits);
#else
    float lane[LANES];
    store(lane, v);
    for (; bits; bits &= bits - 1, n++) {
        int i = __builtin_ctz(bits);
        index[n] = first + i;
        value[n] = lane[i];
    }
    return n;
#endif
}

// `work(job, thread, threads)` on every thread; the caller is thread 0.
typedef void (*work_t)(void *job, int thread, int threads);
typedef struct {
    work_t work;
    void *job;
    int thread, threads;
} share_t;

static void *run_share(void *p) {
    share_t *s = p;
    s->work(s->job, s->thread, s->threads);
    return NULL;
}

static void share(work_t work, void *job, int threads) {
    pthread_t ids[256];
    share_t shares[256];
    if (threads > 256) threads = 256;
    int started = 1;
    for (; started < threads; started++) {
        shares[started] = (share_t){work, job, started, threads};
        if (pthread_create(&ids[started], NULL, run_share, &shares[started])) break;
    }
    work(job, 0, threads);
    // Where no thread could be had, this one does its share too.
    for (int t = started; t < threads; t++) work(job, t, threads);
    for (int t = 1; t < started; t++) pthread_join(ids[t], NULL);
}

// The next piece of a queue that threads take from.
INLINE int64_t next(int64_t *queue, int64_t piece) { return __atomic_fetch_add(queue, piece, __ATOMIC_RELAXED); }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
