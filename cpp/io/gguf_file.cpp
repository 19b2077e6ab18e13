// Parser of GGUF. The header of a file is a claim: counts, lengths, offsets and types are all checked against the
// bytes that are there before anything is allocated or read.
#include "io/gguf_file.h"

#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "core/byte_reader.h"
#include "core/error.h"
#include "io/quote.h"
#include "io/stand_in.h"
#include "io/tensor_layout.h"

namespace minisgl {
namespace {

constexpr std::size_t max_kept_string = 4096;
constexpr std::uint64_t max_kept_array = 4096;
constexpr std::size_t max_key_length = 65535;  // the format's own limit
constexpr std::size_t max_tensor_name = 1024;

enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// Bytes of a scalar; 0 for strings, arrays and unknown types.
std::size_t scalar_bytes(ValueType type) {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean: return 1;
    case ValueType::u16:
    case ValueType::i16: return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32: return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64: return 8;
    case ValueType::string:
    case ValueType::array: break;
  }
  return 0;
}

nlohmann::json read_scalar(ByteReader& reader, ValueType type, const std::string& what) {
  switch (type) {
    case ValueType::u8: return reader.read<std::uint8_t>(what);
    case ValueType::i8: return reader.read<std::int8_t>(what);
    case ValueType::u16: return reader.read<std::uint16_t>(what);
    case ValueType::i16: return reader.read<std::int16_t>(what);
    case ValueType::u32: return reader.read<std::uint32_t>(what);
    case ValueType::i32: return reader.read<std::int32_t>(what);
    case ValueType::u64: return reader.read<std::uint64_t>(what);
    case ValueType::i64: return reader.read<std::int64_t>(what);
    case ValueType::f32: return reader.read<float>(what);
    case ValueType::f64: return reader.read<double>(what);
    case ValueType::boolean: return reader.read<std::uint8_t>(what) != 0;
    case ValueType::string:
    case ValueType::array: break;
  }
  throw InputError(concat("'", reader.file(), "': ", what, " has the unknown type ", static_cast<std::uint32_t>(type)));
}

// Null for an array that is stepped over.
nlohmann::json read_array(ByteReader& reader, const std::string& what) {
  const auto type = reader.read<ValueType>(what);
  const auto count = reader.read<std::uint64_t>(what);
  if (type == ValueType::array) throw InputError(concat("'", reader.file(), "': ", what, " is an array of arrays"));
  if (type == ValueType::string) {
    // Each string takes at least the 8 bytes of its length, so the loop ends with the file.
    for (std::uint64_t i = 0; i < count; ++i) reader.read_string(what);
    return nullptr;
  }
  const std::size_t bytes = scalar_bytes(type);
  if (bytes == 0) {
    throw InputError(
        concat("'", reader.file(), "': ", what, " has the unknown type ", static_cast<std::uint32_t>(type)));
  }
  if (count > reader.remaining() / bytes) {
    throw InputError(concat("'", reader.file(), "' is truncated or damaged: ", what, " claims ", count,
                            " elements, the file has ", reader.remaining(), " bytes left"));
  }
  if (count > max_kept_array) {
    reader.take(count * bytes, what);
    return nullptr;
  }
  nlohmann::json values = nlohmann::json::array();
  for (std::uint64_t i = 0; i < count; ++i) values.push_back(read_scalar(reader, type, what));
  return values;
}

nlohmann::json read_value(ByteReader& reader, const std::string& what) {
  const auto type = reader.read<ValueType>(what);
  if (type == ValueType::array) return read_array(reader, what);
  if (type != ValueType::string) return read_scalar(reader, type, what);
  const std::string_view text = reader.read_string(what);
  if (text.size() > max_kept_string) return nullptr;
  return std::string(text);
}

void read_metadata(ByteReader& reader, std::uint64_t count, GgufFile& file) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::string key(reader.read_string(concat("metadata key ", i)).substr(0, max_key_length + 1));
    if (key.empty() || key.size() > max_key_length) {
      throw InputError(
          concat("'", reader.file(), "': metadata key ", i, " is empty or longer than ", max_key_length, " bytes"));
    }
    const auto [place, is_new] = file.metadata.try_emplace(key);
    if (!is_new) throw InputError(concat("'", reader.file(), "' has the metadata key ", quote_name(key), " twice"));
    place->second = read_value(reader, concat("metadata ", quote_name(key)));
  }
}

struct TensorType {
  std::uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;
};

constexpr std::array<TensorType, 30> tensor_types{{
    {0, "F32", DType::f32},
    {1, "F16", DType::f16},
    {2, "Q4_0", DType::q4_0},
    {3, "Q4_1", DType::q4_1},
    {6, "Q5_0", DType::q5_0},
    {7, "Q5_1", DType::q5_1},
    {8, "Q8_0", DType::q8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", DType::q2_k},
    {11, "Q3_K", DType::q3_k},
    {12, "Q4_K", DType::q4_k},
    {13, "Q5_K", DType::q5_k},
    {14, "Q6_K", DType::q6_k},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", DType::iq4_nl},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", DType::iq4_xs},
    {24, "I8", {}},
    {26, "I32", {}},
    {28, "F64", {}},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::bf16},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {39, "MXFP4", DType::mxfp4},
}};

