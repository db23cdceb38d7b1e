/* The library as a C program sees it. Run by scripts/c.sh: plainly, under valgrind, with AddressSanitizer. */
#define _GNU_SOURCE
#include "c.h"

#include <errno.h>

const char *root;

static void messages_pass_through(void) {
    chronfs_settings settings = {.segment_size = 1 << 16, .payload_align = 64};
    chronfs_queue *queue = create("messages", &settings), *again;
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *reader = open_reader(queue, "r"), *tailer, *scan;
    chronfs_reader_options options = {.start = CHRONFS_START_SEQ, .start_at = 3};
    chronfs_entry entry;
    uint64_t seq, first;
    size_t len;
    char *json;

    IS(chronfs_writer_append(writer, 7, "one", 3, &seq), 0);
    IS(seq, 1);
    uint64_t later_ns = 0;
    IS(chronfs_reader_next(reader, &entry), 1);
    IS(entry.type, 7);
    IS((uintptr_t)entry.payload % 64, 0);
    later_ns = entry.timestamp_ns + 1000;
    IS(chronfs_writer_append_at(writer, later_ns, 8, "two", 3, &seq), 0);
    IS(chronfs_writer_append(writer, 0, NULL, 0, &seq), 0);
    IS(seq, 3);
    IS(chronfs_writer_now_ns(writer, &seq), 0);
    CHECK(seq >= later_ns);
    IS(chronfs_writer_next_seq(writer, &seq), 0);
    IS(seq, 4);
    IS(chronfs_writer_max_payload_len(writer, &len), 0);
    CHECK(len > 60000 && len < 65536);
    IS(chronfs_writer_flush_async(writer), 0);
    IS(chronfs_writer_flush_sync(writer), 0);

    IS(chronfs_reader_commit(reader), 0);
    IS(chronfs_reader_lag(reader, &seq), 0);
    IS(seq, 2);
    IS(chronfs_reader_next(reader, &entry), 1);
    IS(entry.timestamp_ns, later_ns);
    chronfs_reader_close(reader);
    reader = open_reader(queue, "r");
    expect(reader, 2, "two");
    expect(reader, 3, "");
    IS(chronfs_reader_next(reader, &entry), 0);
    IS(chronfs_reader_wait(reader, 0), 0);
    IS(chronfs_reader_wait(reader, 5 * MS), 0);
    IS(chronfs_reader_commit_to(reader, 2), 0);
    IS(chronfs_reader_commit_to(reader, 1), CHRONFS_ERROR_NOT_FOUND);
    IS(chronfs_reader_commit_sync(reader), 0);
    IS(chronfs_reader_keep_alive(reader), 0);
    IS(chronfs_reader_seek(reader, CHRONFS_START_FIRST, 0), 0);
    IS(chronfs_reader_seq(reader, &seq), 0);
    IS(seq, 1);
    expect(reader, 1, "one");

    IS(chronfs_scan_open(queue, &options, &scan), 0);
    append(writer, "not in the scan");
    expect(scan, 3, "");
    IS(chronfs_reader_next(scan, &entry), 0);
    IS(chronfs_reader_next(scan, &entry), 0);
    options = (chronfs_reader_options){.start = CHRONFS_START_TIME, .start_at = later_ns};
    IS(chronfs_tailer_open(queue, &options, &tailer), 0);
    expect(tailer, 2, "two");
    IS(chronfs_reader_wait(tailer, -1), 1);

    IS(chronfs_queue_open(at("messages"), &again), 0);
    IS(chronfs_queue_bounds(again, &first, &seq), 0);
    IS(first, 1);
    IS(seq, 5);
    IS(chronfs_queue_inspect(again, &json), 0);
    CHECK(strstr(json, "\"segment_size\":65536") && strstr(json, "\"last_seq\":4") && strstr(json, "\"name\":\"r\""));
    chronfs_string_free(json);
    /* In any order. */
    chronfs_queue_close(queue);
    chronfs_queue_close(again);
    append(writer, "still open");
    chronfs_writer_close(writer);
    chronfs_reader_close(scan);
    chronfs_reader_close(tailer);
    chronfs_reader_close(reader);
    IS(chronfs_queue_open_or_create(at("messages"), NULL, &queue), 0);
    chronfs_queue_close(queue);
    IS(strcmp(chronfs_version(), VERSION), 0);
}

