// Sparse codes of tokens: encoding, decoding, and the sums that learning wants of them.
//
// The matrix [token, latent] never leaves the registers and the cache. A code is kept twice: by token (for decoding)
// and by latent (for sums over tokens). Every result is added up in an order that does not depend on the threads.
#include "panel.h"

typedef struct {
    const float *x, *packed, *bias;
    int64_t tokens, width, latents, k;
    float limit;
    int64_t *start;
    int32_t *count, *index;
    float *value;
    int64_t capacity, queue, used, tiles; // tiles: register tiles of tokens taken at once
    // For the runner-up: latents that are out of the race, and what is found.
    const int64_t *out_start;
    const int32_t *out_count, *out_index;
    int32_t *best;
    float *best_value;
} encode_t;

INLINE int64_t count_at_least(const float *value, int64_t n, float limit) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += LANES) count += __builtin_popcount(at_least(load(value + i), all(limit)));
    return count;
}

// A limit, from `low` up, that at least k and at most k + spare of n values reach; more where equal ones forbid that, and
// fewer where `low` itself is too high. Bisection: it has no branches that a processor could not foresee.
static float limit_of(const float *value, int64_t n, int64_t k, int64_t spare, float low) {
    if (count_at_least(value, n, low) <= k + spare) return low;
    vec most_of = load(value);
    for (int64_t i = LANES; i < n; i += LANES) most_of = higher(load(value + i), most_of);
    float high = most_of[0];
    for (int i = 1; i < LANES; i++) high = most_of[i] > high ? most_of[i] : high;
    for (;;) {
        float middle = low / 2 + high / 2;
        // Nothing lies between: all that is left is equal, or infinite.
        if (!(middle > low && middle < high)) return count_at_least(value, n, high) >= k ? high : low;
        int64_t count = count_at_least(value, n, middle);
        if (count < k) high = middle;
        else if (count > k + spare) low = middle;
        else return middle;
    }
}

// Keep the k highest of n candidates, in their order; of equal ones the first.
static int64_t keep_highest(int32_t *index, float *value, int64_t n, int64_t k, float low) {
    if (n <= k) return n;
    store(value + n, all(-__builtin_inff()));
    float cut = limit_of(value, n, k, 0, low);
    // Where the cut leaves more than k, those equal to it are too many.
    int64_t equal = k, kept = 0;
    for (int64_t i = 0; i < n; i++) equal -= value[i] > cut;
    for (int64_t i = 0; i < n; i++) {
        int keep = value[i] > cut || (value[i] == cut && equal-- > 0);
        index[kept] = index[i];
        value[kept] = value[i];
        kept += keep;
    }
    return kept;
}

// At most this many numbers are highest-of-their-group that bound the k-th highest from below.
#define GROUPS 4096

