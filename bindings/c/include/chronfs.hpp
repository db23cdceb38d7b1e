// chronfs for C++17: classes over chronfs.h, which says what the functions do. Handles close themselves, and can be
// moved but not copied. Failures are exceptions; gaps are entries.
#ifndef CHRONFS_HPP
#define CHRONFS_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "chronfs.h"

namespace chronfs {

using settings = chronfs_settings;
using writer_options = chronfs_writer_options;
using reader_options = chronfs_reader_options;

// A failed call: what(), its code, and the path that it concerns ("" if none).
class error : public std::runtime_error {
public:
    error() : std::runtime_error(chronfs_error_message()) {}
    int code = chronfs_error_code();
    int system_errno = chronfs_error_errno();
    std::uint32_t pid = chronfs_error_pid();
    std::string path = chronfs_error_path() ? chronfs_error_path() : "";
};

inline int check(int result) { return result < 0 ? throw error() : result; }

// Calls a function whose last argument is the place for its result.
template <class T, class... Parameters, class... Arguments>
T result_of(int (*call)(Parameters...), Arguments... arguments) {
    T result{};
    check(call(arguments..., &result));
    return result;
}

// Owns what C closes with a function.
template <class T, void (*Close)(T *)> class handle {
    struct closer {
        void operator()(T *raw) const { Close(raw); }
    };
    std::unique_ptr<T, closer> raw_;

public:
    explicit handle(T *raw) : raw_(raw) {}
    T *get() const { return raw_.get(); }
};

// A message, or messages that are missing.
struct entry : chronfs_entry {
    bool is_gap() const { return kind == CHRONFS_KIND_GAP; }
    // Valid until the reader's next entry, unless reader::keep_payload() keeps it.
    std::string_view bytes() const { return {static_cast<const char *>(payload), len}; }
};

// Keeps a payload where it is.
using kept = handle<chronfs_kept, chronfs_kept_release>;

class stopper : public handle<chronfs_stopper, chronfs_stopper_free> {
public:
    stopper() : handle(result_of<chronfs_stopper *>(chronfs_stopper_new)) {}
    void stop() const { chronfs_stopper_stop(get()); }
    void clear() const { chronfs_stopper_clear(get()); }
};

// A registered reader, a tailer or a scan.
class reader : public handle<chronfs_reader, chronfs_reader_close> {
public:
    using handle::handle;
    bool next(entry &place) { return check(chronfs_reader_next(get(), &place)) == 1; }
    bool wait() { return check(chronfs_reader_wait(get(), -1)) == 1; }
    bool wait(std::chrono::nanoseconds timeout) {
        return check(chronfs_reader_wait(get(), timeout.count() < 0 ? 0 : timeout.count())) == 1;
    }
    kept keep_payload() { return kept(result_of<chronfs_kept *>(chronfs_reader_keep_payload, get())); }
    void commit() { check(chronfs_reader_commit(get())); }
    void commit_to(std::uint64_t seq) { check(chronfs_reader_commit_to(get(), seq)); }
    void commit_sync() { check(chronfs_reader_commit_sync(get())); }
    void seek(chronfs_start start, std::uint64_t at = 0) { check(chronfs_reader_seek(get(), start, at)); }
    void keep_alive() { check(chronfs_reader_keep_alive(get())); }
    void set_stopper(const stopper &used) { check(chronfs_reader_set_stopper(get(), used.get())); }
    std::uint64_t seq() const { return result_of<std::uint64_t>(chronfs_reader_seq, get()); }
    std::uint64_t lag() const { return result_of<std::uint64_t>(chronfs_reader_lag, get()); }

    // What is there now: for (const chronfs::entry &entry : scan).
    class iterator {
        reader *reader_;
        entry entry_{};

