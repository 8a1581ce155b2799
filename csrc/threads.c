/* threads.c - what the processors can do, how many this process may really use, and how its threads wait for
 * each other. Counting them takes the reading of the system's text files, which the engine never does. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "threads.h"
#include "llm.h"
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#endif
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The first number in the file root + group + name, and the second to *other if there is one; -1 without
 * ("max"). */
static double read_number(const char *root, const char *group, const char *name, double *other) {
    char path[640];
    double number = -1;
    snprintf(path, sizeof path, "%s%s/%s", root, group, name);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%lf %lf", &number, other) < 1)
        number = -1;
    if (f)
        fclose(f);
    return number;
}

/* The smallest CPU limit of this cgroup and the groups around it, in processors; without one a large number.
 * Version 2 has cpu.max, "quota period" or "max period"; version 1 has two files, where quota is -1 without a
 * limit. */
static double group_limit(const char *root, char *group, int version) {
    double least = 1e9;
    for (char *slash = group + strlen(group);; slash = strrchr(group, '/')) {
        double period = 0, none = 0, quota;
        if (!slash)
            return least;
        *slash = 0;
        quota = read_number(root, group, version == 2 ? "cpu.max" : "cpu.cfs_quota_us", &period);
        if (version == 1)
            period = read_number(root, group, "cpu.cfs_period_us", &none);
        if (quota > 0 && period > 0 && quota / period < least)
            least = quota / period;
    }
}

/* The limit of the groups that /proc/self/cgroup names: a line "0::/path" for version 2,
 * "N:cpu,cpuacct:/path" for 1. A container sees its own group at the root, which is asked last either way. */
static double cpu_quota(void) {
    double least = 1e9;
    char line[512];
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        const int cpu =
            !strcmp(names, ":cpu") || !strncmp(names, ":cpu,", 5) || strstr(names, ",cpu,") != NULL;
        double limit = 1e9;
        if (cpu)
            limit = group_limit("/sys/fs/cgroup/cpu", group, 1);
        else if (names[1] == 0)
            limit = group_limit("/sys/fs/cgroup", group, 2);
        least = limit < least ? limit : least;
    }
    if (f)
        fclose(f);
    return least;
}

uint32_t llm_default_threads(void) {
#ifdef _OPENMP
    double n = omp_get_num_procs();
#else
    double n = 1;
#endif
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < n)
        n = CPU_COUNT(&set);
#endif
    const double quota = cpu_quota();
    n = quota < n ? quota : n;
    return n < 1 ? 1 : n > 1024 ? 1024 : (uint32_t)n;
}

uint64_t llm_read_memory(const uint64_t *words, size_t n, uint32_t threads) {
    uint64_t sum = 0;
#pragma omp parallel for reduction(+ : sum) num_threads(threads) schedule(static)
    for (size_t i = 0; i < n; i++)
        sum += words[i];
    (void)threads; /* in a build without OpenMP */
    return sum;
}

#if defined(SOFT_TILES) /* tests/tiles.h */
static int have_amx(void) { return __builtin_cpu_supports("avx512bf16"); }
#elif defined(__x86_64__) && defined(__linux__)
/* AMX with bf16, shown by the hypervisor; the kernel must be asked for the tiles' state once a process. */
static int have_amx(void) {
    unsigned a, b, c, d = 0;
    const int shown = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1 && d >> 24 & 1;
    return shown && __builtin_cpu_supports("avx512bf16") && !syscall(SYS_arch_prctl, 0x1023, 18);
}
#elif defined(__x86_64__)
static int have_amx(void) { return 0; }
#endif

int processor_has(const char *isa) {
#if defined(__x86_64__)
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* F16C is older */
    const int dq = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const int bw = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
    if (!strcmp(isa, "amx"))
        return avx2 && dq && bw && have_amx();
    if (!strcmp(isa, "avx512"))
        return avx2 && dq && bw;
    return avx2 || strcmp(isa, "avx2") != 0;
#else
    return isa != NULL;
#endif
}

/* Looks before sleeping: some 0.2 ms, since sleeping and waking costs 0.05 ms on a virtual machine. Fewer for
 * a while after looking was in vain, because then the others are likely to wait for this very processor. */
#define SPINS 5000

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Sleeps while *turn is `old`; wakes all who do. Linux has a system call for it; elsewhere others may run for
 * a moment. */
static void sleep_on(atomic_uint *turn, unsigned old) {
#ifdef __linux__
    syscall(SYS_futex, turn, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
#else
    (void)turn, (void)old;
    sched_yield();
#endif
}

static void wake_all(atomic_uint *turn) {
#ifdef __linux__
    syscall(SYS_futex, turn, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#else
    (void)turn;
#endif
}

void meet(meeting *m) {
    const unsigned all = (unsigned)THREADS, turn = atomic_load(&m->turn);
    if (all == 1)
        return;
    if (atomic_fetch_add(&m->arrived, 1) + 1 == all) {
        atomic_store(&m->arrived, 0);
        atomic_fetch_add(&m->turn, 1);
        if (atomic_load(&m->asleep))
            wake_all(&m->turn);
        return;
    }
    static _Thread_local unsigned patience = SPINS, waits = 0;
    const unsigned limit = ++waits % 32 ? patience : SPINS; /* asks anew from time to time */
    unsigned spins = 0;
    while (spins < limit && atomic_load_explicit(&m->turn, memory_order_acquire) == turn) {
        spins++;
        relax();
    }
    patience = spins < limit ? (patience + SPINS) / 2 : patience / 4;
    while (atomic_load(&m->turn) == turn) {
        atomic_fetch_add(&m->asleep, 1);
        sleep_on(&m->turn, turn);
        atomic_fetch_sub(&m->asleep, 1);
    }
}
