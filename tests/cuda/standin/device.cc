// A device for torch whose memory is the host's: what tests run in the place of a GPU (driver.py beside
// this).
//
// torch takes it for a device of its own kind, "privateuse1", of which there are two, with streams and
// events. Operators run on the CPU, on copies. As with CUDA, a copy between the device and pinned memory that
// need not block lands only when its stream gets that far: it waits in the stream's queue until something
// behind it in the stream, or the host, asks for it. Memory is poisoned when it is taken and when it is given
// back.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

constexpr auto kKind = c10::DeviceType::PrivateUse1;
constexpr DeviceIndex kDevices = 2;
constexpr unsigned char kFresh = 0xa7, kFreed = 0x5d;

thread_local DeviceIndex current_device = 0;
thread_local c10::StreamId current_streams[kDevices] = {};

Device device_of(DeviceIndex index) { return Device(kKind, index < 0 ? current_device : index); }

// ----------------------------------------------------------------------------------------------- memory

std::mutex memory_lock;
std::map<void *, size_t> sizes;
std::set<const char *> pinned;
int64_t reads = 0;
thread_local bool in_fallback = false;

void *take(size_t bytes, int fill) {
  void *memory = nullptr;
  if (posix_memalign(&memory, 512, bytes ? bytes : 1)) throw std::bad_alloc();
  std::memset(memory, fill, bytes);
  std::lock_guard<std::mutex> guard(memory_lock);
  sizes[memory] = bytes;
  return memory;
}

void give(void *memory) {
  std::lock_guard<std::mutex> guard(memory_lock);
  std::memset(memory, kFreed, sizes[memory]);
  sizes.erase(memory);
  pinned.erase(static_cast<const char *>(memory));
  std::free(memory);
}

struct Allocator final : c10::Allocator {
  explicit Allocator(bool host) : host_(host) {}
  c10::DataPtr allocate(size_t bytes) override {
    void *memory = take(bytes, kFresh);
    if (host_) {
      std::lock_guard<std::mutex> guard(memory_lock);
      pinned.insert(static_cast<const char *>(memory));
    }
    return {memory, memory, &give, host_ ? Device(c10::DeviceType::CPU) : device_of(-1)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give; }
  void copy_data(void *to, const void *from, size_t bytes) const override { std::memcpy(to, from, bytes); }

 private:
  bool host_;
};

Allocator device_memory(false), pinned_memory(true);
REGISTER_ALLOCATOR(kKind, &device_memory);

bool is_pinned(const void *address) {
  std::lock_guard<std::mutex> guard(memory_lock);
  auto after = pinned.upper_bound(static_cast<const char *>(address));
  if (after == pinned.begin()) return false;
  const char *begin = *--after;
  return address < begin + std::max<size_t>(sizes[const_cast<char *>(begin)], 1);
}

// ---------------------------------------------------------------------------------------------- streams

struct Queue {
  std::deque<std::function<void()>> waiting;
  uint64_t begun = 0, done = 0;  // numbers of the last work given, and of the last that ran
};
struct Event {
  Stream stream;
  uint64_t number;
};

std::recursive_mutex stream_lock;
std::map<std::pair<DeviceIndex, c10::StreamId>, Queue> queues;
c10::StreamId last_stream = 0;

Queue &queue_of(const Stream &stream) { return queues[{stream.device_index(), stream.id()}]; }

void run_until(const Stream &stream, uint64_t number) {
  std::lock_guard<std::recursive_mutex> guard(stream_lock);
  Queue &queue = queue_of(stream);
  while (queue.done < number && !queue.waiting.empty()) {
    auto work = std::move(queue.waiting.front());
    queue.waiting.pop_front();
    queue.done++;
    work();
  }
}

void run_all(const Stream &stream) { run_until(stream, UINT64_MAX); }

uint64_t give_work(const Stream &stream, std::function<void()> work) {
  std::lock_guard<std::recursive_mutex> guard(stream_lock);
  Queue &queue = queue_of(stream);
  queue.waiting.push_back(std::move(work));
  return ++queue.begun;
}

Stream current_stream(DeviceIndex index) {
  const Device device = device_of(index);
  return Stream(Stream::UNSAFE, device, current_streams[device.index()]);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kKind; }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return device_of(-1); }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "there is no device ", device);
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current_device = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  Stream getStream(Device device) const override { return current_stream(device.index()); }
  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::UNSAFE, device_of(device.index()), 0);
  }
  Stream getNewStream(Device device, int) const override {
    std::lock_guard<std::recursive_mutex> guard(stream_lock);
    return Stream(Stream::UNSAFE, device_of(device.index()), ++last_stream);
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override { return getNewStream(device, 0); }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = current_stream(stream.device_index());
    current_streams[stream.device_index()] = stream.id();
    return before;
  }
  void record(void **event, const Stream &stream, DeviceIndex, c10::EventFlag) const override {
    destroyEvent(*event, 0);
    *event = new Event{stream, give_work(stream, [] {})};
  }
  void block(void *event, const Stream &stream) const override {
    const Event at = *static_cast<Event *>(event);
    give_work(stream, [at] { run_until(at.stream, at.number); });
  }
  // A stream gets on while the host looks at it, but one step at a time.
  bool queryEvent(void *event) const override {
    if (!event) return true;
    const Event *at = static_cast<Event *>(event);
    std::lock_guard<std::recursive_mutex> guard(stream_lock);
    if (queue_of(at->stream).done >= at->number) return true;
    run_until(at->stream, queue_of(at->stream).done + 1);
    return false;
  }
  void synchronizeEvent(void *event) const override {
    if (event) run_until(static_cast<Event *>(event)->stream, static_cast<Event *>(event)->number);
  }
  void destroyEvent(void *event, DeviceIndex) const noexcept override { delete static_cast<Event *>(event); }
  void synchronizeStream(const Stream &stream) const override { run_all(stream); }
  bool queryStream(const Stream &stream) const override { return queue_of(stream).waiting.empty(); }
  void synchronizeDevice(DeviceIndex index) const override {
    std::lock_guard<std::recursive_mutex> guard(stream_lock);
    for (auto &[key, queue] : queues)
      if (key.first == index) run_all(Stream(Stream::UNSAFE, device_of(index), key.second));
  }
  void recordDataPtrOnStream(const c10::DataPtr &, const Stream &) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(DeviceIndex index) const override { current_device = index; }
  DeviceIndex getCurrentDevice() const override { return current_device; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    return std::exchange(current_device, index);
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }
  bool isPinnedPtr(const void *address) const override { return is_pinned(address); }
  at::Allocator *getPinnedMemoryAllocator() const override { return &pinned_memory; }
  void resizePrivateUse1Bytes(const c10::Storage &storage, size_t bytes) const override {
    c10::DataPtr fresh =
        bytes ? storage.allocator()->allocate(bytes) : c10::DataPtr(nullptr, storage.device());
    if (bytes) std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
struct Registered {
  Registered() { at::RegisterPrivateUse1HooksInterface(new Hooks); }
} registered;

// -------------------------------------------------------------------------------------------- operators

// The same memory as a tensor of the CPU.
at::Tensor on_host(const at::Tensor &tensor) {
  if (tensor.device().is_cpu() || !tensor.storage().data()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       tensor.options().device(c10::DeviceType::CPU));
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device_of(device ? device->index() : -1));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_memory,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   dtype.value_or(at::ScalarType::Float), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device_of(device ? device->index() : -1));
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &device_memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           dtype.value_or(at::ScalarType::Float));
}

