/* Prints what this machine does at most, one measurement a line: `NAME threads=N DETAIL=... VALUE`.
 *
 *   fma   threads=N bits=B       GFLOP/s of float32 multiply-adds in vectors of B bits
 *   int8  threads=N with=NAME    10^9 operations a second of int8 dot products
 *   read  threads=N kib=K        GB/s of reads of K KiB again and again, all threads together
 *   cache level=L kib=K          the size of a cache, of one core or shared as the system tells it
 *
 * The arguments are the numbers of threads. Build with the instructions of this machine:
 * cc -O3 -march=native -pthread peak.c
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CHAINS 12 /* sums side by side: more than latency times units, fewer than registers */
#define TRIALS 7
#define SECONDS 0.02 /* of a trial */
#define MOST_THREADS 256

typedef float floats32 __attribute__((vector_size(32)));
typedef float floats64 __attribute__((vector_size(64)));
typedef uint64_t words __attribute__((vector_size(64)));

static volatile float multiplier = 0.999f, addend = 1e-3f;
static volatile float float_sink;
static volatile uint64_t word_sink;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Each kernel does its work `count` times. */

#define DEFINE_FMA(NAME, VECTOR)                                                    \
    static void NAME(long count, const void *memory, size_t bytes) {                \
        (void)memory, (void)bytes;                                                  \
        VECTOR x = {0}, y = {0}, sums[CHAINS];                                      \
        x += multiplier, y += addend;                                               \
        for (int i = 0; i < CHAINS; i++) sums[i] = y * (float)i;                    \
        for (long n = 0; n < count; n++)                                            \
            for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * x + y;             \
        for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];                        \
        float_sink = sums[0][0];                                                    \
    }

DEFINE_FMA(fma_256, floats32)
#define FMA_256_OPERATIONS (2.0 * 8 * CHAINS)
#if defined(__AVX512F__)
DEFINE_FMA(fma_512, floats64)
#define FMA_512_OPERATIONS (2.0 * 16 * CHAINS)
#endif

#if defined(__AVX512VNNI__)
#define INT8_NAME "avx512_vnni"
#define INT8_OPERATIONS (2.0 * 64 * CHAINS)
typedef __m512i bytes_register;
#define DOT(sum, x, y) _mm512_dpbusd_epi32(sum, x, y)
#define ALL(value) _mm512_set1_epi8(value)
#elif defined(__AVXVNNI__)
#define INT8_NAME "avx_vnni"
#define INT8_OPERATIONS (2.0 * 32 * CHAINS)
typedef __m256i bytes_register;
#define DOT(sum, x, y) _mm256_dpbusd_avx_epi32(sum, x, y)
#define ALL(value) _mm256_set1_epi8(value)
#elif defined(__AVX2__)
#define INT8_NAME "maddubs"
#define INT8_OPERATIONS (2.0 * 32 * CHAINS)
typedef __m256i bytes_register;
#define DOT(sum, x, y) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)))
#define ALL(value) _mm256_set1_epi8(value)
#endif

#if defined(INT8_NAME)
/* Names of their own keep the sums in registers; without the barrier constants leave the loop. */
#define EACH(DO) DO(a) DO(b) DO(c) DO(d) DO(e) DO(f) DO(g) DO(h) DO(i) DO(j) DO(k) DO(l)
#define DECLARE(sum) bytes_register sum = ALL(1);
#define ADD(sum) sum = DOT(sum, x, y); __asm__ volatile("" : "+v"(sum), "+v"(x));

static void int8(long count, const void *memory, size_t bytes) {
    (void)memory, (void)bytes;
    bytes_register x = ALL(3), y = ALL(2);
    EACH(DECLARE)
    for (long n = 0; n < count; n++) {
        EACH(ADD)
    }
}
#endif

static void read_all(long count, const void *memory, size_t bytes) {
    words found[8] = {{0}};
    for (long n = 0; n < count; n++) {
        const words *at = memory, *end = at + bytes / sizeof(words) / 8 * 8;
        for (; at < end; at += 8)
            for (int i = 0; i < 8; i++) found[i] |= at[i];
        __asm__ volatile("" ::: "memory"); /* else one pass would do for all */
    }
    for (int i = 1; i < 8; i++) found[0] |= found[i];
    word_sink = found[0][0];
}

typedef void kernel(long count, const void *memory, size_t bytes);

struct task {
    kernel *kernel;
    long count;
    void *memory;
    size_t bytes;
    double start, end;
};

static pthread_barrier_t barrier;

