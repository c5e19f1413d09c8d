// A pretend GPU for dry runs of host code (see pretend_gpu.py): the CUDA runtime and a part of the
// driver API, in the place of libcuda.so.1 by LD_PRELOAD. Memory is address space, kernels do
// nothing, and every launch, copy and wait is counted under a name. CUDA graphs are refused.
#include <driver_types.h>
#include <vector_types.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cstdint>
#include <sys/mman.h>
#include <unordered_map>
#include <map>
#include <string>
#include <mutex>
#include <vector>
#include <execinfo.h>
#define API extern "C" __attribute__((visibility("default")))
using namespace std;
typedef void (*cudaStreamCallback_t)(cudaStream_t, cudaError_t, void*);
static mutex& mu() {
    static mutex* m = new mutex;
    return *m;
}
static unordered_map<const void*, string>& names() {
    static auto* m = new unordered_map<const void*, string>;
    return *m;
}
static map<uintptr_t, size_t>& blocks() {
    static auto* m = new map<uintptr_t, size_t>;
    return *m;
}
static map<uintptr_t, size_t>& pinned() {
    static auto* m = new map<uintptr_t, size_t>;
    return *m;
}
static map<string, long>& counts() {
    static auto* m = new map<string, long>;
    return *m;
}
static int counting = 1;
static size_t total_bytes() {
    const char* s = getenv("PRETEND_GPU_GB");
    return (size_t)(s ? atof(s) * 1e9 : 150e9);
}
static size_t used = 0;
static bool in(map<uintptr_t, size_t>& m, const void* p) {
    auto it = m.upper_bound((uintptr_t)p);
    if (it == m.begin()) return false;
    --it;
    return (uintptr_t)p < it->first + it->second;
}
static void note(const string& s) {
    if (counting) {
        lock_guard<mutex> l(mu());
        counts()[s]++;
    }
}
static void kernel(const void* f) {
    string n;
    {
        lock_guard<mutex> l(mu());
        auto it = names().find(f);
        n = it == names().end() ? "unknown" : it->second;
    }
    note("kernel " + n);
}
// read by Python through ctypes
API long pretend_gpu_dump(char* buf, long size) {
    lock_guard<mutex> l(mu());
    string s;
    for (auto& kv : counts()) s += to_string(kv.second) + "\t" + kv.first + "\n";
    if ((long)s.size() + 1 <= size) memcpy(buf, s.c_str(), s.size() + 1);
    return s.size() + 1;
}
API void pretend_gpu_reset() {
    lock_guard<mutex> l(mu());
    counts().clear();
}
API void pretend_gpu_note(const char* s) { note(s); }

// registration
API void** __cudaRegisterFatBinary(void*) {
    static void* d;
    return &d;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterFunction(void**, const char* host, char*, const char* dev, int, uint3*,
                                uint3*, dim3*, dim3*, int*) {
    lock_guard<mutex> l(mu());
    names()[host] = dev;
}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
struct Conf {
    dim3 g, b;
    size_t s;
    cudaStream_t st;
};
static thread_local vector<Conf> stack_;
API unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, cudaStream_t st) {
    stack_.push_back({g, b, s, st});
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* st) {
    if (stack_.empty()) return cudaErrorMissingConfiguration;
    auto c = stack_.back();
    stack_.pop_back();
    *g = c.g;
    *b = c.b;
    *s = c.s;
    *(cudaStream_t*)st = c.st;
    return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) {
    *k = (cudaKernel_t)f;
    return cudaSuccess;
}
static bool bad(dim3 g, dim3 b) {
    return !g.x || !g.y || !g.z || !b.x || !b.y || !b.z || g.y > 65535 || g.z > 65535 ||
           b.x * b.y * b.z > 1024;
}
static cudaError_t launch(const void* f, dim3 g, dim3 b) {
    kernel(f);
    if (bad(g, b)) {
        note("BAD LAUNCH CONFIG");
        return cudaErrorInvalidConfiguration;
    }
    return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void**, size_t, cudaStream_t) {
    return launch((const void*)k, g, b);
}
API cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void**, size_t, cudaStream_t) {
    return launch(f, g, b);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) {
    return launch(f, c->gridDim, c->blockDim);
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t fn, void* d) {
    fn(d);
    return cudaSuccess;
}

