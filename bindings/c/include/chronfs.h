/*
 * chronfs for C. Made from bindings/c/src by cbindgen: see docs/c.md. C++ programs can include chronfs.hpp instead.
 *
 * Results: functions that return int return a negative code when they fail (enum chronfs_error), and chronfs_error_message()
 * says why. 0 and positive numbers are successes. Codes in comments are written without CHRONFS_ERROR_.
 *
 * Handles: pointers to types that are not defined here. Whoever opens one closes it. NULL as a handle, a text or a place for
 * a result that is needed is CHRONFS_ERROR_INVALID_INPUT. One thread at a time may use a handle; queues and stopper handles
 * can be used by all threads.
 *
 * Texts end with a zero byte. Times are in ns: since the epoch (UTC), or spans. Sizes are in bytes.
 */

#ifndef CHRONFS_H
#define CHRONFS_H

#include <stddef.h>
#include <stdint.h>

// What an entry is.
typedef enum chronfs_kind {
  // A message.
  CHRONFS_KIND_MESSAGE = 1,
  // Messages that are missing.
  CHRONFS_KIND_GAP = 2,
} chronfs_kind;

// What a function that returns `int` returns when it fails. Only after CHRONFS_ERROR_BUSY and CHRONFS_ERROR_FULL can the
// same call succeed later.
typedef enum chronfs_error {
  // A system call failed: see chronfs_error_errno().
  CHRONFS_ERROR_IO = -1,
  // The queue, reader or position does not exist.
  CHRONFS_ERROR_NOT_FOUND = -2,
  // It exists already.
  CHRONFS_ERROR_ALREADY_EXISTS = -3,
  // Another process, or another handle in this one, uses it: see chronfs_error_pid().
  CHRONFS_ERROR_BUSY = -4,
  // The queue's max_bytes is reached.
  CHRONFS_ERROR_FULL = -5,
  // The queue is a standby, or is not.
  CHRONFS_ERROR_WRONG_ROLE = -6,
  // An argument is not allowed, always or in this queue: also NULL where something must be given.
  CHRONFS_ERROR_INVALID_INPUT = -7,
  // A file's contents are not what they should be.
  CHRONFS_ERROR_DAMAGED = -8,
  // A file was written by a newer chronfs.
  CHRONFS_ERROR_UNSUPPORTED = -9,
  // The writer saw a failure after which it can't vouch for what it writes, or the handle was opened before a fork by
  // the process that this one was forked from: open a new one.
  CHRONFS_ERROR_POISONED = -10,
  // The wait was ended by its stopper.
  CHRONFS_ERROR_STOPPED = -11,
  // A mistake in chronfs: close the handle, and please report the text.
  CHRONFS_ERROR_INTERNAL = -12,
} chronfs_error;

// Where a reader starts.
typedef enum chronfs_start {
  // At its committed position; a new reader, a tailer or a scan at the first message that is still there.
  CHRONFS_START_RESUME = 0,
  // At the first message that is still there.
  CHRONFS_START_FIRST = 1,
  // After the newest message.
  CHRONFS_START_END = 2,
  // At the message with this sequence number, or the first one after it. If retention has removed it, a gap comes first.
  CHRONFS_START_SEQ = 3,
  // At the first message with this timestamp (ns since the epoch) or a later one.
  CHRONFS_START_TIME = 4,
} chronfs_start;

// What chronfs_writer_append_exact() has done.
typedef enum chronfs_exact {
  // The queue has an equal message with this number already.
  CHRONFS_EXACT_IGNORED = 0,
  // It was the next message, and has been appended.
  CHRONFS_EXACT_APPENDED = 1,
  // It has been appended after a gap: the messages between the one before and it will never come.
  CHRONFS_EXACT_APPENDED_AFTER_GAP = 2,
  // Its number has been passed, and nothing is left to compare it with.
  CHRONFS_EXACT_GONE = 3,
} chronfs_exact;

// What keeps a payload where it is.
typedef struct chronfs_kept chronfs_kept;

