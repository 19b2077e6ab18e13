// A rank reads its own part of the weights and nothing else: what it has no business with can't be read.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "comm/shm.h"
#include "kernels/cpu/backend.h"
#include "models/memory_source.h"
#include "models/stepper.h"

namespace minisgl {
namespace {

using testing::MemorySource;

constexpr int kRanks = 2;
constexpr std::size_t kPage = 4096;

// Pages of their own, which can be closed to reading.
class Pages {
 public:
  explicit Pages(std::span<const std::byte> content)
      : size_((content.size() + kPage - 1) / kPage * kPage),
        data_(static_cast<std::byte*>(
            ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    std::memcpy(data_, content.data(), content.size());
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { ::munmap(data_, size_); }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  void close(std::size_t first, std::size_t count) { ::mprotect(data_ + first, count, PROT_NONE); }

 private:
  std::size_t size_;
  std::byte* data_;
};

// The half of each matrix that belongs to the other of two ranks is closed: a read of it ends the program.
class GuardedSource : public WeightSource {
 public:
  GuardedSource(MemorySource source, int rank) : source_(std::move(source)) {
    for (const std::string& name : source_.names()) {
      const TensorData tensor = source_.tensor(name);
      if (tensor.shape.size() != 2) continue;
      const auto pages = std::make_shared<Pages>(tensor.bytes);
      const auto row = tensor.bytes.size() / static_cast<std::size_t>(tensor.shape[0]);
      const bool by_columns = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
      const std::size_t whole = by_columns ? row : tensor.bytes.size(), half = whole / 2;
      EXPECT_EQ(half % kPage, 0u) << name;
      for (std::size_t at = 0; at < tensor.bytes.size(); at += whole) pages->close(at + (rank == 0 ? half : 0), half);
      pages_[name] = pages;
    }
  }
  const nlohmann::json& config() const override { return source_.config(); }
  bool contains(const std::string& name) const override { return source_.contains(name); }
  TensorData tensor(const std::string& name) const override {
    TensorData tensor = source_.tensor(name);
    const auto pages = pages_.find(name);
    if (pages != pages_.end()) tensor.bytes = pages->second->bytes().first(tensor.bytes.size());
    return tensor;
  }
  std::vector<std::string> names() const override { return source_.names(); }
  std::string path() const override { return source_.path(); }
  bool interleaved_rope() const override { return true; }

 private:
  MemorySource source_;
  std::map<std::string, std::shared_ptr<Pages>> pages_;
};

// Halves of matrices are whole pages, halves of the rows of those that are cut by columns too.
MemorySource wide_model() {
  return testing::random_model({{"model_type", "llama"},
                                {"vocab_size", 512},
                                {"hidden_size", 16},
                                {"intermediate_size", 2048},
                                {"num_hidden_layers", 2},
                                {"num_attention_heads", 16},
                                {"num_key_value_heads", 4},
                                {"head_dim", 128},
                                {"max_position_embeddings", 64}});
}

TEST(OwnPart, NothingElseIsRead) {
  if (::sysconf(_SC_PAGESIZE) != kPage) GTEST_SKIP() << "pages of another size";
  auto communicators = make_shm_communicators(kRanks);
  for (int rank = 0; rank < kRanks; ++rank) {
    const auto device = make_cpu_device(2, std::move(communicators[static_cast<std::size_t>(rank)]));
    const GuardedSource source(wide_model(), rank);
    EXPECT_GT(testing::load(source, *device)->weight_bytes(), 0);
  }
}

TEST(OwnPartDeathTest, AWholeModelReadsAll) {
  if (::sysconf(_SC_PAGESIZE) != kPage) GTEST_SKIP() << "pages of another size";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const auto device = make_cpu_device(1);
        testing::load(GuardedSource(wide_model(), 0), *device);
      },
      "");
}

}  // namespace
}  // namespace minisgl
