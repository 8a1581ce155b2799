/* peaks.c - what this machine's processors can do at most, as one line of JSON.
 *
 *     cc -O2 -pthread peaks.c -o peaks && ./peaks [THREADS] [MIB]
 *
 * read_gbps     memory read by THREADS threads (default: 1) from MIB MiB (default: 1024), GB/s
 * fma_gflops    float32 multiply-adds, two operations each
 * int16_gops    products of int16 pairs added to int32, two operations each
 * bf16_gflops   products of bf16 pairs added to float32 in vector registers, two operations each
 * amx_bf16_tflops, amx_int8_tops   the same in AMX tiles
 *
 * A figure that the processor, the kernel or the compiler has no instruction for is null; "..._with" names
 * the instruction. Every figure is the best of several passes of all threads together. The build needs no
 * flag for an instruction set: each function names its own, and runs only where the processor and the kernel
 * have it. With -DNO_AMX and -DNO_BF16 it also builds with assemblers that do not know those instructions.
 *
 * The arithmetic loops are written in assembly with 14 independent sums, more than latency times throughput
 * anywhere: a compiler could neither drop nor reorder them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif

enum { PASSES = 5, MAX_THREADS = 1024 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---------------------------------------------------------------------------------------------------------
 * All threads at once */

typedef void work(int thread, int n_threads, long argument);

static struct {
    work *function;
    long argument;
    int n_threads;
    atomic_int ready; /* threads that wait for the last one to come */
    double begin[MAX_THREADS], end[MAX_THREADS];
} team;

static void *run(void *number) {
    int thread = (int)(intptr_t)number;
    atomic_fetch_add(&team.ready, 1);
    while (atomic_load(&team.ready) < team.n_threads)
        ;
    team.begin[thread] = seconds();
    team.function(thread, team.n_threads, team.argument);
    team.end[thread] = seconds();
    return NULL;
}

/* Seconds from the first thread's begin to the last one's end. */
static double together(work *function, int n_threads, long argument) {
    pthread_t threads[MAX_THREADS];
    team.function = function, team.argument = argument, team.n_threads = n_threads;
    atomic_store(&team.ready, 0);
    for (int i = 1; i < n_threads; i++)
        if (pthread_create(&threads[i], NULL, run, (void *)(intptr_t)i))
            fprintf(stderr, "peaks: cannot start %d threads\n", n_threads), exit(1);
    run(NULL);
    double begin = team.begin[0], end = team.end[0];
    for (int i = 1; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        begin = team.begin[i] < begin ? team.begin[i] : begin;
        end = team.end[i] > end ? team.end[i] : end;
    }
    return end - begin;
}

/* The most operations a second that `function` reaches; `operations` is what one round of its loop does. */
static double best_rate(work *function, int n_threads, double operations) {
    long rounds = 1 << 20;
    double took = together(function, n_threads, rounds); /* how many take 0.05 s? */
    rounds = (long)((double)rounds * 0.05 / (took > 1e-6 ? took : 1e-6)) + 1;
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        double rate = operations * (double)rounds * n_threads / together(function, n_threads, rounds);
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---------------------------------------------------------------------------------------------------------
 * Reading memory: each thread sums its part, in words as wide as the function's instruction set allows */

static struct {
    char *bytes;
    size_t part; /* bytes of one thread, a multiple of BLOCK */
    volatile uint64_t sink;
} memory;

enum { BLOCK = 512 };
typedef uint64_t vector __attribute__((vector_size(64), may_alias));

static void touch(int thread, int n_threads, long value) {
    (void)n_threads;
    memset(memory.bytes + (size_t)thread * memory.part, (int)value, memory.part);
}

#define DEFINE_READ(name, attribute)                                                               \
    attribute static void name(int thread, int n_threads, long ahead) {                            \
        (void)n_threads;                                                                           \
        const char *from = memory.bytes + (size_t)thread * memory.part, *end = from + memory.part; \
        vector a = {0}, b = {0}, c = {0}, d = {0};                                                 \
        for (const char *p = from; p < end; p += BLOCK) {                                          \
            if (ahead)                                                                             \
                for (int line = 0; line < BLOCK; line += 64)                                       \
                    __builtin_prefetch(p + line + ahead);                                          \
            const vector *v = (const vector *)p;                                                   \
            a += v[0], b += v[1], c += v[2], d += v[3];                                            \
            a += v[4], b += v[5], c += v[6], d += v[7];                                            \
        }                                                                                          \
        a += b + c + d;                                                                            \
        memory.sink = a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];                       \
    }