// A queue: a directory of files. Any number of threads may use it at the same time, and both sides of a fork.
typedef struct chronfs_queue chronfs_queue;

// Follows a queue: a registered reader, a tailer or a scan.
typedef struct chronfs_reader chronfs_reader;

// Ends waits, from any thread and from signal handlers; several readers and writers can share one.
typedef struct chronfs_stopper chronfs_stopper;

// Appends messages to a queue, which has one writer at a time. One thread at a time uses it. In a child that was forked
// while it was open all calls fail with CHRONFS_ERROR_POISONED; closing it there does not release the parent's lock.
typedef struct chronfs_writer chronfs_writer;

// The settings of a queue. Zeros are the defaults, so begin with `chronfs_settings settings = {0};`.
typedef struct chronfs_settings {
  // Size in bytes up to which segment files grow: 64 KiB to 1 GiB, a multiple of 4096. 0: 64 MiB.
  uint32_t segment_size;
  // Payloads start at multiples of this many bytes in memory: 8, 16 or 64. 0: 8.
  uint32_t payload_align;
  // Appends fail when the segments would take more bytes than this. 0: no limit.
  uint64_t max_bytes;
  // Retention keeps at most about this many bytes of segments that every reader has passed. 0: no such limit.
  uint64_t retain_bytes;
  // Retention keeps messages this long, in ns. 0: no such limit.
  uint64_t retain_age_ns;
  // Retention keeps at most this many segments that every reader has passed. 0: no such limit.
  uint64_t retain_segments;
  // A reader whose last heartbeat is older than this many ns no longer keeps segments. 0: it does for ever.
  uint64_t reader_ttl_ns;
  // A reader that lags by more than this many bytes no longer keeps segments; it gets a gap. 0: no limit.
  uint64_t max_lag_bytes;
  // A segment ends at each multiple of this many ns since the epoch. 0: by time only as retain_age_ns needs it.
  uint64_t roll_every_ns;
  // For later versions: zeros.
  uint64_t reserved[4];
} chronfs_settings;

// How a reader, tailer or scan is opened. Zeros are the defaults.
typedef struct chronfs_reader_options {
  // Where it starts: one of CHRONFS_START_RESUME, ...
  int start;
  // Not 0: checksums are not verified.
  int unverified;
  // The sequence number for CHRONFS_START_SEQ, the time for CHRONFS_START_TIME.
  uint64_t start_at;
  // For how many ns a wait polls before it sleeps; UINT64_MAX: it never sleeps. 0: 50 us.
  uint64_t spin_ns;
  // For later versions: zeros.
  uint64_t reserved[4];
} chronfs_reader_options;

// What comes next in a queue: a message, or messages that are missing.
typedef struct chronfs_entry {
  // CHRONFS_KIND_MESSAGE or CHRONFS_KIND_GAP. A gap has last_seq and reason, and neither time, type nor payload.
  enum chronfs_kind kind;
  // The message's type, 0 to 65534.
  uint16_t type;
  // The message's sequence number; of a gap, the first one that is missing.
  uint64_t seq;
  // Of a gap, the last sequence number that is missing; of a message, the same as seq.
  uint64_t last_seq;
  // When it was appended, in ns since the epoch; never less than that of the message before.
  uint64_t timestamp_ns;
  // The message's bytes, aligned as the queue's payload_align says. Not NULL, even without bytes. Lent from the mapped
  // file: chronfs_reader_next says for how long. Other processes that may write to the queue's files can change them at
  // any time: if you can't trust those, copy them before you check them.
  const void *payload;
  // How many bytes the payload has.
  size_t len;
  // Why messages are missing: "checksum", "segment", "lost", "retired", or, in a copy of another queue, a word that
  // begins with "upstream". A constant; NULL for a message.
  const char *reason;
  // The number of the segment that the message's record, or the damage, is in.
  uint32_t segment;
  // Where it starts in the segment's file, in bytes.
  uint32_t offset;
} chronfs_entry;

