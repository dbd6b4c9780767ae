// Adam in one pass over its arrays.
#include "vec.h"

typedef struct {
    const float *gradient, *mean, *square;
    int64_t n, queue;
    float factor, beta1, beta2, rate, debias, eps;
    float *move, *new_mean, *new_square;
} adam_t;

#define SOME 16384

static void adam_share(void *job, int thread, int threads) {
    adam_t *a = job;
    (void)thread, (void)threads;
    for (int64_t first; (first = next(&a->queue, SOME)) < a->n;) {
        int64_t last = least(first + SOME, a->n);
        for (int64_t i = first; i < last; i++) {
            float g = a->gradient[i] * a->factor;
            float mean = a->mean[i] + (g - a->mean[i]) * (1 - a->beta1);
            float square = a->beta2 * a->square[i] + (1 - a->beta2) * g * g;
            a->new_mean[i] = mean;
            a->new_square[i] = square;
            a->move[i] = -a->rate * mean / (__builtin_sqrtf(square * a->debias) + a->eps);
        }
    }
}

// The gradient times `factor`, its running mean and mean square, and the move -rate · mean / (√(square · debias) + eps).
void adam(const float *gradient, const float *mean, const float *square, int64_t n, float factor, float beta1, float beta2,
          float rate, float debias, float eps, float *move, float *new_mean, float *new_square, int64_t threads) {
    adam_t a = {gradient, mean, square, n, 0, factor, beta1, beta2, rate, debias, eps, move, new_mean, new_square};
    // A thread's start costs more than a small array.
    share(adam_share, &a, n < 8 * SOME ? 1 : threads);
}