DEFINE_READ(read_plain, )
#ifdef __x86_64__
DEFINE_READ(read_avx2, __attribute__((target("avx2"))))
DEFINE_READ(read_avx512, __attribute__((target("avx512f"))))
#endif

/* GB/s, the best over prefetch distances; 0 when there is no memory for it. */
static double read_bandwidth(work *function, int n_threads, size_t size) {
    memory.part = size / (size_t)n_threads / BLOCK * BLOCK;
    size = memory.part * (size_t)n_threads;
    memory.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!size || memory.bytes == MAP_FAILED)
        return 0;
#ifdef MADV_HUGEPAGE
    madvise(memory.bytes, size, MADV_HUGEPAGE);
#endif
    together(touch, n_threads, 1); /* pages go to the threads that will read them */
    double best = 0;
    for (int pass = 0; pass < 2 * PASSES; pass++) {
        static const long AHEAD[PASSES] = {0, 512, 1024, 2048, 4096};
        double rate = (double)size / together(function, n_threads, AHEAD[pass % PASSES]);
        best = rate > best ? rate : best;
    }
    munmap(memory.bytes, size);
    return best / 1e9;
}

/* ---------------------------------------------------------------------------------------------------------
 * Arithmetic, x86-64 */

#define FOURTEEN(op)                                                                                  \
    op("0") op("1") op("2") op("3") op("4") op("5") op("6") op("7") op("8") op("9") op("10") op("11") \
        op("12") op("13")
#define SUMS 14

#ifdef __x86_64__
#define CLOBBERS                                                                                             \
    "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* A function that does `op` to registers 0 to 13 in each round, with `operand` in all of register 15. */
#define DEFINE_LOOP(name, isa, reg, operand, zero, op)                                                     \
    __attribute__((target(isa))) static void name(int thread, int n_threads, long rounds) {                \
        static const uint32_t one[16]                                                                      \
            __attribute__((aligned(64))) = {operand, operand, operand, operand, operand, operand, operand, \
                operand, operand, operand, operand, operand, operand, operand, operand, operand};          \
        (void)thread, (void)n_threads;                                                                     \
        __asm__ volatile("vmovups (%1), %%" reg "15\n\t" FOURTEEN(zero) ".p2align 6\n1:\n\t" FOURTEEN(     \
            op) "dec %0\n\tjnz 1b\n\tvzeroupper"                                                           \
            : "+r"(rounds)                                                                                 \
            : "r"(one)                                                                                     \
            : CLOBBERS);                                                                                   \
    }

#define ZERO_Y(n) "vxorps %%ymm" n ", %%ymm" n ", %%ymm" n "\n\t"
#define ZERO_Z(n) "vpxord %%zmm" n ", %%zmm" n ", %%zmm" n "\n\t"
#define FMA_Y(n) "vfmadd231ps %%ymm15, %%ymm15, %%ymm" n "\n\t"
#define FMA_Z(n) "vfmadd231ps %%zmm15, %%zmm15, %%zmm" n "\n\t"
#define MADD_Y(n) "vpmaddwd %%ymm15, %%ymm15, %%ymm14\n\tvpaddd %%ymm14, %%ymm" n ", %%ymm" n "\n\t"
#define MADD_Z(n) "vpmaddwd %%zmm15, %%zmm15, %%zmm14\n\tvpaddd %%zmm14, %%zmm" n ", %%zmm" n "\n\t"
#define VNNI_Z(n) "vpdpwssd %%zmm15, %%zmm15, %%zmm" n "\n\t"
#define BYTES_Z(n) "vpdpbusd %%zmm15, %%zmm15, %%zmm" n "\n\t"
#define BF16_Z(n) "vdpbf16ps %%zmm15, %%zmm15, %%zmm" n "\n\t"

#define FLOAT_ONE 0x3f800000u /* as float32 */
#define INT16_PAIR 0x00030005u
#define INT8_FOUR 0x03050307u
#define BF16_ONES 0x3f803f80u

