/* Shared by the tests in C and in C++. */
#ifndef COMMON_H
#define COMMON_H

#ifdef __cplusplus
#define _Thread_local thread_local
#endif

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fprintf(stderr, "; last error: %s\n", chronfs_error_message());                                                \
        abort();                                                                                                       \
    } while (0)

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) FAIL("%s is false", #condition);                                                             \
    } while (0)

/* What a call returns. */
#define IS(call, wanted)                                                                                               \
    do {                                                                                                               \
        long long is_ = (long long)(call), wanted_ = (long long)(wanted);                                                                   \
        if (is_ != wanted_) FAIL("%s is %lld instead of %lld", #call, is_, wanted_);                                   \
    } while (0)

/* A path below the directory of this run. */
extern const char *root;
static inline const char *at(const char *name) {
    static _Thread_local char path[4096];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

/* Runs in a child, and returns what `f` returns; -1 if it has not. The child is killed then, not ended: what its parent's
 * threads own it can't free, which valgrind would count. */
static inline int in_child(int (*f)(void *), void *argument) {
    int result = -1, ends[2];
    fflush(NULL);
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        result = f(argument);
        CHECK(write(ends[1], &result, sizeof result) == sizeof result);
        kill(getpid(), SIGKILL);
    }
    close(ends[1]);
    if (read(ends[0], &result, sizeof result) != sizeof result) result = -1;
    close(ends[0]);
    CHECK(waitpid(child, NULL, 0) == child);
    return result;
}

#endif
