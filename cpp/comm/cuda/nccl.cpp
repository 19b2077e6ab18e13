// The communicator between GPUs: chooses by size, watches the other ranks, and gives up where one fails.
#include "comm/nccl.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/cuda/measure_sums.h"
#include "comm/cuda/nccl_group.h"
#include "comm/cuda/peer_all_reduce.h"
#include "comm/peer_watch.h"
#include "comm/sum_table.h"
#include "core/cuda/device_guard.h"
#include "core/error.h"

namespace minisgl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{500};
constexpr std::int64_t kMaxOneShotBytes = 512 << 10;
constexpr std::int64_t kMaxTwoShotBytes = 16 << 20;

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return ncclFloat32;
    case DType::f16: return ncclFloat16;
    case DType::bf16: return ncclBfloat16;
    default: throw InputError(concat("NCCL can't sum ", dtype_info(dtype).name));
  }
}

// Who the ranks are.
struct Members {
  int rank;
  int size;
  std::vector<pid_t> pids;  // rank by rank; 0: on another host
};

class GpuCommunicator final : public Communicator {
 public:
  // options.device must be the calling thread's device.
  GpuCommunicator(const NcclLibrary& nccl, const NcclUniqueId& id, const NcclOptions& options, const Members& members,
                  Communicator& host)
      : options_(options),
        members_(members),
        group_(nccl, id, members.rank, members.size, options.timeout),
        buffer_(group_, uses_buffer() ? static_cast<std::size_t>(options.max_buffer_bytes) : 0),
        barrier_(group_, sizeof(float)),
        limit_{options.timeout} {
    if (options.sums == GpuSums::fastest || options.sums == GpuSums::peers) peers_ = make_peers(host);
    watch_ = std::make_unique<PeerWatch>(members_.pids, [this](int rank) { fail_dead(rank); });
    patience_ = std::thread([this] { watch_waits(); });
  }

  // Called once, after the constructor.
  void choose_sums(Communicator& host) {
    std::string how;
    switch (options_.sums) {
      case GpuSums::fastest: how = measure(host); break;
      case GpuSums::nccl: break;
      case GpuSums::registered: table_ = SumTable(SumWay::registered); break;
      case GpuSums::peers:
        table_ = SumTable(SumWay::two_shot);
        for (int size_class = 0; SumTable::bytes_of(size_class) <= kMaxOneShotBytes; ++size_class)
          table_.set(size_class, SumWay::one_shot);
    }
    name_ = concat("NCCL ", group_.library().version_text(), ", ", table_.text(), how);
    if (buffer_.is_symmetric()) name_ += concat("; the buffer, of ", buffer_.size(), " bytes, is symmetric memory");
    if (!no_peers_.empty()) name_ += concat("; GPUs can't sum through each other's memory: ", no_peers_);
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
  int rank() const override { return members_.rank; }
  int size() const override { return members_.size; }
  int device() const override { return options_.device; }

  void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle stream) override {
    const DeviceGuard guard(options_.device);
    check();
    if (count > 0)
      sum(table_.way_of(row_bytes(dtype, count)), data, count, dtype, reinterpret_cast<cudaStream_t>(stream));
  }

