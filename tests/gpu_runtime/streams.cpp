// Streams, events and graphs. What is put into a stream is done when the host waits for it, and no sooner: what should have
// waited for another stream, by an event, then finds that nothing has happened there. GPU_EAGER (percent) lets some of it be
// done at any call, of a stream and of a length that GPU_SEED chooses.
#include "device.h"

#include <map>
#include <random>
#include <set>
#include <string>

struct Event {
    int device;
    Mark mark = {nullptr, 0};
    bool captured = false;
};
struct Graph {
    std::vector<Task> tasks;
};

std::recursive_mutex world;
thread_local int current_device = 0;
static long waits = 0; // how often the host waited for something
static std::set<Stream *> streams; // never freed: marks may name them later
static std::map<std::pair<int, int>, Stream *> default_streams; // by device and 0, or the number of a thread
static std::string journal;
// Relaxed: this thread may do what captures forbid.
static thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static Stream *default_stream(int device, int thread)
{
    Stream *&found = default_streams[{device, thread}];
    if (!found)
        streams.insert(found = new Stream{device, cudaStreamDefault});
    return found;
}

Stream *null_stream(int device) { return default_stream(device, 0); }

Stream *stream_of(cudaStream_t handle)
{
    static int threads = 0;
    static thread_local int thread = 0;
    if (handle == nullptr || handle == cudaStreamLegacy)
        return null_stream(current_device);
    if (handle == cudaStreamPerThread)
        return default_stream(current_device, thread ? thread : (thread = ++threads));
    Stream *stream = (Stream *)handle;
    if (!streams.count(stream)) {
        fail(cudaErrorInvalidResourceHandle, "there is no stream %p", (void *)handle);
        return nullptr;
    }
    if (stream->device != current_device) {
        fail(cudaErrorInvalidResourceHandle, "a stream of device %d used on device %d", stream->device, current_device);
        return nullptr;
    }
    return stream;
}

static void run(Stream *stream, long count)
{
    if (stream->done >= count)
        return; // and nothing is shown for it, which takes time
    OnDevice visible;
    while (stream->done < count && !stream->queue.empty()) {
        Task task = std::move(stream->queue.front());
        stream->queue.pop_front();
        for (Mark &mark : task.after)
            if (mark.stream != stream)
                run(mark.stream, mark.count);
        task.work();
        stream->done++;
    }
}

static void run_something()
{
    static const int eager = setting("GPU_EAGER", 0);
    static std::mt19937 random(setting("GPU_SEED", 0));
    if ((int)(random() % 100) >= eager || streams.empty())
        return;
    auto stream = *std::next(streams.begin(), random() % streams.size());
    if (!stream->queue.empty())
        run(stream, stream->done + 1 + random() % stream->queue.size());
}

void put(Stream *stream, std::function<void()> work, std::vector<Mark> after)
{
    if (stream->capturing) {
        stream->captured.push_back({std::move(work), std::move(after)});
        return;
    }
    Stream *null = null_stream(stream->device);
    if (stream == null) {
        for (Stream *other : streams)
            if (other != null && other->device == null->device && other->blocking())
                after.push_back({other, other->put});
    } else if (stream->blocking()) {
        after.push_back({null, null->put});
    }
    stream->queue.push_back({std::move(work), std::move(after)});
    stream->put++;
    run_something();
}

void wait_for(Stream *stream, long count)
{
    waits += stream->done < count;
    run(stream, count);
}

// Runs some streams, and what they wait for. Returns whether there was something to wait for.
template <class Condition>
static bool finish(Condition chosen)
{
    bool waited = false;
    for (bool more = true; more;) {
        more = false;
        for (Stream *stream : std::set<Stream *>(streams))
            if (chosen(stream) && !stream->queue.empty()) {
                run(stream, stream->put);
                more = waited = true;
            }
    }
    return waited;
}

void finish_all()
{
    finish([](Stream *) { return true; });
}

bool capture_forbids()
{
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return false;
    bool forbidden = false;
    for (Stream *stream : streams)
        if (stream->capturing && stream->mode != cudaStreamCaptureModeRelaxed)
            stream->broken = forbidden = true;
    return forbidden;
}

bool null_stream_forbidden(Stream *stream, bool ends_it)
{
    bool forbidden = false;
    for (Stream *other : streams)
        if (stream == null_stream(stream->device) && other->capturing && other->device == stream->device && other->blocking()) {
            forbidden = true;
            other->broken |= ends_it;
        }
    if (forbidden)
        fail(cudaErrorStreamCaptureImplicit, "the null stream is used during a capture of a stream that waits for it");
    return forbidden;
}

void note(const char *what, Stream *stream)
{
    size_t number = stream == null_stream(stream->device) ? 0 : (size_t)stream;
    journal += what + (" " + std::to_string(number)) + "\n";
}

