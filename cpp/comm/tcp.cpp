// Collectives over a mesh of connections: one or two exchanges each, in chunks.
#include "comm/tcp.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "comm/sum.h"
#include "comm/tcp_mesh.h"
#include "core/error.h"

namespace minisgl {
namespace {

// Up to this many bytes each rank sends everything to every other, and all sum everything; above, each sums a share.
constexpr std::int64_t kSumAllBytes = 16 << 10;
constexpr std::int64_t kChunkBytes = 4 << 20;  // so much is received before it is summed

class TcpCommunicator final : public Communicator {
 public:
  explicit TcpCommunicator(const TcpOptions& options) : mesh_(options) {}

  std::string name() const override { return "TCP"; }
  int rank() const override { return mesh_.rank(); }
  int size() const override { return mesh_.size(); }
  int device() const override { return -1; }

  bool sums_by_rank() const override { return true; }
  void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle) override {
    check_summable(dtype);
    const std::int64_t most = kChunkBytes / row_bytes(dtype, 1);
    for (std::int64_t done = 0; size() > 1 && done < count; done += most) {
      auto* part = static_cast<std::byte*>(data) + row_bytes(dtype, done);
      const std::int64_t chunk = std::min(most, count - done);
      row_bytes(dtype, chunk) <= kSumAllBytes ? sum_all(part, chunk, dtype) : sum_shares(part, chunk, dtype);
    }
  }

  void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle) override {
    auto* parts = static_cast<std::byte*>(output);
    std::byte* own = parts + rank() * num_bytes;
    if (input != own) std::memcpy(own, input, static_cast<std::size_t>(num_bytes));
    exchange([&](int other) { return message(own, num_bytes, parts + other * num_bytes, num_bytes); });
  }

  void reduce_scatter_sum(const void* input, void* output, std::int64_t count, DType dtype, StreamHandle) override {
    check_summable(dtype);
    const auto* parts = static_cast<const std::byte*>(input);
    const std::int64_t part_bytes = row_bytes(dtype, count);
    const std::int64_t most = kChunkBytes / row_bytes(dtype, 1);
    for (std::int64_t done = 0; done < count; done += most) {
      const std::int64_t chunk = std::min(most, count - done), offset = row_bytes(dtype, done);
      const std::int64_t bytes = row_bytes(dtype, chunk);
      make_room(bytes);
      exchange([&](int other) {
        return message(parts + other * part_bytes + offset, bytes, received(other, bytes), bytes);
      });
      sum(parts + rank() * part_bytes + offset, chunk, dtype, static_cast<std::byte*>(output) + offset);
    }
  }

  void broadcast(void* data, std::int64_t num_bytes, int root, StreamHandle) override {
    MINISGL_CHECK(root >= 0 && root < size(), "root ", root, " of ", size());
    auto* bytes = static_cast<std::byte*>(data);
    exchange([&](int other) {
      if (rank() == root) return message(bytes, num_bytes, nullptr, 0);
      return other == root ? message(nullptr, 0, bytes, num_bytes) : TcpMessages{};
    });
  }

  void set_time_limit(const TimeLimit& limit) override { mesh_.set_time_limit(limit); }

  void barrier(StreamHandle) override {
    make_room(1);
    const std::byte token{1};
    exchange([&](int other) { return message(&token, 1, received(other, 1), 1); });
  }

 private:
  static void check_summable(DType dtype) { MINISGL_CHECK(!is_quantized(dtype), "a sum of ", dtype_info(dtype).name); }

  static TcpMessages message(const std::byte* send, std::int64_t num_send, std::byte* receive,
                             std::int64_t num_receive) {
    return {send, receive, static_cast<std::size_t>(num_send), static_cast<std::size_t>(num_receive)};
  }

  template <typename MessagesOf>
  void exchange(MessagesOf messages_of) {
    std::vector<TcpMessages> messages(static_cast<std::size_t>(size()));
    for (int other = 0; other < size(); ++other)
      if (other != rank()) messages[static_cast<std::size_t>(other)] = messages_of(other);
    mesh_.exchange(std::move(messages));
  }

  // Makes room for what every rank sends to be summed here.
  void make_room(std::int64_t bytes_a_rank) {
    received_.resize(std::max(received_.size(), static_cast<std::size_t>(size() * bytes_a_rank)));
  }
  std::byte* received(int rank, std::int64_t bytes_a_rank) { return received_.data() + rank * bytes_a_rank; }

  // The sum of what was received and of `own`.
  void sum(const std::byte* own, std::int64_t count, DType dtype, std::byte* out) {
    std::vector<const void*> inputs(static_cast<std::size_t>(size()));
    for (int other = 0; other < size(); ++other)
      inputs[static_cast<std::size_t>(other)] = other == rank() ? own : received(other, row_bytes(dtype, count));
    sum_(inputs.data(), size(), count, dtype, out);
  }

  void sum_all(std::byte* data, std::int64_t count, DType dtype) {
    const std::int64_t bytes = row_bytes(dtype, count);
    make_room(bytes);
    exchange([&](int other) { return message(data, bytes, received(other, bytes), bytes); });
    sum(data, count, dtype, data);
  }

  void sum_shares(std::byte* data, std::int64_t count, DType dtype) {
    const auto begin = [&](int share) { return row_bytes(dtype, count * share / size()); };
    const auto bytes = [&](int share) { return begin(share + 1) - begin(share); };
    const std::int64_t own_bytes = bytes(rank());
    std::byte* own = data + begin(rank());
    make_room(own_bytes);
    exchange(
        [&](int other) { return message(data + begin(other), bytes(other), received(other, own_bytes), own_bytes); });
    sum(own, own_bytes / row_bytes(dtype, 1), dtype, own);
    exchange([&](int other) { return message(own, own_bytes, data + begin(other), bytes(other)); });
  }

  TcpMesh mesh_;
  SumKernel sum_ = sum_kernel();
  std::vector<std::byte> received_;  // [size, bytes a rank] of the exchange at hand
};

}  // namespace

std::unique_ptr<Communicator> make_tcp_communicator(const TcpOptions& options) {
  return std::make_unique<TcpCommunicator>(options);
}

}  // namespace minisgl
