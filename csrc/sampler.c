/* sampler.c - logits to a token.
 *
 * Owns the choice of the next token and the log-probabilities. A sampler allocates when it opens and never
 * again. Nothing here sorts the vocabulary: every step is one or a few passes over it, whatever the order
 * of the logits.
 *
 * What is kept is defined by rank: tokens are ranked by logit, the lower id first among equals, so that
 * every filter keeps a prefix of one ranking. The draw is the inverse of the cumulative distribution in the
 * order of the ids: one uniform number a token.
 *
 * Special values: NaN counts as -infinity; a logit of +infinity wins outright (the lowest id of several); if
 * all are -infinity once penalties and bias are applied, the most likely token before them wins, of those that
 * a mask lets through (the first of them if all are -infinity). */
#include "fail.h"
#include "llm.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 64, /* logits that share a block maximum */
    LANES = 16  /* independent accumulators, so that the compiler can use vectors without -ffast-math */
};

struct llm_sampler {
    llm_sampling params; /* its bias arrays are the sampler's own */
    size_t vocab_size, n_blocks;
    uint64_t rng;
    int adjusts;      /* whether there are penalties or a bias */
    float *logits;    /* (vocab_size,) with penalties, bias and mask */
    float *weights;   /* (vocab_size,) exp((logit - max) / temperature) */
    float *block_max; /* (n_blocks,) */
    uint32_t *ids;    /* (vocab_size,) candidates, ascending */
    uint32_t *order;  /* (vocab_size,) what select_best permutes */
    uint32_t *counts; /* (vocab_size,) 0: not seen, else 1 + times generated; only with a penalty */
    uint32_t *seen;   /* (vocab_size,) the n_seen tokens with counts > 0 */
    size_t n_seen;
};

/* ---------------------------------------------------------------------------------------------------------
 * Arithmetic */

/* A random number in [0, 1): splitmix64 (Steele, Lea and Flood 2014; Vigna's public-domain version). */
static double uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static inline float clamp_weight(float x) {
    return x > -88.0f ? x : -88.0f; /* of which exp_clamped makes 0 */
}

/* e^t for t from -88 to 0, 0 below -87.7; relative error under 2e-7 (the polynomial of Cephes' expf,
 * Moshier). Our own, because it vectorises, and because libm's differ in the last bit, which would make a
 * seed's text depend on the C library. */
