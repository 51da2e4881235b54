// What CUDA devices hold: streams of work that is yet to be done, events, memory. Shared by the files beside this one.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <mutex>
#include <vector>

struct Stream;

// The work of a stream up to some count of tasks.
struct Mark {
    Stream *stream;
    long count;
};

struct Task {
    std::function<void()> work;
    std::vector<Mark> after;
};

struct Stream {
    int device;
    unsigned flags;
    std::deque<Task> queue = {};
    long put = 0, done = 0;
    bool capturing = false, broken = false; // broken: a call that a capture forbids has ended it
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::vector<Task> captured = {};

    bool blocking() const { return !(flags & cudaStreamNonBlocking); }
};

// Everything is done under this lock, by the thread that calls: a device has no threads of its own here.
extern std::recursive_mutex world;
extern thread_local int current_device;

// ---- errors (runtime.cpp): told on stderr, and kept for cudaGetLastError
cudaError_t fail(cudaError_t error, const char *format, ...);
extern "C" int gpu_runtime_lacks(const char *name);
int setting(const char *name, int otherwise); // an environment variable

// ---- streams (streams.cpp)
Stream *stream_of(cudaStream_t handle); // nullptr if there is none, or it is another device's
Stream *null_stream(int device);
void put(Stream *stream, std::function<void()> work, std::vector<Mark> after = {});
void wait_for(Stream *stream, long count); // the host waits
void finish_all(); // as memory is given back: not counted as a wait
bool capture_forbids(); // what no capture but a relaxed one allows; it ends the captures
bool null_stream_forbidden(Stream *stream, bool ends_it = true); // while a stream that waits for it is captured
void note(const char *what, Stream *stream); // into the journal of launches and copies to the host

// ---- memory (memory.cpp)
enum Kind { PINNED, DEVICE };
struct Block {
    size_t size;
    int device;
    Kind kind;
    char *pages; // where its first page begins
};
Block *block_of(const void *address);
void check_bounds(const void *address, size_t size, const char *what); // ends the process if a block is overrun
// Device memory can be looked at only while one of these lives, where it is hidden from the host.
struct OnDevice {
    OnDevice();
    ~OnDevice();
};
