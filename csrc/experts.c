/* experts.c - mixtures of gated units (Jiang et al. 2024, "Mixtral of Experts"): a router chooses some for each
 * token, and the tokens of each go through it together. */
#include "forward.h"
#include <math.h>
#include <string.h>

/* ... and of the shared one */
static unit_weights shared_weights(const llm_session *s, size_t layer) {
    static const llm_tensor none = {0};
    return (unit_weights){
        .gate_up = tensor(s->m, layer, LLM_SHARED_GATE_UP),
        .down = tensor(s->m, layer, LLM_SHARED_DOWN),
        .gate_up_bias = &none,
        .down_bias = &none,
    };
}

static void route(llm_session *s, size_t layer, size_t i);
static void sort_by_expert(llm_session *s, const llm_layer *l, size_t n);
static void expert(llm_session *s, size_t layer, size_t e, vectors x);
static void shared_apart(llm_session *s, size_t layer, size_t n);

void moe(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *w_router = tensor(s->m, layer, LLM_ROUTER);
    const int apart = (l->flags & LLM_SHARED_NORMS) != 0;
    vectors x = block_input(s, layer, apart ? LLM_ROUTER_NORM : LLM_FFN_NORM, n);
    /* router (n, n_experts) = x (n, dim) @ W (n_experts, dim)^T */
    matmul_exact(s, w_router, n, x, s->router);
    if (apart)
        x = block_input(s, layer, LLM_FFN_NORM, n);
    EACH(i, n) {
        route(s, layer, i);
        memset(row_of(s->out, i), 0, s->out.stride * sizeof(float));
    }
    barrier(&s->barrier);
    if (THREAD == 0)
        sort_by_expert(s, l, n);
    barrier(&s->barrier);
    for (size_t e = 0; e <= l->n_experts; e++)
        if (s->starts[e] < s->starts[e + 1])
            expert(s, layer, e, x);
    barrier(&s->barrier);
    if (apart)
        shared_apart(s, layer, n);
    add_block(s, layer, LLM_FFN_POST_NORM, n);
}

/* out = a norm of it plus a norm of what the shared expert makes of a norm of its own of the residual stream */
static void shared_apart(llm_session *s, size_t layer, size_t n) {
    const llm_tensor *experts_norm = tensor(s->m, layer, LLM_EXPERTS_POST);
    const llm_tensor *shared_norm = tensor(s->m, layer, LLM_SHARED_POST);
    const unit_weights w = shared_weights(s, layer);
    const vectors x = block_input(s, layer, LLM_SHARED_NORM, n);
    gated_unit(s, layer, w, n, x, NULL, s->expert_out);
    EACH(i, n) {
        float *out = row_of(s->out, i), *shared = row_of(s->expert_out, i);
        rmsnorm(s, experts_norm, out, out);
        rmsnorm(s, shared_norm, shared, shared);
        s->k->add_scaled(out, shared, 1, s->m->h.dim);
    }
}

