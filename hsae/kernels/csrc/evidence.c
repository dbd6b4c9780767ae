// What is gathered of each latent from the entries of its code, sorted by row: counts, a histogram, its best contexts and
// an even draw of them, and the tokens it fires on. `hsae/evidence/gathered.py` says what each number means.
#include "vec.h"
#include <math.h>

enum { BEFORE = 19, WINDOW = 32, TOP = 16, SAMPLES = 30, BINS = 32, SLOTS = 256, SILENT = -(1 << 20) };

typedef struct {
    int64_t *sequence;
    int32_t *position, *tokens;
    float *code;
} contexts_t;

typedef struct {
    const int64_t *first;
    const int32_t *row;
    const float *value;
    int64_t latents, queue;
    const int32_t *sequence, *position, *tokens;
    int64_t sequences, context, offset;
    int64_t *firings;
    double *total;
    float *maximum;
    int32_t *exponent;
    int64_t *histogram;
    float *top_worth;
    contexts_t top;
    int64_t *sample_worth;
    contexts_t sample;
    int32_t *token_count, *token_id;
    int64_t *token_firings;
    double *token_mass, *token_doubt;
    int64_t vocabulary;
} gather_t;

static int64_t priority(uint64_t number, uint64_t salt) {
    uint64_t z = number * 0x9E3779B97F4A7C15u + salt * 0xD1B54A32D192ED03u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (int64_t)((z ^ (z >> 31)) >> 1);
}

// Entries [at, last) move up by one.
static void make_room(contexts_t c, int64_t at, int64_t last) {
    int64_t n = last - at;
    memmove(c.sequence + at + 1, c.sequence + at, n * sizeof *c.sequence);
    memmove(c.position + at + 1, c.position + at, n * sizeof *c.position);
    memmove(c.tokens + (at + 1) * WINDOW, c.tokens + at * WINDOW, n * WINDOW * sizeof *c.tokens);
    memmove(c.code + (at + 1) * WINDOW, c.code + at * WINDOW, n * WINDOW * sizeof *c.code);
}

// The context around entry `i`, one of the entries [first, last) of its latent, into place `at`.
static void fill(const gather_t *a, contexts_t c, int64_t at, int64_t i, int64_t first, int64_t last) {
    int32_t row = a->row[i], sequence = a->sequence[row], position = a->position[row];
    int32_t *tokens = c.tokens + at * WINDOW;
    float *code = c.code + at * WINDOW;
    c.sequence[at] = a->offset + sequence;
    c.position[at] = position;
    for (int64_t w = 0; w < WINDOW; w++) {
        int64_t p = position - BEFORE + w;
        tokens[w] = p >= 0 && p < a->context ? a->tokens[sequence * a->context + p] : -1;
        code[w] = 0;
    }
    for (int64_t j = i; j >= first && a->sequence[a->row[j]] == sequence; j--) {
        int64_t w = a->position[a->row[j]] - position + BEFORE;
        if (w < 0) break;
        code[w] = a->value[j];
    }
    for (int64_t j = i + 1; j < last && a->sequence[a->row[j]] == sequence; j++) {
        int64_t w = a->position[a->row[j]] - position + BEFORE;
        if (w >= WINDOW) break;
        code[w] = a->value[j];
    }
}

static contexts_t of(contexts_t c, int64_t latent, int64_t count) {
    int64_t from = latent * count;
    return (contexts_t){c.sequence + from, c.position + from, c.tokens + from * WINDOW, c.code + from * WINDOW};
}

// A worth goes behind those that equal it.
#define OFFER(kind, count)                                                          \
    static void offer_##kind(const gather_t *a, int64_t latent, kind##_t worth, int64_t i, int64_t first, int64_t last) { \
        kind##_t *there = a->kind##_worth + latent * count;                         \
        if (!(worth > there[count - 1])) return;                                    \
        int64_t at = count - 1;                                                     \
        for (; at > 0 && worth > there[at - 1]; at--) there[at] = there[at - 1];    \
        there[at] = worth;                                                          \
        contexts_t c = of(a->kind, latent, count);                                  \
        make_room(c, at, count - 1);                                                \
        fill(a, c, at, i, first, last);                                             \
    }
typedef float top_t;
typedef int64_t sample_t;
OFFER(top, TOP)
OFFER(sample, SAMPLES)

static void bin(gather_t *a, int64_t latent, int64_t first, int64_t last, float highest) {
    int64_t *bins = a->histogram + latent * BINS;
    int exponent, old = a->exponent[latent];
    if (frexpf(highest, &exponent) == 0.5f) exponent--;
    if (exponent > old) {
        // Six times, and everything is in the first bin.
        for (int64_t shift = old == SILENT ? 0 : least(exponent - old, 6); shift > 0; shift--) {
            for (int b = 0; b < BINS / 2; b++) bins[b] = bins[2 * b] + bins[2 * b + 1];
            memset(bins + BINS / 2, 0, BINS / 2 * sizeof *bins);
        }
        a->exponent[latent] = old = exponent;
    }
    double scale = ldexp(BINS, -old);
    for (int64_t i = first; i < last; i++) bins[(int)ceil(a->value[i] * scale) - 1]++;
}