// How a writer is opened. Zeros are the defaults.
typedef struct chronfs_writer_options {
  // How long an append waits for room in a full queue before it fails, in ns. 0: not at all.
  uint64_t wait_when_full_ns;
  // Syncs to disk in the background after this many messages ... 0: never.
  uint64_t sync_messages;
  // ... or this many ns after the first unsynced one. Given together with sync_messages.
  uint64_t sync_interval_ns;
  // How far ahead of the clock an explicit timestamp may be, in ns. 0: 1 hour.
  uint64_t max_ahead_ns;
  // Not 0: opens a queue that is a standby, and no other one: for the program that copies another queue into it.
  int as_standby;
  // Not 0: after a power cut, continues after the last message that is still there: only for a program that appends the
  // lost messages again (chronfs_writer_append_exact) and has all of them.
  int refill;
  // For later versions: zeros.
  uint64_t reserved[4];
} chronfs_writer_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's version, for example "0.1.0". A constant.
const char *chronfs_version(void);

// The code of the last failure in this thread, one of CHRONFS_ERROR_IO, ...; 0 if there was none. A success does not
// change it.
int chronfs_error_code(void);

// What has failed, and why, in UTF-8, with the path that it concerns; "" if nothing has. It belongs to the library and is
// valid until the next failure in this thread, or its end.
const char *chronfs_error_message(void);

// The file or directory that the last failure in this thread concerns; NULL if it concerns none. Valid as long as the
// message.
const char *chronfs_error_path(void);

// The errno of the system call that failed, if the last failure in this thread is CHRONFS_ERROR_IO; else 0.
int chronfs_error_errno(void);

// The process that holds what the call needs, if the last failure in this thread is CHRONFS_ERROR_BUSY and it can be
// identified; else 0.
uint32_t chronfs_error_pid(void);

// Lets SIGBUS kill the process again. By default, opening a reader or writer installs a handler for the addresses of the
// library's mappings, so that a file that is truncated under them is an error. To be called before anything is opened.
//
// Returns 1; 0 if the handler is installed already, and stays.
int chronfs_disable_sigbus_handler(void);

// Releases a text that a function has returned as the caller's. NULL: nothing.
void chronfs_string_free(char *text);

// Opens the queue in the directory `path`. The caller closes it by chronfs_queue_close().
//
// Returns 0. Errors: NOT_FOUND if there is none, DAMAGED, UNSUPPORTED, IO.
int chronfs_queue_open(const char *path, struct chronfs_queue **queue);

// Creates a queue in the directory `path`, and missing parent directories. settings: NULL for the defaults. The caller
// closes it by chronfs_queue_close().
//
// Returns 0. Errors: ALREADY_EXISTS, INVALID_INPUT for settings that are not allowed, BUSY if another process is creating
// it, IO.
int chronfs_queue_create(const char *path,
                         const struct chronfs_settings *settings,
                         struct chronfs_queue **queue);

// As chronfs_queue_create(), for a queue whose first message gets the number first_seq: a copy of another queue
// (chronfs_writer_append_exact()).
//
// Errors: as chronfs_queue_create(); NOT_FOUND for 0, and for a number that no queue reaches.
int chronfs_queue_create_at(const char *path,
                            const struct chronfs_settings *settings,
                            uint64_t first_seq,
                            struct chronfs_queue **queue);

// Opens a queue, or creates it with these settings if there is none. An existing one keeps its own settings.
//
// Errors: as chronfs_queue_open() and chronfs_queue_create().
int chronfs_queue_open_or_create(const char *path,
                                 const struct chronfs_settings *settings,
                                 struct chronfs_queue **queue);

// Closes a queue. Its writers and readers stay open. NULL: nothing.
void chronfs_queue_close(struct chronfs_queue *queue);

// The sequence number of the first message that is still there, and the one that the next message gets. Either place
// may be NULL. Reads files.
//
// Returns 0. Errors: IO.
int chronfs_queue_bounds(const struct chronfs_queue *queue, uint64_t *first_seq, uint64_t *next_seq);

