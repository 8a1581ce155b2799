/* threads.c - how many processors this process may really use, and how its threads wait for each other.
 * Counting them takes the reading of the system's text files, which the engine never does. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "threads.h"
#include "llm.h"
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* ------------------------------------------------------------------------------------------------------
 * How many processors this process may use */

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

/* ------------------------------------------------------------------------------------------------------
 * Teams */

/* Threads that wait until they are let go, then work, each with the next number */
typedef struct crowd {
    pthread_mutex_t hold;
    pthread_t threads[MAX_THREADS];
    size_t n, next; /* threads that wait; the number of the next one to go */
    void (*work)(void *context);
    void *context;
} crowd;

static void work_in_crowd(crowd *c);

static void *wait_and_work(void *waited) {
    work_in_crowd(waited);
    return NULL;
}

/* Starts up to `wanted` threads, which wait. */
static void start(crowd *c, size_t wanted) {
    pthread_mutex_init(&c->hold, NULL);
    pthread_mutex_lock(&c->hold);
    for (c->n = 0; c->n < wanted && c->n < MAX_THREADS; c->n++)
        if (pthread_create(&c->threads[c->n], NULL, wait_and_work, c))
            break;
}

static void unlock_crowd(crowd *c) { pthread_mutex_unlock(&c->hold); }

static void join(crowd *c) {
    for (size_t i = 0; i < c->n; i++)
        pthread_join(c->threads[i], NULL);
    pthread_mutex_destroy(&c->hold);
}

#ifdef _OPENMP
static void work_in_crowd(crowd *c) {
    pthread_mutex_lock(&c->hold);
    pthread_mutex_unlock(&c->hold);
}

/* OpenMP ends the process when it cannot create a thread, so it is only asked for those that could be created
 * a moment before, and one more; where they fall short, for half of these, to leave room. It keeps the threads
 * of the last team that this thread has led. */
static size_t startable(size_t wanted) {
    static _Thread_local size_t have = 1, most = MAX_THREADS;
    wanted = wanted < most ? wanted : most;
    if (wanted > have) {
        crowd c;
        start(&c, wanted - have + 1);
        unlock_crowd(&c);
        join(&c);
        if (c.n <= wanted - have)
            wanted = most = have + c.n / 2;
    }
    return have = wanted;
}

void team(size_t threads, void (*work)(void *context), void *context) {
    const int n = (int)startable(threads);
#pragma omp parallel num_threads(n)
    work(context);
}
#else
_Thread_local size_t thread_number = 0, team_size = 1;

static void work_in_crowd(crowd *c) {
    pthread_mutex_lock(&c->hold);
    thread_number = ++c->next;
    team_size = c->n + 1;
    pthread_mutex_unlock(&c->hold);
    c->work(c->context);
}

void team(size_t threads, void (*work)(void *context), void *context) {
    if (threads <= 1) {
        work(context);
        return;
    }
    crowd c = {.work = work, .context = context};
    start(&c, threads - 1);
    team_size = c.n + 1;
    unlock_crowd(&c);
    work(context);
    join(&c);
    team_size = 1;
}
#endif

/* ------------------------------------------------------------------------------------------------------
 * Waiting for each other */

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

void barrier(team_barrier *b) {
    const unsigned all = (unsigned)THREADS, turn = atomic_load(&b->turn);
    if (all == 1)
        return;
    if (atomic_fetch_add(&b->arrived, 1) + 1 == all) {
        atomic_store(&b->arrived, 0);
        atomic_fetch_add(&b->turn, 1);
        if (atomic_load(&b->asleep))
            wake_all(&b->turn);
        return;
    }
    static _Thread_local unsigned patience = SPINS, waits = 0;
    const unsigned limit = ++waits % 32 ? patience : SPINS; /* asks anew from time to time */
    unsigned spins = 0;
    while (spins < limit && atomic_load_explicit(&b->turn, memory_order_acquire) == turn) {
        spins++;
        relax();
    }
    patience = spins < limit ? (patience + SPINS) / 2 : patience / 4;
    while (atomic_load(&b->turn) == turn) {
        atomic_fetch_add(&b->asleep, 1);
        sleep_on(&b->turn, turn);
        atomic_fetch_sub(&b->asleep, 1);
    }
}
