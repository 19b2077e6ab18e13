// The communicator between GPUs: chooses by size, watches the other ranks, and gives up where one fails.
#include "comm/nccl.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "comm/cuda/nccl_group.h"
#include "comm/cuda/peer_all_reduce.h"
#include "comm/cuda/size_classes.h"
#include "comm/peer_watch.h"
#include "core/cuda/device_guard.h"
#include "core/error.h"

namespace minisgl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{500};
constexpr std::int64_t kMaxOneShotBytes = 512 << 10;
constexpr std::int64_t kMaxTwoShotBytes = 4 << 20;

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return ncclFloat32;
    case DType::f16: return ncclFloat16;
    case DType::bf16: return ncclBfloat16;
    default: throw InputError(concat("NCCL can't sum ", dtype_info(dtype).name));
  }
}

class GpuCommunicator final : public Communicator {
 public:
  // options.device must be the calling thread's device. `host` is not read for PeerSums::never.
  GpuCommunicator(const NcclLibrary& nccl, const NcclUniqueId& id, const NcclOptions& options, PeerSums peer_sums,
                  Communicator* host)
      : options_(options),
        group_(nccl, id, options.rank, options.size, options.timeout),
        buffer_(group_, static_cast<std::size_t>(options.max_buffer_bytes)),
        barrier_(group_, sizeof(float)),
        limit_{options.timeout} {
    name_ = "NCCL " + nccl.version_text();
    if (buffer_.is_symmetric()) name_ += concat(", symmetric memory up to ", buffer_.size(), " bytes");
    if (peer_sums != PeerSums::never) start_peers(peer_sums, *host);
    watch_ = std::make_unique<PeerWatch>(options.pids, [this](int rank) { fail_dead(rank); });
    patience_ = std::thread([this] { watch_waits(); });
  }

  ~GpuCommunicator() override {
    watch_.reset();
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    patience_.join();
  }

  std::string name() const override { return name_; }
  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  int device() const override { return options_.device; }