// devices
API cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* d) {
    *d = 0;
    return cudaSuccess;
}
API cudaError_t cudaSetDevice(int) { return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* v) {
    *v = 13000;
    return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* v) {
    *v = 13000;
    return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "Pretend NVIDIA H200");
    for (int i = 0; i < 16; i++) p->uuid.bytes[i] = i + 1;
    p->totalGlobalMem = total_bytes();
    p->sharedMemPerBlock = 49152;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = 1024;
    p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = 65535;
    p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = 9;
    p->minor = 0;
    p->textureAlignment = 512;
    p->multiProcessorCount = 132;
    p->concurrentKernels = 1;
    p->ECCEnabled = 1;
    p->unifiedAddressing = 1;
    p->memoryBusWidth = 6144;
    p->l2CacheSize = 60 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerMultiprocessor = 65536;
    p->managedMemory = 1;
    p->sharedMemPerBlockOptin = 232448;
    p->maxBlocksPerMultiProcessor = 32;
    p->cooperativeLaunch = 1;
    p->streamPrioritiesSupported = 1;
    p->asyncEngineCount = 3;
    p->memoryPoolsSupported = 1;
    p->hostRegisterSupported = 1;
    p->canMapHostMemory = 1;
    return cudaSuccess;
}
static int attribute(int a) {
    switch (a) {
    case 1:
        return 1024;
    case 2:
    case 3:
        return 1024;
    case 4:
        return 64;
    case 5:
        return 2147483647;
    case 6:
    case 7:
        return 65535;
    case 8:
        return 49152;
    case 9:
        return 65536;
    case 10:
        return 32;
    case 12:
        return 65536;
    case 16:
        return 132;
    case 13:
        return 1980000;
    case 36:
        return 3201000;
    case 37:
        return 6144;
    case 38:
        return 60 << 20;
    case 39:
        return 2048;
    case 41:
        return 1;
    case 75:
        return 9;
    case 76:
        return 0;
    case 81:
        return 233472;
    case 82:
        return 65536;
    case 97:
        return 232448;
    case 106:
        return 32;
    case 95:
        return 1;
    case 115:
        return 1;
    default:
        return 1;
    }
}
API cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
    *v = attribute((int)a);
    return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* v, int, int) {
    *v = 0;
    return cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int) {
    snprintf(s, n, "0000:01:00.0");
    return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* a, int* b) {
    if (a) *a = 0;
    if (b) *b = -5;
    return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize() {
    note("sync cudaDeviceSynchronize");
    return cudaSuccess;
}
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) {
    *p = nullptr;
    return cudaSuccess;
}
API cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void* v) {
    *(uint64_t*)v = 0;
    return cudaSuccess;
}
API cudaError_t cudaDeviceSetGraphMemAttribute(int, cudaGraphMemAttributeType, void*) {
    return cudaSuccess;
}
API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* v) {
    *(uint64_t*)v = 0;
    return cudaSuccess;
}
API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
    return cudaSuccess;
}
API cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) {
    return cudaSuccess;
}
API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

// errors
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
API const char* cudaGetErrorName(cudaError_t e) { return e ? "cudaPretendError" : "cudaSuccess"; }
API const char* cudaGetErrorString(cudaError_t e) {
    static thread_local char b[64];
    snprintf(b, 64, "pretend error %d", (int)e);
    return b;
}