DType tensor_dtype(std::uint32_t id, const std::string& file, const std::string& tensor) {
  std::string name = concat("number ", id);
  for (const TensorType& type : tensor_types) {
    if (type.id != id) continue;
    if (type.dtype) return *type.dtype;
    name = type.name;
  }
  std::string supported;
  for (const TensorType& type : tensor_types) {
    if (type.dtype) supported += concat(supported.empty() ? "" : ", ", type.name);
  }
  throw InputError(concat("'", file, "': tensor ", quote_name(tensor), " has type ", name,
                          ", which is not supported; supported: ", supported));
}

struct TensorClaim {
  std::string name;
  DType dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t offset;
};

TensorClaim read_tensor_claim(ByteReader& reader, std::uint64_t index, std::uint64_t alignment) {
  TensorClaim claim;
  const std::string what = concat("the description of tensor ", index);
  claim.name = std::string(reader.read_string(what).substr(0, max_tensor_name + 1));
  if (claim.name.empty() || claim.name.size() > max_tensor_name) {
    throw InputError(concat("'", reader.file(), "': the name of tensor ", index, " is empty or longer than ",
                            max_tensor_name, " bytes"));
  }
  const auto num_dims = reader.read<std::uint32_t>(what);
  if (num_dims < 1 || num_dims > 4) {
    throw InputError(concat("'", reader.file(), "': tensor ", quote_name(claim.name), " has ", num_dims,
                            " dimensions; 1 to 4 are supported"));
  }
  claim.shape.resize(num_dims);
  for (std::uint32_t i = 0; i < num_dims; ++i) {
    const auto dim = reader.read<std::uint64_t>(what);
    if (dim == 0 || dim > (std::uint64_t{1} << 40)) {
      throw InputError(concat("'", reader.file(), "': tensor ", quote_name(claim.name), " has a dimension of ", dim));
    }
    claim.shape[num_dims - 1 - i] = static_cast<std::int64_t>(dim);
  }
  claim.dtype = tensor_dtype(reader.read<std::uint32_t>(what), reader.file(), claim.name);
  claim.offset = reader.read<std::uint64_t>(what);
  if (claim.offset % alignment != 0) {
    throw InputError(concat("'", reader.file(), "': tensor ", quote_name(claim.name), " starts at offset ",
                            claim.offset, ", which is not a multiple of the alignment ", alignment));
  }
  return claim;
}

std::uint64_t read_alignment(const GgufFile& file, const std::string& name) {
  const auto entry = file.metadata.find("general.alignment");
  if (entry == file.metadata.end()) return 32;
  const bool is_number = entry->second.is_number_unsigned();
  const std::uint64_t alignment = is_number ? entry->second.get<std::uint64_t>() : 0;
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > 65536) {
    throw InputError(concat("'", name, "': general.alignment must be a power of two from 8 to 65536",
                            is_number ? concat(", got ", alignment) : ""));
  }
  return alignment;
}

TensorData resolve(const TensorClaim& claim, std::span<const std::byte> data, const std::string& file) {
  const DTypeInfo info = dtype_info(claim.dtype);
  const auto size = tensor_bytes(claim.shape, info.block_size, info.block_bytes);
  if (!size) {
    throw InputError(concat("'", file, "': tensor ", quote_name(claim.name), " of type ", info.name,
                            " has the impossible shape ", shape_text(claim.shape)));
  }
  if (claim.offset > data.size() || static_cast<std::uint64_t>(*size) > data.size() - claim.offset) {
    throw InputError(concat("'", file, "' is truncated or damaged: tensor ", quote_name(claim.name), " needs ", *size,
                            " bytes at offset ", claim.offset, " of ", data.size(), " bytes of tensor data"));
  }
  return {claim.dtype, claim.shape, data.subspan(claim.offset, static_cast<std::size_t>(*size))};
}

}  // namespace

GgufFile parse_gguf(std::span<const std::byte> bytes, const std::string& name) {
  ByteReader reader(bytes, name);
  if (reader.read<std::array<char, 4>>("the magic number") != std::array{'G', 'G', 'U', 'F'}) {
    refuse_stand_in(bytes, name);
    throw InputError(concat("'", name, "' is not a GGUF file"));
  }
  const auto version = reader.read<std::uint32_t>("the version");
  if (version == __builtin_bswap32(2) || version == __builtin_bswap32(3)) {
    throw InputError(concat("'", name, "' is a big-endian GGUF file, which is not supported"));
  }
  if (version != 2 && version != 3) {
    throw InputError(concat("'", name, "' is of GGUF version ", version, "; versions 2 and 3 are supported"));
  }
  const auto num_tensors = reader.read<std::uint64_t>("the number of tensors");
  const auto num_metadata = reader.read<std::uint64_t>("the number of metadata entries");

  GgufFile file;
  read_metadata(reader, num_metadata, file);
  const std::uint64_t alignment = read_alignment(file, name);
  std::vector<TensorClaim> claims;  // grows with the bytes read, not with the claimed count
  for (std::uint64_t i = 0; i < num_tensors; ++i) claims.push_back(read_tensor_claim(reader, i, alignment));

  const std::uint64_t data_start = (reader.position() + alignment - 1) / alignment * alignment;
  const auto data = bytes.subspan(static_cast<std::size_t>(std::min<std::uint64_t>(data_start, bytes.size())));
  for (TensorClaim& claim : claims) {
    TensorData tensor = resolve(claim, data, name);
    if (!file.tensors.try_emplace(claim.name, std::move(tensor)).second) {
      throw InputError(concat("'", name, "' has the tensor ", quote_name(claim.name), " twice"));
    }
  }
  return file;
}

}  // namespace minisgl