  void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle stream) override {
    const DeviceGuard guard(options_.device);
    check();
    const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    const std::int64_t num_bytes = row_bytes(dtype, count);
    if (num_bytes == 0) return;
    if (num_bytes <= classes_.max_one_shot_bytes)
      return peers_->all_reduce_sum(PeerAlgorithm::one_shot, data, count, dtype, cuda_stream);
    if (num_bytes <= classes_.max_two_shot_bytes)
      return peers_->all_reduce_sum(PeerAlgorithm::two_shot, data, count, dtype, cuda_stream);
    nccl_sum(data, count, dtype, cuda_stream);
  }

  void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle stream) override {
    call("ncclAllGather", [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.all_gather(input, output, static_cast<std::size_t>(num_bytes), ncclInt8, comm,
                             reinterpret_cast<cudaStream_t>(stream));
    });
  }

  void reduce_scatter_sum(const void* input, void* output, std::int64_t count, DType dtype,
                          StreamHandle stream) override {
    call("ncclReduceScatter", [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.reduce_scatter(input, output, static_cast<std::size_t>(count), nccl_type(dtype), ncclSum, comm,
                                 reinterpret_cast<cudaStream_t>(stream));
    });
  }

  void broadcast(void* data, std::int64_t num_bytes, int root, StreamHandle stream) override {
    call("ncclBroadcast", [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.broadcast(data, data, static_cast<std::size_t>(num_bytes), ncclInt8, root, comm,
                            reinterpret_cast<cudaStream_t>(stream));
    });
  }

  void barrier(StreamHandle stream) override { all_reduce_sum(barrier_.data(), 1, DType::f32, stream); }

  bool all_reduce_add_rms_norm(const SumAddRmsNorm& op, StreamHandle stream) override {
    if (op.rows * row_bytes(op.dtype, op.cols) > classes_.max_one_shot_bytes) return false;
    if (!peers_) return false;
    const DeviceGuard guard(options_.device);
    check();
    return peers_->all_reduce_add_rms_norm(op, reinterpret_cast<cudaStream_t>(stream));
  }

  // Sums that are recorded afterwards keep this limit when they are replayed.
  void set_time_limit(const TimeLimit& limit) override {
    const std::lock_guard lock(mutex_);
    limit_ = limit;
    if (peers_) peers_->set_time_limit(limit.time);
    group_.set_time_limit(limit.time);
  }

  void begin_wait() override { deadline_.store((Clock::now() + limit_.time).time_since_epoch().count()); }

  void end_wait() override {
    deadline_.store(kNoDeadline);
    check();
    if (const auto missing = peers_ ? peers_->missing_rank() : std::nullopt) fail_late(*missing);
    if (const std::string error = group_.asynchronous_error(); !error.empty()) fail_unknown("NCCL: " + error);
    check();
  }

 private:
  static constexpr Clock::rep kNoDeadline = Clock::time_point::max().time_since_epoch().count();

  void start_peers(PeerSums peer_sums, Communicator& host) {
    std::string reason;
    peers_ = PeerAllReduce::make(host, options_.device, kMaxOneShotBytes, kMaxTwoShotBytes, options_.timeout, reason);
    if (!peers_) {
      reason = concat("GPUs can't sum through each other's memory: ", reason);
      if (peer_sums == PeerSums::always) throw InputError(reason);
      name_ += concat(" (", reason, ")");
      return;
    }
    if (peer_sums == PeerSums::always) {
      classes_ = {kMaxOneShotBytes, kMaxTwoShotBytes};
    } else {
      // classes_ are still empty, so these go through NCCL.
      classes_ = measure_size_classes(*peers_, host, [&](void* data, std::int64_t count, cudaStream_t stream) {
        nccl_sum(data, count, DType::bf16, stream);
      });
    }
    name_ = concat("one-shot sums up to ", classes_.max_one_shot_bytes, " bytes, two-shot up to ",
                   classes_.max_two_shot_bytes, ", above that ", name_,
                   peer_sums == PeerSums::always ? "" : " (the fastest, as measured)");
  }

  template <typename Function>
  void call(const char* name, Function function) {
    const DeviceGuard guard(options_.device);
    check();
    try {
      group_.call(name, function);
    } catch (const RankFailure& failure) {
      fail_unknown(failure.what());
      check();
    }
  }

  void nccl_sum(void* data, std::int64_t count, DType dtype, cudaStream_t stream) {
    const auto num_bytes = static_cast<std::size_t>(row_bytes(dtype, count));
    const bool through_buffer = num_bytes <= buffer_.size() && buffer_.size() > 0;
    void* place = through_buffer ? buffer_.data() : data;
    const auto copy = [&](void* to, const void* from) {
      MINISGL_CUDA_CHECK(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToDevice, stream));
    };
    if (through_buffer) copy(place, data);
    call("ncclAllReduce", [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.all_reduce(place, place, static_cast<std::size_t>(count), nccl_type(dtype), ncclSum, comm, stream);
    });
    if (through_buffer) copy(data, place);
  }

  // Throws what has failed.
  void check() {
    if (!failed_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex_);
    throw *failure_;
  }

  // Keeps the first failure and ends what the device waits for; from any thread.
  void fail(int rank, const std::string& message) {
    {
      const std::lock_guard lock(mutex_);
      if (failure_) return;
      failure_.emplace(rank, message);
      failed_.store(true, std::memory_order_release);
    }
    if (peers_) peers_->give_up();
    group_.abort();
  }

  void fail_dead(int rank) {
    fail(rank, concat("rank ", rank, " (process ", options_.pids[static_cast<std::size_t>(rank)], ") has died"));
  }

  // A failure of which NCCL doesn't say whose it is.
  void fail_unknown(const std::string& message) {
    const int dead = find_peer(has_ended);
    dead >= 0 ? fail_dead(dead) : fail(-1, message);
  }

  // `rank`: the late one; -1 where none is known to be late.
  void fail_late(int rank) {
    if (rank < 0) rank = find_peer(is_stopped);
    const std::string who = rank < 0 ? "a rank" : concat("rank ", rank);
    const bool stopped =
        rank >= 0 && !options_.pids.empty() && is_stopped(options_.pids[static_cast<std::size_t>(rank)]);
    const std::string limit = [&] {
      const std::lock_guard lock(mutex_);
      return text_of(limit_);
    }();
    fail(rank, concat(who, " didn't come to a collective within ", limit, stopped ? " and is stopped" : ""));
  }

  // The first rank on this host whose process is in that state; -1: none.
  int find_peer(bool (*is_in_state)(pid_t)) const {
    for (std::size_t rank = 0; rank < options_.pids.size(); ++rank)
      if (options_.pids[rank] != 0 && is_in_state(options_.pids[rank])) return static_cast<int>(rank);
    return -1;
  }

  // Wakes at the deadline of the wait that it saw last, and every kLook to see one that began since. So a rank that
  // hangs is noticed at most kLook after the time limit, and a wait costs two stores.
  void watch_waits() {
    std::unique_lock lock(mutex_);
    while (!ending_ && !failure_) {
      const Clock::time_point seen{Clock::duration(deadline_.load())};
      changed_.wait_until(lock, std::min(seen, Clock::now() + kLook), [this] { return ending_; });
      if (ending_ || failure_ || Clock::now() < seen || deadline_.load() != seen.time_since_epoch().count()) continue;
      lock.unlock();
      fail_late(peers_ ? peers_->missing_rank().value_or(-1) : -1);
      lock.lock();
    }
  }

  const NcclOptions options_;
  std::string name_;
  NcclGroup group_;
  NcclBuffer buffer_;
  NcclBuffer barrier_;  // an f32 without meaning, which a barrier sums
  std::unique_ptr<PeerAllReduce> peers_;
  SizeClasses classes_;

  std::atomic<Clock::rep> deadline_{kNoDeadline};  // the end of the wait under way
  std::atomic<bool> failed_{false};                // there is a failure_
  std::mutex mutex_;                               // guards the following
  std::optional<RankFailure> failure_;
  TimeLimit limit_;  // limit of a wait; written by the thread that makes the calls
  bool ending_ = false;
  std::condition_variable changed_;
  std::unique_ptr<PeerWatch> watch_;
  std::thread patience_;
};

