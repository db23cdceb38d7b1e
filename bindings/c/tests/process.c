/* What surrounds readers and writers: threads, signals, forks, the end of the process. Part of test.c. */
#define _GNU_SOURCE
#include "c.h"

#include <pthread.h>
#include <sched.h>
#include <sys/time.h>
#include <time.h>

enum { COUNT = 20000, READERS = 3 };

struct work {
    chronfs_queue *queue;
    char name[16];
};

static void *read_all(void *argument) {
    struct work *work = argument;
    chronfs_reader *reader = open_reader(work->queue, work->name);
    chronfs_entry entry;
    for (uint64_t seq = 1; seq <= COUNT;) {
        int result = chronfs_reader_next(reader, &entry);
        if (result == 0) {
            IS(chronfs_reader_wait(reader, -1), 1);
            continue;
        }
        IS(result, 1);
        IS(entry.seq, seq);
        IS(entry.len, sizeof seq);
        CHECK(memcmp(entry.payload, &seq, sizeof seq) == 0);
        IS(chronfs_reader_commit(reader), 0);
        seq++;
    }
    chronfs_reader_close(reader);
    return NULL;
}

void each_thread_has_its_handle(void) {
    struct work work[READERS];
    pthread_t threads[READERS];
    chronfs_queue *queue = create("threads", NULL);
    chronfs_writer *writer = open_writer(queue);
    for (int i = 0; i < READERS; i++) {
        work[i].queue = queue;
        snprintf(work[i].name, sizeof work[i].name, "r%d", i);
        IS(pthread_create(&threads[i], NULL, read_all, &work[i]), 0);
    }
    for (uint64_t seq = 1; seq <= COUNT; seq++) IS(chronfs_writer_append(writer, 1, &seq, sizeof seq, NULL), 0);
    for (int i = 0; i < READERS; i++) IS(pthread_join(threads[i], NULL), 0);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
}

static void *wait_for_ever(void *reader) {
    return (void *)(intptr_t)chronfs_reader_wait(reader, -1);
}

void another_thread_ends_waits(void) {
    chronfs_settings settings = {.segment_size = 1 << 16, .max_bytes = 1 << 17};
    chronfs_writer_options waiting = {.wait_when_full_ns = UINT64_MAX};
    chronfs_queue *queue = create("stopped", &settings);
    chronfs_reader *reader = open_reader(queue, "r");
    chronfs_writer *writer;
    chronfs_stopper *stopper;
    pthread_t thread;
    void *result;
    int appended = 0;

    IS(chronfs_stopper_new(&stopper), 0);
    IS(chronfs_reader_set_stopper(reader, stopper), 0);
    IS(pthread_create(&thread, NULL, wait_for_ever, reader), 0);
    chronfs_stopper_stop(stopper);
    IS(pthread_join(thread, &result), 0);
    IS((intptr_t)result, CHRONFS_ERROR_STOPPED);
    /* The failure was that thread's. */
    CHECK(chronfs_error_code() != CHRONFS_ERROR_STOPPED);
    IS(chronfs_reader_wait(reader, -1), CHRONFS_ERROR_STOPPED);
    chronfs_stopper_clear(stopper);
    IS(chronfs_reader_wait(reader, 0), 0);

    IS(chronfs_writer_open(queue, &waiting, &writer), 0);
    IS(chronfs_writer_set_stopper(writer, stopper), 0);
    chronfs_stopper_stop(stopper);
    static const char filler[8192];
    while ((appended = chronfs_writer_append(writer, 1, filler, sizeof filler, NULL)) == 0) {}
    IS(appended, CHRONFS_ERROR_STOPPED);
    chronfs_stopper_free(stopper);
    chronfs_writer_close(writer);
    chronfs_reader_close(reader);
    chronfs_queue_close(queue);
}

static volatile sig_atomic_t hits;
static chronfs_stopper *of_handler;
static void count_hit(int number) {
    (void)number;
    hits++;
    chronfs_stopper_stop(of_handler);
}

static void set_timer(long interval_us) {
    struct itimerval timer = {{0, interval_us}, {0, interval_us}};
    IS(setitimer(ITIMER_REAL, &timer, NULL), 0);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 * MS + now.tv_nsec;
}

void signals_do_not_end_waits(void) {
    chronfs_queue *queue = create("signals", NULL);
    chronfs_reader *reader = open_reader(queue, "r");
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    /* Without SA_RESTART: system calls return EINTR. */
    action.sa_handler = count_hit;
    IS(sigaction(SIGALRM, &action, &before), 0);
    set_timer(5000);
    do {
        long long start_ns = now_ns();
        IS(chronfs_reader_wait(reader, 100 * MS), 0);
        CHECK(now_ns() - start_ns >= 100 * MS);
    } while (hits < 3);
    set_timer(0);

    IS(chronfs_stopper_new(&of_handler), 0);
    IS(chronfs_reader_set_stopper(reader, of_handler), 0);
    set_timer(5000);
    IS(chronfs_reader_wait(reader, -1), CHRONFS_ERROR_STOPPED);
    set_timer(0);
    IS(sigaction(SIGALRM, &before, NULL), 0);
    chronfs_stopper_free(of_handler);
    of_handler = NULL;
    chronfs_reader_close(reader);
    chronfs_queue_close(queue);
}

