/* llm.h - run a Llama-style language model from one flat file.
 *
 *     char err[256];
 *     llm_model *m = llm_open("model.llm", err, sizeof err);             // NULL: err says why
 *     llm_session *s = llm_session_open(m, NULL, err, sizeof err);
 *     float *logits = malloc(llm_model_header(m)->vocab_size * sizeof *logits);
 *     llm_forward(s, n, tokens, NULL, NULL, logits, err, sizeof err);    // the logits after the last token
 *     llm_session_close(s);
 *     llm_close(m);
 *
 * A model is immutable: any number of threads and sessions may use it. A session, a tokenizer's decoder and a
 * sampler each belong to one thread at a time. Nothing here prints, exits or aborts. A function that can fail
 * takes `err`, a buffer of `errlen` bytes (err may be NULL when errlen is 0), and leaves one NUL-terminated
 * sentence in it when it fails; it leaves the buffer alone when it succeeds. Every pointer argument is
 * required unless its line says that it may be NULL. Model files are untrusted: whatever is in one, opening
 * it and running it ends in a result or an error.
 *
 * This header is also what the Python bindings are made from, and where the file format is written down. */
#ifndef LLM_H
#define LLM_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------------
 * The flat file, format 4: from this one on, what a version of pyllm writes opens in every later one. What a
 * version does not know, a newer one has written: a bit, a kind, a number where zeros are reserved; it refuses
 * the file.
 *
 * Little-endian; every part begins where the one before it ends:
 *
 *     llm_header                                  LLM_HEADER_SIZE bytes
 *     sections                                    header.text_size bytes, a multiple of 64 (see llm_section)
 *     llm_layer[n_layers]                         LLM_LAYER_SIZE bytes each
 *     llm_angle[n_rope][rope_dim / 2]             rotary tables
 *     zeros up to a multiple of 64
 *     tensors                                     in the order of enum llm_tensor_id, see llm_layout
 *     64 zero bytes                               so that a vector load may run past the last weight
 *
 * Matrices have one row per output, W (rows, cols) @ x (cols,) -> y (rows,). A row is padded with zeros to
 * `stride` columns, a multiple of 64, and the rows with rows of zeros to a multiple of 16. 16 rows lie side
 * by side in a tile, so that one load brings the same columns of all of them, whatever multiplies them:
 *
 *     fp16   [rows / 16][stride][16 rows]
 *     int8   [rows / 16][stride / 4][16 rows][4 columns], then
 *            the scales, fp16 [rows / 16][stride / 64][16 rows]: one for each 64 columns of a row, w = q * scale
 *     int8r  the same of a rotated matrix: 64 columns w (64,) of a row are H (q * scale), where H is Hadamard's
 *            matrix of 64 rows (Sylvester 1867) divided by 8, which is its own inverse. Padding is rotated too.
 *     int4   16 int8 numbers, the codebook, and 48 zero bytes, then
 *            [rows / 16][stride / 8][16 rows][4 bytes]: of byte j the low 4 bits are column j, the high ones
 *            column 4 + j of these 8, then
 *            the scales, fp16 [rows / 16][stride / 32][16 rows]: one for each 32 columns of a row,
 *            w = codebook[q] * scale
 *
 * Vectors are fp32, (1, cols). */

enum {
    LLM_VERSION = 4,
    LLM_HEADER_SIZE = 256,
    LLM_LAYER_SIZE = 256,
    LLM_GROUP =
        64, /* columns that share an int8 scale, and twice an int4 one's; rows are padded to a multiple */
    LLM_TILE = 16,     /* rows of a matrix that lie side by side */
    LLM_PAGE = 64,     /* positions that a sequence's memory grows by, see llm_state() */
    LLM_REWIND = 4096, /* the default of llm_options.rewind */
    LLM_MAX_LAYERS = 1024,
    LLM_MAX_HEAD = 1024, /* head_dim, delta_key_dim and delta_value_dim at most */
    LLM_STATES = 6       /* states of a sequence that a session keeps, see llm_cut() */
};

/* What a matrix is multiplied with is rounded: to 16 bits for int8 (a scale for 64 numbers), to 8 bits for int8r
 * (rotated alike, a scale for 64) and for int4 (a scale for 32). */
enum llm_dtype {
    LLM_FP16 = 0,
    LLM_INT8 = 1,
    LLM_FP32 = 2, /* of vectors */
    LLM_INT8_ROTATED = 3,
    LLM_INT4 = 4,
    LLM_N_DTYPES
};

/* "fp16", "int8", "fp32", "int8r", "int4"; NULL: there is no such dtype. */
const char *llm_dtype_name(uint32_t dtype);

/* What a file requires of its reader: the bits of header.required, which are LLM_TIED and others that are the
 * header's alone, and all bits that its layers' flags have. A reader refuses bits that it does not know. */
#ifdef __GNUC__ /* C before C23 has enumerators that are greater than int as an extension */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#endif
enum llm_feature {
    LLM_TIED = 1,              /* the output matrix is the embedding: there is no LLM_OUTPUT tensor */
    LLM_QKV_BIAS = 2,          /* q, k and v have a bias (Qwen2) */
    LLM_QK_NORM = 4,           /* RMSNorm over each head of q and k, before the rotation (Qwen3) */
    LLM_QK_NORM_WHOLE = 8,     /* ... over all heads of q together, and all of k (OLMo 2); with LLM_QK_NORM */
    LLM_NO_PRE_NORM = 16,      /* blocks read the residual stream as it is (OLMo 2) */
    LLM_POST_NORM = 32,        /* RMSNorm of a block's output before it is added (Gemma 2, OLMo 2) */
    LLM_ROUTER_NORMALIZE = 64, /* the weights of the chosen experts are divided by their sum (Mixtral): the
                                  same as softmax over the chosen alone */
    LLM_ROUTER_SIGMOID = 128,  /* an expert's weight is a sigmoid of its own, not softmax over all */
    LLM_ROUTER_BIAS = 256,     /* experts are chosen by weight + bias, and weighted without (DeepSeek V3) */
    LLM_SHARED_GATE = 512,     /* the shared expert's output is multiplied by the sigmoid of one more row of
                                  the router (Qwen2-MoE) */
    /* a group of experts is as good as its best one (DeepSeek V2), not as the sum of its best two (V3); with
     * n_groups */
    LLM_ROUTER_BEST = 1 << 10,
    LLM_ROUTER_LOGIT_BIAS = 1 << 11, /* the router's logits have a bias (gpt-oss) */
    LLM_EXPERT_INPUT = 1 << 12, /* a chosen expert's weight multiplies its input, not its output (Llama 4) */
    /* what is multiplied with LLM_GATE_UP and LLM_DOWN has a bias, each expert its own (gpt-oss), the shared one
     * none */
    LLM_FFN_BIAS = 1 << 13,
    LLM_ATTN_OUT_BIAS = 1 << 14, /* what is multiplied with LLM_ATTN_OUT has a bias (gpt-oss) */
    LLM_SINK = 1 << 15, /* each query head has one more score, whose value is 0 (gpt-oss; Xiao et al. 2023) */
    /* the RMSNorm over each head comes after the rotation (HunYuan); with LLM_QK_NORM, without .._WHOLE */
    LLM_QK_NORM_LATE = 1 << 16,
    LLM_CHUNKED = 1 << 17,  /* positions come in chunks of `window`, and a token attends to those of its own
                                         (Llama 4) */
    LLM_OUT_GATE = 1 << 18, /* attention's numbers are multiplied by the sigmoid of as many more rows of
                                         LLM_QKV (AFMoE, Qwen3-Next), */
    LLM_OUT_GATE_HEAD = 1 << 19, /* ... of one row for each query head; with LLM_OUT_GATE (Laguna) */
    /* ... by ln(1 + exp(x)) instead of the sigmoid; with LLM_OUT_GATE (Laguna) */
    LLM_OUT_GATE_SOFTPLUS = 1 << 20,
    LLM_V_NORM = 1 << 21, /* RMSNorm over each head of v, without weights (Gemma 3n) */
    LLM_V_IS_K = 1 << 22, /* there are no rows of v: it is k, before its norm and rotation (Gemma 4) */
    /* router and shared expert read norms of their own of the residual stream; the shared one's output and the sum
     * of the others get a norm each, and are added then (Gemma 4) */
    LLM_SHARED_NORMS = 1 << 23,
    /* an expert's weight is multiplied by a number of its own at last (Gemma 4) */
    LLM_ROUTER_SCALED = 1 << 24,
    LLM_LAYER_SCALED = 1 << 25, /* the residual stream is multiplied by a number behind the layer (Gemma 4) */
    LLM_LAYER_NORM = 1 << 26,   /* every norm is LayerNorm (Ba et al. 2016): the mean is subtracted too. In
                                   header.required it and the next one say what norms that occur once are */
    LLM_NORM_BIAS = 1 << 27,    /* ... with biases; with LLM_LAYER_NORM */
    LLM_QK_NORM_EACH = 1 << 28, /* the norm of q and k has weights for each head (Cohere); with LLM_QK_NORM */
    LLM_PARALLEL = 1 << 29,     /* the feed-forward block's norm is of the residual stream as it was before
                                 attention (GPT-J); without LLM_NO_PRE_NORM */
    LLM_NO_GATE = 1 << 30,      /* feed-forward blocks have no gate: what goes through the activation is up */
    LLM_POSITION_TABLE = 1ll << 31, /* a row for each position is added to the embedding (GPT-2); header's */
    LLM_OUTPUT_BIAS = 1ll << 32,    /* logits have a bias (Phi-2); the header's */
    LLM_INPUT_NORM = 1ll << 33, /* a norm of the embedding, scaled, is what the first layer reads (nanochat);
                                   the header's */
    /* the feed-forward block reads what attention reads (Phi-2); with LLM_PARALLEL */
    LLM_ONE_NORM = 1ll << 34
};
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