typedef struct {
    double mass;
    int64_t firings;
    int32_t id;
} use_t;

static int by_mass(const void *p, const void *q) {
    const use_t *a = p, *b = q;
    return a->mass != b->mass ? (a->mass < b->mass ? 1 : -1) : (a->id > b->id) - (a->id < b->id);
}

// `place` holds -1 for each token between calls.
static void count_tokens(gather_t *a, int64_t latent, int64_t first, int64_t last, int32_t *place, use_t *uses) {
    int64_t n = a->token_count[latent], from = latent * SLOTS;
    for (int64_t i = 0; i < n; i++) {
        uses[i] = (use_t){a->token_mass[from + i], a->token_firings[from + i], a->token_id[from + i]};
        place[uses[i].id] = i;
    }
    for (int64_t i = first; i < last; i++) {
        int32_t row = a->row[i], token = a->tokens[a->sequence[row] * a->context + a->position[row]];
        int32_t at = place[token];
        if (at < 0) {
            at = place[token] = n++;
            uses[at] = (use_t){0, 0, token};
        }
        uses[at].mass += a->value[i];
        uses[at].firings++;
    }
    for (int64_t i = 0; i < n; i++) place[uses[i].id] = -1;
    if (n > SLOTS) {
        qsort(uses, n, sizeof *uses, by_mass);
        a->token_doubt[latent] += uses[SLOTS].mass;
        n = SLOTS;
    }
    a->token_count[latent] = n;
    for (int64_t i = 0; i < n; i++) {
        a->token_id[from + i] = uses[i].id;
        a->token_firings[from + i] = uses[i].firings;
        a->token_mass[from + i] = uses[i].mass;
    }
}

static void gather_share(void *job, int thread, int threads) {
    gather_t *a = job;
    int32_t *place = malloc(a->vocabulary * sizeof *place);
    use_t *uses = malloc((SLOTS + a->vocabulary) * sizeof *uses);
    memset(place, -1, a->vocabulary * sizeof *place);
    (void)thread, (void)threads;
    for (int64_t some; (some = next(&a->queue, 8)) < a->latents;)
        for (int64_t latent = some; latent < least(some + 8, a->latents); latent++) {
            int64_t first = a->first[latent], last = a->first[latent + 1];
            if (first == last) continue;
            float highest = a->maximum[latent];
            double total = 0;
            for (int64_t start = first, i; start < last; start = i) {
                int32_t sequence = a->sequence[a->row[start]];
                int64_t peak = start, draw = start, drawn = INT64_MAX;
                for (i = start; i < last && a->sequence[a->row[i]] == sequence; i++) {
                    total += a->value[i];
                    if (a->value[i] > a->value[peak]) peak = i;
                    uint64_t number = (uint64_t)(a->offset + sequence) * a->context + a->position[a->row[i]];
                    int64_t p = priority(number, latent);
                    if (p < drawn) drawn = p, draw = i;
                }
                if (a->value[peak] > highest) highest = a->value[peak];
                offer_top(a, latent, a->value[peak], peak, first, last);
                offer_sample(a, latent, -drawn, draw, first, last);
            }
            a->firings[latent] += last - first;
            a->total[latent] += total;
            a->maximum[latent] = highest;
            bin(a, latent, first, last, highest);
            count_tokens(a, latent, first, last, place, uses);
        }
    free(place), free(uses);
}

void gather(const int64_t *first, const int32_t *row, const float *value, int64_t latents, const int32_t *sequence,
            const int32_t *position, const int32_t *tokens, int64_t sequences, int64_t context, int64_t offset,
            int64_t *firings, double *total, float *maximum, int32_t *exponent, int64_t *histogram, float *top_worth,
            int64_t *top_sequence, int32_t *top_position, int32_t *top_tokens, float *top_code, int64_t *sample_worth,
            int64_t *sample_sequence, int32_t *sample_position, int32_t *sample_tokens, float *sample_code,
            int32_t *token_count, int32_t *token_id, int64_t *token_firings, double *token_mass, double *token_doubt,
            int64_t vocabulary, int64_t threads) {
    contexts_t top = {top_sequence, top_position, top_tokens, top_code};
    contexts_t sample = {sample_sequence, sample_position, sample_tokens, sample_code};
    gather_t a = {first, row, value, latents, 0, sequence, position, tokens, sequences, context, offset, firings, total,
                  maximum, exponent, histogram, top_worth, top, sample_worth, sample, token_count, token_id,
                  token_firings, token_mass, token_doubt, vocabulary};
    share(gather_share, &a, threads);
}
