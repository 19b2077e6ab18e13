// Folders and files as sources of weights: names, configuration, and folders that can't be used.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "io/expect_input_error.h"
#include "io/gguf_builder.h"
#include "io/temporary_folder.h"
#include "io/weight_source.h"

namespace minisgl {
namespace {

using testing::Bytes;
using testing::expect_input_error;
using testing::GgufBuilder;
using testing::small_gguf;
using testing::TemporaryFolder;

std::string safetensors(const std::string& tensor, const std::string& dtype = "F32") {
  const std::string header =
      R"({")" + tensor + R"(": {"dtype": ")" + dtype + R"(", "shape": [2], "data_offsets": [0, 8]}})";
  return Bytes().string(header).raw("12345678").data();
}

TEST(OpenWeights, GgufSpeaksHuggingFaceNames) {
  const TemporaryFolder folder;
  const auto source = open_weights(folder.write("m.gguf", small_gguf().build()));
  EXPECT_TRUE(source->contains("model.embed_tokens.weight"));
  EXPECT_TRUE(source->contains("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(source->contains("token_embd.weight"));
  EXPECT_TRUE(source->interleaved_rope());
  const auto& config = source->config();
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["num_hidden_layers"], 1);
  EXPECT_EQ(config["rope_theta"], 5000.0);
  EXPECT_EQ(config["num_key_value_heads"], 4);
  EXPECT_EQ(config["vocab_size"], 3);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  expect_input_error([&] { source->tensor("lm_head.weight"); }, "m.gguf' has no tensor 'lm_head.weight'");
}

TEST(OpenWeights, GgufRopeScaling) {
  auto builder = small_gguf();
  builder.add_string("llama.rope.scaling.type", "yarn");
  builder.add_f32("llama.rope.scaling.factor", 4.0f);
  builder.add_u32("llama.rope.scaling.original_context_length", 64);
  const TemporaryFolder folder;
  const auto source = open_weights(folder.write("m.gguf", builder.build()));
  EXPECT_EQ(source->config()["rope_scaling"],
            (nlohmann::json{{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}}));
}

// A model of 3 files; `change` may spoil part `index`.
std::vector<std::string> write_parts(const TemporaryFolder& folder, int index = -1,
                                     const std::function<void(GgufBuilder&)>& change = {}) {
  std::vector<std::string> paths;
  for (int i = 0; i < 3; ++i) {
    GgufBuilder part = small_gguf();
    part.tensors = {{concat("blk.", i, ".attn_q.weight"), {8, 3}, 0, 0}};
    part.data = std::string(96, static_cast<char>('a' + i));
    if (i > 0) part.metadata = {}, part.num_metadata = 0;  // all but the numbers stand in the first
    part.add_u32("split.no", i);
    part.add_u32("split.count", 3);
    part.add_u32("split.tensors.count", 3);
    if (i == index) change(part);
    paths.push_back(folder.write(concat("m-0000", i + 1, "-of-00003.gguf"), part.build()));
  }
  return paths;
}

TEST(OpenWeights, GgufInParts) {
  const TemporaryFolder folder;
  for (const std::string& path : write_parts(folder)) {
    const auto source = open_weights(path);
    EXPECT_EQ(source->path(), path);
    EXPECT_EQ(source->config()["rope_theta"], 5000.0);
    EXPECT_EQ(source->names().size(), 3u);
    for (int i = 0; i < 3; ++i) {
      const TensorData tensor = source->tensor(concat("model.layers.", i, ".self_attn.q_proj.weight"));
      EXPECT_EQ(tensor.bytes.size(), 96u);
      EXPECT_EQ(tensor.bytes[95], static_cast<std::byte>('a' + i));
    }
  }
}

TEST(OpenWeights, TheCaseOfASuffixDoesNotCount) {
  const TemporaryFolder folder;
  std::vector<std::string> paths = write_parts(folder);
  for (std::string& path : paths) {
    const std::string lower = path;
    path.replace(path.size() - 5, 5, ".GGUF");
    std::filesystem::rename(lower, path);
  }
  EXPECT_EQ(open_weights(paths[1])->names(), open_weights(paths[0])->names());
}

TEST(OpenWeights, GgufPartsThatArentThere) {
  const TemporaryFolder folder;
  const std::vector<std::string> paths = write_parts(folder);
  const auto open = [&] { open_weights(paths[0]); };
  std::filesystem::remove(paths[1]);
  expect_input_error(open, "is one of 3 files of a model, and '" + paths[1] + "' is missing");
  std::filesystem::remove(paths[2]);
  expect_input_error(open, "'" + paths[1] + "' and 1 more are missing");
  std::filesystem::rename(paths[0], folder.path() + "/x.gguf");
  expect_input_error([&] { open_weights(folder.path() + "/x.gguf"); },
                     "is part 1 of a model of 3 files, but its name doesn't end in -00001-of-00003.gguf");
}

TEST(OpenWeights, GgufPartsThatDontFit) {
  const TemporaryFolder folder;
  const auto expect_refused = [&](int index, const std::string& message, auto change) {
    const std::vector<std::string> paths = write_parts(folder, index, change);
    expect_input_error([&] { open_weights(paths[0]); }, message);
  };
  const auto renumbered = [](std::uint32_t number, std::uint32_t count) {
    return [=](GgufBuilder& part) {
      part.metadata = {}, part.num_metadata = 0;
      part.add_u32("split.no", number);
      part.add_u32("split.count", count);
    };
  };
  expect_refused(1, "m-00002-of-00003.gguf' is not part 2 of 3, as its name says", renumbered(2, 3));
  expect_refused(2, "m-00003-of-00003.gguf' is not part 3 of 3, as its name says", renumbered(2, 4));
  expect_refused(0, "says that it is part 4 of 3", renumbered(3, 3));
  expect_refused(0, "says that it is part 1 of 70000", renumbered(0, 70000));
  expect_refused(1, "has the tensor 'blk.0.attn_q.weight', as has another part",
                 [](GgufBuilder& part) { part.tensors[0].name = "blk.0.attn_q.weight"; });
  expect_refused(1, "promises 3 tensors in 3 files, which hold 2", [](GgufBuilder& part) { part.tensors.clear(); });
}

TEST(OpenWeights, FolderWithOneFile) {
  const TemporaryFolder folder;
  folder.write("config.json", R"({"model_type": "llama"})");
  folder.write("generation_config.json", R"({"eos_token_id": [1, 2]})");
  folder.write("model.safetensors", safetensors("w"));
  const auto source = open_weights(folder.path());
  EXPECT_EQ(source->names(), std::vector<std::string>{"w"});
  EXPECT_EQ(source->tensor("w").dtype, DType::f32);
  EXPECT_EQ(source->config()["generation_config"]["eos_token_id"], (nlohmann::json{1, 2}));
  EXPECT_FALSE(source->interleaved_rope());
}

TEST(OpenWeights, FolderWithShards) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("model-1.safetensors", safetensors("a"));
  folder.write("model-2.safetensors", safetensors("b"));
  const auto write_index = [&](const std::string& map) {
    folder.write("model.safetensors.index.json", R"({"weight_map": )" + map + "}");
  };
  write_index(R"({"a": "model-1.safetensors", "b": "model-2.safetensors"})");
  EXPECT_EQ(open_weights(folder.path())->tensor("b").shape, std::vector<std::int64_t>{2});

  const auto open = [&] { open_weights(folder.path()); };
  write_index(R"({"a": "model-2.safetensors"})");
  expect_input_error(open, "model-2.safetensors' has no tensor 'a', which");
  write_index(R"({"a": "model-3.safetensors"})");
  expect_input_error(
      open, "index.json' names files of weights that are missing: '" + folder.path() + "/model-3.safetensors'");
  write_index(R"({"a": "model-1.safetensors", "b": "model-4.safetensors", "c": "model-5.safetensors"})");
  expect_input_error(open, "'" + folder.path() + "/model-4.safetensors' and 1 more");
  for (const char* bad : {R"({"a": "../model-1.safetensors"})", R"({"a": "/etc/x.safetensors"})", R"({"a": "passwd"})",
                          R"({"a": 3})", R"({"a": ".."})"}) {
    write_index(bad);
    expect_input_error(open, "puts tensor 'a' into something that is not the name of a .safetensors file");
  }
  write_index("[]");
  expect_input_error(open, "has no weight_map");
}

// Every file that is read, in the place of which something else was downloaded.
TEST(OpenWeights, StandInsAreNamed) {
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, '0') + "\nsize 4984\n";
  for (const auto& [content, message] :
       {std::pair{pointer, "is a Git LFS pointer, not the file itself: `git lfs pull` fetches that"},
        std::pair{std::string("<!DOCTYPE html>\n<html><head>"), "is an HTML page, not the file itself"},
        std::pair{std::string("\xef\xbb\xbf \n<HTML lang=en>"), "is an HTML page, not the file itself"}}) {
    const TemporaryFolder folder;
    const auto open = [&] { open_weights(folder.path()); };
    const std::string gguf = folder.write("m.gguf", content);
    expect_input_error([&] { open_weights(gguf); }, "'" + gguf + "' " + message);
    for (const char* name :
         {"config.json", "generation_config.json", "model.safetensors.index.json", "model.safetensors"}) {
      folder.write("config.json", "{}");
      const std::string file = folder.write(name, content);
      expect_input_error(open, "'" + file + "' " + message);
      std::filesystem::remove(file);
    }
  }
}

TEST(OpenWeights, AFileThatHasAllCountsMoreThanAnIndex) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("model.safetensors", safetensors("w"));
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "model-1.safetensors"}})");
  EXPECT_EQ(open_weights(folder.path())->names(), std::vector<std::string>{"w"});
}