static inline float exp_clamped(float t) {
    float n = (t * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to the nearest integer */
    float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* The largest of x (n,), -infinity if there is none. */
static float max_of(const float *x, size_t n) {
    float lane[LANES], best = -INFINITY;
    size_t i = 0;
    for (int j = 0; j < LANES; j++)
        lane[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    for (int j = 0; j < LANES; j++)
        best = lane[j] > best ? lane[j] : best;
    return best;
}

static size_t first_index(const float *x, size_t n, float value) {
    size_t i = 0;
    while (i < n && x[i] != value)
        i++;
    return i < n ? i : 0;
}

/* The sum of exp((x - max) / temperature) over x (n,), max being finite; fills weights (n,) unless NULL. */
static double weigh(const float *x, size_t n, float max, float temperature, float *weights) {
    double sum = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        float w[BLOCK], lane[LANES] = {0};
        size_t m = n - i < BLOCK ? n - i : BLOCK;
        for (size_t j = m; j < BLOCK; j++)
            w[j] = -INFINITY;
        memcpy(w, x + i, m * sizeof *w);
        for (int j = 0; j < BLOCK; j++)
            w[j] = clamp_weight((w[j] - max) / temperature);
        for (int j = 0; j < BLOCK; j++) /* apart: GCC makes a branch of the two together, and no vectors */
            w[j] = exp_clamped(w[j]);
        for (int j = 0; j < BLOCK; j += LANES)
            for (int k = 0; k < LANES; k++)
                lane[k] += w[j + k];
        for (int k = 0; k < LANES; k++)
            sum += lane[k];
        if (weights)
            memcpy(weights + i, w, m * sizeof *w);
    }
    return sum;
}

/* ---------------------------------------------------------------------------------------------------------
 * Selection */

/* Whether token a ranks before token b. */
static inline int ranks_before(const float *x, uint32_t a, uint32_t b) {
    return (x[a] > x[b]) | ((x[a] == x[b]) & (a < b));
}

/* The last token of the shortest best-ranked part of ids (n,), n > 0, whose weights sum to at least
 * `target`; weights NULL: each weighs 1. Permutes ids. Quickselect: about 2n steps; pivots come from a
 * hash, so that no order of logits is a bad one. */
static uint32_t select_best(uint32_t *ids, size_t n, const float *x, const float *weights, double target) {
    size_t lo = 0, hi = n;
    uint64_t hash = n;
    while (lo < hi) {
        size_t pick = lo + (size_t)(uniform(&hash) * (double)(hi - lo)), mid = lo;
        uint32_t pivot = ids[pick];
        double above = 0;
        ids[pick] = ids[hi - 1];
        for (size_t i = lo; i < hi - 1; i++) {
            uint32_t id = ids[i]; /* no branch: half of them would be mispredicted */
            int first = ranks_before(x, id, pivot);
            above += first * (weights ? weights[id] : 1.0f);
            ids[i] = ids[mid];
            ids[mid] = id;
            mid += (size_t)first;
        }
        ids[hi - 1] = ids[mid];
        ids[mid] = pivot;
        if (above >= target) {
            hi = mid;
            continue;
        }
        target -= above + (weights ? weights[pivot] : 1.0f);
        lo = mid + 1;
        if (target <= 0)
            break;
    }
    return ids[lo ? lo - 1 : 0]; /* everything before lo ranks before it, or is it */
}

/* Keeps of the n candidates those up to the last that select_best names, in their order; returns how many. */
static size_t keep_best(llm_sampler *s, const float *x, size_t n, const float *weights, double target) {
    size_t kept = 0;
    memcpy(s->order, s->ids, n * sizeof *s->ids);
    uint32_t last = select_best(s->order, n, x, weights, target);
    for (size_t i = 0; i < n; i++)
        if (!ranks_before(x, last, s->ids[i]))
            s->ids[kept++] = s->ids[i];
    return kept;
}

/* How many logits block b has: the last one may have fewer. */
static size_t block_size(const llm_sampler *s, size_t b) {
    size_t left = s->vocab_size - b * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* Makes the candidates those with values (vocab_size,) of at least `least`; blocks whose block_max is less
 * are passed over, unless NULL. */
static size_t collect(llm_sampler *s, const float *values, const float *block_max, float least) {
    size_t n = 0;
    for (size_t b = 0; b < s->n_blocks; b++) {
        size_t begin = b * BLOCK, end = begin + block_size(s, b);
        if (block_max && !(block_max[b] >= least))
            continue;
        for (size_t i = begin; i < end; i++) {
            s->ids[n] = (uint32_t)i; /* n <= i, so this stays inside */
            n += values[i] >= least;
        }
    }
    return n;
}

/* Makes the candidates the k highest logits. The k-th highest block maximum is a bound: at least k logits
 * reach it. */
static size_t collect_top_k(llm_sampler *s, const float *x, size_t k) {
    float least = -FLT_MAX; /* leaves out -infinity and NaN */
    if (k < s->n_blocks) {
        for (size_t b = 0; b < s->n_blocks; b++)
            s->order[b] = (uint32_t)b;
        uint32_t kth = select_best(s->order, s->n_blocks, s->block_max, NULL, (double)k);
        least = fmaxf(least, s->block_max[kth]);
    }
    size_t n = collect(s, x, s->block_max, least);
    return n > k ? keep_best(s, x, n, NULL, (double)k) : n;
}

/* Makes the candidates the k highest logits, fills in their weights, and returns how many there are; *total:
 * the sum of the weights. */
static size_t filter_top_k(llm_sampler *s, const float *x, float max, double *total) {
    size_t n = collect_top_k(s, x, s->params.top_k);
    *total = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = s->ids[i];
        s->weights[id] = exp_clamped(clamp_weight((x[id] - max) / s->params.temperature));
        *total += s->weights[id];
    }
    return n;
}

/* The same without a k: all tokens that top-p can keep. Those below (1 - top_p) / vocab_size of the mass
 * cannot add up to what it drops: they need no ranking. */
static size_t filter_all(llm_sampler *s, const float *x, float max, double *total) {
    const llm_sampling *p = &s->params;
    *total = weigh(x, s->vocab_size, max, p->temperature, s->weights);
    double least = (1.0 - p->top_p) * *total / (double)s->vocab_size;
    return collect(s, s->weights, NULL, (float)least);
}

/* Keeps of the n candidates those with at least min_p of the most likely one's weight, which is 1. */
static size_t filter_min_p(llm_sampler *s, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = s->ids[i];
        if (s->weights[id] >= s->params.min_p)
            s->ids[kept++] = id;
    }
    return kept;
}

/* Makes the candidates of all filters, with their weights filled in, and returns how many (at least one), telling
 * how many each has left. max is finite. */
static size_t filter(llm_sampler *s, const float *x, float max, llm_explanation *why) {
    const llm_sampling *p = &s->params;
    double total;
    size_t n;
    if (p->top_k && p->top_k < s->vocab_size)
        n = filter_top_k(s, x, max, &total);
    else
        n = filter_all(s, x, max, &total);
    why->top_k = (uint32_t)n;
    if (p->top_p < 1.0f)
        n = keep_best(s, x, n, s->weights, p->top_p * total);
    why->top_p = (uint32_t)n;
    if (p->min_p > 0.0f)
        n = filter_min_p(s, n);
    why->min_p = (uint32_t)n;
    return n;
}

/* ---------------------------------------------------------------------------------------------------------
 * Samplers */

llm_sampling llm_sampling_default(void) {
    return (llm_sampling){.temperature = 0.8f, .top_p = 0.95f, .repeat_penalty = 1.0f};
}

/* 0 if all of the numbers are in range, else -1; each comparison is written so that NaN fails it. */
static int check_numbers(const llm_sampling *p, char *err, size_t errlen) {
    const struct {
        const char *name, *range;
        float value;
        int good;
    } checks[] = {
        {"temperature", "at least 0", p->temperature, p->temperature >= 0 && p->temperature <= FLT_MAX},
        {"top_p", "above 0 and at most 1", p->top_p, p->top_p > 0 && p->top_p <= 1},
        {"min_p", "from 0 to 1", p->min_p, p->min_p >= 0 && p->min_p <= 1},
        {"repeat_penalty", "above 0", p->repeat_penalty,
            p->repeat_penalty > 0 && p->repeat_penalty <= FLT_MAX},
        {"presence_penalty", "finite", p->presence_penalty, fabsf(p->presence_penalty) <= FLT_MAX},
        {"frequency_penalty", "finite", p->frequency_penalty, fabsf(p->frequency_penalty) <= FLT_MAX},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        REQUIRE(checks[i].good, "%s must be a number %s, not %g", checks[i].name, checks[i].range,
            checks[i].value);
    return 0;
}

static int check_bias(const llm_sampling *p, size_t vocab_size, char *err, size_t errlen) {
    REQUIRE(!p->n_bias || (p->bias_tokens && p->bias_values), "n_bias is %u, but an array of them is NULL",
        p->n_bias);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        const uint32_t token = p->bias_tokens[i];
        const float value = p->bias_values[i];
        REQUIRE(token < vocab_size, "bias_tokens[%u] must be below vocab_size (%zu), not %u", i, vocab_size,
            token);
        REQUIRE(value <= FLT_MAX, "bias_values[%u] must be a number or -infinity, not %g", i, value);
    }
    return 0;
}

llm_sampler *llm_sampler_open(const llm_sampling *params, size_t vocab_size, char *err, size_t errlen) {
    if (check_numbers(params, err, errlen))
        return NULL;
    REQUIRE_OR_NULL(
        vocab_size >= 1 && vocab_size <= UINT32_MAX, "vocab_size must be from 1 to %u", UINT32_MAX);
    if (check_bias(params, vocab_size, err, errlen))
        return NULL;
    int penalties =
        params->repeat_penalty != 1 || params->presence_penalty != 0 || params->frequency_penalty != 0;
    size_t n_blocks = (vocab_size + BLOCK - 1) / BLOCK, n_bias = params->n_bias;
    size_t arrays = 4 + 2 * (size_t)penalties;
    llm_sampler *s = calloc(1, sizeof *s);
    uint32_t *memory = calloc(arrays * vocab_size + n_blocks + 2 * n_bias, sizeof *memory);
    if (!s || !memory) {
        free(s);
        free(memory);
        return FAIL_NULL("out of memory for a sampler of %zu tokens", vocab_size);
    }
    s->params = *params;
    s->vocab_size = vocab_size;
    s->n_blocks = n_blocks;
    s->rng = params->seed;
    s->weights = (float *)memory; /* all arrays have entries of 4 bytes and share one allocation */
    s->ids = memory + vocab_size;
    s->order = s->ids + vocab_size;
    s->logits = (float *)s->order + vocab_size;
    s->adjusts = penalties || n_bias;
    if (penalties) {
        s->counts = (uint32_t *)s->logits + vocab_size;
        s->seen = s->counts + vocab_size;
    }
    s->block_max = (float *)memory + arrays * vocab_size;
    if (n_bias) {
        float *values = s->block_max + n_blocks;
        s->params.bias_values = memcpy(values, params->bias_values, n_bias * sizeof *values);
        s->params.bias_tokens = memcpy(values + n_bias, params->bias_tokens, n_bias * sizeof(uint32_t));
    }
    return s;
}

void llm_sampler_close(llm_sampler *s) {
    if (s)
        free(s->weights);
    free(s);
}

void llm_sampler_accept(llm_sampler *s, uint32_t token, int generated) {
    if (!s->counts || token >= s->vocab_size)
        return;
    if (!s->counts[token]) {
        s->counts[token] = 1;
        s->seen[s->n_seen++] = token;
    }
    if (generated && s->counts[token] < UINT32_MAX)
        s->counts[token]++;
}

/* Whether a mask, a bit a token, lets this one through. */
static inline int allows(const uint32_t *mask, size_t token) { return mask[token / 32] >> token % 32 & 1; }

/* Makes x (n,) -infinity where the mask has no bit. */
static void forbid(float *x, size_t n, const uint32_t *mask) {
    for (size_t i = 0; i < n; i++)
        x[i] = allows(mask, i) ? x[i] : -INFINITY;
}

/* The logits (vocab_size,) with penalties, bias and mask: the sampler's copy, or the argument itself when there
 * are none. */
static const float *adjust(llm_sampler *s, const float *logits, const uint32_t *mask) {
    const llm_sampling *p = &s->params;
    if (!s->adjusts && !mask)
        return logits;
    memcpy(s->logits, logits, s->vocab_size * sizeof *logits);
    for (size_t i = 0; i < s->n_seen; i++) {
        float *x = s->logits + s->seen[i];
        uint32_t generated = s->counts[s->seen[i]] - 1;
        *x = *x > 0 ? *x / p->repeat_penalty : *x * p->repeat_penalty;
        if (generated)
            *x -= p->presence_penalty + p->frequency_penalty * (float)generated;
    }
    for (uint32_t i = 0; i < p->n_bias; i++)
        s->logits[p->bias_tokens[i]] += p->bias_values[i];
    if (mask)
        forbid(s->logits, s->vocab_size, mask);
    return s->logits;
}

/* The most likely token, whatever penalties and bias say, of those that the mask lets through. */
static size_t most_likely(llm_sampler *s, const float *logits, const uint32_t *mask) {
    const size_t n = s->vocab_size;
    if (mask) {
        memcpy(s->logits, logits, n * sizeof *logits);
        forbid(s->logits, n, mask);
        logits = s->logits;
    }
    const float max = max_of(logits, n);
    size_t token = first_index(logits, n, max);
    while (mask && max == -INFINITY && token + 1 < n && !allows(mask, token))
        token++;
    return token;
}

/* The largest of all logits; fills block_max. */
static float find_max(llm_sampler *s, const float *x) {
    for (size_t b = 0; b < s->n_blocks; b++)
        s->block_max[b] = max_of(x + b * BLOCK, block_size(s, b));
    return max_of(s->block_max, s->n_blocks);
}

/* Draws one of the candidates, max being finite. */
static size_t draw(llm_sampler *s, const float *x, float max, llm_explanation *why) {
    size_t n = filter(s, x, max, why), i = 0;
    double mass = 0;
    for (size_t j = 0; j < n; j++)
        mass += s->weights[s->ids[j]];
    double rest = uniform(&s->rng) * mass; /* below mass, and the same sums in the same order lead up to it */
    while (i + 1 < n && rest >= s->weights[s->ids[i]]) {
        rest -= s->weights[s->ids[i]];
        i++;
    }
    while (i && s->weights[s->ids[i]] == 0) /* rounding ran past the last token with any weight */
        i--;
    why->drawn = (float)(s->weights[s->ids[i]] / mass);
    return s->ids[i];
}

uint32_t llm_sample_explained(
    llm_sampler *s, const float *logits, const uint32_t *mask, llm_explanation *why) {
    const float *x = adjust(s, logits, mask);
    size_t token;
    float max = find_max(s, x);
    *why = (llm_explanation){.top_k = 1, .top_p = 1, .min_p = 1, .drawn = 1};
    if (max == -INFINITY)
        token = most_likely(s, logits, mask);
    else if (s->params.temperature == 0 || max == INFINITY)
        token = first_index(x, s->vocab_size, max);
    else
        token = draw(s, x, max, why);
    why->logit = logits[token];
    why->adjusted = x[token];
    llm_sampler_accept(s, (uint32_t)token, 1);
    return (uint32_t)token;
}

uint32_t llm_sample(llm_sampler *s, const float *logits, const uint32_t *mask) {
    llm_explanation why;
    return llm_sample_explained(s, logits, mask, &why);
}

/* ---------------------------------------------------------------------------------------------------------
 * Log-probabilities */

/* The log-probability of a logit x, where log_sum is the logarithm of the sum of all exp(x - max). */
static float logprob(float x, float max, double log_sum) {
    if (!(x > -INFINITY)) /* nor NaN */
        return -INFINITY;
    return (float)(x == max ? -log_sum : (double)x - max - log_sum); /* two infinities have no difference */
}

/* The logarithm of the sum of all exp(x - max) over x (n,). */
static double log_sum_of(const float *x, size_t n, float max) {
    if (max == -INFINITY)
        return 0;
    if (max < INFINITY)
        return log(weigh(x, n, max, 1.0f, NULL));
    size_t count = 0; /* the infinite ones share it all */
    for (size_t i = 0; i < n; i++)
        count += x[i] == INFINITY;
    return log((double)count);
}

/* The most likely tokens so far: (n,) a heap whose root is the entry that ranks last */
typedef struct best {
    uint32_t *tokens;
    float *values;
} best;

/* Whether entry i ranks after a token with this value. */
static int ranks_after(const best *b, size_t i, uint32_t token, float value) {
    return b->values[i] < value || (b->values[i] == value && b->tokens[i] > token);
}

/* Moves entry `at` of the n entries down to its place. */
static void sift(const best *b, size_t n, size_t at) {
    uint32_t token = b->tokens[at];
    float value = b->values[at];
    for (;;) {
        size_t child = 2 * at + 1, other = child + 1;
        if (child >= n)
            break;
        if (other < n && ranks_after(b, other, b->tokens[child], b->values[child]))
            child = other;
        if (!ranks_after(b, child, token, value))
            break;
        b->tokens[at] = b->tokens[child];
        b->values[at] = b->values[child];
        at = child;
    }
    b->tokens[at] = token;
    b->values[at] = value;
}

/* Fills b with the n tokens of the highest logits, the highest first. */
static void find_best(const best *b, size_t n, const float *logits, size_t vocab_size) {
    for (size_t i = 0; i < n; i++) {
        b->tokens[i] = (uint32_t)i;
        b->values[i] = logits[i] > -INFINITY ? logits[i] : -INFINITY; /* NaN has no order */
    }
    for (size_t i = n / 2; i > 0; i--)
        sift(b, n, i - 1);
    for (size_t i = n; n && i < vocab_size; i++)
        if (logits[i] > b->values[0]) { /* an equal one with a higher id ranks after it */
            b->tokens[0] = (uint32_t)i;
            b->values[0] = logits[i];
            sift(b, n, 0);
        }
    for (size_t end = n; end > 1; end--) { /* the last in rank goes to the end */
        uint32_t token = b->tokens[0];
        float value = b->values[0];
        b->tokens[0] = b->tokens[end - 1];
        b->values[0] = b->values[end - 1];
        sift(b, end - 1, 0);
        b->tokens[end - 1] = token;
        b->values[end - 1] = value;
    }
}

float llm_logprobs(const float *logits, size_t vocab_size, uint32_t token, size_t n, uint32_t *top_tokens,
    float *top_logprobs) {
    float max = max_of(logits, vocab_size);
    double log_sum = log_sum_of(logits, vocab_size, max);
    n = n < vocab_size ? n : vocab_size;
    find_best(&(best){top_tokens, top_logprobs}, n, logits, vocab_size);
    for (size_t i = 0; i < n; i++)
        top_logprobs[i] = logprob(top_logprobs[i], max, log_sum);
    return token < vocab_size ? logprob(logits[token], max, log_sum) : -INFINITY;
}

float llm_mass(const float *logits, size_t vocab_size, const uint32_t *mask) {
    const float max = max_of(logits, vocab_size);
    double all = 0, allowed = 0;
    if (!(fabsf(max) < INFINITY))
        return NAN;
    for (size_t i = 0; i < vocab_size; i += BLOCK) {
        float w[BLOCK];
        size_t m = vocab_size - i < BLOCK ? vocab_size - i : BLOCK;
        all += weigh(logits + i, m, max, 1.0f, w);
        for (size_t j = 0; j < m; j++)
            allowed += allows(mask, i + j) ? w[j] : 0.0f;
    }
    return (float)fmin(1.0, allowed / all);
}