extern "C" {

// What the tests ask.
long gpu_runtime_waits()
{
    std::lock_guard lock(world);
    return waits;
}

const char *gpu_runtime_journal() // since it was last asked for: "KERNEL STREAM" or "fetch STREAM", a line each
{
    static std::string told;
    std::lock_guard lock(world);
    told = std::move(journal);
    journal.clear();
    return told.c_str();
}

// ---- streams

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *made, unsigned flags, int)
{
    std::lock_guard lock(world);
    Stream *stream = new Stream{current_device, flags};
    streams.insert(stream);
    *made = (cudaStream_t)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned flags)
{
    return cudaStreamCreateWithPriority(made, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *made) { return cudaStreamCreateWithPriority(made, cudaStreamDefault, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    std::lock_guard lock(world);
    Stream *stream = (Stream *)handle;
    if (!streams.count(stream))
        return fail(cudaErrorInvalidResourceHandle, "there is no stream %p", (void *)handle);
    run(stream, stream->put);
    streams.erase(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned *flags)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    *flags = stream ? stream->flags : 0;
    return stream ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority)
{
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (stream->capturing) {
        stream->broken = true;
        return fail(cudaErrorStreamCaptureUnsupported, "a wait for a stream that is captured");
    }
    if (stream == null_stream(stream->device)) // which waits for others
        waits += finish([=](Stream *other) { return other->device == stream->device && other->blocking(); });
    else
        wait_for(stream, stream->put);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    run_something();
    return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t what, unsigned)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    Event *event = (Event *)what;
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (event->captured && event->mark.stream != stream)
        return fail(cudaErrorStreamCaptureIsolation, "a capture that spreads to a second stream is not emulated");
    if (stream->capturing && !event->captured && event->mark.stream)
        return fail(cudaErrorStreamCaptureIsolation, "a capture cannot wait for what was not captured");
    if (event->mark.stream)
        put(stream, [] {}, {event->mark});
    return cudaSuccess;
}

// ---- capture

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (null_stream_forbidden(stream, false))
        return cudaErrorStreamCaptureImplicit;
    *status = !stream->capturing ? cudaStreamCaptureStatusNone
              : stream->broken   ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    std::swap(*mode, thread_mode);
    return CUDA_SUCCESS;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (stream->capturing || stream == null_stream(stream->device))
        return fail(cudaErrorStreamCaptureUnsupported, "this stream cannot be captured");
    stream->capturing = true;
    stream->broken = false;
    stream->mode = mode;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *made)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    if (!stream || !stream->capturing)
        return fail(cudaErrorIllegalState, "this stream is not captured");
    stream->capturing = false;
    std::vector<Task> tasks = std::move(stream->captured);
    stream->captured.clear();
    if (stream->broken)
        return fail(cudaErrorStreamCaptureInvalidated, "a call that a capture forbids has ended it");
    *made = (cudaGraph_t) new Graph{std::move(tasks)};
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long)
{
    *made = (cudaGraphExec_t) new Graph(*(Graph *)graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t what, cudaStream_t handle)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    put(stream, [tasks = ((Graph *)what)->tasks] {
        for (const Task &task : tasks)
            task.work();
    });
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete (Graph *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    delete (Graph *)graph;
    return cudaSuccess;
}

// ---- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *made, unsigned)
{
    *made = (cudaEvent_t) new Event{current_device};
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *made) { return cudaEventCreateWithFlags(made, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete (Event *)event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t what, cudaStream_t handle)
{
    std::lock_guard lock(world);
    Stream *stream = stream_of(handle);
    Event *event = (Event *)what;
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (event->device != stream->device)
        return fail(cudaErrorInvalidResourceHandle, "an event of device %d recorded on device %d", event->device,
                    stream->device);
    if (stream == null_stream(stream->device))
        put(stream, [] {}); // so that it takes in the streams that it waits for
    event->mark = {stream, stream->put};
    event->captured = stream->capturing;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t what)
{
    std::lock_guard lock(world);
    Event *event = (Event *)what;
    if (event->captured)
        return fail(cudaErrorCapturedEvent, "a captured event is asked for");
    run_something();
    return !event->mark.stream || event->mark.stream->done >= event->mark.count ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t what)
{
    std::lock_guard lock(world);
    Event *event = (Event *)what;
    if (event->captured)
        return fail(cudaErrorCapturedEvent, "a wait for a captured event");
    if (event->mark.stream)
        wait_for(event->mark.stream, event->mark.count);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t)
{
    *milliseconds = 1; // this is no judge of speed
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize()
{
    std::lock_guard lock(world);
    if (capture_forbids())
        return fail(cudaErrorStreamCaptureUnsupported, "a wait for the device during a capture");
    waits += finish([](Stream *stream) { return stream->device == current_device; });
    return cudaSuccess;
}
}
