/* Causal attention for small heads: no T x T square, no traffic beyond q, k, v and the output.
 *
 * One vector holds one query each lane, so that nothing is ever summed across lanes: a key or a value is one number
 * for all of them. Keys come in blocks of KEYS. The softmax is online: each lane keeps the scale `top` of its weights,
 * raised only when a score exceeds it by more than SLACK, which is seldom after the first block.
 */

#include "exp2.h"

#if LANES == 16
#define KEYS 8
#else
#define KEYS 4
#endif

#define MOST_DIMENSIONS 128
#define WORTH_A_THREAD (1 << 19) /* pairs of a query and a key, times heads: some 50 µs */
#define SLACK 8.0f
#define NOTHING_YET -1e30f

typedef struct {
    const float *q, *k, *v;
    float *out;
    int64_t sequences, length, heads, kv_heads, dimensions;
    int64_t q_row, k_row, v_row, out_row; /* floats from one position to the next */
    int64_t window;                       /* keys that a query sees, itself included; 0: all before it */
    float scale;
    int failed;
    int64_t queue;
} Task;

/* One tile of LANES queries of one head. `q`: [D][LANES], scaled; `kv`: [length][2 D], zeros behind its end;
 * `o`: [D][LANES]. */
INLINE void
tile(const int D, const vec *q, const float *kv, vec *o, int32_t first, int32_t length, int32_t window) {
    vec acc[MOST_DIMENSIONS], total = all(0);
    /* `binary` is the scale in powers of two; its rounding is common to a lane's weights, and so falls out. */
    vec top = all(NOTHING_YET), binary = top * LOG2E;
    for (int d = 0; d < D; d++) acc[d] = all(0);
    ivec query;
    for (int lane = 0; lane < LANES; lane++) query[lane] = first + lane;
    const int32_t end = first + LANES < length ? first + LANES : length;
    for (int32_t start = first - window + 1 > 0 ? first - window + 1 : 0; start < end; start += KEYS) {
        vec s[KEYS], highest = all(-__builtin_inff());
        const float *keys = kv + (int64_t)start * 2 * D, *values = keys + D;
        for (int j = 0; j < KEYS; j++) s[j] = q[0] * keys[j * 2 * D];
        for (int d = 1; d < D; d++)
            for (int j = 0; j < KEYS; j++) s[j] += q[d] * keys[j * 2 * D + d];
        if (start + KEYS > first + 1 || start < first + LANES - window) {
            for (int j = 0; j < KEYS; j++) {
                ivec seen = (start + j <= query) & (start + j > query - window);
                s[j] = (vec)((seen & (ivec)s[j]) | (~seen & (ivec)all(-__builtin_inff())));
            }
        }
        for (int j = 0; j < KEYS; j++) highest = higher(highest, s[j]);
        if (at_least(highest, top + SLACK)) {
            vec before = binary;
            top = higher(highest, top);
            binary = top * LOG2E;
            vec less = exp2_of(before - binary);
            total *= less;
            for (int d = 0; d < D; d++) acc[d] *= less;
        }
        for (int j = 0; j < KEYS; j++) {
            s[j] = exp2_of(s[j] * LOG2E - binary);
            total += s[j];
        }
        for (int d = 0; d < D; d++)
            for (int j = 0; j < KEYS; j++) acc[d] += s[j] * values[j * 2 * D + d];
    }
    for (int d = 0; d < D; d++) o[d] = acc[d] / total;
}

/* All queries of one head of one sequence. Heads are padded to D numbers with zeros. */
INLINE void head(const int D, const Task *t, int64_t item, float *kv) {
    const int64_t sequence = item / t->heads, head = item % t->heads, kv_head = head / (t->heads / t->kv_heads);
    const int64_t n = t->dimensions;
    const float *q = t->q + sequence * t->length * t->q_row + head * n;
    const float *k = t->k + sequence * t->length * t->k_row + kv_head * n;
    const float *v = t->v + sequence * t->length * t->v_row + kv_head * n;
    float *out = t->out + sequence * t->length * t->out_row + head * n;
    const int32_t window = t->window > 0 && t->window < t->length ? t->window : t->length;
    for (int64_t i = 0; i < t->length; i++)
        for (int64_t d = 0; d < n; d++) {
            kv[i * 2 * D + d] = k[i * t->k_row + d];
            kv[i * 2 * D + D + d] = v[i * t->v_row + d];
        }
    for (int64_t first = 0; first < t->length; first += LANES) {
        vec queries[MOST_DIMENSIONS], outs[MOST_DIMENSIONS];
        const int here = t->length - first < LANES ? t->length - first : LANES;
        for (int d = 0; d < D; d++) queries[d] = all(0);
        for (int lane = 0; lane < here; lane++)
            for (int64_t d = 0; d < n; d++)
                ((float *)queries)[d * LANES + lane] = q[(first + lane) * t->q_row + d] * t->scale;
        tile(D, queries, kv, outs, first, t->length, window);
        for (int lane = 0; lane < here; lane++)
            for (int64_t d = 0; d < n; d++) out[(first + lane) * t->out_row + d] = ((float *)outs)[d * LANES + lane];
    }
}

/* The sizes of heads that code is made for. Others are padded to the next one. */
#define SIZES(each) each(4) each(8) each(16) each(32) each(48) each(64) each(80) each(96) each(128)

static int64_t padded(int64_t dimensions) {
#define FIT(size) if (dimensions <= size) return size;
    SIZES(FIT)
    return 0;
}

static void work(void *job, int thread, int threads) {
    Task *t = job;
    const int64_t D = padded(t->dimensions);
    /* Zeros stay in the padding of heads and behind the last key: what is masked must not be a stray NaN. */
    float *kv = calloc((t->length + KEYS) * 2 * D, sizeof(float));
    if (!kv) t->failed = 1;
    for (int64_t item; kv && (item = next(&t->queue, 1)) < t->sequences * t->heads;)
        switch (D) {
#define CASE(size) case size: head(size, t, item, kv); break;
            SIZES(CASE)
        }
    free(kv);
}

/* Numbers in a vector of this machine. */
int hsae_attention_lanes(void) { return LANES; }

/* Rows of q and out hold `heads` heads of `dimensions` numbers, those of k and v `kv_heads`; positions are `*_row`
 * floats apart, sequences follow each other. Heads are of at most 128 numbers. `scale` is what scores are multiplied with.
 * Returns 0, or 1 where memory ran out. */
int hsae_attention(const float *q, const float *k, const float *v, float *out, int64_t sequences, int64_t length,
                   int64_t heads, int64_t kv_heads, int64_t dimensions, int64_t q_row, int64_t k_row, int64_t v_row,
                   int64_t out_row, int64_t window, float scale, int threads) {
    Task task = {q, k, v, out, sequences, length, heads, kv_heads, dimensions,
                 q_row, k_row, v_row, out_row, window, scale, 0, 0};
    const int64_t keys = window > 0 && window < length ? window : length;
    const int64_t most = least(sequences * heads, 1 + sequences * heads * length * keys / WORTH_A_THREAD);
    share(work, &task, (int)least(threads, most));
    return task.failed;
}
