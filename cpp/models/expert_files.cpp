// Each form by the name of a tensor that only it has.
#include "models/expert_files.h"

#include <array>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/float_at.h"
#include "io/quote.h"
#include "io/tensor_layout.h"

namespace minisgl {
namespace {

constexpr std::array matrices{ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down};
constexpr std::int64_t kBlock = 32, kBlockNibbleBytes = 16;  // MXFP4

std::span<const std::byte> part_of(std::span<const std::byte> bytes, std::int64_t index, std::int64_t count) {
  const std::size_t size = bytes.size() / static_cast<std::size_t>(count);
  return bytes.subspan(static_cast<std::size_t>(index) * size, size);
}

// A block of MXFP4 as GGUF stores it: the exponent, then values i and i + 16 in a byte; here values 2 i and 2 i + 1
// are.
void write_block(const std::byte* nibbles, std::byte exponent, std::byte* block) {
  const auto value = [&](std::int64_t i) {
    const auto byte = std::to_integer<unsigned>(nibbles[i / 2]);
    return i % 2 == 0 ? byte & 15 : byte >> 4;
  };
  block[0] = exponent;
  for (std::int64_t i = 0; i < kBlockNibbleBytes; ++i) {
    block[1 + i] = static_cast<std::byte>(value(i) | value(i + kBlockNibbleBytes) << 4);
  }
}

}  // namespace

ExpertFiles::ExpertFiles(const WeightSource& source, std::string layer, const ModelSpec& spec)
    : source_(source),
      layer_(std::move(layer)),
      spec_(spec.experts),
      hidden_(spec.hidden_size),
      intermediate_(spec.experts.intermediate_size),
      base_(layer_ + spec_.names.experts + "."),
      form_(find_form()) {
  check_all();
}

ExpertFiles::Form ExpertFiles::find_form() const {
  const ExpertNames& names = spec_.names;
  if (source_.contains(base_ + names.gate + ".weight")) return Form::merged;
  if (source_.contains(base_ + names.gate_up + "_blocks")) return Form::blocks;
  if (!source_.contains(base_ + names.gate_up) && !source_.contains(base_ + names.gate_up + ".weight"))
    return Form::each;
  return spec_.alternating ? Form::in_columns : Form::fused;
}

const std::string& ExpertFiles::own_name(ExpertMatrix which) const {
  const ExpertNames& names = spec_.names;
  return which == ExpertMatrix::gate ? names.gate : which == ExpertMatrix::up ? names.up : names.down;
}

std::string ExpertFiles::expert_name(std::int64_t expert, ExpertMatrix which) const {
  return concat(base_, expert, ".", own_name(which), ".weight");
}

std::string ExpertFiles::whole_name(ExpertMatrix which) const {
  const bool own = form_ == Form::merged || which == ExpertMatrix::down;
  const std::string name = base_ + (own ? own_name(which) : spec_.names.gate_up);
  return source_.contains(name + ".weight") ? name + ".weight" : name;
}

std::string ExpertFiles::bias_name(ExpertMatrix which) const {
  if (form_ == Form::merged) return base_ + own_name(which) + ".bias";
  return base_ + (which == ExpertMatrix::down ? own_name(which) : spec_.names.gate_up) + "_bias";
}

void ExpertFiles::add(const std::string& name, const std::vector<std::int64_t>& found,
                      const std::vector<std::int64_t>& wanted) {
  if (found != wanted) {
    throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " has shape ", shape_text(found),
                            ", the configuration asks for ", shape_text(wanted)));
  }
  names_.push_back(name);
}

TensorData ExpertFiles::described(const std::string& name) const {
  TensorData tensor = source_.described(name);
  const bool is_e4m3 = tensor.dtype == DType::f8e4m3;
  if (is_e4m3 || !tensor.mapped) {
    throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " is of an expert and in ",
                            is_e4m3 ? "FP8" : "int4", ", which experts are not read in: use the model in bf16 or as a ",
                            "GGUF file"));
  }
  return tensor;
}

StoredTensor ExpertFiles::bytes_of(const std::string& name) const {
  StoredTensor tensor = source_.stored(name);
  if (tensor.type != "U8") {
    throw InputError(
        concat("'", source_.path(), "': tensor ", quote_name(name), " has type ", quote_name(tensor.type), ", not U8"));
  }
  return tensor;
}

