/* Appends a message to a queue, and prints those that a reader named "example" has not seen yet.
 *
 *   cc -o example example.c $(pkg-config --cflags --libs chronfs) && ./example /srv/bus/ticks hello
 */
#include <chronfs.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int check(int result) {
    if (result < 0) fprintf(stderr, "%s\n", chronfs_error_message());
    return result;
}

int main(int argc, char **argv) {
    chronfs_queue *queue = NULL;
    chronfs_writer *writer = NULL;
    chronfs_reader *reader = NULL;
    chronfs_entry entry;
    int result = -1;
    if (argc != 3) return 2;
    if (check(chronfs_queue_open_or_create(argv[1], NULL, &queue)) < 0) goto done;
    if (check(chronfs_reader_open(queue, "example", NULL, &reader)) < 0) goto done;
    if (check(chronfs_writer_open(queue, NULL, &writer)) < 0) goto done;
    if (check(chronfs_writer_append(writer, 7, argv[2], strlen(argv[2]), NULL)) < 0) goto done;
    while ((result = check(chronfs_reader_next(reader, &entry))) == 1) {
        if (entry.kind == CHRONFS_KIND_GAP)
            printf("%" PRIu64 " to %" PRIu64 " are missing: %s\n", entry.seq, entry.last_seq, entry.reason);
        else
            printf("%" PRIu64 ": %.*s\n", entry.seq, (int)entry.len, (const char *)entry.payload);
    }
    if (result == 0) result = check(chronfs_reader_commit(reader));
done:
    chronfs_writer_close(writer);
    chronfs_reader_close(reader);
    chronfs_queue_close(queue);
    return result < 0;
}
