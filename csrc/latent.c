/* latent.c - latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): keys and values of all heads are made of one
 * latent, so that the latent itself can be attended to, by queries which what makes keys of it has gone into
 * ("absorbed").
 *
 * The other way, keys and values of each head made of the latents ("decompressed"), was measured with the sizes of
 * DeepSeek V2 Lite, int8, with AMX: if all are kept, at seven times the memory, a token after 4,000 takes 1.5 times as
 * long, and a prompt of 4,096 a fifth less; made anew for each batch they cost more than that. And a prompt would be
 * rounded otherwise than its tokens one by one. */
#include "forward.h"
#include <string.h>

/* What queries and keys of token i are made of, normalised: the low rank to s->low, if there is one; the latent stays
 * where it is */
static void norm_latent(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *q_norm = tensor(s->m, layer, LLM_Q_NORM);
    const llm_tensor *norm = tensor(s->m, layer, LLM_K_NORM);
    float *qkv = row_of(s->qkv, i), *latent = qkv + latent_at(l), *low = row_of(s->low, i);
    add_bias(s, tensor(s->m, layer, LLM_BIAS), 0, 1, qkv);
    s->k->rmsnorm(latent, latent, floats(s, norm), l->latent_dim, l->latent_eps);
    if (q_norm->size) {
        s->k->rmsnorm(low, qkv, floats(s, q_norm), l->q_rank, l->latent_eps);
        memset(low + l->q_rank, 0, (align(l->q_rank, LLM_GROUP) - l->q_rank) * sizeof *low);
    }
}

/* Queries (n, n_heads, head_dim), each what does not turn and then what does */
static vectors latent_queries(const llm_session *s, const llm_layer *l) {
    return (vectors){s->qkv.data + (l->q_rank ? latent_rows_of(l) : 0), s->qkv.stride};
}

/* plain (n_heads, plain_width) of token i: what does not turn of its queries */
static void gather_plain(llm_session *s, const llm_layer *l, size_t i) {
    const size_t plain_dim = l->head_dim - l->turn_dim, width = plain_width(l);
    const float *queries = row_of(latent_queries(s, l), i);
    float *plain = row_of(s->plain, i);
    memset(plain, 0, l->n_heads * width * sizeof *plain);
    for (size_t a = 0; a < l->n_heads; a++)
        memcpy(plain + a * width, queries + a * l->head_dim, plain_dim * sizeof *plain);
}

/* Token i's queries, of latents and of what turns beside them */
static void store_latent_queries(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const size_t width = key_width(l);
    const float scale = query_scale(l, s->pos[i]);
    const float *turning = row_of(latent_queries(s, l), i) + l->head_dim - l->turn_dim;
    const float *latents = row_of(s->latents, i);
    float head[MAX_HEAD] = {0};
    for (size_t a = 0; a < l->n_heads; a++) {
        float *q = s->q + query_row(s, group_of(l), a, i) * width;
        memcpy(head, latents + a * latent_width(l), l->latent_dim * sizeof *head);
        rotate(s, l, NULL, 0, i, turning + a * l->head_dim, head + l->latent_dim);
        for (size_t c = 0; c < width; c++)
            q[c] = head[c] * scale;
    }
}

/* Token i's latent and what turns beside it is its key, the latent alone its value. */
static void store_latent(llm_session *s, size_t layer, size_t i) {
    const llm_layer *l = &s->m->layers[layer];
    const float *latent = row_of(s->qkv, i) + latent_at(l);
    float head[MAX_HEAD] = {0};
    memcpy(head, latent, l->latent_dim * sizeof *head);
    rotate(s, l, NULL, 0, i, latent + l->latent_dim, head + l->latent_dim);
    store_head(s, layer, KEYS, 0, i, head);
    memset(head, 0, sizeof head);
    memcpy(head, latent, l->latent_dim * sizeof *head);
    store_head(s, layer, VALUES, 0, i, head);
}

void store_latents(llm_session *s, size_t layer, size_t n) {
    const llm_layer *l = &s->m->layers[layer];
    const llm_tensor *q_up = tensor(s->m, layer, LLM_Q_UP);
    EACH(i, n)
        norm_latent(s, layer, i);
    barrier(&s->barrier);
    if (q_up->size)
        /* queries (n, q_dim) = low (n, q_rank) @ W (q_dim, q_rank)^T */
        matmul(s, q_up, 0, n, s->low, latent_queries(s, l));
    EACH(i, n)
        gather_plain(s, l, i);
    barrier(&s->barrier);
    /* latents (n, n_heads, latent_dim) = plain (n, n_heads, plain_dim) @ W (latent_dim, plain_dim)^T of each head */
    matmul_heads(s, tensor(s->m, layer, LLM_K_UP), n, s->plain, latent_width(l), s->latents);
    EACH(i, n) {
        store_latent_queries(s, layer, i);
        store_latent(s, layer, i);
    }
}
