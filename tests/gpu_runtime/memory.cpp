// Memory of devices and pinned memory of the host. GPU_MEMORY chooses what mistakes are seen:
//   hidden (unless it is set): the host cannot read or write device memory, as on most GPUs: it ends in a segmentation fault
//   guarded: what a kernel does beyond the end of an allocation, or after it was given back, is a segmentation fault
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>

static const size_t PAGE = 4096, RESERVED = (size_t)1 << 40; // addresses are never used twice
static const bool guarded = getenv("GPU_MEMORY") && !strcmp(getenv("GPU_MEMORY"), "guarded");
static std::map<char *, Block> blocks;
static char *reserved, *unused;
static int depth = 0;

static size_t whole_pages(size_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

Block *block_of(const void *address)
{
    auto next = blocks.upper_bound((char *)address);
    if (next == blocks.begin())
        return nullptr;
    auto &[start, block] = *--next;
    return (char *)address < start + block.size ? &block : nullptr;
}

void check_bounds(const void *address, size_t size, const char *what)
{
    auto next = blocks.upper_bound((char *)address);
    Block *block = block_of(address);
    if (block && size > (size_t)((--next)->first + block->size - (char *)address)) {
        fprintf(stderr, "gpu_runtime: %s beyond its memory\n", what);
        abort();
    }
}

OnDevice::OnDevice()
{
    if (!guarded && depth++ == 0 && unused != reserved)
        mprotect(reserved, unused - reserved, PROT_READ | PROT_WRITE);
}

OnDevice::~OnDevice()
{
    if (!guarded && --depth == 0 && unused != reserved)
        mprotect(reserved, unused - reserved, PROT_NONE);
}

static cudaError_t allocate(void **address, size_t size, Kind kind)
{
    *address = nullptr;
    if (!size)
        return cudaSuccess;
    if (!reserved) {
        void *found = mmap(nullptr, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED)
            return fail(cudaErrorMemoryAllocation, "no addresses for device memory");
        reserved = unused = (char *)found;
    }
    char *pages, *start;
    size_t used = whole_pages(size);
    if (kind == PINNED) {
        pages = start = (char *)aligned_alloc(PAGE, used);
        memset(start, 0xA5, size);
    } else {
        pages = start = unused;
        unused += used + PAGE; // a page between allocations
        if (guarded)
            start += (used - size) & ~(size_t)15; // ends at that page, within the alignment of what kernels read at once
        if (mprotect(pages, used, PROT_READ | PROT_WRITE))
            return fail(cudaErrorMemoryAllocation, "no device memory");
        memset(start, 0xA5, size); // nothing may rest on what was there
        if (!guarded && !depth)
            mprotect(pages, used, PROT_NONE);
    }
    blocks[start] = {size, current_device, kind, pages};
    *address = start;
    return cudaSuccess;
}

static cudaError_t give_back(void *address)
{
    if (!address)
        return cudaSuccess;
    auto found = blocks.find((char *)address);
    if (found == blocks.end())
        return fail(cudaErrorInvalidValue, "%p was not allocated, or given back before", address);
    finish_all();
    Block &block = found->second;
    if (block.kind == PINNED) {
        free(block.pages);
    } else {
        madvise(block.pages, whole_pages(block.size), MADV_DONTNEED);
        mprotect(block.pages, whole_pages(block.size), PROT_NONE);
    }
    blocks.erase(found);
    return cudaSuccess;
}

extern "C" {

cudaError_t cudaMalloc(void **address, size_t size)
{
    std::lock_guard lock(world);
    if (capture_forbids())
        return fail(cudaErrorStreamCaptureUnsupported, "cudaMalloc during a capture that is not relaxed");
    return allocate(address, size, DEVICE);
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned)
{
    std::lock_guard lock(world);
    if (capture_forbids())
        return fail(cudaErrorStreamCaptureUnsupported, "cudaHostAlloc during a capture that is not relaxed");
    return allocate(address, size, PINNED);
}

cudaError_t cudaFree(void *address)
{
    std::lock_guard lock(world);
    if (capture_forbids())
        return fail(cudaErrorStreamCaptureUnsupported, "cudaFree during a capture that is not relaxed");
    return give_back(address);
}

cudaError_t cudaFreeHost(void *address)
{
    std::lock_guard lock(world);
    return give_back(address);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = *total = (size_t)80 << 30;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *told, const void *address)
{
    std::lock_guard lock(world);
    Block *block = block_of(address);
    memset(told, 0, sizeof *told);
    told->type = !block ? cudaMemoryTypeUnregistered : block->kind == PINNED ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    told->device = block ? block->device : -2;
    told->devicePointer = block ? (void *)address : nullptr;
    told->hostPointer = block && block->kind == PINNED ? (void *)address : nullptr;
    return cudaSuccess;
}
}