// memory
API cudaError_t cudaMalloc(void** p, size_t n) {
    lock_guard<mutex> l(mu());
    size_t m = (n + 2097151) & ~(size_t)2097151;
    if (used + m > total_bytes()) {
        *p = nullptr;
        return cudaErrorMemoryAllocation;
    }
    void* q = mmap(nullptr, m, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (q == MAP_FAILED) return cudaErrorMemoryAllocation;
    blocks()[(uintptr_t)q] = m;
    used += m;
    *p = q;
    counts()["cudaMalloc"]++;
    return cudaSuccess;
}
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
API cudaError_t cudaFree(void* p) {
    lock_guard<mutex> l(mu());
    auto it = blocks().find((uintptr_t)p);
    if (it == blocks().end()) return cudaSuccess;
    munmap(p, it->second);
    used -= it->second;
    blocks().erase(it);
    counts()["cudaFree"]++;
    return cudaSuccess;
}
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
API cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
    *t = total_bytes();
    *f = *t - used;
    return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
    *p = calloc(1, n ? n : 1);
    lock_guard<mutex> l(mu());
    pinned()[(uintptr_t)*p] = n;
    counts()["cudaHostAlloc"]++;
    return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* p) {
    lock_guard<mutex> l(mu());
    pinned().erase((uintptr_t)p);
    free(p);
    return cudaSuccess;
}
API cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
    lock_guard<mutex> l(mu());
    pinned()[(uintptr_t)p] = n;
    return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* p) {
    lock_guard<mutex> l(mu());
    pinned().erase((uintptr_t)p);
    return cudaSuccess;
}
static cudaError_t copy(void* d, const void* s, size_t n, const char* what) {
    bool dd, ds, pd, ps;
    {
        lock_guard<mutex> l(mu());
        dd = in(blocks(), d);
        ds = in(blocks(), s);
        pd = in(pinned(), d);
        ps = in(pinned(), s);
    }
    string k = string(what) +
               (ds   ? " device"
                : ps ? " pinned"
                     : " PAGEABLE") +
               " to" +
               (dd   ? " device"
                : pd ? " pinned"
                     : " PAGEABLE");
    note(k);
    if (!(dd && ds)) memcpy(d, s, n);
    return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) {
    return copy(d, s, n, "sync cudaMemcpy");
}
API cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind, cudaStream_t) {
    return copy(d, s, n, "cudaMemcpyAsync");
}
API cudaError_t cudaMemcpyPeerAsync(void*, int, const void*, int, size_t, cudaStream_t) {
    return cudaSuccess;
}
API cudaError_t cudaMemcpy2DAsync(void*, size_t, const void*, size_t, size_t, size_t,
                                  cudaMemcpyKind, cudaStream_t) {
    note("cudaMemcpy2DAsync");
    return cudaSuccess;
}
API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
    note("sync cudaMemcpyToSymbol");
    return cudaSuccess;
}
API cudaError_t cudaMemset(void*, int, size_t) {
    note("memset");
    return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) {
    note("memset");
    if (n <= 4096) memset(p, v, n);
    return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    memset(a, 0, sizeof *a);
    lock_guard<mutex> l(mu());
    if (in(blocks(), p)) {
        a->type = cudaMemoryTypeDevice;
        a->devicePointer = (void*)p;
    } else if (in(pinned(), p)) {
        a->type = cudaMemoryTypeHost;
        a->hostPointer = (void*)p;
        a->devicePointer = (void*)p;
    } else {
        a->type = cudaMemoryTypeUnregistered;
        a->device = -2;
    }
    return cudaSuccess;
}
API cudaError_t cudaGetSymbolAddress(void** p, const void* s) {
    *p = (void*)s;
    return cudaSuccess;
}
API cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* h, void*) {
    memset(h, 0, sizeof *h);
    return cudaSuccess;
}
API cudaError_t cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) {
    return cudaErrorNotSupported;
}
API cudaError_t cudaIpcCloseMemHandle(void*) { return cudaSuccess; }
API cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* h, cudaEvent_t) {
    memset(h, 0, sizeof *h);
    return cudaSuccess;
}
API cudaError_t cudaIpcOpenEventHandle(cudaEvent_t*, cudaIpcEventHandle_t) {
    return cudaErrorNotSupported;
}