void ExpertFiles::check_all() {
  const std::int64_t count = spec_.num_experts;
  for (const ExpertMatrix which : matrices) {
    const bool is_down = which == ExpertMatrix::down, own = form_ == Form::merged || is_down;
    if (!own && which == ExpertMatrix::up && form_ != Form::each) continue;  // beside gate
    const std::int64_t outputs = own || form_ == Form::each ? rows(which) : 2 * rows(which);
    if (form_ == Form::each) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::string name = expert_name(i, which);
        add(name, described(name).shape, {outputs, cols(which)});
      }
    } else if (form_ == Form::blocks) {
      if (cols(which) % kBlock != 0) {
        throw InputError(concat("'", source_.path(), "': rows of ", cols(which), " are no blocks of ", kBlock));
      }
      const std::string name = whole_name(which);
      add(name + "_blocks", bytes_of(name + "_blocks").shape,
          {count, outputs, cols(which) / kBlock, kBlockNibbleBytes});
      add(name + "_scales", bytes_of(name + "_scales").shape, {count, outputs, cols(which) / kBlock});
    } else {
      const std::string name = whole_name(which);
      const TensorData tensor = described(name);
      const bool turned = form_ == Form::in_columns;
      add(name, tensor.shape, {count, turned ? cols(which) : outputs, turned ? outputs : cols(which)});
      if (turned && is_quantized(tensor.dtype)) {
        throw InputError(concat("'", source_.path(), "': tensor ", quote_name(name), " must be f32, f16 or bf16"));
      }
    }
    if (!spec_.biased) continue;
    const TensorData biases = source_.tensor(bias_name(which));
    add(bias_name(which), biases.shape, {count, outputs});
    if (is_quantized(biases.dtype)) {
      throw InputError(
          concat("'", source_.path(), "': tensor ", quote_name(bias_name(which)), " must be f32, f16 or bf16"));
    }
  }
}

DType ExpertFiles::dtype(std::int64_t expert, ExpertMatrix which) const {
  if (form_ == Form::blocks) return DType::mxfp4;
  return described(form_ == Form::each ? expert_name(expert, which) : whole_name(which)).dtype;
}

MatrixBytes ExpertFiles::matrix(std::int64_t expert, ExpertMatrix which, ThreadPool& pool,
                                AlignedBuffer& staging) const {
  if (form_ == Form::blocks) return from_blocks(expert, which, pool, staging);
  if (form_ == Form::in_columns) return in_columns(expert, which, pool, staging);
  const TensorData tensor = source_.tensor(form_ == Form::each ? expert_name(expert, which) : whole_name(which));
  std::span<const std::byte> bytes = tensor.bytes;
  if (form_ != Form::each) bytes = part_of(bytes, expert, spec_.num_experts);
  if (form_ == Form::fused && which != ExpertMatrix::down) bytes = part_of(bytes, which == ExpertMatrix::up ? 1 : 0, 2);
  return {tensor.dtype, rows(which), cols(which), bytes};
}

// Element (row, col) of the matrix is element (col, row) of the file's; of gate_up, each second column.
MatrixBytes ExpertFiles::in_columns(std::int64_t expert, ExpertMatrix which, ThreadPool& pool,
                                    AlignedBuffer& staging) const {
  const TensorData tensor = source_.tensor(whole_name(which));
  const auto bytes = part_of(tensor.bytes, expert, spec_.num_experts);
  const auto size = static_cast<std::size_t>(row_bytes(tensor.dtype, 1));
  const std::int64_t step = which == ExpertMatrix::down ? 1 : 2, first = which == ExpertMatrix::up ? 1 : 0;
  const std::int64_t num_rows = rows(which), num_cols = cols(which);
  staging = AlignedBuffer(static_cast<std::size_t>(num_rows * num_cols) * size);
  pool.parallel_for(num_rows, [&](std::int64_t row, int) {
    for (std::int64_t col = 0; col < num_cols; ++col) {
      std::memcpy(staging.data() + static_cast<std::size_t>(row * num_cols + col) * size,
                  bytes.data() + static_cast<std::size_t>(col * num_rows * step + row * step + first) * size, size);
    }
  });
  return {tensor.dtype, num_rows, num_cols, {staging.data(), staging.size()}};
}

MatrixBytes ExpertFiles::from_blocks(std::int64_t expert, ExpertMatrix which, ThreadPool& pool,
                                     AlignedBuffer& staging) const {
  const std::string name = whole_name(which);
  const auto nibbles = part_of(bytes_of(name + "_blocks").bytes, expert, spec_.num_experts);
  const auto scales = part_of(bytes_of(name + "_scales").bytes, expert, spec_.num_experts);
  const std::int64_t step = which == ExpertMatrix::down ? 1 : 2, first = which == ExpertMatrix::up ? 1 : 0;
  const std::int64_t num_rows = rows(which), num_blocks = cols(which) / kBlock;
  const std::int64_t block_bytes = dtype_info(DType::mxfp4).block_bytes;
  staging = AlignedBuffer(static_cast<std::size_t>(num_rows * num_blocks * block_bytes));
  pool.parallel_for(num_rows, [&](std::int64_t row, int) {
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      const std::int64_t from = (row * step + first) * num_blocks + i;
      write_block(nibbles.data() + from * kBlockNibbleBytes, scales[static_cast<std::size_t>(from)],
                  staging.data() + (row * num_blocks + i) * block_bytes);
    }
  });
  return {DType::mxfp4, num_rows, cols(which), {staging.data(), staging.size()}};
}

std::vector<float> ExpertFiles::bias(std::int64_t expert, ExpertMatrix which) const {
  if (!spec_.biased) return {};
  const TensorData tensor = source_.tensor(bias_name(which));
  const bool alternates = form_ != Form::merged && which != ExpertMatrix::down;
  const std::int64_t step = alternates ? 2 : 1, first = which == ExpertMatrix::up && alternates ? 1 : 0;
  std::vector<float> values;
  for (std::int64_t i = 0; i < rows(which); ++i) {
    values.push_back(float_at(tensor.dtype, tensor.bytes.data(), (expert * rows(which) + i) * step + first));
  }
  return values;
}

}  // namespace minisgl