TEST(OpenWeights, OneFileOfAnotherName) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("merged.safetensors", safetensors("w"));
  EXPECT_EQ(open_weights(folder.path())->names(), std::vector<std::string>{"w"});
  folder.write("other.safetensors", safetensors("v"));
  expect_input_error([&] { open_weights(folder.path()); },
                     "has several .safetensors files ('merged.safetensors', 'other.safetensors') and neither");
}

TEST(OpenWeights, NumbersThatOnlyPythonWrites) {
  const TemporaryFolder folder;
  folder.write("config.json",
               R"({"a": [NaN, -Infinity], "b": Infinity, "NaN": "\"Infinity", "c": "\\", "d": 1, "NaN ": "NaN"})");
  folder.write("model.safetensors", safetensors("w"));
  const nlohmann::json config = open_weights(folder.path())->config();
  const nlohmann::json expected = {
      {"a", {"NaN", "-Infinity"}}, {"b", "Infinity"}, {"NaN", "\"Infinity"}, {"c", "\\"}, {"d", 1}, {"NaN ", "NaN"}};
  EXPECT_EQ(config, expected);
  folder.write("config.json", R"({"a": NaNa})");
  expect_input_error([&] { open_weights(folder.path()); }, "is not valid JSON");
  folder.write("config.json", R"({"a": "\)");
  expect_input_error([&] { open_weights(folder.path()); }, "is not valid JSON");
  folder.write("config.json", R"({"a": NaN, "\)");
  expect_input_error([&] { open_weights(folder.path()); }, "is not valid JSON");
}