DEFINE_LOOP(fma_avx2, "avx2,fma", "ymm", FLOAT_ONE, ZERO_Y, FMA_Y)
DEFINE_LOOP(fma_avx512, "avx512f", "zmm", FLOAT_ONE, ZERO_Z, FMA_Z)
DEFINE_LOOP(int16_avx2, "avx2", "ymm", INT16_PAIR, ZERO_Y, MADD_Y)
DEFINE_LOOP(int16_avx512, "avx512f,avx512bw", "zmm", INT16_PAIR, ZERO_Z, MADD_Z)
DEFINE_LOOP(int16_vnni, "avx512f,avx512vnni", "zmm", INT16_PAIR, ZERO_Z, VNNI_Z)
DEFINE_LOOP(int8_vnni, "avx512f,avx512vnni", "zmm", INT8_FOUR, ZERO_Z, BYTES_Z)
#ifndef NO_BF16
DEFINE_LOOP(bf16_avx512, "avx512f,avx512bf16", "zmm", BF16_ONES, ZERO_Z, BF16_Z)
#endif

#ifndef NO_AMX
/* What ldtilecfg reads. All of it is an operand of the assembly, or the compiler could drop a store to it. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Eight products of tiles a round: four sums, each of two halves (tiles 4, 5) times two halves (6, 7). */
#define TILES(op)                                                                                         \
    op " %%tmm6, %%tmm4, %%tmm0\n\t" op " %%tmm7, %%tmm4, %%tmm1\n\t" op " %%tmm6, %%tmm5, %%tmm2\n\t" op \
       " %%tmm7, %%tmm5, %%tmm3\n\t"

#define DEFINE_TILES(name, isa, op, operand)                                                         \
    __attribute__((target(isa))) static void name(int thread, int n_threads, long rounds) {          \
        tile_config config __attribute__((aligned(64)));                                             \
        uint32_t ones[256] __attribute__((aligned(64)));                                             \
        (void)thread, (void)n_threads;                                                               \
        memset(&config, 0, sizeof config);                                                           \
        config.palette = 1;                                                                          \
        for (int i = 0; i < 8; i++)                                                                  \
            config.row_bytes[i] = 64, config.rows[i] = 16;                                           \
        for (int i = 0; i < 256; i++)                                                                \
            ones[i] = operand;                                                                       \
        __asm__ volatile(                                                                            \
            "ldtilecfg %[config]\n\t"                                                                \
            "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"           \
            "tileloadd (%[ones],%[stride],1), %%tmm4\n\ttileloadd (%[ones],%[stride],1), %%tmm5\n\t" \
            "tileloadd (%[ones],%[stride],1), %%tmm6\n\ttileloadd (%[ones],%[stride],1), %%tmm7\n\t" \
            ".p2align 6\n1:\n\t" TILES(op) TILES(op) "dec %[rounds]\n\tjnz 1b\n\ttilerelease"        \
            : [rounds] "+r"(rounds)                                                                  \
            : [config] "m"(config), [ones] "r"(ones), [stride] "r"(64L), "m"(ones)                   \
            : "cc", "memory");                                                                       \
    }

#ifdef __clang__ /* checks assembly against the function's target; GCC does not, nor need it know the names */
#define TILE_ISA(name) name
#else
#define TILE_ISA(name) "sse2"
#endif
DEFINE_TILES(amx_bf16, TILE_ISA("amx-tile,amx-bf16"), "tdpbf16ps", BF16_ONES)
DEFINE_TILES(amx_int8, TILE_ISA("amx-tile,amx-int8"), "tdpbssd", INT8_FOUR)

/* 1 for AMX's bf16 and 2 for its int8, where the processor has it and the kernel lets this process use it. */
static int amx(void) {
#ifdef __linux__
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1))
        return 0;
    int found = (int)(d >> 22 & 1) | (int)(d >> 25 & 1) << 1;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) /* the kernel has turned xgetbv on */
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    if ((low >> 17 & 3) != 3) /* ... and tiles */
        return 0;
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) ? 0 : found;
#else
    return 0;
#endif
}
#endif
#endif

/* ---------------------------------------------------------------------------------------------------------
 * Arithmetic, aarch64 */

#ifdef __aarch64__
#define CLOBBERS                                                                                            \
    "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", \
        "v15"
#define FMLA(n) "fmla v" n ".4s, v15.4s, v15.4s\n\t"
#define SMLAL(n) "smlal v" n ".4s, v15.4h, v15.4h\n\t"
#define ZERO_V(n) "movi v" n ".4s, #0\n\t"