// All that is known of the queue as one line of JSON, as `chron-cli inspect --json` prints it: its messages, writer,
// settings, segments and readers. Takes no lock and changes nothing. READY and LEASE files that can't be read don't count.
// The text is the caller's: chronfs_string_free().
//
// Returns 0. Errors: IO. *json is NULL then.
int chronfs_queue_inspect(const struct chronfs_queue *queue,
                          char **json);

// Opens a registered reader, which keeps its position in the queue: chronfs_reader_commit() stores it, and retention keeps
// what it has not read. A new one is registered. name: UTF-8; options: NULL for the defaults. The caller closes it by
// chronfs_reader_close(). It keeps what it needs of the queue, which may be closed before it. In a child that was forked
// while it was open all calls fail with CHRONFS_ERROR_POISONED; closing it there does not release the parent's lock.
//
// Returns 0. Errors: BUSY if the reader is in use (chronfs_error_pid()), INVALID_INPUT, DAMAGED, IO.
int chronfs_reader_open(const struct chronfs_queue *queue,
                        const char *name,
                        const struct chronfs_reader_options *options,
                        struct chronfs_reader **reader);

// Opens a reader without a name: it stores nothing, and the permission to read is enough. If retention overtakes it, there
// is a gap. options: NULL for the defaults. The caller closes it by chronfs_reader_close().
//
// Returns 0. Errors: INVALID_INPUT, IO.
int chronfs_tailer_open(const struct chronfs_queue *queue,
                        const struct chronfs_reader_options *options,
                        struct chronfs_reader **tailer);

// Opens a tailer that ends after the messages that are there now: chronfs_reader_next() returns 0 then, and
// chronfs_reader_wait() is not allowed. options: NULL for the defaults. The caller closes it by chronfs_reader_close().
//
// Returns 0. Errors: INVALID_INPUT, IO.
int chronfs_scan_open(const struct chronfs_queue *queue,
                      const struct chronfs_reader_options *options,
                      struct chronfs_reader **scan);

// Closes a reader, tailer or scan, after which its payloads are invalid, but for those that are kept. NULL: nothing.
void chronfs_reader_close(struct chronfs_reader *reader);

// Stores the next message, or the next gap, in *entry. Does not wait. The payload is valid until the next call of this
// function on this reader, or its close; chronfs_reader_keep_payload() makes it valid for longer. Other calls don't affect it.
//
// Returns 1; 0 if there is none now (a scan: if it has ended). *entry is unchanged then. Errors: IO, POISONED in a forked
// child. Damage is a gap, not an error.
int chronfs_reader_next(struct chronfs_reader *reader,
                        struct chronfs_entry *entry);

// Waits until there is something to read, at most timeout_ns ns; negative: for ever. Signals that the process handles don't
// end it: their handlers may call chronfs_stopper_stop(), which does.
//
// Returns 1 if there is something, 0 if the time has passed. Errors: STOPPED; INVALID_INPUT for a scan; IO, also if the
// queue has been removed; POISONED in a forked child.
int chronfs_reader_wait(struct chronfs_reader *reader,
                        int64_t timeout_ns);

// Keeps the payload of the last message that chronfs_reader_next() has returned where it is until chronfs_kept_release(),
// also when the reader goes on or is closed. What is kept is the message's whole segment, with its space on the disk if
// retention removes it meanwhile: don't keep it for long. *kept is the caller's.
//
// Returns 0. Errors: INVALID_INPUT if the last entry was not a message.
int chronfs_reader_keep_payload(struct chronfs_reader *reader,
                                struct chronfs_kept **kept);

// Releases a payload that was kept. Any thread may do so. NULL: nothing.
void chronfs_kept_release(struct chronfs_kept *kept);

// Consumes everything that has been read: a registered reader of this name continues after it, even after a crash. Makes no
// system call; survives the process at once, and a power cut after chronfs_reader_commit_sync().
//
// Returns 0. Errors: INVALID_INPUT for a tailer or scan; POISONED in a forked child.
int chronfs_reader_commit(struct chronfs_reader *reader);