/* "tied", "qkv_bias" and so on, of the feature with this bit (0: LLM_TIED); NULL: there is no such feature. */
const char *llm_feature_name(uint32_t bit);

/* What a file offers: the bits of header.optional. A reader passes over bits that it does not know. */
enum llm_offer {
    LLM_HAS_CHECKSUMS = 1 /* section LLM_CHECKSUMS */
};

typedef struct llm_header {
    char magic[8];    /* "PYLLM\r\n\032" */
    uint32_t version; /* LLM_VERSION */
    uint32_t n_layers;
    uint64_t file_size;    /* bytes, exact */
    uint64_t text_size;    /* bytes of the sections, a multiple of 64 */
    uint64_t required;     /* enum llm_feature */
    uint64_t optional;     /* enum llm_offer */
    uint32_t dim;          /* width of the residual stream */
    uint32_t vocab_size;   /* rows of the embedding */
    uint32_t context;      /* positions that the model was made for */
    uint32_t n_rope;       /* rotary tables, at least 1 */
    uint32_t rope_dim;     /* numbers of a head that a table covers, even: those of the largest head */
    float norm_eps;        /* of every norm */
    float embed_scale;     /* multiplies the embedding of a token (Gemma, Granite); usually 1 */
    float residual_scale;  /* multiplies what a block adds to the residual stream (Granite); usually 1 */
    float logit_cap;       /* c of c * tanh(logit / c) (Gemma 2); 0: none */
    uint8_t dtype[16];     /* enum llm_dtype of the matrices that occur once, by enum llm_tensor_id; else 0 */
    uint32_t ple_dim;      /* width of a layer's own embeddings (PLE, "per-layer embeddings"); 0: none */
    float ple_scale;       /* multiplies a row of LLM_PLE_EMBED; 0 without */
    uint32_t n_streams;    /* residual streams, at most 8; 0: one */
    uint8_t reserved[136]; /* zeros */
    uint64_t checksum;     /* llm_checksum() of all before */
} llm_header;

/* What a feed-forward block is. */
enum llm_ffn {
    LLM_DENSE = 0,
    LLM_EXPERTS = 1 /* a mixture: a router chooses n_active of n_experts for each token */
};

/* What the gate of a feed-forward block goes through; without a gate what is in its place. */
enum llm_activation {
    LLM_SILU = 0,
    LLM_GELU = 1,     /* in its tanh form (Gemma) */
    LLM_GELU_ERF = 2, /* x * (1 + erf(x / sqrt(2))) / 2 (GPT-NeoX) */
    LLM_RELU2 = 3,    /* max(x, 0)^2 (So et al. 2021) */
    LLM_XIELU = 4 /* x / 2 + a * x^2 of x > 0, x / 2 + b * (exp(x) - 1 - x) of others (Huang and Schlag 2024);
                         a and b are LLM_XIELU_NUMBERS */
};

/* How a layer brings positions together. Attention looks at all keys and values so far; the others keep a state
 * of a fixed size, which each token changes. s is the block's input, W is LLM_QKV, t a position.
 *
 *     LLM_SHORT_CONV  A gated convolution of each channel by itself (LFM2): b, c, x = W s, each (dim,);
 *                     y(t) = c(t) * the sum over j < conv_kernel of conv[j] * (b * x)(t - (conv_kernel - 1) + j).
 *                     The state: b * x of the last conv_kernel - 1 positions.
 *     LLM_DELTA_RULE  The gated delta rule (Yang et al. 2024): each of delta_heads value heads has a matrix S
 *                     (delta_key_dim, delta_value_dim). q, k, v, z = W s; q, k and v together go through a
 *                     convolution, as above without gates, and SiLU; q and k of each of delta_key_heads key
 *                     heads are divided by sqrt(their sum of squares + 1e-6), and q is multiplied by attn_scale.
 *                     Value head h uses key head h / (delta_heads / delta_key_heads). With b, a =
 *                     LLM_STATE_GATES s, and the rates and biases of LLM_DECAY:
 *                         S = exp(rate * softplus(a + bias)) S;  S += k (sigmoid(b) (v - S^T k))^T;  y = S^T q
 *                     and then y = RMSNorm(y) * SiLU(z), the norm over each head. The state: S of all heads, and
 *                     q, k, v of the last conv_kernel - 1 positions as they go into the convolution.
 *
 * y goes through LLM_ATTN_OUT. Before the first position all is 0. */
enum llm_mixer { LLM_ATTENTION = 0, LLM_SHORT_CONV = 1, LLM_DELTA_RULE = 2 };

