/* logits.c - a program for the tests: MODEL KV EXACT TOKEN... writes the float32 logits after every token to stdout, so
 * that a build for another processor, run by an emulator, can be compared number by number. KV is of enum llm_kv, EXACT
 * 0 or 1. */
#include "llm.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    char err[256] = "";
    const size_t n = argc > 4 ? (size_t)argc - 4 : 0;
    llm_model *m = n ? llm_open(argv[1], err, sizeof err) : NULL;
    llm_options o = {0};
    if (m) {
        o.kv = (uint32_t)strtoul(argv[2], NULL, 10);
        o.exact = (uint32_t)strtoul(argv[3], NULL, 10);
    }
    llm_session *s = m ? llm_session_open(m, &o, err, sizeof err) : NULL;
    uint32_t *tokens = calloc(n + 1, sizeof *tokens);
    uint8_t *want = calloc(n + 1, 1);
    const size_t vocab = m ? llm_model_header(m)->vocab_size : 0;
    float *logits = malloc(n * vocab * sizeof *logits + 1);
    int bad = !s || !tokens || !want || !logits;
    for (size_t i = 0; i < n && !bad; i++) {
        tokens[i] = (uint32_t)strtoul(argv[i + 4], NULL, 10);
        want[i] = 1;
    }
    bad = bad || llm_forward(s, n, tokens, NULL, want, logits, err, sizeof err);
    bad = bad || fwrite(logits, sizeof *logits, n * vocab, stdout) != n * vocab;
    fprintf(stderr, "%s\n", bad ? err : llm_session_isa(s));
    llm_session_close(s);
    llm_close(m);
    free(tokens);
    free(want);
    free(logits);
    return bad;
}