#define DEFINE_LOOP(name, operand, op)                                                         \
    static void name(int thread, int n_threads, long rounds) {                                 \
        (void)thread, (void)n_threads;                                                         \
        __asm__ volatile("dup v15.4s, %w1\n\t" FOURTEEN(ZERO_V) ".p2align 6\n1:\n\t" FOURTEEN( \
            op) "subs %0, %0, #1\n\tb.ne 1b"                                                   \
            : "+r"(rounds)                                                                     \
            : "r"(operand)                                                                     \
            : CLOBBERS);                                                                       \
    }

DEFINE_LOOP(fma_neon, 0x3f800000u, FMLA)
DEFINE_LOOP(int16_neon, 0x00030005u, SMLAL)
#endif

/* ---------------------------------------------------------------------------------------------------------
 * main */

/* Prints a figure and what it was measured with; nothing was when `function` is NULL. */
static void print_rate(
    const char *key, const char *with, work *function, int n_threads, double operations, double unit) {
    if (function)
        printf(", \"%s\": %.3f, \"%s_with\": \"%s\"", key, best_rate(function, n_threads, operations) / unit,
            key, with);
    else
        printf(", \"%s\": null", key);
}

int main(int argc, char **argv) {
    int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    long mib = argc > 2 ? atol(argv[2]) : 1024;
    if (n_threads < 1 || n_threads > MAX_THREADS || mib < 1 || mib > 1L << 20)
        return fprintf(stderr, "usage: peaks [THREADS] [MIB]\n"), 2;
    work *reader = read_plain, *fma = NULL, *int16 = NULL, *int8 = NULL, *bf16 = NULL;
    work *tile_bf16 = NULL, *tile_int8 = NULL;
    const char *fma_name = "", *int16_name = "";
    int width = 0, int16_width = 0; /* bytes of a register; of the int16 that one instruction multiplies */
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        reader = read_avx2, width = int16_width = 32;
        fma = fma_avx2, fma_name = "vfmadd231ps ymm";
        int16 = int16_avx2, int16_name = "vpmaddwd + vpaddd ymm";
    }
    if (__builtin_cpu_supports("avx512f")) {
        reader = read_avx512, width = 64;
        fma = fma_avx512, fma_name = "vfmadd231ps zmm";
        if (__builtin_cpu_supports("avx512bw"))
            int16 = int16_avx512, int16_name = "vpmaddwd + vpaddd zmm", int16_width = 64;
        if (__builtin_cpu_supports("avx512vnni"))
            int16 = int16_vnni, int16_name = "vpdpwssd zmm", int16_width = 64, int8 = int8_vnni;
#ifndef NO_BF16
        if (__builtin_cpu_supports("avx512bf16"))
            bf16 = bf16_avx512;
#endif
    }
#ifndef NO_AMX
    int tiles = amx();
    tile_bf16 = tiles & 1 ? amx_bf16 : NULL;
    tile_int8 = tiles & 2 ? amx_int8 : NULL;
#endif
#endif
#ifdef __aarch64__
    fma = fma_neon, fma_name = "fmla", width = 16;
    int16 = int16_neon, int16_name = "smlal", int16_width = 8;
#endif
    printf("{\"threads\": %d, \"read_gbps\": %.3f, \"read_mib\": %ld", n_threads,
        read_bandwidth(reader, n_threads, (size_t)mib << 20), mib);
    print_rate("fma_gflops", fma_name, fma, n_threads, SUMS * width / 4 * 2, 1e9);
    print_rate("int16_gops", int16_name, int16, n_threads, SUMS * int16_width / 2 * 2, 1e9);
    print_rate("int8_gops", "vpdpbusd zmm", int8, n_threads, SUMS * 64 * 2, 1e9);
    print_rate("bf16_gflops", "vdpbf16ps zmm", bf16, n_threads, SUMS * 64 / 2 * 2, 1e9);
    print_rate("amx_bf16_tflops", "tdpbf16ps", tile_bf16, n_threads, 8.0 * 16 * 16 * 32 * 2, 1e12);
    print_rate("amx_int8_tops", "tdpbssd", tile_int8, n_threads, 8.0 * 16 * 16 * 64 * 2, 1e12);
    puts("}");
    return 0;
}