/* A layer, attention and feed-forward, described by itself. */
typedef struct llm_layer {
    uint64_t flags;      /* enum llm_feature, but for LLM_TIED */
    uint32_t n_heads;    /* query heads, a multiple of n_kv_heads */
    uint32_t n_kv_heads; /* key and value heads */
    uint32_t head_dim;   /* of queries and keys; even, at most rope_dim; need not be dim / n_heads */
    uint32_t window;     /* positions that a token attends to, itself the last; 0: all before it */
    uint32_t rope;       /* index of its rotary table, of which it takes the first head_dim / 2 angles */
    uint32_t kv_layer;   /* the layer whose keys and values it attends to: itself; or an earlier one that
                              makes its own, of the same n_kv_heads, head_dim and value_dim (Gemma 3n) */
    float attn_scale;    /* multiplies q . k; usually 1 / sqrt(head_dim) */
    float attn_cap;      /* c of c * tanh(q . k * attn_scale / c) (Gemma 2); 0: none */
    uint32_t ffn;        /* enum llm_ffn */
    uint32_t activation; /* enum llm_activation */
    uint32_t ffn_dim;    /* inner width of the feed-forward block, or of one expert */
    uint32_t n_experts;  /* 0 when dense, and so are the two below */
    uint32_t n_active;   /* experts that each token goes through */
    uint32_t shared_dim; /* inner width of an expert that every token goes through as well; 0: none */
    float expert_scale;  /* multiplies the weights of the chosen experts; usually 1 */
    uint8_t dtype[48];   /* of its matrices, by enum llm_tensor_id from LLM_ATTN_NORM on; else 0 */
    uint32_t value_dim;  /* numbers of a value head; 0: head_dim */
    uint32_t n_groups;   /* the experts are in so many groups of neighbours, of which a token chooses first */
    uint32_t n_active_groups; /* so many (DeepSeek V2, V3); both 0: there are no groups */
    float gate_limit;         /* c: gate becomes min(gate, c), up min(max(up, -c), c) (gpt-oss); 0: none */
    float gate_slope;         /* a of gate * sigmoid(a * gate) (gpt-oss); with LLM_SILU; 0: it is 1 */
    float up_shift;           /* added to up (gpt-oss) */
    /* b: at position p queries are multiplied by 1 + b * ln(1 + floor((p + query_shift) / query_span)) (Llama 4,
     * Ministral 3); both 0: they are not */
    float query_growth;
    uint32_t query_span;
    uint32_t query_shift;
    uint32_t low_rank; /* rank of a product that goes past attention, see below; 0: none */
    float gate_cut;    /* c: gates become max(gate - mean - c * standard deviation, 0); 0: they stay */
    float qkv_clip;    /* c: numbers of q, k and v are cut to -c to c, before their norm (OLMo); 0: not */
    /* numbers of the latent that keys and values are made of, see below; 0: there is none, and the three below are
     * 0 */
    uint32_t latent_dim;
    uint32_t turn_dim; /* the last numbers of a query head, and of a key, which turn; even */
    uint32_t q_rank;   /* numbers that queries are made of; 0: the residual stream's */
    float latent_eps;  /* of the RMSNorm of these numbers, and of the latent */
    /* enum llm_mixer; in a layer without attention its numbers and flags are 0, but for attn_scale and kv_layer,
     * which is the layer itself */
    uint32_t mixer;
    uint32_t conv_kernel; /* positions that a convolution sees, itself the last: 2 to 16; 0: there is none */
    uint32_t delta_key_heads; /* of LLM_DELTA_RULE, else 0, and so are the three below */
    uint32_t delta_heads;     /* value heads, a multiple of delta_key_heads */
    uint32_t delta_key_dim;   /* width of a head of q and k, */
    uint32_t delta_value_dim; /* and of v and z */
    uint8_t reserved[52];     /* zeros */
} llm_layer;

/* Latent attention (DeepSeek-AI 2024, "DeepSeek-V2", 2.1; MLA), of layers with latent_dim. All heads share one
 * key and one value of a position: its latent c (latent_dim,), behind an RMSNorm, is the value, and with t
 * (turn_dim,), which turns, the key. A query head (head_dim,) is u (head_dim - turn_dim,) and w (turn_dim,),
 * which turns; its score is K u . c + w . t, K being its LLM_K_UP; and what it sums of the values goes through
 * its LLM_V_UP. n_kv_heads is 1, kv_layer the layer itself; t and w take the first turn_dim / 2 angles of the
 * table. Queries are rows of LLM_QKV, or with q_rank LLM_Q_UP of the RMSNorm of these rows. */

/* Element i of a query or key head and element i + head_dim / 2 (half-split) turn together: at position p by
 * cosine and sine of p * frequency, times `magnitude` (usually 1). Frequency 0 does not turn. */
typedef struct llm_angle {
    float frequency; /* radians a position */
    float magnitude;
} llm_angle;

/* With ple_dim a layer has a vector e (ple_dim,) of its own for each token: the layer's part of the token's row of
 * LLM_PLE_EMBED, times ple_scale, plus the norm LLM_PLE_NORM of the layer's part of LLM_PLE_PROJ @ the token's
 * embedding (without embed_scale). The layer ends with a third block, which reads the residual stream x as it is:
 * LLM_PLE_OUT @ (activation(LLM_PLE_GATE @ x) * e) is added to it, through the norm LLM_PLE_POST_NORM (Gemma
 * 3n). */

/* With n_streams (Baykal et al. 2023, "Alternating Updates"; Gemma 3n) blocks read and write the first of several
 * residual streams x_k. Stream k > 0 begins as LLM_STREAM_IN k @ x_0, made as large as x_0 is (its root mean
 * square, that of the product being 0.00316 at least). Around a layer's blocks, with modes m (n_streams,) =
 * tanh(LLM_STREAM_ROUTER @ the norm LLM_STREAM_NORM of x_0): before them x_k becomes p_k = x_k + sum over j and i
 * of LLM_STREAM_PREDICT[k][j][i] m_i x_j; after them, with the modes of what x_0 is then, p_k + (x_0 - p_0) (1 +
 * sum over i of LLM_STREAM_CORRECT[k][i] m_i). The block of LLM_PLE_GATE reads x_0 * LLM_STREAM_SCALE, and its
 * output is added to all streams but the first. After the last layer x_0 becomes the mean of itself and all
 * LLM_STREAM_OUT k @ x_k, made as large as it is.
 *
 * With low_rank (Menghani et al. 2024, "LAuReL"), of what attention reads, y: behind attention x becomes (x + y +
 * the norm LLM_LAUREL_NORM of LLM_LAUREL_RIGHT @ LLM_LAUREL_LEFT @ y) / sqrt(2). */

/* The tensors in file order. Those before LLM_ATTN_NORM occur once; the rest once a layer, a layer's tensors
 * together; LLM_GATE_UP, LLM_DOWN and their biases once for each expert of a layer. q_dim = n_heads * head_dim;
 * k_dim = n_kv_heads * head_dim and v_dim = n_kv_heads * value_dim, or both 0 where the layer uses another one's
 * keys and values (v_dim also with LLM_V_IS_K); att_dim = n_heads * value_dim; gate_dim = att_dim with
 * LLM_OUT_GATE, n_heads with .._HEAD, else 0. With LLM_SHORT_CONV channels = dim; with LLM_DELTA_RULE keys =
 * delta_key_heads * delta_key_dim, values = delta_heads * delta_value_dim, channels = 2 * keys + values. A norm's
 * vector has one row, with LLM_QK_NORM_EACH that of q and k one for each head, n_heads and n_kv_heads; with
 * LLM_NORM_BIAS as many rows of biases follow; those of LLM_ROUTER_NORM and behind it are RMSNorms always. With
 * latent_dim LLM_QKV has rows of q_rank numbers, or without that of q_dim, then of c and t; LLM_K_UP and LLM_V_UP
 * occur once for each query head. */