    public:
        explicit iterator(reader *from) : reader_(from) { ++*this; }
        const entry &operator*() const { return entry_; }
        const entry *operator->() const { return &entry_; }
        iterator &operator++() {
            if (reader_ && !reader_->next(entry_)) reader_ = nullptr;
            return *this;
        }
        bool operator!=(const iterator &other) const { return reader_ != other.reader_; }
    };
    iterator begin() { return iterator(this); }
    iterator end() { return iterator(nullptr); }
};

class writer : public handle<chronfs_writer, chronfs_writer_close> {
public:
    using handle::handle;
    std::uint64_t append(std::uint16_t type, std::string_view bytes) {
        return result_of<std::uint64_t>(chronfs_writer_append, get(), type, bytes.data(), bytes.size());
    }
    std::uint64_t append_at(std::uint64_t timestamp_ns, std::uint16_t type, std::string_view bytes) {
        return result_of<std::uint64_t>(chronfs_writer_append_at, get(), timestamp_ns, type, bytes.data(), bytes.size());
    }
    chronfs_exact append_exact(std::uint64_t seq, std::uint64_t timestamp_ns, std::uint16_t type, std::string_view bytes) {
        return static_cast<chronfs_exact>(
            check(chronfs_writer_append_exact(get(), seq, timestamp_ns, type, bytes.data(), bytes.size())));
    }
    // Memory of the mapped file, to be filled in; then commit or cancel.
    void *reserve(std::uint16_t type, std::size_t len) {
        return result_of<void *>(chronfs_writer_reserve, get(), type, len);
    }
    std::uint64_t commit(std::size_t len) { return result_of<std::uint64_t>(chronfs_writer_commit, get(), len); }
    std::uint64_t commit_at(std::size_t len, std::uint64_t timestamp_ns) {
        return result_of<std::uint64_t>(chronfs_writer_commit_at, get(), len, timestamp_ns);
    }
    void cancel() { check(chronfs_writer_cancel(get())); }
    void flush_sync() { check(chronfs_writer_flush_sync(get())); }
    void flush_async() { check(chronfs_writer_flush_async(get())); }
    void set_stopper(const stopper &used) { check(chronfs_writer_set_stopper(get(), used.get())); }
    std::uint64_t next_seq() const { return result_of<std::uint64_t>(chronfs_writer_next_seq, get()); }
    std::uint64_t now_ns() { return result_of<std::uint64_t>(chronfs_writer_now_ns, get()); }
    std::size_t max_payload_len() const { return result_of<std::size_t>(chronfs_writer_max_payload_len, get()); }
};

class queue : public handle<chronfs_queue, chronfs_queue_close> {
    using handle::handle;

public:
    explicit queue(const std::string &path) : handle(result_of<chronfs_queue *>(chronfs_queue_open, path.c_str())) {}
    static queue create(const std::string &path, const settings &wanted = {}) {
        return queue(result_of<chronfs_queue *>(chronfs_queue_create, path.c_str(), &wanted));
    }
    static queue create_at(const std::string &path, std::uint64_t first_seq, const settings &wanted = {}) {
        return queue(result_of<chronfs_queue *>(chronfs_queue_create_at, path.c_str(), &wanted, first_seq));
    }
    static queue open_or_create(const std::string &path, const settings &wanted = {}) {
        return queue(result_of<chronfs_queue *>(chronfs_queue_open_or_create, path.c_str(), &wanted));
    }
    class writer writer(const writer_options &options = {}) const {
        return chronfs::writer(result_of<chronfs_writer *>(chronfs_writer_open, get(), &options));
    }
    class reader reader(const std::string &name, const reader_options &options = {}) const {
        return chronfs::reader(result_of<chronfs_reader *>(chronfs_reader_open, get(), name.c_str(), &options));
    }
    class reader tailer(const reader_options &options = {}) const {
        return chronfs::reader(result_of<chronfs_reader *>(chronfs_tailer_open, get(), &options));
    }
    class reader scan(const reader_options &options = {}) const {
        return chronfs::reader(result_of<chronfs_reader *>(chronfs_scan_open, get(), &options));
    }
    std::string inspect() const {
        handle<char, chronfs_string_free> json(result_of<char *>(chronfs_queue_inspect, get()));
        return json.get();
    }
};

} // namespace chronfs

#endif // CHRONFS_HPP
