// A model over ranks, each a thread with a device of its own, against the same model on one device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "comm/shm.h"
#include "io/expect_input_error.h"
#include "kernels/cpu/backend.h"
#include "models/memory_source.h"
#include "models/model_shard.h"
#include "models/stepper.h"

namespace minisgl {
namespace {

using nlohmann::json;
using testing::expect_input_error;
using testing::load;
using testing::random_model;
using testing::Stepper;

const std::vector<std::int32_t> prompt{3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3};
const std::vector<std::int32_t> pages{4, 2, 0, 1, 3, 5, 6, 7};
constexpr int kNewTokens = 16;

struct Answer {
  std::vector<float> prompt_logits;  // [2, vocab], of the prompt in two chunks
  std::vector<std::int32_t> greedy, drawn;
};

// What `device` says of the model: logits, and continuations that its own sampler draws.
Answer answer(const WeightSource& source, Device& device) {
  const auto model = load(source, device);
  Answer result;
  const std::vector<std::int32_t> head(prompt.begin(), prompt.begin() + 7), rest(prompt.begin() + 7, prompt.end());
  Stepper stepper(device, *model, 8);
  for (const auto& logits : {stepper.step({{head, 0, &pages}}), stepper.step({{rest, 7, &pages}})}) {
    result.prompt_logits.insert(result.prompt_logits.end(), logits.begin(), logits.end());
  }
  SamplingParams greedy, warm;
  greedy.temperature = 0.0f;
  warm.seed = 11;
  result.greedy = stepper.generate(prompt, pages, kNewTokens, greedy);
  result.drawn = stepper.generate(prompt, pages, kNewTokens, warm);
  return result;
}

// Every rank's answer. A source is made for each: loading takes its pages.
std::vector<Answer> answers(const json& config, int num_ranks) {
  auto communicators = make_shm_communicators(num_ranks);
  std::vector<Answer> results(communicators.size());
  std::vector<std::string> failures(communicators.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        const auto device = make_cpu_device(1, std::move(communicators[rank]));
        results[rank] = answer(random_model(config), *device);
      } catch (const std::exception& error) {
        failures[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  return results;
}

void expect_the_answers_of_one(const json& config, int num_ranks) {
  const auto alone = make_cpu_device(1);
  const Answer expected = answer(random_model(config), *alone);
  float largest = 0;
  for (const float logit : expected.prompt_logits) largest = std::max(largest, std::abs(logit));
  ASSERT_GT(largest, 1.0f);
  const std::vector<Answer> ranks = answers(config, num_ranks);
  for (const Answer& got : ranks) {
    ASSERT_EQ(got.prompt_logits.size(), expected.prompt_logits.size());
    for (std::size_t i = 0; i < got.prompt_logits.size(); ++i) {
      ASSERT_NEAR(got.prompt_logits[i], expected.prompt_logits[i], 2e-5f * largest) << "logit " << i;
    }
    EXPECT_EQ(got.prompt_logits, ranks.front().prompt_logits) << "ranks differ";
    EXPECT_EQ(got.greedy, expected.greedy);
    EXPECT_EQ(got.drawn, expected.drawn);
  }
}

// A model of 50 tokens, 160 features, 8 query and 4 KV heads.
json config_of(const std::string& family, const json& changes = {}) {
  json config{{"model_type", family},
              {"vocab_size", 50},
              {"hidden_size", 48},
              {"intermediate_size", 160},
              {"num_hidden_layers", 3},
              {"num_attention_heads", 8},
              {"num_key_value_heads", 4},
              {"head_dim", 8},
              {"max_position_embeddings", 128},
              {"rms_norm_eps", 1e-5},
              {"tie_word_embeddings", false}};
  config.update(changes.is_null() ? json::object() : changes);
  return config;
}

class Families : public ::testing::TestWithParam<std::tuple<const char*, int>> {};
INSTANTIATE_TEST_SUITE_P(All, Families,
                         ::testing::Combine(::testing::Values("llama", "mistral", "qwen2", "qwen3"),
                                            ::testing::Values(1, 2, 4, 8)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param));
                         });

// Over 8 ranks, two share a KV head.
TEST_P(Families, RanksSayWhatOneDeviceSays) {
  const auto [family, num_ranks] = GetParam();
  expect_the_answers_of_one(config_of(family), num_ranks);
}

TEST(TensorParallel, BiasesAreAddedOnce) {
  expect_the_answers_of_one(config_of("llama", {{"attention_bias", true}, {"mlp_bias", true}}), 4);
}

TEST(TensorParallel, TiedEmbeddingsAndAVocabularyOfAnySize) {
  for (const int vocab_size : {36, 37, 64, 65, 127}) {  // the last rank of 4 has none of the 36
    expect_the_answers_of_one(config_of("llama", {{"vocab_size", vocab_size}, {"tie_word_embeddings", true}}), 4);
  }
}

TEST(TensorParallel, ThreeRanksOfNineHeads) {
  expect_the_answers_of_one(
      config_of("llama", {{"num_attention_heads", 9}, {"num_key_value_heads", 3}, {"intermediate_size", 96}}), 3);
}

TEST(TensorParallel, EveryRankHoldsItsShareOfWeightsAndCache) {
  const auto alone = make_cpu_device(1);
  const std::int64_t whole = load(random_model(config_of("qwen2")), *alone)->weight_bytes();
  auto communicators = make_shm_communicators(4);
  for (auto& communicator : communicators) {
    const auto device = make_cpu_device(1, std::move(communicator));
    const auto model = load(random_model(config_of("qwen2")), *device);
    EXPECT_NEAR(static_cast<double>(model->weight_bytes()) / static_cast<double>(whole), 0.25, 0.03);
    const KvCache cache(*device, model->spec(), DType::f32, 2, 4);
    EXPECT_EQ(cache.layer(0).num_kv_heads, 1);
    EXPECT_EQ(KvCache::bytes_per_page(model->spec(), DType::f32, 4, 4) * 4,
              KvCache::bytes_per_page(model->spec(), DType::f32, 4));
  }
}

TEST(ModelShard, NumbersThatCannotBeSplitAreNamed) {
  const auto message_of = [](const json& changes, int num_ranks, const ColumnBlocks& blocks = {}) {
    return [=] { return shard_of(read_model_spec(random_model(config_of("llama", changes))), num_ranks, blocks); };
  };
  expect_input_error(message_of({{"num_attention_heads", 9}, {"num_key_value_heads", 3}, {"intermediate_size", 96}}, 2),
                     "the model's 9 query heads can't be split over 2 ranks; numbers of ranks that work: 1, 3");
  expect_input_error(message_of({{"num_attention_heads", 12}, {"num_key_value_heads", 4}}, 6),
                     "the model's 4 KV heads can't be split over 6 ranks; numbers of ranks that work: 1, 2, 4");
  expect_input_error(message_of({{"intermediate_size", 90}}, 4),
                     "the model's 90 intermediate features can't be split over 4 ranks; numbers of ranks that work: "
                     "1, 2");
  expect_input_error(message_of({}, 8, {.attention_output = 8, .down = 32}),
                     "the model's 160 intermediate features, which the file stores in blocks of 32, can't be split "
                     "over 8 ranks; numbers of ranks that work: 1");
  expect_input_error(message_of({}, 4, {.attention_output = 32, .down = 8}),
                     "the model's 64 attention outputs, which the file stores in blocks of 32, can't be split over 4 "
                     "ranks; numbers of ranks that work: 1, 2");
}

}  // namespace
}  // namespace minisgl