enum llm_tensor_id {
    LLM_EMBED = 0,      /* (vocab_size, dim)            matrix */
    LLM_OUT_NORM = 1,   /* (1, dim)                     vector */
    LLM_OUTPUT = 2,     /* (vocab_size, dim)            matrix; absent with LLM_TIED */
    LLM_PLE_EMBED = 3,  /* (vocab_size, n_layers * ple_dim)  matrix; all of this name are only with ple_dim */
    LLM_PLE_PROJ = 4,   /* (n_layers * ple_dim, dim)    matrix */
    LLM_PLE_NORM = 5,   /* (1, ple_dim)                 vector */
    LLM_STREAM_IN = 6,  /* (dim, dim)                   matrix; n_streams - 1 of them */
    LLM_STREAM_OUT = 7, /* (dim, dim)                   matrix; n_streams - 1 of them */
    LLM_POSITIONS = 8,  /* (context, dim)               matrix; only with LLM_POSITION_TABLE */
    LLM_OUTPUT_ADD = 9, /* (1, vocab_size)              vector; only with LLM_OUTPUT_BIAS */
    LLM_EMBED_NORM = 10, /* (1, dim)                     vector; only with LLM_INPUT_NORM */
    LLM_ATTN_NORM = 16,  /* (1, dim)                     vector; absent with LLM_NO_PRE_NORM */
    LLM_QKV,             /* (q_dim + k_dim + v_dim + gate_dim, dim) matrix; rows of q, then k, v, gates.
                                                        LLM_SHORT_CONV: (3 * dim, dim), rows of b, c, x.
                                                        LLM_DELTA_RULE: (channels + values, dim), rows of q, k,
                                                        v, z */
    LLM_BIAS,            /* (1, rows of LLM_QKV)         vector; only with LLM_QKV_BIAS */
    LLM_Q_NORM,          /* (1, head_dim)                vector; only with LLM_QK_NORM; q_dim with .._WHOLE;
                                                        with latent_dim (1, q_rank), absent where that is 0 */
    LLM_K_NORM,          /* (1, head_dim)                vector; only with LLM_QK_NORM; k_dim with .._WHOLE;
                                                        absent where k_dim is 0; with latent_dim (1, latent_dim) */
    LLM_ATTN_OUT,        /* (dim, att_dim)               matrix; LLM_SHORT_CONV: (dim, dim); LLM_DELTA_RULE:
                                                        (dim, values) */
    LLM_ATTN_POST_NORM,  /* (1, dim)                     vector; only with LLM_POST_NORM */
    LLM_FFN_NORM,       /* (1, dim)                     vector; absent with LLM_NO_PRE_NORM or LLM_ONE_NORM */
    LLM_ROUTER,         /* (n_experts, dim)             matrix; only with experts; one row more with
                                                        LLM_SHARED_GATE */
    LLM_ROUTER_ADD,     /* (1, n_experts)               vector; only with LLM_ROUTER_BIAS */
    LLM_GATE_UP,        /* (2 * ffn_dim, dim)           matrix; rows of gate, then up; with LLM_NO_GATE up
                                                        alone, as in LLM_SHARED_GATE_UP */
    LLM_DOWN,           /* (dim, ffn_dim)               matrix */
    LLM_SHARED_GATE_UP, /* (2 * shared_dim, dim)        matrix; only with shared_dim */
    LLM_SHARED_DOWN,    /* (dim, shared_dim)            matrix; only with shared_dim */
    LLM_FFN_POST_NORM,  /* (1, dim)                     vector; only with LLM_POST_NORM */
    LLM_SINKS,          /* (1, n_heads)                 vector; only with LLM_SINK */
    LLM_OUT_BIAS,       /* (1, dim)                     vector; only with LLM_ATTN_OUT_BIAS */
    LLM_ROUTER_LOGITS,  /* (1, n_experts)               vector; only with LLM_ROUTER_LOGIT_BIAS */
    LLM_GATE_UP_BIAS,   /* (1, 2 * ffn_dim)             vector; only with LLM_FFN_BIAS; ffn_dim with
                                                        LLM_NO_GATE */
    LLM_DOWN_BIAS,      /* (1, dim)                     vector; only with LLM_FFN_BIAS */
    LLM_ROUTER_NORM,  /* (1, dim)                     vector; only with LLM_SHARED_NORMS, as the next three */
    LLM_SHARED_NORM,  /* (1, dim)                     vector; of what the shared expert reads, */
    LLM_SHARED_POST,  /* (1, dim)                     vector; of its output, */
    LLM_EXPERTS_POST, /* (1, dim)                     vector; and of the sum of the others */
    LLM_ROUTER_SCALE, /* (1, n_experts)               vector; only with LLM_ROUTER_SCALED */
    LLM_LAYER_SCALE,  /* (1, 1)                       vector; only with LLM_LAYER_SCALED */
    LLM_PLE_GATE,     /* (ple_dim, dim)               matrix */
    LLM_PLE_OUT,      /* (dim, ple_dim)               matrix */
    LLM_PLE_POST_NORM,  /* (1, dim)                     vector */
    LLM_LAUREL_LEFT,    /* (low_rank, dim)              matrix; only with low_rank, as the next two */
    LLM_LAUREL_RIGHT,   /* (dim, low_rank)              matrix */
    LLM_LAUREL_NORM,    /* (1, dim)                     vector */
    LLM_STREAM_NORM,    /* (1, dim)                     vector; only with n_streams > 1, as the next four */
    LLM_STREAM_ROUTER,  /* (n_streams, dim)             matrix */
    LLM_STREAM_PREDICT, /* (1, n_streams^3)             vector */
    LLM_STREAM_CORRECT, /* (1, n_streams^2)             vector */
    LLM_STREAM_SCALE,   /* (1, dim)                     vector */
    LLM_XIELU_NUMBERS,  /* (1, 2)                       vector; only with LLM_XIELU; a, b */
    LLM_Q_UP,           /* (q_dim, q_rank)              matrix; only with q_rank */
    LLM_K_UP,           /* (latent_dim, head_dim - turn_dim) matrix; only with latent_dim */
    LLM_V_UP,           /* (value_dim, latent_dim)      matrix; only with latent_dim */
    LLM_CONV,           /* (1, conv_kernel * channels)  vector; absent with LLM_ATTENTION; all channels of the
                                                        oldest position, then of the next */
    LLM_STATE_GATES,    /* (2 * delta_heads, dim)       matrix; only with LLM_DELTA_RULE; rows of b, then a */
    LLM_DECAY,      /* (1, 2 * delta_heads)         vector; only with LLM_DELTA_RULE; biases, then rates */
    LLM_STATE_NORM, /* (1, delta_value_dim)         vector; only with LLM_DELTA_RULE */
    LLM_N_TENSORS
};

typedef struct llm_tensor {
    uint64_t offset; /* of its first byte in the file, a multiple of 64 */
    /* bytes, scales included, without the padding up to the next tensor; 0: the model has no such tensor */
    uint64_t size;
    uint64_t rows, cols;
    uint64_t stride;  /* columns stored a row */
    uint32_t dtype;   /* enum llm_dtype */
    uint32_t experts; /* how many of it the layer has: n_experts, or n_heads, else 1 */
} llm_tensor;

/* "embed", "qkv" and so on; NULL: there is no such tensor. */
const char *llm_tensor_name(uint32_t id);

/* Where a tensor lies, from the header and the layers (n_layers,) alone. `layer` and `expert` are 0 for what
 * occurs once. Returns 0; or -1 with a reason in err when fields are out of range or contradict each other,
 * when sizes overflow, or when id, layer or expert is out of range. header->magic, version and file_size are
 * not looked at. */
int llm_layout(const llm_header *header, const llm_layer *layers, uint32_t id, uint32_t layer,
    uint32_t expert, llm_tensor *tensor, char *err, size_t errlen);

/* The size in bytes of the file that they describe, or 0 with a reason in err as from llm_layout. */
uint64_t llm_file_size(const llm_header *header, const llm_layer *layers, char *err, size_t errlen);

typedef struct llm_counts {
    uint64_t parameters; /* numbers in all tensors, padding left out */
    uint64_t active;     /* those of them that are not in experts which a token does not go through */
    uint64_t read;       /* bytes of weights read for one token: of an embedding beside LLM_OUTPUT one row */
    uint64_t kv;         /* bytes of keys and values that a token adds to its sequence, of LLM_KV_DEFAULT */
    uint64_t state; /* bytes of a state of a sequence, whatever its length, over all layers that have one */
} llm_counts;

/* What a model is and needs. Returns 0; or -1 with a reason in err as llm_layout. */
int llm_count(
    const llm_header *header, const llm_layer *layers, llm_counts *counts, char *err, size_t errlen);

/* How a session keeps keys and values. */
enum llm_kv {
    LLM_KV_DEFAULT = 0, /* LLM_KV_INT8 where the first layer's LLM_QKV is int8r or int4, else LLM_KV_FP16 */
    LLM_KV_FP16 = 1,
    LLM_KV_INT8 =
        2 /* keys rotated as int8r is, with an fp16 scale for 64 numbers; values with a scale a head */
};

/* "default", "fp16", "int8"; NULL: there is no such kind. */
const char *llm_kv_name(uint32_t kv);

/* The kind that LLM_KV_DEFAULT stands for; another one is returned as it is. */
uint32_t llm_kv_kind(const llm_layer *layers, uint32_t kv);

/* The bytes of keys and values, and of the state, that are read for the last token of a context: in each layer all
 * of them, or those in its window. Header and layers are ones that llm_layout takes. */
uint64_t llm_kv_read(const llm_header *header, const llm_layer *layers, uint32_t kv, uint64_t context);

