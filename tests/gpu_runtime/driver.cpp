// The CUDA driver's part: modules and launches. A module is the cubin that NVRTC made, which names its kernels and the sizes of
// their parameters; what runs is a function of the same name in a library for the processor (GPU_KERNELS, made by kernels.py).
#include "device.h"

#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <memory>
#include <string>

typedef std::vector<int> Sizes;
typedef std::vector<std::vector<char>> Arguments;

struct Module {
    std::map<std::string, Sizes> kernels;
};
struct Kernel {
    std::string name;
    Sizes sizes;
};

// Sizes of parameters, from the records of a section .nv.info.KERNEL: format, attribute, length or value, contents.
static Sizes parameters(const unsigned char *record, const unsigned char *end)
{
    const int SIZED = 4, PARAMETER = 0x17; // EIFMT_SVAL, EIATTR_KPARAM_INFO
    std::map<int, int> sizes;
    while (record + 4 <= end) {
        bool sized = record[0] == SIZED;
        if (sized && record[1] == PARAMETER) {
            unsigned packed;
            memcpy(&packed, record + 12, sizeof packed);
            sizes[record[8] | record[9] << 8] = packed >> 18;
        }
        record += 4 + (sized ? record[2] | record[3] << 8 : 0);
    }
    Sizes found;
    for (auto &[number, size] : sizes)
        found.push_back(size);
    return found;
}

// CuPy's own kernels of copies and `fill`: (CArray or value, CArray, CIndexer). A CArray holds data, size, shape, strides.
struct CArray {
    char *data;
    long size;
    const long *shape, *strides;
    int ndim;

    CArray(const std::vector<char> &words)
    {
        ndim = (int)(words.size() / sizeof(long) - 2) / 2;
        memcpy(&data, words.data(), sizeof data);
        const long *word = (const long *)words.data();
        size = word[1], shape = word + 2, strides = word + 2 + ndim;
    }

    char *element(long index, int itemsize) const
    {
        if (!ndim)
            return data + index * itemsize;
        long offset = 0;
        for (int axis = ndim - 1; axis >= 0; index /= shape[axis--])
            offset += index % shape[axis] * strides[axis];
        return data + offset;
    }
};

static int itemsize_in(const std::string &name)
{
    for (auto [text, size] : {std::pair("complex128", 16), {"64", 8}, {"32", 4}, {"16", 2}})
        if (name.find(text) != std::string::npos)
            return size;
    return 1;
}

static void run_copy(const std::string &name, const Arguments &arguments)
{
    CArray to(arguments[1]);
    if (name.find("fill") != std::string::npos) {
        for (long i = 0; i < to.size; i++)
            memcpy(to.element(i, (int)arguments[0].size()), arguments[0].data(), arguments[0].size());
        return;
    }
    CArray from(arguments[0]);
    int itemsize = itemsize_in(name);
    for (long i = 0; i < to.size; i++)
        memcpy(to.element(i, itemsize), from.element(i, itemsize), itemsize);
}

static std::function<void()> work_of(const Kernel *kernel, unsigned blocks, std::shared_ptr<Arguments> arguments)
{
    const std::string &name = kernel->name;
    if (name.rfind("cupy_", 0) == 0) {
        if (name.find("fill") == std::string::npos && name.find("copy") == std::string::npos)
            return nullptr;
        return [=] { run_copy(name, *arguments); };
    }
    static void *library = dlopen(getenv("GPU_KERNELS"), RTLD_NOW);
    auto launch = library ? (void (*)(unsigned, void **))dlsym(library, ("launch_" + name).c_str()) : nullptr;
    if (!launch)
        return nullptr;
    return [=] {
        std::vector<void *> pointers;
        for (auto &argument : *arguments)
            pointers.push_back(argument.data());
        launch(blocks, pointers.data());
    };
}

extern "C" {

CUresult cuModuleLoadData(CUmodule *made, const void *image)
{
    std::lock_guard lock(world);
    if (capture_forbids())
        return (CUresult)fail(cudaErrorStreamCaptureUnsupported, "a module is loaded during a capture that is not relaxed");
    auto file = (const char *)image;
    auto header = (const Elf64_Ehdr *)image;
    auto sections = (const Elf64_Shdr *)(file + header->e_shoff);
    const char *names = file + sections[header->e_shstrndx].sh_offset;
    const std::string prefix = ".nv.info.";
    Module *module = new Module;
    for (int i = 0; i < header->e_shnum; i++) {
        std::string name = names + sections[i].sh_name;
        if (name.rfind(prefix, 0) == 0) {
            auto records = (const unsigned char *)file + sections[i].sh_offset;
            module->kernels[name.substr(prefix.size())] = parameters(records, records + sections[i].sh_size);
        }
    }
    *made = (CUmodule)module;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *found, CUmodule what, const char *name)
{
    std::lock_guard lock(world);
    auto kernel = ((Module *)what)->kernels.find(name);
    if (kernel == ((Module *)what)->kernels.end())
        return CUDA_ERROR_NOT_FOUND;
    *found = (CUfunction) new Kernel{name, kernel->second};
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads,
                        unsigned threads_y, unsigned threads_z, unsigned, CUstream handle, void **parameters, void **)
{
    std::lock_guard lock(world);
    const Kernel *kernel = (Kernel *)function;
    Stream *stream = stream_of((cudaStream_t)handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (null_stream_forbidden(stream))
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    auto arguments = std::make_shared<Arguments>();
    for (size_t i = 0; i < kernel->sizes.size(); i++)
        arguments->emplace_back((char *)parameters[i], (char *)parameters[i] + kernel->sizes[i]);
    bool ours = kernel->name.rfind("cupy_", 0) != 0;
    bool words = true; // every parameter of gradclip's kernels is a pointer or a number of 8 bytes
    for (int size : kernel->sizes)
        words &= size == 8;
    if (ours && (!words || threads != 256 || threads_y * threads_z * blocks_y * blocks_z != 1))
        return (CUresult)fail(cudaErrorInvalidValue, "%s: a parameter or a block of another size", kernel->name.c_str());
    if (blocks == 0 || blocks > 0x7fffffffu)
        return (CUresult)fail(cudaErrorInvalidValue, "%s: %u blocks", kernel->name.c_str(), blocks);
    auto work = work_of(kernel, blocks, arguments);
    if (!work)
        return (CUresult)gpu_runtime_lacks(kernel->name.c_str());
    if (ours)
        note(kernel->name.c_str(), stream);
    put(stream, work);
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    *name = cudaGetErrorName((cudaError_t)error);
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }

CUresult cuCtxGetCurrent(CUcontext *context)
{
    *context = (CUcontext)(size_t)(1 + current_device);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device)
{
    *device = current_device;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute, CUfunction)
{
    *value = 0;
    return CUDA_SUCCESS;
}
}