static void encode_share(void *job, int thread, int threads) {
    encode_t *a = job;
    int64_t panels = (a->latents + PANEL - 1) / PANEL, padded = panels * PANEL, line = padded + LANES;
    int64_t batch = a->tiles * ROWS;
    // Groups of panels: with at least twice as many groups of latents as are kept, the k-th highest of the groups'
    // highest is a bound that few others reach.
    int64_t slots = a->k ? (2 * a->k + PANEL - 1) / PANEL : 0;
    if (slots > panels) slots = panels;
    if (slots * PANEL > GROUPS) slots = 0;
    int bounded = slots && slots * PANEL >= a->k;
    float *xt = malloc(a->width * ROWS * sizeof(float) * a->tiles);
    float *u = a->k || a->best ? malloc(batch * padded * sizeof(float)) : NULL;
    float *value = malloc(batch * line * sizeof(float));
    int32_t *index = malloc(batch * line * sizeof(int32_t));
    float *high = malloc((batch * slots * PANEL + PANEL) * sizeof(float));
    int64_t *n = malloc(batch * sizeof *n);
    vec limit = all(a->limit);
    (void)thread, (void)threads;
    for (int64_t first; (first = next(&a->queue, batch)) < a->tokens;) {
        int64_t here = least(batch, a->tokens - first), tiles = (here + ROWS - 1) / ROWS;
        for (int64_t t = 0; t < tiles; t++)
            pack_tokens(a->x + (first + t * ROWS) * a->width, here - t * ROWS, a->width, xt + t * ROWS * a->width);
        for (int64_t t = 0; t < batch; t++) n[t] = 0;
        for (int64_t i = 0; bounded && i < batch * slots * PANEL; i++) high[i] = -__builtin_inff();
        for (int64_t p = 0; p < panels; p++)
            for (int64_t t = 0; t < tiles; t++) {
                vec drive[ROWS][VECS];
                multiply(xt + t * ROWS * a->width, a->packed + p * PANEL * a->width, a->bias + p * PANEL, a->width, drive);
                for (int m = 0; m < ROWS; m++) {
                    int64_t token = t * ROWS + m;
                    for (int v = 0; v < VECS; v++) {
                        if (u) {
                            store(u + token * padded + p * PANEL + v * LANES, drive[m][v]);
                            if (bounded) {
                                float *top = high + (token * slots + p % slots) * PANEL + v * LANES;
                                store(top, higher(drive[m][v], load(top)));
                            }
                        } else {
                            uint32_t bits = at_least(drive[m][v], limit);
                            n[token] = append(drive[m][v], bits, p * PANEL + v * LANES, index + token * line,
                                              value + token * line, n[token]);
                        }
                    }
                }
            }
        if (a->best) {
            for (int64_t t = 0; t < here; t++) {
                float *row = u + t * padded;
                const int32_t *out = a->out_index + a->out_start[first + t];
                for (int32_t i = 0; i < a->out_count[first + t]; i++) row[out[i]] = -__builtin_inff();
                vec top = load(row);
                for (int64_t i = LANES; i < padded; i += LANES) top = higher(load(row + i), top);
                float most = top[0];
                for (int i = 1; i < LANES; i++) most = top[i] > most ? top[i] : most;
                int64_t i = 0;
                while (i < padded && !at_least(load(row + i), all(most))) i += LANES;
                while (i < a->latents - 1 && !(row[i] >= most)) i++;
                a->best[first + t] = least(i, a->latents - 1);
                a->best_value[first + t] = most;
            }
            continue;
        }
        int64_t total = 0;
        for (int64_t t = 0; t < here; t++) {
            if (u) {
                float *row = u + t * padded;
                float from = a->limit;
                if (bounded) from = limit_of(high + t * slots * PANEL, slots * PANEL, a->k, a->k / 4, a->limit);
                int64_t found = 0;
                for (int64_t i = 0; i < padded; i += LANES) {
                    uint32_t bits = at_least(load(row + i), all(from));
                    if (bits) found = append(load(row + i), bits, i, index + t * line, value + t * line, found);
                }
                n[t] = keep_highest(index + t * line, value + t * line, found, a->k, from);
            }
            total += n[t];
        }
        int64_t at = next(&a->used, total);
        for (int64_t t = 0; t < here; t++) {
            a->start[first + t] = at;
            a->count[first + t] = n[t];
            if (at + n[t] <= a->capacity) {
                memcpy(a->index + at, index + t * line, n[t] * sizeof *index);
                memcpy(a->value + at, value + t * line, n[t] * sizeof *value);
            }
            at += n[t];
        }
        // No use in going on: the caller will do without.
        if (at > a->capacity) __atomic_store_n(&a->queue, a->tokens, __ATOMIC_RELAXED);
    }
    free(xt), free(u), free(value), free(index), free(high), free(n);
}

// Tiles of tokens that a thread takes at once: few drives where they are kept, more where the encoder is large.
static int64_t tiles_at_once(int64_t latents, int64_t width, int kept) {
    int64_t tiles = kept ? (1 << 17) / (latents * ROWS) : 4;
    if (width > 512 && tiles < 8) tiles = 8;
    return tiles < 1 ? 1 : tiles > 8 ? 8 : tiles;
}

// Codes of tokens: the drives that are at least `limit`, and of these the k highest (k = 0: all).
// Returns how many there are; more than `capacity` means that they did not fit and nothing is of use.
int64_t encode(const float *x, const float *packed, const float *bias, int64_t tokens, int64_t width, int64_t latents,
               int64_t k, float limit, int64_t *start, int32_t *count, int32_t *index, float *value, int64_t capacity,
               int64_t threads) {
    encode_t a = {.x = x, .packed = packed, .bias = bias, .tokens = tokens, .width = width, .latents = latents,
                  .k = k, .limit = limit, .start = start, .count = count, .index = index, .value = value,
                  .capacity = capacity, .tiles = tiles_at_once(latents, width, k > 0)};
    share(encode_share, &a, threads);
    return a.used;
}