// streams, events
static uintptr_t next_ = 0x1000;
API cudaError_t cudaStreamCreate(cudaStream_t* s) {
    *s = (cudaStream_t)(next_ += 16);
    return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
    return cudaStreamCreate(s);
}
API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) {
    note("sync cudaStreamSynchronize");
    return cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    note("cudaStreamWaitEvent");
    return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) {
    *p = 0;
    return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* d, unsigned) {
    f(s, cudaSuccess, d);
    return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) {
    *s = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* s,
                                         unsigned long long* id, cudaGraph_t*,
                                         const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                         size_t*) {
    *s = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    return cudaSuccess;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    return cudaErrorNotSupported;
}
API cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t, cudaGraph_t, const cudaGraphNode_t*,
                                              const cudaGraphEdgeData*, size_t,
                                              cudaStreamCaptureMode) {
    return cudaErrorNotSupported;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
API cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t*,
                                                    const cudaGraphEdgeData*, size_t, unsigned) {
    return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t* e) {
    *e = (cudaEvent_t)(next_ += 16);
    return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
API cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    note("cudaEventRecord");
    return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) {
    note("cudaEventRecord");
    return cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) {
    note("sync cudaEventSynchronize");
    return cudaSuccess;
}
API cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t, cudaEvent_t) {
    *t = 1.0f;
    return cudaSuccess;
}
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }

// functions
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->ptxVersion = 90;
    a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) {
    return cudaSuccess;
}
API cudaError_t cudaLibraryLoadData(cudaLibrary_t* l, const void*, cudaJitOption*, void**, unsigned,
                                    cudaLibraryOption*, void**, unsigned) {
    *l = (cudaLibrary_t)16;
    return cudaSuccess;
}
API cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
API cudaError_t cudaLibraryGetKernel(cudaKernel_t* k, cudaLibrary_t, const char* n) {
    char* c = strdup(n);
    {
        lock_guard<mutex> l(mu());
        names()[c] = n;
    }
    *k = (cudaKernel_t)c;
    return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int,
                                                                       size_t, unsigned) {
    *n = 2;
    return cudaSuccess;
}