static void records_are_filled_in_place(void) {
    chronfs_queue *queue = create("reserve", NULL);
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *reader = open_reader(queue, "r");
    chronfs_entry entry;
    void *place;
    uint64_t seq;

    IS(chronfs_writer_reserve(writer, 1, 100, &place), 0);
    memcpy(place, "hello, world", 12);
    IS(chronfs_writer_append(writer, 1, "x", 1, NULL), CHRONFS_ERROR_INVALID_INPUT);
    IS(chronfs_writer_reserve(writer, 1, 1, &place), CHRONFS_ERROR_INVALID_INPUT);
    IS(chronfs_writer_commit(writer, 5, &seq), 0);
    IS(seq, 1);
    IS(chronfs_writer_commit(writer, 5, &seq), CHRONFS_ERROR_INVALID_INPUT);
    IS(chronfs_writer_reserve(writer, 1, 10, &place), 0);
    IS(chronfs_writer_cancel(writer), 0);
    IS(chronfs_writer_cancel(writer), CHRONFS_ERROR_INVALID_INPUT);
    IS(chronfs_writer_reserve(writer, 1, 10, &place), 0);
    IS(chronfs_writer_commit(writer, 11, NULL), CHRONFS_ERROR_INVALID_INPUT);
    IS(chronfs_writer_reserve(writer, 1, 2, &place), 0);
    memcpy(place, "at", 2);
    IS(chronfs_writer_commit_at(writer, 2, UINT64_C(4000000000000000000), NULL), CHRONFS_ERROR_INVALID_INPUT);
    append(writer, "two");
    IS(chronfs_writer_reserve(writer, 1, 1 << 30, &place), CHRONFS_ERROR_INVALID_INPUT);
    CHECK(place == NULL);
    append(writer, "three");
    expect(reader, 1, "hello");
    expect(reader, 2, "two");
    expect(reader, 3, "three");
    IS(chronfs_reader_next(reader, &entry), 0);
    IS(chronfs_writer_reserve(writer, 1, 10, &place), 0);
    chronfs_writer_close(writer);
    IS(chronfs_reader_next(reader, &entry), 0);
    chronfs_reader_close(reader);
    chronfs_queue_close(queue);
}

static void copies_keep_numbers_and_gaps(void) {
    chronfs_queue *queue;
    IS(chronfs_queue_create_at(at("copy"), NULL, 500, &queue), 0);
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *scan;
    chronfs_entry entry;
    IS(chronfs_writer_append_exact(writer, 500, 1000, 1, "hello", 5), CHRONFS_EXACT_APPENDED);
    IS(chronfs_writer_append_exact(writer, 500, 1000, 1, "hello", 5), CHRONFS_EXACT_IGNORED);
    IS(chronfs_writer_append_exact(writer, 503, 2000, 1, "world", 5), CHRONFS_EXACT_APPENDED_AFTER_GAP);
    IS(chronfs_writer_append_exact(writer, 501, 1500, 1, "late", 4), CHRONFS_EXACT_GONE);
    IS(chronfs_writer_append_exact(writer, 500, 1000, 1, "HELLO", 5), CHRONFS_ERROR_INVALID_INPUT);
    CHECK(strstr(chronfs_error_message(), "diverged"));
    IS(chronfs_scan_open(queue, NULL, &scan), 0);
    expect(scan, 500, "hello");
    IS(chronfs_reader_next(scan, &entry), 1);
    IS(entry.kind, CHRONFS_KIND_GAP);
    IS(entry.seq, 501);
    IS(entry.last_seq, 502);
    CHECK(strcmp(entry.reason, "upstream") == 0 && entry.payload == NULL && entry.len == 0);
    expect(scan, 503, "world");
    chronfs_reader_close(scan);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
}