static void *work(void *argument) {
    struct task *task = argument;
    if (task->bytes) {
        task->memory = aligned_alloc(4096, task->bytes);
        if (!task->memory) {
            fprintf(stderr, "no memory for %zu bytes\n", task->bytes);
            exit(1);
        }
        memset(task->memory, 1, task->bytes);
    }
    for (int trial = -1; trial < TRIALS; trial++) { /* the first does not count */
        pthread_barrier_wait(&barrier);
        task->start = now();
        task->kernel(task->count, task->memory, task->bytes);
        task->end = now();
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
    }
    free(task->memory);
    return NULL;
}

/* The shortest time in which all threads did the work `count` times each. */
static double seconds_of(int threads, kernel *kernel, long count, size_t bytes) {
    pthread_t ids[MOST_THREADS];
    struct task tasks[MOST_THREADS];
    pthread_barrier_init(&barrier, NULL, threads + 1);
    for (int i = 0; i < threads; i++) {
        tasks[i] = (struct task){.kernel = kernel, .count = count, .bytes = bytes};
        pthread_create(&ids[i], NULL, work, &tasks[i]);
    }
    double best = 1e30;
    for (int trial = -1; trial < TRIALS; trial++) {
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        double start = tasks[0].start, end = tasks[0].end;
        for (int i = 1; i < threads; i++) {
            if (tasks[i].start < start) start = tasks[i].start;
            if (tasks[i].end > end) end = tasks[i].end;
        }
        if (trial >= 0 && end - start < best) best = end - start;
        pthread_barrier_wait(&barrier);
    }
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&barrier);
    return best;
}

/* How often one thread does the work in the seconds of a trial, at least once. */
static long count_for(kernel *kernel, size_t bytes) {
    long count = 1;
    for (;;) {
        double seconds = seconds_of(1, kernel, count, bytes);
        if (seconds > SECONDS / 4) return count * SECONDS / seconds + 1;
        count *= 4;
    }
}

/* Units of work a second of all threads, where one call of the kernel is `units`. */
static double rate(int threads, kernel *kernel, double units, size_t bytes) {
    long count = count_for(kernel, bytes);
    return threads * units * count / seconds_of(threads, kernel, count, bytes);
}

/* The size that Linux tells; sysconf would tell that of the host in a virtual machine. */
static long cache_kib(int level, long otherwise) {
    for (int index = 0; index < 8; index++) {
        char path[96];
        long found = 0, kib = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", index);
        FILE *file = fopen(path, "r");
        if (!file) break;
        int read = fscanf(file, "%ld", &found);
        fclose(file);
        if (read != 1 || found != level) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        if (!(file = fopen(path, "r"))) break;
        read = fscanf(file, "%ldK", &kib);
        fclose(file);
        if (read == 1 && kib > 0) return kib;
    }
    return otherwise;
}

int main(int arguments, char **values) {
    long l2 = cache_kib(2, 512), l3 = cache_kib(3, 8192);
    printf("cache level=2 kib=%ld\ncache level=3 kib=%ld\n", l2, l3);
    for (int argument = 1; argument < arguments; argument++) {
        int threads = atoi(values[argument]);
        if (threads < 1 || threads > MOST_THREADS) {
            fprintf(stderr, "threads must be from 1 to %d: %s\n", MOST_THREADS, values[argument]);
            return 2;
        }
        printf("fma threads=%d bits=256 %.4g\n", threads,
               1e-9 * rate(threads, fma_256, FMA_256_OPERATIONS, 0));
#if defined(FMA_512_OPERATIONS)
        printf("fma threads=%d bits=512 %.4g\n", threads,
               1e-9 * rate(threads, fma_512, FMA_512_OPERATIONS, 0));
#endif
#if defined(INT8_NAME)
        printf("int8 threads=%d with=%s %.4g\n", threads, INT8_NAME,
               1e-9 * rate(threads, int8, INT8_OPERATIONS, 0));
#endif
        /* Within L2, well beyond it and within L3, well beyond that; shared among the threads. */
        long between = 4 * l2 * threads < l3 / 2 ? 4 * l2 * threads : l3 / 2;
        long sizes[] = {l2 / 2 * threads, between, l3 * 4};
        for (int i = 0; i < 3; i++) {
            size_t bytes = (size_t)sizes[i] * 1024 / threads / 4096 * 4096;
            printf("read threads=%d kib=%zu %.4g\n", threads, bytes / 1024 * threads,
                   1e-9 * rate(threads, read_all, bytes, bytes));
        }
        fflush(stdout);
    }
    return 0;
}