/* The bytes of keys and values, in whole pages of LLM_PAGE positions, of a sequence of `length` positions that
 * can be cut back to `oldest` and more, at most length: of layers with a window those before it are not kept. A
 * session takes as much as with oldest = length - rewind - batch, see llm_options, and a page or two a head more.
 * One state is counted, of which a session keeps up to LLM_STATES; none where length is 0.
 * Header and layers are ones that llm_layout takes. */
uint64_t llm_kv_size(
    const llm_header *header, const llm_layer *layers, uint32_t kv, uint64_t length, uint64_t oldest);

/* The checksum that belongs into this header once all its other fields are set: FNV-1a, 64 bits, over the
 * bytes before it. */
uint64_t llm_checksum(const llm_header *header);

/* ---------------------------------------------------------------------------------------------------------
 * Sections: the texts and tables beside the weights. Each is an llm_section_head, then `size` bytes, then
 * zeros up to a multiple of 16; a head with tag 0 or the end of the area ends the list. Readers pass over
 * tags that they do not know. */

typedef struct llm_section_head {
    uint32_t tag;      /* enum llm_section_tag */
    uint32_t reserved; /* zero */
    uint64_t size;
} llm_section_head;

enum llm_section_tag {
    LLM_NAME = 1,  /* UTF-8, the model's name */
    LLM_ABOUT = 2, /* UTF-8, what it is: family, source, licence, description; lines of "key: value" */
    LLM_STOP = 3,  /* uint32[], ascending: tokens that end a generation; absent or empty: EOS alone does */
    /* UTF-8: the model's own Jinja template; its first lines set the special tokens that it names, but for
     * BOS and EOS */
    LLM_CHAT_TEMPLATE = 4,
    /* Six to eight UTF-8 strings, each ended by NUL, that make a conversation without Jinja:
     *   0 before the system message, 1 between it and the first user message (both empty: the template
     *     knows no system message),
     *   2 before the first user message when there is no system message,
     *   3 between a user message and the reply, 4 between a reply and the next user message,
     *   5 words: "trim" if messages are to be stripped of white space at both ends; "think" if an earlier
     *     reply is only what follows its last "</think>", "lines" if then without line breaks at its start;
     *     "last" if the system message stands before the last user message: after 2 or 4 come 0, the
     *     message, 1; "answer" if an earlier reply is without the reasoning that it begins with, and without
     *     the mark in place of that,
     *   6 (may be missing) what follows 3 before the reply to be generated,
     *   7 (may be missing) what follows 3 before an earlier reply.
     * Between two bytes 1 in a part stands a pattern of strftime; the date takes its place. A reply goes
     * between 3 and 4 as the model wrote it: some templates put a space before earlier replies, which the
     * model writes itself. Absent when the template cannot be reduced to this; LLM_CHAT_WHY then says why. */
    LLM_CHAT_PARTS = 5,
    LLM_CHAT_WHY = 6,            /* UTF-8: why there are no LLM_CHAT_PARTS */
    LLM_CHAT_TEMPLATE_TOOLS = 7, /* UTF-8: the template for conversations with tools; absent: the same */
    LLM_CHAT_NO_THINKING = 8,    /* as LLM_CHAT_PARTS, with enable_thinking = false; absent when the template
                                   has no such switch */
    /* UTF-8, JSON: how states become an embedding: {"pooling": "last" or "mean", "normalize": true or false,
     * "prompts": {name: text before a text of that kind}, "default_prompt": a name or null}; absent: last, true.
     * It may also have "include_prompt" (false: the mean leaves the prompt's tokens out), "max_tokens" (of a
     * text, null: no limit but the context), "scale" (what states are multiplied by, 1), "refused" (why there
     * are no embeddings), and "generates" (false: there is no output matrix, and logits mean nothing) */
    LLM_EMBEDDING = 9,
    LLM_TOKENIZER = 16, /* llm_vocabulary; this and up to 31 are the tokenizer's, see below */
    LLM_TOKEN_STARTS = 17,
    LLM_TOKEN_BYTES = 18,
    LLM_TOKEN_TYPES = 19,
    LLM_TOKEN_ORDER = 20,
    LLM_MERGE_STARTS = 21,
    LLM_MERGES = 22,
    LLM_ADDED = 23,
    LLM_PATTERN = 24,
    LLM_CLASSES = 25,
    LLM_NFC = 26,
    LLM_NORMALIZER = 27,
    LLM_AROUND = 28,
    /* uint64[2 + number of tensors]: XXH64 of what the file holds, see llm_checksums(). The last section. */
    LLM_CHECKSUMS = 32
};

/* ---------------------------------------------------------------------------------------------------------
 * Models */

typedef struct llm_model llm_model;

/* Maps the file and checks all of it but the values of the weights. Takes about a millisecond whatever the
 * size: nothing is copied. Returns a model that llm_close frees, or NULL. The file must not be changed while
 * it is open. */
llm_model *llm_open(const char *path, char *err, size_t errlen);

/* The same over `size` bytes at `data`, 64-byte aligned, which must outlive the model and are not copied. */
llm_model *llm_open_memory(const void *data, size_t size, char *err, size_t errlen);

/* Frees a model; sessions and tokenizers made from it must be closed before. NULL is allowed. */
void llm_close(llm_model *model);

/* The file's header, valid until llm_close. */
const llm_header *llm_model_header(const llm_model *model);

/* Its layers, (n_layers,), valid until llm_close. */
const llm_layer *llm_model_layers(const llm_model *model);

/* The checksums that belong into section LLM_CHECKSUMS: XXH64 (seed 0) of the sections before it, of the layers
 * with the rotary tables, and of each tensor in file order, each expert's apart, without its padding. Writes at
 * most `capacity` of them to sums and returns how many there are. Reads the whole file, but with capacity 0. */
size_t llm_checksums(const llm_model *model, uint64_t *sums, size_t capacity);

/* Compares the file with its section LLM_CHECKSUMS, which takes as long as reading it. Returns 0; or -1: err
 * names what differs, or says that the file has no checksums. */
int llm_verify(const llm_model *model, char *err, size_t errlen);

/* The first section with this tag, valid until llm_close, 16-byte aligned; its length in bytes goes to *size.
 * NULL (and *size = 0) when the file has none. The bytes are not NUL-terminated, and nothing has checked
 * them. */
const void *llm_section(const llm_model *model, uint32_t tag, size_t *size);

/* ---------------------------------------------------------------------------------------------------------
 * Sessions: the state of up to n_seqs sequences (their keys and values), and the buffers to extend them. */

typedef struct llm_session llm_session;

typedef struct llm_options {
    uint32_t context; /* positions a sequence may have; 0: the model's. More than the model's is allowed. */
    uint32_t n_seqs;  /* sequences, numbered from 0; 0: 1 */
    uint32_t threads; /* at most, where the system refuses some; 0: llm_default_threads(). Results do not
                         depend on it. */
    uint32_t batch;   /* tokens that go through the layers together, at most 8192, more are split; 0: 256 */
    uint32_t kv;      /* enum llm_kv */
    /* 1: fp16 matrices, keys and values are multiplied in float32 however many tokens there are; 0: from 16
     * tokens on they are rounded to 13 bits and a sign, with a scale for 64 numbers. Only for models whose first
     * layer's LLM_QKV is fp16; others always are exact in this sense. */
    uint32_t exact;
    /* Positions by which a sequence can be cut back, see llm_oldest(); 0: LLM_REWIND. Of a layer with a window
     * keys and values are kept that far before it, the context at most. */
    uint32_t rewind;
} llm_options;

/* Opens a session; `options` may be NULL for all defaults. Keys and values are reserved, not taken: memory is
 * used as sequences grow. Fails when memory cannot be had, or when the environment variable PYLLM_ISA (scalar,
 * avx2, avxvnni, avx512, amx, neon, dotprod, i8mm) names an instruction set that this processor or build lacks;
 * without it the best one is used. The model must outlive the session. */
llm_session *llm_session_open(const llm_model *model, const llm_options *options, char *err, size_t errlen);
void llm_session_close(llm_session *session); /* NULL is allowed */

/* The options with the defaults filled in, and the name of the instruction set in use (static). */
const llm_options *llm_session_options(const llm_session *session);
const char *llm_session_isa(const llm_session *session);

