/* The loops of speed.rs in C, for comparison: speed-c CASE QUEUE COUNT prints how many ns they took. */
#include <chronfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LEN = 64 };

static void check(int result) {
    if (result >= 0) return;
    fprintf(stderr, "%s\n", chronfs_error_message());
    exit(1);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv) {
    chronfs_queue *queue;
    chronfs_entry entry;
    char payload[LEN] = {1};
    long long start_ns;
    unsigned long long sum = 0;
    volatile unsigned long long sink;
    if (argc != 4) return 2;
    long count = atol(argv[3]);
    check(chronfs_queue_open(argv[2], &queue));
    if (strcmp(argv[1], "scan") == 0) {
        chronfs_reader *scan;
        check(chronfs_scan_open(queue, NULL, &scan));
        start_ns = now_ns();
        while (chronfs_reader_next(scan, &entry) == 1) {
            sum += *(const unsigned char *)entry.payload;
            count--;
        }
        start_ns = now_ns() - start_ns;
        sink = sum;
        (void)sink;
        if (count != 0) return 3;
        chronfs_reader_close(scan);
    } else {
        chronfs_writer *writer;
        void *place;
        check(chronfs_writer_open(queue, NULL, &writer));
        start_ns = now_ns();
        if (strcmp(argv[1], "append") == 0) {
            for (long i = 0; i < count; i++) check(chronfs_writer_append(writer, 1, payload, LEN, NULL));
        } else {
            for (long i = 0; i < count; i++) {
                check(chronfs_writer_reserve(writer, 1, LEN, &place));
                memcpy(place, payload, LEN);
                check(chronfs_writer_commit(writer, LEN, NULL));
            }
        }
        start_ns = now_ns() - start_ns;
        chronfs_writer_close(writer);
    }
    chronfs_queue_close(queue);
    printf("%lld\n", start_ns);
    return 0;
}
