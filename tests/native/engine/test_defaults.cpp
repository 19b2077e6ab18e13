// What is chosen for a user who says nothing, and what is said to one who asks for too much.
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/host_limits.h"
#include "engine/async_device.h"
#include "engine/defaults.h"
#include "gemm/gemm.h"
#include "kernels/cpu/backend.h"
#include "models/kv_cache.h"
#include "models/model_shard.h"
#include "models/workspace.h"

namespace minisgl {
namespace {

constexpr std::int64_t mebibyte = 1 << 20, gibibyte = 1 << 30;

// The shape of the default model: 22.5 KiB of f16 cache a token.
ModelSpec small_spec() {
  ModelSpec spec;
  spec.vocab_size = 49152;
  spec.hidden_size = 576;
  spec.intermediate_size = 1536;
  spec.num_layers = 30;
  spec.num_heads = 9;
  spec.num_kv_heads = 3;
  spec.head_dim = 64;
  spec.max_position = 8192;
  return spec;
}

const Device& cpu() {
  static const std::unique_ptr<Device> device = make_cpu_device(1);
  return *device;
}

// A decoder as far as memory goes.
class SizedModel final : public Model {
 public:
  SizedModel(ModelSpec spec, DType weight_dtype, const Device& device)
      : spec_(std::move(spec)),
        weight_dtype_(weight_dtype),
        workspace_(spec_, shard_of(spec_, device.num_ranks()), device.num_ranks(), device.activation_dtype()) {}
  const ModelSpec& spec() const override { return spec_; }
  Tensor forward(const StepBatch&, KvCache&) override { throw CheckError("it has no weights"); }
  std::int64_t workspace_bytes(const StepLimits& limits) const override {
    return workspace_.bytes_for(limits.rows, limits.logits + limits.hidden, limits.logits);
  }
  std::int64_t weight_bytes() const override { return 90 * mebibyte; }
  DType weight_dtype() const override { return weight_dtype_; }

