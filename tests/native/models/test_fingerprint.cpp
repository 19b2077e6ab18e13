// What a fingerprint sees.
#include <gtest/gtest.h>

#include <functional>
#include <span>

#include "models/fingerprint.h"
#include "models/memory_source.h"
#include "models/registry.h"

namespace minisgl {
namespace {

using testing::MemorySource;

std::uint64_t fingerprint_of(const MemorySource& source) {
  ThreadPool pool(2);
  return fingerprint(read_model_spec(source), source, pool);
}

std::uint64_t fingerprint_after(const std::function<void(MemorySource&)>& change) {
  MemorySource source = testing::tiny_llama();
  source.add("large", {1000, 1000});  // 4 MB, of which 256 KiB are read
  change(source);
  return fingerprint_of(source);
}

TEST(Fingerprint, IsAFunctionOfTheModel) {
  const auto same = [](MemorySource&) {};
  EXPECT_EQ(fingerprint_after(same), fingerprint_after(same));
  EXPECT_NE(fingerprint_after(same), 0u);
}

TEST(Fingerprint, SeesWhatDistinguishesTwoModels) {
  const std::uint64_t original = fingerprint_after([](MemorySource&) {});
  for (const std::function<void(MemorySource&)>& change : std::initializer_list<std::function<void(MemorySource&)>>{
           [](MemorySource& model) { model.data("model.norm.weight")[31] += 1.0f; },  // a small tensor: every byte
           [](MemorySource& model) { model.data("model.embed_tokens.weight")[0] += 1.0f; },
           [](MemorySource& model) { model.data("large").front() += 1.0f; },  // a large one: its two ends for certain
           [](MemorySource& model) { model.data("large").back() += 1.0f; },
           [](MemorySource& model) {
             for (float& value : model.data("large")) value *= 1.0001f;
           },
           [](MemorySource& model) { model.add("another", {1}); },
           [](MemorySource& model) { model.remove("large"); },
           [](MemorySource& model) { model.values["rms_norm_eps"] = 1e-6; },
           [](MemorySource& model) { model.values["rope_theta"] = 500000.0; },
           [](MemorySource& model) { model.values["eos_token_id"] = 3; },
       }) {
    EXPECT_NE(fingerprint_after(change), original);
  }
}

TEST(Fingerprint, ReadsBlocksAllOverALargeTensor) {
  MemorySource source = testing::tiny_llama();
  source.add("large", {1000, 1000});
  const std::uint64_t original = fingerprint_of(source);
  for (std::size_t part = 0; part < 50; ++part) {  // 80 KB, more than lies between two blocks
    const std::span values = std::span(source.data("large")).subspan(part * 20000, 20000);
    for (float& value : values) value = -value;
    EXPECT_NE(fingerprint_of(source), original) << part;
    for (float& value : values) value = -value;
  }
  EXPECT_EQ(fingerprint_of(source), original);
}

TEST(Fingerprint, TellsAShapeFromItsTranspose) {
  const auto of_shape = [](std::vector<std::int64_t> shape) {
    MemorySource source = testing::tiny_llama();
    source.add("matrix", std::move(shape));
    return fingerprint_of(source);
  };
  EXPECT_NE(of_shape({3, 5}), of_shape({5, 3}));
}

}  // namespace
}  // namespace minisgl
