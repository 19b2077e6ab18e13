// Two ranks that were given what they were given: they load and agree, or both end with the same sentence.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "comm/shm.h"
#include "engine/open_rank.h"
#include "io/expect_input_error.h"
#include "io/temporary_folder.h"
#include "models/memory_source.h"
#include "models/safetensors_folder.h"

namespace minisgl {
namespace {

using testing::MemorySource;
using testing::TemporaryFolder;
using testing::tiny_llama;

// Each rank's configuration, or the sentence that it ended with.
struct Outcome {
  EngineConfig config;
  std::string error;
};

// Rank 0 on host 0 with the tiny model, rank 1 on host 1 with what `change` makes of it.
std::array<Outcome, 2> open_both(const std::function<void(MemorySource&)>& change, EngineOptions first = {},
                                 EngineOptions second = {}) {
  std::array<TemporaryFolder, 2> folders;
  std::array<EngineOptions, 2> options{first, second};
  std::array<Outcome, 2> outcomes;
  auto communicators = make_shm_communicators(2);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    MemorySource source = tiny_llama();
    if (rank == 1) change(source);
    write_safetensors(source, folders[rank].path());
    threads.emplace_back([&, rank] {
      const std::shared_ptr<Communicator> communicator = std::move(communicators[rank]);
      try {
        options[rank].model_path = folders[rank].path();
        options[rank].device = "cpu";
        options[rank].num_threads = 1;
        const Place place{
            .rank = rank, .size = 2, .local_size = 1, .device_comm = communicator, .host_comm = communicator};
        outcomes[rank].config = load_rank(options[rank], place).info.config;
      } catch (const std::exception& error) {
        outcomes[rank].error = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

void expect_refusal(const std::array<Outcome, 2>& outcomes, const std::string& sentence) {
  EXPECT_EQ(outcomes[0].error, sentence);
  EXPECT_EQ(outcomes[1].error, sentence);
}

TEST(OpenRank, RanksWithTheSameModelAgree) {
  const auto [first, second] = open_both([](MemorySource&) {}, {.kv_cache_tokens = 512}, {.kv_cache_tokens = 256});
  EXPECT_EQ(first.error, "");
  EXPECT_EQ(second.error, "");
  EXPECT_EQ(first.config.num_pages, 16);  // the rank with the least room says how many
  EXPECT_EQ(second.config.num_pages, 16);
  EXPECT_EQ(first.config.max_model_len, 128);
}

TEST(OpenRank, AnotherFineTuneOfTheSameShapeIsRefused) {
  const std::string sentence =
      "rank 1 (host 1) has loaded other weights than rank 0 (host 0): the two models have the same shape, but their "
      "files differ; every host needs the same --model and --revision";
  expect_refusal(
      open_both([](MemorySource& model) { model.data("model.layers.1.mlp.down_proj.weight")[77] += 0.001f; }),
      sentence);
  expect_refusal(open_both([](MemorySource& model) { model.values["rope_theta"] = 20000.0; }), sentence);
}

TEST(OpenRank, AnotherShapeIsRefusedByName) {
  expect_refusal(open_both([](MemorySource& model) { model.values["max_position_embeddings"] = 64; }),
                 "rank 1 (host 1) has max_position 64, rank 0 (host 0) has 128; every host needs the same --model and "
                 "--revision");
}

TEST(OpenRank, AnUnknownLoadFormatIsRefused) {
  testing::expect_input_error([] { load_rank({.model_path = "m", .load_format = "gguf"}); },
                              "--load-format must be auto or dummy, got gguf");
}

TEST(OpenRank, OtherLimitsAreRefusedByName) {
  expect_refusal(open_both([](MemorySource&) {}, {.max_batch_tokens = 256}, {.max_batch_tokens = 512}),
                 "rank 1 (host 1) has max_batch_tokens 512, rank 0 (host 0) has 256; every host needs the same kind of "
                 "device");
}

}  // namespace
}  // namespace minisgl