static void wrong_arguments_are_errors(void) {
    const int invalid = CHRONFS_ERROR_INVALID_INPUT;
    chronfs_queue *queue = create("arguments", NULL), *none = (chronfs_queue *)1;
    chronfs_writer *writer = open_writer(queue), *second = (chronfs_writer *)1;
    chronfs_reader *reader = open_reader(queue, "r"), *other = (chronfs_reader *)1, *scan;
    chronfs_stopper *stopper;
    chronfs_settings settings = {.segment_size = 12345};
    chronfs_reader_options options = {.start = 99};
    chronfs_writer_options writing = {.sync_messages = 1};
    chronfs_kept *kept;
    chronfs_entry entry;

    failed(chronfs_queue_open(NULL, &none), invalid, NULL, "path is NULL");
    CHECK(none == NULL);
    failed(chronfs_queue_open(at("nowhere"), &none), CHRONFS_ERROR_NOT_FOUND, "nowhere", "not a queue");
    failed(chronfs_queue_open(at("arguments"), NULL), invalid, NULL, "place");
    failed(chronfs_queue_create(at("arguments"), NULL, &none), CHRONFS_ERROR_ALREADY_EXISTS, "arguments", "exists");
    failed(chronfs_queue_create(at("other"), &settings, &none), invalid, NULL, "segment size");
    settings = (chronfs_settings){.reserved = {0, 0, 0, 1}};
    failed(chronfs_queue_create(at("other"), &settings, &none), invalid, NULL, "reserved");
    failed(chronfs_queue_create_at(at("other"), NULL, 0, &none), CHRONFS_ERROR_NOT_FOUND, "other", "0");
    failed(chronfs_queue_create("/dev/null/queue", NULL, &none), CHRONFS_ERROR_IO, "/dev/null", "/dev/null");
    IS(chronfs_error_errno(), ENOTDIR);
    failed(chronfs_queue_bounds(NULL, NULL, NULL), invalid, NULL, "queue is NULL");
    IS(chronfs_queue_bounds(queue, NULL, NULL), 0);
    failed(chronfs_queue_inspect(queue, NULL), invalid, NULL, "place");

    failed(chronfs_writer_open(queue, NULL, &second), CHRONFS_ERROR_BUSY, "arguments", "this process");
    CHECK(second == NULL);
    IS(chronfs_error_pid(), getpid());
    failed(chronfs_writer_open(queue, &writing, &second), invalid, NULL, "sync_interval_ns");
    failed(chronfs_writer_open(NULL, NULL, &second), invalid, NULL, "queue is NULL");
    failed(chronfs_writer_append(NULL, 1, "x", 1, NULL), invalid, NULL, "writer is NULL");
    failed(chronfs_writer_append(writer, 1, NULL, 1, NULL), invalid, NULL, "payload is NULL");
    failed(chronfs_writer_append(writer, 1, "x", SIZE_MAX, NULL), invalid, NULL, "longer");
    failed(chronfs_writer_append(writer, 65535, "x", 1, NULL), invalid, NULL, "reserved");
    failed(chronfs_writer_append_at(writer, UINT64_MAX, 1, "x", 1, NULL), invalid, NULL, "ahead");
    failed(chronfs_writer_append_exact(writer, UINT64_MAX, 1, 1, "x", 1), CHRONFS_ERROR_NOT_FOUND, "arguments", "message");
    failed(chronfs_writer_reserve(writer, 1, 1, NULL), invalid, NULL, "place");
    failed(chronfs_writer_commit(NULL, 1, NULL), invalid, NULL, "writer is NULL");
    failed(chronfs_writer_cancel(NULL), invalid, NULL, "writer is NULL");
    failed(chronfs_writer_flush_sync(NULL), invalid, NULL, "writer is NULL");
    failed(chronfs_writer_set_stopper(writer, NULL), invalid, NULL, "stopper is NULL");
    IS(chronfs_writer_next_seq(writer, NULL), 0);
    failed(chronfs_writer_now_ns(NULL, NULL), invalid, NULL, "writer is NULL");

    failed(chronfs_reader_open(queue, "r", NULL, &other), CHRONFS_ERROR_BUSY, "r", "in use");
    CHECK(other == NULL);
    failed(chronfs_reader_open(queue, NULL, NULL, &other), invalid, NULL, "name is NULL");
    failed(chronfs_reader_open(queue, "\xff", NULL, &other), invalid, NULL, "UTF-8");
    failed(chronfs_reader_open(queue, "a/b", NULL, &other), invalid, NULL, "name");
    failed(chronfs_tailer_open(queue, &options, &other), invalid, NULL, "99");
    failed(chronfs_reader_next(NULL, &entry), invalid, NULL, "reader is NULL");
    failed(chronfs_reader_next(reader, NULL), invalid, NULL, "place");
    failed(chronfs_reader_wait(NULL, 0), invalid, NULL, "reader is NULL");
    failed(chronfs_reader_seek(reader, CHRONFS_START_RESUME, 0), invalid, NULL, "RESUME");
    failed(chronfs_reader_keep_payload(reader, &kept), invalid, NULL, "not a message");
    CHECK(kept == NULL);
    IS(chronfs_scan_open(queue, NULL, &scan), 0);
    failed(chronfs_reader_wait(scan, 0), invalid, NULL, "scan");
    failed(chronfs_reader_commit(scan), invalid, NULL, "position");
    failed(chronfs_stopper_new(NULL), invalid, NULL, "place");
    IS(chronfs_stopper_new(&stopper), 0);

    chronfs_queue_close(NULL);
    chronfs_writer_close(NULL);
    chronfs_reader_close(NULL);
    chronfs_kept_release(NULL);
    chronfs_string_free(NULL);
    chronfs_stopper_free(NULL);
    chronfs_stopper_stop(NULL);
    chronfs_stopper_clear(NULL);
    IS(chronfs_disable_sigbus_handler(), 0);
    chronfs_stopper_free(stopper);
    chronfs_reader_close(scan);
    chronfs_reader_close(reader);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
}

