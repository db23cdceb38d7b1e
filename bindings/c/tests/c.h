/* What the tests in C share, besides common.h. */
#ifndef C_H
#define C_H

#include <chronfs.h>

#include "common.h"

#define MS 1000000LL

static inline chronfs_queue *create(const char *name, const chronfs_settings *settings) {
    chronfs_queue *queue;
    IS(chronfs_queue_create(at(name), settings, &queue), 0);
    return queue;
}

static inline chronfs_writer *open_writer(const chronfs_queue *queue) {
    chronfs_writer *writer;
    IS(chronfs_writer_open(queue, NULL, &writer), 0);
    return writer;
}

static inline chronfs_reader *open_reader(const chronfs_queue *queue, const char *name) {
    chronfs_reader *reader;
    IS(chronfs_reader_open(queue, name, NULL, &reader), 0);
    return reader;
}

static inline void append(chronfs_writer *writer, const char *text) {
    IS(chronfs_writer_append(writer, 1, text, strlen(text), NULL), 0);
}

static inline void expect(chronfs_reader *reader, uint64_t seq, const char *text) {
    chronfs_entry entry;
    IS(chronfs_reader_next(reader, &entry), 1);
    IS(entry.kind, CHRONFS_KIND_MESSAGE);
    IS(entry.seq, seq);
    IS(entry.last_seq, seq);
    IS(entry.len, strlen(text));
    CHECK(memcmp(entry.payload, text, entry.len) == 0);
    CHECK(entry.reason == NULL);
}

static inline void failed(int result, int code, const char *path, const char *text) {
    IS(result, code);
    IS(chronfs_error_code(), code);
    CHECK(strstr(chronfs_error_message(), text));
    if (path) {
        CHECK(chronfs_error_path() && strstr(chronfs_error_path(), path));
    } else {
        CHECK(chronfs_error_path() == NULL);
    }
}

/* The tests of process.c. */
void each_thread_has_its_handle(void);
void another_thread_ends_waits(void);
void signals_do_not_end_waits(void);
void a_forked_child_disturbs_nobody(void);
void a_process_ends_with_a_blocked_reader(void);

#endif