at::Tensor as_strided(const at::Tensor &self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt);
}

at::Tensor reshape_alias(const at::Tensor &self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return as_strided(self, size, stride, self.storage_offset());
}

at::Tensor view(const at::Tensor &self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

const at::Tensor &resize_(const at::Tensor &self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  at::TensorImpl *impl = self.unsafeGetTensorImpl();
  const size_t bytes =
      static_cast<size_t>(c10::multiply_integers(sizes) + self.storage_offset()) * self.itemsize();
  if (bytes > self.storage().nbytes()) {
    const c10::DeviceGuard guard(self.device());
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  }
  impl->set_sizes_contiguous(sizes);
  return self;
}

at::Tensor &set_(at::Tensor &self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
                 c10::SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.guard_int(__FILE__, __LINE__));
  return self;
}

at::Tensor &set_storage_(at::Tensor &self, at::Storage storage) {
  const int64_t count = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_(self, std::move(storage), 0, {count}, {1});
}

at::Tensor copy_from(const at::Tensor &self, const at::Tensor &to, bool non_blocking) {
  const at::Tensor &there = to.device().is_cpu() ? self : to;
  const Stream stream = current_stream(there.device().index());
  const at::Tensor &host = self.device().is_cpu() ? self : to;
  const bool crosses = self.device().is_cpu() != to.device().is_cpu();
  auto work = [self, to] { on_host(to).copy_(on_host(self)); };
  // CUDA reads pageable memory before it returns, and whoever copies out of the device into it waits.
  if (crosses && non_blocking && is_pinned(host.data_ptr())) {
    give_work(stream, std::move(work));
  } else {
    if (self.device() != to.device() && !self.device().is_cpu())
      run_all(current_stream(self.device().index()));
    run_all(stream);
    reads += to.device().is_cpu() && !in_fallback;
    work();
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor &self, const at::Tensor &to) {
  if (to.sizes() != self.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor &self) {
  reads++;
  run_all(current_stream(self.device().index()));
  return on_host(self).item();
}

void record_stream(at::Tensor &, Stream) {}

void on_cpu(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const bool before = std::exchange(in_fallback, true);
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    in_fallback = before;
    throw;
  }
  in_fallback = before;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage", set_storage_);
  m.impl("set_.source_Storage_storage_offset", set_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("record_stream", record_stream);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

}  // namespace

// What driver.py needs beside torch.
extern "C" {
// Before a kernel runs: everything that was given to the stream before it.
void standin_reach(int32_t device, int64_t stream) {
  run_all(Stream(Stream::UNSAFE, device_of(static_cast<DeviceIndex>(device)), stream));
}
// How often the host has waited for a copy out of the device.
int64_t standin_reads(void) { return reads; }
}