// Consumes the messages up to seq, and not those that were read after it.
//
// Returns 0. Errors: as chronfs_reader_commit(); NOT_FOUND if it has not been read yet, or if a later one has been committed.
int chronfs_reader_commit_to(struct chronfs_reader *reader,
                             uint64_t seq);

// As chronfs_reader_commit(), and returns when it is on disk.
//
// Errors: as chronfs_reader_commit(); IO.
int chronfs_reader_commit_sync(struct chronfs_reader *reader);

// Stores the sequence number that comes next in *seq.
//
// Returns 0.
int chronfs_reader_seq(struct chronfs_reader *reader, uint64_t *seq);

// Stores how many messages there are that it has not read in *messages. Reads files: not for each message.
//
// Returns 0. Errors: IO.
int chronfs_reader_lag(struct chronfs_reader *reader, uint64_t *messages);

// Moves to another place: start is one of CHRONFS_START_FIRST, ..., at as in chronfs_reader_options. A registered reader's
// position is not stored until it commits.
//
// Returns 0. Errors: INVALID_INPUT, IO.
int chronfs_reader_seek(struct chronfs_reader *reader,
                        int start,
                        uint64_t at);

// For programs that poll with chronfs_reader_next() and never wait: to be called about once a second. Shows that the reader
// is alive (reader_ttl_ns), and notices changes that nobody announces.
//
// Returns 0. Errors: IO if the queue has been removed; POISONED in a forked child.
int chronfs_reader_keep_alive(struct chronfs_reader *reader);

// From now on this stopper ends the reader's waits, instead of the one before. The stopper may be freed before the reader.
//
// Returns 0.
int chronfs_reader_set_stopper(struct chronfs_reader *reader,
                               const struct chronfs_stopper *stopper);

// Makes a stopper. The caller frees it by chronfs_stopper_free().
//
// Returns 0.
int chronfs_stopper_new(struct chronfs_stopper **stopper);

// Ends the present waits, and all later ones at once, until chronfs_stopper_clear(): they fail with CHRONFS_ERROR_STOPPED.
// May be called by any thread, and in signal handlers. NULL: nothing.
void chronfs_stopper_stop(const struct chronfs_stopper *stopper);

// Lets later waits wait again. NULL: nothing.
void chronfs_stopper_clear(const struct chronfs_stopper *stopper);

// Frees a stopper. What uses it can't be stopped any more. NULL: nothing.
void chronfs_stopper_free(struct chronfs_stopper *stopper);

// Becomes the queue's writer: takes the lock and repairs what a killed writer left. options: NULL for the defaults. The
// caller closes it by chronfs_writer_close(). It keeps what it needs of the queue, which may be closed before it. Its helper
// threads end with it.
//
// Returns 0. Errors: BUSY if there is another writer (chronfs_error_pid()), WRONG_ROLE, INVALID_INPUT, IO.
int chronfs_writer_open(const struct chronfs_queue *queue,
                        const struct chronfs_writer_options *options,
                        struct chronfs_writer **writer);

// Closes a writer; a record that is reserved is cancelled. What has been appended stays, and is not synced by this. NULL:
// nothing.
void chronfs_writer_close(struct chronfs_writer *writer);

// Appends a message of len bytes with the current time; payload may be NULL if len is 0. type: 0 to 65534. Its sequence
// number is stored in *seq, which may be NULL. Every reader can see it when this returns, and it survives the process; it
// survives a power cut after chronfs_writer_flush_sync().
//
// Returns 0. Errors: FULL, INVALID_INPUT for a payload that is too long (chronfs_writer_max_payload_len()) or type 65535, IO;
// nothing has been appended then. STOPPED if it waited for room. POISONED after a failure that can't be mended, and in a
// forked child.
int chronfs_writer_append(struct chronfs_writer *writer,
                          uint16_t type,
                          const void *payload,
                          size_t len,
                          uint64_t *seq);