/* A queue whose retention keeps little. */
static const chronfs_settings short_lived = {.segment_size = 1 << 16, .retain_segments = 1};

/* Appends until the first message that is there is a later one than this. */
static void retire(chronfs_queue *queue, chronfs_writer *writer, uint64_t seq) {
    static const char filler[4096];
    uint64_t first;
    do {
        IS(chronfs_writer_append(writer, 2, filler, sizeof filler, NULL), 0);
        IS(chronfs_queue_bounds(queue, &first, NULL), 0);
    } while (first <= seq);
}

static void payloads_stay_until_the_next_one(void) {
    chronfs_queue *queue = create("lent", &short_lived);
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *tailer;
    chronfs_entry entry;

    append(writer, "first");
    IS(chronfs_tailer_open(queue, NULL, &tailer), 0);
    IS(chronfs_reader_next(tailer, &entry), 1);
    retire(queue, writer, 100);
    /* Up to where its segment ends, whose file is gone. A wait goes on to another one, and the last payload stays. */
    do {
        char last[4];
        memcpy(last, entry.payload, sizeof last);
        IS(chronfs_reader_wait(tailer, -1), 1);
        CHECK(memcmp(entry.payload, last, sizeof last) == 0);
        IS(chronfs_reader_next(tailer, &entry), 1);
    } while (entry.kind == CHRONFS_KIND_MESSAGE);
    CHECK(entry.seq > 2 && entry.seq < 100 && strcmp(entry.reason, "retired") == 0);
    IS(chronfs_reader_next(tailer, &entry), 1);
    IS(entry.kind, CHRONFS_KIND_MESSAGE);
    IS(entry.len, 4096);
    chronfs_reader_close(tailer);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
}

