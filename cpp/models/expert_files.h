// Where the matrices of a layer's experts lie in a file, in whichever of the forms that files have them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "io/weight_source.h"
#include "kernels/weight_maker.h"
#include "layers/matrix_part.h"
#include "models/model_spec.h"

namespace minisgl {

class ExpertFiles {
 public:
  // Of the layer whose tensors' names begin with `layer` ("model.layers.0."). Throws InputError for a tensor that is
  // missing or has another shape than the configuration asks for.
  ExpertFiles(const WeightSource& source, std::string layer, const ModelSpec& spec);

  const std::vector<std::string>& names() const { return names_; }  // of the tensors that these are
  // What matrix() has.
  DType dtype(std::int64_t expert, ExpertMatrix which) const;
  // Gate or up [intermediate, hidden], down [hidden, intermediate], of all ranks. `staging` holds what the file has in
  // another order.
  MatrixBytes matrix(std::int64_t expert, ExpertMatrix which, ThreadPool& pool, AlignedBuffer& staging) const;
  // [rows of the matrix], or empty where experts have no biases.
  std::vector<float> bias(std::int64_t expert, ExpertMatrix which) const;

 private:
  enum class Form : std::uint8_t {
    each,        // a tensor for each matrix
    merged,      // gate, up and down of all experts
    fused,       // gate_up [experts, 2 * intermediate, hidden], gate before up, and down
    in_columns,  // gate_up [experts, hidden, 2 * intermediate], in turn; down [experts, intermediate, hidden]
    blocks,  // MXFP4: gate_up_blocks [experts, 2 * intermediate, hidden / 32, 16], in turn, and gate_up_scales; down
  };
  Form find_form() const;
  void check_all();
  // Of the file's tensors. Throws InputError for those with scales of their own, which experts don't have.
  TensorData described(const std::string& name) const;
  StoredTensor bytes_of(const std::string& name) const;  // of a tensor of plain bytes
  std::string expert_name(std::int64_t expert, ExpertMatrix which) const;
  const std::string& own_name(ExpertMatrix which) const;  // gate_proj
  std::string whole_name(ExpertMatrix which) const;       // of the tensor of all experts
  std::string bias_name(ExpertMatrix which) const;
  void add(const std::string& name, const std::vector<std::int64_t>& found, const std::vector<std::int64_t>& wanted);
  MatrixBytes in_columns(std::int64_t expert, ExpertMatrix which, ThreadPool& pool, AlignedBuffer& staging) const;
  MatrixBytes from_blocks(std::int64_t expert, ExpertMatrix which, ThreadPool& pool, AlignedBuffer& staging) const;
  std::int64_t rows(ExpertMatrix which) const { return which == ExpertMatrix::down ? hidden_ : intermediate_; }
  std::int64_t cols(ExpertMatrix which) const { return which == ExpertMatrix::down ? intermediate_ : hidden_; }

  const WeightSource& source_;
  std::string layer_;
  const ExpertSpec& spec_;
  std::int64_t hidden_, intermediate_;
  std::string base_;  // of the experts' names, with the dot behind it
  Form form_;
  std::vector<std::string> names_;
};

}  // namespace minisgl