  void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle stream) override {
    if (num_bytes == 0) return check();
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

  bool sums_by_rank() const override { return options_.sums == GpuSums::peers; }

  bool all_reduce_add_rms_norm(const SumAddRmsNorm& op, StreamHandle stream) override {
    if (table_.way_of(op.rows * row_bytes(op.dtype, op.cols)) != SumWay::one_shot) return false;
    const DeviceGuard guard(options_.device);
    check();
    return peers_->all_reduce_add_rms_norm(op, reinterpret_cast<cudaStream_t>(stream));
  }

  // Sums that are recorded afterwards keep this limit when they are replayed.
  void set_time_limit(const TimeLimit& limit) override {
    const std::lock_guard lock(mutex_);
    limit_ = limit;
    if (peers_) peers_->set_time_limit(limit.time);
    group_.set_time_limit(std::min(limit.time, options_.timeout));  // of its end
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

  bool uses_buffer() const { return options_.sums == GpuSums::fastest || options_.sums == GpuSums::registered; }

  std::unique_ptr<PeerAllReduce> make_peers(Communicator& host) {
    auto peers =
        PeerAllReduce::make(host, options_.device, kMaxOneShotBytes, kMaxTwoShotBytes, options_.timeout, no_peers_);
    if (!peers && options_.sums == GpuSums::peers)
      throw InputError(concat("GPUs can't sum through each other's memory: ", no_peers_));
    return peers;
  }

  // Says what it did.
  std::string measure(Communicator& host) {
    const auto buffer_bytes = static_cast<std::int64_t>(buffer_.size());
    const std::int64_t max_bytes =
        std::min(std::max(buffer_bytes, peers_ ? kMaxTwoShotBytes : 0), SumTable::bytes_of(SumTable::kNumClasses - 1));
    if (max_bytes < SumTable::kFirstBytes) return "";
    const Clock::time_point start = Clock::now();
    table_ = measure_sums(host, {max_bytes,
                                 [&](SumWay way, std::int64_t num_bytes) {
                                   switch (way) {
                                     case SumWay::in_place: return true;
                                     case SumWay::registered: return num_bytes <= buffer_bytes;
                                     case SumWay::one_shot:
                                       return peers_ && peers_->fits(PeerAlgorithm::one_shot, num_bytes);
                                     case SumWay::two_shot:
                                       return peers_ && peers_->fits(PeerAlgorithm::two_shot, num_bytes);
                                   }
                                   return false;
                                 },
                                 [&](SumWay way, void* data, std::int64_t count, cudaStream_t stream) {
                                   sum(way, data, count, DType::bf16, stream);
                                 },
                                 [&](cudaStream_t stream) {
                                   begin_wait();
                                   MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream));
                                   end_wait();
                                 }});
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
    return concat(" (the fastest, as measured in ", took.count(), " ms)");
  }

  void sum(SumWay way, void* data, std::int64_t count, DType dtype, cudaStream_t stream) {
    switch (way) {
      case SumWay::in_place: return nccl_sum(data, count, dtype, stream);
      case SumWay::registered: return registered_sum(data, count, dtype, stream);
      case SumWay::one_shot: return peers_->all_reduce_sum(PeerAlgorithm::one_shot, data, count, dtype, stream);
      case SumWay::two_shot: return two_shot_sum(data, count, dtype, stream);
    }
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
    call("ncclAllReduce", [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.all_reduce(data, data, static_cast<std::size_t>(count), nccl_type(dtype), ncclSum, comm, stream);
    });
  }

  void two_shot_sum(void* data, std::int64_t count, DType dtype, cudaStream_t stream) {
    const std::int64_t piece = kMaxTwoShotBytes / row_bytes(dtype, 1);
    for (std::int64_t first = 0; first < count; first += piece)
      peers_->all_reduce_sum(PeerAlgorithm::two_shot, static_cast<std::byte*>(data) + row_bytes(dtype, first),
                             std::min(piece, count - first), dtype, stream);
  }

  void registered_sum(void* data, std::int64_t count, DType dtype, cudaStream_t stream) {
    const std::int64_t piece = static_cast<std::int64_t>(buffer_.size()) / row_bytes(dtype, 1);
    for (std::int64_t first = 0; first < count; first += piece) {
      const std::int64_t part = std::min(piece, count - first);
      void* place = static_cast<std::byte*>(data) + row_bytes(dtype, first);
      const auto num_bytes = static_cast<std::size_t>(row_bytes(dtype, part));
      MINISGL_CUDA_CHECK(cudaMemcpyAsync(buffer_.data(), place, num_bytes, cudaMemcpyDeviceToDevice, stream));
      nccl_sum(buffer_.data(), part, dtype, stream);
      MINISGL_CUDA_CHECK(cudaMemcpyAsync(place, buffer_.data(), num_bytes, cudaMemcpyDeviceToDevice, stream));
    }
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
    fail(rank, concat("rank ", rank, " (process ", members_.pids[static_cast<std::size_t>(rank)], ") has died"));
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
        rank >= 0 && !members_.pids.empty() && is_stopped(members_.pids[static_cast<std::size_t>(rank)]);
    const std::string limit = [&] {
      const std::lock_guard lock(mutex_);
      return text_of(limit_);
    }();
    fail(rank, concat(who, " didn't come to a collective within ", limit, stopped ? " and is stopped" : ""));
  }

  // The first rank on this host whose process is in that state; -1: none.
  int find_peer(bool (*is_in_state)(pid_t)) const {
    for (std::size_t rank = 0; rank < members_.pids.size(); ++rank)
      if (members_.pids[rank] != 0 && is_in_state(members_.pids[rank])) return static_cast<int>(rank);
    return -1;
  }

  // Wakes at the deadline of the wait that it saw last, and every kLook to see one that began since, or a kernel that
  // gave a rank up. So a rank that hangs is noticed at most kLook after the time limit, and a wait costs two stores.
  void watch_waits() {
    std::unique_lock lock(mutex_);
    while (!ending_ && !failure_) {
      const Clock::time_point seen{Clock::duration(deadline_.load())};
      changed_.wait_until(lock, std::min(seen, Clock::now() + kLook), [this] { return ending_; });
      if (ending_ || failure_) continue;
      const std::optional<int> missing = peers_ ? peers_->missing_rank() : std::nullopt;
      if (!missing && (Clock::now() < seen || deadline_.load() != seen.time_since_epoch().count())) continue;
      lock.unlock();
      fail_late(missing.value_or(-1));
      lock.lock();
    }
  }

  const NcclOptions options_;
  const Members members_;
  std::string name_;
  NcclGroup group_;
  NcclBuffer buffer_;
  NcclBuffer barrier_;  // an f32 without meaning, which a barrier sums
  std::unique_ptr<PeerAllReduce> peers_;
  std::string no_peers_;  // why there are none
  SumTable table_;

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
  if (options.max_buffer_bytes < 0)
    throw InputError(concat("max_buffer_bytes must not be negative, got ", options.max_buffer_bytes));
  if (options.sums == GpuSums::registered && options.max_buffer_bytes < 16)
    throw InputError(concat("sums through a registered buffer need max_buffer_bytes of at least 16, got ",
                            options.max_buffer_bytes));
}