// For each token, the latent with the highest drive among those that are not in its code, and that drive.
void runner_up(const float *x, const float *packed, const float *bias, int64_t tokens, int64_t width, int64_t latents,
               const int64_t *start, const int32_t *count, const int32_t *index, int32_t *best, float *value,
               int64_t threads) {
    encode_t a = {.x = x, .packed = packed, .bias = bias, .tokens = tokens, .width = width, .latents = latents,
                  .out_start = start, .out_count = count, .out_index = index, .best = best, .best_value = value,
                  .tiles = tiles_at_once(latents, width, 1)};
    share(encode_share, &a, threads);
}

typedef struct {
    const int64_t *start;
    const int32_t *count, *index;
    const float *value, *rows, *from;
    int64_t tokens, width, queue;
    float *out;
} decode_t;

#define CHUNK 4 // vectors of a row that are added up in registers
#define PIECE 64

static void decode_share(void *job, int thread, int threads) {
    decode_t *a = job;
    (void)thread, (void)threads;
    for (int64_t first; (first = next(&a->queue, PIECE)) < a->tokens;)
        for (int64_t t = first; t < least(first + PIECE, a->tokens); t++) {
            const int32_t *index = a->index + a->start[t], n = a->count[t];
            const float *value = a->value + a->start[t], *from = a->from + t * a->width;
            float *out = a->out + t * a->width;
            int64_t j = 0;
            for (; j + CHUNK * LANES <= a->width; j += CHUNK * LANES) {
                vec s[CHUNK];
                for (int c = 0; c < CHUNK; c++) s[c] = -load(from + j + c * LANES);
                for (int32_t i = 0; i < n; i++) {
                    const float *row = a->rows + index[i] * a->width + j;
                    vec v = all(value[i]);
                    for (int c = 0; c < CHUNK; c++) s[c] += v * load(row + c * LANES);
                }
                for (int c = 0; c < CHUNK; c++) store(out + j + c * LANES, s[c]);
            }
            for (; j + LANES <= a->width; j += LANES) {
                vec s = -load(from + j);
                for (int32_t i = 0; i < n; i++) s += all(value[i]) * load(a->rows + index[i] * a->width + j);
                store(out + j, s);
            }
            for (; j < a->width; j++) {
                float s = -from[j];
                for (int32_t i = 0; i < n; i++) s += value[i] * a->rows[index[i] * a->width + j];
                out[j] = s;
            }
        }
}

// out = code · rows - from, for [token, width] `from` and `out`.
void decode(const int64_t *start, const int32_t *count, const int32_t *index, const float *value, const float *rows,
            const float *from, int64_t tokens, int64_t width, float *out, int64_t threads) {
    decode_t a = {start, count, index, value, rows, from, tokens, width, 0, out};
    share(decode_share, &a, threads);
}

typedef struct {
    const int64_t *start;
    const int32_t *count, *index;
    const float *value;
    int64_t tokens, latents, *first;
    int32_t *token;
    float *by_latent;
    int64_t *at; // [thread, latent]: how many, then where the thread's next goes
} turn_t;

static void count_share(void *job, int thread, int threads) {
    turn_t *a = job;
    int64_t *at = a->at + thread * a->latents;
    memset(at, 0, a->latents * sizeof *at);
    for (int64_t t = a->tokens * thread / threads; t < a->tokens * (thread + 1) / threads; t++)
        for (int32_t i = 0; i < a->count[t]; i++) at[a->index[a->start[t] + i]]++;
}

static void turn_share(void *job, int thread, int threads) {
    turn_t *a = job;
    int64_t *at = a->at + thread * a->latents;
    for (int64_t t = a->tokens * thread / threads; t < a->tokens * (thread + 1) / threads; t++)
        for (int64_t i = a->start[t]; i < a->start[t] + a->count[t]; i++) {
            int64_t to = at[a->index[i]]++;
            a->token[to] = t;
            a->by_latent[to] = a->value[i];
        }
}

// The same code by latent: `first` [latents + 1], and for each entry its token, ascending, and its value.
void by_latent(const int64_t *start, const int32_t *count, const int32_t *index, const float *value, int64_t tokens,
               int64_t latents, int64_t *first, int32_t *token, float *turned, int64_t threads) {
    turn_t a = {start, count, index, value, tokens, latents, first, token, turned,
                malloc(threads * latents * sizeof(int64_t))};
    share(count_share, &a, threads);
    int64_t before = 0;
    for (int64_t k = 0; k < latents; k++) {
        first[k] = before;
        for (int s = 0; s < threads; s++) {
            int64_t here = a.at[s * latents + k];
            a.at[s * latents + k] = before;
            before += here;
        }
    }
    first[latents] = before;
    share(turn_share, &a, threads);
    free(a.at);
}