/* Appends n tokens, tokens[i] to sequence seqs[i], in order, and computes logits. These depend, to the last
 * bit, on the tokens before in the same sequence only: not on how they came, what else is computed, the number
 * of threads, or the instruction set, as far as the C library's sin, cos, exp and tanh do not. Two exceptions:
 * without options.exact 48 or more tokens of an fp16 model that are multiplied together are rounded first, and
 * fewer are not; and the plain kernels ("scalar") round products of fp16 twice.
 *   tokens  (n,), each < vocab_size
 *   seqs    (n,), each < n_seqs; NULL: all are of sequence 0
 *   want    (n,), 1 where the logits after token i are wanted, else 0; NULL: only those after the last token
 *   logits  (number wanted, vocab_size) float32, rows in the order of the tokens; NULL: none are computed
 * Returns 0; or -1 and changes nothing when an argument is out of range, a sequence would grow past the
 * session's context, or logits that are wanted are not finite (a model with NaN, or numbers too large for it);
 * `logits` then holds anything, and a sequence that was to get more tokens than options.rewind + options.batch
 * may be dropped, see llm_oldest(). A key or value beyond fp16's range is kept as the largest number of fp16. */
int llm_forward(llm_session *session, size_t n, const uint32_t *tokens, const uint32_t *seqs,
    const uint8_t *want, float *logits, char *err, size_t errlen);

/* What llm_forward_states() may be asked of a token. */
enum llm_want {
    LLM_WANT_LOGITS = 1,
    LLM_WANT_STATE =
        2 /* the last layer's output behind LLM_OUT_NORM: what logits are made of, an embedding */
};

/* The same as llm_forward(), and what each token's logits would be made of.
 *   want    (n,), of enum llm_want, added up; NULL: LLM_WANT_LOGITS of the last token
 *   states  (number wanted, dim) float32, rows in the order of the tokens; NULL: none are copied */
int llm_forward_states(llm_session *session, size_t n, const uint32_t *tokens, const uint32_t *seqs,
    const uint8_t *want, float *logits, float *states, char *err, size_t errlen);

/* Is shown the input of a product of llm_forward() before it is computed: x (n, cols), `stride` floats from one
 * row to the next, of n tokens; `expert` is 0 but where a tensor has several. Called by the thread that called
 * llm_forward(), while the other threads wait; x is valid until it returns. */
typedef void (*llm_observer)(void *context, uint32_t tensor, uint32_t layer, uint32_t expert, size_t n,
    size_t cols, const float *x, size_t stride);

/* Shows this session's products to `observer` from now on: one batch after the other, layer by layer, in the
 * order in which they are computed. NULL: to nobody. */
void llm_observe(llm_session *session, llm_observer observer, void *context);

/* x (n,) = H x by groups of 64 numbers, n a multiple of 64: as the weights of LLM_INT8_ROTATED are stored, and
 * what they are multiplied with. H is Hadamard's matrix (Sylvester 1867) over 8, its own inverse. The same bits
 * on every processor. */
void llm_rotate(float *x, size_t n);

/* Ends llm_forward() of this session, which another thread is in: it returns -1 within a moment, as every later
 * one does. The session can only be closed then, after that. */
void llm_stop(llm_session *session);

/* The number of positions in sequence `seq`; 0 when there is no such sequence. */
size_t llm_length(const llm_session *session, uint32_t seq);

/* The least length besides 0 that sequence `seq` can be cut back to: layers with a window keep no more than what
 * it needs from there on. At most options.rewind less than the greatest length that it had, but for what
 * llm_state() sets; 0 in a model without windows and states. */
size_t llm_oldest(const llm_session *session, uint32_t seq);

/* The greatest length, `length` at most, that sequence `seq` can be cut back to: what is behind it has to be
 * computed again. In a model whose layers have keys and values only it is `length`, or 0 below llm_oldest(). A
 * state cannot be cut, so it is one of LLM_STATES lengths of which states are kept: that after the last call of
 * llm_forward(), that before it, and others at ends of pages of LLM_PAGE positions: always the last such end,
 * so that of a text that is the same but for its last tokens no more than a page is computed again; the others
 * lie the farther apart the farther they lie back. */
size_t llm_cut(const llm_session *session, uint32_t seq, size_t length);

/* Shortens sequence `seq` to its first `length` positions; 0 drops it and gives its memory back.
 * Returns -1 and changes nothing when llm_cut() says another length, it is shorter than that, or there is no such
 * sequence. */
int llm_truncate(llm_session *session, uint32_t seq, size_t length, char *err, size_t errlen);

/* Makes sequence `to` a copy of the first `length` positions of sequence `from`; what `to` held is dropped.
 * Returns -1 and changes nothing when `from` cannot be cut to that, or one of them does not exist. from == to
 * truncates. */
int llm_copy(llm_session *session, uint32_t from, uint32_t to, size_t length, char *err, size_t errlen);

/* The keys and values of one position in bytes, over all layers (a head is padded to a multiple of 16), if they
 * are kept as enum llm_kv says. */
size_t llm_kv_bytes(const llm_model *model, uint32_t kv);

/* Copies the keys and values of the first `length` positions of sequence `seq` out to `state` (set = 0), or
 * makes the sequence those in `state` (set = 1). `state` has llm_kv_size(length, oldest) bytes of the session's
 * kind: what lengths from `oldest` on need, [layer][k, v][kv head][page], each as session.h describes it, and
 * the state of `length`. A sequence that is set can be cut back to `oldest`, as far as the session keeps so
 * much; if it has a state, to `length` only.
 * Returns -1 and changes nothing when there is no such sequence; it cannot be cut to length, or not to oldest
 * (set = 0); oldest is more than length; or length is more than the session's context. */
int llm_state(llm_session *session, uint32_t seq, size_t length, size_t oldest, void *state, int set,
    char *err, size_t errlen);

/* The processors that this process may really use: its affinity mask, then the cgroup's CPU quota rounded
 * down, at least 1; 1 in a build without OpenMP. */
uint32_t llm_default_threads(void);

/* ---------------------------------------------------------------------------------------------------------
 * Tokenizer (tokenizer.c): text to ids and back, ids identical to the Hugging Face tokenizer's. Text is any
 * bytes of any length, NUL included; bytes that are not UTF-8 are taken as U+FFFD, as Python's
 * decode(errors="replace") does it.
 *
 * Its sections hold a program, not a family's name: the converter turns every tokenizer into these steps.
 *
 *   1. Added tokens are cut out of the text (LLM_ADDED: leftmost first, the longest of those that begin there).
 *   2. What is between them is normalised (LLM_NORMALIZER, LLM_NFC), and cut again at the added tokens that are
 *      looked for in normalised text.
 *   3. What is left is split by each stage of LLM_PATTERN in turn, a regular expression over LLM_CLASSES.
 *   4. Each piece begins as one symbol a byte (LLM_BYTE_LEVEL) or a character. Of the neighbours that LLM_MERGES
 *      knows, the pair of the lowest rank, the leftmost among equals, is replaced by its result, again and again.
 *
 * Token texts are what the tokens decode to: bytes, with plain spaces where vocabularies write U+2581 or
 * U+0120. A tokenizer that writes spaces as U+2581 therefore gets its text with U+2581 replaced by a space,
 * which is the same thing the other way round.
 *
 *   LLM_TOKENIZER     llm_vocabulary
 *   LLM_TOKEN_STARTS  uint32[n_tokens + 1]: token i is bytes [starts[i], starts[i + 1]) of LLM_TOKEN_BYTES
 *   LLM_TOKEN_TYPES   uint8[n_tokens]: enum llm_token_type
 *   LLM_TOKEN_ORDER   uint32[]: the tokens that text can be looked up as, sorted by their bytes
 *   LLM_MERGE_STARTS  uint32[n_tokens + 1]: the merges whose left side is token i are LLM_MERGES[starts[i]]
 *                     up to [starts[i + 1]]
 *   LLM_MERGES        llm_merge[], each left side's sorted by their right side
 *   LLM_ADDED         llm_added_head, llm_added[n_raw + n_normal], their texts; each of the two groups sorted
 *                     by text. Optional.
 *   LLM_NORMALIZER    llm_normalize_step[], each followed by its two texts; in order. Optional.
 *   LLM_PATTERN       llm_pattern_head, llm_stage[n_stages], llm_instruction[n_instructions]. Optional.
 *   LLM_CLASSES       llm_class_head, llm_class[n_classes], llm_range[n_ranges]. Optional unless something
 *                     refers to a class. Class 0 is the white space that LLM_ADDED_LSTRIP and RSTRIP take
 *                     along, class 1 what LLM_ADDED_WORD takes for part of a word.
 *   LLM_AROUND        llm_around_head, uint32[n_before + n_after]: the tokens that go before a text in place of
 *                     BOS, and after it in place of EOS; of a side without any it is BOS or EOS. Optional.
 *   LLM_NFC           llm_nfc_head, llm_nfc_char[n_chars] sorted by code, uint32 points[n_points],
 *                     llm_nfc_pair[n_pairs] sorted. Hangul syllables are left out. Only with
 *                     LLM_NORMALIZE_NFC. */