 private:
  ModelSpec spec_;
  DType weight_dtype_;
  Workspace workspace_;
};

EngineConfig choose(const EngineOptions& settings, std::int64_t available = 8 * gibibyte,
                    DType weight_dtype = DType::q4_1) {
  return choose_config(settings, SizedModel(small_spec(), weight_dtype, cpu()), cpu(), available);
}

std::string refusal(const EngineOptions& settings, std::int64_t available = 8 * gibibyte) {
  try {
    choose(settings, available);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

// As a GPU has it.
class Fp8Device final : public testing_support::AsyncDevice {
 public:
  bool supports_kv_dtype(DType) const override { return true; }
};

TEST(Defaults, Fp8NeedsHeadsOfSixteens) {
  const Fp8Device device;
  ModelSpec spec = small_spec();
  const EngineOptions settings{.kv_dtype = "fp8"};
  EXPECT_EQ(choose_config(settings, SizedModel(spec, DType::bf16, device), device, 8 * gibibyte).kv_dtype,
            DType::f8e4m3);
  spec.head_dim = 24;
  try {
    choose_config(settings, SizedModel(spec, DType::bf16, device), device, 8 * gibibyte);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "--kv-dtype fp8 needs heads of a multiple of 16, this model's have 24; use bf16 or auto");
  }
}

TEST(Defaults, WithPlentyOfMemory) {
  const EngineConfig options = choose({});
  EXPECT_EQ(options.num_pages, 1024);  // 16384 tokens
  EXPECT_EQ(options.page_size, 16);
  EXPECT_EQ(options.max_model_len, 8192);  // the model's
  EXPECT_EQ(options.max_running, 256);
  EXPECT_EQ(options.max_batch_tokens, 512);
}

TEST(Defaults, CacheTypeFollowsTheWeights) {
  EXPECT_EQ(choose({}, gibibyte, DType::q4_k).kv_dtype, DType::f16);
  EXPECT_EQ(choose({}, gibibyte, DType::f16).kv_dtype, DType::f16);
  EXPECT_EQ(choose({}, gibibyte, DType::bf16).kv_dtype, DType::bf16);
  EXPECT_EQ(choose({}, gibibyte, DType::f32).kv_dtype, DType::f32);
  EXPECT_EQ(choose({.kv_dtype = "f32"}).kv_dtype, DType::f32);
  EXPECT_EQ(choose({.kv_dtype = "int8"}).kv_dtype, DType::i8);
}

TEST(Defaults, ALongerSequenceGetsALargerCache) {
  ModelSpec spec = small_spec();
  spec.max_position = 131072;
  const SizedModel model(spec, DType::q4_1, cpu());
  EXPECT_EQ(choose_config({}, model, cpu(), 8 * gibibyte).max_model_len, 16384);  // what the usual cache holds
  const EngineConfig options = choose_config({.max_model_len = 32768}, model, cpu(), 8 * gibibyte);
  EXPECT_EQ(options.max_model_len, 32768);
  EXPECT_EQ(options.num_pages, 2048);
}

TEST(Defaults, ShortMemoryShrinksTheCache) {
  const EngineConfig options = choose({}, 260 * mebibyte);
  EXPECT_GE(options.num_pages * 16, 1024);
  EXPECT_LT(options.num_pages * 16, 8192);
  EXPECT_EQ(options.max_model_len, options.num_pages * 16);
  const std::int64_t cache = options.num_pages * KvCache::bytes_per_page(small_spec(), DType::f16, 16);
  const SizedModel model(small_spec(), DType::q4_1, cpu());
  const StepLimits largest{.rows = 512,
                           .sequences = 256,
                           .penalized = 256,
                           .logits = 256 + 64,
                           .hidden = 512,
                           .positions = 8192,
                           .pages = 1024,
                           .vocab_size = 49152};
  EXPECT_LT(cache + model.workspace_bytes(largest), 260 * mebibyte);
}

TEST(Defaults, RoundsTheCacheUpToPages) {
  EXPECT_EQ(choose({.kv_cache_tokens = 1001}).num_pages, 63);
}

TEST(Defaults, RunsNoMoreThanAStepHasRowsFor) {
  EXPECT_EQ(choose({.max_running = 100, .max_batch_tokens = 8}).max_running, 8);
}

TEST(Defaults, CountsForPenaltiesAreBoundedByThemselves) {
  EXPECT_EQ(choose({}).max_penalized, 256);
  EXPECT_EQ(choose({.max_running = 100}).max_penalized, 100);
  EXPECT_EQ(choose({.max_running = 4096, .max_batch_tokens = 8192}).max_penalized,
            256 * mebibyte / (4 * small_spec().vocab_size));
  EXPECT_EQ(choose({.max_running = 4096, .max_penalized = 3000, .max_batch_tokens = 8192}).max_penalized, 3000);
  EXPECT_EQ(choose({.max_penalized = 1000}).max_penalized, 256);
  EXPECT_EQ(refusal({.max_penalized = -1}, gibibyte), "--max-penalized must be between 0 and 65536, got -1");
}

TEST(Defaults, AnImpossibleBudgetIsPrinted) {
  EXPECT_EQ(refusal({.kv_cache_tokens = 100000}, gibibyte),
            "not enough memory for a KV cache of 100000 tokens: weights 90 MiB (already loaded), KV cache 2197 MiB, "
            "workspace 116 MiB, available 1024 MiB of which 90% may be used; set --kv-cache-tokens to at most 36656");
  EXPECT_NE(refusal({.max_model_len = 8000}, 200 * mebibyte).find("set --max-model-len to at most "),
            std::string::npos);
  EXPECT_NE(refusal({}, 10 * mebibyte).find("lower --max-batch-tokens"), std::string::npos);
}

TEST(Defaults, TheAdviceWorks) {
  EXPECT_EQ(refusal({.kv_cache_tokens = 36656}, gibibyte), "");
  EXPECT_NE(refusal({.kv_cache_tokens = 36657}, gibibyte), "");
}

// A page of 16 tokens has 360 KiB.
TEST(Defaults, AHostTierIsForDevicesWithMemoryOfTheirOwn) {
  EXPECT_EQ(choose({}).num_host_pages, 0);
  const std::string sentence = refusal({.kv_host_bytes = gibibyte});
  EXPECT_EQ(sentence.find("--kv-host-bytes 1073741824 is for GPUs: on CPU ("), 0u) << sentence;
  EXPECT_NE(sentence.find("raise --kv-cache-tokens instead"), std::string::npos);

  const testing_support::AsyncDevice device;
  const SizedModel model(small_spec(), DType::q4_1, device);
  const auto choose_there = [&](const EngineOptions& options) {
    return choose_config(options, model, device, 8 * gibibyte).num_host_pages;
  };
  EXPECT_EQ(choose_there({.kv_host_bytes = gibibyte}), gibibyte / (360 << 10));
  EXPECT_EQ(choose_there(part_of_rank({.kv_host_bytes = gibibyte}, 4)), gibibyte / 4 / (360 << 10));
  EXPECT_THROW(choose_there(part_of_rank({.kv_host_bytes = 1}, 4)), InputError);
  EXPECT_THROW(choose_there({.kv_host_bytes = 1000}), InputError);
  EXPECT_THROW(choose_there({.kv_host_bytes = gibibyte, .disable_prefix_cache = true}), InputError);
  EXPECT_THROW(choose_there({.kv_host_bytes = -1}), InputError);
}

TEST(Defaults, WhatTheHostHasNoMemoryForIsRefused) {
  check_host_memory({.kv_host_bytes = mebibyte});
  const std::int64_t most = available_memory();
  try {
    check_host_memory({.kv_host_bytes = 2 * most});
    FAIL() << "it is more than there is";
  } catch (const InputError& error) {
    const std::string sentence = error.what();
    EXPECT_EQ(sentence.find(concat("--kv-host-bytes ", 2 * most, " (")), 0u) << sentence;
    EXPECT_NE(sentence.find(" for a replica) is more than the host's free memory"), std::string::npos);
    EXPECT_NE(sentence.find("set --kv-host-bytes to at most "), std::string::npos);
  }
}

TEST(Defaults, SettingsOutOfRange) {
  EXPECT_EQ(refusal({.page_size = 0}), "--page-size must be between 1 and 1024, got 0");
  EXPECT_EQ(refusal({.max_model_len = 8193}),
            "--max-model-len must be between 0 and the model's 8192 positions, got 8193");
  EXPECT_EQ(refusal({.kv_cache_tokens = 100, .max_model_len = 200}),
            "--max-model-len 200 is more than --kv-cache-tokens 100: one request must fit the cache");
  EXPECT_EQ(refusal({.num_pages = 10, .max_model_len = 200}),
            "--max-model-len 200 is more than the 160 tokens of --num-pages: one request must fit the cache");
  EXPECT_EQ(choose({.num_pages = 100}).num_pages, 100);
  EXPECT_EQ(refusal({.kv_dtype = "q8_0"}), "--kv-dtype must be auto, f32, f16, bf16, int8 or fp8, got q8_0");
  EXPECT_EQ(refusal({.kv_dtype = "fp8"}),
            concat("--kv-dtype fp8 is not supported on CPU (", cpu_isa_name(), "); use auto, f32, f16, bf16 or int8"));
  EXPECT_NE(refusal({.max_running = 0}), "");
  EXPECT_NE(refusal({.max_batch_tokens = -1}), "");
  EXPECT_NE(refusal({.memory_fraction = 0.0}), "");
  EXPECT_NE(refusal({.memory_fraction = 1.5}), "");
  EXPECT_NE(refusal({.kv_cache_tokens = 2048, .num_pages = 128}), "");
  EXPECT_NE(refusal({.max_waiting = -1}), "");
  EXPECT_EQ(refusal({.target_itl_ms = -1}), "--target-itl-ms must be between 0 and 60000, got -1");
  EXPECT_NE(refusal({.target_itl_ms = std::nan("")}), "");
  EXPECT_THROW(choose_num_threads(-1), InputError);
  EXPECT_EQ(choose_num_threads(3), 3);
  EXPECT_GE(choose_num_threads(0), 1);
}

}  // namespace
}  // namespace minisgl
