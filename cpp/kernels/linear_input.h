// What linear layers read, and nothing else does.
//
// An operation whose rows only linears read may leave a part of its work to them: a GPU's products of few rows take the
// RMS norm on their way, those of many rows in e4m3 an MLP's gate, the CPU's products of quantised weights read int8
// blocks. Such an operation returns a
// LinearInput in place of a tensor. It can't be read as one by accident; Ops::plain_rows() makes one of it.
//
// A LinearInput is good until something writes to the rows that it stands for or to what it was computed from. Reading
// it after that throws CheckError, on every device, whether the device had left work undone or not.
#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace minisgl {

// The RMS norm of a row: x / rms(x) * weight, or that of x less its mean (a layer norm without bias).
struct Norm {
  const float* weight;  // [cols]; null: no norm, the row as it is
  float eps;
  bool centered = false;

  bool is_plain_rms() const { return weight != nullptr && !centered; }
};

class LinearInput {
 public:
  // Plain rows, as any operation writes them; read in the call that they are passed to.
  LinearInput(Tensor rows) : rows_(rows) {}  // NOLINT: a tensor may stand wherever a linear reads

  // `rows` are written, and were computed from `source`.
  static LinearInput written(Tensor rows, Tensor source) { return LinearInput(rows, source, {}); }
  // `rows` are to become norm(source), and aren't written.
  static LinearInput deferred(Tensor rows, Tensor source, const Norm& norm) { return LinearInput(rows, source, norm); }
  // `rows` are to become silu(gate) * up of the two halves of source's rows, and aren't written.
  static LinearInput ungated(Tensor rows, Tensor source) {
    LinearInput input(rows, source, {});
    input.is_ungated_ = true;
    return input;
  }

  std::int64_t rows() const { return rows_.rows; }
  std::int64_t cols() const { return rows_.cols; }
  bool norm_is_deferred() const { return norm_.has_value(); }

  // What the device keeps beside the rows and may drop, a second form of them or what their norm is made of: `writes`
  // counts what is written there.
  void keep_beside(const void* data, const WriteCount* writes) {
    beside_ = data;
    beside_writes_ = {writes, *writes};
  }

  // The device's view of it. Throws CheckError where it is stale.
  struct Form {
    Tensor rows;         // where the rows lie, or will
    Tensor source;       // what the norm is to be taken of, or gated
    const Norm* norm;    // null: no norm is left to do
    bool is_ungated;     // the gate is; neither: the rows are written
    const void* beside;  // null: nothing is kept beside the rows, or no longer
  };
  Form form() const {
    MINISGL_CHECK(rows_writes_.is_current(), "rows for a linear layer were overwritten before it read them");
    MINISGL_CHECK(source_writes_.is_current(), "what rows for a linear layer are made of was overwritten");
    return {rows_, source_, norm_ ? &*norm_ : nullptr, is_ungated_, beside_writes_.is_current() ? beside_ : nullptr};
  }

 private:
  // How often a buffer had been written to when it was looked at.
  struct Mark {
    const WriteCount* count = nullptr;
    WriteCount seen = 0;
    bool is_current() const { return count == nullptr || *count == seen; }
  };
  static Mark mark_of(Tensor tensor) { return {tensor.writes, tensor.writes != nullptr ? *tensor.writes : 0}; }

  LinearInput(Tensor rows, Tensor source, std::optional<Norm> norm)
      : rows_(rows), source_(source), norm_(norm), rows_writes_(mark_of(rows)), source_writes_(mark_of(source)) {}

  Tensor rows_, source_;
  std::optional<Norm> norm_;
  bool is_ungated_ = false;
  const void* beside_ = nullptr;
  Mark rows_writes_, source_writes_, beside_writes_;
};

}  // namespace minisgl