void check_options(const NcclOptions& options) {
  check_rank(options.rank, options.size);
  if (options.max_buffer_bytes < 0)
    throw InputError(concat("max_buffer_bytes must not be negative, got ", options.max_buffer_bytes));
}

}  // namespace

NcclUniqueId make_nccl_unique_id(const std::string& library) {
  const NcclLibrary nccl = NcclLibrary::load(library);
  ncclUniqueId nccl_id;
  nccl.check(nccl.get_unique_id(&nccl_id), "ncclGetUniqueId");
  NcclUniqueId id;
  std::memcpy(id.data(), &nccl_id, id.size());
  return id;
}

std::unique_ptr<Communicator> make_nccl_communicator(const NcclUniqueId& id, const NcclOptions& options) {
  check_options(options);
  const NcclLibrary nccl = NcclLibrary::load(options.library);
  const DeviceGuard guard(options.device);
  return std::make_unique<GpuCommunicator>(nccl, id, options, PeerSums::never, nullptr);
}

std::unique_ptr<Communicator> make_gpu_communicator(const NcclOptions& options, Communicator& host,
                                                    PeerSums peer_sums) {
  check_options(options);
  // One flag, the id: every rank hears of a failure on rank 0 instead of waiting for ever.
  struct {
    std::int32_t good;
    NcclUniqueId id;
  } message{};
  std::string reason = "rank 0 has no NCCL; its own error says why";
  if (options.rank == 0) {
    try {
      message.id = make_nccl_unique_id(options.library);
      message.good = 1;
    } catch (const InputError& error) {
      reason = error.what();
    }
  }
  host.broadcast(&message, sizeof(message), 0, 0);
  if (!message.good) throw InputError(reason);
  struct Process {
    std::array<char, 64> host;
    pid_t pid;
  } own{{}, getpid()};
  gethostname(own.host.data(), own.host.size() - 1);
  std::vector<Process> processes(static_cast<std::size_t>(options.size));
  host.all_gather(&own, processes.data(), sizeof(own), 0);
  NcclOptions watched = options;
  watched.pids.clear();
  for (const Process& process : processes) watched.pids.push_back(process.host == own.host ? process.pid : 0);
  const NcclLibrary nccl = NcclLibrary::load(options.library);
  const DeviceGuard guard(options.device);
  return std::make_unique<GpuCommunicator>(nccl, message.id, watched, peer_sums, &host);
}

int num_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no GPU: nothing to report later
  return 0;
}

}  // namespace minisgl