enum llm_vocabulary_flag {
    LLM_BYTE_LEVEL = 1,    /* symbols begin as bytes, not as characters */
    LLM_BYTE_FALLBACK = 2, /* a character that is no token becomes the tokens of its bytes */
    LLM_FUSE_UNKNOWN = 4,  /* neighbouring unknown characters make one unknown token */
    LLM_WHOLE_WORDS = 8,   /* a piece that is a token is that token, whatever the merges would make of it */
    LLM_ADD_BOS = 16,      /* before every text, unless told otherwise */
    LLM_ADD_EOS = 32,
    /* a space goes before each text between added tokens that does not begin with one */
    LLM_PREFIX_SPACE = 64,
    LLM_PREFIX_FIRST = 128, /* ... but only at the very start */
    LLM_STRIP_SPACE = 256,  /* decoding: one space is dropped at the start of the text */
    LLM_STRIP_SPACES = 512  /* decoding: all spaces of the first token are dropped */
};

typedef struct llm_vocabulary {
    uint32_t flags; /* enum llm_vocabulary_flag */
    uint32_t n_tokens;
    uint32_t bos, eos, unknown; /* UINT32_MAX: none */
    uint32_t reserved[3];       /* zeros */
    uint32_t bytes[256];        /* the token of each byte; UINT32_MAX: none */
} llm_vocabulary;

enum llm_token_type {
    LLM_TOKEN_SPECIAL = 1, /* a control token: no text unless asked for */
    LLM_TOKEN_BYTE = 2,    /* a byte of a character that is no token */
    LLM_TOKEN_ABSENT = 4   /* an id that no token has */
};

typedef struct llm_merge {
    uint32_t right, rank, result;
} llm_merge;

enum llm_added_flag {
    LLM_ADDED_SPECIAL = 1, /* plain text unless LLM_SPECIAL is given */
    LLM_ADDED_LSTRIP = 2,  /* takes white space on its left along */
    LLM_ADDED_RSTRIP = 4,  /* takes white space on its right along */
    LLM_ADDED_WORD = 8     /* only where neither neighbour is part of a word */
};

typedef struct llm_added_head {
    uint32_t n_raw;    /* tokens looked for in the text as it comes */
    uint32_t n_normal; /* tokens looked for in normalised text */
} llm_added_head;

typedef struct llm_added {
    uint32_t id, flags;     /* enum llm_added_flag */
    uint32_t start, length; /* of its text, behind the last llm_added; length > 0 */
} llm_added;

enum llm_normalize_kind {
    LLM_NORMALIZE_NFC = 1,     /* Unicode normalization form C */
    LLM_NORMALIZE_PREPEND = 2, /* `to` before every text that is not empty */
    LLM_NORMALIZE_REPLACE = 3, /* every `from` by `to` */
    LLM_NORMALIZE_TRIM = 4 /* runs of spaces become one, none at the start, none (and no U+2581) at the end */
};

typedef struct llm_normalize_step {
    uint32_t kind;               /* enum llm_normalize_kind */
    uint32_t from_size, to_size; /* bytes of the two texts that follow */
} llm_normalize_step;

/* What becomes of the text that a stage's expression matches. */
enum llm_split {
    LLM_SPLIT_ISOLATED = 0, /* a piece of its own */
    LLM_SPLIT_REMOVED = 1,
    LLM_SPLIT_PREVIOUS = 2,   /* joined to the unmatched text before it */
    LLM_SPLIT_NEXT = 3,       /* joined to the unmatched text behind it */
    LLM_SPLIT_CONTIGUOUS = 4, /* joined to matches beside it */
    LLM_SPLIT_INVERT = 8      /* added: the other way round, what is between the matches counts as matched */
};

enum llm_op {
    LLM_OP_MATCH = 0, /* done */
    LLM_OP_RUN = 1,   /* b to c characters of class a, as many as let the rest match */
    LLM_OP_EAT = 2,   /* b to c characters of class a, as many as there are */
    LLM_OP_ALT = 3,   /* what follows, or else what is at a */
    LLM_OP_JUMP = 4,  /* on at a */
    /* on at a if what follows, up to its LLM_OP_MATCH, matches here (b = 0) or does not (b = 1) */
    LLM_OP_LOOK = 5,
    LLM_OP_END = 6, /* only at the end of the text or before a newline */
    /* what follows, up to its LLM_OP_MATCH, b (0 or 1) to c times, as often as it matches, never fewer; then
     * on at a */
    LLM_OP_LOOP = 7,
    /* only between a character of class a and one that is not, or an end of the text (b = 0); or only
     * elsewhere (b = 1) */
    LLM_OP_BORDER = 8
};

enum { LLM_MAX_STAGES = 16, LLM_MAX_INSTRUCTIONS = 1024 };

typedef struct llm_pattern_head {
    uint32_t n_stages, n_instructions;
} llm_pattern_head;

typedef struct llm_stage {
    uint32_t start; /* its first instruction */
    uint32_t split; /* enum llm_split */
} llm_stage;

typedef struct llm_instruction { /* every place that it names is behind it; the last one is LLM_OP_MATCH */
    uint32_t op;                 /* enum llm_op */
    uint32_t a, b, c;            /* c: UINT32_MAX is without limit */
} llm_instruction;

typedef struct llm_class_head {
    uint32_t n_classes, n_ranges;
} llm_class_head;

typedef struct llm_class {
    uint32_t ascii[4];      /* a bit for each character below 128 */
    uint32_t start, length; /* its ranges above that, sorted */
} llm_class;

typedef struct llm_range {
    uint32_t first, last;
} llm_range;

enum { LLM_MAX_AROUND = 16 };

typedef struct llm_around_head {
    uint32_t n_before, n_after; /* up to LLM_MAX_AROUND each */
} llm_around_head;

typedef struct llm_nfc_head {
    uint32_t n_chars, n_points, n_pairs;
} llm_nfc_head;

typedef struct llm_nfc_char { /* a character from U+00C0 that does not just stay as it is */
    uint32_t code;
    uint32_t order;         /* combining class; + 256: a starter that combines with what is before it */
    uint32_t start, length; /* its full decomposition in points; length 0: none */
} llm_nfc_char;

typedef struct llm_nfc_pair {
    uint32_t first, second, result;
} llm_nfc_pair;

typedef struct llm_tokenizer llm_tokenizer;

/* Opens the model's tokenizer. It may be shared by threads and must be closed before the model. NULL: err
 * says what is wrong or missing. */
llm_tokenizer *llm_tokenizer_open(const llm_model *model, char *err, size_t errlen);
void llm_tokenizer_close(llm_tokenizer *tokenizer); /* NULL is allowed */

/* Flags of llm_encode. By default a BOS (and for the few models that want it an EOS) is added where the
 * Hugging Face tokenizer adds it. */
