/* threads.c - how many processors this process may really use. It owns that one question, because answering
 * it takes the reading of the system's text files, which the engine never does. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "llm.h"
#include <stdio.h>
#include <string.h>
#ifdef __linux__
#include <sched.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

/* Reads up to two numbers from a file; returns how many there were ("max 100000" has none). */
static int read_numbers(const char *path, double *a, double *b) {
    FILE *f = fopen(path, "r");
    const int n = f ? fscanf(f, "%lf %lf", a, b) : 0;
    if (f)
        fclose(f);
    return n < 0 ? 0 : n;
}

/* The smallest quota / period of this process's cgroup and the groups around it, in processors; without a
 * limit a large number. Version 2 is /proc/self/cgroup's line "0::/path" and cpu.max; version 1 is asked for
 * its root only, which in a container is its own. */
static double cpu_quota(void) {
    double quota, period, least = 1e9;
    char group[512] = "", line[512], path[640];
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "0::/", 4))
            snprintf(group, sizeof group, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    if (f)
        fclose(f);
    for (char *slash = group; slash; slash = strrchr(group, '/')) {
        if (slash != group || !*group || strrchr(group, '/') == group)
            *slash = slash == group && *group && slash[1] ? *slash : 0;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        if (read_numbers(path, &quota, &period) == 2 && quota > 0 && period > 0 && quota / period < least)
            least = quota / period;
    }
    if (read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota, &period) == 1 && quota > 0 &&
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, &period) == 1 && quota / period < least)
        least = quota / period;
    return least;
}

uint32_t llm_default_threads(void) {
    double n = 1;
#ifdef _OPENMP
    n = omp_get_num_procs();
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        n = CPU_COUNT(&set);
#endif
    const double quota = cpu_quota();
    n = quota < n ? quota : n;
#endif
    return n < 1 ? 1 : n > 1024 ? 1024 : (uint32_t)n;
}