// As chronfs_writer_append(), with an explicit timestamp in ns since the epoch: for imports and replays.
//
// Errors: as chronfs_writer_append(); INVALID_INPUT if the timestamp is before that of the newest message, or further ahead
// of the clock than the writer's max_ahead_ns.
int chronfs_writer_append_at(struct chronfs_writer *writer,
                             uint64_t timestamp_ns,
                             uint16_t type,
                             const void *payload,
                             size_t len,
                             uint64_t *seq);

// Appends a message of another queue with its number and timestamp (ns since the epoch): for copies of a queue. It may be
// called again with messages that the queue has already, and never assigns a number twice. seq: its number in the other
// queue; payload as for chronfs_writer_append().
//
// Returns one of CHRONFS_EXACT_IGNORED, ..., all of them 0 or more. Errors: as chronfs_writer_append_at(); INVALID_INPUT if
// another message has this number here: the queues have diverged; NOT_FOUND for a number that no queue reaches.
int chronfs_writer_append_exact(struct chronfs_writer *writer,
                                uint64_t seq,
                                uint64_t timestamp_ns,
                                uint16_t type,
                                const void *payload,
                                size_t len);

// Reserves a record, to be filled in place: *payload points to len bytes in the mapped file, which may be written until
// chronfs_writer_commit() or chronfs_writer_cancel(), one of which must follow: other calls on this writer but
// chronfs_writer_close() fail until then. What is in them at first is unspecified: fill in all that is committed.
//
// Returns 0. Errors: as chronfs_writer_append(). *payload is NULL then, and nothing is reserved.
int chronfs_writer_reserve(struct chronfs_writer *writer, uint16_t type, size_t len, void **payload);

// Appends the first len bytes of the record that is reserved, with the current time. Its sequence number is stored in *seq,
// which may be NULL.
//
// Returns 0. Errors: as chronfs_writer_append(); INVALID_INPUT if fewer bytes are reserved, or none. Nothing is reserved
// afterwards in any case.
int chronfs_writer_commit(struct chronfs_writer *writer,
                          size_t len,
                          uint64_t *seq);

// As chronfs_writer_commit(), with an explicit timestamp as for chronfs_writer_append_at().
int chronfs_writer_commit_at(struct chronfs_writer *writer, size_t len, uint64_t timestamp_ns, uint64_t *seq);

// Cancels the record that is reserved: nothing is appended.
//
// Returns 0. Errors: INVALID_INPUT if none is.
int chronfs_writer_cancel(struct chronfs_writer *writer);

// Returns when all that has been appended is on disk.
//
// Returns 0. Errors: POISONED if the disk has failed: what has been appended since the last success may be lost. IO.
int chronfs_writer_flush_sync(struct chronfs_writer *writer);

// Starts to write what has been appended to disk, and does not wait for it; nor does chronfs_writer_close(), if that has not
// begun by then.
//
// Returns 0. Errors: as chronfs_writer_flush_sync().
int chronfs_writer_flush_async(struct chronfs_writer *writer);

// Stores the sequence number that the next message gets in *seq.
//
// Returns 0.
int chronfs_writer_next_seq(struct chronfs_writer *writer, uint64_t *seq);

// Stores the time that a message would have if it were appended now, in ns since the epoch, in *now_ns. Messages that arrive
// together can share one reading of the clock, which is a third of what appending a short message costs: pass *now_ns to
// chronfs_writer_append_at() for each, as long as nothing else is appended between them.
//
// Returns 0.
int chronfs_writer_now_ns(struct chronfs_writer *writer,
                          uint64_t *now_ns);

// Stores the length of the longest payload that the queue takes, in bytes, in *len.
//
// Returns 0.
int chronfs_writer_max_payload_len(struct chronfs_writer *writer, size_t *len);

// From now on this stopper ends the writer's waits for room (wait_when_full_ns), instead of the one before. The stopper may
// be freed before the writer.
//
// Returns 0.
int chronfs_writer_set_stopper(struct chronfs_writer *writer,
                               const struct chronfs_stopper *stopper);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CHRONFS_H */
