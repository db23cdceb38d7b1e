// The library as a C++ program sees it. Run by scripts/c.sh as test.c is.
#include <chronfs.hpp>

#include "common.h"

#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

template <class T> constexpr bool moves_only = std::is_nothrow_move_constructible_v<T> && !std::is_copy_constructible_v<T>;
static_assert(moves_only<chronfs::queue> && moves_only<chronfs::writer> && moves_only<chronfs::reader>);
static_assert(moves_only<chronfs::stopper> && moves_only<chronfs::kept>);

const char *root;

// The error that a call must fail with.
template <class F> static chronfs::error error_of(F call) {
    try {
        call();
    } catch (const chronfs::error &error) {
        return error;
    }
    FAIL("no error");
}

static void messages_pass_through() {
    chronfs::settings settings{};
    settings.segment_size = 1 << 16;
    auto queue = chronfs::queue::create(at("messages"), settings);
    auto writer = queue.writer();
    using namespace std::string_view_literals;
    IS(writer.append(7, "zero\0byte"sv), 1);
    IS(writer.append(8, {}), 2);
    memcpy(writer.reserve(9, 100), "reserved", 8);
    IS(writer.commit(8), 3);
    writer.flush_sync();
    IS(writer.next_seq(), 4);
    CHECK(writer.now_ns() > 0);

    std::vector<std::string> found;
    auto scan = queue.scan();
    for (const chronfs::entry &entry : scan) found.emplace_back(entry.bytes());
    CHECK((found == std::vector<std::string>{std::string("zero\0byte", 9), "", "reserved"}));
    for (const chronfs::entry &entry : scan) FAIL("message %llu after the end", (unsigned long long)entry.seq);

    chronfs::reader_options options{};
    options.start = CHRONFS_START_SEQ;
    options.start_at = 2;
    auto reader = queue.reader("r", options);
    IS(reader.lag(), 2);
    chronfs::entry entry;
    CHECK(reader.next(entry) && reader.next(entry) && !reader.next(entry));
    CHECK(entry.seq == 3 && entry.type == 9);
    reader.commit();
    CHECK(!reader.wait(std::chrono::milliseconds(1)));
    CHECK(queue.inspect().find("\"position\":4") != std::string::npos);
    // Moved: the old one owns nothing.
    auto moved = std::move(reader);
    IS(moved.seq(), 4);
    CHECK(reader.get() == nullptr);
    IS(error_of([&] { reader.commit(); }).code, CHRONFS_ERROR_INVALID_INPUT);
}

static void gaps_are_entries() {
    auto copy = chronfs::queue::create_at(at("copy"), 10);
    auto writer = copy.writer();
    IS(writer.append_exact(10, 1000, 1, "ten"), CHRONFS_EXACT_APPENDED);
    IS(writer.append_exact(13, 2000, 1, "thirteen"), CHRONFS_EXACT_APPENDED_AFTER_GAP);
    std::string text;
    auto scan = copy.scan();
    for (const auto &entry : scan) {
        text += entry.is_gap() ? std::to_string(entry.last_seq - entry.seq + 1) + entry.reason : std::string(entry.bytes());
        text += ' ';
    }
    CHECK(text == "ten 2upstream thirteen ");
}

static void failures_are_exceptions() {
    auto missing = error_of([] { chronfs::queue queue(at("nowhere")); });
    IS(missing.code, CHRONFS_ERROR_NOT_FOUND);
    CHECK(missing.path == at("nowhere") && std::string(missing.what()).find("not a queue") != std::string::npos);
    auto queue = chronfs::queue::open_or_create(at("busy"));
    auto writer = queue.writer();
    auto busy = error_of([&] { queue.writer(); });
    CHECK(busy.code == CHRONFS_ERROR_BUSY && busy.pid == static_cast<std::uint32_t>(getpid()));
    auto tailer = queue.tailer();
    IS(error_of([&] { tailer.commit(); }).code, CHRONFS_ERROR_INVALID_INPUT);
}

static void another_thread_ends_a_wait() {
    auto queue = chronfs::queue::create(at("stopped"));
    chronfs::stopper stopper;
    int code = 0;
    std::thread thread([&] {
        auto reader = queue.reader("r");
        reader.set_stopper(stopper);
        code = error_of([&] { reader.wait(); }).code;
    });
    stopper.stop();
    thread.join();
    IS(code, CHRONFS_ERROR_STOPPED);
}

static void a_kept_payload_outlives_its_reader() {
    std::string_view bytes;
    auto queue = chronfs::queue::create(at("kept"));
    queue.writer().append(1, "hello");
    auto kept = [&] {
        auto tailer = queue.tailer();
        chronfs::entry entry;
        CHECK(tailer.next(entry));
        bytes = entry.bytes();
        return tailer.keep_payload();
    }();
    CHECK(bytes == "hello");
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    root = argv[1];
    messages_pass_through();
    gaps_are_entries();
    failures_are_exceptions();
    another_thread_ends_a_wait();
    a_kept_payload_outlives_its_reader();
}