enum llm_encode_flag {
    LLM_NO_BOS = 1, /* never add BOS or EOS, nor what LLM_AROUND has in their place */
    LLM_BOS = 2,    /* add BOS (LLM_AROUND: all before), unless the text itself begins so; nothing after */
    LLM_SPECIAL = 4 /* recognise special (control) tokens in the text; without it they are plain text */
};

/* Writes the ids of text (len bytes) to tokens, at most capacity of them, and returns how many there are
 * (which may be more: call again with more room; capacity 0 with tokens NULL only counts). Returns -1 when
 * memory runs out, and when the file's tokenizer is so bad that it would take forever over this text, or make
 * 64 times as much of it before it is split. */
int64_t llm_encode(const llm_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags,
    uint32_t *tokens, size_t capacity, char *err, size_t errlen);

/* A decoder holds back the bytes of an unfinished character. Zero-initialise it to start a text. */
typedef struct llm_decoder {
    uint8_t held[8];
    uint32_t n_held;
    /* bit 0: text has been given out, so that a leading space stays; the rest is the decoder's own */
    uint32_t started;
} llm_decoder;

/* Decodes one token after those that the decoder has seen. Writes whole UTF-8 characters to out (not
 * NUL-terminated), at most capacity bytes, and returns how many; llm_token_max_bytes() is always room enough.
 * Special tokens give nothing unless `special`. Bytes that can no longer become a character give U+FFFD. An
 * id that the tokenizer does not have gives nothing. */
size_t llm_decode(const llm_tokenizer *tokenizer, llm_decoder *decoder, uint32_t token, int special,
    char *out, size_t capacity);

/* Ends a text: what is still held back gives U+FFFD. The same room. Resets the decoder. */
size_t llm_decode_end(llm_decoder *decoder, char *out, size_t capacity);

size_t llm_token_max_bytes(const llm_tokenizer *tokenizer);

/* The number of ids, and BOS, EOS (or -1 when the tokenizer has none). */
uint32_t llm_token_count(const llm_tokenizer *tokenizer);
int64_t llm_token_bos(const llm_tokenizer *tokenizer);
int64_t llm_token_eos(const llm_tokenizer *tokenizer);

/* The tokens that end a generation (section LLM_STOP, else EOS alone), ascending, valid until
 * llm_tokenizer_close; how many there are goes to *n. */
const uint32_t *llm_token_stops(const llm_tokenizer *tokenizer, size_t *n);

/* Whether a generation ends at this token, and whether it is a special (control) token. */
int llm_token_is_stop(const llm_tokenizer *tokenizer, uint32_t token);
int llm_token_is_special(const llm_tokenizer *tokenizer, uint32_t token);

/* The id of a token given by its exact text, spaces as spaces ("<|im_end|>", " the"), or -1. */
int64_t llm_token_find(const llm_tokenizer *tokenizer, const char *text, size_t len);

/* ---------------------------------------------------------------------------------------------------------
 * Sampler (sampler.c): logits to a token. In this order: penalties, logit bias, mask, temperature, top-k,
 * top-p, min-p. */

typedef struct llm_sampling {
    float temperature; /* >= 0; 0: always the most likely token (the lowest id among equals) */
    /* in (0, 1]: the fewest most likely tokens whose probabilities reach it; 1: off (Holtzman et al. 2020) */
    float top_p;
    /* in [0, 1]: drop tokens less likely than this times the most likely one; 0: off (Nguyen et al. 2024) */
    float min_p;
    uint32_t top_k; /* keep the k most likely tokens; 0: off */
    /* > 0; 1: off. Divides positive and multiplies negative logits of tokens seen, prompt included (CTRL,
     * Keskar 2019) */
    float repeat_penalty;
    float presence_penalty;  /* subtracted once from tokens already generated; 0: off (OpenAI's definition) */
    float frequency_penalty; /* subtracted once for each time they were generated; 0: off */
    uint32_t n_bias;         /* entries in the two arrays below */
    const uint32_t *bias_tokens; /* (n_bias,); may be NULL when n_bias is 0. Copied by llm_sampler_open. */
    const float *bias_values;    /* (n_bias,), added to the logits; -INFINITY forbids a token */
    /* the same seed and logits give the same tokens, on every machine with the same floating point */
    uint64_t seed;
} llm_sampling;

/* The defaults: temperature 0.8, top_p 0.95, everything else off, seed 0. */
llm_sampling llm_sampling_default(void);

typedef struct llm_sampler llm_sampler;

/* Checks the parameters and makes a sampler for logits of vocab_size entries. NULL: err names the field. */
llm_sampler *llm_sampler_open(const llm_sampling *params, size_t vocab_size, char *err, size_t errlen);
void llm_sampler_close(llm_sampler *sampler); /* NULL is allowed */

/* Tells the sampler of a token of the prompt (generated = 0) or of the text (generated = 1), for the
 * penalties. llm_sample does it itself for the token it returns. */
void llm_sampler_accept(llm_sampler *sampler, uint32_t token, int generated);

/* Draws a token from logits (vocab_size,), which are not changed. NaN counts as -infinity; if nothing is
 * left, the most likely token wins.
 *   mask  (vocab_size / 32 rounded up,), bit i % 32 of word i / 32 says whether token i may be drawn: what a
 *         grammar allows; at least one may. Applied after the bias. NULL: all may */
uint32_t llm_sample(llm_sampler *sampler, const float *logits, const uint32_t *mask);

/* How a token came to be drawn: what each step of the sampler has made of it, and left beside it. */
typedef struct llm_explanation {
    float logit;    /* as the model has it */
    float adjusted; /* with penalties and bias */
    uint32_t top_k; /* tokens left by top-k; where that is off, those that top-p could keep */
    uint32_t top_p; /* by top-p, of these */
    uint32_t min_p; /* by min-p, of these */
    float drawn;    /* its probability among them, at this temperature; 1 where there was nothing to draw */
} llm_explanation;

/* The same as llm_sample(), and why. */
uint32_t llm_sample_explained(
    llm_sampler *sampler, const float *logits, const uint32_t *mask, llm_explanation *why);

/* The probability under softmax(logits), before any penalty or temperature, of all tokens together that a mask
 * lets through; NaN where no logit is finite, or one is infinite. */
float llm_mass(const float *logits, size_t vocab_size, const uint32_t *mask);

/* Natural-log probabilities under softmax(logits), before any penalty or temperature. Writes the n most
 * likely tokens, most likely first (lower id first among equals), to top_tokens and top_logprobs (both (n,);
 * may be NULL when n is 0; n is cut to vocab_size), and returns that of `token`. */
float llm_logprobs(const float *logits, size_t vocab_size, uint32_t token, size_t n, uint32_t *top_tokens,
    float *top_logprobs);

/* ---------------------------------------------------------------------------------------------------------
 * Drafts (lookup.c): guesses at the next tokens, looked up in the text so far. To run a draft in the same call of
 * llm_forward as the token before it costs little more than that token alone. Each of its tokens saves a call
 * where it is the one that is drawn from the logits before it; from the first that is not, llm_truncate takes
 * them back. */

/* What one token more costs in a call with few tokens, in calls, about: little where all of them read the same
 * weights; more in a mixture, where each has experts of its own. */
float llm_token_cost(const llm_model *model);

typedef struct llm_lookup llm_lookup;

/* An empty text of this model, which may be closed before it. NULL: out of memory. Takes about half a MiB, and
 * what the text takes. */
llm_lookup *llm_lookup_open(const llm_model *model, char *err, size_t errlen);
void llm_lookup_close(llm_lookup *lookup); /* NULL is allowed */

/* Appends n tokens to the text: of the prompt (generated = 0), or made (generated = 1), which says how good the
 * guesses are. Returns -1 and changes nothing when memory runs out. */
int llm_lookup_add(
    llm_lookup *lookup, const uint32_t *tokens, size_t n, int generated, char *err, size_t errlen);

/* Writes what may come next to draft, at most `most` tokens, and returns how many there are: as many as are likely
 * to be worth running, none where the text does not seem to repeat. */
size_t llm_lookup_draft(const llm_lookup *lookup, uint32_t *draft, size_t most);

#ifdef __cplusplus
}
#endif

#endif
