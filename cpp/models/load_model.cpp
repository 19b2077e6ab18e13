// Reads the configuration, checks every tensor, then loads them.
#include "models/load_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "io/mapped_file.h"
#include "io/quote.h"
#include "io/weight_source.h"
#include "models/decoder.h"
#include "models/decoder_weights.h"
#include "models/fingerprint.h"
#include "models/model_shard.h"
#include "models/quantization.h"
#include "models/registry.h"
#include "models/weight_loader.h"

namespace minisgl {
namespace {

// GGUF files of Llama 3.1 and later carry llama3 scaling as divisors of the frequencies.
void read_frequency_factors(const WeightSource& source, WeightLoader& loader, RopeSpec& rope) {
  constexpr const char* name = "rope_freqs.weight";
  if (!source.contains(name)) return;
  rope.freq_factors = loader.vector(name, rope.rotary_dim / 2);
  for (const float factor : rope.freq_factors) {
    if (!(factor > 0.0f && factor < 1e6f)) {
      throw InputError(
          concat("'", source.path(), "': tensor '", name, "' holds ", factor, ", which can't divide a frequency"));
    }
  }
}

// Whether both tensors hold the same bytes: many a file repeats a tied embedding as its head.
bool is_same_tensor(const TensorData& a, const TensorData& b) {
  const bool same = a.dtype == b.dtype && a.shape == b.shape && std::ranges::equal(a.bytes, b.bytes);
  release_pages(a.bytes);
  release_pages(b.bytes);
  return same;
}

// A head that the source holds and that isn't the embedding was trained: it counts, whatever the configuration says.
void untie_own_head(const WeightSource& source, bool log, ModelSpec& spec) {
  constexpr const char *embedding = "model.embed_tokens.weight", *head = "lm_head.weight";
  if (!spec.tied_embeddings || !source.contains(head) || !source.contains(embedding)) return;
  if (is_same_tensor(source.tensor(embedding), source.tensor(head))) return;
  spec.tied_embeddings = false;
  if (log) {
    log_line(LogLevel::warning, concat("'", source.path(), "' has tie_word_embeddings, and an lm_head of its own that ",
                                       "differs from the embedding: the lm_head is used."));
  }
}

bool is_vision_part(const std::string& name) {
  return name.find("vision_tower.") != std::string::npos || name.find("multi_modal_projector.") != std::string::npos;
}

// One line that names what the source holds and the model doesn't use.
void log_unread(const WeightSource& source, const ModelSpec& spec, const WeightLoader& loader) {
  constexpr std::size_t num_named = 3;
  std::vector<std::string> names = loader.unread();
  if (spec.tied_embeddings) std::erase(names, "lm_head.weight");  // the embedding again
  if (std::erase_if(names, is_vision_part) > 0) {
    log_line(LogLevel::warning,
             concat("'", source.path(), "': the model's vision tower is left out: it reads text only."));
  }
  if (std::erase_if(names, is_static_scale) > 0) {
    log_line(LogLevel::info,
             concat("'", source.path(), "': static scales of activations and of the cache are left out: ",
                    "activations are scaled token by token."));
  }
  if (names.empty()) return;
  std::string text;
  for (std::size_t i = 0; i < std::min(num_named, names.size()); ++i)
    text += (i == 0 ? "" : ", ") + quote_name(names[i]);
  if (names.size() > num_named) text += concat(" and ", names.size() - num_named, " more");
  log_line(LogLevel::warning, concat("'", source.path(), "': the model doesn't use ", names.size(),
                                     names.size() == 1 ? " tensor" : " tensors", " of the file: ", text, "."));
}

constexpr std::int64_t kUsualBlock = 128;  // columns of a block of scales

// Says where FP8 weights take as much memory and time as bf16.
void log_widened(const WeightSource& source, const Device& device, const WeightLoader& loader) {
  if (loader.bytes_by_dtype()[static_cast<std::size_t>(DType::f8e4m3)] == 0) return;
  if (device.keeps_e4m3(kUsualBlock, 1, kUsualBlock)) return;
  log_line(LogLevel::info, concat("'", source.path(), "': its FP8 weights become bf16 on ", device.device_name(), "."));
}

std::int64_t block_size_of(const WeightSource& source, const std::string& name) {
  return source.contains(name) ? dtype_info(source.described(name).dtype).block_size : 1;
}

// The largest of all layers: files mix formats.
ColumnBlocks column_blocks(const ModelSpec& spec, const WeightSource& source) {
  ColumnBlocks blocks;
  for (std::int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = concat("model.layers.", i, ".");
    blocks.attention_output =
        std::max(blocks.attention_output, block_size_of(source, layer + "self_attn.o_proj.weight"));
    blocks.down = std::max(blocks.down, block_size_of(source, layer + "mlp.down_proj.weight"));
    if (!spec.has_experts(i)) continue;
    const ExpertNames& names = spec.experts.names;
    blocks.down =
        std::max(blocks.down, block_size_of(source, concat(layer, names.shared, ".", names.shared_down, ".weight")));
    const DType down = ExpertFiles(source, layer, spec).dtype(0, ExpertMatrix::down);
    blocks.expert_down = std::max(blocks.expert_down, dtype_info(down).block_size);
  }
  return blocks;
}

void refuse_what_device_lacks(const ModelSpec& spec, const std::string& path, const Device& device) {
  const auto refuse = [&](const char* what) {
    throw InputError(concat("'", path, "': ", spec.family, " ", what, ", which ", device.device_name(),
                            " can't do yet: --device cpu can"));
  };
  if (spec.experts.num_experts > 0 && !device.computes_experts()) refuse("is a mixture of experts");
}

// Weights are copied in the layout of the device's kernels, so where that is the host's memory the file's pages don't
// stand in for them. A device with memory of its own says itself when it has too little.
// Experts in a file take no memory that others need, so there can be more of them than memory.
void refuse_what_does_not_fit(const std::string& path, std::int64_t bytes, std::int64_t expert_bytes, Device& device) {
  if (device.has_own_memory()) return;
  constexpr std::int64_t mebibyte = std::int64_t{1} << 20;
  const std::int64_t available = device.available_memory();
  const MemoryFile* const file = device.expert_file();
  const std::int64_t in_memory = file == nullptr ? bytes : bytes - expert_bytes;
  if (in_memory > available) {
    throw InputError(
        concat("'", path, "': its weights take ", in_memory / mebibyte, " MiB of memory, and ", available / mebibyte,
               " MiB are available: use a smaller model, or one in fewer bits",
               file == nullptr && expert_bytes > 0 ? ", or --expert-folder, which keeps experts in a file" : ""));
  }
  if (file == nullptr) return;
  if (expert_bytes > file->free_bytes()) {
    throw InputError(concat("'", path, "': its experts take ", expert_bytes / mebibyte, " MiB, and ",
                            file->free_bytes() / mebibyte, " MiB are free in --expert-folder '", file->folder(),
                            "': use a folder on a larger disk"));
  }
  if (device.rank() > 0) return;
  log_line(LogLevel::info,
           concat("'", path, "': ", expert_bytes / mebibyte, " MiB of experts lie in a file in '", file->folder(),
                  "'; memory has room for ", (available - in_memory) / mebibyte, " MiB of them and of the cache."));
}

// Experts aren't kept: --expert-folder is for more of them than memory holds.
void keep_matrices(const WeightSource& source, std::int64_t bytes, const KeepLimits& limits, Device& device) {
  if (limits.folder.empty() || limits.most_bytes == 0 || bytes < limits.least_bytes) return;
  const std::vector<std::string> files = source.files();
  if (files.empty()) return;
  std::string of = concat("rank ", device.rank(), " of ", device.num_ranks());
  for (const std::string& file : files) of += "\n" + file;
  const std::string file = device.keep_matrices({limits.folder, of, bytes, limits.most_bytes});
  if (file.empty() || device.rank() > 0) return;
  log_line(LogLevel::info, concat("packed weights: mapped from '", file,
                                  "', as an earlier start kept them "
                                  "(--packed-cache-bytes)"));
}

}  // namespace

std::unique_ptr<Model> load_model(const std::string& path, Device& device, const LoadProgress& progress,
                                  LoadFormat format, Quantize quantize, ExpertCut expert_cut, const KeepLimits& keep) {
  const bool dummy = format == LoadFormat::dummy;
  const std::unique_ptr<WeightSource> source = open_weights(path, !dummy);
  ModelSpec spec = read_model_spec(*source);
  const bool is_primary = device.rank() == 0;
  untie_own_head(*source, is_primary, spec);
  refuse_what_device_lacks(spec, path, device);
  if (expert_cut == ExpertCut::whole && spec.experts.num_experts == 0) {
    throw InputError(
        concat("'", path, "': ", spec.family, " has no experts: --expert-parallel is for mixtures of them"));
  }
  if (device.expert_file() != nullptr && spec.experts.num_experts == 0) {
    throw InputError(concat("'", path, "': ", spec.family, " has no experts: --expert-folder is for mixtures of them"));
  }
  // Refuses what can't be cut.
  shard_of(spec, device.num_ranks(), dummy ? ColumnBlocks{} : column_blocks(spec, *source), expert_cut);

  if (quantize != Quantize::none && !device.can_quantize(quantize)) {
    throw InputError(concat("--quantize ", kQuantizeNames[static_cast<std::size_t>(quantize)],
                            " needs a GPU of compute capability 9.0 (H100, H200), not ", device.device_name()));
  }
  if (quantize != Quantize::none && spec.experts.num_experts > 0 && is_primary) {
    log_line(LogLevel::info, concat("'", path, "': --quantize leaves experts and their routers as they are."));
  }
  std::int64_t total = 0;
  if (!dummy) {
    WeightLoader check(
        *source, device, WeightLoader::Pass::check, quantize, [&](std::int64_t bytes) { total += bytes; }, expert_cut);
    load_decoder_weights(spec, check);
    read_frequency_factors(*source, check, spec.rope);
    if (is_primary) {
      log_unread(*source, spec, check);
      log_widened(*source, device, check);
    }
    refuse_what_does_not_fit(path, total, check.expert_bytes(), device);
    if (quantize == Quantize::none) keep_matrices(*source, total - check.expert_bytes(), keep, device);
  }

  std::int64_t done = 0;
  WeightLoader load(
      *source, device, dummy ? WeightLoader::Pass::dummy : WeightLoader::Pass::load, quantize,
      [&](std::int64_t bytes) {
        done += bytes;
        device.pool().progress().advance();
        if (progress && !dummy) progress(std::min(done, total), total);
      },
      expert_cut);
  DecoderWeights weights = load_decoder_weights(spec, load);
  device.finish_matrices();
  if (!dummy) read_frequency_factors(*source, load, spec.rope);
  // Now that the file's pages are in memory, most of it costs no reading.
  if (!dummy && device.num_ranks() > 1) weights.fingerprint = fingerprint(spec, *source, device.pool());
  return make_decoder(std::move(spec), std::move(weights), device, expert_cut);
}

}  // namespace minisgl