// graphs: not supported
API cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*,
                                             size_t* n) {
    *n = 0;
    return cudaSuccess;
}
API cudaError_t cudaGraphAddNode(...) { return cudaErrorNotSupported; }
API cudaError_t cudaGraphConditionalHandleCreate(...) { return cudaErrorNotSupported; }
API cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
API cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* n) {
    *n = 0;
    return cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t*, cudaGraph_t, unsigned long long) {
    return cudaErrorNotSupported;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
API cudaError_t cudaGraphRetainUserObject(...) { return cudaSuccess; }
API cudaError_t cudaUserObjectCreate(...) { return cudaErrorNotSupported; }
API cudaError_t cudaUserObjectRelease(...) { return cudaSuccess; }

// driver API
typedef int CUresult;
API CUresult cuInit(unsigned) { return 0; }
API CUresult cuDriverGetVersion(int* v) {
    *v = 13000;
    return 0;
}
API CUresult cuDeviceGetCount(int* n) {
    *n = 1;
    return 0;
}
API CUresult cuDeviceGet(int* d, int) {
    *d = 0;
    return 0;
}
API CUresult cuDeviceGetAttribute(int* v, int a, int) {
    *v = attribute(a);
    return 0;
}
API CUresult cuDevicePrimaryCtxGetState(int, unsigned* f, int* active) {
    if (f) *f = 0;
    if (active) *active = 1;
    return 0;
}
API CUresult cuDevicePrimaryCtxRetain(void** c, int) {
    *c = (void*)32;
    return 0;
}
API CUresult cuCtxGetCurrent(void** c) {
    *c = (void*)32;
    return 0;
}
API CUresult cuCtxSetCurrent(void*) { return 0; }
API CUresult cuCtxGetDevice(int* d) {
    *d = 0;
    return 0;
}
API CUresult cuCtxPushCurrent(void*) { return 0; }
API CUresult cuCtxPopCurrent(void** c) {
    if (c) *c = (void*)32;
    return 0;
}
API CUresult cuCtxGetLimit(size_t* v, int) {
    *v = 1024;
    return 0;
}
API CUresult cuCtxSetLimit(int, size_t) { return 0; }
API CUresult cuGetErrorString(int, const char** s) {
    *s = "pretend";
    return 0;
}
API CUresult cuModuleLoad(void** m, const char*) {
    *m = (void*)48;
    return 0;
}
API CUresult cuModuleLoadData(void** m, const void*) {
    *m = (void*)48;
    return 0;
}
API CUresult cuModuleLoadDataEx(void** m, const void*, unsigned, void*, void*) {
    *m = (void*)48;
    return 0;
}
API CUresult cuModuleUnload(void*) { return 0; }
API CUresult cuModuleGetFunction(void** f, void*, const char* n) {
    char* c = strdup(n);
    {
        lock_guard<mutex> l(mu());
        names()[c] = n;
    }
    *f = c;
    return 0;
}
API CUresult cuFuncGetAttribute(int* v, int a, void*) {
    *v = a == 0 ? 1024 : a == 4 ? 32 : 0;
    return 0;
}
API CUresult cuFuncSetAttribute(void*, int, int) { return 0; }
API CUresult cuFuncSetCacheConfig(void*, int) { return 0; }
static CUresult dlaunch(void* f, unsigned gx, unsigned gy, unsigned gz) {
    kernel(f);
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535) {
        note("BAD LAUNCH CONFIG");
        return 1;
    }
    return 0;
}
API CUresult cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned, unsigned,
                            unsigned, unsigned, void*, void**, void**) {
    return dlaunch(f, gx, gy, gz);
}
struct LC {
    unsigned gx, gy, gz;
};
API CUresult cuLaunchKernelEx(const LC* c, void* f, void**, void**) {
    return dlaunch(f, c->gx, c->gy, c->gz);
}
API CUresult cuLaunchCooperativeKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned,
                                       unsigned, unsigned, unsigned, void*, void**) {
    return dlaunch(f, gx, gy, gz);
}
API CUresult cuLinkAddData_v2(...) { return 801; }
API CUresult cuLinkComplete(...) { return 801; }
API CUresult cuLinkCreate_v2(...) { return 801; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int, size_t) {
    *n = 2;
    return 0;
}
API CUresult cuOccupancyMaxActiveClusters(int* n, void*, void*) {
    *n = 1;
    return 0;
}
API CUresult cuPointerGetAttribute(void* v, int a, uint64_t p) { // 3: device pointer
    if (a == 3) {
        *(uint64_t*)v = p;
        lock_guard<mutex> l(mu());
        return in(blocks(), (void*)p) || in(pinned(), (void*)p) ? 0 : 1;
    }
    *(uint64_t*)v = 0;
    return 0;
}
API CUresult cuPointerGetAttributes(unsigned n, int* a, void** d, uint64_t p) {
    for (unsigned i = 0; i < n; i++) cuPointerGetAttribute(d[i], a[i], p);
    return 0;
}
API CUresult cuTensorMapEncodeTiled(...) { return 0; }
API CUresult cuMemGetAddressRange(uint64_t* b, size_t* n, uint64_t p) {
    lock_guard<mutex> l(mu());
    auto it = blocks().upper_bound(p);
    if (it == blocks().begin()) return 1;
    --it;
    if (b) *b = it->first;
    if (n) *n = it->second;
    return 0;
}
static CUresult generic() { return 801; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** p, unsigned,
                                                 unsigned long long,
                                                 cudaDriverEntryPointQueryResult* r) {
    static const unordered_map<string, void*> known = {
        {"cuDevicePrimaryCtxGetState", (void*)cuDevicePrimaryCtxGetState},
        {"cuGetErrorString", (void*)cuGetErrorString},
        {"cuCtxGetCurrent", (void*)cuCtxGetCurrent},
        {"cuCtxSetCurrent", (void*)cuCtxSetCurrent},
        {"cuDeviceGet", (void*)cuDeviceGet},
        {"cuCtxPushCurrent", (void*)cuCtxPushCurrent},
        {"cuCtxPopCurrent", (void*)cuCtxPopCurrent},
        {"cuDeviceGetAttribute", (void*)cuDeviceGetAttribute},
        {"cuMemGetAddressRange", (void*)cuMemGetAddressRange},
        {"cuPointerGetAttribute", (void*)cuPointerGetAttribute}};
    auto it = known.find(name);
    *p = it == known.end() ? (void*)generic : it->second;
    if (r) *r = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPoint(const char* name, void** p, unsigned long long f,
                                        cudaDriverEntryPointQueryResult* r) {
    return cudaGetDriverEntryPointByVersion(name, p, 0, f, r);
}