Members members_of(Communicator& host) {
  struct Process {
    std::array<char, 64> host;
    pid_t pid;
  } own{{}, getpid()};
  gethostname(own.host.data(), own.host.size() - 1);
  std::vector<Process> processes(static_cast<std::size_t>(host.size()));
  host.all_gather(&own, processes.data(), sizeof(own), 0);
  Members members{host.rank(), host.size(), {}};
  for (const Process& process : processes) members.pids.push_back(process.host == own.host ? process.pid : 0);
  return members;
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

std::unique_ptr<Communicator> make_gpu_communicator(const NcclOptions& options, Communicator& host) {
  check_options(options);
  // One flag, the id: every rank hears of a failure on rank 0 instead of waiting for ever.
  struct {
    std::int32_t good;
    NcclUniqueId id;
  } message{};
  std::string reason = "rank 0 has no NCCL; its own error says why";
  if (host.rank() == 0) {
    try {
      message.id = make_nccl_unique_id(options.library);
      message.good = 1;
    } catch (const InputError& error) {
      reason = error.what();
    }
  }
  host.broadcast(&message, sizeof(message), 0, 0);
  if (!message.good) throw InputError(reason);
  const Members members = members_of(host);
  const NcclLibrary nccl = NcclLibrary::load(options.library);
  const DeviceGuard guard(options.device);
  auto communicator = std::make_unique<GpuCommunicator>(nccl, message.id, options, members, host);
  communicator->choose_sums(host);
  return communicator;
}

int num_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no GPU: nothing to report later
  return 0;
}

}  // namespace minisgl