TEST(OpenWeights, UnsupportedDtypeIsNamedWhenAskedFor) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("model.safetensors", safetensors("w", "I32"));
  const auto source = open_weights(folder.path());
  expect_input_error([&] { source->tensor("w"); },
                     "tensor 'w' has dtype 'I32', which is not supported; supported: F32");
}

TEST(OpenWeights, FoldersThatCantBeUsed) {
  const TemporaryFolder folder;
  const auto open = [&] { open_weights(folder.path()); };
  expect_input_error(open, "has no config.json");
  folder.write("x.gguf", "");
  expect_input_error(open, "to serve a GGUF file give its own path, 'x.gguf'");
  folder.write("config.json", "[1]");
  expect_input_error(open, "is not a JSON object");
  folder.write("config.json", "{}");
  expect_input_error(open, "has no .safetensors file");
  folder.write("pytorch_model.bin", "");
  expect_input_error(open, "weights in PyTorch's format ('pytorch_model.bin')");
  expect_input_error([&] { open_weights(folder.path() + "/none"); }, "does not exist");
  expect_input_error([&] { open_weights("/dev/null"); }, "'/dev/null' is not a regular file");
  expect_input_error([&] { open_weights(folder.write("m.safetensors", "")); }, "is only weights");
  expect_input_error([&] { open_weights(folder.write("m.safetensors.index.json", "{}")); },
                     "is only an index of weights: give the folder");
  expect_input_error([&] { open_weights(folder.write("empty.gguf", "")); }, "truncated or damaged");
}

}  // namespace
}  // namespace minisgl
