// Devices, errors and copies: the rest of the CUDA runtime that CuPy calls. GPU_DEVICES says how many devices there are.
#include "device.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>

static const int CUDA = 13000;
static thread_local cudaError_t last_error = cudaSuccess;

int setting(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

cudaError_t fail(cudaError_t error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "gpu_runtime: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    return last_error = error;
}

static int device_count()
{
    static const int count = setting("GPU_DEVICES", 3);
    return count;
}

extern "C" {

// For what CuPy may call and nobody here does: build.py makes stubs of it.
int gpu_runtime_lacks(const char *name) { return fail(cudaErrorNotSupported, "%s is not emulated", name); }

// ---- errors and devices

const char *cudaGetErrorName(cudaError_t error)
{
    static thread_local char text[40];
    snprintf(text, sizeof text, "cudaError %d", (int)error);
    return text;
}

const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetLastError()
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDA;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = device_count();
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= device_count())
        return fail(cudaErrorInvalidDevice, "there is no device %d", device);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    static const int ratio = setting("GPU_FLOAT64_RATIO", 2);
    *value = attribute == cudaDevAttrComputeCapabilityMajor             ? 9
             : attribute == cudaDevAttrSingleToDoublePrecisionPerfRatio ? ratio
                                                                        : 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int)
{
    *can = 0; // the engine must not need it
    return cudaSuccess;
}

// ---- copies

static Stream *usable(cudaStream_t handle, cudaError_t *error)
{
    Stream *stream = stream_of(handle);
    *error = !stream                         ? cudaErrorInvalidResourceHandle
             : null_stream_forbidden(stream) ? cudaErrorStreamCaptureImplicit
                                             : cudaSuccess;
    return stream;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind, cudaStream_t handle)
{
    std::lock_guard lock(world);
    cudaError_t error;
    Stream *stream = usable(handle, &error);
    if (error)
        return error;
    check_bounds(to, size, "a copy");
    check_bounds(from, size, "a copy");
    Block *target = block_of(to);
    bool pageable = !target || !block_of(from); // memory that a device cannot reach: it is copied at once, or waited for
    if (pageable && stream->capturing) {
        stream->broken = true;
        return fail(cudaErrorStreamCaptureUnsupported, "a copy of pageable memory was captured");
    }
    if (!target || target->kind == PINNED)
        note("fetch", stream);
    if (target && pageable) {
        auto copy = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + size);
        put(stream, [=] { memcpy(to, copy->data(), size); });
        return cudaSuccess;
    }
    put(stream, [=] { memcpy(to, from, size); });
    if (pageable)
        wait_for(stream, stream->put);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind)
{
    std::lock_guard lock(world);
    cudaError_t error = cudaMemcpyAsync(to, from, size, kind, nullptr);
    return error ? error : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size, cudaStream_t handle)
{
    std::lock_guard lock(world);
    cudaError_t error;
    Stream *stream = usable(handle, &error);
    if (error)
        return error;
    check_bounds(to, size, "a copy");
    check_bounds(from, size, "a copy");
    Block *target = block_of(to), *source = block_of(from);
    if (!target || !source || target->device != to_device || source->device != from_device)
        return fail(cudaErrorInvalidValue, "a copy between other devices than those of its memory");
    put(stream, [=] { memcpy(to, from, size); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t handle)
{
    std::lock_guard lock(world);
    cudaError_t error;
    Stream *stream = usable(handle, &error);
    if (error)
        return error;
    check_bounds(to, size, "a memset");
    put(stream, [=] { memset(to, value, size); });
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, nullptr); }
}