struct inherited {
    chronfs_queue *queue;
    chronfs_writer *writer, *reserved;
    chronfs_reader *reader;
};

static int use_inherited(void *argument) {
    struct inherited *parents = argument;
    chronfs_entry entry;
    chronfs_reader *tailer;
    failed(chronfs_writer_append(parents->writer, 1, "x", 1, NULL), CHRONFS_ERROR_POISONED, "fork", "fork");
    failed(chronfs_writer_flush_sync(parents->writer), CHRONFS_ERROR_POISONED, "fork", "fork");
    failed(chronfs_writer_commit(parents->reserved, 1, NULL), CHRONFS_ERROR_POISONED, "fork", "fork");
    failed(chronfs_reader_next(parents->reader, &entry), CHRONFS_ERROR_POISONED, "fork", "fork");
    failed(chronfs_reader_wait(parents->reader, 0), CHRONFS_ERROR_POISONED, "fork", "fork");
    failed(chronfs_reader_commit(parents->reader), CHRONFS_ERROR_POISONED, "fork", "fork");
    chronfs_writer_close(parents->writer);
    chronfs_writer_close(parents->reserved);
    chronfs_reader_close(parents->reader);
    IS(chronfs_tailer_open(parents->queue, NULL, &tailer), 0);
    expect(tailer, 1, "before");
    chronfs_reader_close(tailer);
    chronfs_queue_close(parents->queue);
    return 0;
}

static int is_held(void *argument) {
    struct inherited *parents = argument;
    chronfs_writer *writer;
    chronfs_reader *reader;
    failed(chronfs_writer_open(parents->queue, NULL, &writer), CHRONFS_ERROR_BUSY, "fork", "another writer");
    IS(chronfs_error_pid(), getppid());
    failed(chronfs_reader_open(parents->queue, "r", NULL, &reader), CHRONFS_ERROR_BUSY, "r", "in use");
    IS(chronfs_error_pid(), getppid());
    return use_inherited(argument);
}

void a_forked_child_disturbs_nobody(void) {
    chronfs_queue *other = create("forked-reserve", NULL);
    struct inherited all = {.queue = create("forked", NULL)};
    void *place;
    all.writer = open_writer(all.queue);
    all.reader = open_reader(all.queue, "r");
    all.reserved = open_writer(other);
    IS(chronfs_writer_reserve(all.reserved, 1, 1, &place), 0);
    append(all.writer, "before");
    IS(in_child(use_inherited, &all), 0);
    /* The lock is still this process's, though a child has closed everything. */
    IS(in_child(is_held, &all), 0);
    append(all.writer, "after");
    memcpy(place, "x", 1);
    IS(chronfs_writer_commit(all.reserved, 1, NULL), 0);
    expect(all.reader, 1, "before");
    expect(all.reader, 2, "after");
    IS(chronfs_reader_commit(all.reader), 0);
    chronfs_writer_close(all.writer);
    chronfs_writer_close(all.reserved);
    chronfs_reader_close(all.reader);
    chronfs_queue_close(all.queue);
    chronfs_queue_close(other);
}

static volatile pid_t waiter;
static void *wait_unattended(void *queue) {
    chronfs_reader *reader = open_reader(queue, "r");
    waiter = gettid();
    chronfs_reader_wait(reader, -1);
    return NULL;
}

static void exit_under_a_reader(void *queue) {
    pthread_t thread;
    char path[64], state = 0;
    IS(pthread_create(&thread, NULL, wait_unattended, queue), 0);
    while (state != 'S') {
        sched_yield();
        snprintf(path, sizeof path, "/proc/self/task/%d/stat", waiter);
        FILE *file = waiter ? fopen(path, "r") : NULL;
        if (file == NULL) continue;
        IS(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
        fclose(file);
    }
    /* As an interpreter does it: destructors run, and the thread is still there. */
    exit(7);
}

void a_process_ends_with_a_blocked_reader(void) {
    chronfs_queue *queue = create("ended", NULL);
    chronfs_writer *writer;
    int status;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) exit_under_a_reader(queue);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    IS(WEXITSTATUS(status), 7);
    /* Nothing is held any more. */
    chronfs_reader *reader = open_reader(queue, "r");
    writer = open_writer(queue);
    chronfs_writer_close(writer);
    chronfs_reader_close(reader);
    chronfs_queue_close(queue);
}
