/* What lies between the attentions of a transformer: products, and GPT-2's GELU. */

#include "exp2.h"
#include "panel.h"

#define ROWS_AT_ONCE (16 * ROWS)
#define WORTH_A_THREAD (1 << 23) /* multiplications, or numbers to look at times 64: some 50 µs */

typedef struct {
    const float *x, *packed, *bias;
    float *y;
    int64_t rows, into, out, y_row, queue;
    int failed;
} Product;

static void products(void *job, int thread, int threads) {
    Product *p = job;
    float *xt = malloc(ROWS_AT_ONCE * p->into * sizeof(float));
    if (!xt) p->failed = 1;
    for (int64_t first; xt && (first = next(&p->queue, ROWS_AT_ONCE)) < p->rows;) {
        const int64_t here = least(ROWS_AT_ONCE, p->rows - first);
        for (int64_t r = 0; r < here; r += ROWS)
            pack_tokens(p->x + (first + r) * p->into, here - r, p->into, xt + r * p->into);
        /* One panel of weights stays in the nearest cache while the rows pass by. */
        for (int64_t k = 0; k < p->out; k += PANEL)
            for (int64_t r = 0; r < here; r += ROWS) {
                vec u[ROWS][VECS];
                multiply(xt + r * p->into, p->packed + k * p->into, p->bias + k, p->into, u);
                for (int m = 0; m < ROWS && r + m < here; m++)
                    for (int v = 0; v < VECS; v++) {
                        float *y = p->y + (first + r + m) * p->y_row + k + v * LANES;
                        if (k + (v + 1) * LANES <= p->out) store(y, u[m][v]);
                        else for (int64_t i = 0; i < p->out - k - v * LANES; i++) y[i] = u[m][v][i];
                    }
            }
    }
    free(xt);
}

/* y = x W' + b, with W and b as `pack` gives them: x [rows, into], y [rows, out] in rows `y_row` floats apart.
 * Returns 0, or 1 where memory ran out. */
int hsae_affine(const float *x, const float *packed, const float *bias, float *y, int64_t rows, int64_t into,
                int64_t out, int64_t y_row, int threads) {
    Product p = {x, packed, bias, y, rows, into, out, y_row, 0, 0};
    share(products, &p, (int)least(threads, 1 + rows * into * out / WORTH_A_THREAD));
    return p.failed;
}

/* x (1 + tanh u) / 2 = x / (1 + e^-2u), the power limited so that it stays finite. */
INLINE vec gelu(vec x) {
    vec u = x * 0.7978845608f * (x * x * 0.044715f + 1.0f);
    return x / (exp2_of(-higher(u * (2 * LOG2E), all(-126.0f))) + 1.0f);
}

typedef struct {
    float *x;
    int64_t numbers, queue;
} Numbers;

static void gelus(void *job, int thread, int threads) {
    Numbers *n = job;
    const int64_t piece = 1 << 14;
    for (int64_t first; (first = next(&n->queue, piece)) < n->numbers;) {
        const int64_t end = least(first + piece, n->numbers);
        int64_t i = first;
        for (; i + LANES <= end; i += LANES) store(n->x + i, gelu(load(n->x + i)));
        if (i < end) {
            vec rest = {0};
            memcpy(&rest, n->x + i, (end - i) * sizeof(float));
            rest = gelu(rest);
            memcpy(n->x + i, &rest, (end - i) * sizeof(float));
        }
    }
}

/* GELU by its tanh approximation, in place. */
void hsae_gelu(float *x, int64_t numbers, int threads) {
    Numbers n = {x, numbers, 0};
    share(gelus, &n, (int)least(threads, 1 + numbers * 64 / WORTH_A_THREAD));
}