/* x (n,) to exp(x) / the sum of all of them */
static void softmax(float *x, size_t n) {
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        max = fmaxf(max, x[i]);
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* The expert that is not taken and whose p + bias is largest, the lowest number among equals. There always is
 * one, whatever the numbers are: NaN is larger than nothing. */
static size_t best_expert(const float *p, const float *bias, const uint8_t *taken, size_t n) {
    size_t best = n;
    float most = 0;
    for (size_t e = 0; e < n; e++) {
        const float score = p[e] + (bias ? bias[e] : 0);
        if (!taken[e] && (best == n || score > most)) {
            best = e;
            most = score;
        }
    }
    return best;
}

/* How good a group of n experts is: the sum of p + bias of the best ones, one or two */
static float group_score(const float *p, const float *bias, size_t n, size_t n_best) {
    uint8_t taken[MAX_EXPERTS] = {0};
    float score = 0;
    for (size_t k = 0; k < n_best && k < n; k++) {
        const size_t best = best_expert(p, bias, taken, n);
        taken[best] = 1;
        score += p[best] + (bias ? bias[best] : 0);
    }
    return score;
}

/* Takes the experts of all groups but the n_active_groups best ones (DeepSeek-AI 2024, "DeepSeek-V2", "DeepSeek-V3") */
static void take_other_groups(const llm_layer *l, const float *p, const float *bias, uint8_t *taken) {
    const size_t size = l->n_experts / l->n_groups;
    float scores[MAX_EXPERTS];
    uint8_t chosen[MAX_EXPERTS] = {0};
    for (size_t g = 0; g < l->n_groups; g++) {
        const float *group_bias = bias ? bias + g * size : NULL;
        scores[g] = group_score(p + g * size, group_bias, size, l->flags & LLM_ROUTER_BEST ? 1 : 2);
    }
    for (size_t k = 0; k < l->n_active_groups; k++)
        chosen[best_expert(scores, NULL, chosen, l->n_groups)] = 1;
    for (size_t e = 0; e < l->n_experts; e++)
        taken[e] = !chosen[e / size];
}

/* The experts of token i and their weights. No expert is chosen twice: the buffers of a product have room for
 * each token once. */
static void route(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *add = tensor(s->m, layer, LLM_ROUTER_ADD);
    const float *bias = add->size ? floats(s, add) : NULL;
    const llm_tensor *by_expert = tensor(s->m, layer, LLM_ROUTER_SCALE);
    const size_t n = l->n_experts;
    float *p = row_of(s->router, i), sum = 0;
    float *gains = s->gains + i * experts_per_token(l);
    uint32_t *chosen = s->chosen + i * experts_per_token(l);
    uint8_t taken[MAX_EXPERTS] = {0};
    add_bias(s, tensor(s->m, layer, LLM_ROUTER_LOGITS), 0, 1, p);
    if (l->flags & LLM_ROUTER_SIGMOID) {
        for (size_t e = 0; e < n; e++)
            p[e] = sigmoid(p[e]);
    } else {
        softmax(p, n);
    }
    if (l->n_groups)
        take_other_groups(l, p, bias, taken);
    for (size_t k = 0; k < l->n_active; k++) {
        const size_t best = best_expert(p, bias, taken, n);
        taken[best] = 1;
        chosen[k] = (uint32_t)best;
        gains[k] = p[best];
        sum += p[best];
    }
    const float scale = l->flags & LLM_ROUTER_NORMALIZE ? l->expert_scale / sum : l->expert_scale;
    for (size_t k = 0; k < l->n_active; k++)
        gains[k] *= l->flags & LLM_ROUTER_SCALED ? scale * floats(s, by_expert)[chosen[k]] : scale;
    if (experts_per_token(l) > l->n_active) {
        chosen[l->n_active] = (uint32_t)n;
        gains[l->n_active] = l->flags & LLM_SHARED_GATE ? sigmoid(p[n]) : 1;
    }
}

/* members and starts of n tokens' choices, in the order of their places. By one thread. */
static void sort_by_expert(llm_session *s, const llm_layer *l, size_t n) {
    const size_t n_places = n * experts_per_token(l);
    uint32_t *ends = s->starts + 1; /* where expert e's members begin, and once they are all there, end */
    memset(s->starts, 0, (l->n_experts + 3) * sizeof *s->starts);
    for (size_t place = 0; place < n_places; place++)
        ends[s->chosen[place] + 1]++;
    for (size_t e = 0; e <= l->n_experts; e++)
        ends[e + 1] += ends[e];
    for (size_t place = 0; place < n_places; place++) {
        uint32_t *end = &ends[s->chosen[place]];
        s->members[*end] = (uint32_t)place;
        ++*end;
    }
}

/* out (n,) = x * scale */
static void gather(float *out, const float *x, float scale, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale;
}

/* out += expert e of its tokens, which are brought together, and then added where they belong. The shared one is
 * number n_experts. */
static void expert(llm_session *s, size_t layer, size_t e, vectors x) {
    const llm_layer *l = &s->m->layers[layer];
    const uint32_t *members = s->members + s->starts[e];
    const size_t n = s->starts[e + 1] - s->starts[e];
    const size_t per_token = experts_per_token(l);
    const unit_weights w = e < l->n_experts ? weights_of(s, layer, e) : shared_weights(s, layer);
    EACH(i, n) {
        const float gain = s->gains[members[i]];
        const int of_input = e < l->n_experts && l->flags & LLM_EXPERT_INPUT;
        gather(row_of(s->expert_x, i), row_of(x, members[i] / per_token), of_input ? gain : 1, x.stride);
        s->expert_gain[i] = of_input ? 1 : gain;
    }
    barrier(&s->barrier);
    gated_unit(s, layer, w, n, s->expert_x, s->expert_gain, s->expert_out);
    EACH(i, n) {
        float *out = row_of(s->out, members[i] / per_token);
        s->k->add_scaled(out, row_of(s->expert_out, i), 1, s->m->h.dim);
    }
}