static void what_is_kept_outlives_segments_and_readers(void) {
    chronfs_queue *queue = create("kept", &short_lived);
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *tailer;
    chronfs_kept *kept, *same;
    chronfs_entry first, entry;

    append(writer, "kept");
    append(writer, "too");
    IS(chronfs_tailer_open(queue, NULL, &tailer), 0);
    IS(chronfs_reader_next(tailer, &first), 1);
    IS(chronfs_reader_keep_payload(tailer, &kept), 0);
    IS(chronfs_reader_next(tailer, &entry), 1);
    IS(chronfs_reader_keep_payload(tailer, &same), 0);
    chronfs_kept_release(same);
    retire(queue, writer, 100);
    while (entry.kind == CHRONFS_KIND_MESSAGE) IS(chronfs_reader_next(tailer, &entry), 1);
    IS(chronfs_reader_keep_payload(tailer, &same), CHRONFS_ERROR_INVALID_INPUT);
    CHECK(same == NULL);
    chronfs_reader_close(tailer);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
    CHECK(first.len == 4 && memcmp(first.payload, "kept", 4) == 0);
    chronfs_kept_release(kept);
}

/* Changes a byte of the queue's first segment, or cuts that after so many bytes. */
static void damage(const char *name, const char *payload, off_t cut) {
    char path[4200], bytes[1 << 16];
    snprintf(path, sizeof path, "%s/000000000.q", at(name));
    int file = open(path, O_RDWR);
    CHECK(file >= 0);
    if (payload) {
        ssize_t count = pread(file, bytes, sizeof bytes, 0);
        CHECK(count > 0);
        char *found = memmem(bytes, (size_t)count, payload, strlen(payload));
        CHECK(found);
        IS(pwrite(file, "!", 1, found - bytes), 1);
    } else {
        IS(ftruncate(file, cut), 0);
    }
    close(file);
}

static void damage_is_a_gap(void) {
    chronfs_queue *queue = create("damaged", NULL);
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *scan;
    chronfs_entry entry;
    append(writer, "first");
    append(writer, "second");
    append(writer, "third");
    damage("damaged", "second", 0);
    IS(chronfs_scan_open(queue, NULL, &scan), 0);
    expect(scan, 1, "first");
    IS(chronfs_reader_next(scan, &entry), 1);
    IS(entry.kind, CHRONFS_KIND_GAP);
    IS(entry.seq, 2);
    IS(entry.last_seq, 2);
    CHECK(strcmp(entry.reason, "checksum") == 0);
    expect(scan, 3, "third");
    IS(chronfs_reader_next(scan, &entry), 0);
    chronfs_reader_close(scan);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
}

static void a_file_that_is_cut_short_kills_nobody(void) {
    chronfs_queue *queue = create("cut", NULL);
    chronfs_writer *writer = open_writer(queue);
    chronfs_reader *tailer;
    chronfs_entry entry;
    append(writer, "hello");
    append(writer, "world");
    IS(chronfs_tailer_open(queue, NULL, &tailer), 0);
    IS(chronfs_reader_next(tailer, &entry), 1);
    damage("cut", NULL, 0);
    /* What is missing reads as zeros. */
    CHECK(memcmp(entry.payload, "\0\0\0\0\0", 5) == 0);
    IS(chronfs_reader_next(tailer, &entry) <= 0 || entry.kind == CHRONFS_KIND_GAP, 1);
    chronfs_reader_close(tailer);
    chronfs_writer_close(writer);
    chronfs_queue_close(queue);
}

#define TEST(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(messages_pass_through),
    TEST(records_are_filled_in_place),
    TEST(copies_keep_numbers_and_gaps),
    TEST(wrong_arguments_are_errors),
    TEST(payloads_stay_until_the_next_one),
    TEST(what_is_kept_outlives_segments_and_readers),
    TEST(damage_is_a_gap),
    TEST(a_file_that_is_cut_short_kills_nobody),
    TEST(each_thread_has_its_handle),
    TEST(another_thread_ends_waits),
    TEST(signals_do_not_end_waits),
    TEST(a_forked_child_disturbs_nobody),
    TEST(a_process_ends_with_a_blocked_reader),
};

int main(int argc, char **argv) {
    CHECK(argc == 2);
    root = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        printf("%s\n", tests[i].name);
        tests[i].run();
    }
    return 0;
}