typedef struct {
    const int64_t *first;
    const int32_t *token;
    const float *value, *signal, *rows;
    int64_t latents, width, queue;
    float scale, shift, *out, *sums;
} latents_t;

#define AHEAD 6 // entries whose rows are fetched in advance: they lie anywhere in the micro-batch

static void back_share(void *job, int thread, int threads) {
    latents_t *a = job;
    int64_t width = a->width, whole = width - width % LANES;
    (void)thread, (void)threads;
    for (int64_t k0; (k0 = next(&a->queue, PIECE)) < a->latents;)
        for (int64_t k = k0; k < least(k0 + PIECE, a->latents); k++) {
            const float *row = a->rows + k * width;
            for (int64_t i = a->first[k]; i < a->first[k + 1]; i++) {
                const float *s = a->signal + a->token[i] * width;
                if (i + AHEAD < a->first[k + 1]) {
                    const float *later = a->signal + a->token[i + AHEAD] * width;
                    for (int64_t j = 0; j < width; j += 16) __builtin_prefetch(later + j);
                }
                vec even = {}, odd = {};
                int64_t j = 0;
                for (; j + 2 * LANES <= whole; j += 2 * LANES) {
                    even += load(s + j) * load(row + j);
                    odd += load(s + j + LANES) * load(row + j + LANES);
                }
                for (; j < whole; j += LANES) even += load(s + j) * load(row + j);
                float dot = sum(even + odd);
                for (; j < width; j++) dot += s[j] * row[j];
                a->out[i] = a->scale * dot + a->shift;
            }
        }
}

// For each entry of the code (latent k, token t): scale · (signal_t · rows_k) + shift.
void back(const int64_t *first, const int32_t *token, int64_t latents, int64_t width, const float *signal,
          const float *rows, float scale, float shift, float *out, int64_t threads) {
    latents_t a = {first, token, NULL, signal, rows, latents, width, 0, scale, shift, out, NULL};
    share(back_share, &a, threads);
}

static void add_share(void *job, int thread, int threads) {
    latents_t *a = job;
    int64_t width = a->width;
    (void)thread, (void)threads;
    for (int64_t k0; (k0 = next(&a->queue, PIECE)) < a->latents;)
        for (int64_t k = k0; k < least(k0 + PIECE, a->latents); k++) {
            int64_t low = a->first[k], high = a->first[k + 1], j = 0;
            float *out = a->out + k * width;
            if (a->sums) {
                float s = 0;
                for (int64_t i = low; i < high; i++) s += a->value[i];
                a->sums[k] += s;
            }
            if (low == high) continue;
            for (; j + CHUNK * LANES <= width; j += CHUNK * LANES) {
                vec s[CHUNK] = {};
                for (int64_t i = low; i < high; i++) {
                    const float *row = a->signal + a->token[i] * width + j;
                    if (i + AHEAD < high) {
                        const float *later = a->signal + a->token[i + AHEAD] * width + j;
                        for (int c = 0; c < CHUNK * LANES; c += 16) __builtin_prefetch(later + c);
                    }
                    vec v = all(a->value[i]);
                    for (int c = 0; c < CHUNK; c++) s[c] += v * load(row + c * LANES);
                }
                for (int c = 0; c < CHUNK; c++) store(out + j + c * LANES, load(out + j + c * LANES) + a->scale * s[c]);
            }
            for (; j + LANES <= width; j += LANES) {
                vec s = {};
                for (int64_t i = low; i < high; i++)
                    s += all(a->value[i]) * load(a->signal + a->token[i] * width + j);
                store(out + j, load(out + j) + a->scale * s);
            }
            for (; j < width; j++) {
                float s = 0;
                for (int64_t i = low; i < high; i++) s += a->value[i] * a->signal[a->token[i] * width + j];
                out[j] += a->scale * s;
            }
        }
}

// out_k += scale · Σ value · signal_t over latent k's entries; and sums_k += Σ value, where sums are wanted.
void add(const int64_t *first, const int32_t *token, const float *value, int64_t latents, int64_t width,
         const float *signal, float scale, float *out, float *sums, int64_t threads) {
    latents_t a = {first, token, value, signal, NULL, latents, width, 0, scale, 0, out, sums};
    share(add_share, &a, threads);
}

// Each latent's sum of squares of its values.
void squares(const int64_t *first, const float *value, int64_t latents, float *out) {
    for (int64_t k = 0; k < latents; k++) {
        float s = 0;
        for (int64_t i = first[k]; i < first[k + 1]; i++) s += value[i] * value[i];
        out[k] = s;
    }
}
